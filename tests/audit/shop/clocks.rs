//! Clocks that are moved while their processes run.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// The clocks of a round, each in a file that its process looks at.
pub struct Clocks(TempDir);

/// Whose clock is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    Relay,
    Redis,
    Postgres,
}

pub const ALL: [Whose; 3] = [Whose::Relay, Whose::Redis, Whose::Postgres];

impl Clocks {
    /// Builds the library, and sets all clocks right.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let open = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        // PostgreSQL runs as another user.
        open(folder.path(), 0o755);
        let clocks = Self(folder);

        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/audit/shop/clock.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o"]).arg(clocks.library());
        assert!(compiler.arg(source).status().unwrap().success(), "the clock is built");
        open(&clocks.library(), 0o755);
        for whose in ALL {
            std::fs::write(clocks.file(whose), 0_i64.to_ne_bytes()).unwrap();
            open(&clocks.file(whose), 0o644);
        }
        clocks
    }

    fn library(&self) -> PathBuf {
        self.0.path().join("clock.so")
    }

    fn file(&self, whose: Whose) -> PathBuf {
        self.0.path().join(format!("{whose:?}"))
    }

    /// What puts a process under a clock.
    pub fn environment(&self, whose: Whose) -> Vec<(String, String)> {
        let text = |path: PathBuf| path.display().to_string();
        vec![
            ("LD_PRELOAD".to_owned(), text(self.library())),
            ("MOVED_CLOCK".to_owned(), text(self.file(whose))),
        ]
    }

    /// Moves a clock to so many seconds from the right time.
    pub fn set(&self, whose: Whose, seconds: i64) {
        use std::io::Write as _;
        // The file is mapped: it must neither be cut nor replaced.
        let mut file = std::fs::File::options().write(true).open(self.file(whose)).unwrap();
        file.write_all(&seconds.to_ne_bytes()).unwrap();
    }
}
