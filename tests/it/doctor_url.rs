//! `tollgate doctor` on a real gateway, behind a real nginx that is set up well, or in one of the
//! ways that people get wrong.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tollgate_support::gateway::Gateway;
use tollgate_support::http::API_KEY;
use tollgate_support::nginx::Nginx;
use tollgate_support::process::free_port;
use tollgate_support::proxy::{Mode, Proxy};
use tollgate_support::tokens::{SECRET, now, sign, token};

use super::gateway::{self, BIN};

/// A location that passes everything, with a gateway's address for GATEWAY.
const SOUND: &str = "location / {
    proxy_pass http://GATEWAY;
    proxy_http_version 1.1;
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Connection $connection_upgrade;
    proxy_set_header Host $http_host;
    proxy_buffering off;
    proxy_read_timeout 75s;
}";

/// Starts nginx with these lines in its server block. `tls` is the path of its certificate and key,
/// without the endings.
pub async fn nginx(server: &str, tls: Option<&str>) -> Nginx {
    let (listen, files) = match tls {
        Some(path) => {
            (" ssl", format!("ssl_certificate {path}.pem; ssl_certificate_key {path}.key;"))
        }
        None => ("", String::new()),
    };
    let main = "master_process off; events { worker_connections 256; }";
    Nginx::start(main, |_, address| {
        format!(
            "access_log off;
            map $http_upgrade $connection_upgrade {{ default upgrade; '' close; }}
            server {{ listen {address}{listen}; {files} {server} }}"
        )
    })
    .await
}

/// Starts nginx in front of a gateway, whose address replaces GATEWAY.
async fn nginx_before(gateway: &Gateway, server: &str) -> Nginx {
    nginx(&server.replace("GATEWAY", &gateway.public), None).await
}

fn ws_url(nginx: &Nginx) -> String {
    format!("ws://{}/ws", nginx.address)
}

/// What the doctor said.
struct Said {
    code: Option<i32>,
    text: String,
    report: Value,
}

impl Said {
    /// Steps that are wrong, with the cause.
    fn wrong(&self) -> Vec<(&str, &str)> {
        let steps = self.report["steps"].as_array().unwrap_or_else(|| panic!("{}", self.text));
        let wrong = steps.iter().filter(|step| step["result"] == "wrong");
        wrong.map(|s| (s["step"].as_str().unwrap(), s["cause"].as_str().unwrap())).collect()
    }

    fn result(&self, name: &str) -> &str {
        self.step(name)["result"].as_str().unwrap()
    }

    fn step(&self, name: &str) -> &Value {
        let mut steps = self.report["steps"].as_array().unwrap().iter();
        steps.find(|s| s["step"] == name).unwrap_or_else(|| panic!("{name} in {}", self.text))
    }
}

/// Runs the doctor on a thread of its own, so that this test's servers go on.
async fn run(args: &[&str], env: &[(&str, &str)]) -> Said {
    let mut command = Command::new(BIN);
    command.arg("doctor").args(args).env_remove("TOLLGATE_API_KEY").envs(env.iter().copied());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let report = serde_json::from_str(&text).unwrap_or(Value::Null);
    Said { code: output.status.code(), text, report }
}

/// Runs the doctor on a URL with a token, without idling unless `rest` asks for it.
async fn look(url: &str, token: &str, rest: &[&str]) -> Said {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "{token}").unwrap();
    let path = file.path().to_str().unwrap();
    let mut args = vec!["--json", "--url", url, "--token-file", path];
    if !rest.contains(&"--idle") {
        args.extend(["--idle", "0s"]);
    }
    args.extend(rest);
    let said = run(&args, &[]).await;
    for part in token.split('.').filter(|part| part.len() > 12) {
        assert!(!said.text.contains(&part[4..12]), "the token is printed: {}", said.text);
    }
    said
}

/// Certificates for a test, in a folder: `NAME.pem` and `NAME.key` by `ca.pem`.
pub struct Certificates(TempDir);

