//! Keys that change while the gateway runs: files, key sets and retired keys; and how the gateway
//! explains refused signatures.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustcrypto_jwt::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tollgate_support::client::Client;
use tollgate_support::eventually;
use tollgate_support::gateway::Gateway;
use tollgate_support::http::http;
use tollgate_support::process::{Process, free_port, run_with_input};
use tollgate_support::redis::Redis;
use tollgate_support::tokens::{SECRET, now, sign, token};

use super::gateway;
use super::upstream::Upstream;

/// A key pair made by openssl: PEM to sign with, JWK to publish.
struct Pair {
    pem: Vec<u8>,
    jwk: Value,
}

fn openssl(args: &[&str], input: &[u8]) -> Vec<u8> {
    let output = run_with_input(Command::new("openssl").args(args), input);
    assert!(output.status.success(), "openssl {args:?}");
    output.stdout
}

impl Pair {
    fn new(kid: &str) -> Self {
        let pem =
            openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"], b"");
        let spki = openssl(&["pkey", "-pubout", "-outform", "DER"], &pem);
        let (x, y) = spki[spki.len() - 64..].split_at(32);
        let b64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let jwk = json!({"kty": "EC", "crv": "P-256", "kid": kid, "use": "sig", "x": b64(x), "y": b64(y)});
        Self { pem, jwk }
    }

    fn token(&self, user: &str) -> String {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = self.jwk["kid"].as_str().map(str::to_owned);
        let key = EncodingKey::from_ec_pem(&self.pem).unwrap();
        rustcrypto_jwt::encode(&header, &json!({"sub": user, "exp": now() + 600}), &key).unwrap()
    }
}

fn set(pairs: &[&Pair]) -> Value {
    json!({"keys": pairs.iter().map(|p| &p.jwk).collect::<Vec<_>>()})
}

fn jwks_config(url: &str) -> String {
    format!(
        "[auth.jwks]\nrefresh = \"1s\"\nmin_interval = \"1s\"\ntimeout = \"10s\"\nmax_age = \"1h\"\n\
         [[auth.keys]]\njwks_url = \"{url}\"\n"
    )
}

#[tokio::test]
async fn a_key_set_is_fetched_refreshed_and_survives_an_outage() {
    let upstream = Upstream::start().await;
    let (first, second) = (Pair::new("k1"), Pair::new("k2"));
    upstream.answers(503, &json!({}));
    let mut gateway = gateway::with(&jwks_config(&format!("{}/jwks", upstream.url))).await;

    // A key set that was never fetched is the gateway's fault: the client may come back, and the
    // replica is not ready.
    assert_eq!(
        Client::refused(&gateway, &first.token("u1")).await,
        (1013, "keys_unavailable".to_owned())
    );
    eventually("why", || async {
        let (status, body) = gateway.get_admin("/readyz").await;
        (status == 503 && body.contains("status 503")).then_some(())
    })
    .await;
    upstream.answers(200, &set(&[&first]));
    gateway.ready().await;
    drop(Client::connect_with(&gateway, "/ws", &first.token("u1")).await);

    // A new key is found by its kid before the next refresh, or by the refresh; either way at once.
    upstream.answers(200, &set(&[&first, &second]));
    eventually("the new key", || async {
        (refused_or_ok(&gateway, &second.token("u2")).await == "ok").then_some(())
    })
    .await;

    // An outage keeps the known keys.
    for (status, body) in [(500, "oops"), (200, "not json"), (200, "{}")] {
        upstream.answers_text(status, body);
        let before = upstream.count();
        eventually("a failed fetch", || async { (upstream.count() > before + 1).then_some(()) })
            .await;
        drop(Client::connect_with(&gateway, "/ws", &second.token("u2")).await);
    }
    gateway.logged("cannot fetch the key set").await;
    assert_eq!(gateway.get_admin("/readyz").await.0, 200, "an outage keeps it ready");

    // A withdrawn key is refused.
    upstream.answers(200, &set(&[&second]));
    eventually("the withdrawal", || async {
        (refused_or_ok(&gateway, &first.token("u1")).await == "kid_unknown").then_some(())
    })
    .await;
    assert_eq!(refused_or_ok(&gateway, &second.token("u2")).await, "ok");
    assert_eq!(refused_or_ok(&gateway, &token("u1")).await, "alg_not_allowed");
}

async fn refused_or_ok(gateway: &Gateway, token: &str) -> String {
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str())];
    let mut client = Client::open(&gateway.public, "/ws", &headers).await.unwrap();
    client.send(json!({"type": "ping"})).await;
    let (code, reason, before) = match client.try_next().await {
        Some(message) if message["type"] == "connected" => return "ok".to_owned(),
        _ => client.closed().await,
    };
    assert!(before.is_empty() && (code == 4401 || code == 1013), "{code}");
    reason
}

