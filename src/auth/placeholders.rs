//! Secrets from examples, tutorials and defaults of well-known software. An issuer that signs with
//! one of these did not load a secret at all: `process.env.X || "your-secret-key"`.

/// The secrets as their sources write them. They are compared without case and separators too.
pub(super) const PLACEHOLDERS: [&str; 104] = [
    "secret",
    "your-secret",
    "your-secret-key",
    "your_secret_key",
    "your-secret-key-here",
    "your-secret-here",
    "your-jwt-secret",
    "your_jwt_secret",
    "your-jwt-secret-key",
    "your-jwt-secret-here",
    "your-super-secret-key",
    "your-super-secret-jwt-key",
    "your-super-secret-jwt-key-here",
    "your-super-secret-jwt-key-change-this-in-production",
    "your-secret-key-change-in-production",
    "your-secret-key-change-this-in-production",
    "your-nextauth-secret",
    "your-nextauth-secret-here",
    "your_nextauth_secret",
    "your-auth-secret",
    "your-256-bit-secret",
    "your-384-bit-secret",
    "your-512-bit-secret",
    "a-string-secret-at-least-256-bits-long",
    "a-valid-string-secret-that-is-at-least-384-bits-long",
    "a-valid-string-secret-that-is-at-least-512-bits-long-which-is-very-long",
    "jwt-secret",
    "jwt_secret",
    "jwtSecret",
    "jwt-secret-key",
    "jwt_secret_key",
    "jwtsecretkey",
    "JWT_SECRET",
    "NEXTAUTH_SECRET",
    "AUTH_SECRET",
    "SECRET_KEY",
    "super-secret",
    "supersecret",
    "super_secret",
    "super-secret-key",
    "supersecretkey",
    "super-secret-jwt-token",
    "super-secret-jwt-token-with-at-least-32-characters-long",
    "my-secret",
    "mysecret",
    "my_secret",
    "my-secret-key",
    "mysecretkey",
    "my-super-secret-key",
    "my-32-character-ultra-secure-and-ultra-long-secret",
    "change-me",
    "changeme",
    "change_me",
    "CHANGEME",
    "change-me-please",
    "change-me-in-production",
    "changemeinproduction",
    "change-this",
    "change-this-secret",
    "change-this-in-production",
    "change_this_secret_key",
    "please-change-me",
    "replace-me",
    "replaceme",
    "replace-with-your-secret",
    "insecure",
    "insecure-secret",
    "default",
    "default-secret",
    "default-secret-key",
    "defaultsecret",
    "dev-secret",
    "dev_secret",
    "dev-secret-key",
    "development",
    "development-secret",
    "local-secret",
    "test",
    "test-secret",
    "test_secret",
    "testsecret",
    "test-secret-key",
    "fallback-secret",
    "fallback-secret-key",
    "fallback_secret",
    "temporary-secret",
    "example",
    "example-secret",
    "shhhhh",
    "shhhhhhared-secret",
    "keyboard cat",
    "password",
    "passw0rd",
    "admin",
    "123456",
    "12345678901234567890123456789012",
    "0123456789abcdef0123456789abcdef",
    "09d25e094faa6ca2556c818166b7a9563b93f7099f6f0f4caa6cf63b88e8d3e7",
    "undefined",
    "null",
    "none",
    "[object Object]",
    "todo",
    "placeholder",
];

/// The letters and digits of a text, in lower case.
fn plain(text: &str) -> String {
    text.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase()
}

/// True for a well-known placeholder, however it is written, and for a variable that nobody
/// expanded (`${NAME}`, `$NAME`, `<your secret>`).
#[must_use]
pub fn is_placeholder(secret: &str) -> bool {
    let secret = secret.trim();
    let looks_unexpanded = |s: &str| {
        (s.starts_with("${") && s.ends_with('}'))
            || (s.starts_with('<') && s.ends_with('>'))
            || (s.len() < 40
                && s.strip_prefix('$').is_some_and(|n| {
                    !n.is_empty() && n.chars().all(|c| c.is_ascii_uppercase() || c == '_')
                }))
    };

    let bare = plain(secret);
    looks_unexpanded(secret) || (!bare.is_empty() && PLACEHOLDERS.iter().any(|p| plain(p) == bare))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_known_however_they_are_written() {
        for bad in ["Your_Secret-Key", "changeme!", "${NEXTAUTH_SECRET}", "$JWT_SECRET", "<secret>"]
        {
            assert!(is_placeholder(bad), "{bad}");
        }
        for good in ["bench-secret-bench-secret-bench-32", "", "$2a$10$abcdefghijklmnopqrstuv"] {
            assert!(!is_placeholder(good), "{good}");
        }
    }
}
