//! Generated documentation is what the code generates, and configuration in documents works.

use std::fs;
use std::path::Path;

use tollgate::{auth, protocol::codes};

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
fn protocol_md_has_the_tables_of_the_code() {
    generated("docs/protocol.md", "codes", &codes::markdown());
    generated("docs/protocol.md", "reasons", &auth::markdown());
}

/// Every TOML block of the documents is a configuration that loads.
#[test]
fn configuration_in_documents_is_valid() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut seen = 0;
    for name in ["README.md", "docs/operations.md"] {
        let text = fs::read_to_string(root.join(name)).unwrap();
        for block in text.split("```toml\n").skip(1) {
            let block = block.split("```").next().unwrap();
            let mut file = tempfile::NamedTempFile::new().unwrap();
            std::io::Write::write_all(&mut file, block.as_bytes()).unwrap();
            let output = std::process::Command::new(super::gateway::BIN)
                .args(["config", "check", "--config"])
                .arg(file.path())
                .env("NEXTAUTH_SECRET", "a secret of the documents' own, 32 bytes")
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{name}:\n{block}\n{said}");
            seen += 1;
        }
    }
    assert!(seen > 0);
}