/// A3: unknown kids do not make the gateway fetch more often than `min_interval`.
#[tokio::test]
async fn a3_unknown_kids_fetch_at_most_once_per_interval() {
    let upstream = Upstream::start().await;
    let pair = Pair::new("k1");
    upstream.answers(200, &set(&[&pair]));
    let config = jwks_config(&upstream.url)
        .replace("refresh = \"1s\"", "refresh = \"1h\"")
        .replace("min_interval = \"1s\"", "min_interval = \"1h\"");
    let gateway = gateway::with(&config).await;
    gateway.ready().await;

    let header =
        |kid: &str| URL_SAFE_NO_PAD.encode(json!({"alg": "ES256", "kid": kid}).to_string());
    for i in 0..50 {
        let kid = if i == 0 { "../../etc/passwd".to_owned() } else { format!("k{}", i + 1) };
        let token = format!("{}.e30.{}", header(&kid), URL_SAFE_NO_PAD.encode([7; 64]));
        assert_eq!(Client::refused(&gateway, &token).await, (4401, "kid_unknown".to_owned()));
    }
    assert_eq!(upstream.count(), 1, "only the fetch at the start");

    // A4: nothing that a token's header names is fetched.
    let header = json!({
        "alg": "ES256", "kid": "k1", "jku": upstream.url, "x5u": upstream.url, "jwk": pair.jwk,
    });
    let forged = format!(
        "{}.e30.{}",
        URL_SAFE_NO_PAD.encode(header.to_string()),
        URL_SAFE_NO_PAD.encode([7; 64])
    );
    assert_eq!(Client::refused(&gateway, &forged).await, (4401, "bad_signature".to_owned()));
    assert_eq!(upstream.count(), 1);
}

/// A key set behind TLS: trusted by `ca_file`, refused without it.
#[tokio::test]
async fn a_key_set_over_tls_needs_a_trusted_certificate() {
    key_set_over_tls("basicConstraints=critical,CA:FALSE").await;
}

/// The same with a certificate that calls itself an authority, as `openssl req -x509` makes it.
#[tokio::test]
async fn field_d4_a_key_set_with_a_self_signed_certificate_is_trusted() {
    key_set_over_tls("basicConstraints=critical,CA:TRUE").await;
}

async fn key_set_over_tls(constraints: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let subject = [
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-addext",
        constraints,
    ];
    let ec = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ];

    let (key, cert) = (path("key.pem"), path("cert.pem"));
    openssl(&[&ec[..], &["-keyout", &key, "-out", &cert], &subject].concat(), b"");
    let pair = Pair::new("k1");
    std::fs::write(path("jwks.json"), set(&[&pair]).to_string()).unwrap();

    let port = free_port();
    let mut server = Command::new("openssl");
    server.args(["s_server", "-WWW", "-quiet", "-accept", &format!("127.0.0.1:{port}")]);
    server.args(["-key", &key, "-cert", &cert]).current_dir(folder.path());
    server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _server = Process::spawn(&mut server);
    let url = format!("https://127.0.0.1:{port}/jwks.json");

    let trusting =
        jwks_config(&url).replace("[auth.jwks]", &format!("[auth.jwks]\nca_file = \"{cert}\""));
    let gateway = gateway::with(&trusting).await;
    gateway.ready().await;
    drop(Client::connect_with(&gateway, "/ws", &pair.token("u1")).await);

    let mut doubting = gateway::with(&jwks_config(&url)).await;
    doubting.logged("cannot fetch the key set").await;
    assert_eq!(Client::refused(&doubting, &pair.token("u1")).await.0, 1013);
}

/// Clients of a key come and go, and not one of them is refused.
async fn come_and_go(address: String, stop: Arc<AtomicBool>, connects: Arc<AtomicUsize>) {
    while !stop.load(Ordering::Relaxed) {
        let bearer = format!("Bearer {}", token("load"));
        let headers = [("authorization", bearer.as_str())];
        let mut client = Client::open(&address, "/ws", &headers).await.unwrap();
        assert_eq!(client.next().await["type"], "connected");
        connects.fetch_add(1, Ordering::Relaxed);
    }
}