impl Certificates {
    pub fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        folder.openssl(
            &[],
            &format!("req -x509 {NEW} -days 90 -keyout ca.key -out ca.pem -subj /CN=ca"),
        );
        folder
    }

    fn openssl(&self, before: &[&str], arguments: &str) {
        let words: Vec<_> =
            before.iter().copied().chain(["openssl"]).chain(arguments.split(' ')).collect();
        let made = Command::new(words[0]).args(&words[1..]).current_dir(self.0.path()).output();
        let made = made.expect("openssl and faketime are needed: `make deps` installs them");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }

    /// `before`: a command that goes before openssl.
    fn issue(&self, name: &str, alternative: &str, days: u32, before: &[&str]) -> String {
        self.openssl(&[], &format!(
            "req {NEW} -keyout {name}.key -out {name}.csr -subj /CN={name} -addext subjectAltName={alternative}"
        ));
        self.openssl(before, &format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days {days} -out {name}.pem \
             -copy_extensions copy"
        ));
        self.path(name)
    }

    /// A self-signed certificate for this machine, which is its own authority.
    pub fn self_signed(&self) -> String {
        self.openssl(
            &[],
            &format!(
                "req -x509 {NEW} -days 90 -keyout self.key -out self.pem -subj /CN=self \
                 -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:TRUE"
            ),
        );
        self.path("self")
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }
}

const NEW: &str = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";

#[tokio::test]
async fn a_sound_deployment_is_sound() {
    let pings = "[server]\nallowed_origins = [\"https://app.example.com\"]\n\
                 [limits]\nping_interval = \"1s\"\n";
    let gateway = gateway::with(pings).await;

    let certificates = Certificates::new();
    let server = certificates.issue("server", "DNS:localhost,IP:127.0.0.1", 90, &[]);
    let nginx = nginx(&SOUND.replace("GATEWAY", &gateway.public), Some(&server)).await;
    let url = format!("wss://{}/ws", nginx.address);

    let mut key = tempfile::NamedTempFile::new().unwrap();
    writeln!(key, "{API_KEY}").unwrap();
    let ca = certificates.path("ca.pem");
    let key = key.path().to_str().unwrap();
    let rest = ["--ca", &ca, "--origin", "https://app.example.com", "--channel", "post:1"];
    let rest = [&rest[..], &["--api-key-file", key, "--idle", "3s"]].concat();

    let said = look(&url, &token("u1"), &rest).await;
    assert_eq!((said.wrong(), said.code), (vec![], Some(0)), "{}", said.text);
    let steps: Vec<_> =
        said.report["steps"].as_array().unwrap().iter().map(|s| &s["result"]).collect();
    assert_eq!(steps, vec!["ok"; 14], "{}", said.text);

    for (step, part) in [
        ("tls", "TLSv1_2"),
        ("upgrade", "nginx"),
        ("token", "user u1"),
        ("subscribe", "post:1"),
        ("publish", "received after"),
        ("idle", "pings from the gateway, answered: "),
        ("sse_idle", "heartbeats: "),
    ] {
        let found = said.step(step)["found"].as_str().unwrap();
        assert!(found.contains(part), "{step}: {found}");
    }

    // Without `--ca` the authority is unknown: it is not one of the system's.
    let rest = ["--idle", "0s"];
    let said = look(&url, &token("u1"), &rest).await;
    assert_eq!((said.wrong(), said.code), (vec![("tls", "chain_incomplete")], Some(1)));
}

