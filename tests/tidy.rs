//! The house rules that no compiler checks: layers, sizes, names, module docs, and where
//! things live.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "tidy/arrows.rs"]
mod arrows;
#[path = "tidy/closed_sets.rs"]
mod closed_sets;
#[path = "tidy/figures.rs"]
mod figures;
#[path = "tidy/members.rs"]
mod members;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Lines of code in one file; its tests, comments and blank lines are not counted.
const MAX_CODE_LINES: usize = 400;

/// The modules of `src` from the lowest layer to the highest, with what each may import. A module
/// may always import itself.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    // 0 vocabulary
    ("channel", &[]),
    ("clock", &[]),
    ("process_limits", &[]),
    ("logging", &[]),
    ("websocket", &[]),
    ("access", &["channel"]),
    ("strict", &[]),
    ("auth", &["access", "channel", "logging", "strict"]),
    ("protocol", &["channel", "websocket", "strict"]),
    ("metrics", &["auth", "channel", "protocol"]),
    ("redis_url", &[]),
    ("origin", &[]),
    ("tls", &[]),
    ("sizes", &[]),
    ("config", &["access", "auth", "channel", "origin", "tls", "redis_url"]),
    ("lifecycle", &[]),
    // 1 mechanism
    (
        "hub",
        &["clock", "access", "channel", "protocol", "websocket", "metrics", "lifecycle", "sizes"],
    ),
    (
        "broker",
        &["clock", "tls", "channel", "redis_url", "metrics", "lifecycle", "logging", "sizes"],
    ),
    ("upstream", &["tls", "auth", "metrics", "lifecycle", "logging", "strict"]),
    ("diagnosis", &["clock", "broker", "auth", "metrics", "lifecycle", "logging"]),
    // 2 mediation
    (
        "gateway",
        &[
            "clock",
            "hub",
            "broker",
            "auth",
            "channel",
            "protocol",
            "metrics",
            "lifecycle",
            "logging",
            "sizes",
            "strict",
        ],
    ),
    ("relay", &["broker", "channel", "protocol", "tls", "metrics", "lifecycle", "logging"]),
    // 3 session
    (
        "session",
        &[
            "clock",
            "gateway",
            "hub",
            "upstream",
            "diagnosis",
            "auth",
            "access",
            "protocol",
            "channel",
            "websocket",
            "config",
            "metrics",
            "lifecycle",
            "logging",
        ],
    ),
];

/// The top layer: may import everything.
const EDGE: [&str; 8] = ["http", "demo", "app", "terminal", "probe", "cli", "main", "lib"];

fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    found
}

/// The part of a file before its tests.
fn code(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap_or(text)
}

/// How many lines of code a file has.
fn code_lines(text: &str) -> usize {
    let is_code = |line: &&str| {
        let line = line.trim_start();
        !line.is_empty() && !line.starts_with("//")
    };
    code(text).lines().filter(is_code).count()
}

/// Whether a file holds only tests.
fn is_test(path: &Path) -> bool {
    path.file_stem().is_some_and(|n| n.to_string_lossy().ends_with("tests"))
}

