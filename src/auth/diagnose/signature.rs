//! Why a signature does not verify, or why the algorithm is not allowed. The gateway's own keys are
//! tried, and secrets that the operator names.

use aws_lc_rs::hmac;
use base64::Engine as _;
use serde_json::{Map, Value};

use super::candidate::Candidate;
use super::causes::{Cause, Side};
use super::finding::{Finding, NamedSecret, Subject, moment, shown};
use super::secrets;
use super::{cookies, shape, spellings};
use crate::auth::algorithm::{Algorithm, Family, names};
use crate::auth::json;
use crate::auth::keys::{Key, Material};
use crate::auth::secret::{Encoding, SecretError, describe};

/// A signed token, taken apart.
pub(super) struct Jws<'t> {
    pub(super) header: &'t Map<String, Value>,
    pub(super) payload_part: &'t str,
    pub(super) signed: &'t [u8],
    pub(super) signature: Vec<u8>,
    pub(super) alg: Option<Algorithm>,
}

impl Jws<'_> {
    fn is_hmac_of(&self, bytes: &[u8]) -> bool {
        self.hmac().is_some_and(|algorithm| {
            let key = hmac::Key::new(algorithm, bytes);
            hmac::verify(&key, self.signed, &self.signature).is_ok()
        })
    }

    fn hmac(&self) -> Option<hmac::Algorithm> {
        match self.alg {
            Some(Algorithm::Hs256) => Some(hmac::HMAC_SHA256),
            Some(Algorithm::Hs384) => Some(hmac::HMAC_SHA384),
            Some(Algorithm::Hs512) => Some(hmac::HMAC_SHA512),
            _ => None,
        }
    }

    fn kid(&self) -> Option<&str> {
        self.header.get("kid").and_then(Value::as_str)
    }
}

/// Looks for a key, or an edit of one, that verifies the signature.
pub(super) fn find(subject: &Subject<'_>, jws: &Jws<'_>, token: &str) -> Option<Finding> {
    if jws.signature.is_empty() {
        return Some(shape::finding(
            Cause::EmptySignature,
            "the third part of the token, the signature, is empty",
        ));
    }

    let length = || shape::of_another_length(subject, jws.header, (&jws.signature, token));
    if jws.alg.is_some_and(|a| a.family() == Family::Hmac) {
        length().or_else(|| own_key(subject, jws)).or_else(|| shared_secret(subject, jws))
    } else {
        own_key(subject, jws).or_else(|| public_key(subject, jws)).or_else(length)
    }
}

/// Looks for a configured key that verifies the signature as it is. If there is one, `kid`, `algs`
/// or `valid_until` is the obstacle.
fn own_key(subject: &Subject<'_>, jws: &Jws<'_>) -> Option<Finding> {
    let alg = jws.alg?;

    let remotes: Vec<_> = subject.keys.remotes().iter().map(|r| r.state()).collect();
    let keys = subject.keys.fixed().iter().chain(remotes.iter().flat_map(|r| &r.keys));
    let key = keys.into_iter().find(|k| k.verifies(alg, jws.signed, &jws.signature))?;
    let name = shown_key(key);

    if key.is_retired(subject.now) {
        let until = moment(key.valid_until().unwrap_or_default());
        let advice = format!(
            "the token is signed with {name}, which was retired at {until}: redeploy the issuer \
             with the new key, or set a later valid_until"
        );
        return Some(Finding::new(Cause::SecretRetired, Side::Issuer, advice));
    }

    if !key.allows(alg) {
        let advice = format!(
            "the token is {} and verifies with {name}, which is bound to {}: add {:?} to its algs, or \
             let the issuer sign with {}",
            alg.name(),
            names(key.algs()),
            alg.name(),
            names(key.algs()),
        );
        let cause =
            if key.family() == Family::Hmac { Cause::AlgMismatch } else { Cause::WrongPublicKey };
        return Some(Finding::new(cause, Side::Gateway, advice));
    }

    let kid = jws.kid()?;
    let advice = format!(
        "the token names kid {:?}, but verifies with {name}: correct the kid in the issuer, or \
         set kid = {:?} for that key",
        shown(kid),
        shown(kid),
    );
    Some(Finding::new(Cause::KidMismatch, Side::Gateway, advice))
}

