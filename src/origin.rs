//! Origins of web pages (RFC 6454), and which of them may open sockets and streams.
//!
//! Pure. Invariant: an origin is compared whole: scheme, host and port. A wildcard stands for
//! exactly one label of a host's name.

use std::fmt;
use std::net::IpAddr;

/// A page's origin as browsers send it: `scheme://host[:port]`, in lower case, without the scheme's
/// own port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    scheme: String,
    /// Empty for `file://` and the like.
    host: String,
    /// `None` only if the scheme has no port of its own and none is given.
    port: Option<u16>,
}

/// Why a text is not an origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    #[error(
        "is not an origin such as https://app.example.com or capacitor://localhost: \
         scheme://host, and :port where it is not the scheme's"
    )]
    Shape,
    #[error(
        "has something after the host and port (a path, a query, even a slash): remove it, \
         because an origin ends there"
    )]
    Rest,
    #[error("has a user or password: remove it, because an origin has none")]
    UserInfo,
    #[error("has a port that is not a number from 1 to 65535")]
    Port,
    #[error(
        "has a * that is not the whole first label: https://*.example.com stands for one label, \
         as in https://preview-7.example.com; there is no wildcard for all origins"
    )]
    Wildcard,
    #[error(
        "has a host that is not in the form that browsers send: write non-ASCII names as xn--…"
    )]
    Host,
}

/// The own ports of the schemes whose pages come from the host that they name.
fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

impl std::str::FromStr for Origin {
    type Err = OriginError;

    fn from_str(text: &str) -> Result<Self, OriginError> {
        let (scheme, rest) = text.split_once("://").ok_or(OriginError::Shape)?;

        let mut letters = scheme.bytes();
        let is_scheme = letters.next().is_some_and(|b| b.is_ascii_alphabetic())
            && letters.all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
        if !is_scheme {
            return Err(OriginError::Shape);
        }

        // Some clients that are not browsers send the socket's own scheme.
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "ws" => "http".to_owned(),
            "wss" => "https".to_owned(),
            other => other.to_owned(),
        };

        if rest.contains(['/', '?', '#', '\\']) {
            return Err(OriginError::Rest);
        }
        if rest.contains('@') {
            return Err(OriginError::UserInfo);
        }

        let (host, port) = host_and_port(rest)?;
        let default = default_port(&scheme);
        if host.is_empty() && (default.is_some() || port.is_some()) {
            return Err(OriginError::Shape);
        }

        Ok(Self { scheme, host: host.to_ascii_lowercase(), port: port.or(default) })
    }
}

/// Takes a host and its port apart.
fn host_and_port(text: &str) -> Result<(&str, Option<u16>), OriginError> {
    let end = if text.starts_with('[') {
        text.find(']').ok_or(OriginError::Host)? + 1
    } else {
        text.find(':').unwrap_or(text.len())
    };

    let (host, port) = text.split_at(end);

    let port = match port.strip_prefix(':') {
        None if port.is_empty() => None,
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
            Some(digits.parse().ok().filter(|p| *p > 0).ok_or(OriginError::Port)?)
        }
        None | Some(_) => return Err(OriginError::Port),
    };

    let inner = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let is_host = match inner {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%*".contains(&b)),
    };
    if is_host { Ok((host, port)) } else { Err(OriginError::Host) }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.host)?;
        match self.port {
            Some(port) if Some(port) != default_port(&self.scheme) => write!(f, ":{port}"),
            Some(_) | None => Ok(()),
        }
    }
}

impl Origin {
    /// True if this is a page of the host that the request names. A page without TLS is not, if the
    /// request is known to have come over TLS.
    fn is_of(&self, own: &Own<'_>) -> bool {
        let Some(default) = default_port(&self.scheme) else { return false };
        // A person who can change an unencrypted page on its way must not gain access to
        // the TLS side.
        if self.scheme == "http" && own.secure {
            return false;
        }

        let Ok((host, port)) = host_and_port(own.host) else { return false };
        !host.is_empty()
            && host.eq_ignore_ascii_case(&self.host)
            && port.unwrap_or(default) == self.port.unwrap_or(default)
    }

