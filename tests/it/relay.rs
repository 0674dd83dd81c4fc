//! The outbox and its relay: what is committed is in the channel's history once, whatever dies.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;
use tollgate_support::client::Client;
use tollgate_support::eventually;
use tollgate_support::postgres::{Postgres, connect};
use tollgate_support::proxy::{Mode, Proxy};
use tollgate_support::redis::Redis;
use tollgate_support::relay::Relay;

use crate::gateway;
use crate::shop::{PROGRAM, RULES, Shop, buy, buyer, in_order, sql};

#[tokio::test]
async fn a_committed_purchase_reaches_the_socket_and_one_that_is_rolled_back_never_does() {
    let shop = Shop::start().await;
    let rules = format!("{}{RULES}", shop.redis.config());
    let gateway = gateway::with(&rules).await;
    gateway.ready().await;
    let mut client = Client::connect(&gateway, "u1").await;
    let relay = shop.relay();
    relay.leads().await;

    let web = shop.postgres.application().await;
    web.batch_execute("BEGIN; SELECT tollgate_publish('user:u1', '{\"postId\":0}'); ROLLBACK")
        .await
        .unwrap();
    // Clients receive the text as it was written.
    web.batch_execute("SELECT tollgate_publish('user:u1', '{\"postId\" :  1.50}')").await.unwrap();
    assert_eq!(client.next_text().await, "{\"postId\" :  1.50}");

    let key = "SELECT tollgate_publish('user:u1', '{\"postId\":2}', 'order-2')::text";
    let first: String = web.query_one(key, &[]).await.unwrap().get(0);
    let again: String = web.query_one(key, &[]).await.unwrap().get(0);
    assert_eq!(first, again, "one row for one key");
    buy(&web, "u1", 3).await;
    assert_eq!(
        [client.next().await, client.next().await],
        [json!({"postId": 2}), json!({"type": "post_unlocked", "postId": 3})]
    );
    client.nothing_came().await;

    shop.all_published().await;
    relay.metric_reaches("relay_published_total", 3.0).await;
    let (status, well) = relay.run(&["status"]);
    assert!(
        well && status.contains("waiting    0 rows\n") && status.contains("3 rows within"),
        "{status}"
    );
    let settled = "tollgate:user:u1:{tollgate:user:u1}";
    eventually("settled", || async {
        let ttl: i64 = redis::cmd("TTL").arg(settled).query(&mut shop.redis.connection()).unwrap();
        (ttl > 0).then_some(())
    })
    .await;
}

/// A relay, killed again and again while rows come in.
#[tokio::test]
async fn a_relay_that_is_killed_at_any_moment_publishes_each_row_once() {
    let shop = Shop::start().await;
    let mut relay = shop.relay();
    relay.leads().await;
    let buyers = ["u1", "u2", "u3"].map(|user| (user, buyer(&shop, user)));

    for _ in 0..12 {
        sleep(Duration::from_millis(fastrand::u64(20..400))).await;
        relay.restart();
        relay.leads().await;
    }

    let mut bought = BTreeMap::new();
    for (user, (stop, task)) in buyers {
        stop.send(()).unwrap();
        bought.insert(user.to_owned(), in_order(task.await.unwrap()));
    }
    shop.all_published().await;
    assert_eq!(shop.histories(), bought);
}

/// The answer of Redis, or the whole way to it, is lost: rows in doubt are not published twice.
#[tokio::test]
async fn a_lost_answer_of_redis_doubles_nothing() {
    let shop = Shop::start().await;
    let proxy = Proxy::start(shop.redis.address()).await;
    let relay = Relay::start(
        PROGRAM,
        &shop.config_at(&shop.postgres.address(), &proxy.address.to_string()),
    );
    relay.leads().await;
    let (stop, task) = buyer(&shop, "u1");

    for round in 0..10 {
        sleep(Duration::from_millis(fastrand::u64(50..200))).await;
        if round % 2 == 0 {
            proxy.set(Mode::CutOnce(round));
        } else {
            // What was on its way arrives late, behind what was sent anew.
            proxy.set(Mode::Blackhole);
            sleep(Duration::from_millis(1500)).await;
            proxy.set(Mode::Pass);
        }
    }

    stop.send(()).unwrap();
    let bought = task.await.unwrap();
    shop.all_published().await;
    assert_eq!(shop.histories()["u1"], in_order(bought));
}