/// What people get wrong in a proxy, and what the doctor calls it. The token is never printed.
#[tokio::test]
async fn broken_proxies_are_named() {
    let gateway = gateway::start().await;
    let nothing = free_port().to_string();
    let sound = |from: &str, to: &str| {
        assert!(SOUND.contains(from), "{from}");
        SOUND.replace(from, to)
    };
    let with = |line: &str| sound("proxy_buffering off;", &format!("proxy_buffering off; {line}"));
    let upgrade = "proxy_set_header Upgrade $http_upgrade;";

    let cases: Vec<(String, &[(&str, &str)])> = vec![
        (SOUND.to_owned(), &[]),
        (sound(upgrade, ""), &[("upgrade", "upgrade_dropped")]),
        (sound("proxy_http_version 1.1;", ""), &[("upgrade", "http_1_0")]),
        ("location / { proxy_pass http://GATEWAY; }".to_owned(), &[("upgrade", "http_1_0")]),
        (
            sound("location /", "location /elsewhere"),
            &[("upgrade", "path_unknown"), ("sse", "sse_answer")],
        ),
        (
            sound("http://GATEWAY", "http://GATEWAY/realtime/"),
            &[("upgrade", "path_changed"), ("sse", "sse_answer")],
        ),
        (sound("http://GATEWAY", "http://GATEWAY$uri"), &[("query", "query_dropped")]),
        (
            "location / { return 301 https://app.example.com$request_uri; }".to_owned(),
            &[("upgrade", "redirected"), ("sse", "sse_answer")],
        ),
        (
            "location / { default_type text/html; return 200 '<!doctype html>'; }".to_owned(),
            &[("upgrade", "other_application"), ("sse", "sse_answer")],
        ),
        (
            "location / { return 404 '$http_authorization in $request_uri'; }".to_owned(),
            &[("upgrade", "path_unknown"), ("sse", "sse_answer")],
        ),
        (
            sound("GATEWAY", &format!("127.0.0.1:{nothing}")),
            &[("upgrade", "gateway_away"), ("sse", "sse_answer")],
        ),
        ("deny all;".to_owned() + SOUND, &[("upgrade", "proxy_forbids"), ("sse", "sse_answer")]),
        (
            with("auth_basic login; auth_basic_user_file /dev/null;"),
            &[("upgrade", "proxy_login"), ("sse", "sse_answer")],
        ),
        (
            with("proxy_set_header Authorization '';"),
            &[("carriers", "authorization_dropped"), ("sse", "sse_refused")],
        ),
        (
            with("proxy_set_header Sec-WebSocket-Protocol '';"),
            &[("carriers", "subprotocol_dropped")],
        ),
        (with("proxy_set_header Sec-WebSocket-Key '';"), &[("upgrade", "headers_dropped")]),
        (with("proxy_hide_header Sec-WebSocket-Accept;"), &[("upgrade", "accept_missing")]),
        (
            "location = /sse { proxy_pass http://GATEWAY; proxy_ignore_headers X-Accel-Buffering; }"
                .to_owned() + SOUND,
            &[("sse", "sse_buffered")],
        ),
        (
            with("gzip on; gzip_types text/event-stream; gzip_min_length 0; gzip_proxied any;"),
            &[("sse", "sse_compressed")],
        ),
    ];

    for (server, expected) in cases {
        is_named(&gateway, &server, expected).await;
    }
}

/// The doctor finds these mistakes behind this nginx, and no others.
async fn is_named(gateway: &Gateway, server: &str, expected: &[(&str, &str)]) {
    let nginx = nginx_before(gateway, server).await;
    let said = look(&ws_url(&nginx), &token("u1"), &["--timeout", "6s"]).await;
    assert_eq!(said.wrong(), expected, "{server}\n{}", said.text);
    assert_eq!(said.code, Some(i32::from(!expected.is_empty())), "{server}");
    for (step, _) in expected {
        assert!(said.step(step)["fix"].as_str().is_some_and(|fix| fix.len() > 10));
    }
    assert_eq!(server.contains("$http_authorization"), said.text.contains("[secret]"));
}

#[tokio::test]
async fn a_short_time_out_is_found_by_idling() {
    let gateway = gateway::start().await;
    let nginx = nginx_before(&gateway, &SOUND.replace("75s", "5s")).await;
    let said = look(&ws_url(&nginx), &token("u1"), &["--idle", "9s"]).await;
    assert_eq!(said.wrong(), [("idle", "idle_cut"), ("sse_idle", "sse_cut")], "{}", said.text);
    for step in ["idle", "sse_idle"] {
        let found = said.step(step)["found"].as_str().unwrap();
        assert!(["after 4.", "after 5."].iter().any(|part| found.contains(part)), "{found}");
    }
}

