//! Faults of the outbox that were found by people who had not written it, each with what it does now.
//!
//! Not here: that rows are published once whatever dies (`relay`).

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use redis::Value;
use tollgate_support::eventually;
use tollgate_support::postgres::{DATABASE, connect};
use tollgate_support::proxy::Proxy;
use tollgate_support::relay::Relay;

use crate::shop::{PROGRAM, Shop, sql};

/// Rows of a call of `tollgate_relay`: identity, event, ttl, maxlen, key.
type Rows<'r> = &'r [[&'r str; 5]];

/// Calls the function of the library as a relay does.
fn relayed(
    connection: &mut redis::Connection,
    channel: &str,
    (outbox, term): (&str, u64),
    rows: Rows<'_>,
) -> redis::RedisResult<Vec<Value>> {
    let mut call = redis::cmd("FCALL");
    call.arg("tollgate_relay").arg(1).arg(format!("tollgate:{channel}")).arg(outbox).arg(term);
    rows.iter().flatten().for_each(|argument| {
        call.arg(*argument);
    });
    call.query(connection)
}

/// Offset and `heard` of a row's answer.
fn place(answer: &Value) -> (i64, i64) {
    let Value::Array(parts) = answer else { panic!("no place: {answer:?}") };
    match (&parts[0], &parts[2]) {
        (Value::Int(offset), Value::Int(heard)) => (*offset, *heard),
        other => panic!("no place: {other:?}"),
    }
}

/// A second dead row of one uuid was refused by the table of dead rows, and the leader stopped for ever.
#[tokio::test]
async fn a_copied_row_that_dies_stops_nobody() {
    let shop = Shop::start().await;
    let relay = shop.relay();
    let owner = shop.postgres.owner().await;
    let uuid = "'11111111-1111-1111-1111-111111111111'::uuid";
    owner
        .batch_execute(&format!(
            "INSERT INTO tollgate_outbox (uuid, channel, payload) SELECT {uuid}, 'user:', '1' FROM generate_series(1, 3)"
        ))
        .await
        .unwrap();
    shop.buy("u1", 1).await;
    shop.all_published().await;

    assert_eq!(shop.histories()["u1"], [1]);
    relay.metric_reaches("relay_dead_total", 3.0).await;
    let dead = owner.query_one("SELECT count(*) FROM tollgate_outbox_dead", &[]).await.unwrap();
    assert_eq!(dead.get::<_, i64>(0), 3);
    assert_eq!(relay.metric("relay_errors_total").await, 0.0);
}

/// Two dead rows of one key made `retry` fail as a whole, and an id that no row has was a success.
#[tokio::test]
async fn retry_puts_back_one_of_the_rows_that_share_a_key() {
    let shop = Shop::start().await;
    let relay = shop.relay();
    relay.leads().await;
    let web = shop.postgres.application().await;
    let owner = shop.postgres.owner().await;
    for (at, channel) in [(1, "bad "), (2, "bad "), (3, "worse ")] {
        let key = if at < 3 { "k" } else { "other" };
        let said = format!("SELECT tollgate_publish('{channel}', '{at}', '{key}')");
        web.batch_execute(&said).await.unwrap();
        let counted = format!("SELECT count(*) >= {at} FROM tollgate_outbox_dead");
        eventually("the row is dead", || async {
            owner.query_one(&counted, &[]).await.unwrap().get::<_, bool>(0).then_some(())
        })
        .await;
    }

    let (said, done) = relay.run(&["retry", "99"]);
    assert!(!done && said.contains("no dead row has the id 99"), "{said}");
    owner.batch_execute("UPDATE tollgate_outbox_dead SET channel = 'user:u1'").await.unwrap();
    let (said, done) = relay.run(&["retry", "--all"]);
    assert!(
        !done && said.contains("2 rows put back") && said.contains("1 row left dead"),
        "{said}"
    );
    shop.all_published().await;

    let history: Vec<(String, Vec<String>)> = redis::cmd("XRANGE")
        .arg("tollgate:user:u1:{tollgate:user:u1}:stream")
        .arg("-")
        .arg("+")
        .query(&mut shop.redis.connection())
        .unwrap();
    let events: Vec<_> = history.iter().map(|(_, fields)| &*fields[1]).collect();
    assert_eq!(events, ["2", "3"], "the newer one of the key");
}

/// Keys that began alike for 300 characters counted as one, and the second row was nowhere.
#[tokio::test]
async fn a_key_that_is_too_long_dies_with_its_row() {
    let shop = Shop::start().await;
    let relay = shop.relay();
    let web = shop.postgres.application().await;
    let long = "k".repeat(3000);
    for at in 1..=2 {
        let said = format!("SELECT tollgate_publish('user:u1', '{at}', '{long}{at}')");
        web.batch_execute(&said).await.unwrap();
    }
    relay.metric_reaches("relay_dead_total{reason=\"refused\"}", 2.0).await;
}

/// To run the migration again waited for whoever had just published, everybody else waited behind it, and a
/// trigger that was switched off came back.
#[tokio::test]
async fn the_migration_may_run_again_while_others_publish() {
    let shop = Shop::start().await;
    let owner = shop.postgres.owner().await;
    owner.batch_execute("ALTER TABLE tollgate_outbox DISABLE TRIGGER tollgate_wake").await.unwrap();
    let web = shop.postgres.application().await;
    web.batch_execute("BEGIN; SELECT tollgate_publish('user:u1', '{\"postId\":1}')").await.unwrap();

    owner.batch_execute("SET statement_timeout = '3s'").await.unwrap();
    owner.batch_execute(&sql()).await.unwrap();
    let enabled = "SELECT tgenabled::text FROM pg_trigger WHERE tgname = 'tollgate_wake'";
    assert_eq!(owner.query_one(enabled, &[]).await.unwrap().get::<_, &str>(0), "D");
    web.batch_execute("COMMIT").await.unwrap();
}

/// A thousand channels that Redis refused kept all others waiting.
#[tokio::test]
async fn thousands_of_refused_channels_hold_up_nobody() {
    let shop = Shop::start().await;
    let user =
        "ACL SETUSER relay on >secret resetkeys resetchannels ~tollgate:user:* ~gateway:* &* +@all";
    let mut acl = redis::Cmd::new();
    user.split(' ').for_each(|word| {
        acl.arg(word);
    });
    acl.query::<()>(&mut shop.redis.connection()).unwrap();

    let web = shop.postgres.application().await;
    web.batch_execute(
        "SELECT tollgate_publish('post:' || n, '1') FROM generate_series(1, 3000) AS n",
    )
    .await
    .unwrap();
    shop.buy("u1", 7).await;
    let address = shop.redis.address();
    let relay = Relay::start(
        PROGRAM,
        &shop.config_at(&shop.postgres.address(), &format!("relay:secret@{address}")),
    );

    eventually("the allowed channel has its row", || async {
        (shop.histories().get("u1")? == &[7]).then_some(())
    })
    .await;
    eventually("the others wait", || async { (shop.pending().await == 3000).then_some(()) }).await;
    assert!(relay.metric("relay_errors_total{side=\"redis\"}").await >= 3000.0);
}

/// The size of all waiting events was looked up for each batch. With enough large ones the database was late
/// each time, and nothing was ever published.
#[tokio::test]
async fn large_events_that_wait_do_not_block_the_outbox() {
    let shop = Shop::start().await;
    let web = shop.postgres.application().await;
    web.batch_execute(
        "SELECT tollgate_publish('user:u1', ('\"' || repeat('x', 20000000) || '\"')::json) FROM generate_series(1, 40)",
    )
    .await
    .unwrap();
    shop.buy("u1", 7).await;
    let relay = shop.relay();
    shop.all_published().await;

    assert_eq!(shop.histories()["u1"], [7]);
    assert_eq!(relay.metric("relay_dead_total{reason=\"too_large\"}").await, 40.0);
    assert_eq!(relay.metric("relay_errors_total{side=\"postgres\"}").await, 0.0);
}

/// What a database did not have to keep, by `synchronous_commit = off`, was a mark: after its crash rows were
/// published again.
#[tokio::test]
async fn marks_outlive_a_crash_without_synchronous_commit() {
    let mut shop = Shop::start().await;
    let owner = shop.postgres.owner().await;
    let lazy = "ALTER ROLE relay SET synchronous_commit = off; ALTER SYSTEM SET wal_writer_delay = '10s'; \
                SELECT pg_reload_conf()";
    for statement in lazy.split("; ") {
        owner.batch_execute(statement).await.unwrap();
    }
    let relay = shop.relay();
    relay.leads().await;
    let web = shop.postgres.application().await;
    web.batch_execute(
        "SELECT tollgate_publish('user:u1', to_json(n), maxlen => 1) FROM generate_series(1, 3) AS n",
    )
    .await
    .unwrap();
    shop.all_published().await;

    shop.postgres.kill();
    shop.postgres.restart().await;
    shop.postgres
        .application()
        .await
        .batch_execute("SELECT tollgate_publish('user:u1', '4', maxlen => 1)")
        .await
        .unwrap();
    shop.all_published().await;
    let offset = "SELECT max(\"offset\") FROM tollgate_outbox";
    let last = shop.postgres.owner().await.query_one(offset, &[]).await.unwrap();
    assert_eq!(last.get::<_, i64>(0), 4, "nothing was published twice");
}

/// A relay could not end the session of one that hung as another user, and nobody led.
#[tokio::test]
async fn a_leader_of_another_user_that_hangs_is_replaced() {
    let shop = Shop::start().await;
    let owner = shop.postgres.owner().await;
    owner.batch_execute("CREATE ROLE other LOGIN IN ROLE tollgate_relay").await.unwrap();
    let first = shop.relay();
    first.leads().await;
    let config = shop.config().replace("postgres://relay@", "postgres://other@");
    let second = Relay::start(PROGRAM, &config);
    eventually("the second one stands by", || async {
        (second.readyz().await["ready"] == true).then_some(())
    })
    .await;

    first.signal("-STOP");
    shop.buy("u1", 1).await;
    second.leads().await;
    shop.all_published().await;
    first.signal("-CONT");
    shop.buy("u1", 2).await;
    shop.all_published().await;
    assert_eq!(shop.histories()["u1"], [1, 2]);
    eventually("one of them leads", || async {
        let leaders = [first.readyz().await, second.readyz().await];
        (leaders.iter().filter(|readyz| readyz["leader"] == true).count() == 1).then_some(())
    })
    .await;
}

/// A relay that leads no more marked rows, and ended the guard of what its successor was about to publish.
#[tokio::test]
async fn a_relay_that_leads_no_more_marks_nothing() {
    let shop = Shop::start().await;
    let proxy = Proxy::start(shop.redis.address()).await;
    let config = shop.config_at(&shop.postgres.address(), &proxy.address.to_string());
    let relay = Relay::start(PROGRAM, &config);
    relay.leads().await;

    // Another one begins to lead while the row is on its way to Redis.
    let (owner, is_done) = (shop.postgres.url("postgres"), AtomicBool::new(false));
    proxy.before(&["tollgate_relay"], move || {
        if !is_done.swap(true, Ordering::Relaxed) {
            let begun = "UPDATE tollgate_relay SET term = term + 1";
            assert!(
                Command::new("psql")
                    .args([&*owner, "-c", begun])
                    .output()
                    .unwrap()
                    .status
                    .success()
            );
        }
    });
    shop.buy("u1", 1).await;
    shop.all_published().await;

    assert_eq!(relay.metric("relay_repeated_total").await, 1.0, "it was marked by who leads");
    assert_eq!(shop.histories()["u1"], [1]);
}

/// A row was looked at before it was known to be published. What was refused the second time was dead, though
/// clients had it.
#[tokio::test]
async fn a_published_row_is_never_refused() {
    let shop = Shop::start().await;
    let relay = shop.relay();
    relay.leads().await;
    let connection = &mut shop.redis.connection();
    let row = |ttl, maxlen| ["ab:1:c", "1", ttl, maxlen, ""];
    eventually("the library", || async {
        relayed(&mut shop.redis.connection(), "user:u1", ("ab", 1), &[row("", "")]).ok()
    })
    .await;
    let again = relayed(connection, "user:u1", ("ab", 1), &[row("0", "x")]).unwrap();
    assert_eq!(place(&again[1]), (1, -1));

    // Another gateway may have replaced the library, which then knows the relay's prefix no more.
    let foreign: Vec<Value> = redis::cmd("FCALL")
        .arg("tollgate_relay")
        .arg(1)
        .arg("elsewhere:user:u1")
        .arg("ab")
        .arg(1)
        .arg(&["ab:2:c", "1", "", "", ""])
        .query(connection)
        .unwrap();
    assert_eq!(place(&foreign[1]), (1, 0));
}

/// Of more than 17 outboxes on one channel the last ones' terms were forgotten, and with them the calls of an
/// earlier leader came through.
#[tokio::test]
async fn many_outboxes_on_one_channel_keep_their_terms() {
    let shop = Shop::start().await;
    let relay = shop.relay();
    relay.leads().await;
    eventually("the library", || async {
        relayed(&mut shop.redis.connection(), "user:u1", ("a0", 9), &[["a0:1:c", "1", "", "", ""]])
            .ok()
    })
    .await;

    let connection = &mut shop.redis.connection();
    for n in 1..60 {
        let (outbox, row) = (format!("a{n}"), format!("a{n}:1:c"));
        relayed(connection, "user:u1", (&outbox, 9), &[[&row, "1", "", "", ""]]).unwrap();
    }
    for n in 0..60 {
        let (outbox, row) = (format!("a{n}"), format!("a{n}:2:c"));
        let late = relayed(connection, "user:u1", (&outbox, 8), &[[&row, "1", "", "", ""]]);
        assert_eq!(late.unwrap_err().code(), Some("STALE"), "{outbox}");
    }
}

/// A library of the same name that did not work was never replaced.
#[tokio::test]
async fn a_library_that_does_not_work_is_replaced() {
    let shop = Shop::start().await;
    let relay = shop.relay();
    relay.leads().await;
    shop.buy("u1", 1).await;
    shop.all_published().await;
    for answer in ["'\\255'", "error('no')", "{}"] {
        let broken = format!(
            "#!lua name=tollgate\nlocal function answer() return {answer} end\n\
             redis.register_function{{function_name='tollgate_version', callback=answer, flags={{'no-writes'}}}}"
        );
        redis::cmd("FUNCTION")
            .arg(&["LOAD", "REPLACE", &broken])
            .query::<()>(&mut shop.redis.connection())
            .unwrap();
        shop.buy("u1", 2).await;
        shop.all_published().await;
    }
    assert_eq!(shop.histories()["u1"], [1, 2, 2, 2]);
}

/// The application may call the function, and nothing else.
#[tokio::test]
async fn the_relays_tables_are_closed_to_the_application() {
    let shop = Shop::start().await;
    let (web, _driver) = connect(shop.postgres.port, "web", DATABASE).await.unwrap();
    for statement in [
        "SELECT FROM tollgate_outbox",
        "INSERT INTO tollgate_outbox (channel, payload) VALUES ('a', '1')",
        "DELETE FROM tollgate_outbox_dead",
        "UPDATE tollgate_relay SET term = 0",
    ] {
        let denied = web.batch_execute(statement).await.unwrap_err();
        assert_eq!(denied.code().unwrap().code(), "42501", "{statement}");
    }
}
