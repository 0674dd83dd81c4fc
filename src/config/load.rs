//! Reads the configuration: defaults, file, environment, flags, each over the one before. Reading
//! goes on after a problem, so that all problems are reported at once, each with its origin.
//!
//! Not here: what a value means (`policy`). This is the only place that reads the environment, by a
//! lookup that the caller passes in.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::content::{Files, Values};
use super::tree::{
    json_value, line_of, lookup, nearest, nearest_path, put, quoted, redact, unknown_field,
    without_value,
};
use super::{AuthKey, Channel, Config, DEFAULT_TOML, Policy, Problem};

/// The sources of a configuration. Tests pass their own; `cli` passes the process's.
pub struct Sources<'a> {
    /// Defaults that replace built-in ones in this call (`--dev`).
    pub presets: Vec<(&'a str, Value)>,
    pub file: Option<PathBuf>,
    pub env: Vec<(String, String)>,
    /// Path, value and name of each flag.
    pub flags: Vec<(&'a str, Value, &'a str)>,
    /// True with `--dev`: weak secrets are allowed.
    pub dev: bool,
    /// The secret that the page of `--dev` signs with.
    pub dev_secret: Option<String>,
}

impl Sources<'_> {
    /// The process's environment; `TOLLGATE_CONFIG` names the file if none is given.
    #[must_use]
    pub fn of_process(file: Option<PathBuf>) -> Self {
        let env = Self::process_env();
        Self { presets: Vec::new(), file, env, flags: Vec::new(), dev: false, dev_secret: None }
    }

    fn process_env() -> Vec<(String, String)> {
        // A variable that is not UTF-8 cannot be one of ours.
        std::env::vars_os()
            .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
            .collect()
    }

    /// An environment variable of these sources.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.env.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// A configuration that was read and judged.
#[derive(Debug)]
pub struct Loaded {
    pub config: Config,
    pub policy: Policy,
    /// The effective tree with secrets redacted, as TOML.
    pub printed: String,
    /// The digests of its values, for comparison with another reading.
    pub values: Values,
}

/// The lists of tables, whose elements are checked one by one.
const LISTS: [&str; 2] = ["auth.keys", "channels"];

/// Reads and judges everything.
///
/// # Errors
/// All problems that were found.
pub fn load(sources: &Sources<'_>) -> Result<Loaded, Vec<Problem>> {
    let mut tree = Tree::default();
    for (path, value) in &sources.presets {
        put(&mut tree.values, path, value.clone());
    }

    let file =
        sources.file.clone().or_else(|| sources.variable("TOLLGATE_CONFIG").map(PathBuf::from));
    if let Some(path) = &file {
        tree.merge_file(path);
    }
    for (name, text) in &sources.env {
        tree.merge_env(name, text);
    }
    for (path, value, flag) in &sources.flags {
        tree.set(path, value.clone(), format!("from {flag}"));
    }

    let printed = tree.printed();
    let values = Values::of(&tree.values);
    let keys = tree.elements::<AuthKey>("auth.keys");
    let channels = tree.elements::<Channel>("channels");
    let config = tree.config().map(|mut config| {
        config.auth.keys = keys;
        config.channels = channels;
        config
    });

    let Some(config) = config else {
        return Err(tree.problems);
    };

    let judged = Policy::build(&config, (sources.dev, sources.dev_secret.as_deref()), &|name| {
        sources.variable(name).map(str::to_owned)
    });

    match judged {
        Ok(mut policy) if tree.problems.is_empty() => {
            policy.files.append(&mut tree.files);
            Ok(Loaded { config, policy, printed, values })
        }
        Ok(_) => Err(tree.problems),
        Err(problems) => {
            for problem in problems {
                tree.problem(&problem.path, problem.message);
            }
            Err(tree.problems)
        }
    }
}

/// The settings while they are read.
struct Tree {
    values: Table,
    defaults: Table,
    /// The origins of values that are not defaults, by path.
    origins: BTreeMap<String, String>,
    problems: Vec<Problem>,
    files: Files,
}

impl Default for Tree {
    fn default() -> Self {
        let defaults: Table = DEFAULT_TOML.parse().unwrap_or_default();
        Self {
            values: defaults.clone(),
            defaults,
            origins: BTreeMap::new(),
            problems: Vec::new(),
            files: Files::default(),
        }
    }
}

impl Tree {
    /// Notes a problem with the origin of its path, or of the nearest part of the path
    /// that has one.
    fn problem(&mut self, path: &str, message: String) {
        let mut key = path;
        let origin = loop {
            if let Some(origin) = self.origins.get(key) {
                break Some(origin.clone());
            }
            match key.rfind(['.', '[']) {
                Some(end) => key = &key[..end],
                None => break None,
            }
        };
        self.problems.push(Problem { path: path.to_owned(), origin, message });
    }

    /// Takes over the values of a file.
    fn merge_file(&mut self, path: &std::path::Path) {
        let shown = path.display().to_string();
        let broken = |message: String| Problem { path: shown.clone(), origin: None, message };
        let text = match self.files.read_settings(path) {
            Ok(text) => text,
            Err(e) => {
                self.problems.push(broken(format!("cannot be read: {e}")));
                return;
            }
        };

        let table: Table = match text.parse() {
            Ok(table) => table,
            Err(e) => {
                // The error's whole text would quote the line, which may hold a secret.
                let error: toml::de::Error = e;
                let line = error.span().map(|at| text[..at.start].matches('\n').count() + 1);
                let at = line.map_or_else(String::new, |n| format!("line {n}: "));
                self.problems.push(broken(format!("is not TOML: {at}{}", error.message().trim())));
                return;
            }
        };

        for (section, value) in table {
            self.merge(&section, value, &text, &shown);
        }
    }

