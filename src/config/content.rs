//! The content that a configuration was made of: the values of its settings and the contents of its
//! files, as digests, so that a later reading can say what is different.
//!
//! Invariant: a file's digest is that of the bytes that were used, not of what the file held a
//! moment before or after. No change is lost, whenever it comes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use toml::{Table, Value};

use super::tree::{all_paths, lookup};

type Digest = [u8; 32];

fn digest(bytes: &[u8]) -> Digest {
    Sha256::digest(bytes).into()
}

/// One file; `digest` is `None` if it could not be read.
#[derive(Debug, Clone)]
struct Held {
    path: PathBuf,
    digest: Option<Digest>,
    /// False for the configuration's own file, whose content is in the values already.
    counts: bool,
}

/// The files that a configuration depends on.
#[derive(Debug, Clone, Default)]
pub struct Files(Vec<Held>);

impl Files {
    /// Reads a file and notes its content.
    pub(super) fn read(&mut self, path: &Path) -> std::io::Result<String> {
        self.take(path, true)
    }

    /// Reads the configuration's own file, and notes its content.
    pub(super) fn read_settings(&mut self, path: &Path) -> std::io::Result<String> {
        self.take(path, false)
    }

    fn take(&mut self, path: &Path, counts: bool) -> std::io::Result<String> {
        let read = std::fs::read(path);
        let digest = read.as_deref().ok().map(digest);
        self.0.push(Held { path: path.to_owned(), digest, counts });
        String::from_utf8(read?).map_err(|_| {
            std::io::Error::new(std::io::ErrorKind::InvalidData, "it is not UTF-8 text")
        })
    }

    pub(super) fn append(&mut self, other: &mut Self) {
        self.0.append(&mut other.0);
    }

    /// Reads all files again. Returns true if one of them has new content. Content is compared,
    /// because a Kubernetes mount swaps a symlink and keeps the path. A file that is missing for a
    /// moment does not count as new content.
    pub fn check(&mut self) -> bool {
        let mut changed = false;
        for file in &mut self.0 {
            let now = std::fs::read(&file.path).ok().as_deref().map(digest);
            if now.is_some() && now != file.digest {
                file.digest = now;
                changed = true;
            }
        }
        changed
    }

    /// The files with other content than before, and those that were not there before.
    #[must_use]
    pub fn differing(&self, before: &Self) -> Vec<String> {
        let was =
            |file: &Held| before.0.iter().any(|b| b.path == file.path && b.digest == file.digest);
        let new = self.0.iter().filter(|file| file.counts && !was(file));
        new.map(|file| file.path.display().to_string()).collect()
    }
}

/// The digest of each setting's value. Even digests are never shown, because some values
/// are secrets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Values(BTreeMap<String, Digest>);

impl Values {
    pub(super) fn of(tree: &Table) -> Self {
        let mut paths = Vec::new();
        all_paths(tree, "", &mut paths);
        let value = |path: &String| lookup(tree, path).map(Value::to_string).unwrap_or_default();
        Self(paths.iter().map(|p| (p.clone(), digest(value(p).as_bytes()))).collect())
    }

    /// The settings with another value than before.
    #[must_use]
    pub fn differing(&self, before: &Self) -> Vec<String> {
        let all = self.0.keys().chain(before.0.keys().filter(|path| !self.0.contains_key(*path)));
        all.filter(|path| self.0.get(*path) != before.0.get(*path)).cloned().collect()
    }
}

/// True if a reload takes over this setting. The manual, `default.toml`, says the same.
#[must_use]
pub fn is_reloaded(path: &str) -> bool {
    match path.split_once('.') {
        None => path == "channels",
        Some(("auth", name)) => !name.starts_with("jwks.") || name == "jwks.max_age",
        Some(("callback" | "history" | "api", _)) => true,
        Some(("limits", name)) => !matches!(name, "http_connections" | "handshake_timeout"),
        Some(("server", name)) => {
            matches!(name, "allowed_headers" | "allowed_origins" | "trusted_proxies")
        }
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_files_say_what_is_different() {
        let values = |text: &str| Values::of(&text.parse().unwrap());
        let before = values("[limits]\nconnections = 1\n[api]\nkeys = [\"a\"]\n");
        assert!(before.differing(&before.clone()).is_empty());
        let now =
            values("[limits]\nconnections = 1\n[api]\nkeys = [\"b\"]\n[redis]\nurl = \"x\"\n");
        assert_eq!(now.differing(&before), ["api.keys", "redis.url"]);
        assert_eq!(before.differing(&now), ["api.keys", "redis.url"]);

        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("own");
        let secret = folder.path().join("secret");
        std::fs::write(&own, "1").unwrap();
        std::fs::write(&secret, "1").unwrap();
        let read = || {
            let mut files = Files::default();
            files.read_settings(&own).unwrap();
            files.read(&secret).unwrap();
            files
        };

        let mut first = read();
        assert!(!first.check());
        std::fs::write(&own, "2").unwrap();
        assert!(read().differing(&first).is_empty(), "what it says stands in the values");
        assert!(first.check() && !first.check(), "and it is read again for that, once");

        std::fs::write(&secret, "2").unwrap();
        assert_eq!(read().differing(&first), [secret.display().to_string()]);
        std::fs::remove_file(&secret).unwrap();
        assert!(!first.check(), "missing for a moment");
    }

    #[test]
    fn the_manual_says_what_a_reload_takes_over() {
        for (path, expected) in [
            ("channels", true),
            ("auth.keys", true),
            ("auth.session_cookie.enabled", true),
            ("auth.jwks.refresh", false),
            ("auth.jwks.max_age", true),
            ("callback.url", true),
            ("limits.connections", true),
            ("limits.http_connections", false),
            ("server.listen", false),
            ("server.trusted_proxies", true),
            ("redis.url", false),
            ("drain.window", false),
        ] {
            assert_eq!(is_reloaded(path), expected, "{path}");
        }
    }
}
