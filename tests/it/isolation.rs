//! The property that matters most: no event ever reaches a socket whose subscriptions do not hold
//! exactly the published channel, and every event reaches every one that does, once and in order.

use std::collections::BTreeSet;

use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::json;
use tollgate_support::client::Client;
use tollgate_support::gateway::Gateway;

use super::gateway;

/// Ids that are easily confused: prefixes, cases, look-alikes of patterns and paths.
const IDS: [&str; 12] =
    ["1", "12", "112", "2", "u", "U", "u1", "u12", "u1.", "1|2", "user", "u1-u12"];

/// What happens to one socket or channel.
#[derive(Debug, Clone)]
enum Step {
    Connect(usize),
    Drop(usize),
    Subscribe(usize, usize),
    Unsubscribe(usize, usize),
    PublishUser(usize),
    PublishPost(usize),
}

struct Member {
    client: Client,
    channels: BTreeSet<String>,
    expected: Vec<i64>,
}

fn steps() -> Vec<Step> {
    use proptest::prelude::*;
    let id = 0..IDS.len();
    let step = prop_oneof![
        2 => id.clone().prop_map(Step::Connect),
        1 => (0..30usize).prop_map(Step::Drop),
        3 => (0..30usize, id.clone()).prop_map(|(m, c)| Step::Subscribe(m, c)),
        1 => (0..30usize, id.clone()).prop_map(|(m, c)| Step::Unsubscribe(m, c)),
        4 => id.clone().prop_map(Step::PublishUser),
        4 => id.prop_map(Step::PublishPost),
    ];

    // Each run takes other steps; its seed repeats them.
    let seed: [u8; 32] = match std::env::var("ISOLATION_SEED") {
        Ok(text) => std::array::from_fn(|i| text.as_bytes().get(i).copied().unwrap_or_default()),
        Err(_) => std::array::from_fn(|_| fastrand::u8(b'a'..=b'z')),
    };
    eprintln!("ISOLATION_SEED={}", String::from_utf8_lossy(&seed));
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    proptest::collection::vec(step, 400).new_tree(&mut runner).unwrap().current()
}

#[tokio::test]
async fn r13_no_event_reaches_a_socket_without_exactly_its_channel() {
    let config =
        "[server]\nworkers = 2\n[limits]\ncommands_per_second = 100000\ncommand_burst = 100000\n";
    let gateway = gateway::with(config).await;

    // One connection in each of the two shards.
    let mut fences =
        [Client::connect(&gateway, "fence").await, Client::connect(&gateway, "fence").await];
    let mut members: Vec<Member> = Vec::new();
    let steps = steps();

    for (n, step) in steps.iter().enumerate() {
        let n = n as i64;
        // An event that is still on its way when a subscription begins may or may not belong to
        // it; so that the expectation is exact, every change waits until all events have arrived.
        if !matches!(step, Step::PublishUser(_) | Step::PublishPost(_)) {
            gateway.publish("user:fence", &json!({"fence": n})).await;
            for fence in &mut fences {
                assert_eq!(fence.next().await, json!({"fence": n}));
            }
        }

        match *step {
            Step::Connect(id) => members.push(Member {
                client: Client::connect(&gateway, IDS[id]).await,
                channels: BTreeSet::from([format!("user:{}", IDS[id])]),
                expected: Vec::new(),
            }),
            Step::Drop(m) if m < members.len() => {
                members.swap_remove(m);
            }
            Step::Subscribe(m, c) if m < members.len() => {
                let channel = format!("post:{}", IDS[c]);
                members[m].client.send(json!({"type":"subscribe","channel":channel,"id":-1})).await;
                settle(&mut members[m]).await;
                members[m].channels.insert(channel);
            }
            Step::Unsubscribe(m, c) if m < members.len() => {
                let channel = format!("post:{}", IDS[c]);
                members[m]
                    .client
                    .send(json!({"type":"unsubscribe","channel":channel,"id":-1}))
                    .await;
                settle(&mut members[m]).await;
                members[m].channels.remove(&channel);
            }
            Step::PublishUser(id) => publish(&gateway, &mut members, "user", id, n).await,
            Step::PublishPost(id) => publish(&gateway, &mut members, "post", id, n).await,
            Step::Drop(_) | Step::Subscribe(..) | Step::Unsubscribe(..) => {}
        }
    }

    for member in &mut members {
        let expected = std::mem::take(&mut member.expected);
        for n in expected {
            assert_eq!(member.client.next().await, json!({"n": n}), "{:?}", member.channels);
        }
        member.client.nothing_came().await;
    }
}

/// Publishes, and notes which members must receive it.
async fn publish(gateway: &Gateway, members: &mut [Member], kind: &str, id: usize, n: i64) {
    let channel = format!("{kind}:{}", IDS[id]);
    gateway.publish(&channel, &json!({"n": n})).await;
    for member in members.iter_mut().filter(|m| m.channels.contains(&channel)) {
        member.expected.push(n);
    }
}

/// Reads up to the answer of the command just sent, checking the events before it.
async fn settle(member: &mut Member) {
    loop {
        let message = member.client.next().await;
        if message["id"] == json!(-1) {
            return;
        }
        assert!(!member.expected.is_empty(), "not expected: {message}");
        assert_eq!(message, json!({"n": member.expected.remove(0)}));
    }
}
