//! Streams as common clients read them: how they come back, what they take for an event, and what
//! stands between them and the gateway.

use serde_json::{Value, json};
use tollgate_support::DEADLINE;
use tollgate_support::client::Client;
use tollgate_support::gateway::Gateway;
use tollgate_support::http::http_raw;
use tollgate_support::sse::Stream;
use tollgate_support::tokens::{SECRET, now, sign};

use super::gateway;
use super::history::rules;

async fn publish(gateway: &Gateway, channel: &str, data: Value) {
    let answer = gateway.api("publish", &json!({"channel": channel, "data": data})).await;
    assert!(answer["error"].is_null(), "{answer}");
}

fn encoded(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

/// The next event of a channel, with nothing but `subscribed` before it.
async fn first(mut stream: Stream, channels: usize) -> Value {
    let begun = stream.begun(channels).await;
    assert!(begun.iter().all(|e| e.kind == "subscribed"), "{begun:?}");
    stream.next().await.data
}

/// Clients that stand in for `EventSource` send their last id in the query, perhaps beside one
/// that the page gave them, or the header. It was ignored, and events during the break were
/// lost in silence.
#[tokio::test]
async fn field_c2_a_query_names_the_last_event_too() {
    let gateway = gateway::with(&rules(10, "")).await;
    let channels = "channels=post:1";
    let mut stream = Stream::of(&gateway, "u1", channels, "").await;
    stream.begun(2).await;
    let start = stream.last.clone();
    publish(&gateway, "post:1", json!(1)).await;
    stream.next().await;
    let middle = stream.last.clone();
    drop(stream);
    for n in 2..=3 {
        publish(&gateway, "post:1", json!(n)).await;
    }

    for name in [
        "lastEventId",
        "last-event-id",
        "lasteventid",
        "last_event_id",
        "Last-Event-ID",
        "evs_last_event_id",
    ] {
        let query = format!("{channels}&{name}={}", encoded(&middle));
        assert_eq!(first(Stream::of(&gateway, "u1", &query, "").await, 2).await, 2, "{name}");
    }

    for (since, query, header) in [
        (&start, &middle, ""),
        (&middle, &start, ""),
        (&start, &start, &*middle),
        (&start, &middle, &*start),
    ] {
        let query = format!("{channels}&since={}&lastEventId={}", encoded(since), encoded(query));
        let stream = Stream::of(&gateway, "u1", &query, header).await;
        assert_eq!(first(stream, 2).await, 2, "the later position counts");
    }

    // The first request of such a client has an empty id.
    let mut stream = Stream::of(&gateway, "u1", &format!("{channels}&lastEventId="), "").await;
    let begun = stream.begun(2).await;
    assert!(begun.iter().all(|e| e.data["data"]["recovered"].is_null()), "{begun:?}");
}

/// Reads a stream as text to its end, or until it holds `text`.
async fn read_to(mut stream: Stream, text: &str) -> String {
    let mut read = String::new();
    while !read.contains(text) {
        let chunk = tokio::time::timeout(DEADLINE, stream.response.chunk()).await.unwrap();
        let Some(chunk) = chunk.unwrap() else { break };
        read.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    read
}

/// Clients that read by `fetch` take each blank line for the end of an event, and one without data
/// for an empty one: a page that parses it fails, and opens the stream again, for ever.
#[tokio::test]
async fn field_c3_every_block_of_a_stream_has_data() {
    let limits = "[limits]\nping_interval = \"1s\"\nconnections_per_ip = 1\n";
    let gateway = gateway::with(&format!("{limits}{}", rules(10, ""))).await;
    let bearer = format!("Bearer {}", sign(&json!({"sub": "u1", "exp": now() + 8}), SECRET));
    let headers = [("authorization", &*bearer), ("accept", "text/event-stream")];
    let whole = Stream::open(&gateway, "channels=post:1", &headers).await.unwrap();
    let put_off = Stream::open(&gateway, "channels=post:1", &headers).await.unwrap();
    publish(&gateway, "post:1", json!("event")).await;

    let put_off = read_to(put_off, "nothing").await;
    let whole = read_to(whole, "nothing").await;
    assert!(whole.contains("\n:\n"), "heartbeats: {whole}");
    for (name, text) in [("whole", whole), ("put off", put_off)] {
        assert!(text.starts_with("retry: "), "{name}: {text}");
        let blocks = text.strip_suffix("\n\n").unwrap().split("\n\n");
        for block in blocks {
            let data: Vec<_> = block.lines().filter_map(|l| l.strip_prefix("data: ")).collect();
            assert!(serde_json::from_str::<Value>(&data.join("\n")).is_ok(), "{name}: {block:?}");
        }
        assert!(text.contains("event: close"), "{name}: {text}");
    }
}

/// A server in between that compresses answers would collect a stream's events. Express'
/// `compression` heeds this header.
#[tokio::test]
async fn field_c4_a_stream_is_not_to_be_transformed() {
    let gateway = gateway::with(&rules(10, "")).await;
    let stream = Stream::of(&gateway, "u1", "channels=post:1", "").await;
    assert_eq!(stream.response.headers()["cache-control"], "no-cache, no-transform");
}

async fn preflight(gateway: &Gateway, names: &str) -> String {
    let request = format!(
        "OPTIONS /sse HTTP/1.1\r\nHost: {0}\r\nOrigin: http://{0}\r\nConnection: close\r\n\
         Access-Control-Request-Method: GET\r\nAccess-Control-Request-Headers: {names}\r\n\r\n",
        gateway.public
    );
    let (head, _) = http_raw(&gateway.public, request.as_bytes()).await;
    let head = head.to_ascii_lowercase();
    let line = head.lines().find_map(|l| l.strip_prefix("access-control-allow-headers: "));
    line.unwrap_or_else(|| panic!("{head}")).to_owned()
}

/// Tracing puts headers of its own on every request of a page, and the browser asks whether they
/// are allowed.
#[tokio::test]
async fn field_d6_a_preflight_allows_what_pages_send() {
    let server = "[server]\nallowed_headers = [\"X-Tenant\"]\n";
    let gateway = gateway::with(&format!("{server}{}", rules(10, ""))).await;
    let allowed = preflight(&gateway, "sentry-trace,x-tenant").await;
    let allowed: Vec<_> = allowed.split(", ").collect();
    for name in [
        "authorization",
        "baggage",
        "cache-control",
        "content-type",
        "last-event-id",
        "sentry-trace",
        "traceparent",
        "tracestate",
        "x-tenant",
    ] {
        assert!(allowed.contains(&name), "{name} is not in {allowed:?}");
    }
}

/// On a stream of many channels the ids were hundreds of times as large as the events.
#[tokio::test]
async fn field_f3_a_stream_of_many_channels_resumes_by_a_short_id() {
    let gateway = gateway::with(&rules(10, "")).await;
    let names: Vec<_> = (0..119).map(|n| format!("post:{n}")).collect();
    let query = format!("channels={}", names.join(","));
    let mut stream = Stream::of(&gateway, "u1", &query, "").await;
    stream.begun(120).await;
    publish(&gateway, "post:7", json!("seen")).await;
    let event = stream.next().await;
    let id = event.id.unwrap();
    assert!(id.len() < 1100, "{} bytes: {id}", id.len());
    drop(stream);

    for channel in ["post:7", "post:118"] {
        publish(&gateway, channel, json!(channel)).await;
    }
    // A client asks for the same channels, and for some of them in another order beside a new one.
    for (query, channels) in [(&*query, 120), ("channels=post:118,other:1,post:7", 3)] {
        let query = query.replace("other", "plain");
        let mut stream = Stream::of(&gateway, "u1", &query, &id).await;
        let (mut seen, mut subscribed) = (Vec::new(), 0);
        while seen.len() < 2 || subscribed < channels {
            let event = stream.next().await;
            match &*event.kind {
                "message" => seen.push(event.data.as_str().unwrap().to_owned()),
                "gap" => assert_eq!(event.data["data"]["channel"], "plain:1"),
                "subscribed" => {
                    subscribed += 1;
                    let is_new = event.data["data"]["channel"] == "plain:1";
                    assert_eq!(event.data["data"]["recovered"], !is_new, "{event:?}");
                }
                _ => assert_eq!(event.kind, "connected"),
            }
        }
        seen.sort_unstable();
        assert_eq!(seen, ["post:118", "post:7"]);
    }

    // A socket has ids of its own, and refuses this one.
    let path = format!("/ws?format=envelope&since={}", encoded(&id));
    assert!(Client::open(&gateway.public, &path, &[]).await.is_err());
}
