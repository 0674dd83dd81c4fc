//! `redis.url`: the servers, their topology, the credentials.
//!
//! Pure. Not here: connecting. Invariant: no error quotes the URL, which may hold a password.

use std::fmt;

use redis::{IntoConnectionInfo as _, ProtocolVersion, RedisConnectionInfo};

/// A server's host and port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Server {
    pub host: String,
    pub port: u16,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bracket = self.host.contains(':');
        let (open, close) = if bracket { ("[", "]") } else { ("", "") };
        write!(f, "{open}{}{close}:{}", self.host, self.port)
    }
}

/// How the servers belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Topology {
    Standalone(Server),
    /// Asks these Sentinels for the address of the master of that name.
    Sentinel(Vec<Server>, String),
    /// Asks any of these servers for the slots.
    Cluster(Vec<Server>),
}

/// A parsed URL.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub topology: Topology,
    /// User, password and database of the Redis servers.
    pub redis: RedisConnectionInfo,
    pub tls: bool,
}

/// What is wrong with a URL. The text never quotes the URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    #[error(
        "must be redis://[user:password@]host:port[/db], \
         redis+sentinel://host:port,host:port/master-name or redis+cluster://host:port,host:port; \
         rediss for TLS"
    )]
    Scheme,
    #[error("has a host that cannot be read")]
    Host,
    #[error("needs the master's name after the sentinels: /mymaster")]
    MasterName,
    #[error("names a database, but a cluster has only number 0")]
    Database,
    #[error("has credentials or a database number that cannot be read")]
    Credentials,
    #[error("has an option after ? or #, where options are not supported: {0}")]
    Option(&'static str),
}

impl Target {
    /// Parses a URL.
    ///
    /// # Errors
    /// What is wrong with the URL.
    pub(crate) fn parse(url: &str) -> Result<Self, UrlError> {
        let (scheme, rest) = url.split_once("://").ok_or(UrlError::Scheme)?;
        let (plain, kind) = scheme.split_once('+').map_or((scheme, ""), |(s, k)| (s, k));

        let tls = match plain {
            "redis" => false,
            "rediss" => true,
            _ => return Err(UrlError::Scheme),
        };

        let default_port = if kind == "sentinel" { 26379 } else { 6379 };
        let (authority, _) = rest.split_once('/').unwrap_or((rest, ""));

        // Before the host these characters may belong to a password.
        let host_at = authority.rfind('@').map_or(0, |at| at + 1);
        if let Some((_, option)) = rest[host_at..].split_once(['?', '#']) {
            return Err(UrlError::Option(advice(option)));
        }

        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, hosts) =
            authority.rsplit_once('@').map_or((None, authority), |(u, h)| (Some(u), h));

        let servers: Result<Vec<_>, _> =
            hosts.split(',').map(|host| server(host, default_port)).collect();
        let servers = servers?;
        let first = servers.first().cloned().ok_or(UrlError::Host)?;

        let (topology, database) = match kind {
            "" if servers.len() == 1 => (Topology::Standalone(first), path),
            "sentinel" => {
                let (name, db) = path.split_once('/').unwrap_or((path, ""));
                if name.is_empty() {
                    return Err(UrlError::MasterName);
                }
                (Topology::Sentinel(servers, name.to_owned()), db)
            }
            "cluster" if matches!(path, "" | "0") => (Topology::Cluster(servers), ""),
            "cluster" => return Err(UrlError::Database),
            _ => return Err(UrlError::Scheme),
        };

        // The library reads credentials and database, so that they mean what its users know.
        let user = user.map_or_else(String::new, |u| format!("{u}@"));
        let like = format!("redis://{user}host:1/{database}");
        let info = like.into_connection_info().map_err(|_| UrlError::Credentials)?;
        let redis = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        Ok(Self { topology, redis, tls })
    }
}

