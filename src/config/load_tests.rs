use std::io::Write as _;

use super::*;

const KEY: &str = r#"[{"secret":"kept-0123456789abcdef0123456789abcdef"}]"#;

fn run(file: Option<&str>, env: &[(&str, &str)]) -> Result<Loaded, Vec<String>> {
    let handle = file.map(|text| {
        let mut f = tempfile::NamedTempFile::new().unwrap();
        f.write_all(text.as_bytes()).unwrap();
        f
    });
    let sources = Sources {
        presets: vec![],
        file: handle.as_ref().map(|f| f.path().to_owned()),
        env: env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        flags: Vec::new(),
        dev: false,
        dev_secret: None,
    };
    load(&sources).map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

#[test]
fn the_defaults_are_complete_and_need_only_a_key() {
    let loaded = run(None, &[("TOLLGATE_AUTH__KEYS", KEY)]).unwrap();
    assert_eq!(loaded.config.server.listen.port(), 8000);
    assert_eq!(loaded.policy.rules.len(), 1);
    let problems = run(None, &[]).unwrap_err();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].starts_with("auth.keys: no key is configured"));
}

#[test]
fn later_sources_win() {
    let file = "[redis]\nprefix = \"ws:\"\nurl = \"redis://file\"\n[limits]\nconnections = 7\n";
    let env = [
        ("TOLLGATE_AUTH__KEYS", KEY),
        ("TOLLGATE_REDIS__URL", "redis://env"),
        ("TOLLGATE_SERVER__ALLOWED_ORIGINS", r#"["https://a.example"]"#),
        ("TOLLGATE_LIMITS__CONNECTIONS_PER_USER", "3"),
    ];
    let config = run(Some(file), &env).unwrap().config;
    assert_eq!((config.redis.url.0.as_str(), config.redis.prefix.as_str()), ("redis://env", "ws:"));
    assert_eq!((config.limits.connections, config.limits.connections_per_user), (7, 3));
    assert_eq!(config.server.allowed_origins, ["https://a.example"]);
}

#[test]
fn every_problem_is_reported_at_once_with_its_origin() {
    let file = r#"
[server]
listen = "nonsense"
lisen = "0.0.0.0:1"
[limits]
connections = "many"
ping_interval = "soon"
queue_messages = 0
[nosuch]
x = 1
[[auth.keys]]
secret = "short"
[[auth.keys]]
secert = "0123456789abcdef0123456789abcdef"
[[channels]]
pattern = "user:*"
allow = "owner"
[[channels]]
pattern = "post:{id}"
allow = "callback"
[[channels]]
pattern = "a:{id}"
allow = "authenticated"
history = { size = 1 }
[[channels]]
pattern = "b:{id}"
allow = "authenticated"
history = { size = 1, tll = "1m" }
"#;

    let problems = run(Some(file), &[("TOLLGATE_REDIS__PREFX", "x")]).unwrap_err().join("\n");
    for expected in [
        "server.listen: ",
        "server.lisen: there is no such setting; did you mean server.listen?",
        "limits.connections: invalid type",
        "limits.ping_interval: \"soon\" is not a duration",
        "nosuch: there is no such setting",
        "redis.prefx: there is no such setting; did you mean redis.prefix? (from the environment, TOLLGATE_REDIS__PREFX)",
        "auth.keys[1].secert: there is no such setting; did you mean secret?",
        "callback.url: is required by the rules with allow",
        "channels[2].history: missing field `ttl`",
        "channels[3].history.tll: there is no such setting; did you mean ttl?",
    ] {
        assert!(problems.contains(expected), "{expected}\n--- in\n{problems}");
    }

    assert!(problems.contains(":3)"), "the line of server.listen\n{problems}");
    assert!(!problems.contains("0123456789abcdef"), "a secret was shown\n{problems}");
}

#[test]
fn field_f16_sections_are_compared_with_sections_and_names_with_names() {
    for (file, meant) in [
        ("[limitz]\nx = 1\n", "limitz: there is no such setting; did you mean limits?"),
        ("[rediss]\nx = 1\n", "; did you mean redis?"),
        ("[autth]\nx = 1\n", "; did you mean auth?"),
        ("[chanels]\nx = 1\n", "; did you mean channels?"),
        ("[[chanels]]\nx = 1\n", "; did you mean channels?"),
        ("[auth.jwk]\nx = 1\n", "; did you mean auth.jwks?"),
        ("[auth.session_cooky]\nx = 1\n", "; did you mean auth.session_cookie?"),
        ("[auth]\njwks_refresh = \"5m\"\n", "; did you mean auth.jwks?"),
        ("[limits]\nqueue_byte = 1\n", "; did you mean limits.queue_bytes?"),
        ("[limits]\nexpiring_notice = \"1s\"\n", "; did you mean auth.expiring_notice?"),
        ("[redis]\nprefiks = \"x\"\n", "; did you mean redis.prefix?"),
        ("trusted_proxies = []\n", "; did you mean server.trusted_proxies?"),
        ("[zzz]\nx = 1\n", "zzz: there is no such setting ("),
    ] {
        let problems = run(Some(file), &[("TOLLGATE_AUTH__KEYS", KEY)]).unwrap_err().join("\n");
        assert!(problems.contains(meant), "{meant}\n--- in\n{problems}");
    }

    for (name, meant) in [
        ("TOLLGATE_LIMITZ__QUEUE_BYTES", "; did you mean limits.queue_bytes?"),
        ("TOLLGATE_LIMITZ__ZZZ", "; did you mean the section limits?"),
        ("TOLLGATE_AUTH__JWK__REFRESH", "; did you mean auth.jwks.refresh?"),
    ] {
        let env = [("TOLLGATE_AUTH__KEYS", KEY), (name, "1")];
        let problems = run(None, &env).unwrap_err().join("\n");
        assert!(problems.contains(meant), "{meant}\n--- in\n{problems}");
    }
}

#[test]
fn values_are_judged() {
    let file = r#"
[server]
allowed_origins = ["*", "https://ok.example", "https://x.example/path"]
allowed_headers = ["x-tenant", "x-a, x-b"]
[broker]
kind = "redis"
[redis]
url = "redis+cluster://a,b/3"
canary_deadline = "1ms"
cert_file = "c.pem"
prefix = "a b"
[limits]
queue_messages = 0
queue_bytes_total = 5
[api]
keys = ["short"]
[[auth.keys]]
secret = "your-secret-key"
[[auth.keys]]
secret_env = "NOT_SET_ANYWHERE"
[[channels]]
pattern = "room:{id}"
allow = "authenticated"
auto_subscribe = true
[[channels]]
pattern = "claim:{id}"
allow = "claim"
[[channels]]
pattern = "h:{id}"
allow = "authenticated"
history = { size = 0, ttl = "10ms" }
"#;

    let problems = run(Some(file), &[]).unwrap_err().join("\n");
    for expected in [
        "server.allowed_origins[0]: ",
        "server.allowed_origins[2]: ",
        "server.allowed_headers[1]: is not a header name",
        "redis.url: names a database, but a cluster has only number 0",
        "redis.canary_deadline: must be at least 10ms",
        "redis.cert_file: must be set together with redis.key_file",
        "limits.queue_bytes_total: ",
        "channels[2].history.size: must be from 1 to 100000",
        "channels[2].history.ttl: must be from 1s to 365 days",
        "redis.prefix: ",
        "limits.queue_messages: ",
        "api.keys[0]: ",
        "auth.keys[0].secret: the secret is a well-known placeholder",
        "auth.keys[1].secret_env: the environment variable NOT_SET_ANYWHERE is not set",
        "channels[0].auto_subscribe: ",
        "channels[1].claim: ",
    ] {
        assert!(problems.contains(expected), "{expected}\n--- in\n{problems}");
    }
}

#[test]
fn secrets_in_files_are_judged() {
    let file = r#"
[broker]
kind = "redis"
[redis]
url = "redis://:hunter2@a"
password_file = "/nowhere/password"
sentinel_password_file = "/dev/null"
[callback]
secret = "hunter2"
secret_file = "/etc/passwd"
"#;

    let problems = run(Some(file), &[]).unwrap_err().join("\n");
    for expected in [
        "redis.password_file: set either this or redis.url, not both",
        "redis.password_file: /nowhere/password cannot be read: ",
        "redis.sentinel_password_file: /dev/null is empty",
        "callback.secret_file: set either this or callback.secret, not both",
        "callback.secret_file: /etc/passwd contains more than one line",
    ] {
        assert!(problems.contains(expected), "{expected}\n--- in\n{problems}");
    }

    assert!(!problems.contains("hunter2"), "{problems}");
}

#[test]
fn secrets_are_never_printed() {
    let env = [
        ("TOLLGATE_AUTH__KEYS", KEY),
        ("TOLLGATE_REDIS__URL", "redis://me:pass@word@host:6379"),
        ("TOLLGATE_API__KEYS", r#"["api-key-api-key-1"]"#),
        ("TOLLGATE_REDIS__SENTINEL_PASSWORD", "of-sentinel"),
    ];
    let loaded = run(None, &env).unwrap();
    for secret in ["0123456789", "me:pass", "word@", "api-key", "of-sentinel"] {
        assert!(!loaded.printed.contains(secret), "{}", loaded.printed);
        assert!(!format!("{:?}", loaded.config).contains(secret));
    }
    assert!(loaded.printed.contains("redis://<redacted>@host:6379"));
}

#[test]
fn the_environment_of_a_kubernetes_service_is_not_ours() {
    let env = [
        ("TOLLGATE_AUTH__KEYS", KEY),
        ("TOLLGATE_PORT", "tcp://10.0.0.1:80"),
        ("TOLLGATE_SERVICE_HOST", "10.0.0.1"),
        ("TOLLGATE_PORT_80_TCP_ADDR", "10.0.0.1"),
    ];
    run(None, &env).unwrap();
}

#[test]
fn a_file_that_is_not_there_is_said_to_be() {
    let sources = Sources {
        presets: vec![],
        file: Some("/does/not/exist.toml".into()),
        env: vec![("TOLLGATE_AUTH__KEYS".into(), KEY.into())],
        flags: vec![],
        dev: false,
        dev_secret: None,
    };
    assert!(load(&sources).unwrap_err()[0].to_string().contains("cannot be read"));
}

/// Regression: the message about a value of the wrong type, or a line that is not TOML, quoted it,
/// secret and all.
#[test]
fn no_secret_is_in_a_message() {
    for (file, env) in [
        ("[api]\nkeys = \"hunter2-hunter2\"\n", None),
        ("[api]\nkeys = [1234567]\n", None),
        ("[[auth.keys]]\nsecret = 1234567\n", None),
        ("[redis]\nsentinel_password = 1234567\n", None),
        ("[[auth.keys]]\nsecret = \"hunter2\nencoding = \"utf8\"\n", None),
        ("[redis]\nurl = [\"hunter2\"]\n", None),
        ("", Some(("TOLLGATE_API__KEYS", "hunter2-hunter2"))),
        ("", Some(("TOLLGATE_AUTH__KEYS", "hunter2"))),
        ("", Some(("TOLLGATE_AUTH__KEYS", "[\"hunter2\"]"))),
    ] {
        let problems =
            run(Some(file), &env.into_iter().collect::<Vec<_>>()).unwrap_err().join("\n");
        assert!(!problems.contains("hunter2") && !problems.contains("1234567"), "{problems}");
        assert!(!problems.is_empty());
    }
}

/// Regression: a password before the scheme ended the process.
#[test]
fn a_malformed_redis_url_is_redacted_whole() {
    for url in ["a@b://c", "user:hunter2@redis://host", "hunter2@host", "redis://u:hunter2@host"] {
        let env = [("TOLLGATE_AUTH__KEYS", KEY), ("TOLLGATE_REDIS__URL", url)];
        let printed = run(None, &env).unwrap().printed;
        assert!(!printed.contains("hunter2"), "{printed}");
    }
}

#[test]
fn secrets_in_urls_and_private_keys_are_not_printed() {
    let file = r#"
[callback]
url = "https://u:hunter2@app/may?key=hunter2"
secret = "hunter2"
[[auth.keys]]
jwks_url = "https://u:hunter2@issuer/jwks?key=hunter2"
[[auth.keys]]
public_key_pem = "-----BEGIN PRIVATE KEY-----hunter2-----END PRIVATE KEY-----"
"#;
    let mut tree = Tree::default();
    let table: Table = file.parse().unwrap();
    for (section, value) in table {
        tree.merge(&section, value, file, "f");
    }
    let printed = tree.printed();
    assert!(!printed.contains("hunter2"), "{printed}");
    assert!(printed.contains("https://issuer/jwks"), "{printed}");
}

#[test]
fn sections_within_sections_have_variables_too() {
    let env = [
        ("TOLLGATE_AUTH__KEYS", KEY),
        ("TOLLGATE_AUTH__JWKS__REFRESH", "2m"),
        ("TOLLGATE_AUTH__SESSION_COOKIE__ENABLED", "true"),
        ("TOLLGATE_AUTH__SESSION_COOKIE__SECRETS_ENV", r#"["AUTH_SECRET"]"#),
        ("AUTH_SECRET", "kept-0123456789abcdef0123456789abcdef"),
    ];
    let loaded = run(None, &env).unwrap();
    assert_eq!(loaded.config.auth.jwks.refresh.0.as_secs(), 120);
    assert!(loaded.policy.verifier.session().is_some());
    let problems = run(None, &[("TOLLGATE_AUTH__JWKS__REFRSH", "2m")]).unwrap_err();
    assert!(problems[0].contains("did you mean auth.jwks.refresh?"), "{problems:?}");
}

/// A publisher that may write to `<prefix>*` must not reach the gateway's own names.
#[test]
fn field_e7_a_prefix_that_reaches_the_gateways_own_names_is_refused() {
    for (prefix, good) in [("ws:", true), ("gate", false), ("g", false), ("gateway:x:", false)] {
        let file = format!(
            "[broker]\nkind = \"redis\"\n[redis]\nprefix = \"{prefix}\"\n\
             [[auth.keys]]\nsecret = \"a secret of this test alone, 32 bytes\"\n"
        );
        let problems = run(Some(&file), &[]).err().unwrap_or_default().join("\n");
        assert_eq!(problems.is_empty(), good, "{prefix}: {problems}");
    }
}