/// A secret is mounted as Kubernetes does, where `..data` is swapped, under load. The old key is
/// good until its end, and then refused with its cause.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotating_a_secret_file_loses_no_socket() {
    let folder = tempfile::tempdir().unwrap();
    let mount = |version: &str, secret: &str| {
        let dir = folder.path().join(version);
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("jwt"), secret).unwrap();
        let link = folder.path().join("..data.tmp");
        std::os::unix::fs::symlink(version, &link).unwrap();
        std::fs::rename(&link, folder.path().join("..data")).unwrap();
    };

    let next = "the-next-secret-abcdefghijklmnopqrstuvwxyz";
    mount("v1", SECRET);
    let path = folder.path().join("..data/jwt");
    let retired_at = now() + 25;
    let config = |current: &str| {
        format!(
            "[limits]\nping_interval = \"1h\"\n[[auth.keys]]\n{current}\n[[auth.keys]]\nsecret = \"{SECRET}\"\nvalid_until = {}\n",
            humantime::format_rfc3339(
                std::time::UNIX_EPOCH + std::time::Duration::from_secs(retired_at)
            )
        )
    };
    let mut gateway = gateway::with(&config(&format!("secret_file = {path:?}"))).await;

    // Clients of the old key come and go all the while, and not one is refused.
    let (address, stop) = (gateway.public.clone(), Arc::new(AtomicBool::new(false)));
    let connects = Arc::new(AtomicUsize::new(0));
    let load = tokio::spawn(come_and_go(address, Arc::clone(&stop), Arc::clone(&connects)));
    let mut kept = Vec::new();
    for i in 0..20 {
        kept.push(Client::connect(&gateway, &format!("u{i}")).await);
    }

    // A bad new file keeps the old key in force, and shows in metric and health.
    mount("v2", "too short");
    gateway.metric_reaches("config_reloads_total{result=\"failed\"}", 1.0).await;
    assert!(gateway.get_admin("/readyz").await.1.contains("the secret has only 9 bytes"));
    drop(Client::connect(&gateway, "u1").await);

    mount("v3", next);
    let by_next = sign(&json!({"sub": "new", "exp": now() + 600}), next);
    eventually("the new secret", || async {
        (refused_or_ok(&gateway, &by_next).await == "ok").then_some(())
    })
    .await;
    assert!(
        gateway
            .get_admin("/readyz")
            .await
            .1
            .contains("\"configuration\":{\"error\":null,\"ok\":true}")
    );
    drop(Client::connect(&gateway, "old").await);

    // The load goes on for a while, with the next key in force.
    let more = connects.load(Ordering::Relaxed) + 20;
    eventually("the load goes on", || async {
        (connects.load(Ordering::Relaxed) > more).then_some(())
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    load.await.unwrap();
    assert!(now() < retired_at, "all of it before the old key's end");

    eventually("the old key's end", || async { (now() >= retired_at).then_some(()) }).await;
    assert_eq!(Client::refused(&gateway, &token("old")).await, (4401, "bad_signature".to_owned()));
    gateway.metric_reaches("auth_diagnoses_total{cause=\"secret_retired\"}", 1.0).await;
    gateway.logged("which was retired at").await;
    for client in &mut kept {
        client.nothing_came().await;
    }
}

/// While the fetch that a new `kid` needs was under way, other tokens with it were refused; and
/// during an outage an unknown `kid` was blamed on the token.
#[tokio::test]
async fn tokens_wait_for_the_fetch_that_they_need() {
    let upstream = Upstream::start().await;
    let (first, second, third) = (Pair::new("k1"), Pair::new("k2"), Pair::new("k3"));
    upstream.answers(200, &set(&[&first]));
    let config = jwks_config(&upstream.url).replace("refresh = \"1s\"", "refresh = \"1h\"");
    let gateway = Arc::new(gateway::with(&config).await);
    gateway.ready().await;

    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    upstream.answers(200, &set(&[&first, &second]));
    upstream.delays(std::time::Duration::from_millis(500));

    let connects: Vec<_> = (0..4u64)
        .map(|i| {
            let (gateway, token) = (Arc::clone(&gateway), second.token("u2"));
            tokio::spawn(async move {
                tokio::time::sleep(std::time::Duration::from_millis(100 * i)).await;
                refused_or_ok(&gateway, &token).await
            })
        })
        .collect();
    for connect in connects {
        assert_eq!(connect.await.unwrap(), "ok");
    }
    assert_eq!(upstream.count(), 2, "one fetch for all of them");

    upstream.answers(500, &json!({}));
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    assert_eq!(
        Client::refused(&gateway, &third.token("u3")).await,
        (1013, "keys_unavailable".to_owned())
    );
    assert_eq!(refused_or_ok(&gateway, &first.token("u1")).await, "ok");
}

/// A secret that a new configuration names may be mounted later. It was never looked for again.
#[tokio::test]
async fn a_refused_configuration_is_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("later");
    let gateway = gateway::start().await;
    let text = std::fs::read_to_string(gateway.config.path()).unwrap();
    gateway.reconfigure(&format!("{text}\n[[auth.keys]]\nsecret_file = {path:?}\n"));
    gateway.metric_reaches("config_reloads_total{result=\"failed\"}", 1.0).await;
    assert!(gateway.get_admin("/readyz").await.1.contains("cannot be read"));

    let later = "a-secret-that-is-mounted-later-0123456789";
    std::fs::write(&path, later).unwrap();
    let token = sign(&json!({"sub": "u1", "exp": now() + 600}), later);
    eventually("the secret", || async {
        (refused_or_ok(&gateway, &token).await == "ok").then_some(())
    })
    .await;
    assert_eq!(gateway.metric("config_reloads_total{result=\"failed\"}").await, 1.0, "told once");
}

