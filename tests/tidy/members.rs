//! The rules for the workspace's members: what they inherit, and what they depend on.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::sources;

/// A package of the workspace.
struct Member {
    /// From the root of the repository; the gateway's is `.`.
    folder: String,
    manifest: toml::Table,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn manifest(folder: &str) -> toml::Table {
    fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap().parse().unwrap()
}

fn workspace() -> toml::Table {
    manifest(".")["workspace"].as_table().unwrap().clone()
}

fn members() -> Vec<Member> {
    let named = workspace()["members"].as_array().unwrap().clone();
    let named = named.iter().map(|folder| folder.as_str().unwrap().to_owned());
    let all = std::iter::once(".".to_owned()).chain(named);
    all.map(|folder| Member { manifest: manifest(&folder), folder }).collect()
}

impl Member {
    /// What a table of dependencies holds, also for single platforms.
    fn dependencies(&self, kind: &str) -> Vec<(String, toml::Value)> {
        let everywhere = self.manifest.get(kind);
        let platforms = self.manifest.get("target").and_then(toml::Value::as_table);
        let platforms = platforms.into_iter().flatten().filter_map(|(_, table)| table.get(kind));
        let tables = everywhere.into_iter().chain(platforms).filter_map(toml::Value::as_table);
        tables.flatten().map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// The code that may use a kind of dependency, without its comments.
    fn code(&self, kind: &str) -> String {
        let folders: &[&str] = match (self.folder.as_str(), kind) {
            (".", "dependencies") => &["src"],
            (".", _) => &["src", "tests", "benches"],
            ("fuzz", _) => &["fuzz_targets"],
            _ => &["src"],
        };
        let files = folders.iter().flat_map(|folder| sources(&format!("{}/{folder}", self.folder)));
        let lines = files.flat_map(|(_, text)| text.lines().map(str::to_owned).collect::<Vec<_>>());
        lines.filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
    }
}

const KINDS: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];

/// Whether code names a crate. `\b` would need another dependency.
fn names(code: &str, ident: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(ident).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = &code[at + ident.len()..];
        let begins = before.is_none_or(|c| !is_name(c) && c != ':' && c != '.');
        let imported = code[..at].ends_with("use ") && after.starts_with([';', ' ']);
        begins && (after.starts_with("::") || imported)
    })
}

#[test]
fn every_dependency_has_a_current_reason() {
    let mut unused = Vec::new();
    for member in members() {
        for kind in KINDS {
            let dependencies = member.dependencies(kind);
            let code = if dependencies.is_empty() { String::new() } else { member.code(kind) };
            let unnamed = dependencies.iter().filter(|(name, _)| {
                let ident = name.replace('-', "_");
                !names(&code, &ident)
            });
            unused.extend(unnamed.map(|(name, _)| format!("{}: {name} ({kind})", member.folder)));
        }
    }
    assert!(unused.is_empty(), "not used:\n{}", unused.join("\n"));

    // The rule sees a name, and no lookalikes.
    assert!(names("fn f() { anyhow::bail!() }", "anyhow") && names("use slab;", "slab"));
    assert!(!names("self.bytes.len(), x::bytes::y, memory_bytes::z, bytes", "bytes"));
}

/// A version that only one member uses belongs in that member's manifest.
#[test]
fn what_the_workspace_names_is_shared() {
    let mut users = BTreeMap::new();
    for member in members() {
        let mut inherited: Vec<_> =
            KINDS.iter().flat_map(|kind| member.dependencies(kind)).collect();
        inherited.retain(|(_, value)| {
            value.get("workspace").and_then(toml::Value::as_bool) == Some(true)
        });
        inherited.sort_by(|a, b| a.0.cmp(&b.0));
        inherited.dedup_by(|a, b| a.0 == b.0);
        for (name, _) in inherited {
            *users.entry(name).or_insert(0) += 1;
        }
    }

    for name in workspace()["dependencies"].as_table().unwrap().keys() {
        assert!(users.get(name).is_some_and(|count| *count > 1), "{name} is not shared");
    }
}

#[test]
fn members_share_one_house() {
    let inherits = |value: Option<&toml::Value>| {
        value.and_then(|v| v.get("workspace")).and_then(toml::Value::as_bool) == Some(true)
    };
    for Member { folder, manifest } in members() {
        for field in ["version", "edition", "rust-version", "license"] {
            let own = manifest["package"].get(field);
            assert!(inherits(own), "{folder}: {field} is the workspace's");
        }
        assert!(inherits(manifest.get("lints")), "{folder}: the lints are the workspace's");
        let lock = root().join(&folder).join("Cargo.lock");
        assert!(folder == "." || !lock.exists(), "{folder}: the lock file is the workspace's");
    }
}

#[test]
fn one_compiler_everywhere() {
    let read = |file: &str| fs::read_to_string(root().join(file)).unwrap();
    let toolchain: toml::Table = read("rust-toolchain.toml").parse().unwrap();
    let version = toolchain["toolchain"]["channel"].as_str().unwrap();

    let package = workspace()["package"].clone();
    assert_eq!(package["rust-version"].as_str(), Some(version), "no older version is tried");
    assert!(read("Dockerfile").contains(&format!("library/rust:{version}-")), "Dockerfile");
    assert!(read("README.md").contains(&format!("Rust {version}")), "README.md");
}

/// A tool that measures the gateway would not see a mistake that both shared.
#[test]
fn tools_share_no_code_with_the_gateway() {
    for member in members().iter().filter(|member| member.folder.starts_with("tools/")) {
        for (name, value) in KINDS.iter().flat_map(|kind| member.dependencies(kind)) {
            let shared = workspace()["dependencies"].get(&name).cloned();
            for value in std::iter::once(value).chain(shared) {
                let (folder, has_path) = (&member.folder, value.get("path").is_some());
                assert!(!has_path, "{folder} depends on another member's code: {name}");
            }
        }
    }

    // They do not include its files either.
    for (file, text) in sources("tools") {
        for line in text.lines() {
            let path =
                line.trim_start().strip_prefix("#[path = \"").and_then(|l| l.split_once('"'));
            let path = path.map(|(path, _)| path);
            let included = line.split_once("include").and_then(|(_, rest)| {
                let (_, given) = rest.split_once("!(\"")?;
                given.split_once('"').map(|(path, _)| path)
            });
            for path in path.into_iter().chain(included) {
                let target = normal(&file.parent().unwrap().join(path));
                let (file, inside) = (file.display(), target.starts_with(root().join("tools")));
                assert!(inside, "{file} includes {path}");
            }
        }
    }
}

/// The path without `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                normal.pop();
            }
            Component::Prefix(_)
            | Component::RootDir
            | Component::CurDir
            | Component::Normal(_) => {
                normal.push(part);
            }
        }
    }
    normal
}
