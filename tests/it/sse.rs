//! Server-sent events: the same session as on a socket, resuming by `Last-Event-ID`, limits
//! and refusals.

use serde_json::{Value, json};
use tollgate_support::client::Client;
use tollgate_support::gateway::Gateway;
use tollgate_support::http::http_raw;
use tollgate_support::redis::Redis;
use tollgate_support::sse::{Event, Stream};
use tollgate_support::tokens::{SECRET, now, sign, token};
use tollgate_support::{DEADLINE, eventually};

use super::gateway;
use super::history::rules;

async fn publish(gateway: &Gateway, channel: &str, data: Value) {
    let answer = gateway.api("publish", &json!({"channel": channel, "data": data})).await;
    assert!(answer["error"].is_null(), "{answer}");
}

async fn streams(gateway: &Gateway) {
    let mut stream = Stream::of(gateway, "u1", "channels=post:1,plain:2", "").await;
    stream.begun(3).await;
    assert!(stream.retry.is_some_and(|ms| (500..=2000).contains(&ms)));
    publish(gateway, "post:1", json!({"n": 1})).await;
    publish(gateway, "plain:2", json!({"n": 2})).await;
    publish(gateway, "user:u1", json!({"n": 3})).await;
    let events = [stream.next().await, stream.next().await, stream.next().await];
    for (n, event) in events.iter().enumerate() {
        assert_eq!((&*event.kind, &event.data["n"]), ("message", &json!(n + 1)));
    }

    // An id says where every channel with a history stands; a plain event does not move it.
    assert_eq!(events[1].id, None);
    for channel in ["post%3A1=", "user%3Au1="] {
        assert!(stream.last.contains(channel), "{}", stream.last);
    }

    let (last, open) = (stream.last.clone(), stream);
    drop(open);
    for n in 4..=6 {
        publish(gateway, "post:1", json!({"n": n})).await;
    }
    publish(gateway, "user:u1", json!({"n": 7})).await;

    // By Last-Event-ID and by the URL; a cut in the middle resumes in the middle.
    let mut stream = Stream::of(gateway, "u1", "channels=post:1,plain:2", &last).await;
    let (mut seen, mut middle) = (Vec::new(), String::new());
    assert_eq!(stream.next().await.kind, "connected");
    while seen.len() < 4 {
        let event = stream.next().await;
        match &*event.kind {
            "message" => seen.push(event.data["n"].as_u64().unwrap()),
            "gap" => assert_eq!(event.data["data"]["channel"], "plain:2"),
            "subscribed" if event.data["data"]["channel"] == "plain:2" => {}
            "subscribed" => assert_eq!(event.data["data"]["recovered"], true, "{event:?}"),
            other => panic!("{other}: {event:?}"),
        }
        if seen.last() == Some(&5) && middle.is_empty() {
            middle.clone_from(&stream.last);
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, [4, 5, 6, 7]);

    let since: String = form_urlencoded::byte_serialize(middle.as_bytes()).collect();
    let mut stream = Stream::of(gateway, "u1", &format!("channels=post:1&since={since}"), "").await;
    stream.begun(2).await;
    assert_eq!(stream.next().await.data["n"], 6);

    // A plain channel has no history: a client that comes back to it may have missed something.
    let mut stream = Stream::of(gateway, "u1", "channels=plain:2,post:1", &last).await;
    let events = stream.begun(3).await;
    let gaps: Vec<_> = events.iter().filter(|e| e.kind == "gap").collect();
    assert_eq!(gaps.len(), 1, "{events:?}");
    assert_eq!(gaps[0].data["data"]["channel"], "plain:2");

    // What cannot be recovered is declared by an event, before the position behind it.
    let lost = "post%3A1=1-1&user%3Aother=1-5";
    let mut stream = Stream::of(gateway, "u1", "channels=post:1", lost).await;
    let events = stream.begun(2).await;
    let is_gap = |e: &Event| e.kind == "gap" && e.data["data"]["channel"] == "post:1";
    let gap = events.iter().position(is_gap).expect("a gap");
    assert_eq!((&*events[gap + 1].kind, &events[gap].id), ("subscribed", &None));
    assert_eq!(events[gap + 1].data["data"]["recovered"], false);
    assert!(events[gap + 1].id.is_some());
}

#[tokio::test]
async fn a_stream_resumes_with_the_memory_broker() {
    streams(&gateway::with(&rules(10, "")).await).await;
}

#[tokio::test]
async fn a_stream_resumes_with_redis() {
    let redis = Redis::start().await;
    let gateway = gateway::with(&rules(10, &redis.config())).await;
    gateway.ready().await;
    streams(&gateway).await;
}

#[tokio::test]
async fn a_stream_may_be_of_envelopes() {
    let gateway = gateway::with(&rules(10, "")).await;
    let mut stream = Stream::of(&gateway, "u1", "channels=plain:2&format=envelope", "").await;
    stream.begun(2).await;
    publish(&gateway, "plain:2", json!(1)).await;
    let event = stream.next().await.data;
    assert_eq!(event, json!({"type": "event", "channel": "plain:2", "data": 1}));
}

/// W17: permanent errors are HTTP statuses, bounded and with a reason.
#[tokio::test]
async fn w17_bad_requests_for_a_stream_are_refused() {
    let limits = "[limits]\nchannels_per_connection = 400\n";
    let gateway = gateway::with(&format!("{limits}{}", rules(10, ""))).await;
    let bearer = format!("Bearer {}", token("u1"));
    let auth = ("authorization", bearer.as_str());

    let long = "a=1-1&".repeat(8000);
    let many: Vec<_> = (0..401).map(|n| format!("post:{n}")).collect();
    let many = format!("channels={}", many.join(","));
    let wrong =
        sign(&json!({"sub": "u1", "exp": now() + 60}), "another-secret-of-32-bytes-or-more!!");
    let wrong = format!("Bearer {wrong}");
    let names: Vec<_> = (0..300).map(|n| format!("post:{n}")).collect();
    let names = format!("channels={}", names.join(","));

    for (query, headers, status, why) in [
        ("channels=post:*", vec![auth], 400, "channels"),
        ("channels=a:", vec![auth], 400, "channels"),
        (&many, vec![auth], 400, "at most 400"),
        (&names, vec![auth], 400, "too many channels for one stream"),
        ("channels=post:1&format=x", vec![auth], 400, "format"),
        ("channels=post:1&since=nonsense", vec![auth], 400, "since"),
        ("channels=post:1", vec![auth, ("last-event-id", "post:1=7")], 400, "Last-Event-ID"),
        (
            "channels=post:1",
            vec![auth, ("last-event-id", "post:1=1-1\u{e9}")],
            400,
            "Last-Event-ID",
        ),
        ("channels=post:1", vec![auth, ("last-event-id", &long)], 400, "Last-Event-ID"),
        ("channels=user:u2", vec![auth], 403, "another user"),
        ("channels=post:1,secret:1", vec![auth], 403, "no rule"),
        ("channels=post:1", vec![], 401, "missing"),
        ("channels=post:1", vec![("authorization", &wrong)], 401, "bad_signature"),
        ("channels=post:1", vec![auth, ("origin", "https://evil.example")], 403, "origin"),
    ] {
        let refused = Stream::open(&gateway, query, &headers).await.err();
        let (code, message) = refused.unwrap_or_else(|| panic!("{query} was accepted"));
        assert_eq!(code, status, "{query}: {message}");
        assert!(message.contains(why), "{query}: {message}");
    }

    let request = "POST /sse HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    assert!(http_raw(&gateway.public, request.as_bytes()).await.0.contains("405"));
    eventually("nothing is left", || async {
        (gateway.metric("connections{").await == 0.0).then_some(())
    })
    .await;
}

/// A page of an allowed origin may read the stream; the request's own host always may.
#[tokio::test]
async fn allowed_origins_may_read_a_stream() {
    let config =
        format!("[server]\nallowed_origins = [\"https://app.example\"]\n{}", rules(10, ""));
    let gateway = gateway::with(&config).await;
    let bearer = format!("Bearer {}", token("u1"));
    let headers = [("authorization", &*bearer), ("origin", "https://app.example")];
    let stream = Stream::open(&gateway, "channels=post:1", &headers).await.unwrap();
    let headers = stream.response.headers();
    assert_eq!(headers["access-control-allow-origin"], "https://app.example");
    assert_eq!(headers["access-control-allow-credentials"], "true");
    assert_eq!(headers["vary"], "origin");
}

/// A stream counts, ends and is drained like a socket; a client that goes leaves nothing behind.
#[tokio::test]
async fn w14_a_stream_leaves_nothing_behind() {
    let limits = "[limits]\nconnections_per_user = 2\n";
    let gateway = gateway::with(&format!("{limits}{}", rules(10, ""))).await;
    let one = Stream::of(&gateway, "u1", "channels=post:1", "").await;
    let mut two = Stream::of(&gateway, "u1", "channels=post:1", "").await;
    two.begun(2).await;

    // An EventSource is told to come back, since it would not from a status.
    let mut third = Stream::of(&gateway, "u1", "channels=post:1", "").await;
    assert_eq!(third.next().await.data["data"]["code"], 4429);
    assert_eq!((third.try_next().await, third.retry.is_some()), (None, true));

    // The end of the third stream is counted after its client was told.
    eventually("two are left", || async {
        (gateway.metric("connections{wire=\"plain\",transport=\"sse\"}").await == 2.0).then_some(())
    })
    .await;
    drop(one);
    eventually("one is gone", || async {
        (gateway.metric("connections{wire=\"plain\",transport=\"sse\"}").await == 1.0).then_some(())
    })
    .await;

    let answer = gateway.api("disconnect", &json!({"user": "u1"})).await;
    assert_eq!(answer, json!({"result": {}}));
    let close = two.next().await;
    assert_eq!((&*close.kind, &close.data["data"]["code"]), ("close", &json!(4409)));
    assert_eq!(two.try_next().await, None, "and then it ends");
    eventually("nothing is left", || async {
        let (_, body) = gateway.get_admin("/debug/connections").await;
        let body: Value = serde_json::from_str(&body).unwrap();
        (body["total"] == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn w21_a_drain_sends_streams_away() {
    let gateway = gateway::with(&rules(10, "")).await;
    let mut stream = Stream::of(&gateway, "u1", "channels=post:1", "").await;
    stream.begun(2).await;
    gateway.signal("-TERM");
    assert_eq!(stream.next().await.kind, "reconnect");
    assert_eq!(stream.next().await.kind, "close");
    assert_eq!(stream.try_next().await, None);
}

/// W18: a quiet stream is kept alive by comments, and a token's end is its end.
#[tokio::test]
async fn w18_heartbeats_and_the_end_of_a_token() {
    let limits = "[limits]\nping_interval = \"1s\"\n[auth]\nexpiring_notice = \"1s\"\n";
    let gateway = gateway::with(&format!("{limits}{}", rules(10, ""))).await;
    let bearer = format!("Bearer {}", sign(&json!({"sub": "u1", "exp": now() + 9}), SECRET));
    let headers = [("authorization", &*bearer)];
    let mut stream = Stream::open(&gateway, "channels=post:1", &headers).await.unwrap();
    stream.begun(2).await;

    // What was read until now ended with a block.
    let mut raw = "\n\n".to_owned();
    while !raw.contains("event: close") {
        let chunk = tokio::time::timeout(DEADLINE, stream.response.chunk()).await.unwrap();
        raw.push_str(std::str::from_utf8(&chunk.unwrap().expect("a close first")).unwrap());
    }
    assert!(raw.contains("\n\n:\n"), "{raw}");
    assert!(raw.contains("event: token_expiring"), "{raw}");
    assert!(raw.contains("\"reason\":\"expired\""), "{raw}");
}

/// W12: a client of a stream that does not read is closed, and the others go on.
#[tokio::test]
async fn w12_a_slow_stream_is_closed() {
    let limits = "[limits]\nqueue_bytes = 2000000\n";
    let gateway = gateway::with(&format!("{limits}{}", rules(10, ""))).await;
    let slow = Stream::of(&gateway, "u1", "channels=plain:1", "").await;
    let mut good = Client::connect(&gateway, "u2").await;
    good.subscribe(json!("plain:1")).await;
    let large = "x".repeat(200_000);
    for n in 0..60 {
        publish(&gateway, "plain:1", json!({"n": n, "large": large})).await;
        assert_eq!(good.next().await["n"], n);
    }
    gateway.metric_reaches("slow_consumers_total", 1.0).await;
    gateway.metric_reaches("connections_closed_total{reason=\"slow_consumer\"}", 1.0).await;
    drop(slow);
}

/// One event of a megabyte to many streams is one copy of it in memory, not many.
#[tokio::test]
async fn streams_share_an_events_bytes() {
    let limits = "[limits]\nconnections_per_user = 500\n";
    let gateway = gateway::with(&format!("{limits}{}", rules(10, ""))).await;
    let mut streams = Vec::new();
    for _ in 0..100 {
        streams.push(Stream::of(&gateway, "u1", "channels=post:1", "").await);
    }
    publish(&gateway, "post:1", json!({"large": "x".repeat(500_000)})).await;
    for stream in &mut streams {
        stream.begun(2).await;
        let event = stream.next().await;
        assert_eq!(event.data["large"].as_str().unwrap().len(), 500_000);
        assert!(event.id.is_some());
    }
}

/// A client that missed more on several channels than its queue holds is caught up all the same: it
/// used to be closed as slow, and to come back to the same.
#[tokio::test]
async fn a_stream_that_missed_much_is_caught_up() {
    let gateway = gateway::with(&rules(1000, "")).await;
    let channels: Vec<_> = (0..8).map(|n| format!("post:{n}")).collect();
    let query = format!("channels={}", channels.join(","));
    let mut stream = Stream::of(&gateway, "u1", &query, "").await;
    stream.begun(9).await;
    let last = stream.last.clone();
    drop(stream);

    let large = "x".repeat(40_000);
    for channel in &channels {
        for n in 0..10 {
            publish(&gateway, channel, json!({"channel": channel, "n": n, "large": large})).await;
        }
    }

    let mut stream = Stream::of(&gateway, "u1", &query, &last).await;
    let mut next = std::collections::BTreeMap::<String, u64>::new();
    while next.values().sum::<u64>() < 80 {
        let event = stream.next().await;
        assert!(["connected", "subscribed", "message"].contains(&&*event.kind), "{}", event.kind);
        if event.kind == "message" {
            let due = next.entry(event.data["channel"].as_str().unwrap().to_owned()).or_default();
            assert_eq!(event.data["n"], *due);
            *due += 1;
        }
    }
}

/// A stream that is cut while it catches up comes back to where it was on all of its channels.
#[tokio::test]
async fn the_first_ids_of_a_stream_forget_no_channel() {
    let gateway = gateway::with(&rules(10, "")).await;
    let mut stream = Stream::of(&gateway, "u1", "channels=post:1,post:2", "").await;
    stream.begun(3).await;
    let last = stream.last.clone();
    drop(stream);

    publish(&gateway, "post:2", json!(1)).await;
    let mut stream = Stream::of(&gateway, "u1", "channels=post:1,post:2", &last).await;
    loop {
        let event = stream.next().await;
        if let Some(id) = event.id {
            for channel in ["user%3Au1=", "post%3A1=", "post%3A2="] {
                assert!(id.contains(channel), "{id}");
            }
            break;
        }
    }
}

/// A publication that cannot be delivered is not sent to a client that resumes either.
#[tokio::test]
async fn r11_a_resume_over_an_invalid_publication_is_not_recovered() {
    let redis = Redis::start().await;
    let gateway = gateway::with(&rules(10, &redis.config())).await;
    gateway.ready().await;
    let mut stream = Stream::of(&gateway, "u1", "channels=post:1", "").await;
    stream.begun(2).await;
    let last = stream.last.clone();
    drop(stream);

    let mut connection = redis.connection();
    for payload in [&b"1"[..], b"\xff", b"{nonsense", b"4"] {
        let mut call = redis::cmd("FCALL");
        call.arg("tollgate_publish").arg(1).arg("tollgate:post:1").arg(payload);
        call.arg(&["600", "100", "", "raw"]);
        call.exec(&mut connection).unwrap();
    }

    let mut stream = Stream::of(&gateway, "u1", "channels=post:1", &last).await;
    let events = stream.begun(2).await;
    let subscribed =
        events.iter().find(|e| e.data["data"]["channel"] == "post:1" && e.kind == "subscribed");
    assert_eq!(subscribed.unwrap().data["data"]["recovered"], false);

    // A client that resumes from behind it is recovered.
    let after = stream.last.replace("-4", "-3");
    let mut stream = Stream::of(&gateway, "u1", "channels=post:1", &after).await;
    stream.begun(2).await;
    assert_eq!(stream.next().await.data, json!(4));
}

/// A page of an allowed origin may send the token in a header. The image of a foreign page
/// opens nothing.
#[tokio::test]
async fn preflight_and_hidden_requests() {
    let gateway = gateway::with(&rules(10, "")).await;
    let request = format!(
        "OPTIONS /sse HTTP/1.1\r\nHost: {0}\r\nOrigin: http://{0}\r\nConnection: close\r\n\r\n",
        gateway.public
    );
    let (head, _) = http_raw(&gateway.public, request.as_bytes()).await;
    assert!(head.contains("204") && head.to_lowercase().contains("authorization"), "{head}");
    let bearer = format!("Bearer {}", token("u1"));
    let headers = [("authorization", &*bearer), ("sec-fetch-site", "cross-site")];
    assert_eq!(Stream::open(&gateway, "channels=post:1", &headers).await.err().unwrap().0, 403);
}