/// Names the setting that does what an option in another library's URL does. The option is not
/// quoted: it may be a password.
fn advice(option: &str) -> &'static str {
    let name = option.split(['=', '&']).next().unwrap_or_default().to_ascii_lowercase();
    let is = |parts: &[&str]| parts.iter().any(|part| name.contains(part));

    if is(&["insecure", "ssl", "tls", "cert", "verify", "_ca", "cafile"]) {
        "use rediss:// for TLS, redis.ca_file, cert_file and key_file for certificates, and \
         redis.tls_fingerprints to trust certificates whoever signed them"
    } else if is(&["timeout", "interval", "health", "retry", "keepalive"]) {
        "use redis.connect_timeout, command_timeout, ping_interval and reconnect_max"
    } else if is(&["db", "database"]) {
        "give the database as the path, as in redis://host:6379/2"
    } else if is(&["pass", "user", "auth"]) {
        "put credentials before the host, or the password into redis.password_file"
    } else if is(&["protocol", "resp"]) {
        "leave it out: RESP3 is always used"
    } else if is(&["sentinel", "master", "role"]) {
        "for Sentinel use redis+sentinel://host:26379,host:26379/master-name"
    } else {
        "leave it out: all settings are in [redis]"
    }
}

/// Reads one server of the list.
fn server(text: &str, default_port: u16) -> Result<Server, UrlError> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => {
            (host, port.parse().map_err(|_| UrlError::Host)?)
        }
        _ => (text, default_port),
    };
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    if host.is_empty() || host.chars().any(|c| c.is_whitespace() || c.is_control() || c == '?') {
        return Err(UrlError::Host);
    }
    Ok(Server { host: host.to_owned(), port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(url: &str) -> Result<(String, bool, i64), UrlError> {
        let target = Target::parse(url)?;
        let list = |servers: &[Server]| {
            servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        let topology = match &target.topology {
            Topology::Standalone(server) => format!("one {server}"),
            Topology::Sentinel(servers, name) => format!("{name} of {}", list(servers)),
            Topology::Cluster(servers) => format!("cluster {}", list(servers)),
        };
        Ok((topology, target.tls, target.redis.db()))
    }

    #[test]
    fn urls_are_taken_apart() {
        for (url, expected) in [
            ("redis://h", ("one h:6379", false, 0)),
            ("rediss://u:p@h:1/3", ("one h:1", true, 3)),
            ("redis://[::1]:7", ("one [::1]:7", false, 0)),
            ("redis+sentinel://a,b:2/mymaster", ("mymaster of a:26379 b:2", false, 0)),
            ("redis+sentinel://:p@a/m/4", ("m of a:26379", false, 4)),
            ("rediss+cluster://u:p%40@a:1,b:2", ("cluster a:1 b:2", true, 0)),
        ] {
            let (topology, tls, db) = shown(url).unwrap();
            assert_eq!((topology.as_str(), tls, db), expected, "{url}");
        }

        for (url, error) in [
            ("h:6379", UrlError::Scheme),
            ("http://h", UrlError::Scheme),
            ("redis+ring://h", UrlError::Scheme),
            ("redis://a,b", UrlError::Scheme),
            ("redis://", UrlError::Host),
            ("redis://h:port", UrlError::Host),
            ("redis+sentinel://a,b", UrlError::MasterName),
            ("redis+cluster://a/1", UrlError::Database),
            ("redis://h/x", UrlError::Credentials),
        ] {
            assert_eq!(shown(url), Err(error), "{url}");
        }
    }

    #[test]
    fn field_d4_options_of_the_url_are_refused_with_what_to_use() {
        for (url, part) in [
            ("rediss://h:1#insecure", "redis.tls_fingerprints"),
            ("rediss://h:1/0#insecure", "redis.tls_fingerprints"),
            ("rediss://u:p@h/0?ssl_cert_reqs=none", "redis.ca_file"),
            ("rediss://h?ssl_ca_certs=/etc/ca@x.pem", "redis.ca_file"),
            ("redis://h?socket_timeout=5", "redis.connect_timeout"),
            ("redis://h/?db=3", "the path"),
            ("redis://h/?password=hunter2", "before the host"),
            ("redis://h/0?protocol=3", "RESP3"),
            ("redis+sentinel://a,b/m?x=hunter2", "[redis]"),
            ("redis+cluster://a,b#hunter2", "[redis]"),
        ] {
            let error = Target::parse(url).unwrap_err();
            let text = error.to_string();
            assert!(matches!(error, UrlError::Option(_)) && text.contains(part), "{url}: {text}");
            assert!(!text.contains("hunter2"), "{text}");
        }

        let target = Target::parse("redis://:p%23w%3F@h").unwrap();
        assert_eq!(target.redis.password(), Some("p#w?"));
    }

    #[test]
    fn credentials_are_decoded() {
        let target = Target::parse("redis://us%40er:p%2Fw@h").unwrap();
        assert_eq!(target.redis.username(), Some("us@er"));
        assert_eq!(target.redis.password(), Some("p/w"));
    }
}