#[tokio::test]
async fn field_d4_a_self_signed_certificate_that_is_given_is_good() {
    let gateway = gateway::start().await;
    let certificate = Certificates::new();
    let server = certificate.self_signed();
    let nginx = nginx(&SOUND.replace("GATEWAY", &gateway.public), Some(&server)).await;
    let url = format!("wss://{}/ws", nginx.address);
    let said = look(&url, &token("u1"), &["--ca", &format!("{server}.pem")]).await;
    assert!(!said.wrong().iter().any(|(step, _)| *step == "tls"), "{}", said.text);
    assert!(said.report["steps"].as_array().unwrap().len() > 3, "{}", said.text);
}

#[tokio::test]
async fn certificates_are_looked_at() {
    let gateway = gateway::start().await;
    let certificates = Certificates::new();
    let here = "DNS:localhost,IP:127.0.0.1";
    let old = ["faketime", "2020-01-01 00:00:00"];
    let later = ["faketime", "2099-01-01 00:00:00"];
    let ca = certificates.path("ca.pem");

    for (server, ca, expected) in [
        (
            certificates.issue("other", "DNS:other.example.com", 90, &[]),
            Some(&ca),
            "certificate_name",
        ),
        (certificates.issue("old", here, 90, &old), Some(&ca), "certificate_expired"),
        (certificates.issue("later", here, 90, &later), Some(&ca), "certificate_not_yet"),
        (certificates.issue("ends", here, 3, &[]), Some(&ca), "certificate_ends"),
        (certificates.issue("good", here, 90, &[]), None, "chain_incomplete"),
        (certificates.self_signed(), None, "self_signed"),
    ] {
        let nginx = nginx(&SOUND.replace("GATEWAY", &gateway.public), Some(&server)).await;
        let url = format!("wss://{}/ws", nginx.address);
        let rest: Vec<_> = ca.iter().flat_map(|ca| ["--ca", ca.as_str()]).collect();
        let said = look(&url, &token("u1"), &rest).await;
        assert_eq!(said.wrong(), [("tls", expected)], "{}", said.text);

        // Nothing is sent to a server without a good certificate; one that ends soon is good.
        let goes_on = said.report["steps"].as_array().unwrap().len() > 3;
        assert_eq!(goes_on, expected == "certificate_ends", "{}", said.text);

        // The URL says no TLS, where the server has it.
        let said = look(&ws_url(&nginx), &token("u1"), &[]).await;
        assert!(said.wrong().contains(&("upgrade", "tls_expected")), "{}", said.text);
    }

    // The chain is complete, but its authority is unknown.
    let good = std::fs::read_to_string(certificates.path("good.pem")).unwrap();
    let chain = good + &std::fs::read_to_string(&ca).unwrap();
    std::fs::write(certificates.path("good.pem"), chain).unwrap();
    let server = certificates.path("good");
    let nginx = nginx(&SOUND.replace("GATEWAY", &gateway.public), Some(&server)).await;
    let url = format!("wss://{}/ws", nginx.address);
    assert_eq!(look(&url, &token("u1"), &[]).await.wrong(), [("tls", "unknown_authority")]);

    // The URL says TLS, where the server has none.
    let url = format!("wss://{}/ws", gateway.public);
    assert_eq!(look(&url, &token("u1"), &["--ca", &ca]).await.wrong(), [("tls", "not_tls")]);
}

