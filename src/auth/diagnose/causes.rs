//! The closed set of causes that the diagnosis names: slug, meaning, and what to do.
//! `docs/tokens.md` is generated from this table.

/// The side that has to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    Gateway,
    /// The program that makes the token, or one that carries it to the gateway.
    Issuer,
}

impl Side {
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Issuer => "issuer",
        }
    }
}

macro_rules! causes {
    ($($name:ident $slug:literal $meaning:literal $fix:literal;)+) => {
        /// Why a token was refused, beyond the reason.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Cause { $($name,)+ }

        impl Cause {
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// Slug, meaning, fix.
            #[must_use]
            pub fn row(self) -> (&'static str, &'static str, &'static str) {
                match self { $(Self::$name => ($slug, $meaning, $fix),)+ }
            }
        }
    };
}

causes! {
    SecretQuoted "secret_quoted"
        "One side has quotes around its secret, the other has not."
        "Remove the quotes: `docker --env-file` and some compose versions keep them, dotenv and Node strip them.";
    SecretWhitespace "secret_whitespace"
        "One side's secret has a newline, a blank or an invisible character more."
        "Write the file with `printf` or `echo -n`; copy the value again.";
    SecretBom "secret_bom"
        "One side's secret begins with a byte order mark."
        "Save the file as UTF-8 without BOM.";
    SecretTruncated "secret_truncated"
        "One side has only the beginning of the secret."
        "Quote the value in `.env` (an unquoted `#` cuts it), and make it on one line: `openssl rand -base64 48 | tr -d '\\n'`.";
    SecretMultiline "secret_multiline"
        "One side has the secret on several lines, the other joined them."
        "Make it on one line: `openssl rand -base64 48 | tr -d '\\n'`.";
    SecretEncoding "secret_encoding"
        "One side decodes the secret (base64, base64url, hex), the other takes it as text."
        "Set `encoding` of the key to what the issuer does.";
    SecretPadding "secret_padding"
        "The secrets differ by the trailing `=` only."
        "Copy the value whole; do not split it at `=`.";
    SecretDoubleBase64 "secret_double_base64"
        "One side holds base64 of the secret: it was encoded twice."
        "In Kubernetes use `stringData`, or encode once, with `echo -n`.";
    SecretDefault "secret_default"
        "One side's secret is a well-known placeholder: it did not load its own."
        "Give that side its secret at run time (for Next.js: where `next start` runs, not only at build), and remove the fallback from its code.";
    SecretEmpty "secret_empty"
        "The token was signed with an empty secret: the issuer did not load its own."
        "Give the issuer its secret at run time, and let it refuse to start without.";
    SecretEnvExpansion "secret_env_expansion"
        "A `$name` inside the secret was expanded by an env loader."
        "Write `\\$` in Next's `.env`, or make a secret without `$`.";
    SecretRetired "secret_retired"
        "The token was signed with a key whose `valid_until` has passed."
        "Redeploy the issuer with the new key, or extend `valid_until`.";
    SecretOtherVariable "secret_other_variable"
        "The token was signed with another of the operator's secrets."
        "Point both sides at the same variable.";
    SecretCharset "secret_charset"
        "The secret's non-ASCII characters are in another encoding on one side."
        "Use a secret of ASCII characters.";
    SecretPercentEncoded "secret_percent_encoded"
        "One side has the secret percent-encoded, as in a URL."
        "Decode it once.";
    SecretCase "secret_case"
        "The secrets differ in upper and lower case only."
        "Copy the value as it is.";
    SecretPrefix "secret_prefix"
        "One side's secret has a prefix more (`base64:`, `NAME=`)."
        "Leave the prefix out, and decode the rest where it says base64.";
    KidMismatch "kid_mismatch"
        "The token names one key, and another configured key verifies it."
        "Correct the `kid` on one side.";
    WrongPublicKey "wrong_public_key"
        "Another configured key verifies it, with an algorithm that it is not bound to."
        "Correct `algs` or `kid` of the key.";
    NextauthV3Session "nextauth_v3_session"
        "It is the session cookie of a next-auth 3 application."
        "Mint a token for the gateway in a route of the application.";
    NextauthV4Session "nextauth_v4_session"
        "It is a NextAuth 4 session cookie, which is encrypted, not a signed token."
        "Switch on `auth.session_cookie`, or mint a signed token in a route of the application.";
    AuthjsV5Session "authjs_v5_session"
        "It is an Auth.js 5 session cookie, which is encrypted, not a signed token."
        "Switch on `auth.session_cookie`, or mint a signed token in a route of the application.";
    NextauthCookieChunk "nextauth_cookie_chunk"
        "It is the beginning of an encrypted token: one chunk of a session cookie, or it was cut off."
        "Join the chunks `.0`, `.1`, … in order; look for what cuts the cookie.";
    CookieName "cookie_name"
        "The session cookie was made under a name that is not configured; Auth.js 5 derives the key from it."
        "Add the name to `auth.session_cookie.cookies`.";
    Auth0OpaqueToken "auth0_opaque_token"
        "It is an opaque Auth0 access token: no audience was asked for."
        "Ask Auth0 for a token with the API's `audience`.";
    EncryptedToken "encrypted_token"
        "It is encrypted (JWE), and none of the gateway's secrets opens it."
        "Send a signed token (JWS).";
    EsDerSignature "es_der_signature"
        "The issuer put the DER form of the ECDSA signature into the token."
        "Convert it to r and s, each as long as the curve's field (RFC 7518 section 3.4).";
    EsZeroSignature "es_zero_signature"
        "The ECDSA signature is zero: an attack (CVE-2022-21449)."
        "Nothing: it is refused.";
    AzureGraphToken "azure_graph_token"
        "It is an access token for Microsoft Graph, which nobody else can verify."
        "Ask for a token with the scope of your own API.";
    AlgMismatch "alg_mismatch"
        "The secret verifies it, but the key is not bound to the token's algorithm."
        "Add the algorithm to the key's `algs`, or change the issuer.";
    AlgAsymmetricToken "alg_asymmetric_token"
        "It is signed with a private key, and the gateway has only a secret."
        "Configure the issuer's public key or its `jwks_url`.";
    AlgSymmetricToken "alg_symmetric_token"
        "It is signed with a shared secret, and the gateway has only public keys."
        "Configure the secret, or change the issuer.";
    PublicKeyAsHmacSecret "public_key_as_hmac_secret"
        "The gateway's public key was used as an HMAC secret: an attack, or a mistake of the issuer."
        "If it is your issuer: sign with the private key.";
    AlgNone "alg_none"
        "It is not signed: an attack, or the Firebase emulator."
        "Use real tokens.";
    AlgUnsupported "alg_unsupported"
        "No key can have the token's algorithm."
        "Sign with one of the supported algorithms.";
    CritUnsupported "crit_unsupported"
        "The header demands an extension that the gateway does not have."
        "Leave `crit` and `zip` out.";
    B64False "b64_false"
        "The payload is not base64url-encoded (RFC 7797)."
        "Leave `b64` out.";
    KidUnknown "kid_unknown"
        "No key has the token's `kid`."
        "Compare the `kid` of both sides; after a rotation add the new key.";
    JwksStale "jwks_stale"
        "The key set could not be fetched lately."
        "See the log for why; check `jwks_url` from the gateway's host.";
    JwksEmpty "jwks_empty"
        "The key set at `jwks_url` has no usable key."
        "A project that still signs with a shared secret (Supabase legacy): configure the secret.";
    IssuerTrailingSlash "issuer_trailing_slash"
        "`iss` and `auth.issuer` differ by a slash at the end."
        "Write `auth.issuer` exactly as the token has it (Auth0 always has the slash).";
    IssuerScheme "issuer_scheme"
        "`iss` and `auth.issuer` differ in `https://`."
        "Write `auth.issuer` exactly as the token has it.";
    IssuerCase "issuer_case"
        "`iss` and `auth.issuer` differ in upper and lower case."
        "Write `auth.issuer` exactly as the token has it.";
    IssuerMissing "issuer_missing"
        "The token has no `iss`."
        "Let the issuer set it, or leave `auth.issuer` empty.";
    IssuerOther "issuer_other"
        "The token is of another issuer."
        "Add it to `auth.issuer` if you trust it.";
    AudienceMissing "audience_missing"
        "The token has no `aud`."
        "Let the issuer set it (`aud`, not `audience`), or leave `auth.audience` empty.";
    AudienceOther "audience_other"
        "The token is for another audience."
        "Add it to `auth.audience` if it is meant for this gateway.";
    ExpInMilliseconds "exp_in_milliseconds"
        "A time claim counts milliseconds, or finer: in seconds it would be tens of thousands of years ahead."
        "Divide by 1000: `Math.floor(Date.now() / 1000) + 3600`.";
    ExpIsDuration "exp_is_duration"
        "`exp` holds a duration, not a moment."
        "Use the library's `expiresIn`, or add the current time.";
    ExpNotNumber "exp_not_number"
        "A time claim is not a number."
        "Send seconds as a JSON number.";
    ExpMissing "exp_missing"
        "The token has no `exp`."
        "Let the issuer set it, or set `auth.require_exp = false`.";
    TokenExpired "token_expired"
        "The token's time is over."
        "Fetch a new token before connecting; `token_expiring` says when.";
    ClockSkew "clock_skew"
        "The clocks of issuer and gateway differ."
        "Run NTP on both, or set `auth.leeway`.";
    NbfInFuture "nbf_in_future"
        "`nbf` is in the future."
        "Let the issuer set it to now, or leave it out.";
    UserClaimOther "user_claim_other"
        "The user's id is in another claim."
        "Set `auth.user_claim`.";
    UserClaimUnusable "user_claim_unusable"
        "The user's id is neither a usable text nor a whole number."
        "Send it as a text of 1 to 512 bytes without control characters, or as a whole number below 2^64.";
    WrongTokenKind "wrong_token_kind"
        "It is another kind of token of the right issuer."
        "Send the user's access token.";
    BearerPrefix "bearer_prefix"
        "The word `Bearer` is part of the token."
        "Send the token alone.";
    TokenQuoted "token_quoted"
        "The token is in quotes."
        "Store it as it is, not with JSON.stringify.";
    JsonWrapped "json_wrapped"
        "The token is inside a JSON object."
        "Take the field out.";
    CookiePair "cookie_pair"
        "The token came as `name=value`."
        "Send the value alone.";
    JsValue "js_value"
        "It is the text of a JavaScript value, not a token."
        "Wait for the token before connecting.";
    UrlEncoded "url_encoded"
        "The token is percent-encoded once too often."
        "Encode it once.";
    PlusToSpace "plus_to_space"
        "A `+` of the token became a blank on the way, and the issuer uses the wrong base64 alphabet."
        "Use base64url (RFC 7515 section 2).";
    StandardBase64 "standard_base64"
        "The token is in the standard base64 alphabet."
        "Use base64url (RFC 7515 section 2).";
    Base64Padding "base64_padding"
        "The token's parts are padded with `=`."
        "Leave the padding out (RFC 7515 section 2).";
    TokenTruncated "token_truncated"
        "The end of the token is missing."
        "Look for a column, cookie or header that is too short.";
    TextAround "text_around"
        "There is other text around the token: an address, a header line, a second token."
        "Send the token alone.";
    TokenWhitespace "token_whitespace"
        "There are blanks or line breaks in the token."
        "Remove them.";
    NonAscii "non_ascii"
        "There are characters in the token that no token has."
        "Copy it again; an editor may have replaced characters.";
    NoToken "no_token"
        "No token came."
        "Send it by one of the carriers; check that the proxy keeps the query, and the browser the cookie.";
    NotAJwt "not_a_jwt"
        "It is no JWT: a session id, an API key, an opaque token."
        "Send the JWT that your API signs: three parts with dots between, the first begins with `eyJ`.";
    PartCount "part_count"
        "It begins like a JWT, and has another number of parts than three (signed) or five (encrypted)."
        "Send header, payload and signature with dots between, and nothing else.";
    InvalidCharacter "invalid_character"
        "There is a character in the token that base64url does not have."
        "Send the token as it was made: letters, digits, `-`, `_` and two dots.";
    HeaderInvalid "header_invalid"
        "The first part is no JSON object in base64url, or a member of it has the wrong type."
        "Make tokens with a JWT library, and send them unchanged.";
    AlgMissing "alg_missing"
        "The header has no `alg`, or it is no text."
        "Make tokens with a JWT library: `alg` is one text such as `HS256`.";
    PayloadInvalid "payload_invalid"
        "The signature is right, and the payload is no JSON object in base64url (RFC 8259)."
        "Sign one JSON object in UTF-8, with nothing behind it and no `NaN`.";
    DuplicateKey "duplicate_key"
        "A member that the gateway reads comes twice: two readers could take another one each."
        "Write each member once.";
    TooDeep "too_deep"
        "A claim that the gateway reads is nested too deep."
        "Leave out what the gateway does not need.";
    Base64Noncanonical "base64_noncanonical"
        "The last character of a part has bits that mean nothing: it was changed, or encoded wrongly."
        "Encode with a base64url library; do not edit tokens.";
    EmptySignature "empty_signature"
        "The signature is empty: it was not signed, or somebody took it away."
        "Send the token whole; whoever reads the first two parts alone does not need the gateway.";
    SignatureLength "signature_length"
        "The signature has another length than its algorithm makes."
        "Compare the token with what the issuer made: cut off, extended, or signed in another way.";
    TrailingCharacters "trailing_characters"
        "Something stands behind the token; without it the token verifies."
        "Send the token alone.";
    UnknownKey "unknown_key"
        "No known edit of the gateway's secrets signed it: another secret, or a tampered token."
        "Compare lengths and fingerprints on both sides (`tollgate token fingerprint`).";
}

impl Cause {
    #[must_use]
    pub fn slug(self) -> &'static str {
        self.row().0
    }

    #[must_use]
    pub fn meaning(self) -> &'static str {
        self.row().1
    }

    #[must_use]
    pub fn fix(self) -> &'static str {
        self.row().2
    }
}

/// The table as Markdown, for `docs/tokens.md`.
#[must_use]
pub fn markdown() -> String {
    let cell = |text: &str| text.replace('|', "\\|");
    let rows: Vec<_> = Cause::ALL
        .iter()
        .map(|c| format!("| `{}` | {} | {} |\n", c.slug(), cell(c.meaning()), cell(c.fix())))
        .collect();
    format!("| cause | meaning | what to do |\n| --- | --- | --- |\n{}", rows.concat())
}