/// Looks for a secret, or an edit of one, with which the token was signed.
fn shared_secret(subject: &Subject<'_>, jws: &Jws<'_>) -> Option<Finding> {
    let secrets: Vec<_> =
        subject.keys.fixed().iter().filter_map(|k| Some((k, k.secret()?))).collect();

    let other = subject.extra.iter().find_map(|named| other_variable(subject, jws, named));
    let weak = secrets.iter().find(|(_, s)| s.weakness() == Some(SecretError::Placeholder));
    if let Some((key, _)) = weak {
        let mut finding = cookies::own_placeholder(key.name());
        finding.advice.push_str(&other.map_or_else(String::new, |o| format!("; {}", o.advice)));
        return Some(finding);
    }

    if other.is_some() {
        return other;
    }

    for (key, secret) in &secrets {
        let hit = |c: &Candidate| c.bytes != secret.bytes() && jws.is_hmac_of(&c.bytes);
        if let Some(candidate) = secrets::edits(secret).into_iter().find(hit) {
            return Some(edited(key, &candidate));
        }
    }

    if let Some(candidate) =
        spellings::placeholders().into_iter().find(|c| jws.is_hmac_of(&c.bytes))
    {
        let advice = format!(
            "{}; if it came from your issuer, the issuer did not load its secret: set the variable \
             where the issuer runs (Next.js: for `next start`, not only for the build; check \
             .env.production, pm2, compose, the pod's env), and remove the fallback from its code",
            candidate.how
        );
        return Some(Finding::new(candidate.cause, candidate.side, advice));
    }

    public_key_as_secret(subject, jws).or_else(|| {
        secrets.is_empty().then(|| {
            let advice = "the token is signed with a shared secret, and no secret is configured: add \
                          [[auth.keys]] with secret_env, or let the issuer sign with its private key";
            Finding::new(Cause::AlgSymmetricToken, Side::Gateway, advice.to_owned())
        })
    })
}

fn edited(key: &Key, candidate: &Candidate) -> Finding {
    let line = match (candidate.cause, candidate.side) {
        (Cause::SecretEncoding, Side::Gateway) => {
            let encoding = candidate.encoding.map_or("utf8", Encoding::name);
            format!("; in {}: encoding = {encoding:?}", key.name())
        }
        (_, Side::Gateway) => format!("; change the value of {}", key.name()),
        (_, Side::Issuer) => String::new(),
    };
    let advice = format!("{}{line}. {}", candidate.how, candidate.cause.fix());
    Finding::new(candidate.cause, candidate.side, advice)
}

/// Tries a secret that the operator named.
fn other_variable(subject: &Subject<'_>, jws: &Jws<'_>, named: &NamedSecret) -> Option<Finding> {
    let ours: Vec<&str> = subject.keys.fixed().iter().map(Key::name).collect();
    let decoded = Encoding::ALL.into_iter().filter_map(|e| Some((e, e.decode(named.text.trim())?)));
    let plain = (Encoding::Utf8, named.text.as_bytes().to_vec());
    let (encoding, _) =
        std::iter::once(plain).chain(decoded).find(|(_, bytes)| jws.is_hmac_of(bytes))?;

    let advice = format!(
        "the token verifies with {} ({}), but the gateway uses {}: let both sides use the same \
         variable",
        named.name,
        encoding.name(),
        ours.join(", "),
    );
    Some(Finding::new(Cause::SecretOtherVariable, Side::Issuer, advice))
}

/// Looks for the classic confusion of RS256 and HS256: the public key used as a secret.
fn public_key_as_secret(subject: &Subject<'_>, jws: &Jws<'_>) -> Option<Finding> {
    let hit = subject.keys.fixed().iter().find(|key| match key.material() {
        Material::Secret(_) => false,
        Material::Public(public) => texts_of(public.spki()).iter().any(|t| jws.is_hmac_of(t)),
    })?;

    let advice = format!(
        "the token is signed with the public key of {} as if it were a secret: this is an attack, \
         or the issuer was given the public key instead of the private one",
        hit.name()
    );
    Some(Finding::new(Cause::PublicKeyAsHmacSecret, Side::Issuer, advice))
}

/// A public key as files hold it: DER, PEM with and without its last line break, and the
/// bare base64.
fn texts_of(spki: &[u8]) -> Vec<Vec<u8>> {
    let body = base64::engine::general_purpose::STANDARD.encode(spki);
    let lines: Vec<&str> =
        body.as_bytes().chunks(64).filter_map(|l| std::str::from_utf8(l).ok()).collect();
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----", lines.join("\n"));
    vec![spki.to_vec(), format!("{pem}\n").into_bytes(), pem.into_bytes(), body.into_bytes()]
}