#[tokio::test]
async fn a_refused_token_says_why() {
    let foreign = sign(
        &json!({"sub": "u1", "exp": now() + 3600}),
        "another secret of the same length 0123456",
    );
    let ended = sign(&json!({"sub": "u1", "exp": now() - 10}), SECRET);

    for reject in ["close", "http"] {
        let gateway = gateway::with(&format!("[auth]\nreject = \"{reject}\"\n")).await;
        let url = format!("ws://{}/ws", gateway.public);
        let said = look(&url, &token("u1"), &[]).await;
        assert_eq!(said.wrong(), [], "{}", said.text);

        let said = look(&url, &foreign, &[]).await;
        assert_eq!(
            said.wrong(),
            [("token", "token_refused"), ("sse", "sse_refused")],
            "{}",
            said.text
        );
        let step = said.step("token");
        assert!(step["found"].as_str().unwrap().contains("bad_signature"), "{step}");
        assert!(step["fix"].as_str().unwrap().contains("tollgate token check"), "{step}");

        let wrong =
            [("token", "token_refused"), ("sse", "sse_refused"), ("clock", "token_expired")];
        assert_eq!(look(&url, &ended, &[]).await.wrong(), wrong);
    }
}

#[tokio::test]
async fn origins_channels_and_keys_are_tried() {
    let gateway = gateway::start().await;
    let other = gateway::start().await;
    let nginx = nginx_before(&gateway, &SOUND.replace("$http_host", "gateway")).await;
    let own = format!("http://{}", nginx.address);
    let api = format!("http://{}", other.public);
    let mut good = tempfile::NamedTempFile::new().unwrap();
    let mut bad = tempfile::NamedTempFile::new().unwrap();
    writeln!(good, "{API_KEY}").unwrap();
    writeln!(bad, "not-a-key-of-anybody").unwrap();
    let (good, bad) = (good.path().to_str().unwrap(), bad.path().to_str().unwrap());
    let away = format!("http://127.0.0.1:{}/api", free_port());
    let elsewhere = format!("http://{}/other", other.public);

    for (rest, expected) in [
        (vec!["--origin", "https://evil.example"], Some(("origin", "origin_refused"))),
        (vec!["--origin", &own], Some(("origin", "host_changed"))),
        (vec!["--origin", "http://127.0.0.1:1"], Some(("origin", "origin_port"))),
        (vec!["--channel", "user:u2"], Some(("subscribe", "subscribe_refused"))),
        (vec!["--api-key-file", good], None),
        (vec!["--api-key-file", bad], Some(("publish", "api_key_refused"))),
        (vec!["--api-key-file", good, "--api", &away], Some(("publish", "api_away"))),
        (vec!["--api-key-file", good, "--api", &elsewhere], Some(("publish", "api_other"))),
        (vec!["--api-key-file", good, "--api", &api], Some(("publish", "event_lost"))),
    ] {
        let rest = [&rest[..], &["--timeout", "6s"]].concat();
        let said = look(&ws_url(&nginx), &token("u1"), &rest).await;
        assert_eq!(said.wrong(), Vec::from_iter(expected), "{rest:?}\n{}", said.text);
        for secret in [API_KEY, "not-a-key-of-anybody"] {
            assert!(!said.text.contains(secret), "{}", said.text);
        }
    }
}

/// The locations of the nginx of `docs/ingress.md`.
fn documented() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("docs/ingress.md")).unwrap();
    let begin = text.find("    location ").unwrap();
    let end = begin + text[begin..].find("\n}\n").unwrap();
    let locations = text[begin..end].replace("http://tollgate", "http://GATEWAY");
    assert!(locations.contains("GATEWAY") && locations.contains("return 404"), "{locations}");
    locations.replace("$tollgate_connection", "$connection_upgrade")
}

/// Starts another application, which accepts and keeps whatever it is sent.
async fn application() -> (String, Arc<Mutex<Vec<u8>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let kept = Arc::<Mutex<Vec<u8>>>::default();
    let keeps = Arc::clone(&kept);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let n = stream.read(&mut request).await.unwrap_or(0);
            keeps.lock().unwrap().extend_from_slice(&request[..n]);
            let answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 13\r\n\r\n{\"result\":{}}";
            let _ = stream.write_all(answer).await;
        }
    });
    (address, kept)
}

