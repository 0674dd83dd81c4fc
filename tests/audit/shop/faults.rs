//! What befalls the shop from its databases, its clocks and its API. Each function is a row of the
//! catalogue, with the number that it has in docs/faults.md.
//!
//! Not here: relays and their network (`relay_faults`).

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::sleep;
use tollgate_support::proxy::{Mode, Proxy, Then};
use tollgate_support::tokens::now;
use tollgate_support::{eventually, eventually_within};

use super::clocks::Whose;
use super::relay_faults::{self, MARK, RELAY};
use super::rows::{Fault, Standby};
use super::stage::{Shop, when_sent};

/// Further than any time limit of an hour, and than that of any key in Redis.
const SHIFTS: [i64; 2] = [2 * 3600, 8 * 86_400];
/// How long Redis hangs: longer than the relay waits for an answer.
const HANG: Duration = Duration::from_millis(2500);
/// How long a database that was killed is away.
const AWAY: Duration = Duration::from_millis(300);
/// How long rows are published and not marked: a little less than the relay waits for the answer.
const UNMARKED: Duration = Duration::from_millis(2500);
/// How far an asynchronous standby is behind when it is promoted.
const BEHIND: Duration = Duration::from_millis(500);

pub async fn inject(fault: Fault, shop: &mut Shop) {
    match fault {
        Fault::None => sleep(Duration::from_secs(1)).await,
        Fault::ApiDies => p1_api_dies(shop).await,
        Fault::RelayKilled => relay_faults::p2_relay_killed_at_each_step(shop).await,
        Fault::RelayKilledDeleting => relay_faults::p3_relay_killed_while_it_deletes(shop).await,
        Fault::RelayHangs => relay_faults::p4_leader_hangs(shop).await,
        Fault::LeaderKilled => relay_faults::p5_leader_killed_again_and_again(shop).await,
        Fault::WayToRedis => relay_faults::p6_network_to_redis_cut_each_way(shop).await,
        Fault::WayToPostgres => relay_faults::p7_network_to_postgres_cut_each_way(shop).await,
        Fault::PostgresKilled => p8_postgres_killed(shop).await,
        Fault::Promoted if shop.setup.standby == Standby::Synchronous => {
            p9_synchronous_standby_promoted(shop).await;
        }
        Fault::Promoted => p10_asynchronous_standby_promoted(shop).await,
        Fault::RedisKilled => p11_redis_killed(shop).await,
        Fault::RedisStopped => p12_redis_hangs(shop).await,
        Fault::RedisEmptied => p13_redis_emptied(shop).await,
        Fault::ClockOfRelay => p14_clock_moved(shop, Whose::Relay, false).await,
        Fault::ClockOfRedis => p14_clock_moved(shop, Whose::Redis, false).await,
        Fault::ClockOfPostgres => p14_clock_moved(shop, Whose::Postgres, false).await,
        Fault::ClockOfRelayAndRestart => p14_clock_moved(shop, Whose::Relay, true).await,
        Fault::ClockOfRedisAndRestart => p14_clock_moved(shop, Whose::Redis, true).await,
        Fault::ClockOfPostgresAndRestart => p14_clock_moved(shop, Whose::Postgres, true).await,
    }
    shop.caught_up().await;
}

async fn p1_api_dies(shop: &mut Shop) {
    shop.api.dies.store(true, Ordering::Relaxed);
    let deaths = || shop.api.deaths.load(Ordering::Relaxed);
    let enough = deaths() + 40;
    eventually("processes of the API die", || {
        std::future::ready((deaths() >= enough).then_some(()))
    })
    .await;
    shop.api.dies.store(false, Ordering::Relaxed);
    shop.faults += 1;
}

async fn p8_postgres_killed(shop: &mut Shop) {
    for with_a_mark in [true, false] {
        if with_a_mark {
            when_sent(&shop.to_postgres, MARK, || Then::Lose).await;
        } else {
            at_any_time().await;
        }
        shop.postgres.kill();
        shop.to_postgres.pass();
        sleep(AWAY).await;
        shop.postgres.restart().await;
        shop.faults += 1;
        shop.caught_up().await;
    }
}

async fn p9_synchronous_standby_promoted(shop: &mut Shop) {
    when_sent(&shop.to_postgres, MARK, || Then::Lose).await;
    promote(shop).await;
}