/// The mark is lost: the database dies after Redis has the rows.
#[tokio::test]
async fn a_database_that_dies_before_the_mark_doubles_nothing() {
    let mut shop = Shop::start().await;
    let relay = shop.relay();
    relay.leads().await;

    let mut last = 0;
    for _ in 0..5 {
        let web = shop.postgres.application().await;
        for _ in 0..50 {
            last += 1;
            buy(&web, "u1", last).await;
        }
        sleep(Duration::from_millis(fastrand::u64(0..30))).await;
        shop.postgres.kill();
        drop(web);
        shop.postgres.restart().await;
    }
    shop.all_published().await;
    assert_eq!(shop.histories()["u1"], in_order(last));
}

/// While rows are in doubt their guard has no end: no time-out, no idempotency key's five minutes.
#[tokio::test]
async fn a_row_in_doubt_is_guarded_without_a_time_window() {
    let shop = Shop::start().await;
    let owner = shop.postgres.owner().await;
    let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
                  $$ BEGIN RAISE 'no marks today'; END $$; \
                  CREATE TRIGGER refuse BEFORE UPDATE ON tollgate_outbox \
                  FOR EACH ROW EXECUTE FUNCTION refuse()";
    owner.batch_execute(refuse).await.unwrap();
    let relay = shop.relay();
    relay.leads().await;
    shop.buy("u1", 1).await;

    let meta = "tollgate:user:u1:{tollgate:user:u1}";
    let never_expires = || {
        let ttl: i64 = redis::cmd("TTL").arg(meta).query(&mut shop.redis.connection()).unwrap();
        assert_eq!(ttl, -1);
    };
    eventually("published", || async { shop.histories().get("u1").map(|_| ()) }).await;
    never_expires();

    // The application's own durable event on the channel does not end that, and neither does another
    // relay, which knows the row.
    let mut call = redis::cmd("FCALL");
    call.arg("tollgate_publish").arg(1).arg("tollgate:user:u1").arg(r#"{"postId":2}"#);
    call.exec(&mut shop.redis.connection()).unwrap();
    drop(relay);
    let relay = shop.relay();
    eventually("it has tried to mark", || async {
        relay.readyz().await["lastError"]["what"]
            .as_str()
            .filter(|what| what.contains("no marks"))
            .map(|_| ())
    })
    .await;
    never_expires();

    owner.batch_execute("DROP TRIGGER refuse ON tollgate_outbox").await.unwrap();
    shop.all_published().await;
    assert_eq!(shop.histories()["u1"], [1, 2]);
    relay.metric_reaches("relay_repeated_total", 1.0).await;
}

/// A leader that hangs is replaced, and when it wakes it does no harm.
#[tokio::test]
async fn a_leader_that_hangs_is_replaced_and_its_late_calls_are_refused() {
    let shop = Shop::start().await;
    let first = shop.relay();
    first.leads().await;
    let second = shop.relay();
    let (stop, task) = buyer(&shop, "u1");
    sleep(Duration::from_millis(300)).await;

    for (hung, other) in [(&first, &second), (&second, &first)] {
        hung.signal("-STOP");
        other.leads().await;
        sleep(Duration::from_millis(300)).await;
        hung.signal("-CONT");
        eventually("the former leader stands by", || async {
            (hung.readyz().await["leader"] == false).then_some(())
        })
        .await;
    }

    stop.send(()).unwrap();
    let bought = task.await.unwrap();
    shop.all_published().await;
    assert_eq!(shop.histories()["u1"], in_order(bought));
}

/// Two services, each with its own database, publish on the same channel: their terms and rows in doubt
/// have nothing to do with each other.
#[tokio::test]
async fn two_outboxes_publish_on_one_channel() {
    let shop = Shop::start().await;
    let other = Postgres::start().await;
    other.install(PROGRAM).await;
    let mut relays = [
        shop.relay(),
        Relay::start(PROGRAM, &shop.config_at(&other.address(), &shop.redis.address())),
    ];
    for relay in &relays {
        relay.leads().await;
    }

    let mut last = 0;
    for _ in 0..6 {
        let clients = [shop.postgres.application().await, other.application().await];
        for post in last + 1..=last + 100 {
            buy(&clients[0], "u1", post).await;
            buy(&clients[1], "u1", -post).await;
        }
        last += 100;
        // One of them after the other has another term each time.
        let killed = usize::try_from(last / 100 % 2).unwrap();
        relays[killed].restart();
    }

    let all = 2 * usize::try_from(last).unwrap();
    let history = eventually("all rows of both", || async {
        shop.histories().remove("u1").filter(|history| history.len() >= all)
    })
    .await;
    let of =
        |sign: i64| history.iter().map(|post| post * sign).filter(|p| *p > 0).collect::<Vec<_>>();
    assert_eq!((of(1), of(-1)), (in_order(last), in_order(last)));
    shop.all_published().await;
}

/// SIGTERM: the batch that has begun is finished, and another relay goes on at once.
#[tokio::test]
async fn a_relay_that_is_told_to_end_hands_over() {
    let shop = Shop::start().await;
    let mut first = shop.relay();
    first.leads().await;
    let second = shop.relay();
    let (stop, task) = buyer(&shop, "u1");
    sleep(Duration::from_millis(200)).await;

    first.signal("-TERM");
    assert!(first.exited().await);
    second.leads().await;
    stop.send(()).unwrap();
    let bought = task.await.unwrap();
    shop.all_published().await;
    assert_eq!(shop.histories()["u1"], in_order(bought));
    assert_eq!(second.metric("relay_repeated_total").await, 0.0, "nothing was in doubt");
}

/// Redis is away for a while: rows wait, and leave in their order.
#[tokio::test]
async fn rows_wait_while_redis_is_away() {
    let mut shop = Shop::start().await;
    let relay = shop.relay();
    relay.leads().await;
    shop.buy("u1", 1).await;
    shop.all_published().await;

    shop.redis.kill();
    let web = shop.postgres.application().await;
    for post in 2..=500 {
        buy(&web, "u1", post).await;
    }
    eventually("it shows", || async {
        let ready = relay.readyz().await;
        (ready["degraded"] == true && ready["pending"] == 499).then_some(())
    })
    .await;

    shop.redis.restart().await;
    shop.all_published().await;
    assert_eq!(shop.histories()["u1"], (2..=500).collect::<Vec<_>>(), "Redis kept nothing");
}

/// What can never be published is set aside with its reason, and holds up nobody.
#[tokio::test]
async fn rows_that_can_never_be_published_are_dead_and_can_be_retried() {
    let shop = Shop::start().await;
    let owner = shop.postgres.owner().await;
    let web = shop.postgres.application().await;
    let large = format!("\"{}\"", "x".repeat(1 << 20));
    for (channel, event) in [
        ("user:undefined", "{}"),
        ("user:a b", "{}"),
        ("user:u1", r#"{"type":"gap"}"#),
        ("user:u1", &large),
    ] {
        let sql = format!("SELECT tollgate_publish('{channel}', '{event}')");
        web.batch_execute(&sql).await.unwrap();
    }
    // Only the function in Redis knows: a key of another type stands in the way.
    buy(&web, "u1", 1).await;

    let relay = shop.relay();
    shop.all_published().await;
    assert_eq!(shop.histories()["u1"], [1]);
    let rows =
        owner.query("SELECT reason FROM tollgate_outbox_dead ORDER BY id", &[]).await.unwrap();
    let reasons: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(reasons, ["suspicious_id", "channel_name", "reserved_type", "too_large"]);
    relay.metric_reaches("relay_dead_total{reason=\"too_large\"}", 1.0).await;
    let (status, _) = relay.run(&["status", "--json"]);
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["dead"].as_array().unwrap().len(), 4, "{status}");

    owner.batch_execute("UPDATE tollgate_outbox_dead SET channel = 'user:u1', payload = '{\"postId\":7}' WHERE reason = 'suspicious_id'").await.unwrap();
    // A key that was used again meanwhile is no reason to lose the row.
    web.batch_execute("SELECT tollgate_publish('user:u2', '{\"postId\":8}', 'k')").await.unwrap();
    owner.batch_execute("UPDATE tollgate_outbox_dead SET channel = 'user:u2', key = 'k' WHERE reason = 'channel_name'").await.unwrap();
    let (said, well) = relay.run(&["retry", "--all"]);
    assert!(
        !well && said.contains("3 rows put back") && said.contains("1 row left dead"),
        "{said}"
    );
    relay.signal("-HUP");
    eventually("one of them is good now", || async {
        (shop.histories()["u1"] == [1, 7]).then_some(())
    })
    .await;
}

/// A transaction that commits late brings lower ids than have been seen: they are published too.
#[tokio::test]
async fn a_transaction_that_commits_late_is_not_overlooked() {
    let shop = Shop::start().await;
    let relay = shop.relay();
    relay.leads().await;
    let slow = shop.postgres.application().await;
    slow.batch_execute("BEGIN; SELECT tollgate_publish('user:u1', '{\"postId\":1}')")
        .await
        .unwrap();
    shop.buy("u1", 2).await;
    shop.all_published().await;
    slow.batch_execute("COMMIT").await.unwrap();
    eventually("both are there", || async { (shop.histories()["u1"] == [2, 1]).then_some(()) })
        .await;
}

/// What the planner knows of the table is older than a backlog, or nothing.
#[tokio::test]
async fn a_backlog_is_not_read_through_for_each_batch() {
    const ROWS: i64 = 10_000;
    let shop = Shop::start().await;
    let owner = shop.postgres.owner().await;
    owner
        .batch_execute("ALTER TABLE tollgate_outbox SET (autovacuum_enabled = off)")
        .await
        .unwrap();

    for what in ["nothing is known", "none waited"] {
        // So large that looking rows up is less work than reading the table.
        let insert = "INSERT INTO tollgate_outbox (channel, payload) \
                      SELECT 'user:u' || n % 50, json_build_object('postId', n, 'pad', repeat('x', 1000)) \
                      FROM generate_series(1, $1::bigint) n";
        owner.execute(insert, &[&ROWS]).await.unwrap();
        let looked_at = async || -> i64 {
            let sql = "SELECT (seq_tup_read + idx_tup_fetch)::bigint FROM pg_stat_user_tables \
                       WHERE relname = 'tollgate_outbox'";
            owner.query_one(sql, &[]).await.unwrap().get(0)
        };
        let before = looked_at().await;
        let settings = shop.config().replace("[relay]\n", "[relay]\nbatch_rows = 100\n");
        let mut relay = Relay::start(PROGRAM, &settings);
        relay.metric_reaches("relay_published_total", ROWS as f64).await;
        // A connection that ends has told what it did.
        relay.signal("-TERM");
        assert!(relay.exited().await);

        let each = (looked_at().await - before) / ROWS;
        assert!(each < 20, "{what}: each row was looked at {each} times");
        owner.batch_execute("VACUUM ANALYZE tollgate_outbox").await.unwrap();
    }
}

/// `relay check` says what is missing and what to do.
#[tokio::test]
async fn check_says_what_the_database_lacks() {
    let (postgres, redis) = tokio::join!(Postgres::start(), Redis::start());
    let shop = Shop { postgres, redis };
    let relay = shop.relay();
    let (said, well) = relay.run(&["check"]);
    assert!(
        !well && said.contains("no table public.tollgate_outbox: run `tollgate relay sql"),
        "{said}"
    );
    assert_eq!(relay.readyz().await["ready"], false);

    shop.postgres.install(PROGRAM).await;
    shop.postgres.install(PROGRAM).await;
    let owner = shop.postgres.owner().await;
    owner.batch_execute("REVOKE tollgate_relay FROM relay").await.unwrap();
    let (said, well) = relay.run(&["check"]);
    assert!(!well && said.contains("GRANT it the relay's role"), "{said}");

    owner.batch_execute("GRANT tollgate_relay TO relay").await.unwrap();
    assert_eq!(
        relay.run(&["check"]),
        ("the outbox is complete, and Redis can be reached\n".to_owned(), true)
    );
    // The relay that could not work before works now, without a restart.
    relay.leads().await;

    let forbid = ["ACL", "SETUSER", "default", "-persist"];
    shop.redis.command(&forbid).await;
    let (said, well) = relay.run(&["check"]);
    assert!(!well && said.contains("Redis refuses what a relay does"), "{said}");
}

/// The function in SQL encodes ids as the gateway does.
#[tokio::test]
async fn ids_are_encoded_in_sql_as_by_the_gateway() {
    let postgres = Postgres::start().await;
    postgres.install(PROGRAM).await;
    // Letters are compared by such a collation, and it knows no control characters.
    let owner = postgres.owner().await;
    let icu =
        "CREATE DATABASE icu TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en-US' LOCALE 'C'";
    owner.batch_execute(icu).await.unwrap();
    let (icu, _driver) = connect(postgres.port, "postgres", "icu").await.unwrap();
    icu.batch_execute(&sql()).await.unwrap();

    let odd: String = (1..0x3100).filter_map(char::from_u32).chain("😀\u{feff}".chars()).collect();
    for id in ["did:privy:cm1", "a b", "e\u{301}", "x", &odd] {
        let expected = tollgate::channel::encode_id(id);
        for database in [&owner, &icu] {
            let row = database.query_one("SELECT tollgate_encode_id($1)", &[&id]).await.unwrap();
            assert_eq!(row.get::<_, String>(0), expected, "{id:?}");
        }
    }
}
