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
    generated("docs/tokens.md", "reasons", &auth::markdown());
    generated("docs/tokens.md", "causes", &auth::diagnose::markdown());
}

/// Every TOML block of the documents is a configuration that loads.
#[test]
fn configuration_in_documents_is_valid() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut seen = 0;
    for name in ["README.md", "docs/operations.md", "docs/tokens.md"] {
        let text = fs::read_to_string(root.join(name)).unwrap();
        for block in text.split("```toml\n").skip(1) {
            let block = block.split("```").next().unwrap();
            let folder = tempfile::tempdir().unwrap();
            let secret = "a secret of the documents' own, 32 bytes";
            for name in ["jwt-new", "jwt-old"] {
                fs::write(folder.path().join(name), secret).unwrap();
            }
            let block = block.replace("/run/secrets", folder.path().to_str().unwrap());
            let file = folder.path().join("tollgate.toml");
            fs::write(&file, &block).unwrap();
            let mut check = std::process::Command::new(super::gateway::BIN);
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
