//! Which texts the function library takes for JSON: those that the gateway delivers, and no others. The library
//! has only the decoder of Redis, which is looser here and stricter there.
//!
//! Not here: what the gateway's own check says of a text (`protocol::payload`).

use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};
use redis::Value;
use tollgate::channel::ChannelName;
use tollgate::protocol::payload::{PayloadFault, check};
use tollgate_support::redis::Redis;

use super::gateway;
use super::publishing::call;

/// Pieces of texts within quotation marks. Some are wrong.
const WITHIN: [&[u8]; 29] = [
    b"a",
    b"type",
    b"gap",
    b"1.",
    b"-.5",
    b".",
    b"\\n",
    b"\\\"",
    b"\\\\",
    b"\\/",
    b"\\u0041",
    b"\\u0000",
    b"\\u0067ap",
    b"\\ud83d\\ude00",
    b"\\ud800",
    b"\\uDC00",
    b"\xc3\xa9",
    b"\xe2\x80\xa8",
    b"\xf0\x9f\x98\x80",
    b"\x7f",
    b"\\x",
    b"\\u12",
    b"\n",
    b"\x1f",
    b"\0",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xc3",
    b"\xa9",
];

/// Numbers, and what only looks like one.
const NUMBERS: [&str; 30] = [
    "0",
    "-0",
    "7",
    "1.5",
    "-12.25",
    "1e5",
    "1E-2",
    "-0.0e+1",
    "1e999",
    "123456789012345678901234567890",
    "1.",
    "-1.",
    "-.5",
    ".5",
    "01",
    "-01",
    "00",
    "+1",
    "1e",
    "1.e1",
    "1e+",
    "0x1",
    "-0x1p3",
    "NaN",
    "-NaN",
    "Infinity",
    "-Infinity",
    "-inf",
    "-",
    "1.5.2",
];

/// What stands between texts and numbers, or does not belong there.
const BETWEEN: [&[u8]; 38] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\"",
    b"\\",
    b" ",
    b"\n",
    b"\t",
    b"\r",
    b"true",
    b"false",
    b"null",
    b"nul",
    b"undefined",
    b"[object Object]",
    b"{}",
    b"[]",
    b"{\"a\":1}",
    b"\"type\"",
    b"\"gap\"",
    b"\"\"",
    b"1",
    b".",
    b"-",
    b"\0",
    b"\x01",
    b"\x0b",
    b"\x0c",
    b"\x7f",
    b"\xff",
    b"\xc0",
    b"\xf4\x90\x80\x80",
    b"\xef\xbb\xbf",
    b"\xc2\xa0",
    b"/**/",
];

/// White space between the tokens of JSON.
const SPACES: [&[u8]; 5] = [b" ", b"\n", b"\t", b"\r", b" \r\n"];

fn quoted() -> impl Strategy<Value = Vec<u8>> {
    let good = prop::collection::vec(select(&WITHIN[..20]), 0..4);
    let any = prop::collection::vec(select(&WITHIN[..]), 0..4);
    prop_oneof![6 => good, 1 => any].prop_map(|pieces| [b"\"", &*pieces.concat(), b"\""].concat())
}

fn number() -> impl Strategy<Value = Vec<u8>> {
    let text = prop_oneof![6 => select(&NUMBERS[..10]), 1 => select(&NUMBERS[..])];
    text.prop_map(|text| text.as_bytes().to_vec())
}

fn space() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![4 => Just(&b""[..]), 1 => select(&SPACES[..])].prop_map(<[u8]>::to_vec)
}

/// A value, mostly JSON.
fn value() -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop_oneof![
        3 => quoted(),
        3 => number(),
        1 => select(&BETWEEN[12..15]).prop_map(<[u8]>::to_vec),
    ];

    leaf.prop_recursive(3, 12, 4, |inner| {
        let element = (space(), inner.clone()).prop_map(|(space, value)| [space, value].concat());
        let name = prop_oneof![1 => Just(b"\"type\"".to_vec()), 3 => quoted()];
        let field = (space(), name, space(), inner).prop_map(|(before, name, after, value)| {
            [&*before, &*name, &*after, b":", &*value].concat()
        });
        let enclosed = |all: Vec<Vec<u8>>, open: &[u8], close: &[u8]| {
            [open, &all.join(&b","[..]), close].concat()
        };
        prop_oneof![
            prop::collection::vec(element, 0..4).prop_map(move |all| enclosed(all, b"[", b"]")),
            prop::collection::vec(field, 0..4).prop_map(move |all| enclosed(all, b"{", b"}")),
        ]
    })
}