/// Explains a token that is signed with a private key.
fn public_key(subject: &Subject<'_>, jws: &Jws<'_>) -> Option<Finding> {
    let Some(alg) = jws.alg else {
        let advice = format!(
            "the gateway does not support the algorithm {:?}, but only {}",
            shown(jws.header.get("alg").and_then(Value::as_str).unwrap_or_default()),
            names(&Algorithm::ALL),
        );
        return Some(Finding::new(Cause::AlgUnsupported, Side::Issuer, advice));
    };

    if let Some(finding) = ecdsa(subject, jws, alg).or_else(|| azure(jws)) {
        return Some(finding);
    }

    let has = |key: &Key| key.family() == alg.family();
    let known = subject.keys.fixed().iter().any(has) || !subject.keys.remotes().is_empty();
    if known {
        return None;
    }

    let issuer = subject.unverified_claim("iss").map_or_else(String::new, |iss| {
        format!(" (iss {iss:?} may publish it, often at {iss}/.well-known/jwks.json)")
    });

    let advice = format!(
        "the token is {}, signed with a private key, and the gateway has no {} key: configure the \
         issuer's jwks_url or public_key_pem{issuer}",
        alg.name(),
        alg.family().label(),
    );
    Some(Finding::new(Cause::AlgAsymmetricToken, Side::Gateway, advice))
}

/// Explains ECDSA signatures in another form, and those that are an attack.
fn ecdsa(subject: &Subject<'_>, jws: &Jws<'_>, alg: Algorithm) -> Option<Finding> {
    let field = match alg.family() {
        Family::P256 => 32,
        Family::P384 => 48,
        Family::P521 => 66,
        Family::Hmac | Family::Rsa | Family::Ed25519 => return None,
    };

    let half_is_zero = |half: &[u8]| half.iter().all(|b| *b == 0);
    if jws.signature.len() == 2 * field && jws.signature.chunks(field).any(half_is_zero) {
        let advice = Cause::EsZeroSignature.meaning().to_owned();
        return Some(Finding::new(Cause::EsZeroSignature, Side::Issuer, advice));
    }

    let fixed = fixed_from_der(&jws.signature, field)?;
    let remotes: Vec<_> = subject.keys.remotes().iter().map(|r| r.state()).collect();
    let mut keys = subject.keys.fixed().iter().chain(remotes.iter().flat_map(|r| &r.keys));
    keys.find(|k| k.verifies(alg, jws.signed, &fixed))?;

    let cause = Cause::EsDerSignature;
    Some(Finding::new(cause, Side::Issuer, format!("{} {}", cause.meaning(), cause.fix())))
}

/// Converts `SEQUENCE { INTEGER r, INTEGER s }` to r ‖ s.
fn fixed_from_der(der: &[u8], field: usize) -> Option<Vec<u8>> {
    let body = match der {
        [0x30, 0x81, len, body @ ..] if usize::from(*len) == body.len() => body,
        [0x30, len, body @ ..] if usize::from(*len) == body.len() => body,
        _ => return None,
    };

    let mut out = Vec::new();
    let mut rest = body;
    for _ in 0..2 {
        let [0x02, len, tail @ ..] = rest else { return None };
        let (number, after) = tail.split_at_checked(usize::from(*len))?;
        let number: Vec<u8> = number.iter().copied().skip_while(|b| *b == 0).collect();
        out.extend(std::iter::repeat_n(0, field.checked_sub(number.len())?));
        out.extend(number);
        rest = after;
    }

    rest.is_empty().then_some(out)
}

/// Recognises a token for Microsoft Graph. Such tokens are signed over a header whose nonce
/// is replaced by its hash, so that only Graph can verify them. The nonce and the audience
/// give them away.
fn azure(jws: &Jws<'_>) -> Option<Finding> {
    jws.header.get("nonce")?;
    let claims = json::object(jws.payload_part, &|_| false).ok()?;
    (claims.get("aud")? == "00000003-0000-0000-c000-000000000000").then_some(())?;
    let cause = Cause::AzureGraphToken;
    Some(Finding::new(cause, Side::Issuer, format!("{} {}", cause.meaning(), cause.fix())))
}

/// The finding if nothing fits: lengths and character classes on our side, and what was tried.
pub(super) fn nothing_fits(subject: &Subject<'_>) -> Finding {
    let ours: Vec<_> = subject
        .keys
        .fixed()
        .iter()
        .map(|k| match k.secret() {
            Some(secret) => format!("{}: {}", k.name(), describe(secret.text())),
            None => format!("{}: {}", k.name(), k.family().label()),
        })
        .collect();

    let advice = format!(
        "the token is signed with none of the gateway's keys, and with no known variant of one. \
         The gateway has {}; compare the length and the fingerprint on the issuer's side \
         (tollgate token fingerprint prints the gateway's, and how to print the issuer's); tried: \
         quotes, whitespace, line breaks, BOM, encodings, truncation, padding, env expansion, \
         prefixes, {} placeholders, other keys and algorithms",
        if ours.is_empty() { "no key of its own".to_owned() } else { ours.join("; ") },
        crate::auth::placeholders::PLACEHOLDERS.len(),
    );

    Finding::new(Cause::UnknownKey, Side::Issuer, advice)
}

fn shown_key(key: &Key) -> String {
    match key.kid() {
        Some(kid) => format!("{} (kid {:?})", key.name(), shown(kid)),
        None => key.name().to_owned(),
    }
}
