//! What publishers do wrong, by the function that they call in Redis: each mistake used to be answered like a
//! success, and is refused with its cause.
//!
//! Not here: which texts are JSON (`payloads`); client libraries that change what they are given
//! (`tests/js/publishers`).

use redis::{RedisResult, Value};
use serde_json::json;
use tollgate_support::client::Client;
use tollgate_support::eventually;
use tollgate_support::redis::Redis;

use super::gateway;
use super::groups::cluster;
use super::history::rules;
use super::redis_faults::documented_user;

/// Calls the function with a key and what follows it.
pub fn call(
    connection: &mut redis::Connection,
    key: &[u8],
    arguments: &[&[u8]],
) -> RedisResult<Vec<Value>> {
    let mut call = redis::cmd("FCALL");
    call.arg("tollgate_publish").arg(1).arg(key).arg(arguments).query(connection)
}

/// What the function refuses a publication with.
fn refusal(connection: &mut redis::Connection, key: &[u8], arguments: &[&[u8]]) -> String {
    let text = String::from_utf8_lossy(key).into_owned();
    let error = call(connection, key, arguments).expect_err(&text);
    assert_eq!(error.code(), Some("ERR"), "{text}: {error}");
    error.detail().unwrap_or_default().to_owned()
}

/// Offset and how many heard it.
fn published(answer: &[Value]) -> (i64, i64) {
    let [Value::Int(offset), Value::BulkString(_), Value::Int(heard)] = answer else {
        panic!("{answer:?}")
    };
    (*offset, *heard)
}

/// All keys that are not the gateway's own.
fn keys(redis: &Redis) -> Vec<String> {
    let keys: Vec<String> =
        redis::cmd("KEYS").arg("*").query(&mut redis.connection()).expect("keys");
    keys.into_iter().filter(|key| !key.starts_with("gateway:")).collect()
}

/// The text of the library as it stands on a server, with some of it replaced, is loaded again.
fn rewrite(redis: &Redis, change: impl Fn(&str) -> String) {
    let mut list = redis::cmd("FUNCTION");
    list.arg(&["LIST", "LIBRARYNAME", "tollgate", "WITHCODE"]);
    let answer: Value = list.query(&mut redis.connection()).unwrap();
    let text = text_of(&answer).expect("the library's text");
    let mut load = redis::cmd("FUNCTION");
    load.arg(&["LOAD", "REPLACE", &change(&text)]).exec(&mut redis.connection()).unwrap();
}

fn text_of(answer: &Value) -> Option<String> {
    if let Value::BulkString(text) = answer {
        return text.starts_with(b"#!lua").then(|| String::from_utf8_lossy(text).into_owned());
    }
    if let Value::Array(parts) = answer { parts.iter().find_map(text_of) } else { None }
}

/// Ends the time in which an unknown prefix is a warning, because the library was loaded a moment ago.
fn be_strict(redis: &Redis) {
    rewrite(redis, |text| with_number(text, "local GRACE = ", 1));
}

/// A number that a gateway stated becomes another one.
fn with_number(text: &str, name: &str, number: u64) -> String {
    let (before, after) = text.split_once(name).expect("it is stated");
    let after = after.trim_start_matches(|c: char| c.is_ascii_digit());
    format!("{before}{name}{number}{after}")
}

const EVENT: &[u8] = b"{\"type\":\"order_paid\"}";
const NO_JSON: &str = "the event is no JSON";