/// A text with some bytes taken away, and pieces put in.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let change = (any::<prop::sample::Index>(), 0..3_usize, select(&BETWEEN[..]), any::<bool>());
    (value(), prop::collection::vec(change, 1..4)).prop_map(|(mut text, changes)| {
        for (at, removed, piece, put) in changes {
            let at = at.index(text.len() + 1);
            let end = text.len().min(at + removed);
            text.splice(at..end, if put { piece.to_vec() } else { Vec::new() });
        }
        text
    })
}

fn text() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => (space(), value(), space()).prop_map(|(a, b, c)| [a, b, c].concat()),
        3 => damaged(),
        1 => prop::collection::vec(select(&BETWEEN[..]), 0..8).prop_map(|pieces| pieces.concat()),
    ]
}

/// Whether the library publishes an event, or what it says of it.
fn verdict(connection: &mut redis::Connection, key: &[u8], text: &[u8]) -> Result<(), String> {
    match call(connection, key, &[text, b"60", b"1"]) {
        Ok(answer) => {
            assert!(matches!(answer[..], [Value::Int(_), Value::BulkString(_), Value::Int(_)]));
            Ok(())
        }
        Err(error) => {
            assert_eq!(error.code(), Some("ERR"), "{error}");
            Err(error.detail().unwrap_or_default().to_owned())
        }
    }
}

/// Compares the library's verdict with the gateway's.
fn compare(connection: &mut redis::Connection, text: &[u8]) {
    let (due, found) = (check(text), verdict(connection, b"tollgate:post:1", text));
    let shown = String::from_utf8_lossy(text);
    match (&due, &found) {
        (Ok(()), Ok(())) => {}
        (Err(PayloadFault::Reserved(kind)), Err(said)) => {
            assert!(said.contains(&format!("the type \"{}\"", kind.name())), "{shown:?}: {said}");
        }
        (Err(_), Err(said)) => {
            assert!(said.starts_with("the event is"), "{shown:?}: {said}");
        }
        // Of several fields of one name the library sees the last. The gateway declares such an event.
        (Err(PayloadFault::Reserved(_)), Ok(())) => {
            let fields = [&b"\"type\""[..], b"\\u0074ype"].map(|name| count(text, name));
            assert!(fields[0] + fields[1] > 1, "{shown:?} passed");
        }
        _ => panic!("{shown:?}: the gateway says {due:?}, the library {found:?}"),
    }
}

fn count(text: &[u8], part: &[u8]) -> usize {
    text.windows(part.len()).filter(|window| *window == part).count()
}

async fn servers() -> [Redis; 4] {
    let others = ["redis-8", "valkey-8", "valkey-9"].map(Redis::other);
    let [a, b, c] = others;
    [Redis::start().await, a.await, b.await, c.await]
}

/// Every text that a gateway delivers is accepted, and every text that it would drop is refused: the library
/// used to look for reserved types only.
#[tokio::test]
async fn the_library_takes_for_json_what_the_gateway_does() {
    for redis in servers().await {
        let _gateway = gateway::on_redis(&redis).await;
        let connection = std::cell::RefCell::new(redis.connection());

        for text in [
            &b"[1.]"[..],
            b"-.5",
            b"[01]",
            b"[NaN]",
            b"{\"a\":\"\n\"}",
            b"\"\\ud800\"",
            b"[\"\\ud800\",\\ud8001]",
            b"{\"type\":\"\\u0067ap\",\"a\":\"\\udc00\"}",
            b"[\"\\ud800\", \\\\ 1]",
            b"{} \0 {\"a\":1}",
            b"\"3. x\"",
            b"[\"-.5 \\\" 1.\",1.5]",
            b"\"\xc3\xc3\xa9\xc3\xa9\"",
            b"\"\xc3\xc3\xa9 \xa9\"",
            b"\"\xe6\x97\xa5\xa5\"",
        ] {
            compare(&mut connection.borrow_mut(), text);
        }

        let config = Config { cases: 4000, failure_persistence: None, ..Config::default() };
        let run = TestRunner::new(config).run(&text(), |text| {
            compare(&mut connection.borrow_mut(), &text);
            Ok(())
        });
        run.unwrap_or_else(|e| panic!("{e}"));
    }
}

