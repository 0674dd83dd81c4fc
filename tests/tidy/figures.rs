//! The house in figures: what CONTRIBUTING.md asks of the code's form, counted.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use super::{arrows, code, functions, is_test, sources};

/// Functions of this many lines have paragraphs.
const LONG: usize = 20;

/// Prints the figures, and checks those that have a limit.
/// `cargo test --test tidy the_house_in_figures -- --nocapture` shows them.
#[test]
fn the_house_in_figures() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files: Vec<_> = sources("src").into_iter().filter(|(path, _)| !is_test(path)).collect();

    let (mut long, mut parted, mut inline, mut lines) = (0, 0, 0, 0);
    let mut types: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (path, text) in &files {
        let text = code(text);
        for (_, _, body) in functions(text).iter().filter(|(_, _, body)| body.len() >= LONG) {
            long += 1;
            parted += usize::from(body.iter().any(|line| line.trim().is_empty()));
        }

        lines += text.lines().count();
        let is_inline = |line: &&str| {
            let line = line.trim_start();
            line.starts_with("//") && !line.starts_with("///") && !line.starts_with("//!")
        };
        inline += text.lines().filter(is_inline).count();

        let name = path.strip_prefix(root).expect("below the root").display().to_string();
        for line in text.lines().filter(|line| !line.starts_with(' ')) {
            for kind in ["struct ", "enum ", "trait ", "type "] {
                let Some((before, after)) = line.split_once(kind) else { continue };
                let is_definition = before.is_empty() || before.starts_with("pub");
                if is_definition && !line.starts_with("//") {
                    let defined = after.chars().take_while(|c| c.is_alphanumeric()).collect();
                    types.entry(defined).or_default().push(name.clone());
                }
            }
        }
    }

    let rooms = arrows::Crate::read(&root.join("src")).arrows();
    let all: usize = rooms.values().map(BTreeMap::len).sum();
    let circles: usize = rooms.values().map(|room| arrows::circles(room.keys()).len()).sum();

    let twice: Vec<_> = types.iter().filter(|(_, places)| places.len() > 1).collect();
    let mut report = String::new();
    let share = 100 * parted / long;
    let _ =
        writeln!(report, "functions of {LONG} lines or more: {long}, with paragraphs: {share} %");
    let _ =
        writeln!(report, "inline comments: {:.1} % of lines", 100.0 * inline as f64 / lines as f64);
    let _ = writeln!(report, "arrows inside rooms: {all}, circles: {circles}");
    let _ = writeln!(report, "type names: {}, twice or more: {}", types.len(), twice.len());
    for (name, places) in &twice {
        let _ = writeln!(report, "  {name}: {}", places.join(", "));
    }
    for (walk, count) in walks(root) {
        let _ = writeln!(report, "files of {walk}: {count}");
    }
    println!("{report}");

    assert!(share >= 80, "{report}");
    assert_eq!(circles, 0, "{report}");
}

/// The walks of ARCHITECTURE.md, and how many files each row by row leads through.
fn walks(root: &Path) -> Vec<(String, usize)> {
    let text = std::fs::read_to_string(root.join("ARCHITECTURE.md")).expect("the architecture");
    let walks = text.split("\n## ").filter(|part| part.starts_with("Walk "));
    let count = |walk: &str| {
        let rows = walk.lines().filter(|line| line.starts_with('|'));
        let files = rows.filter_map(|row| {
            let columns = row.split('|').map(str::trim);
            columns.take(3).find(|cell| cell.starts_with('`') && cell.contains(".rs"))
        });
        files.collect::<std::collections::BTreeSet<_>>().len()
    };
    walks.map(|walk| (walk.lines().next().unwrap_or_default().to_owned(), count(walk))).collect()
}
