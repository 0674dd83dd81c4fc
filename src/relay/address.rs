//! Where PostgreSQL is and how it is spoken to: `relay.url`, completed by the `PG*` variables and a password
//! file, as `psql` does.
//!
//! Not here: connecting (`connection`). Invariant: no error quotes a URL or a file, which may hold a
//! password.

use std::path::{Path, PathBuf};

use form_urlencoded::Serializer;
use tokio_postgres::config::{Host, SslMode};

/// How far a server's certificate is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tls {
    /// Not encrypted.
    Off,
    /// Encrypted if the server offers it, to whoever answers.
    Offered,
    /// Encrypted. The certificate is checked only if authorities are given.
    Required,
    /// Encrypted, by a server whose certificate is trusted and names the host.
    Verified,
}

/// What is wrong with an address. The text never quotes it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AddressError {
    #[error(
        "must be postgres://[user[:password]@]host[:port][,host[:port]]/database[?option=value]"
    )]
    Scheme,
    #[error(
        "has an @ that does not stand before the host: in a name or password it has to be %40, and / has to be %2F, \
         ? %3F, : %3A"
    )]
    NotEncoded,
    #[error("sslmode must be disable, prefer, require, verify-ca or verify-full")]
    SslMode,
    #[error("cannot be read: {0}")]
    Option(String),
    #[error("the password file {0}: {1}")]
    PasswordFile(PathBuf, String),
}

/// A parsed address. It may hold a password: never log it.
#[derive(Clone)]
pub(crate) struct Address {
    pub(crate) config: tokio_postgres::Config,
    pub(crate) tls: Tls,
    /// The file of the authorities to trust, if the URL or the environment names one.
    pub(crate) ca_file: Option<PathBuf>,
    /// The file with nothing but the password.
    password_file: Option<PathBuf>,
    /// The file in the format of libpq's `.pgpass`.
    passfile: Option<PathBuf>,
}

/// Looks up an environment variable.
pub(crate) type Env<'e> = &'e dyn Fn(&str) -> Option<String>;

impl Address {
    /// Reads a URL, which may be empty, and the environment.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(crate) fn parse(
        url: &str,
        password_file: &str,
        ca_file: &str,
        env: Env<'_>,
    ) -> Result<Self, AddressError> {
        let url = if url.is_empty() { "postgres://" } else { url };
        if has_stray_at(url) {
            return Err(AddressError::NotEncoded);
        }
        let (url, options) = take_options(url)?;
        let url = with_ports(&url, env("PGPORT").unwrap_or_default().as_str());
        let mut config: tokio_postgres::Config =
            url.parse().map_err(|e| AddressError::Option(said(&e)))?;
        complete(&mut config, env)?;

        let option = |name: &str, variable: &str| {
            let given = options.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
            given.or_else(|| env(variable)).filter(|value| !value.is_empty())
        };
        let tls = match option("sslmode", "PGSSLMODE").as_deref() {
            Some("disable") => Tls::Off,
            None | Some("allow" | "prefer") => Tls::Offered,
            Some("require") => Tls::Required,
            Some("verify-ca" | "verify-full") => Tls::Verified,
            Some(_) => return Err(AddressError::SslMode),
        };
        config.ssl_mode(match tls {
            Tls::Off => SslMode::Disable,
            Tls::Offered => SslMode::Prefer,
            Tls::Required | Tls::Verified => SslMode::Require,
        });

        let file = |path: String| (!path.is_empty()).then(|| PathBuf::from(path));
        let passfile = env("PGPASSFILE").or_else(|| env("HOME").map(|home| home + "/.pgpass"));
        Ok(Self {
            config,
            tls,
            ca_file: file(ca_file.to_owned())
                .or_else(|| option("sslrootcert", "PGSSLROOTCERT").and_then(file)),
            password_file: file(password_file.to_owned()),
            passfile: passfile.and_then(file),
        })
    }

    /// The configuration of a new connection, with the password that the files hold now.
    ///
    /// # Errors
    /// The password file cannot be read. A missing `.pgpass` is none.
    pub(crate) async fn with_password(&self) -> Result<tokio_postgres::Config, AddressError> {
        let mut config = self.config.clone();
        if let Some(path) = &self.password_file {
            let bad = |why: String| AddressError::PasswordFile(path.clone(), why);
            let text = tokio::fs::read_to_string(path).await.map_err(|e| bad(e.to_string()))?;
            match text.trim_end_matches(['\r', '\n']) {
                "" => return Err(bad("it is empty".to_owned())),
                password => config.password(password),
            };
        } else if let (None, Some(path)) = (config.get_password(), &self.passfile)
            && let Some(password) = of_passfile(path, &config).await
        {
            config.password(password);
        }
        Ok(config)
    }

    /// The servers, for the log.
    pub(crate) fn servers(&self) -> String {
        let ports = self.config.get_ports();
        let shown = self.config.get_hosts().iter().enumerate().map(|(at, host)| {
            let port = ports.get(at).or(ports.first()).copied().unwrap_or(5432);
            match host {
                Host::Tcp(name) => format!("{name}:{port}"),
                Host::Unix(path) => format!("{}:{port}", path.display()),
            }
        });
        let database = self.config.get_dbname().unwrap_or_default();
        format!("{}/{database}", shown.collect::<Vec<_>>().join(","))
    }

    /// True if every server is on this machine.
    pub(crate) fn is_local(&self) -> bool {
        self.config.get_hosts().iter().all(|host| match host {
            Host::Tcp(name) => matches!(&**name, "localhost" | "127.0.0.1" | "::1"),
            Host::Unix(_) => true,
        })
    }
}

