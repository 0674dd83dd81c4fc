//! Why a token is refused.

/// Why a token was refused: the closed set that metric labels, log fields and close reasons use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    Missing,
    Oversize,
    Malformed,
    Encrypted,
    AlgNone,
    AlgNotAllowed,
    CritUnsupported,
    KidUnknown,
    KeysUnavailable,
    RevocationsUnavailable,
    ConfigError,
    BadSignature,
    Expired,
    NotYetValid,
    ExpMissing,
    ClaimInvalid,
    IssuerMismatch,
    AudienceMismatch,
    UserMissing,
    Revoked,
}

impl Reason {
    pub const ALL: [Self; 20] = [
        Self::Missing,
        Self::Oversize,
        Self::Malformed,
        Self::Encrypted,
        Self::AlgNone,
        Self::AlgNotAllowed,
        Self::CritUnsupported,
        Self::KidUnknown,
        Self::KeysUnavailable,
        Self::RevocationsUnavailable,
        Self::ConfigError,
        Self::BadSignature,
        Self::Expired,
        Self::NotYetValid,
        Self::ExpMissing,
        Self::ClaimInvalid,
        Self::IssuerMismatch,
        Self::AudienceMismatch,
        Self::UserMissing,
        Self::Revoked,
    ];

    /// The slug, and what an operator should know about it.
    #[must_use]
    pub fn row(self) -> (&'static str, &'static str) {
        match self {
            Self::Missing => ("missing", "No token arrived by any of the carriers."),
            Self::Oversize => ("oversize", "The token is longer than `auth.max_token_bytes`."),
            Self::Malformed => (
                "malformed",
                "The token is not three base64url parts of which the first two are JSON objects.",
            ),
            Self::Encrypted => {
                ("encrypted", "The token has five parts: it is encrypted (JWE), not signed.")
            }
            Self::AlgNone => ("alg_none", "The token says that it is not signed."),
            Self::AlgNotAllowed => {
                ("alg_not_allowed", "No configured key is bound to this algorithm.")
            }
            Self::CritUnsupported => {
                ("crit_unsupported", "The header requires an extension (`crit`, `b64`, `zip`).")
            }
            Self::KidUnknown => ("kid_unknown", "No configured key has the token's `kid`."),
            Self::KeysUnavailable => (
                "keys_unavailable",
                "The gateway could not fetch its keys; the token is not at fault.",
            ),
            Self::RevocationsUnavailable => (
                "revocations_unavailable",
                "The gateway could not read the revocations yet; the token is not at fault.",
            ),
            Self::ConfigError => {
                ("config_error", "The gateway's key cannot be used; the token is not at fault.")
            }
            Self::BadSignature => (
                "bad_signature",
                "No matching key verifies the signature: usually the two sides have different secrets.",
            ),
            Self::Expired => ("expired", "`exp` (plus leeway) has been reached."),
            Self::NotYetValid => ("not_yet_valid", "`nbf` (minus leeway) is in the future."),
            Self::ExpMissing => {
                ("exp_missing", "The token has no `exp`, and `auth.require_exp` is on.")
            }
            Self::ClaimInvalid => {
                ("claim_invalid", "A claim has the wrong type or an impossible value.")
            }
            Self::IssuerMismatch => {
                ("issuer_mismatch", "`iss` is missing, or is not in `auth.issuer`.")
            }
            Self::AudienceMismatch => {
                ("audience_mismatch", "`aud` is missing, or names none of `auth.audience`.")
            }
            Self::UserMissing => {
                ("user_missing", "The token has none of the claims in `auth.user_claim`.")
            }
            Self::Revoked => ("revoked", "The token was revoked."),
        }
    }

    #[must_use]
    pub fn slug(self) -> &'static str {
        self.row().0
    }

    #[must_use]
    pub fn meaning(self) -> &'static str {
        self.row().1
    }

    /// True if the fault is the gateway's, not the token's: the client may come back with
    /// the same token.
    #[must_use]
    pub fn is_ours(self) -> bool {
        matches!(self, Self::KeysUnavailable | Self::RevocationsUnavailable | Self::ConfigError)
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.slug())
    }
}

/// The table of reasons as Markdown, for `docs/protocol.md`.
#[must_use]
pub fn markdown() -> String {
    let rows: Vec<_> =
        Reason::ALL.iter().map(|r| format!("| `{}` | {} |\n", r.row().0, r.row().1)).collect();
    format!("| reason | meaning |\n| --- | --- |\n{}", rows.concat())
}