/// Keys that no publisher's rights keep it from, and what is said of them.
fn wrong_names() -> Vec<(Vec<u8>, &'static str)> {
    let characters = "has a character that no channel name has";
    let mut wrong: Vec<(Vec<u8>, &str)> = [
        ("", "is empty or has an empty part: is an id missing?"),
        (":u1", "is empty or has an empty part"),
        ("user:", "is empty or has an empty part"),
        ("user::x", "is empty or has an empty part"),
        ("user:undefined", "has the id \"undefined\": the publisher had none"),
        ("room:null:x", "has the id \"null\": the publisher had none"),
        ("post:NaN", "has the id \"NaN\": the publisher had none"),
        ("user:[object Object]", "holds an object that was made into a text: name its id"),
        ("tollgate:user:u1", "the prefix \"tollgate:\" stands twice in"),
        ("control", "channels that begin with \"control\" belong to the gateway"),
        ("canary:1", "channels that begin with \"canary\" belong to the gateway"),
        ("gateway:x", "channels that begin with \"gateway\" belong to the gateway"),
    ]
    .map(|(name, said)| (name.as_bytes().to_vec(), said))
    .to_vec();

    for bad in ["a b", "a\tb", "a\nb", "a\0b", "a\u{7f}", "a\u{85}", "a\u{a0}", "\u{1680}a"] {
        wrong.push((format!("user:{bad}").into_bytes(), characters));
    }
    for bad in ["\u{2003}", "\u{2028}", "\u{202f}", "\u{205f}", "\u{3000}"] {
        wrong.push((format!("user:é{bad}").into_bytes(), characters));
    }
    for bad in "*?[]{}\\\"'`<>".chars() {
        wrong.push((format!("user:{bad}").into_bytes(), characters));
    }
    wrong.push((b"user:\xff".to_vec(), characters));
    wrong.push((b"user:\xc3".to_vec(), characters));
    wrong.push((format!("user:{}", "x".repeat(251)).into_bytes(), "at most 255 bytes"));

    wrong.iter().map(|(name, said)| ([b"tollgate:", &**name].concat(), *said)).collect()
}

/// Events on a good channel, with what follows them, and what is said of them.
fn wrong_events() -> Vec<(Vec<&'static [u8]>, &'static str)> {
    vec![
        (vec![b""], NO_JSON),
        (vec![b"undefined"], NO_JSON),
        (vec![b"order paid"], NO_JSON),
        (vec![b"{'type':'order_paid'}"], NO_JSON),
        (vec![b"{\"a\":1,}"], NO_JSON),
        (vec![b"[object Object]"], "the event is \"[object Object]\": it was not made into JSON"),
        (vec![b"{\"a\":\"\xff\"}"], "the event is not UTF-8"),
        (vec![b"{\"a\":1}\0"], "the event is not UTF-8, or has a zero byte"),
        (vec![b"{\"type\":\"gap\"}"], "the type \"gap\" is reserved for the gateway"),
        (vec![b"{\"type\":\"\\u0067ap\"}"], "the type \"gap\" is reserved for the gateway"),
        (vec![EVENT, b"", b"", b"", b"Raw"], "the fifth argument is raw or nothing"),
    ]
}

/// Each mistake is refused, on each server and with no more than a publisher's rights. Nothing is kept, and
/// whoever listens in Redis hears nothing.
#[tokio::test]
async fn what_no_gateway_would_deliver_was_answered_like_a_success() {
    let servers = [
        Redis::start().await,
        Redis::other("redis-8").await,
        Redis::other("valkey-8").await,
        Redis::other("valkey-9").await,
    ];

    for redis in &servers {
        let _gateway = gateway::with(&rules(10, &redis.config())).await;
        _gateway.ready().await;
        documented_user(redis, "publisher");
        let url = format!("redis://publisher:pw@127.0.0.1:{}", redis.port);
        let publisher =
            &mut redis::Client::open(url).unwrap().get_connection().expect("a connection");

        let mut listener = redis.connection();
        let mut heard = listener.as_pubsub();
        heard.psubscribe("*").unwrap();
        let before = keys(redis);

        for (key, said) in wrong_names() {
            let refusal = refusal(publisher, &key, &[EVENT]);
            assert!(refusal.contains(said), "{}: {refusal}", String::from_utf8_lossy(&key));
        }
        for (arguments, said) in wrong_events() {
            let refusal = refusal(publisher, b"tollgate:post:1", &arguments);
            assert!(refusal.contains(said), "{said}: {refusal}");
        }
        let large = [b"\"".as_slice(), &b"x".repeat(1 << 20), b"\""].concat();
        let refusal = refusal(publisher, b"tollgate:post:1", &[&large]);
        assert!(refusal.contains("the gateway takes 1048576 (limits.publication_bytes)"));

        assert_eq!(keys(redis), before, "nothing is kept");
        let answer = call(publisher, b"tollgate:post:1", &[EVENT]).unwrap();
        assert_eq!(published(&answer), (1, 1), "the listener");
        let first = loop {
            let message = heard.get_message().unwrap();
            if !message.get_channel_name().starts_with("gateway:") {
                break message;
            }
        };
        let payload: Vec<u8> = first.get_payload().unwrap();
        assert!(payload.ends_with(EVENT), "nothing was published before");
    }
}