#[tokio::test]
async fn field_e1_the_documented_proxy_passes_and_the_key_goes_to_a_gateway_only() {
    let gateway = gateway::start().await;
    let mut key = tempfile::NamedTempFile::new().unwrap();
    writeln!(key, "{API_KEY}").unwrap();
    let key = ["--api-key-file", key.path().to_str().unwrap()];
    let own = format!("http://{}", gateway.public);

    let nginx = nginx_before(&gateway, &documented()).await;
    let said = look(&ws_url(&nginx), &token("u1"), &key).await;
    assert_eq!((said.wrong(), said.result("publish")), (vec![], "skipped"), "{}", said.text);
    assert!(said.step("publish")["found"].as_str().unwrap().contains("--api"), "{}", said.text);
    let said = look(&ws_url(&nginx), &token("u1"), &[&key[..], &["--api", &own]].concat()).await;
    assert_eq!((said.wrong(), said.result("publish")), (vec![], "ok"), "{}", said.text);

    let (address, kept) = application().await;
    let beside = format!("{}\nlocation /api/ {{ proxy_pass http://{address}; }}", documented());
    let nginx = nginx_before(&gateway, &beside).await;
    let said = look(&ws_url(&nginx), &token("u1"), &key).await;
    assert_eq!((said.wrong(), said.result("publish")), (vec![], "skipped"), "{}", said.text);
    let named = format!("http://{address}");
    let said = look(&ws_url(&nginx), &token("u1"), &[&key[..], &["--api", &named]].concat()).await;
    assert_eq!(said.wrong(), [("publish", "api_other")], "{}", said.text);
    let kept = String::from_utf8(kept.lock().unwrap().clone()).unwrap();
    assert_eq!(kept.matches("POST /api/publish").count(), 2, "{kept}");
    assert!(!kept.contains(API_KEY), "{kept}");
}

#[tokio::test]
async fn field_e2_a_page_of_another_port_is_told_so() {
    let gateway = gateway::start().await;
    let url = format!("ws://{}/ws", gateway.public);
    let said = look(&url, &token("u1"), &["--origin", "http://127.0.0.1:5173"]).await;
    assert_eq!(said.wrong(), [("origin", "origin_port")], "{}", said.text);
    let found = said.step("origin")["found"].as_str().unwrap();
    let port = gateway.public.rsplit(':').next().unwrap();
    assert!(found.contains("port 5173") && found.contains(port), "{found}");
    let own = format!("http://{}", gateway.public);
    assert_eq!(look(&url, &token("u1"), &["--origin", &own]).await.wrong(), []);
}

/// Without a token the doctor can look at less, and says so.
#[tokio::test]
async fn without_a_token_it_does_what_it_can() {
    let gateway = gateway::start().await;
    let url = format!("ws://{}/ws", gateway.public);
    let said = run(&["--json", "--url", &url], &[]).await;
    assert_eq!((said.wrong(), said.code), (vec![], Some(0)), "{}", said.text);
    for step in ["upgrade", "query", "carriers", "clock"] {
        assert_eq!(said.result(step), "ok", "{step}");
    }
    for step in ["tls", "origin", "token", "subscribe", "publish", "sse", "idle", "sse_idle"] {
        assert_eq!(said.result(step), "skipped", "{step}");
    }

    // A gateway that needs no token opens a session.
    let anonymous = gateway::with("[auth]\nanonymous = true\n").await;
    let url = format!("ws://{}/ws", anonymous.public);
    let said = run(&["--json", "--url", &url, "--idle", "1s"], &[]).await;
    assert_eq!((said.wrong(), said.result("idle")), (vec![], "ok"), "{}", said.text);

    // The report as people read it.
    let said = run(&["--url", &url, "--idle", "0s", "--origin", "https://evil.example"], &[]).await;
    for part in
        ["ok       dns", "WRONG    origin", "fix: Add the exact origin to `server.allowed_origins`"]
    {
        assert!(said.text.contains(part), "{part} in\n{}", said.text);
    }
}