/// `token check` fetches the key sets as the gateway would.
#[tokio::test]
async fn token_check_fetches_key_sets() {
    let upstream = Upstream::start().await;
    let pair = Pair::new("k1");
    upstream.answers(200, &set(&[&pair]));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("t.toml");
    std::fs::write(&file, jwks_config(&upstream.url)).unwrap();

    let check = |token: String| {
        let file = file.clone();
        tokio::task::spawn_blocking(move || {
            let mut check = Command::new(gateway::BIN);
            check.args(["token", "check", "--json", "--config"]).arg(file);
            let output = run_with_input(&mut check, token.as_bytes());
            serde_json::from_slice::<Value>(&output.stdout).unwrap()
        })
    };

    assert_eq!(check(pair.token("u1")).await.unwrap()["verdict"], "accept");
    upstream.answers(503, &json!({}));
    let report = check(pair.token("u1")).await.unwrap();
    assert_eq!(report["reason"], "keys_unavailable");
    assert!(report["warnings"][0].as_str().unwrap().contains("status 503"), "{report}");
}

/// The doctor in the running gateway: sampled, counted, logged once, and whole on request.
#[tokio::test]
async fn refused_signatures_are_explained_in_metric_and_log() {
    let mut gateway = gateway::start().await;
    let wrong = sign(&json!({"sub": "u1", "exp": now() + 60}), "your-secret-key");
    for _ in 0..5 {
        assert_eq!(Client::refused(&gateway, &wrong).await, (4401, "bad_signature".to_owned()));
    }
    assert_eq!(gateway.metric("auth_failures_total{reason=\"bad_signature\"}").await, 5.0);
    gateway.metric_reaches("auth_diagnoses_total{cause=\"secret_default\"}", 1.0).await;
    let line = gateway.logged("cause=\"secret_default\"").await;
    assert!(line.contains("the issuer did not load its secret"), "{line}");
    assert!(!gateway.log().contains(&wrong[wrong.len() - 20..]), "no token in the log");

    let request = |token: &str| {
        format!(
            "POST /debug/token/check HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{token}",
            token.len()
        )
    };
    let (status, body) = http(&gateway.admin, &request(&wrong)).await;
    let report: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (status, &report["cause"], &report["side"]),
        (200, &json!("secret_default"), &json!("issuer"))
    );
    let (_, body) = http(&gateway.admin, &request(&token("u1"))).await;
    assert!(body.contains("\"verdict\":\"accept\""), "{body}");

    // The check is not on the public listener.
    assert_eq!(http(&gateway.public, &request(&wrong)).await.0, 404);
    assert!(gateway.metric("key_info{").await >= 1.0);
}

/// The issuer's heartbeat in Redis is compared with the gateway's keys.
#[tokio::test]
async fn drift_between_issuer_and_gateway_is_seen() {
    let redis = Redis::start().await;
    let drift = "[drift]\nissuers = [\"web\", \"silent\"]\ninterval = \"100ms\"\n";
    let mut gateway = gateway::with(&(redis.config() + drift)).await;
    gateway.ready().await;
    let beat = |fingerprint: &str| {
        let set = redis::cmd("SET")
            .arg("gateway:tollgate:issuer:web")
            .arg(fingerprint)
            .exec(&mut redis.connection());
        set.unwrap();
    };

    beat(&tollgate::auth::fingerprint::of_secret(SECRET.as_bytes()).to_string());
    gateway.metric_reaches("issuer_key_match{issuer=\"web\"}", 1.0).await;
    beat("0123456789abcdef");
    eventually("the drift", || async {
        (gateway.metric("issuer_key_match{issuer=\"web\"}").await == 0.0).then_some(())
    })
    .await;
    gateway.logged("the issuer signs with a key that this gateway does not have").await;
    assert!(!gateway.get_admin("/metrics").await.1.contains("silent"), "no heartbeat, no claim");
}
