//! What befalls relays, and their network on both sides. Each function is a row of the catalogue, with the
//! number that it has in docs/faults.md.

use std::process::Command;
use std::time::Duration;

use tokio::time::sleep;
use tollgate_support::eventually;
use tollgate_support::proxy::{Mode, Proxy, Then};

use super::stage::{Shop, when_sent};

/// What the relay sends at each of its steps.
pub const RELAY: &[&str] = &["FCALL", "tollgate_relay"];
pub const MARK: &[&str] = &["UPDATE public.tollgate_outbox", "published_at = clock_timestamp()"];
const SETTLE: &[&str] = &["FCALL", "tollgate_settle"];
const DELETE: &[&str] = &["DELETE FROM public.tollgate_outbox", "id = ANY"];
const PURGE: &[&str] = &["DELETE FROM public.tollgate_outbox", "AS (DELETE"];

/// Longer than the relay waits for an answer of Redis, and of PostgreSQL.
const REDIS_HANGS: Duration = Duration::from_millis(2500);
const POSTGRES_HANGS: Duration = Duration::from_millis(4500);
/// What was held has arrived after this.
const ARRIVES: Duration = Duration::from_millis(200);

/// Sends a signal at once, from within a proxy.
fn signal(process: u32, signal: &str) {
    let _ = Command::new("kill").args([signal, &process.to_string()]).status();
}

/// A relay is killed as it sends this, which gets lost.
async fn killed_sending(shop: &mut Shop, to_redis: bool, texts: &[&'static str]) {
    killed(shop, to_redis, texts).await;
    comes_back(shop).await;
}

async fn killed(shop: &mut Shop, to_redis: bool, texts: &[&'static str]) {
    let process = shop.relays[0].id();
    let way = if to_redis { &shop.to_redis } else { &shop.to_postgres };
    when_sent(way, texts, move || {
        signal(process, "-KILL");
        Then::Lose
    })
    .await;
    shop.faults += 1;
}

/// A relay is killed when this was done and the answer is on its way.
async fn killed_before_the_answer(shop: &mut Shop, to_redis: bool, texts: &[&'static str]) {
    let way = if to_redis { &shop.to_redis } else { &shop.to_postgres };
    shop.faults += 1;
    let hold = way.setter();
    when_sent(way, texts, move || {
        hold(Mode::HoldAnswers);
        Then::Pass
    })
    .await;
    if to_redis {
        eventually("Redis has the rows", || async { (shop.in_doubt().await > 0).then_some(()) })
            .await;
    } else {
        sleep(Duration::from_millis(50)).await;
    }
    comes_back(shop).await;
}

async fn comes_back(shop: &mut Shop) {
    shop.relays[0].restart();
    shop.to_redis.pass();
    shop.to_postgres.pass();
    shop.caught_up().await;
}

pub async fn p2_relay_killed_at_each_step(shop: &mut Shop) {
    killed_sending(shop, true, RELAY).await;
    killed_before_the_answer(shop, true, RELAY).await;
    killed_sending(shop, false, MARK).await;
    killed_before_the_answer(shop, false, MARK).await;
    killed_sending(shop, true, SETTLE).await;
}

pub async fn p3_relay_killed_while_it_deletes(shop: &mut Shop) {
    killed(shop, false, DELETE).await;
    shop.relays[0].restart();
    // The one that is new deletes first what the old one has left.
    killed_sending(shop, false, PURGE).await;
}

/// Once with its call carried out and the answer unread, once with a call that arrives when another relay
/// has published, marked and settled the rows.
pub async fn p4_leader_hangs(shop: &mut Shop) {
    for call_is_late in [true, false] {
        let hung = shop.leader().await;
        let (process, hold, mode) =
            (shop.relays[hung].id(), shop.to_redis.setter(), shop.hold_old());
        when_sent(&shop.to_redis, RELAY, move || {
            signal(process, "-STOP");
            if call_is_late {
                hold(mode);
            }
            Then::Pass
        })
        .await;

        shop.relays[1 - hung].leads().await;
        shop.caught_up().await;
        shop.to_redis.pass();
        sleep(ARRIVES).await;
        shop.relays[hung].signal("-CONT");
        shop.faults += 1;
        shop.caught_up().await;
    }
}

pub async fn p5_leader_killed_again_and_again(shop: &mut Shop) {
    for with_a_mark in [true, false, true, false] {
        let leader = shop.leader().await;
        if with_a_mark {
            let process = shop.relays[leader].id();
            when_sent(&shop.to_postgres, MARK, move || {
                signal(process, "-KILL");
                Then::Lose
            })
            .await;
            shop.to_postgres.pass();
        } else {
            sleep(Duration::from_millis(fastrand::u64(..300))).await;
            shop.relays[leader].signal("-KILL");
        }

        shop.relays[1 - leader].leads().await;
        shop.relays[leader].restart();
        shop.faults += 1;
    }
}

pub async fn p6_network_to_redis_cut_each_way(shop: &mut Shop) {
    request_lost(shop, true, RELAY).await;
    answer_lost(shop, true, RELAY).await;
    request_late(shop, true, RELAY).await;
    for mode in [Mode::HoldRequests, Mode::Blackhole] {
        nothing_passes(shop, true, mode).await;
    }
}

pub async fn p7_network_to_postgres_cut_each_way(shop: &mut Shop) {
    request_lost(shop, false, MARK).await;
    answer_lost(shop, false, MARK).await;
    request_late(shop, false, MARK).await;
    nothing_passes(shop, false, Mode::Blackhole).await;
}

/// One side of the relay, and how long it takes for the relay to give up.
fn side(shop: &Shop, to_redis: bool) -> (&Proxy, Duration) {
    if to_redis { (&shop.to_redis, REDIS_HANGS) } else { (&shop.to_postgres, POSTGRES_HANGS) }
}

async fn request_lost(shop: &mut Shop, to_redis: bool, texts: &[&'static str]) {
    let (way, _) = side(shop, to_redis);
    when_sent(way, texts, || Then::Lose).await;
    way.pass();
    shop.faults += 1;
    shop.caught_up().await;
}

async fn answer_lost(shop: &mut Shop, to_redis: bool, texts: &[&'static str]) {
    let (way, hangs) = side(shop, to_redis);
    let hold = way.setter();
    when_sent(way, texts, move || {
        hold(Mode::HoldAnswers);
        Then::Pass
    })
    .await;
    sleep(hangs).await;

    way.set(Mode::CutOnce(shop.number()));
    shop.faults += 1;
    shop.caught_up().await;
}

/// A request arrives when its rows have been published by another way, marked and settled.
async fn request_late(shop: &mut Shop, to_redis: bool, texts: &[&'static str]) {
    let (way, _) = side(shop, to_redis);
    let (hold, mode) = (way.setter(), shop.hold_old());
    when_sent(way, texts, move || {
        hold(mode);
        Then::Pass
    })
    .await;
    shop.caught_up().await;
    way.pass();
    sleep(ARRIVES).await;
    shop.faults += 1;
}

/// Nothing passes, and then all of it does.
async fn nothing_passes(shop: &mut Shop, to_redis: bool, mode: Mode) {
    let (way, hangs) = side(shop, to_redis);
    way.set(mode);
    sleep(hangs).await;
    way.pass();
    shop.faults += 1;
    shop.caught_up().await;
}