    /// True if this is a page of this machine.
    fn is_loopback(&self) -> bool {
        default_port(&self.scheme).is_some() && is_loopback(&self.host)
    }
}

/// True if a host name never leads to another machine, whatever DNS answers.
#[must_use]
pub(crate) fn is_loopback(host: &str) -> bool {
    let host = host.to_ascii_lowercase();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost"
        || host.ends_with(".localhost")
        || address.is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// The host of a `Host` header, without its port, or `None` if the header holds no host.
#[must_use]
pub(crate) fn host_of(header: &str) -> Option<&str> {
    host_and_port(header).ok().map(|(host, _)| host).filter(|host| !host.is_empty())
}

/// The address of the gateway as a request has it.
#[derive(Debug, Clone, Copy)]
pub struct Own<'r> {
    /// The `Host` header.
    pub host: &'r str,
    /// True if a trusted proxy says that the client came over TLS.
    pub secure: bool,
}

/// An entry of `server.allowed_origins`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    /// The origin that browsers send for pages without one: sandboxed frames, files, redirects.
    Null,
    Exactly(Origin),
    /// `https://*.example.com`. The host is the part behind the first label, with the dot.
    OneLabel(Origin),
}

impl std::str::FromStr for Entry {
    type Err = OriginError;

    fn from_str(text: &str) -> Result<Self, OriginError> {
        if text == "null" {
            return Ok(Self::Null);
        }
        if text == "*" {
            return Err(OriginError::Wildcard);
        }

        let mut origin: Origin = text.parse()?;
        let Some(suffix) = origin.host.strip_prefix('*').map(str::to_owned) else {
            return if origin.host.contains('*') {
                Err(OriginError::Wildcard)
            } else {
                Ok(Self::Exactly(origin))
            };
        };

        // A name below a top-level domain can be anybody's.
        let name = suffix.strip_prefix('.').unwrap_or_default();
        let enough = name.contains('.') || name == "localhost";
        let labels = name.split('.').all(|label| !label.is_empty() && !label.contains('*'));
        let digits = name.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        if !enough || !labels || digits {
            return Err(OriginError::Wildcard);
        }

        origin.host = suffix;
        Ok(Self::OneLabel(origin))
    }
}

impl Entry {
    fn allows(&self, origin: &Origin) -> bool {
        match self {
            Self::Null => false,
            Self::Exactly(allowed) => allowed == origin,
            Self::OneLabel(allowed) => {
                let label = origin.host.strip_suffix(&allowed.host);
                allowed.scheme == origin.scheme
                    && allowed.port == origin.port
                    && label.is_some_and(|l| !l.is_empty() && !l.contains('.'))
            }
        }
    }
}

/// The pages that may open sockets and streams.
#[derive(Debug, Clone, Default)]
pub struct AllowedOrigins {
    entries: Vec<Entry>,
    /// The entries as they were written.
    texts: Vec<String>,
    /// True if pages of this machine are allowed, on any port (`--dev`).
    loopback: bool,
}

impl AllowedOrigins {
    /// Parses the entries.
    ///
    /// # Errors
    /// The index of each wrong entry, and what is wrong with it.
    pub fn new(texts: &[String], loopback: bool) -> Result<Self, Vec<(usize, OriginError)>> {
        let parsed = texts.iter().map(|text| text.parse::<Entry>());
        let mut entries = Vec::new();
        let mut wrong = Vec::new();
        for (i, entry) in parsed.enumerate() {
            match entry {
                Ok(entry) => entries.push(entry),
                Err(why) => wrong.push((i, why)),
            }
        }

        if wrong.is_empty() {
            Ok(Self { entries, texts: texts.to_vec(), loopback })
        } else {
            Err(wrong)
        }
    }