    /// Takes over one value of the file. A table is taken over name by name.
    fn merge(&mut self, path: &str, value: Value, text: &str, file: &str) {
        let line = line_of(text, path);
        let origin = line.map_or_else(|| file.to_owned(), |n| format!("{file}:{n}"));
        if LISTS.contains(&path) || !value.is_table() {
            return self.set(path, value, origin);
        }
        if !matches!(lookup(&self.defaults, path), Some(Value::Table(_))) {
            return self.unknown(path, origin);
        }
        for (name, value) in value.as_table().cloned().unwrap_or_default() {
            self.merge(&format!("{path}.{name}"), value, text, file);
        }
    }

    /// Takes over a value of the environment.
    fn merge_env(&mut self, name: &str, text: &str) {
        // Kubernetes puts TOLLGATE_PORT, TOLLGATE_SERVICE_HOST and the like into every pod beside a
        // Service called tollgate, so only names with a section are ours.
        let Some(rest) = name.strip_prefix("TOLLGATE_") else {
            return;
        };
        let path = match rest.split_once("__") {
            Some(_) => rest.to_lowercase().replace("__", "."),
            None if rest == "CHANNELS" => "channels".to_owned(),
            None => return,
        };

        let origin = format!("from the environment, {name}");
        let is_list = LISTS.contains(&path.as_str());
        let value = match lookup(&self.defaults, &path) {
            Some(Value::String(_)) => Value::String(text.to_owned()),
            Some(_) => json_value(text),
            None if is_list => json_value(text),
            None => return self.unknown(&path, origin),
        };

        self.set(&path, value, origin);
    }

    /// Sets a value and its origin.
    fn set(&mut self, path: &str, value: Value, origin: String) {
        let known = lookup(&self.defaults, path);
        if LISTS.contains(&path) {
            if !matches!(value, Value::Array(_)) {
                self.origins.insert(path.to_owned(), origin);
                self.problem(path, "must be a list of tables".to_owned());
                return;
            }
        } else if known.is_none() || matches!(known, Some(Value::Table(_))) {
            return self.unknown(path, origin);
        }
        self.origins.insert(path.to_owned(), origin);
        put(&mut self.values, path, value);
    }

    fn unknown(&mut self, path: &str, origin: String) {
        let near = nearest_path(path, &self.defaults, &LISTS);
        let message = format!("there is no such setting{near}");
        self.problems.push(Problem { path: path.to_owned(), origin: Some(origin), message });
    }

    /// Reads the elements of a list of tables, each by itself, and takes the list out of the tree.
    fn elements<T: DeserializeOwned>(&mut self, path: &str) -> Vec<T> {
        let Some(Value::Array(list)) = lookup(&self.values, path).cloned() else {
            return Vec::new();
        };

        if let Some((section, name)) = path.split_once('.') {
            if let Some(Value::Table(table)) = self.values.get_mut(section) {
                table.remove(name);
            }
        } else {
            self.values.remove(path);
        }

        let mut out = Vec::new();
        for (i, element) in list.into_iter().enumerate() {
            out.extend(self.element::<T>(&format!("{path}[{i}]"), element));
        }
        out
    }

    /// Reads one element. A bad field is noted and removed, and the rest is read again.
    fn element<T: DeserializeOwned>(&mut self, at: &str, mut element: Value) -> Option<T> {
        loop {
            let error = match serde_path_to_error::deserialize::<_, T>(element.clone()) {
                Ok(value) => return Some(value),
                Err(error) => error,
            };

            let message = without_value(at, error.inner().message().trim());
            let unknown = unknown_field(&message);
            let field = match error.path().iter().next() {
                Some(serde_path_to_error::Segment::Map { key }) => Some(key.clone()),
                _ => unknown.clone(),
            };

            let Some(field) = field else {
                self.problem(at, message);
                return None;
            };

            let said = error.path().to_string();
            match unknown {
                Some(name) => {
                    let inside = said.strip_suffix(&name).unwrap_or_default();
                    let near = nearest(&name, quoted(&message).skip(1));
                    let path = format!("{at}.{inside}{name}");
                    self.problem(&path, format!("there is no such setting{near}"));
                }
                None => self.problem(&format!("{at}.{said}"), message),
            }

            let table = element.as_table_mut()?;
            table.remove(&field)?;
        }
    }

    /// Reads the sections. A bad value is noted, and its default is tried instead.
    fn config(&mut self) -> Option<Config> {
        loop {
            let error = match serde_path_to_error::deserialize::<_, Config>(self.values.clone()) {
                Ok(config) => return Some(config),
                Err(error) => error,
            };

            let path = error.path().to_string();
            let message = without_value(&path, error.inner().message().trim());
            self.problem(&path, message);
            let names: Vec<_> = path.splitn(3, '.').take(2).collect();
            let key = names.join(".");
            let key = key.split('[').next().unwrap_or_default();

            let default = lookup(&self.defaults, key)?.clone();
            if lookup(&self.values, key) == Some(&default) {
                return None;
            }
            put(&mut self.values, key, default);
        }
    }

    /// The effective tree as TOML, with its secrets redacted.
    fn printed(&self) -> String {
        let mut tree = Value::Table(self.values.clone());
        redact(&mut tree, "");
        toml::to_string(&tree).unwrap_or_default()
    }
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
