//! The command line as its user meets it.

use std::io::Write as _;
use std::process::{Command, Output};

use super::client::Client;
use super::gateway::{BIN, Gateway, SECRET, config};

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
    for secret in [SECRET, "hunter22", super::gateway::API_KEY] {
        assert!(!text.contains(secret), "{text}");
    }
    // What is printed can be read again, once the secrets are back in.
    let printed: toml::Table = text.parse().unwrap();
    assert!(printed.contains_key("limits"));
    let defaults = run(&["config", "print", "--defaults"], &[]);
    assert_eq!(defaults.stdout, tollgate::config::DEFAULT_TOML.as_bytes());
}

#[tokio::test]
async fn a_minted_token_is_accepted() {
    let gateway = Gateway::start().await;
    let path = gateway.config.path().to_str().unwrap();
    let output =
        run(&["token", "mint", "-c", path, "--user", "u1", "--claim", "isCreator=true"], &[]);
    let token = String::from_utf8(output.stdout).unwrap();
    Client::connect_with(&gateway, "/ws", token.trim()).await;
}

#[test]
fn dev_stays_on_loopback() {
    let output = run(&["serve", "--dev", "--listen", "0.0.0.0:0"], &[]);
    assert_eq!(output.status.code(), Some(78));
    assert!(stderr(&output).contains("loopback only"));
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
