//! Tokens of five parts: which library made the encrypted token, and why a session cookie did not
//! open. The header names the library. The gateway's secrets, and common edits of them, are tried
//! as for signed tokens.

use super::candidate::Candidate;
use super::causes::{Cause, Side};
use super::finding::{Finding, Subject};
use super::{claims, secrets, shape, spellings};
use crate::auth::json::{self, Defect};
use crate::auth::secret::{Encoding, Secret, describe};
use crate::auth::session_cookie::{Jwe, Maker, NAMES};
use crate::auth::{Reason, Verifier, is_placeholder};

/// A secret that may have made the cookie, and where it is configured.
struct Own {
    place: String,
    secret: Secret,
    /// True if the secret is one of those configured for cookies.
    is_for_cookies: bool,
}

/// Names the cause for a token of five parts.
pub(super) fn find(
    verifier: &Verifier,
    subject: &Subject<'_>,
    token: &str,
    reason: Reason,
) -> Option<Finding> {
    let first = token.split('.').next().unwrap_or_default();
    let header = match json::header(first) {
        Ok(header) => header,
        Err(defect @ Defect::Duplicate(_)) => {
            return Some(shape::of_part("header", Cause::HeaderInvalid, defect));
        }
        Err(_) => return shape::find(subject, token),
    };

    let text =
        |name: &str| header.get(name).and_then(serde_json::Value::as_str).unwrap_or_default();
    if text("iss").contains("auth0.com") {
        return Some(plain(Cause::Auth0OpaqueToken, Side::Issuer));
    }
    if text("enc").is_empty() {
        return shape::find(subject, token);
    }
    if ["crit", "zip", "b64"].iter().any(|name| header.contains_key(*name)) {
        return Some(plain(Cause::CritUnsupported, Side::Issuer));
    }

    let Ok(jwe) = Jwe::split(token) else {
        return Some(if text("alg") == "dir" && Jwe::is_cut_off(token) {
            let what = "the header is that of an encrypted token, but the end of the token is \
                        missing";
            shape::finding(Cause::NextauthCookieChunk, what)
        } else {
            plain(Cause::EncryptedToken, Side::Issuer)
        });
    };

    let maker = Maker::by_header(&header);
    let own = own_secrets(verifier, subject);
    if let Some(found) = opened(verifier, subject, (&jwe, reason), &own) {
        return found;
    }
    edited(verifier, &jwe, &own).or_else(|| Some(nothing_opens(verifier, maker, &own)))
}

fn plain(cause: Cause, side: Side) -> Finding {
    Finding::new(cause, side, format!("{} {}", cause.meaning(), cause.fix()))
}

/// All secrets that may have made the cookie: those for cookies, those for tokens, and those that
/// the operator named.
fn own_secrets(verifier: &Verifier, subject: &Subject<'_>) -> Vec<Own> {
    let utf8 = |text: &str| Secret::new(text, Encoding::Utf8).ok();
    let mut all = Vec::new();

    for (i, text) in verifier.session().map_or(&[][..], |s| &s.secrets).iter().enumerate() {
        let place = format!("auth.session_cookie, secret {}", i + 1);
        all.extend(utf8(text).map(|secret| Own { place, secret, is_for_cookies: true }));
    }

    for key in subject.keys.fixed() {
        let secret = key.secret().and_then(|s| utf8(s.text()));
        let place = key.name().to_owned();
        all.extend(secret.map(|secret| Own { place, secret, is_for_cookies: false }));
    }

    for named in subject.extra {
        let place = named.name.clone();
        let secret = utf8(&named.text);
        all.extend(secret.map(|secret| Own { place, secret, is_for_cookies: false }));
    }

    all
}

/// The names under which a cookie is tried: the configured ones, and those of the libraries.
fn names(verifier: &Verifier) -> Vec<&str> {
    let configured = verifier.session().map_or(&[][..], |s| &s.names);
    let mut all: Vec<&str> = configured.iter().map(String::as_str).collect();
    all.extend(NAMES.iter().filter(|name| !configured.iter().any(|c| c == *name)));
    all
}