fn module(path: &Path) -> String {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let relative = path.strip_prefix(src).unwrap();
    let first = relative.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

#[test]
fn imports_go_downward_only() {
    let mut wrong = Vec::new();
    for (path, text) in sources("src") {
        let module = module(&path);
        if EDGE.contains(&module.as_str()) || is_test(&path) {
            continue;
        }
        let allowed = MAY_IMPORT.iter().find(|(name, _)| *name == module);
        let (_, allowed) = allowed.unwrap_or_else(|| panic!("{module} has no layer: add it here"));
        for line in code(&text).lines().filter(|l| !l.trim_start().starts_with("//")) {
            for used in line.split("crate::").skip(1) {
                let used: String =
                    used.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if used != module && !allowed.contains(&used.as_str()) {
                    wrong.push(format!("{}: {module} uses {used}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "against the layers of ARCHITECTURE.md:\n{}", wrong.join("\n"));

    // The table itself goes downward.
    let mut below = BTreeSet::new();
    for (name, imports) in MAY_IMPORT {
        let free = ["lifecycle", "metrics"];
        for import in *imports {
            assert!(below.contains(import) || free.contains(import), "{name} -> {import}");
        }
        below.insert(*name);
    }
}

/// A room can be read from its lowest file to its highest: no file needs one that needs it.
#[test]
fn rooms_have_no_circles() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    let mut all = 0;
    for (room, arrows) in arrows::Crate::read(&src).arrows() {
        all += arrows.len();
        for circle in arrows::circles(arrows.keys()) {
            let mut lines = String::new();
            for ((from, to), names) in &arrows {
                if circle.contains(from) && circle.contains(to) {
                    lines.push_str(&format!("\n    {from} -> {to} {names:?}"));
                }
            }
            wrong.push(format!("{room}, {} files:{lines}", circle.len()));
        }
    }
    assert!(all > 100, "{all} arrows: the rule sees nothing");
    assert!(wrong.is_empty(), "circles among {all} arrows:\n{}", wrong.join("\n"));
}

#[test]
fn rooms_are_small() {
    let crowded: Vec<_> = sources("src")
        .into_iter()
        .chain(sources("tools"))
        .chain(sources("tests/support/src"))
        .map(|(path, text)| (path, code_lines(&text)))
        .filter(|(_, lines)| *lines > MAX_CODE_LINES)
        .collect();
    assert!(crowded.is_empty(), "move walls: {crowded:?}");
}

/// Functions of this many lines have paragraphs.
const MAX_PARAGRAPH: usize = 30;

/// The functions of a file, as rustfmt writes them: name, indentation, and the lines of the body.
fn functions(text: &str) -> Vec<(&str, usize, Vec<&str>)> {
    let lines: Vec<_> = text.lines().collect();
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let head = line.trim_start();
        let words = head.split(['(', '<']).next().unwrap_or_default();
        let Some((before, name)) = words.rsplit_once("fn ") else { continue };
        if before.contains("//") || before.contains('"') || before.contains('=') {
            continue;
        }

        let ends = |line: &&str| line.ends_with('{') || line.ends_with(';') || line.ends_with('}');
        let Some(open) = lines[at..].iter().position(|line| ends(&line.trim_end())) else {
            continue;
        };
        if !lines[at + open].ends_with('{') {
            continue;
        }
        let margin = indent(line);
        let body = &lines[at + open + 1..];
        let is_end = |line: &&str| line.trim() == "}" && indent(line) == margin;
        let Some(end) = body.iter().position(is_end) else { continue };
        found.push((name, margin, body[..end].to_vec()));
    }
    found
}

/// A long function without a blank line is a wall of text, unless it is one expression.
#[test]
fn long_functions_have_paragraphs() {
    let mut walls = Vec::new();
    let folders = ["src", "tests", "tools", "benches", "fuzz/fuzz_targets"];
    for (path, text) in folders.into_iter().flat_map(sources) {
        for (name, margin, body) in functions(&text) {
            let begins = |line: &&&str| {
                let head = line.trim_start();
                line.len() - head.len() == margin + 4 && !head.starts_with(['}', ')', ']', '.'])
            };
            let is_one = body.iter().filter(begins).count() <= 1;
            let has_paragraphs = body.iter().any(|line| line.trim().is_empty());
            if body.len() >= MAX_PARAGRAPH && !is_one && !has_paragraphs {
                walls.push(format!("{}: {name}", path.display()));
            }
        }
    }
    assert!(walls.is_empty(), "separate the steps by blank lines:\n{}", walls.join("\n"));

    // The rule sees such a wall.
    let wall = format!("pub fn wall(n: u8) {{\n{}}}\n", "    step(n);\n".repeat(40));
    assert_eq!(functions(&wall)[0].2.len(), 40);
}

#[test]
fn every_module_says_what_lives_there() {
    let all = sources("src").into_iter().chain(sources("tools"));
    for (path, text) in all.chain(sources("tests/support/src")) {
        assert!(text.starts_with("//!") || is_test(&path), "{} has no module doc", path.display());
        let doc = text.lines().take_while(|l| l.starts_with("//!")).count();
        assert!(doc <= 25, "{}: a module doc is short", path.display());
    }
}

/// Whether a file runs `tollgate serve` and goes on. Running a command to its end and reading what
/// it says is no harness.
fn starts_a_gateway(text: &str) -> bool {
    let code = || text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let spawns = |line: &str| line.contains(".spawn()") || line.contains("Process::spawn(");
    code().any(|line| line.contains("\"serve\"")) && code().any(spawns)
}

/// Gateways for tests are started in one place: another start would have ports, waiting and logs of
/// its own.
#[test]
fn gateways_are_started_by_one_harness() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let home = root.join("tests/support/src/gateway/launch.rs");
    let mut starting = Vec::new();
    for (path, text) in sources("tests").into_iter().chain(sources("benches")) {
        // This file has examples.
        if path != root.join(file!()) && starts_a_gateway(&text) {
            starting.push(path);
        }
    }
    assert_eq!(starting, [home], "start gateways by tests/support");

    // The rule sees both ways to start one.
    let harness = "let mut gateway = Command::new(BIN);\ngateway.args([\"serve\", \"--dev\"]);\n";
    assert!(starts_a_gateway(&format!("{harness}gateway.spawn().unwrap();")));
    assert!(starts_a_gateway(&format!("{harness}Process::spawn(&mut gateway);")));
    assert!(!starts_a_gateway(&format!("{harness}gateway.output().unwrap();")));
}

#[test]
fn metrics_have_one_home() {
    for (path, text) in sources("src").into_iter().filter(|(p, _)| module(p) != "metrics") {
        for macro_name in ["metrics::counter!", "metrics::gauge!", "metrics::histogram!"] {
            assert!(!text.contains(macro_name), "{}: {macro_name}", path.display());
        }
    }
}

/// Serde reads a struct from a list too; `strict` does not. The configuration comes from the
/// operator and is exempt.
#[test]
fn foreign_json_becomes_a_struct_in_one_place() {
    let harmless = ["Value", "IgnoredAny", "String", "Fields", "Members", "TopLevel", "Vec"];
    for (path, text) in sources("src") {
        if ["strict", "config"].contains(&module(&path).as_str()) || is_test(&path) {
            continue;
        }
        for line in code(&text).lines().filter(|l| !l.trim_start().starts_with("//")) {
            for read in line.split("serde_json::from_").skip(1) {
                let named = read.split_once("::<").map_or("", |(_, rest)| rest);
                let name = named.split(['>', '<']).next().unwrap_or_default();
                let (file, line) = (path.display(), line.trim());
                assert!(harmless.contains(&name), "{file}: use strict::from_…: {line}");
            }
        }
    }
}

#[test]
fn names_say_what_things_are() {
    for (path, text) in sources("src") {
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        assert!(!["utils", "util", "common", "helpers"].contains(&stem.as_str()), "{stem}");
        for line in code(&text).lines() {
            for kind in ["struct ", "trait ", "enum "] {
                let Some((_, name)) = line.split_once(kind) else { continue };
                let name: String = name.chars().take_while(|c| c.is_alphanumeric()).collect();
                for bad in ["Manager", "Impl", "Factory", "Interface"] {
                    assert!(!name.ends_with(bad), "{}: {name}", path.display());
                }
            }
        }
    }
}

#[test]
fn the_project_stands_alone() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<PathBuf> =
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile"]
            .iter()
            .map(|n| root.join(n))
            .collect();
    files.extend(sources("src").into_iter().chain(sources("tools")).map(|(p, _)| p));
    files.extend(fs::read_dir(root.join("docs")).unwrap().map(|e| e.unwrap().path()));
    for path in files.into_iter().filter(|p| p.is_file()) {
        // A picture is no text, but may not name anything outside either.
        let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
        for outside in ["../shared", "/root/", "/home/"] {
            assert!(!text.contains(outside), "{} names {outside}", path.display());
        }
    }
}