/// A key that no gateway listens to was kept and published for nobody.
#[tokio::test]
async fn a_key_without_a_gateways_prefix_was_published_for_nobody() {
    let redis = Redis::start().await;
    let _gateway = gateway::with(&rules(10, &redis.config())).await;
    _gateway.ready().await;
    be_strict(&redis);
    let before = keys(&redis);
    let connection = &mut redis.connection();

    for (key, said) in [
        (
            "user:u1",
            "no gateway listens to \"user:u1\": its key has to begin with \"tollgate:\", as \
             \"tollgate:user:u1\"",
        ),
        ("TOLLGATE:user:u1", "no gateway listens to \"TOLLGATE:user:u1\""),
        ("tollgate", "no gateway listens to \"tollgate\""),
        (
            "app:tollgate:user:u1",
            "the client library puts \"app:\" before every key (its key prefix): the key has to be \
             \"tollgate:user:u1\"",
        ),
        ("app:user:u1", "no gateway listens to \"app:user:u1\""),
        ("gateway:other:user:u1", "no gateway listens to"),
    ] {
        let refusal = refusal(connection, key.as_bytes(), &[EVENT]);
        assert!(refusal.starts_with(said), "{key}: {refusal}");
    }
    assert_eq!(keys(&redis), before, "nothing is kept");
}

/// With `raw` the text is not looked at: for those who read Redis themselves. Names are looked at all the same.
#[tokio::test]
async fn raw_texts_are_published_and_declared() {
    let redis = Redis::start().await;
    let gateway = gateway::with(&rules(10, &redis.config())).await;
    gateway.ready().await;
    let mut client = Client::connect(&gateway, "u1").await;
    client.subscribe(json!("post:1")).await;
    let connection = &mut redis.connection();

    for text in [&b"order paid"[..], b"\xff"] {
        call(connection, b"tollgate:post:1", &[text, b"", b"", b"", b"raw"]).unwrap();
        assert_eq!(client.next().await["data"]["reason"], "invalid_payload");
    }
    call(connection, b"tollgate:post:1", &[b"1", b"", b"", b"", b"raw"]).unwrap();
    assert_eq!(client.next().await, json!(1));
    let refusal = refusal(connection, b"tollgate:post:null", &[b"1", b"", b"", b"", b"raw"]);
    assert!(refusal.contains("the id \"null\""), "{refusal}");
}

/// A publisher could not tell an event that nobody was there for from one that a gateway took.
#[tokio::test]
async fn a_publisher_is_told_how_many_heard_it() {
    let redis = Redis::start().await;
    let config = rules(10, &redis.config());
    let replicas = [gateway::with(&config).await, gateway::with(&config).await];
    for replica in &replicas {
        replica.ready().await;
    }
    let connection = &mut redis.connection();
    let mut publish = |key: &[u8]| {
        let answer = call(connection, b"tollgate:post:1", &[EVENT, b"", b"", key]).unwrap();
        published(&answer)
    };

    assert_eq!(publish(b"first"), (1, 0));
    let mut one = Client::connect(&replicas[0], "u1").await;
    one.subscribe(json!("post:1")).await;
    assert_eq!(publish(b""), (2, 1));
    let mut two = Client::connect(&replicas[1], "u2").await;
    for channel in ["post:1", "plain:1"] {
        two.subscribe(json!(channel)).await;
    }
    assert_eq!(publish(b""), (3, 2));
    assert_eq!(publish(b"first"), (1, -1), "nothing is published again");

    // The server API tells the same, also of plain events and of several channels at once.
    let ask = json!({"channel": "post:1", "data": 1, "idempotency_key": "first"});
    assert_eq!(replicas[0].api("publish", &ask).await["result"]["heard"], -1);
    let ask = json!({"channel": "post:1", "data": 1});
    assert_eq!(replicas[0].api("publish", &ask).await["result"]["heard"], 2);
    assert_eq!(replicas[0].publish("plain:1", &json!(1)).await, 1);
    let ask = json!({"channels": ["post:1", "post:2", "plain:1", "plain:2"], "data": 1});
    let answer = replicas[1].api("broadcast", &ask).await;
    let heard = |n: usize| answer["result"]["responses"][n]["result"]["heard"].as_i64();
    assert_eq!([0, 1, 2, 3].map(heard), [2, 0, 1, 0].map(Some));
}