/// The outer `Some` says that one of our secrets opens the cookie unedited. The inner value is the
/// finding: even an opened cookie may have no known cause.
fn opened(
    verifier: &Verifier,
    subject: &Subject<'_>,
    (jwe, reason): (&Jwe<'_>, Reason),
    own: &[Own],
) -> Option<Option<Finding>> {
    let names = names(verifier);
    let opens = |own: &Own| {
        let bytes = own.secret.text().as_bytes();
        names.iter().find_map(|name| Some((*name, jwe.open(bytes, name)?)))
    };
    let (own, (name, (maker, plain))) = own.iter().find_map(|own| Some((own, opens(own)?)))?;

    let Some(session) = verifier.session() else {
        let cause = cause_of(maker);
        let advice = format!(
            "{} It comes from your own application: the secret of {} decrypts it. {}",
            cause.meaning(),
            own.place,
            cause.fix()
        );
        return Some(Some(Finding::new(cause, Side::Gateway, advice)));
    };

    let label = maker.label();
    if !own.is_for_cookies {
        let advice = format!(
            "this is a {label} session cookie. The secret of {} decrypts it, but is not \
             configured in auth.session_cookie: add it to secrets, secrets_env or secret_files \
             there",
            own.place
        );
        return Some(Some(Finding::new(Cause::SecretOtherVariable, Side::Gateway, advice)));
    }

    if maker == Maker::AuthJs5 && !session.names.iter().any(|n| n == name) {
        let advice = format!(
            "this is a {label} session cookie with the name {name:?}: add the name to \
             auth.session_cookie.cookies"
        );
        return Some(Some(Finding::new(Cause::CookieName, Side::Gateway, advice)));
    }

    Some(match json::object_of(&plain, &|name| subject.settings.reads(name)) {
        Ok(found) => claims::find(subject, reason, &found),
        Err(defect) => Some(shape::of_part("content", Cause::PayloadInvalid, defect)),
    })
}

fn cause_of(maker: Maker) -> Cause {
    match maker {
        Maker::NextAuth4 => Cause::NextauthV4Session,
        Maker::AuthJs5 => Cause::AuthjsV5Session,
    }
}

/// Tries common edits of our secrets, and well-known placeholders.
fn edited(verifier: &Verifier, jwe: &Jwe<'_>, own: &[Own]) -> Option<Finding> {
    let is_session_mode = verifier.session().is_some();
    if let Some(weak) = own.iter().find(|o| is_placeholder(o.secret.text())) {
        return Some(own_placeholder(&weak.place));
    }

    let names = names(verifier);
    let opens = |c: &Candidate| jwe.opener(&c.bytes, &names);
    let of_own = own.iter().find_map(|own| {
        let hit = secrets::edits(&own.secret).into_iter().find_map(|c| Some((opens(&c)?, c)));
        hit.map(|(maker, candidate)| (maker, candidate, format!(" (of {})", own.place)))
    });
    let placeholder = || {
        let hit = spellings::placeholders().into_iter().find_map(|c| Some((opens(&c)?, c)));
        hit.map(|(maker, candidate)| (maker, candidate, String::new()))
    };
    let (maker, candidate, place) = of_own.or_else(placeholder)?;

    let how = format!("{}{place}. {}", candidate.how, candidate.cause.fix());
    if is_session_mode {
        let advice = format!("this is a {} session cookie; {how}", maker.label());
        return Some(Finding::new(candidate.cause, candidate.side, advice));
    }
    let cause = cause_of(maker);
    let advice = format!("{} {} The secrets differ as well: {how}", cause.meaning(), cause.fix());
    Some(Finding::new(cause, Side::Gateway, advice))
}

/// The finding for a placeholder as the gateway's own secret. It comes before all others: whatever
/// the issuer's secret is, it cannot be this one.
pub(super) fn own_placeholder(place: &str) -> Finding {
    let advice = format!(
        "the gateway's own secret ({place}) is a well-known placeholder: the gateway did not load \
         its secret. Where the gateway runs, set the variable or file to the secret that the \
         issuer signs with"
    );
    Finding::new(Cause::SecretDefault, Side::Gateway, advice)
}

/// The finding when neither our secrets nor their edits open the cookie.
fn nothing_opens(verifier: &Verifier, maker: Option<Maker>, own: &[Own]) -> Finding {
    let whose = maker.map_or_else(
        || "this is an encrypted token".to_owned(),
        |m| {
            format!(
                "according to its header this is a session cookie of {}, which is encrypted, not \
                 signed",
                m.label()
            )
        },
    );

    let ours: Vec<_> =
        own.iter().map(|o| format!("{}: {}", o.place, describe(o.secret.text()))).collect();
    let ours = if ours.is_empty() { "none".to_owned() } else { ours.join("; ") };

    let differs = format!(
        "{whose}. None of the gateway's secrets ({ours}), and no known variant of one, decrypts \
         it under any usual or configured cookie name: either the application has a different \
         secret, or its cookie has a custom name (Auth.js 5 derives the key from the name)"
    );

    match (verifier.session(), maker) {
        (Some(_), _) => {
            let advice = format!("{differs}. {}", Cause::UnknownKey.fix());
            Finding::new(Cause::UnknownKey, Side::Issuer, advice)
        }
        (None, Some(maker)) => {
            let cause = cause_of(maker);
            Finding::new(cause, Side::Gateway, format!("{differs}. {}", cause.fix()))
        }
        (None, None) => {
            let advice = format!("{whose}. {}", Cause::EncryptedToken.fix());
            Finding::new(Cause::EncryptedToken, Side::Issuer, advice)
        }
    }
}
