//! Generated documentation is what the code generates, configuration in documents works, and the
//! fault catalogue names its tests.

use std::fs;
use std::path::Path;

use tollgate::auth;
use tollgate::protocol::{codes, kind};

use super::gateway;

/// Replaces what stands between the markers and returns whether that changed anything.
fn generated(path: &str, name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let document = fs::read_to_string(&path).unwrap();
    let (begin, end) = (format!("<!-- generated: {name} -->\n"), "<!-- end -->");
    let (head, rest) = document.split_once(&begin).expect("the marker");
    let (old, tail) = rest.split_once(end).expect("the end marker");
    if old == text {
        return;
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, format!("{head}{begin}{text}{end}{tail}")).unwrap();
    } else {
        panic!("{} is not what the code says: run `make docs`", path.display());
    }
}

#[test]
fn documents_have_the_tables_of_the_code() {
    generated("docs/protocol.md", "codes", &codes::markdown());
    generated("docs/publishing.md", "reserved", &kind::markdown());
    generated("docs/protocol.md", "reasons", &auth::markdown());
    generated("docs/tokens.md", "reasons", &auth::markdown());
    generated("docs/doctor.md", "doctor", &tollgate::probe::markdown());
    generated("docs/tokens.md", "causes", &auth::diagnose::markdown());
    generated("docs/metrics.md", "metrics", &tollgate::metrics::markdown());
}

/// Every TOML block of the documents is a configuration that loads.
#[test]
fn configuration_in_documents_is_valid() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut seen = 0;
    for name in ["README.md", "docs/operations.md", "docs/redis.md", "docs/tokens.md"] {
        let text = fs::read_to_string(root.join(name)).unwrap();
        for block in text.split("```toml\n").skip(1) {
            let block = block.split("```").next().unwrap();
            let folder = tempfile::tempdir().unwrap();
            let secret = "a secret of the documents' own, 32 bytes";
            for name in ["jwt-new", "jwt-old", "redis-password", "sentinel-password"] {
                fs::write(folder.path().join(name), secret).unwrap();
            }

            let block = block.replace("/run/secrets", folder.path().to_str().unwrap());
            let file = folder.path().join("tollgate.toml");
            fs::write(&file, &block).unwrap();

            let mut check = std::process::Command::new(gateway::BIN);
            check.args(["config", "check", "--config"]).arg(file).env("NEXTAUTH_SECRET", secret);
            // A part of a configuration still needs a key.
            if !block.contains("[[auth.keys]]") && !block.contains("session_cookie") {
                check.env("TOLLGATE_AUTH__KEYS", format!("[{{\"secret\":\"{secret}\"}}]"));
            }

            let output = check.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{name}:\n{block}\n{said}");
            seen += 1;
        }
    }
    assert!(seen > 0);
}

/// The names of a file's functions.
fn functions(text: &str) -> impl Iterator<Item = &str> {
    let end = |c: char| !c.is_ascii_alphanumeric() && c != '_';
    text.split("fn ").skip(1).filter_map(move |rest| rest.split(end).next())
}

fn has_function(file: &Path, name: &str) -> bool {
    let text = fs::read_to_string(file).unwrap_or_default();
    functions(&text).any(|function| function == name)
}

/// The rows that a test has in its name: R3 and R10 in `r3_r10_a_path_that_lies`,
/// Field A1 in `field_a1_a_line_that_cannot_be_written`.
fn rows_of(name: &str) -> Vec<String> {
    let (name, list, letters) = match name.strip_prefix("field_") {
        Some(rest) => (rest, "Field ", &['a', 'b', 'c', 'd', 'e', 'f'][..]),
        None => (name, "", &['r', 'w', 'a', 'p'][..]),
    };
    let is_row = |part: &&str| {
        let number = part.strip_prefix(letters).unwrap_or_default();
        !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
    };
    let rows = name.split('_').take_while(is_row);
    rows.map(|row| format!("{list}{}", row.to_uppercase())).collect()
}

/// What `docs/faults.md` has wrong: a row without a test, a test that is not there, a test with a
/// row's number that is not named in that row.
#[test]
fn every_row_of_the_fault_catalogue_has_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = fs::read_to_string(root.join("docs/faults.md")).unwrap();
    let line_of = |row: &str| document.lines().find(|l| l.starts_with(&format!("| {row} |")));
    let mut wrong = Vec::new();

    let numbered = |letter, last| (1..=last).map(move |n| format!("{letter}{n}"));
    for row in numbered('R', 13).chain(numbered('W', 23)).chain(numbered('P', 14)) {
        if !line_of(&row).is_some_and(|line| line.contains("::")) {
            wrong.push(format!("{row} has no row, or no test in it"));
        }
    }

    // `module::name` is in tests/it; other files are named by their path, and their tests by the
    // names that their languages give them.
    for named in document.split('`').skip(1).step_by(2) {
        let Some((place, name)) = named.rsplit_once("::") else { continue };
        let exists = match place.contains('.') {
            false => has_function(&root.join(format!("tests/it/{place}.rs")), name),
            true if place.ends_with(".rs") => has_function(&root.join(place), name),
            true => fs::read_to_string(root.join(place)).is_ok_and(|text| text.contains(name)),
        };
        if !exists {
            wrong.push(format!("{named} does not exist"));
        }
    }

    let mut seen = 0;
    let mut folders = vec![root.join("src"), root.join("tests")];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let text = fs::read_to_string(path).unwrap();
            for (name, row) in
                functions(&text).flat_map(|f| rows_of(f).into_iter().map(move |r| (f, r)))
            {
                seen += 1;
                if !line_of(&row).is_some_and(|line| line.contains(&format!("::{name}`"))) {
                    wrong.push(format!("{name} is not named in {row}"));
                }
            }
        }
    }

    assert!(seen > 0, "no test has a row's number");
    assert!(wrong.is_empty(), "docs/faults.md:\n{}", wrong.join("\n"));
}
