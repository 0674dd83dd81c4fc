//! Bad data in Redis and bad answers from Redis: each harms its own channel or shows in the state,
//! and no other client notices.

use serde_json::json;
use tollgate_support::client::Client;
use tollgate_support::eventually;
use tollgate_support::gateway::Gateway;
use tollgate_support::proxy::Proxy;
use tollgate_support::redis::Redis;
use tollgate_support::tokens::token;

use super::gateway;

const RULE: &str = "[[channels]]\npattern = \"post:{id}\"\nallow = \"authenticated\"\n\
                    history = { size = 100, ttl = \"1m\" }\n\
                    [[channels]]\npattern = \"plain:{id}\"\nallow = \"authenticated\"\n";

async fn gateway(redis: &Redis) -> Gateway {
    let gateway = gateway::with(&format!("{}{RULE}", redis.config())).await;
    gateway.ready().await;
    gateway
}

fn run(redis: &Redis, words: &[&str]) {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command.exec(&mut redis.connection()).unwrap();
}

/// Whether one of the gateway's checks is fine, and whether the gateway is degraded.
async fn check(gateway: &Gateway, name: &str) -> (bool, bool) {
    let body = gateway.get_admin("/readyz").await.1;
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    (body["checks"][name]["ok"] == true, body["degraded"] == true)
}

/// The answer "parse error" counted as a lost connection: every channel of the replica was deaf.
#[tokio::test]
async fn field_a4_garbage_in_a_channels_keys_harms_that_channel_alone() {
    let redis = Redis::start().await;
    let gateway = gateway(&redis).await;
    let mut bystander = Client::connect(&gateway, "u1").await;
    bystander.subscribe(json!("post:y")).await;

    for (n, (field, value)) in [
        ("o", "abc"),
        ("o", "-1"),
        ("o", "99999999999999999999999"),
        ("o", "9007199254740991"),
        ("e", "\u{7f}x"),
        ("e", "9007199254740990"),
        ("b", "soon"),
        ("r", "nobody"),
        ("", "a value of another type"),
        ("stream", "a value of another type"),
    ]
    .into_iter()
    .enumerate()
    {
        let channel = format!("post:x{n}");
        let key = format!("tollgate:{channel}:{{tollgate:{channel}}}");
        redis.fcall(&channel, "\"before\"").unwrap();
        match field {
            "" => run(&redis, &["SET", &key, value]),
            "stream" => run(&redis, &["SET", &format!("{key}:stream"), value]),
            _ => run(&redis, &["HSET", &key, field, value]),
        }

        let mut client = Client::connect(&gateway, "u1").await;
        let answer = client.subscribe(json!(channel)).await;
        assert_eq!(answer["type"], "subscribed", "{field}={value}: {answer}");
        redis.fcall("post:y", &n.to_string()).unwrap();
        assert_eq!(bystander.next().await, json!(n));

        // The channel itself goes on with the next publication.
        redis.fcall(&channel, &format!("{{\"n\":{n}}}")).unwrap();
        loop {
            let message = client.next().await;
            if message == json!({"n": n}) {
                break;
            }
            assert_eq!(message["type"], "gap", "{field}={value}: {message}");
        }
    }
    assert_eq!(gateway.metric("redis_reconnects_total").await, 0.0);
    assert!(gateway.metric("redis_errors_total{fault=\"bad_key\"}").await >= 2.0);
}