/// Takes the options out of a URL that the library does not know in this form.
fn take_options(url: &str) -> Result<(String, Vec<(String, String)>), AddressError> {
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err(AddressError::Scheme);
    }
    let Some((base, query)) = url.split_once('?') else { return Ok((url.to_owned(), vec![])) };
    let pairs = form_urlencoded::parse(query.as_bytes()).into_owned();
    let (ours, rest): (Vec<_>, Vec<_>) =
        pairs.partition(|(name, _)| matches!(&**name, "sslmode" | "sslrootcert"));

    // The library does not read + as a blank.
    let rest = Serializer::new(String::new()).extend_pairs(rest).finish().replace('+', "%20");
    Ok((if rest.is_empty() { base.to_owned() } else { format!("{base}?{rest}") }, ours))
}

/// True if a part of a password may be taken for a host or for a database, which the log names.
fn has_stray_at(url: &str) -> bool {
    let (_, rest) = url.split_once("://").unwrap_or(("", url));
    let authority = rest.find(['/', '?']).unwrap_or(rest.len());
    rest[..authority].matches('@').count() > 1 || rest[authority..].contains('@')
}

/// Gives hosts without a port this one: the library would give them its own.
fn with_ports(url: &str, port: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, rest) = rest.split_at(end);
    let at = authority.rfind('@').map_or(0, |at| at + 1);
    let (user, hosts) = authority.split_at(at);
    if port.is_empty() || port.contains(',') || hosts.is_empty() {
        return url.to_owned();
    }

    let with_port = |host: &str| match host.rsplit_once(':') {
        Some((_, given)) if !given.ends_with(']') => host.to_owned(),
        _ => format!("{host}:{port}"),
    };
    let hosts: Vec<_> = hosts.split(',').map(with_port).collect();
    format!("{scheme}://{user}{}{rest}", hosts.join(","))
}

/// Adds what the URL lacks, from the environment and by libpq's defaults.
fn complete(config: &mut tokio_postgres::Config, env: Env<'_>) -> Result<(), AddressError> {
    let env = |name: &str| env(name).filter(|value| !value.is_empty());
    let bad = |name: &str| AddressError::Option(format!("{name} has a bad value"));

    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        let hosts = env("PGHOST").unwrap_or_else(|| "/var/run/postgresql".to_owned());
        for host in hosts.split(',') {
            config.host(host);
        }
    }
    if config.get_ports().is_empty()
        && let Some(ports) = env("PGPORT")
    {
        for port in ports.split(',') {
            config.port(port.parse().map_err(|_| bad("PGPORT"))?);
        }
    }

    if config.get_user().is_none() {
        config.user(env("PGUSER").or_else(|| env("USER")).unwrap_or_else(|| "postgres".to_owned()));
    }
    if config.get_password().is_none()
        && let Some(password) = env("PGPASSWORD")
    {
        config.password(password);
    }
    if config.get_dbname().is_none() {
        let user = config.get_user().unwrap_or_default().to_owned();
        config.dbname(env("PGDATABASE").unwrap_or(user));
    }
    if config.get_application_name().is_none() {
        config.application_name("tollgate relay");
    }
    Ok(())
}

/// Finds the password in a file of lines `host:port:database:user:password`, where `*` stands for
/// anything and `\` makes the next character an ordinary one (PostgreSQL, "The Password File").
async fn of_passfile(path: &Path, config: &tokio_postgres::Config) -> Option<String> {
    let text = tokio::fs::read_to_string(path).await.ok()?;
    let host = match config.get_hosts().first()? {
        Host::Tcp(name) => name.clone(),
        Host::Unix(_) => "localhost".to_owned(),
    };
    let port = config.get_ports().first().copied().unwrap_or(5432).to_string();
    let wanted = [&*host, &port, config.get_dbname()?, config.get_user()?];

    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let fields = fields_of(line);
        let [given @ .., password] = &*fields else { return None };
        let fits = given.len() == wanted.len()
            && given.iter().zip(wanted).all(|(given, wanted)| given == "*" || given == wanted);
        fits.then(|| password.clone())
    })
}