/// `redis.refuse_wrong = false` gives publishers time: mistakes are published as before, and named. The library
/// is strict again when the last such gateway has been gone for a while.
#[tokio::test]
async fn a_lenient_gateway_has_mistakes_published_with_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("redis.log");
    let redis = Redis::with(&[&format!("logfile {}", log.display())]).await;
    let strict = rules(10, &redis.config());
    let lenient = rules(10, &(redis.config() + "refuse_wrong = false\n"));
    let replicas = [gateway::with(&strict).await, gateway::with(&lenient).await];
    for replica in &replicas {
        replica.ready().await;
    }

    let connection = &mut redis.connection();
    let mut client = Client::connect(&replicas[0], "u1").await;
    client.subscribe(json!("post:1")).await;
    let mistakes: [(&[u8], &[u8], i64, &str); 3] = [
        (b"post:1", EVENT, 0, "no gateway listens to \"post:1\""),
        (b"tollgate:post:null", EVENT, 0, "has the id \"null\""),
        (b"tollgate:post:1", b"paid", 1, NO_JSON),
    ];
    for (key, event, due, said) in mistakes {
        let answer = call(connection, key, &[event]).unwrap();
        let [_, _, Value::Int(heard), Value::BulkString(warning)] = &answer[..] else {
            panic!("{answer:?}")
        };
        let warning = String::from_utf8_lossy(warning);
        assert!(warning.contains(said) && *heard == due, "{answer:?}");
        let log = std::fs::read_to_string(&log).unwrap();
        assert!(log.contains(&format!("tollgate_publish: {warning}")), "{log}");
    }
    assert_eq!(client.next().await["data"]["reason"], "invalid_payload", "published as before");

    // What earlier versions refused is refused.
    for (event, said) in [(&b"{\"type\":\"gap\"}"[..], "is reserved"), (&[b' '; 1 << 21], "bytes")]
    {
        let refusal = refusal(connection, b"tollgate:post:1", &[event]);
        assert!(refusal.contains(said), "{refusal}");
    }

    let [strict, lenient] = replicas;
    drop(lenient);
    rewrite(&redis, |text| with_number(text, "lenient = ", 1));
    be_strict(&redis);
    for (key, event, _, said) in mistakes {
        let refusal = refusal(connection, key, &[event]);
        assert!(refusal.contains(said), "{refusal}");
    }
    assert!(strict.is_alive().await);
}

/// What the library has been told: its grace, and the prefixes.
fn stated(redis: &Redis) -> (u64, Vec<String>) {
    let mut ask = redis::cmd("FCALL_RO");
    ask.arg("tollgate_stated").arg(0);
    let answer: Vec<String> = ask.query(&mut redis.connection()).unwrap();
    let mut prefixes: Vec<_> = answer[1..].chunks(5).map(|gateway| gateway[0].clone()).collect();
    prefixes.sort();
    (answer[0].parse().unwrap(), prefixes)
}

/// Gateways of two products on one server, which start at one time, used to be able to overwrite each other's
/// statement: the publications of one would be refused.
#[tokio::test]
async fn gateways_with_two_prefixes_on_one_server_keep_each_others() {
    let redis = Redis::start().await;
    let with = |prefix: &str| rules(10, &format!("{}prefix = \"{prefix}\"\n", redis.config()));
    let (one, other) = (with("tollgate:"), with("shop:live:"));
    let (one, other) = tokio::join!(gateway::with(&one), gateway::with(&other));
    for replica in [&one, &other] {
        replica.ready().await;
    }
    let both = ["shop:live:".to_owned(), "tollgate:".to_owned()];
    eventually("both", || std::future::ready((stated(&redis).1 == both).then_some(()))).await;

    // A gateway that joins gives those that it may not know of time to state themselves again.
    let connection = &mut redis.connection();
    let answer = call(connection, b"user:u1", &[EVENT]).unwrap();
    assert_eq!(answer.len(), 4, "a warning: {answer:?}");

    be_strict(&redis);
    for key in [&b"tollgate:user:u1"[..], b"shop:live:user:u1"] {
        assert_eq!(published(&call(connection, key, &[EVENT]).unwrap()), (1, 0));
    }
    for (key, said) in [
        ("shop:user:u1", "its key has to begin with one of \"shop:live:\", \"tollgate:\""),
        ("app:shop:live:user:u1", "the key has to be \"shop:live:user:u1\""),
        ("shop:live:shop:live:user:u1", "the prefix \"shop:live:\" stands twice"),
    ] {
        let refusal = refusal(connection, key.as_bytes(), &[EVENT]);
        assert!(refusal.contains(said), "{refusal}");
    }
}