/// A server that cannot save its snapshot answers PING with an error, and publishes as ever.
#[tokio::test]
async fn field_a5_an_error_answer_is_no_lost_connection() {
    let redis = Redis::start().await;
    let gateway = gateway(&redis).await;
    let mut client = Client::connect(&gateway, "u1").await;
    client.subscribe(json!("plain:1")).await;

    let dir: Vec<String> =
        redis::cmd("CONFIG").arg("GET").arg("dir").query(&mut redis.connection()).unwrap();
    std::fs::remove_dir_all(&dir[1]).unwrap();
    run(&redis, &["CONFIG", "SET", "save", "3600 1"]);
    run(&redis, &["SET", "changed", "1"]);
    run(&redis, &["BGSAVE"]);
    eventually("the snapshot fails", || async {
        let pong = redis::cmd("PING").query::<String>(&mut redis.connection());
        pong.is_err_and(|e| e.code() == Some("MISCONF")).then_some(())
    })
    .await;

    // Every connection has asked once the state of writing shows the error.
    eventually("it is said", || async {
        (check(&gateway, "broker_writer").await == (false, true)).then_some(())
    })
    .await;
    for n in 0..3 {
        redis.publish("tollgate:plain:1", &n.to_string());
        assert_eq!(client.next().await, json!(n));
    }
    assert_eq!(gateway.metric("redis_reconnects_total").await, 0.0);
}

#[tokio::test]
async fn field_b1_a_redis_that_cannot_write_shows_and_is_named() {
    let redis = Redis::start().await;
    let gateway = gateway(&redis).await;
    let mut client = Client::connect(&gateway, "u1").await;
    for channel in ["post:1", "plain:1"] {
        client.subscribe(json!(channel)).await;
    }
    assert_eq!(check(&gateway, "broker_writer").await, (true, false));

    run(&redis, &["CONFIG", "SET", "maxmemory", "1"]);
    let answer = gateway.api("publish", &json!({"channel": "post:1", "data": 1})).await;
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("OOM"), "{message}");
    eventually("degraded", || async {
        (check(&gateway, "broker_writer").await == (false, true)).then_some(())
    })
    .await;
    assert_eq!(gateway.metric("redis_connected{role=\"writer\"}").await, 0.0);
    assert!(gateway.log().contains("OOM"), "the log has Redis' words");
    gateway.publish("plain:1", &json!("plain")).await;
    assert_eq!(client.next().await, json!("plain"));

    run(&redis, &["CONFIG", "SET", "maxmemory", "0"]);
    eventually("well again", || async {
        (check(&gateway, "broker_writer").await == (true, false)).then_some(())
    })
    .await;
    gateway.api("publish", &json!({"channel": "post:1", "data": "kept"})).await;
    assert_eq!(client.next().await, json!("kept"));
    assert_eq!(gateway.metric("redis_reconnects_total").await, 0.0);
}

/// An ACL was tightened and put right again: the canary's channel was never asked for again, the
/// state stayed degraded, and a deaf connection would have gone unnoticed.
#[tokio::test]
async fn a_canary_that_was_refused_is_asked_for_again() {
    let redis = Redis::start().await;
    super::redis_faults::documented_user(&redis, "gateway");
    let url = format!("redis://gateway:pw@127.0.0.1:{}", redis.port);
    let config = format!("[broker]\nkind = \"redis\"\n[redis]\nurl = \"{url}\"\n{RULE}");
    let gateway = gateway::with(&config).await;
    gateway.ready().await;

    run(&redis, &["ACL", "SETUSER", "gateway", "resetchannels"]);
    eventually("it is said", || async {
        (check(&gateway, "broker_publisher").await == (false, true)).then_some(())
    })
    .await;
    run(&redis, &["ACL", "SETUSER", "gateway", "&tollgate:*", "&gateway:tollgate:*"]);
    eventually("well again", || async {
        (check(&gateway, "broker_publisher").await == (true, false)).then_some(())
    })
    .await;
}

/// Old connections live on at a server that is still a master, and hear nothing.
#[tokio::test]
async fn field_b2_an_address_that_leads_elsewhere_is_noticed_and_declared() {
    let (old, new) = (Redis::start().await, Redis::start().await);
    let proxy = Proxy::start(old.address()).await;
    let config = format!(
        "[broker]\nkind = \"redis\"\n[redis]\nurl = \"redis://{}\"\n\
         address_interval = \"200ms\"\n{RULE}",
        proxy.address
    );
    let gateway = gateway::with(&config).await;
    gateway.ready().await;
    let mut client = Client::connect(&gateway, "u1").await;
    client.subscribe(json!("plain:1")).await;

    proxy.lead_to(new.address());
    let gap = client.next().await;
    assert_eq!((&gap["type"], &gap["data"]["channel"]), (&json!("gap"), &json!("plain:1")));
    new.publish("tollgate:plain:1", "1");
    assert_eq!(client.next_but_gaps().await, json!(1));
}

