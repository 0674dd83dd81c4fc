//! Events that could be taken for the gateway's own messages.

use serde_json::json;
use tollgate::protocol::Kind;
use tollgate_support::client::Client;
use tollgate_support::redis::Redis;
use tollgate_support::sse::Stream;

use super::gateway;

#[tokio::test]
async fn field_c6_events_of_the_gateways_own_types_are_refused_or_declared() {
    let redis = Redis::start().await;
    let mut gateway = gateway::on_redis(&redis).await;
    let mut client = Client::connect(&gateway, "u1").await;
    let mut stream = Stream::of(&gateway, "u1", "", "").await;
    assert_eq!(stream.next().await.kind, "connected");
    assert_eq!(stream.next().await.kind, "subscribed");
    let gap = json!({"type":"gap","data":{"channel":"user:u1","reason":"reserved_type"}});

    for kind in Kind::ALL {
        let name = kind.name();
        let event = json!({"data": {"code": 1}, "type": name});
        // The server API refuses the event, names the type and says what to do.
        for (method, to) in [
            ("publish", json!({"channel": "user:u1"})),
            ("broadcast", json!({"channels": ["user:u1"]})),
        ] {
            let mut ask = to;
            ask["data"] = event.clone();
            let mut answer = gateway.api(method, &ask).await;
            if method == "broadcast" {
                answer = answer["result"]["responses"][0].clone();
            }
            assert_eq!(answer["error"]["code"], 107, "{answer}");
            let said = answer["error"]["message"].as_str().unwrap();
            assert!(said.contains(&format!("the type \"{name}\" is the gateway's own")), "{said}");
            assert!(said.contains(&format!("for example \"app.{name}\"")), "{said}");
        }

        // The function that publishers call refuses it too.
        let said = redis.fcall("user:u1", &event.to_string()).unwrap_err().to_string();
        assert!(said.contains(&format!("the type \"{name}\" is reserved")), "{said}");

        // A bare PUBLISH is declared, and no client receives the event.
        redis.publish("tollgate:user:u1", &event.to_string());
        assert_eq!(client.next().await, gap);
        let declared = stream.next().await;
        assert_eq!((&*declared.kind, &declared.data), ("gap", &gap));
    }

    let line = gateway.logged("its type is \\\"connected\\\"").await;
    assert!(
        line.contains("publication not delivered") && line.contains("channel=user:u1"),
        "{line}"
    );
    let n = Kind::ALL.len() as f64;
    gateway.metric_reaches("gaps_declared_total{reason=\"reserved_type\"}", n).await;
    gateway.metric_reaches("rejected_total{reason=\"publication_type\"}", n).await;

    // Types that only resemble them, and `event`, which is never sent bare, are the application's.
    for free in [
        json!({"type": "Gap"}),
        json!({"type": "event"}),
        json!({"a": {"type": "gap"}}),
        json!("gap"),
    ] {
        gateway.publish("user:u1", &free).await;
        assert_eq!(client.next().await, free);
        redis.publish("tollgate:user:u1", &free.to_string());
        assert_eq!(client.next().await, free);
    }
}