/// Replicas of version 0.1 call the function too, and take two elements only.
#[tokio::test]
async fn beside_version_0_1_the_answer_has_two_elements() {
    let redis = Redis::start().await;
    let config = rules(10, &(redis.config() + "beside_0_1 = true\n"));
    let gateway = gateway::with(&config).await;
    gateway.ready().await;
    let connection = &mut redis.connection();

    for key in [&b""[..], b"once", b"once"] {
        let answer = call(connection, b"tollgate:post:1", &[EVENT, b"", b"", key]).unwrap();
        assert!(matches!(answer[..], [Value::Int(1..=2), Value::BulkString(_)]), "{answer:?}");
    }
    let answer = gateway.api("publish", &json!({"channel": "post:1", "data": 1})).await;
    assert_eq!((&answer["result"]["offset"], answer["result"].get("heard")), (&json!(3), None));
    let refusal = refusal(connection, b"tollgate:post:null", &[EVENT]);
    assert!(refusal.contains("the id \"null\""), "{refusal}");
}

/// The library of an earlier version is replaced where its gateways' publishers go on. Their prefixes are not
/// known yet, so that a key without one is a warning for a while. Histories and keys go on.
#[tokio::test]
async fn a_library_of_version_4_is_replaced_with_grace() {
    let redis = Redis::start().await;
    let connection = &mut redis.connection();
    let mut load = redis::cmd("FUNCTION");
    load.arg(&["LOAD", include_str!("library/version-4.lua")]).exec(connection).unwrap();
    let before = call(connection, b"tollgate:post:1", &[EVENT, b"", b"", b"once"]).unwrap();
    assert_eq!(before.len(), 2);

    let gateway = gateway::with(&rules(10, &redis.config())).await;
    gateway.ready().await;
    let again = call(connection, b"tollgate:post:1", &[EVENT, b"", b"", b"once"]).unwrap();
    assert_eq!((&again[..2], &again[2]), (&before[..], &Value::Int(-1)));
    let next = call(connection, b"tollgate:post:1", &[EVENT]).unwrap();
    assert_eq!((published(&next).0, &next[1]), (2, &before[1]), "of one history");

    let answer = call(connection, b"older:post:1", &[EVENT]).unwrap();
    assert!(matches!(&answer[3], Value::BulkString(warning) if warning.starts_with(b"no gateway")));
    be_strict(&redis);
    assert!(refusal(connection, b"older:post:1", &[EVENT]).starts_with("no gateway listens"));
}

/// Each master of a cluster refuses, and says who heard.
#[tokio::test]
async fn a_cluster_refuses_mistakes_and_says_who_heard() {
    let cluster = cluster().await;
    let redis = format!("[broker]\nkind = \"redis\"\n[redis]\nurl = \"{}\"\n", cluster.url());
    let gateway = gateway::with(&rules(10, &redis)).await;
    gateway.ready().await;
    let mut client = Client::connect(&gateway, "u1").await;
    client.subscribe(json!("post:1")).await;

    let mut owners = std::collections::BTreeSet::new();
    for n in 0..12 {
        for (key, said) in [
            (format!("post:{n}"), "no gateway listens to"),
            (format!("tollgate:post:{n}:undefined"), "the id \"undefined\""),
        ] {
            let owner = cluster.owner(&key).await;
            if owners.insert(owner) {
                be_strict(&cluster.nodes[owner]);
            }
            let connection = &mut cluster.nodes[owner].connection();
            let refusal = refusal(connection, key.as_bytes(), &[EVENT]);
            assert!(refusal.contains(said), "{refusal}");
        }
    }
    assert_eq!(owners.len(), 3, "every master was asked");

    for (channel, due) in [("post:1", (1, 1)), ("post:2", (1, 0))] {
        let key = format!("tollgate:{channel}");
        let connection = &mut cluster.nodes[cluster.owner(&key).await].connection();
        let answer = call(connection, key.as_bytes(), &[EVENT]).unwrap();
        assert_eq!(published(&answer), due, "{channel}");
    }
}
