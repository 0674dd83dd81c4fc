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
        "One side has quotes around its secret, the other does not."
        "Remove the quotes: `docker --env-file` and some compose versions keep them, but dotenv and Node strip them.";
    SecretWhitespace "secret_whitespace"
        "One side's secret has an extra newline, space or invisible character."
        "Write the file with `printf` or `echo -n`; copy the value again.";
    SecretBom "secret_bom"
        "One side's secret begins with a byte order mark."
        "Save the file as UTF-8 without BOM.";
    SecretTruncated "secret_truncated"
        "One side has only the beginning of the secret."
        "Quote the value in `.env` (an unquoted `#` cuts it), and create a secret on one line: `openssl rand -base64 48 | tr -d '\\n'`.";
    SecretMultiline "secret_multiline"
        "One side has the secret on several lines, the other has joined the lines."
        "Create a secret on one line: `openssl rand -base64 48 | tr -d '\\n'`.";
    SecretEncoding "secret_encoding"
        "One side decodes the secret (base64, base64url, hex), the other uses it as text."
        "Set the key's `encoding` to match the issuer.";
    SecretPadding "secret_padding"
        "The secrets differ only in the trailing `=`."
        "Copy the whole value; do not split it at `=`.";
    SecretDoubleBase64 "secret_double_base64"
        "One side has the secret in base64: it was encoded once too often."
        "In Kubernetes use `stringData`, or encode the secret once, with `echo -n`.";
    SecretDefault "secret_default"
        "One side's secret is a well-known placeholder: that side did not load its own secret."
        "Give that side its secret at run time (for Next.js: where `next start` runs, not only at build), and remove the fallback from its code.";
    SecretEmpty "secret_empty"
        "The token was signed with an empty secret: the issuer did not load its secret."
        "Give the issuer its secret at run time, and let the issuer refuse to start without one.";
    SecretEnvExpansion "secret_env_expansion"
        "An env loader expanded a `$name` inside the secret."
        "Write `\\$` in Next's `.env`, or use a secret without `$`.";
    SecretRetired "secret_retired"
        "The token was signed with a key whose `valid_until` has passed."
        "Redeploy the issuer with the new key, or extend `valid_until`.";
    SecretOtherVariable "secret_other_variable"
        "The token was signed with another of the operator's secrets."
        "Point both sides at the same variable.";
    SecretCharset "secret_charset"
        "The secret's non-ASCII characters are encoded differently on one side."
        "Use a secret of ASCII characters only.";
    SecretPercentEncoded "secret_percent_encoded"
        "One side has the secret percent-encoded, as in a URL."
        "Decode the secret once.";
    SecretCase "secret_case"
        "The secrets differ only in upper and lower case."
        "Copy the value unchanged.";
    SecretPrefix "secret_prefix"
        "One side's secret has an extra prefix (`base64:`, `NAME=`)."
        "Remove the prefix, and decode the rest if the prefix says base64.";
    KidMismatch "kid_mismatch"
        "The token's `kid` names one key, but another configured key verifies the token."
        "Correct the `kid` on one side.";
    WrongPublicKey "wrong_public_key"
        "A configured key verifies the token, but with an algorithm that the key is not bound to."
        "Correct the key's `algs` or `kid`.";
    NextauthV3Session "nextauth_v3_session"
        "The token is the session cookie of a next-auth 3 application."
        "Sign a token for the gateway in a route of the application.";
    NextauthV4Session "nextauth_v4_session"
        "The token is a NextAuth 4 session cookie, which is encrypted, not a signed token."
        "Switch on `auth.session_cookie`, or sign a token in a route of the application.";
    AuthjsV5Session "authjs_v5_session"
        "The token is an Auth.js 5 session cookie, which is encrypted, not a signed token."
        "Switch on `auth.session_cookie`, or sign a token in a route of the application.";
    NextauthCookieChunk "nextauth_cookie_chunk"
        "Only the beginning of an encrypted token arrived: one chunk of a session cookie, or a token that was cut off."
        "Join the chunks `.0`, `.1`, … in order, or find what cuts the cookie off.";
    CookieName "cookie_name"
        "The session cookie has a name that is not configured, and Auth.js 5 derives the key from the name."
        "Add the name to `auth.session_cookie.cookies`.";
    Auth0OpaqueToken "auth0_opaque_token"
        "The token is an opaque Auth0 access token: the client asked for no audience."
        "Request a token with the API's `audience` from Auth0.";
    EncryptedToken "encrypted_token"
        "The token is encrypted (JWE), and none of the gateway's secrets decrypts it."
        "Send a signed token (JWS).";
    EsDerSignature "es_der_signature"
        "The token has the DER form of the ECDSA signature."
        "Let the issuer convert it to r and s, each as long as the curve's field (RFC 7518 section 3.4).";
    EsZeroSignature "es_zero_signature"
        "The ECDSA signature is zero: this is an attack (CVE-2022-21449)."
        "Nothing: the gateway refuses the token.";
    AzureGraphToken "azure_graph_token"
        "The token is an access token for Microsoft Graph, which only Graph can verify."
        "Request a token with the scope of your own API.";
    AlgMismatch "alg_mismatch"
        "The secret verifies the token, but the key is not bound to the token's algorithm."
        "Add the algorithm to the key's `algs`, or change the issuer.";
    AlgAsymmetricToken "alg_asymmetric_token"
        "The token is signed with a private key, but the gateway has only a secret."
        "Configure the issuer's public key or its `jwks_url`.";
    AlgSymmetricToken "alg_symmetric_token"
        "The token is signed with a shared secret, but the gateway has only public keys."
        "Configure the secret, or change the issuer.";
    PublicKeyAsHmacSecret "public_key_as_hmac_secret"
        "The token was signed with the gateway's public key as an HMAC secret: this is an attack, or a mistake of the issuer."
        "If it was your issuer, let it sign with the private key.";
    AlgNone "alg_none"
        "The token is not signed: this is an attack, or a token of the Firebase emulator."
        "Use signed tokens.";
    AlgUnsupported "alg_unsupported"
        "The gateway does not support the token's algorithm."
        "Sign with one of the supported algorithms.";
    CritUnsupported "crit_unsupported"
        "The header requires an extension that the gateway does not support."
        "Leave `crit` and `zip` out of the header.";
    B64False "b64_false"
        "The payload is not base64url-encoded (RFC 7797)."
        "Leave `b64` out of the header.";
    KidUnknown "kid_unknown"
        "No key has the token's `kid`."
        "Compare the `kid` on both sides; after a rotation add the new key.";
    JwksStale "jwks_stale"
        "The key set could not be fetched for some time."
        "The log says why; check `jwks_url` from the gateway's host.";
    JwksEmpty "jwks_empty"
        "The key set at `jwks_url` has no usable key."
        "If the project still signs with a shared secret (Supabase legacy), configure the secret.";
    IssuerTrailingSlash "issuer_trailing_slash"
        "`iss` and `auth.issuer` differ in a trailing slash."
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
        "The token comes from another issuer."
        "Add the issuer to `auth.issuer` if you trust it.";
    AudienceMissing "audience_missing"
        "The token has no `aud`."
        "Let the issuer set it (`aud`, not `audience`), or leave `auth.audience` empty.";
    AudienceOther "audience_other"
        "The token is for another audience."
        "Add the audience to `auth.audience` if the token is meant for this gateway.";
    ExpInMilliseconds "exp_in_milliseconds"
        "A time claim is in milliseconds or a finer unit: as seconds it would be tens of thousands of years ahead."
        "Divide by 1000: `Math.floor(Date.now() / 1000) + 3600`.";
    ExpIsDuration "exp_is_duration"
        "`exp` is a duration, not a point in time."
        "Use the library's `expiresIn`, or add the current time.";
    ExpNotNumber "exp_not_number"
        "A time claim is not a number."
        "Send seconds as a JSON number.";
    ExpMissing "exp_missing"
        "The token has no `exp`."
        "Let the issuer set it, or set `auth.require_exp = false`.";
    TokenExpired "token_expired"
        "The token has expired."
        "Fetch a new token before connecting, and when `token_expiring` arrives.";
    ClockSkew "clock_skew"
        "The clocks of the issuer and the gateway differ."
        "Run NTP on both, or set `auth.leeway`.";
    NbfInFuture "nbf_in_future"
        "`nbf` is in the future."
        "Let the issuer set `nbf` to the current time, or leave it out.";
    UserClaimOther "user_claim_other"
        "The user's id is in another claim."
        "Set `auth.user_claim`.";
    UserClaimUnusable "user_claim_unusable"
        "The user's id is neither a usable string nor a whole number."
        "Send the id as a string of 1 to 512 bytes without control characters, or as a whole number below 2^64.";
    WrongTokenKind "wrong_token_kind"
        "The token comes from the right issuer, but is of the wrong kind."
        "Send the user's access token.";
    BearerPrefix "bearer_prefix"
        "The word `Bearer` is part of the token."
        "Send only the token.";
    TokenQuoted "token_quoted"
        "The token is in quotes."
        "Store the token unchanged, not with `JSON.stringify`.";
    JsonWrapped "json_wrapped"
        "The token is inside a JSON object."
        "Send only the value of the field.";
    CookiePair "cookie_pair"
        "The token came as `name=value`."
        "Send only the value.";
    JsValue "js_value"
        "The text of a JavaScript value arrived instead of a token."
        "Connect only when the client has its token.";
    UrlEncoded "url_encoded"
        "The token is percent-encoded once too often."
        "Encode the token once.";
    PlusToSpace "plus_to_space"
        "A `+` in the token became a space on the way, and the issuer uses the wrong base64 alphabet."
        "Use base64url (RFC 7515 section 2).";
    StandardBase64 "standard_base64"
        "The token is in the standard base64 alphabet."
        "Use base64url (RFC 7515 section 2).";
    Base64Padding "base64_padding"
        "The token's parts are padded with `=`."
        "Remove the padding (RFC 7515 section 2).";
    TokenTruncated "token_truncated"
        "The end of the token is missing."
        "Find the database column, cookie or header that is too short.";
    TextAround "text_around"
        "There is other text around the token, such as a URL, a header line or a second token."
        "Send only the token.";
    TokenWhitespace "token_whitespace"
        "The token contains spaces or line breaks."
        "Remove the spaces and line breaks.";
    NonAscii "non_ascii"
        "The token contains non-ASCII characters, which no token has."
        "Copy the token again; an editor may have replaced characters.";
    NoToken "no_token"
        "No token arrived."
        "Send the token by one of the carriers; check that the proxy passes the query and that the browser sends the cookie.";
    NotAJwt "not_a_jwt"
        "The text is not a JWT, but for example a session id, an API key or an opaque token."
        "Send the JWT that your API signs: three parts separated by dots, the first of which begins with `eyJ`.";
    PartCount "part_count"
        "The text begins like a JWT, but does not have three parts (signed) or five (encrypted)."
        "Send header, payload and signature separated by dots, and nothing else.";
    InvalidCharacter "invalid_character"
        "The token contains a character that base64url does not have."
        "Send the token unchanged: letters, digits, `-`, `_` and two dots.";
    HeaderInvalid "header_invalid"
        "The first part is not a JSON object in base64url, or one of its members has the wrong type."
        "Create tokens with a JWT library, and send them unchanged.";
    AlgMissing "alg_missing"
        "The header has no `alg`, or `alg` is not a string."
        "Create tokens with a JWT library: `alg` is a string such as `HS256`.";
    PayloadInvalid "payload_invalid"
        "The signature is valid, but the payload is not a JSON object in base64url (RFC 8259)."
        "Sign one JSON object in UTF-8, with nothing after it and no `NaN`.";
    DuplicateKey "duplicate_key"
        "A member that the gateway reads occurs twice: two readers could each use a different one."
        "Write each member once.";
    TooDeep "too_deep"
        "A claim that the gateway reads is nested too deeply."
        "Leave out the claims that the gateway does not need.";
    Base64Noncanonical "base64_noncanonical"
        "The last character of a part has bits that must be zero: the part was changed, or encoded incorrectly."
        "Encode with a base64url library; do not edit tokens.";
    EmptySignature "empty_signature"
        "The signature is empty: the token was not signed, or its signature was removed."
        "Send the whole token, with its signature.";
    SignatureLength "signature_length"
        "The signature does not have the length that its algorithm makes."
        "Compare the token with the one that the issuer created: it was cut off, extended, or signed in another way.";
    TrailingCharacters "trailing_characters"
        "There are extra characters after the token; without them the token verifies."
        "Send only the token.";
    UnknownKey "unknown_key"
        "The token was signed with none of the gateway's secrets, and with no known variant of one: the issuer has another secret, or the token was changed."
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
