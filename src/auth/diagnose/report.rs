//! The report as people read it, and the oddities of an accepted token.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::{Map, Value};

use super::causes::Side;
use super::finding::{Finding, shown};
use crate::auth::Reason;

/// The checks in their order, and the reasons that each can end in.
const CHECKS: [(&str, &[Reason]); 13] = [
    ("size", &[Reason::Oversize]),
    ("parts, base64, JSON", &[Reason::Missing, Reason::Malformed]),
    ("signed, not encrypted", &[Reason::Encrypted]),
    ("alg is not none", &[Reason::AlgNone]),
    ("no extension required", &[Reason::CritUnsupported]),
    ("alg is allowed", &[Reason::AlgNotAllowed]),
    ("a key fits", &[Reason::KidUnknown, Reason::KeysUnavailable, Reason::ConfigError]),
    ("signature", &[Reason::BadSignature]),
    ("exp", &[Reason::Expired, Reason::ExpMissing]),
    ("nbf", &[Reason::NotYetValid]),
    ("iss and aud", &[Reason::IssuerMismatch, Reason::AudienceMismatch]),
    ("user", &[Reason::UserMissing, Reason::ClaimInvalid]),
    ("not revoked", &[Reason::Revoked, Reason::RevocationsUnavailable]),
];

/// The diagnosis of a token.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// `accept` or `reject`.
    pub verdict: &'static str,
    pub reason: Option<&'static str>,
    pub user: Option<String>,
    pub cause: Option<&'static str>,
    pub side: Option<Side>,
    pub advice: Option<String>,
    pub warnings: Vec<String>,
    /// The algorithm and key id that the header names, escaped and cut.
    pub alg: Option<String>,
    pub kid: Option<String>,
    #[serde(skip)]
    pub(super) finding: Option<Finding>,
}

impl Report {
    #[must_use]
    pub fn accepted(&self) -> bool {
        self.reason.is_none()
    }

    #[must_use]
    pub fn finding(&self) -> Option<&Finding> {
        self.finding.as_ref()
    }

    /// The report for a terminal: the verdict, the checks in order, what was found, and which side
    /// has to change what.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();

        let reason = self.reason.unwrap_or_default();
        let _ = match &self.user {
            Some(user) => writeln!(out, "ACCEPTED, user {}\n", shown(user)),
            None => writeln!(out, "REFUSED: {reason}\n"),
        };

        let header = [("alg", &self.alg), ("kid", &self.kid)];
        for (name, value) in header.iter().filter_map(|(n, v)| Some((n, v.as_ref()?))) {
            let _ = writeln!(out, "  {name} {value}");
        }

        let mut failed = false;
        for (name, reasons) in CHECKS {
            let here = reasons.iter().any(|r| r.slug() == reason);
            let mark = match (here, failed) {
                (true, _) => "FAILS",
                (false, true) => "  -  ",
                (false, false) => " ok  ",
            };
            failed |= here;
            let _ = writeln!(out, "  [{mark}] {name}");
        }

        if let (Some(cause), Some(side)) = (self.cause, self.side) {
            let _ = write!(out, "\n  cause   {cause}\n  change  {}\n", side.label());
        }

        if let Some(advice) = &self.advice {
            let _ = writeln!(out, "\n{}", wrapped(advice, 78));
        } else if let Some(reason) =
            self.reason.and_then(|slug| Reason::ALL.iter().find(|r| r.slug() == slug))
        {
            let _ = writeln!(out, "\n{}", wrapped(reason.meaning(), 78));
        }

        for warning in &self.warnings {
            let _ = writeln!(out, "\nwarning: {warning}");
        }

        out
    }
}

/// Breaks a text into indented lines.
fn wrapped(text: &str, width: usize) -> String {
    let mut out = String::from("  ");
    let mut column = 2;

    for word in text.split_whitespace() {
        let length = word.chars().count();
        if column > 2 && column + 1 + length > width {
            out.push_str("\n  ");
            column = 2;
        } else if column > 2 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += length;
    }
    out
}

/// The oddities of an accepted token.
pub(super) fn warnings(claims: &Map<String, Value>, now: u64) -> Vec<String> {
    let mut found = Vec::new();
    let number = |name: &str| claims.get(name).and_then(Value::as_f64);

    if let Some(iat) = number("iat").filter(|iat| *iat > now as f64 + 5.0) {
        found.push(format!(
            "iat is {:.0} s in the future: the issuer's clock is ahead",
            iat - now as f64
        ));
    }

    if let Some(exp) = number("exp").filter(|exp| *exp > now as f64 + 30.0 * 86400.0) {
        found.push(format!(
            "the token is valid for {:.0} more days: short-lived tokens and refresh are safer",
            (exp - now as f64) / 86400.0
        ));
    }

    if !claims.contains_key("exp") {
        found.push("the token has no exp: it never expires".to_owned());
    }

    found
}