#[tokio::test]
async fn what_cannot_be_reached_and_what_cannot_be_tried() {
    let nothing = format!("ws://127.0.0.1:{}/ws", free_port());
    for (url, expected) in [
        ("ws://no-such-host.invalid/ws", ("dns", "name_unknown")),
        (nothing.as_str(), ("tcp", "tcp_refused")),
    ] {
        let said = run(&["--json", "--url", url], &[]).await;
        assert_eq!((said.wrong(), said.code), (vec![expected], Some(1)), "{}", said.text);
    }

    let empty = tempfile::NamedTempFile::new().unwrap();
    let empty = empty.path().to_str().unwrap();
    for args in [
        vec!["--url", "ftp://host/ws"],
        vec!["--url", "ws://host/ws?token=x"],
        vec!["--url", "wss://host/ws", "--ca", empty],
        vec!["--url", "ws://host/ws", "--ca", "/no/such/file"],
        vec!["--url", "ws://host/ws", "--token-file", "/no/such/file"],
        vec!["--url", "ws://host/ws", "--token-file", empty],
        vec!["--url", "ws://host/ws", "--idle", "soon"],
        vec!["--url", "ws://host/ws", "--api", "http://host"],
    ] {
        let said = run(&[&args[..], &["--json"]].concat(), &[]).await;
        assert_eq!((said.code, &said.report["result"]), (Some(2), &json!("untried")), "{args:?}");
    }
}

/// Servers that are not even a broken proxy.
#[tokio::test]
async fn strange_servers_are_named() {
    for (answer, expected) in [
        ("", "closed"),
        ("SSH-2.0-OpenSSH\r\n", "not_http"),
        ("wait", "no_answer"),
        ("HTTP/1.0 400 Bad\r\n\r\n", "http_1_0"),
    ] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}/ws", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 4096]).await;
                if answer == "wait" {
                    tokio::spawn(async move { stream.read_to_end(&mut Vec::new()).await });
                } else {
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            }
        });

        let said = run(&["--json", "--url", &url, "--timeout", "1s"], &[]).await;
        server.abort();
        assert!(said.wrong().contains(&("upgrade", expected)), "{answer}: {}", said.text);
    }
}

/// A middlebox that forgets an idle connection tells neither end.
#[tokio::test]
async fn a_socket_that_went_deaf_is_found() {
    let gateway = gateway::start().await;
    let proxy = Proxy::start(gateway.public.clone()).await;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "{}", token("u1")).unwrap();
    let url = format!("ws://{}/ws", proxy.address);
    let mut child = Command::new(BIN)
        .args([
            "doctor",
            "--json",
            "--url",
            &url,
            "--idle",
            "2s",
            "--timeout",
            "2s",
            "--token-file",
        ])
        .arg(file.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();

    let mut progress = BufReader::new(child.stderr.take().unwrap()).lines();
    let first = tokio::task::spawn_blocking(move || progress.next().unwrap().unwrap());
    assert_eq!(first.await.unwrap(), "idle: 0 of 2 s");

    proxy.set(Mode::Blackhole);
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
    let output = output.await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let said =
        Said { code: output.status.code(), report: serde_json::from_str(&text).unwrap(), text };
    assert!(said.wrong().contains(&("idle", "idle_deaf")), "{}", said.text);
}

#[tokio::test]
async fn clocks_that_differ_are_found() {
    let found = ["x86_64", "aarch64"]
        .map(|arch| format!("/usr/lib/{arch}-linux-gnu/faketime/libfaketime.so.1"));
    let library = found.iter().find(|path| Path::new(path).exists());
    let library = library.expect("faketime is needed: `make deps` installs it");
    let gateway = gateway::start().await;
    let url = format!("ws://{}/ws", gateway.public);

    for (shift, expected) in [("+0", vec![]), ("+90", vec![("clock", "clock_skew")])] {
        let env = [
            ("LD_PRELOAD", library.as_str()),
            ("FAKETIME", shift),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ];
        let said = run(&["--json", "--url", &url, "--idle", "0s"], &env).await;
        assert_eq!(said.wrong(), expected, "{}", said.text);
    }
}