/// Cut off from what the primary commits, the standby loses the marks of rows that it has, and purchases.
async fn p10_asynchronous_standby_promoted(shop: &mut Shop) {
    let replication = Proxy::start(shop.postgres.address()).await;
    shop.standby.as_ref().unwrap().follow(replication.address.port()).await;
    let hold = shop.to_postgres.setter();
    when_sent(&shop.to_postgres, MARK, move || {
        hold(Mode::HoldRequests);
        Then::Pass
    })
    .await;
    // So many marks are lost that few channels have them all in one batch, or near the end of the history.
    sleep(UNMARKED).await;
    replication.set(Mode::Blackhole);
    shop.to_postgres.pass();
    shop.caught_up().await;
    sleep(BEHIND).await;
    promote(shop).await;
}

/// The primary dies for good, and its standby takes its place by hand, as its address does.
async fn promote(shop: &mut Shop) {
    shop.postgres.kill();
    shop.to_postgres.pass();
    let standby = shop.standby.take().unwrap();
    standby.promote().await;
    shop.to_postgres.lead_to(standby.address());
    shop.api.primary.store(standby.port.into(), Ordering::Relaxed);
    shop.postgres = standby;
    shop.faults += 1;
}

/// Waits for a moment with rows in doubt, or for any.
async fn next_moment(shop: &Shop, in_doubt: bool) {
    if in_doubt {
        put_in_doubt(shop).await;
    } else {
        at_any_time().await;
    }
}

async fn p11_redis_killed(shop: &mut Shop) {
    for in_doubt in [true, false] {
        next_moment(shop, in_doubt).await;
        shop.redis.kill();
        sleep(AWAY).await;
        shop.redis.restart().await;
        shop.to_postgres.pass();
        shop.faults += 1;
        shop.caught_up().await;
    }
}

async fn p12_redis_hangs(shop: &mut Shop) {
    // It hangs as a call comes.
    when_sent(&shop.to_redis, RELAY, || Then::Pass).await;
    shop.redis.signal("-STOP");
    shop.to_redis.pass();
    sleep(HANG).await;
    shop.redis.signal("-CONT");
    shop.faults += 1;
}

async fn p13_redis_emptied(shop: &mut Shop) {
    for in_doubt in [true, false] {
        next_moment(shop, in_doubt).await;
        shop.redis.command(&["FLUSHALL"]).await;
        shop.to_postgres.pass();
        shop.faults += 1;
        shop.caught_up().await;
    }
}

async fn at_any_time() {
    sleep(Duration::from_millis(fastrand::u64(..500))).await;
}

/// A mark is lost, whose rows Redis has, and then nothing reaches PostgreSQL any more: they stay in doubt
/// until everything passes again.
async fn put_in_doubt(shop: &Shop) {
    let cut = shop.to_postgres.setter();
    when_sent(&shop.to_postgres, MARK, move || {
        cut(Mode::Blackhole);
        Then::Lose
    })
    .await;
    // Redis may forget them before anybody else has looked.
    shop.look_at_histories().await;
}

/// A clock moves while rows are in doubt, so that the outage is that long by it.
async fn p14_clock_moved(shop: &mut Shop, whose: Whose, restarts: bool) {
    let mut moved = 0;
    for shift in SHIFTS {
        put_in_doubt(shop).await;
        moved += shift;
        shop.clocks.as_ref().unwrap().set(whose, moved);
        shop.moved = shop.moved.max(Duration::from_secs(shift.cast_unsigned()));
        is_moved(shop, whose, moved).await;

        if restarts {
            shop.redis.kill();
            sleep(AWAY).await;
            shop.redis.restart().await;
        }
        shop.to_postgres.pass();
        shop.faults += 1;
        shop.caught_up().await;
    }
}

/// Waits until a process shows that its clock has moved.
async fn is_moved(shop: &Shop, whose: Whose, seconds: i64) {
    let at_least = now().cast_signed() + seconds - 60;
    eventually_within(Duration::from_secs(30), "the clock has moved", || async {
        let shown = match whose {
            Whose::Redis => {
                let time = shop.redis.try_command(&["TIME"]).await?;
                let (seconds, _): (i64, i64) = redis::from_redis_value(time).ok()?;
                seconds
            }
            Whose::Postgres => {
                let sql = "SELECT extract(epoch FROM clock_timestamp())::bigint";
                shop.postgres.owner().await.query_one(sql, &[]).await.ok()?.get(0)
            }
            Whose::Relay => return shop.relay_has_logged(seconds).then_some(()),
        };
        (shown >= at_least).then_some(())
    })
    .await;
}