#[tokio::test]
async fn field_b5_a_publication_is_kept_and_published_or_neither() {
    let redis = Redis::start().await;
    let gateway = gateway(&redis).await;
    let mut client = Client::connect(&gateway, "u1").await;
    client.subscribe(json!("post:1")).await;

    let user = ["ACL", "SETUSER", "half", "on", ">pw", "~*", "+@all", "resetchannels"];
    run(&redis, &user);
    let url = format!("redis://half:pw@127.0.0.1:{}", redis.port);
    let mut half = redis::Client::open(url).unwrap().get_connection().unwrap();
    let mut publish = redis::cmd("FCALL");
    publish.arg("tollgate_publish").arg(1).arg("tollgate:post:1").arg("1");
    publish.arg(600).arg(100).arg("once");
    for _ in 0..4 {
        let error = publish.query::<(u64, String, i64)>(&mut half).unwrap_err();
        assert!(error.to_string().contains("nothing was kept"), "{error}");
    }

    run(&redis, &["ACL", "SETUSER", "half", "&tollgate:post:*"]);
    let (offset, epoch, heard): (u64, String, i64) = publish.query(&mut half).unwrap();
    assert_eq!((offset, heard), (1, 1), "nothing was kept before");
    assert_eq!(publish.query::<(u64, String, i64)>(&mut half).unwrap(), (1, epoch, -1));
    assert_eq!(client.next().await, json!(1));
    client.nothing_came().await;
}

/// A publisher with the documented ACL could disconnect any user.
#[tokio::test]
async fn field_e7_what_a_publisher_needs_does_not_reach_what_is_the_gateways() {
    let redis = Redis::start().await;
    super::redis_faults::documented_user(&redis, "publisher");
    let gateway = gateway(&redis).await;
    let mut client = Client::connect(&gateway, "u1").await;
    let url = format!("redis://publisher:pw@127.0.0.1:{}", redis.port);
    let mut publisher = redis::Client::open(url).unwrap().get_connection().unwrap();

    let control = r#"{"type":"disconnect","user":"u1"}"#;
    let mut publish = |channel: &str| {
        redis::cmd("PUBLISH").arg(channel).arg(control).query::<u64>(&mut publisher)
    };
    assert_eq!(publish("gateway:tollgate:control").unwrap_err().code(), Some("NOPERM"));
    assert_eq!(publish("tollgate:control").unwrap(), 0, "nobody listens there");
    for key in ["revoked", "issuer:web", "fence:x"] {
        let mut set = redis::cmd("SET");
        let own = set.arg(format!("gateway:tollgate:{key}")).arg("x").exec(&mut publisher);
        assert_eq!(own.unwrap_err().code(), Some("NOPERM"), "{key}");
    }
    client.nothing_came().await;

    // A control message that no replica would send is dropped.
    redis.publish("gateway:tollgate:control", &format!("{{\"type\":\"{}\"}}", "x".repeat(100_000)));
    client.nothing_came().await;
}

/// Resuming over entries of 5 MB used to read all of them into memory.
#[tokio::test]
async fn field_a10_a_history_is_read_in_bounded_bytes() {
    let redis = Redis::start().await;
    let gateway = gateway(&redis).await;
    let (_, epoch) = redis.fcall("post:1", "1").unwrap();
    let key = "tollgate:post:1:{tollgate:post:1}";
    let large = "x".repeat(5_000_000);
    for offset in 2..32 {
        run(&redis, &["XADD", &format!("{key}:stream"), &format!("{epoch}-{offset}"), "d", &large]);
    }
    run(&redis, &["HSET", key, "o", "31"]);

    let memory = "process_resident_memory_bytes";
    let own = |text: &str| {
        let line = text.lines().find(|line| line.starts_with(memory));
        line.and_then(|line| line.split(' ').nth(1)?.parse::<f64>().ok()).unwrap()
    };
    let before = own(&gateway.get_admin("/metrics").await.1);
    let mut client = Client::connect_with(&gateway, "/ws?format=envelope", &token("u1")).await;
    let since = json!({"epoch": epoch, "offset": 1});
    client.send(json!({"type": "subscribe", "channel": "post:1", "since": since})).await;
    let start = client.next().await;
    assert_eq!(start["data"]["recovered"], false, "{start}");
    let after = own(&gateway.get_admin("/metrics").await.1);
    assert!(after - before < 50e6, "{before} to {after} bytes");

    let error = redis.fcall("post:1", &format!("\"{}\"", "x".repeat(2_000_000))).unwrap_err();
    assert!(error.to_string().contains("limits.publication_bytes"), "{error}");
}

