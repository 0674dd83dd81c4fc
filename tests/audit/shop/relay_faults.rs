//! What befalls relays, and their network on both sides. Each function is a row of the catalogue, with the
//! number that it has in docs/faults.md.

use std::process::Command;
use std::time::Duration;

use tokio::time::sleep;
use tollgate_support::eventually;
use tollgate_support::proxy::{Mode, Then};

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
    for _ in 0..shop.pace.times {
        killed_sending(shop, true, RELAY).await;
        killed_before_the_answer(shop, true, RELAY).await;
        killed_sending(shop, false, MARK).await;
        killed_before_the_answer(shop, false, MARK).await;
        killed_sending(shop, true, SETTLE).await;
    }
}

pub async fn p3_relay_killed_while_it_deletes(shop: &mut Shop) {
    for _ in 0..shop.pace.times {
        killed(shop, false, DELETE).await;
        shop.relays[0].restart();
        // The one that is new deletes first what the old one has left.
        killed_sending(shop, false, PURGE).await;
    }
}

/// Once with its call carried out and the answer unread, once with a call that arrives when another relay
/// has published, marked and settled the rows.
pub async fn p4_leader_hangs(shop: &mut Shop) {
    for n in 0..shop.pace.times.min(4) {
        let hung = shop.leader().await;
        let (process, hold) = (shop.relays[hung].id(), shop.to_redis.setter());
        when_sent(&shop.to_redis, RELAY, move || {
            signal(process, "-STOP");
            if n % 2 == 0 {
                hold(Mode::HoldOld(n));
            }
            Then::Pass
        })
        .await;

        let other = &shop.relays[1 - hung];
        other.leads().await;
        shop.caught_up().await;
        shop.to_redis.pass();
        sleep(Duration::from_millis(200)).await;
        shop.relays[hung].signal("-CONT");
        shop.faults += 1;
        shop.caught_up().await;
    }
}

pub async fn p5_leader_killed_again_and_again(shop: &mut Shop) {
    for n in 0..3 * shop.pace.times {
        let leader = shop.leader().await;
        if n % 2 == 0 {
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
    for n in 0..shop.pace.times {
        // Requests are lost, and answers.
        when_sent(&shop.to_redis, RELAY, || Then::Lose).await;
        shop.to_redis.pass();
        shop.caught_up().await;
        let hold = shop.to_redis.setter();
        when_sent(&shop.to_redis, RELAY, move || {
            hold(Mode::HoldAnswers);
            Then::Pass
        })
        .await;
        sleep(REDIS_HANGS).await;
        shop.to_redis.set(Mode::CutOnce(n));
        shop.caught_up().await;

        // A request arrives when its rows have been published by another way, marked and settled.
        let hold = shop.to_redis.setter();
        when_sent(&shop.to_redis, RELAY, move || {
            hold(Mode::HoldOld(n));
            Then::Pass
        })
        .await;
        shop.caught_up().await;
        shop.to_redis.pass();

        // Nothing passes, and then all of it does.
        for mode in [Mode::HoldRequests, Mode::Blackhole] {
            shop.to_redis.set(mode);
            sleep(REDIS_HANGS).await;
            shop.to_redis.pass();
            shop.caught_up().await;
        }
        shop.faults += 5;
    }
}

pub async fn p7_network_to_postgres_cut_each_way(shop: &mut Shop) {
    for n in 0..shop.pace.times.min(3) {
        when_sent(&shop.to_postgres, MARK, || Then::Lose).await;
        shop.to_postgres.pass();
        shop.caught_up().await;
        let hold = shop.to_postgres.setter();
        when_sent(&shop.to_postgres, MARK, move || {
            hold(Mode::HoldAnswers);
            Then::Pass
        })
        .await;
        sleep(POSTGRES_HANGS).await;
        shop.to_postgres.set(Mode::CutOnce(n));
        shop.caught_up().await;

        // The mark arrives when another session has marked the rows.
        let hold = shop.to_postgres.setter();
        when_sent(&shop.to_postgres, MARK, move || {
            hold(Mode::HoldOld(n));
            Then::Pass
        })
        .await;
        shop.caught_up().await;
        shop.to_postgres.pass();

        shop.to_postgres.set(Mode::Blackhole);
        sleep(POSTGRES_HANGS).await;
        shop.to_postgres.pass();
        shop.caught_up().await;
        shop.faults += 4;
    }
}
