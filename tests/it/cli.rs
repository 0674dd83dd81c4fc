//! The command line as its user meets it.

use std::io::Write as _;
use std::process::{Command, Output};

use serde_json::{Value, json};
use tollgate_support::client::Client;
use tollgate_support::http::API_KEY;
use tollgate_support::process::run_with_input;
use tollgate_support::tokens::SECRET;

use super::gateway::{self, BIN, config};

fn run(args: &[&str], env: &[(&str, &str)]) -> Output {
    Command::new(BIN).args(args).env_clear().envs(env.iter().copied()).output().unwrap()
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn config_check_lists_every_problem_and_exits_78() {
    let bad =
        file("[server]\nlisen = 1\n[limits]\nconnections = 0\n[[auth.keys]]\nsecret = \"x\"\n");
    let path = bad.path().to_str().unwrap();
    for command in [vec!["config", "check", "--config", path], vec!["serve", "--config", path]] {
        let output = run(&command, &[("TOLLGATE_REDIS__URLL", "x")]);
        assert_eq!(output.status.code(), Some(78), "{command:?}");
        let text = stderr(&output);
        for part in ["did you mean server.listen?", ":2)", "redis.urll", "TOLLGATE_REDIS__URLL"] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }

    let good = file(&config(""));
    let output = run(&["config", "check", "-c", good.path().to_str().unwrap()], &[]);
    assert!(output.status.success());
}

#[test]
fn config_print_shows_what_is_in_force_without_secrets() {
    let good = file(&config("[redis]\nurl = \"redis://u:hunter22@h:1\"\n"));
    let path = good.path().to_str().unwrap();
    let output =
        run(&["config", "print"], &[("TOLLGATE_CONFIG", path), ("TOLLGATE_REDIS__PREFIX", "ws:")]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("prefix = \"ws:\""), "{text}");
    for secret in [SECRET, "hunter22", API_KEY] {
        assert!(!text.contains(secret), "{text}");
    }

    // The output can be read again, once the secrets are back in.
    let printed: toml::Table = text.parse().unwrap();
    assert!(printed.contains_key("limits"));
    let defaults = run(&["config", "print", "--defaults"], &[]);
    assert_eq!(defaults.stdout, tollgate::config::DEFAULT_TOML.as_bytes());
}

#[tokio::test]
async fn a_minted_token_is_accepted() {
    let gateway = gateway::start().await;
    let path = gateway.config.path().to_str().unwrap();
    let output =
        run(&["token", "mint", "-c", path, "--user", "u1", "--claim", "isCreator=true"], &[]);
    let token = String::from_utf8(output.stdout).unwrap();
    Client::connect_with(&gateway, "/ws", token.trim()).await;
}

/// Minted tokens had no `iss` and no `aud`, whatever the configuration asked for.
#[test]
fn field_d11_minted_tokens_pass_their_own_configuration() {
    let key = |more: &str| format!("[[auth.keys]]\nsecret = \"{SECRET}\"\n{more}");
    let retired = format!(
        "[[auth.keys]]\nsecret = \"{}\"\nvalid_until = \"2020-01-01T00:00:00Z\"\n{}",
        "old-".repeat(12),
        key("kid = \"new\"\n")
    );
    let oct = r#"[[auth.keys]]
jwk = '{"kty":"oct","kid":"j","alg":"HS512","k":"kX9vQ2mZr7Tn4Wb8Lc1Ys6Hd3Jf5Pg0RaUeNiOoVtAkX9vQ2mZr7Tn4Wb8Lc1Ys6"}'
"#;

    for (what, config, more) in [
        ("nothing asked", key(""), vec![]),
        (
            "issuer, audience",
            format!("[auth]\nissuer = [\"a\", \"b\"]\naudience = [\"x\"]\n{}", key("")),
            vec![],
        ),
        ("a path", format!("[auth]\nuser_claim = [\"data.user.id\"]\n{}", key("")), vec![]),
        (
            "another claim",
            format!("[auth]\nuser_claim = [\"uid\", \"email\"]\n{}", key("")),
            vec![],
        ),
        ("no end needed", format!("[auth]\nrequire_exp = false\n{}", key("")), vec![]),
        ("algorithms", key("algs = [\"HS512\"]\n"), vec![]),
        ("a chosen one", key("algs = [\"HS512\", \"HS384\"]\n"), vec!["--alg", "HS384"]),
        ("a kid", key("kid = \"k1\"\n"), vec!["--kid", "k1"]),
        ("a retired key before it", retired, vec![]),
        ("a JWK", oct.to_owned(), vec!["--kid", "j"]),
    ] {
        let file = file(&config);
        let path = file.path().to_str().unwrap();
        let args = [&["token", "mint", "-c", path, "--user", "u1"][..], &more].concat();
        let minted = run(&args, &[]);
        assert!(minted.status.success() && minted.stderr.is_empty(), "{what}: {}", stderr(&minted));

        let report = checked(path, &minted.stdout);
        assert_eq!(
            (&report["verdict"], &report["user"]),
            (&json!("accept"), &json!("u1")),
            "{what}: {report}"
        );
    }
}

/// The doctor's report on a token.
fn checked(config: &str, token: &[u8]) -> Value {
    let mut check = Command::new(BIN);
    check.args(["token", "check", "--json", "-c", config]);
    serde_json::from_slice(&run_with_input(&mut check, token).stdout).unwrap()
}

#[test]
fn what_cannot_be_minted_is_said() {
    let secret = |more: &str| format!("[[auth.keys]]\nsecret = \"{SECRET}\"\n{more}");
    let cookies = format!("[auth.session_cookie]\nenabled = true\nsecrets = [\"{SECRET}\"]\n");
    let public = "[[auth.keys]]\njwks_url = \"http://127.0.0.1:1/\"\n".to_owned();
    let retired = secret("valid_until = \"2020-01-01T00:00:00Z\"\n");

    for (config, more, part) in [
        (cookies, vec![], "session cookies only"),
        (public, vec![], "all configured keys are public"),
        (retired, vec![], "valid_until has passed"),
        (secret("kid = \"k1\"\n"), vec!["--kid", "k2"], "configured are k1"),
        (secret(""), vec!["--kid", "k2"], "none of the keys has one"),
        (secret(""), vec!["--alg", "HS111"], "the key supports HS256"),
        (secret(""), vec!["--alg", "RS256"], "not bound to that algorithm"),
        (secret(""), vec!["--claim", "x"], "name=value"),
        (secret(""), vec!["--expires-in", "soon"], "--expires-in"),
    ] {
        let file = file(&config);
        let path = file.path().to_str().unwrap();
        let args = [&["token", "mint", "-c", path, "--user", "u1"][..], &more].concat();
        let output = run(&args, &[]);
        assert!(!output.status.success() && output.stdout.is_empty(), "{part}");
        assert!(stderr(&output).contains(part), "{part}: {}", stderr(&output));
    }

    // A token that will be refused is minted all the same, with a warning.
    let file = file(&secret(""));
    let path = file.path().to_str().unwrap();
    for (more, reason) in [
        (["--claim", "exp=1"], "expired"),
        (["--expires-in", "0s"], "expired"),
        (["--claim", "iat=soon"], "claim_invalid"),
    ] {
        let args = [&["token", "mint", "-c", path, "--user", "u1"][..], &more].concat();
        let output = run(&args, &[]);
        assert!(output.status.success() && !output.stdout.is_empty());
        let said = stderr(&output);
        assert!(said.contains(&format!("refuses this token: {reason}")), "{said}");
    }

    let args = ["token", "mint", "-c", path, "--user", "u1", "--claim", "channel=room:1"];
    assert!(stderr(&run(&args, &[])).is_empty(), "a subscription token is one");
}

#[test]
fn fingerprints_are_shown_of_all_that_signs() {
    let decoded = "kX9vQ2mZr7Tn4Wb8Lc1Ys6Hd3Jf5Pg0RaUeNiOoVt+A=";
    let config = format!(
        "[auth.session_cookie]\nenabled = true\nsecrets = [\"{SECRET}\"]\n\
         [[auth.keys]]\nsecret = \"{decoded}\"\nencoding = \"base64\"\n\
         [[auth.keys]]\njwks_url = \"https://issuer.example/jwks?key=hidden\"\n"
    );
    let file = file(&config);
    let output = run(&["token", "fingerprint", "-c", file.path().to_str().unwrap()], &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    for part in [
        "auth.session_cookie, secret 1",
        "decoded (base64); fingerprint of its text",
        "issuer.example",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(![SECRET, decoded, "hidden"].iter().any(|secret| text.contains(secret)), "{text}");
}

#[test]
fn dev_stays_on_loopback() {
    let output = run(&["serve", "--dev", "--listen", "0.0.0.0:0"], &[]);
    assert_eq!(output.status.code(), Some(78));
    assert!(stderr(&output).contains("must be a loopback address"));
}

#[test]
fn help_names_every_command() {
    for (args, expected) in [
        (vec!["--help"], vec!["serve", "config", "token", "doctor"]),
        (vec!["serve", "--help"], vec!["--config", "--dev", "--listen"]),
        (vec!["token", "mint", "--help"], vec!["--user", "--expires-in", "--claim"]),
    ] {
        let output = run(&args, &[]);
        assert!(output.status.success());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        for part in expected {
            assert!(text.contains(part), "{args:?}: {part}");
        }
    }
}

#[test]
fn an_address_that_is_taken_is_said_to_be() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let good = file(&config(""));
    let path = good.path().to_str().unwrap();
    let output = run(&["serve", "-c", path, "--listen", &address], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains(&format!("cannot listen on {address}")),
        "{}",
        stderr(&output)
    );
}