    /// True if a page of this origin may open a socket or stream here: its origin is an entry, or
    /// the request's own host.
    #[must_use]
    pub fn allow(&self, origin: &str, own: &Own<'_>) -> bool {
        if origin == "null" {
            return self.entries.contains(&Entry::Null);
        }
        let Ok(origin) = origin.parse::<Origin>() else { return false };
        self.entries.iter().any(|entry| entry.allows(&origin))
            || origin.is_of(own)
            || (self.loopback && origin.is_loopback())
    }

    /// The line of the configuration that allows this origin too, or `None` if the text is
    /// not an origin.
    #[must_use]
    pub fn line_with(&self, origin: &str) -> Option<String> {
        let added = match origin {
            "null" => "null".to_owned(),
            text => text.parse::<Origin>().ok().filter(|o| !o.host.contains('*'))?.to_string(),
        };
        let all: Vec<_> = self.texts.iter().chain([&added]).map(|t| format!("{t:?}")).collect();
        Some(format!("allowed_origins = [{}]", all.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(entries: &[&str]) -> AllowedOrigins {
        let texts: Vec<_> = entries.iter().map(|e| (*e).to_owned()).collect();
        AllowedOrigins::new(&texts, false).unwrap()
    }

    #[test]
    fn a10_origins_are_compared_exactly() {
        let allowed = allowed(&["https://app.example.com"]);

        for (origin, host, expected) in [
            ("https://app.example.com", "gw.example.com", true),
            ("https://APP.example.com", "gw.example.com", true),
            ("https://app.example.com.evil.com", "gw.example.com", false),
            ("https://app.example.com:8443", "gw.example.com", false),
            ("http://app.example.com", "gw.example.com", false),
            ("https://evilapp.example.com", "gw.example.com", false),
            ("null", "gw.example.com", false),
            ("", "gw.example.com", false),
            ("http://a:b", "gw.example.com", false),
            ("https://gw.example.com", "gw.example.com", true),
            ("https://gw.example.com", "gw.example.com:443", true),
            ("http://gw.example.com:8000", "gw.example.com:8000", true),
            ("http://gw.example.com:8001", "gw.example.com:8000", false),
            ("file://gw.example.com", "gw.example.com", false),
        ] {
            let own = Own { host, secure: false };
            assert_eq!(allowed.allow(origin, &own), expected, "{origin} at {host}");
        }
    }

    #[test]
    fn field_d2_apps_extensions_and_previews_can_be_allowed_and_nothing_more() {
        let allowed = allowed(&[
            "capacitor://localhost",
            "ionic://localhost",
            "tauri://localhost",
            "chrome-extension://aapbdbdomjkkjkaonfhkkikfgjllcleb",
            "file://",
            "https://*.preview.example.com",
            "http://*.localhost:3000",
            "https://app.example.com",
            "https://app.example.com:8443",
            "http://[::1]:5173",
        ]);

        let own = Own { host: "gw.example.com", secure: false };

        for (origin, expected) in [
            ("capacitor://localhost", true),
            ("capacitor://localhost:1", false),
            ("capacitor://evil", false),
            ("Ionic://LocalHost", true),
            ("tauri://localhost", true),
            ("chrome-extension://aapbdbdomjkkjkaonfhkkikfgjllcleb", true),
            ("chrome-extension://another", false),
            ("file://", true),
            ("null", false),
            ("https://pr-7.preview.example.com", true),
            ("https://a.b.preview.example.com", false),
            ("https://preview.example.com", false),
            ("https://.preview.example.com", false),
            ("https://pr-7.preview.example.com.evil.com", false),
            ("https://evilpreview.example.com", false),
            ("http://pr-7.preview.example.com", false),
            ("https://pr-7.preview.example.com:444", false),
            ("http://shop.localhost:3000", true),
            ("http://shop.localhost", false),
            ("https://app.example.com", true),
            ("https://app.example.com:443", true),
            ("wss://app.example.com", true),
            ("ws://app.example.com", false),
            ("https://app.example.com:8443", true),
            ("https://app.example.com/", false),
            ("http://[::1]:5173", true),
            ("wss://gw.example.com", true),
            ("ws://gw.example.com", true),
            ("capacitor://gw.example.com", false),
            ("*", false),
            ("", false),
        ] {
            assert_eq!(allowed.allow(origin, &own), expected, "{origin}");
        }

        let null = AllowedOrigins::new(&["null".to_owned()], false).unwrap();
        assert!(null.allow("null", &own) && !null.allow("https://x.example", &own));
    }

    #[test]
    fn field_d2_what_is_no_origin_is_refused_with_what_is_wrong() {
        use OriginError as E;

        for (text, why) in [
            ("app.example.com", E::Shape),
            ("https://", E::Shape),
            ("//app.example.com", E::Shape),
            ("1a://x", E::Shape),
            ("https://app.example.com/", E::Rest),
            ("https://app.example.com/path", E::Rest),
            ("https://app.example.com?x", E::Rest),
            ("https://app.example.com#x", E::Rest),
            ("file:///", E::Rest),
            ("https://user:pw@app.example.com", E::UserInfo),
            ("https://app.example.com:", E::Port),
            ("https://app.example.com:0", E::Port),
            ("https://app.example.com:65536", E::Port),
            ("https://app.example.com:80a", E::Port),
            ("*", E::Wildcard),
            ("https://*", E::Wildcard),
            ("https://*.com", E::Wildcard),
            ("https://*example.com", E::Wildcard),
            ("https://*.*.example.com", E::Wildcard),
            ("https://a.*.example.com", E::Wildcard),
            ("https://*.0.0.1", E::Wildcard),
            ("https://bücher.example", E::Host),
            ("https://a b", E::Host),
            ("https://[::1", E::Host),
        ] {
            let found = AllowedOrigins::new(&[text.to_owned()], false).map(|_| ());
            assert_eq!(found, Err(vec![(0, why)]), "{text}");
        }
    }

    #[test]
    fn field_f9_a_page_without_tls_is_not_of_the_same_host_as_a_request_with() {
        let none = AllowedOrigins::default();

        for (origin, host, secure, expected) in [
            ("https://gw.example.com", "gw.example.com", true, true),
            ("http://gw.example.com", "gw.example.com", true, false),
            ("http://gw.example.com:443", "gw.example.com:443", true, false),
            ("http://gw.example.com", "gw.example.com", false, true),
            // A proxy that is not trusted, or that says nothing, may have ended the TLS.
            ("https://gw.example.com", "gw.example.com", false, true),
            ("https://gw.example.com", "gw.example.com:443", false, true),
            ("https://gw.example.com", "gw.example.com:8443", false, false),
            ("http://gw.example.com:8000", "gw.example.com:8000", false, true),
            ("http://gw.example.com:8001", "gw.example.com:8000", false, false),
            ("http://[::1]:8000", "[::1]:8000", false, true),
            ("https://gw.example.com.evil", "gw.example.com", false, false),
        ] {
            let own = Own { host, secure };
            assert_eq!(none.allow(origin, &own), expected, "{origin} at {host}, TLS {secure}");
        }
    }

    #[test]
    fn field_d3_development_allows_this_machine_and_the_line_is_complete() {
        let dev = AllowedOrigins::new(&[], true).unwrap();
        let own = Own { host: "127.0.0.1:8000", secure: false };
        for (origin, expected) in [
            ("http://localhost:5173", true),
            ("http://127.0.0.1:3000", true),
            ("http://[::1]:3000", true),
            ("https://app.localhost:8443", true),
            ("http://localhost.evil.com", false),
            ("http://127.0.0.1.evil.com", false),
            ("http://192.168.0.7:3000", false),
            ("capacitor://localhost", false),
            ("null", false),
        ] {
            assert_eq!(dev.allow(origin, &own), expected, "{origin}");
        }

        let list = allowed(&["https://a.example"]);
        let line = list.line_with("HTTPS://B.example:443").unwrap();
        assert_eq!(line, r#"allowed_origins = ["https://a.example", "https://b.example"]"#);

        for bad in ["", "x", "https://*.b.example", "https://b.example/\n", "https://b\".example"] {
            assert_eq!(list.line_with(bad), None, "{bad:?}");
        }
    }
}