/// The decoder of Redis gives up on nested texts that the gateway delivers.
#[tokio::test]
async fn deep_texts_are_accepted() {
    for redis in servers().await {
        let _gateway = gateway::on_redis(&redis).await;
        for depth in [999, 1000, 1001, 3000, 20_000] {
            let text = format!("{}1.5{}", "[".repeat(depth), "]".repeat(depth));
            assert_eq!(check(text.as_bytes()), Ok(()), "{depth}");
            compare(&mut redis.connection(), text.as_bytes());
        }
    }
}

/// In an object with two types, what only looks like a reserved one was refused, and a reserved one that was
/// written with escapes was not.
#[tokio::test]
async fn each_of_two_types_is_seen_as_the_gateway_sees_it() {
    let redis = Redis::start().await;
    let _gateway = gateway::on_redis(&redis).await;
    let names = ["type", "\\u0074ype", "\\\\u0074ype"];
    for second in ["gap", "ga]p", "g{ap", "gap\\n", "\\u0067ap", "[gap]"] {
        let text =
            format!("{{\"type\":\"mine\",\"a\":[\"]\",{{\"type\":1}}],\"type\":\"{second}\"}}");
        compare(&mut redis.connection(), text.as_bytes());
        for name in names {
            let first = format!("{{\"{name}\":\"{second}\",\"type\":\"mine\"}}");
            compare(&mut redis.connection(), first.as_bytes());
        }
    }
}

/// More characters than the library keeps in mind, the good ones and then a bad one.
#[tokio::test]
async fn all_characters_of_unicode_are_accepted() {
    let redis = Redis::start().await;
    let _gateway = gateway::on_redis(&redis).await;
    let connection = &mut redis.connection();
    let all: Vec<char> = (' '..=char::MAX).filter(|c| !matches!(c, '"' | '\\')).collect();
    for some in all.chunks(100_000) {
        let text: String = some.iter().collect();
        compare(connection, format!("\"{text}\"").as_bytes());
        compare(connection, &[b"\"", text.as_bytes(), b"\xed\xa0\x80\""].concat());
    }
}

/// What names are put together from: good pieces, words that are refused, and characters at the edge of the grammar.
const PIECES: &[&[u8]] = &[
    b"user",
    b"post",
    b"u1",
    b"did%3Aa",
    b":",
    b":",
    b":",
    b"::",
    b"undefined",
    b"null",
    b"NaN",
    b"nan",
    b"control",
    b"gateway",
    b"canary",
    b"-",
    b"_",
    b".",
    b"@",
    b"|",
    b"\xc3\xa9",
    b"\xe4\xb8\x80",
    b"\xf0\x9f\x98\x80",
    b" ",
    b"*",
    b"[",
    b"'",
    b"\n",
    b"\0",
    b"\x7f",
    b"\xc2\x85",
    b"\xc2\xa0",
    b"\xc2\xa1",
    b"\xe1\x9a\x80",
    b"\xe2\x80\x8a",
    b"\xe2\x80\x8b",
    b"\xe3\x80\x80",
    b"\xff",
    b"\xc2",
    b"\x85",
    b"[object Object]",
];

/// Names that publishers make.
fn name() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(select(PIECES), 0..6).prop_map(|pieces| pieces.concat())
}

/// A publisher may use the names that a client can subscribe to, except for ids that nobody has.
#[tokio::test]
async fn the_library_takes_the_names_that_the_gateway_does() {
    let redis = Redis::start().await;
    let _gateway = gateway::on_redis(&redis).await;
    let connection = std::cell::RefCell::new(redis.connection());
    let config = Config { cases: 4000, failure_persistence: None, ..Config::default() };

    let run = TestRunner::new(config).run(&name(), |name| {
        let parsed = std::str::from_utf8(&name).ok().and_then(|n| n.parse::<ChannelName>().ok());
        let due = parsed.is_some_and(|name| name.missing_id().is_none());
        let key = [b"tollgate:", &*name].concat();
        let found = verdict(&mut connection.borrow_mut(), &key, b"1");
        assert_eq!(found.is_ok(), due, "{:?}: {found:?}", String::from_utf8_lossy(&name));
        Ok(())
    });
    run.unwrap_or_else(|e| panic!("{e}"));
}