fn fields_of(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut characters = line.chars();
    while let Some(c) = characters.next() {
        let last = fields.len() - 1;
        match c {
            '\\' => fields[last].extend(characters.next()),
            ':' if fields.len() < 5 => fields.push(String::new()),
            c => fields[last].push(c),
        }
    }
    fields
}

/// What is wrong, without what was given.
fn said(error: &tokio_postgres::Error) -> String {
    let source = std::error::Error::source(error);
    source.map_or_else(|| error.to_string(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(url: &str, env: &[(&str, &str)]) -> Result<Address, AddressError> {
        let find =
            |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        Address::parse(url, "", "", &find)
    }

    #[test]
    fn what_the_url_lacks_comes_from_the_environment() {
        let all = [("PGHOST", "h"), ("PGPORT", "7"), ("PGUSER", "u"), ("PGDATABASE", "d")];
        for (url, env, servers, user) in [
            ("", &all[..], "h:7/d", "u"),
            ("postgres://relay@db/shop", &all[..], "db:7/shop", "relay"),
            ("postgresql://relay:p%40@db:1,db2:2/shop", &[], "db:1,db2:2/shop", "relay"),
            ("", &[("USER", "me")], "/var/run/postgresql:5432/me", "me"),
        ] {
            let address = address(url, env).map_err(|e| e.to_string()).unwrap();
            assert_eq!(address.servers(), servers, "{url}");
            assert_eq!(address.config.get_user(), Some(user), "{url}");
        }
    }

    #[test]
    fn sslmode_means_what_it_means_to_psql() {
        for (url, env, tls) in [
            ("postgres://h/d", None, Tls::Offered),
            ("postgres://h/d", Some("verify-full"), Tls::Verified),
            ("postgres://h/d?sslmode=disable", Some("verify-full"), Tls::Off),
            (
                "postgres://h/d?sslmode=verify-full&target_session_attrs=read-write",
                None,
                Tls::Verified,
            ),
            ("postgres://h/d?application_name=a%20b&sslmode=require", None, Tls::Required),
        ] {
            let env: Vec<_> = env.map(|mode| ("PGSSLMODE", mode)).into_iter().collect();
            assert_eq!(address(url, &env).ok().map(|a| a.tls), Some(tls), "{url}");
        }
        let spaced = address("postgres://h/d?application_name=a%20b&sslmode=require", &[]);
        assert_eq!(spaced.ok().unwrap().config.get_application_name(), Some("a b"));
    }

    #[test]
    fn what_is_wrong_is_said_without_the_address() {
        for url in [
            "mysql://u:hunter2@h/d",
            "host=h password=hunter2",
            "postgres://u:hunter2@h:x/d",
            "postgres://u:hunter2@h/d?sslmode=on",
            "postgres://u:hunter2@h/d?hunter2=1",
            // What stands behind these characters was taken for a host or a database, which the log names.
            "postgres://u:a@hunter2@h/d",
            "postgres://u:1/hunter2@h/d",
            "postgres://u:a?hunter2@h/d",
            "postgres://u:a#hunter2@b@h/d",
        ] {
            let error = address(url, &[]).err().unwrap().to_string();
            assert!(!error.contains("hunter2") || url.ends_with("hunter2=1"), "{url}: {error}");
        }
    }

    #[tokio::test]
    async fn passwords_come_from_files() {
        let directory = tempfile::tempdir().unwrap();
        let passfile = directory.path().join("pgpass");
        std::fs::write(&passfile, "# c\nother:*:*:*:no\nh:5432:*:u:p\\:w\\\\d:x\n*:*:*:*:any\n")
            .unwrap();
        let env = [("PGPASSFILE", passfile.to_str().unwrap())];
        for (url, password) in [
            ("postgres://u@h/d", "p:w\\d:x"),
            ("postgres://v@h/d", "any"),
            ("postgres://u:own@h/d", "own"),
        ] {
            let address = address(url, &env).ok().unwrap();
            let config = address.with_password().await.unwrap();
            assert_eq!(config.get_password(), Some(password.as_bytes()), "{url}");
        }

        let missing = Address::parse("postgres://u@h/d", "/nowhere", "", &|_| None).ok().unwrap();
        assert!(missing.with_password().await.unwrap_err().to_string().contains("/nowhere"));
    }
}
