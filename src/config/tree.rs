//! TOML trees by dotted path, and helpers for their texts: lines, nearest names, redaction.
//!
//! Pure.

use toml::{Table, Value};

use crate::auth::keys::shown_url;

/// The name in serde's message about an unknown field, which the caller words anew.
pub(super) fn unknown_field(message: &str) -> Option<String> {
    let rest = message.strip_prefix("unknown field ")?;
    quoted(rest).next().map(str::to_owned)
}

pub(super) fn quoted(message: &str) -> impl Iterator<Item = &str> {
    message.split('`').skip(1).step_by(2)
}

pub(super) fn nearest<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> String {
    closest(name, known).map_or_else(String::new, |best| format!("; did you mean {best}?"))
}

/// A setting or section that may have been meant. A section is sought among the sections; a name is
/// sought within its section, and only then anywhere.
pub(super) fn nearest_path(path: &str, defaults: &Table, lists: &[&str]) -> String {
    let mut keys = Vec::new();
    all_paths(defaults, "", &mut keys);
    keys.extend(lists.iter().map(|list| (*list).to_owned()));
    let (section, name) = path.rsplit_once('.').unwrap_or(("", path));
    let prefix =
        |section: &str| if section.is_empty() { String::new() } else { format!("{section}.") };

    // The section is right: the name is sought among its settings and its own sections.
    let known = section.is_empty() || matches!(lookup(defaults, section), Some(Value::Table(_)));
    if known {
        let inside = prefix(section);
        let mut names: Vec<&str> =
            keys.iter().filter_map(|key| key.strip_prefix(&inside)?.split('.').next()).collect();
        names.dedup();
        if let Some(best) = closest(name, names.into_iter()) {
            return format!("; did you mean {inside}{best}?");
        }
        // The name may be right, but in the wrong section.
        let same = |key: &&String| key.rsplit('.').next() == Some(name);
        return keys.iter().find(same).map_or_else(String::new, |k| format!("; did you mean {k}?"));
    }

    // The section is wrong: the nearest section is sought, and the nearest name within it.
    let sections = keys.iter().filter_map(|key| Some(key.rsplit_once('.')?.0));
    let Some(meant) = closest(section, sections) else { return String::new() };
    let inside = prefix(meant);
    let names = keys.iter().filter_map(|key| key.strip_prefix(&inside));
    match closest(name, names) {
        Some(best) => format!("; did you mean {inside}{best}?"),
        None => format!("; did you mean the section {meant}?"),
    }
}

fn closest<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let scored = known.map(|k| (strsim::jaro_winkler(name, k), k));
    let best = scored.max_by(|a, b| a.0.total_cmp(&b.0));
    best.filter(|(score, _)| *score > 0.75).map(|(_, best)| best)
}

pub(super) fn lookup<'t>(table: &'t Table, path: &str) -> Option<&'t Value> {
    let mut parts = path.split('.');
    let mut value = table.get(parts.next()?)?;
    for part in parts {
        value = value.as_table()?.get(part)?;
    }
    Some(value)
}

pub(super) fn put(table: &mut Table, path: &str, value: Value) {
    match path.split_once('.') {
        None => {
            table.insert(path.to_owned(), value);
        }
        Some((section, rest)) => {
            let section =
                table.entry(section.to_owned()).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(section) = section {
                put(section, rest, value);
            }
        }
    }
}

pub(super) fn all_paths(table: &Table, prefix: &str, out: &mut Vec<String>) {
    for (name, value) in table {
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match value.as_table() {
            Some(inner) => all_paths(inner, &path, out),
            None => out.push(path),
        }
    }
}

/// A number, boolean or list from the environment. A value that is not JSON stays text, and is
/// refused by its type later.
pub(super) fn json_value(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
}

/// The line, from 1, on which the file sets `section.name` or begins the section of that name.
pub(super) fn line_of(text: &str, path: &str) -> Option<usize> {
    let (wanted_section, name) = path.rsplit_once('.').unwrap_or(("", path));
    let mut section = String::new();

    for (i, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(rest) = line.strip_prefix('[') {
            section =
                rest.trim_start_matches('[').split(']').next().unwrap_or("").trim().to_owned();
            if section == path {
                return Some(i + 1);
            }
        } else if let Some((key, _)) = line.split_once('=') {
            let key = key.trim();
            if (section == wanted_section && key == name) || (section.is_empty() && key == path) {
                return Some(i + 1);
            }
        }
    }

    None
}

/// True for a setting that may hold a secret: messages must not contain its value.
pub(super) fn is_secret(path: &str) -> bool {
    let secrets = [
        "api.keys",
        "auth.keys",
        "auth.session_cookie",
        "callback.secret",
        "redis.url",
        "redis.sentinel_password",
    ];
    secrets.iter().any(|p| path.starts_with(p))
}

/// serde's message without the value that it quotes: `invalid type: string "…", expected a list`.
pub(super) fn without_value(path: &str, message: &str) -> String {
    if !is_secret(path) {
        return message.to_owned();
    }

    // These messages quote a name, not a value. A variant is a value, but of a closed set.
    let named = ["unknown field", "missing field", "duplicate field", "unknown variant"];
    if named.iter().any(|known| message.starts_with(known)) {
        return message.to_owned();
    }

    match message.rsplit_once(", expected ") {
        Some((_, expected)) => format!("has the wrong type: expected {expected}"),
        None => "has a value that cannot be used".to_owned(),
    }
}

/// Replaces the secrets in a tree.
pub(super) fn redact(value: &mut Value, path: &str) {
    match value {
        Value::Table(table) => {
            for (name, value) in table {
                redact(value, &format!("{path}.{name}"));
            }
        }

        Value::Array(list) if [".api.keys", ".auth.session_cookie.secrets"].contains(&path) => {
            for key in list {
                *key = Value::String("<redacted>".to_owned());
            }
        }

        Value::Array(list) => {
            for element in list {
                redact(element, path);
            }
        }

        Value::String(text)
            if [".secret", ".jwk", "password"].iter().any(|end| path.ends_with(end)) =>
        {
            "<redacted>".clone_into(text);
        }

        Value::String(text) if path.ends_with(".jwks_url") || path == ".callback.url" => {
            if !text.is_empty() {
                *text = shown_url(text);
            }
        }

        Value::String(text) if path.ends_with("_pem") && text.contains("PRIVATE KEY") => {
            "<redacted>".clone_into(text);
        }

        Value::String(text) if path == ".callback.secret" && !text.is_empty() => {
            "<redacted>".clone_into(text);
        }

        Value::String(text) if path == ".redis.url" => {
            // Everything before the host may be a password, in a malformed URL too.
            if let Some(end) = text.rfind('@') {
                let start = text.find("://").map_or(0, |at| at + 3);
                text.replace_range(if start <= end { start..end } else { 0..end }, "<redacted>");
            }
        }

        Value::String(_)
        | Value::Integer(_)
        | Value::Float(_)
        | Value::Boolean(_)
        | Value::Datetime(_) => {}
    }
}
