//! The findings, printed one by one for people and at the end for machines.
//!
//! Invariant: everything that is printed has gone through [`Secrets::clean`], because servers and
//! proxies quote requests in their error pages, and a request holds the token.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::causes::{Cause, Step};
use crate::terminal::print;

/// The number of characters that distinguish a part of a secret from other text.
const TELLING: usize = 8;

const HIDDEN: &str = "[secret]";

/// Longest quotation of a server's answer, in characters.
const MAX_QUOTED: usize = 400;

/// Something that is wrong: its cause, and what was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) cause: Cause,
    pub(super) found: String,
}

impl Trouble {
    pub(super) fn new(cause: Cause, found: impl Into<String>) -> Self {
        Self { cause, found: found.into() }
    }
}

/// The end of a step: its result and a sentence about it, or the trouble.
pub(super) type Checked<T> = Result<(T, String), Trouble>;

/// Texts that must not be shown: whole, and the beginnings of their parts.
#[derive(Debug, Default)]
pub(super) struct Secrets {
    whole: Vec<String>,
    parts: Vec<String>,
}

impl Secrets {
    pub(super) fn add(&mut self, secret: &str) {
        let parts = secret.split('.').filter(|part| part.chars().count() >= TELLING);
        let beginning = |part: &str| part.chars().take(TELLING).collect();
        self.parts.extend(parts.map(beginning));
        self.parts.push(beginning(secret));
        self.whole.push(secret.to_owned());
    }

    /// Returns the text without secrets, and without characters that a terminal would take as a
    /// command. A part of a secret is removed from its beginning to the next character that no
    /// token has, so a part that was cut short is removed too.
    fn clean(&self, text: &str) -> String {
        let mut text = text.to_owned();

        for whole in &self.whole {
            text = text.replace(whole.as_str(), HIDDEN);
        }

        for needle in &self.parts {
            let mut from = 0;
            while let Some(at) = text[from..].find(needle.as_str()).map(|at| from + at) {
                let in_token = |c: char| c.is_alphanumeric() || "._-~+/=%".contains(c);
                let rest = &text[at + needle.len()..];
                let end = rest.find(|c| !in_token(c)).unwrap_or(rest.len());
                text.replace_range(at..at + needle.len() + end, HIDDEN);
                from = at + HIDDEN.len();
            }
        }

        let shown: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let shown = shown.split_whitespace().collect::<Vec<_>>().join(" ");
        match shown.char_indices().nth(MAX_QUOTED) {
            Some((end, _)) => format!("{}…", &shown[..end]),
            None => shown,
        }
    }
}

/// The findings so far.
pub(super) struct Report {
    json: bool,
    secrets: Secrets,
    steps: Vec<Value>,
    /// The steps that have not been reached yet.
    left: Vec<Step>,
    wrong: usize,
}

impl Report {
    pub(super) fn new(json: bool, secrets: Secrets) -> Self {
        Self { json, secrets, steps: Vec::new(), left: Step::ALL.to_vec(), wrong: 0 }
    }

    /// Reports how a step ended and passes its result on.
    pub(super) fn note<T>(&mut self, step: Step, checked: Checked<T>) -> Option<T> {
        match checked {
            Ok((gave, found)) => {
                self.say(step, "ok", &found, None);
                Some(gave)
            }
            Err(Trouble { cause, found }) => {
                self.wrong += 1;
                self.say(step, "wrong", &found, Some(cause));
                None
            }
        }
    }

    /// Reports a step that was not taken, and why.
    pub(super) fn skip(&mut self, step: Step, why: &str) {
        self.say(step, "skipped", why, None);
    }

    /// Prints a step, and keeps it for the end.
    fn say(&mut self, step: Step, result: &str, found: &str, cause: Option<Cause>) {
        self.left.retain(|left| *left != step);
        let found = self.secrets.clean(found);
        let slug = cause.map(Cause::slug);
        let fix = cause.map(Cause::fix);
        let meaning = cause.map(Cause::meaning);

        if !self.json {
            let mark = if result == "wrong" { "WRONG" } else { result };
            let mut text = format!("{mark:<8} {:<10} {found}\n", step.slug());
            if let (Some(slug), Some(meaning), Some(fix)) = (slug, meaning, fix) {
                text.push_str(&format!("{:20}{slug}: {meaning}\n{:20}fix: {fix}\n", "", ""));
            }
            let _ = print(&text);
        }

        self.steps.push(json!({
            "step": step.slug(), "result": result, "found": found,
            "cause": slug, "meaning": meaning, "fix": fix,
        }));
    }

    /// Ends the report. The exit code is 0 if nothing is wrong, 1 if something is.
    pub(super) fn finish(self, url: &str) -> ExitCode {
        let result = if self.wrong == 0 { "ok" } else { "wrong" };
        let left: Vec<_> = self.left.iter().map(|step| step.slug()).collect();

        let text = if self.json {
            let url = self.secrets.clean(url);
            format!(
                "{}\n",
                json!({ "url": url, "result": result, "steps": self.steps, "not_reached": left })
            )
        } else {
            match self.wrong {
                0 => "no problem was found\n".to_owned(),
                n if left.is_empty() => format!("{n} of {} steps are wrong\n", self.steps.len()),
                n => format!(
                    "{n} of {} steps are wrong; not reached: {}\n",
                    self.steps.len(),
                    left.join(", ")
                ),
            }
        };

        let _ = print(&text);
        ExitCode::from(u8::from(self.wrong > 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_taken_out_whole_or_cut() {
        let token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ1MSJ9.c2lnbmF0dXJlLW9mLWl0";
        let mut secrets = Secrets::default();
        secrets.add(token);

        for text in [
            format!("Cannot GET /ws?token={token}&x=1"),
            format!("Bearer {}", &token[..30]),
            format!("<b>{}</b>", &token[21..]),
            format!("({})", &token[38..50]),
        ] {
            let cleaned = secrets.clean(&text);
            assert!(cleaned.contains("[secret]"), "{cleaned}");
            for part in ["hbGci", "zdWIi", "nbmF0"] {
                assert!(!cleaned.contains(part), "{cleaned}");
            }
        }

        assert!(secrets.clean(&format!("token={token}&x=1")).ends_with("&x=1"));
    }

    #[test]
    fn a_secret_that_looks_like_its_replacement_ends() {
        let mut secrets = Secrets::default();
        secrets.add("[secret] of ours");
        assert_eq!(secrets.clean("it is [secret] of ours"), "it is [secret]");
    }

    #[test]
    fn keys_of_any_characters_are_taken_out() {
        for key in ["Sup3rS3cret!Key#2026", "a1b2c3d.e4f5g6h.i7j8k9l"] {
            let mut secrets = Secrets::default();
            secrets.add(key);
            assert_eq!(secrets.clean(&format!("X-API-Key: {key}, no")), "X-API-Key: [secret], no");
            let cut = secrets.clean(&format!("\"{}\"", &key[..12]));
            assert!(!cut.contains(&key[..8]), "{cut}");
        }
    }

    #[test]
    fn terminals_are_not_commanded_and_quotations_are_short() {
        let cleaned = Secrets::default().clean("a\x1b[2Jb\r\n  c");
        assert_eq!(cleaned, "a [2Jb c");
        assert_eq!(Secrets::default().clean(&"ü".repeat(1000)).chars().count(), MAX_QUOTED + 1);
    }
}