/// Every channel name that a client thought up was a key in Redis for an hour.
#[tokio::test]
async fn field_a11_names_that_nobody_publishes_on_cost_few_keys() {
    let redis = Redis::start().await;
    let config = format!("{}[history]\nopens_per_user = 5\n{RULE}", redis.config());
    let gateway = gateway::with(&config).await;
    gateway.ready().await;
    redis.fcall("post:old", "1").unwrap();
    let keys = || -> Vec<String> {
        let mut connection = redis.connection();
        redis::cmd("KEYS").arg("tollgate:post:*").query(&mut connection).unwrap()
    };
    let before = keys().len();

    let mut client = Client::connect_with(&gateway, "/ws?format=envelope", &token("u1")).await;
    for n in 0..40 {
        let channel = format!("post:x{n}");
        client.send(json!({"type": "subscribe", "channel": channel})).await;
        assert_eq!(client.next().await["type"], "subscribed");
        client.send(json!({"type": "unsubscribe", "channel": channel})).await;
        assert_eq!(client.next().await["type"], "unsubscribed");
    }
    assert_eq!(keys().len() - before, 5);
    assert_eq!(gateway.metric("histories_not_begun_total").await, 35.0);

    // A history that exists is followed as ever.
    client.send(json!({"type": "subscribe", "channel": "post:old"})).await;
    assert_eq!(client.next().await["data"]["offset"], 1);
    redis.fcall("post:old", "2").unwrap();
    assert_eq!(client.next().await["offset"], 2);
}

/// Each forged position used to begin a read that began another one.
#[tokio::test]
async fn field_a6_forged_positions_cost_few_readings_and_no_event() {
    let redis = Redis::start().await;
    let gateway = gateway(&redis).await;
    let mut client = Client::connect(&gateway, "u1").await;
    client.subscribe(json!("post:1")).await;
    let (_, epoch) = redis.fcall("post:1", "0").unwrap();
    assert_eq!(client.next().await, json!(0));

    for n in 1..=100_u64 {
        let ahead = [1001, 1, 999_999_999_999_998][n as usize % 3];
        redis.publish("tollgate:post:1", &format!("\u{1}{epoch}:{}\n{{}}", n + ahead));
        redis.fcall("post:1", &n.to_string()).unwrap();
    }

    let mut due = 1;
    while due <= 100 {
        let message = client.next().await;
        if let Some(n) = message.as_u64() {
            assert!(n <= due, "{n} before {due}, and nothing was said");
            due = due.max(n + 1);
        } else if message["type"] == "gap" {
            // A gap is declared: any event may be missing here.
            let next = client.next().await;
            due = due.max(next.as_u64().map_or(due, |n| n + 1));
        }
    }

    let info: String =
        redis::cmd("INFO").arg("commandstats").query(&mut redis.connection()).unwrap();
    let line = info.lines().find(|l| l.starts_with("cmdstat_xrevrange:")).unwrap_or_default();
    let calls = line.split("calls=").nth(1).and_then(|l| l.split(',').next());
    let calls: u32 = calls.map_or(0, |n| n.parse().unwrap());
    assert!(calls < 100, "{calls} ranges were read");
    assert!(gateway.metric("claims_refuted_total").await >= 1.0);
}
