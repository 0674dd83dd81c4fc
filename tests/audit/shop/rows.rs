//! The catalogue of what happens to purchases, one row each: what the shop is set up as, and what befalls it.

use super::records::Forgotten;

/// The databases and relays of a round. Rows with the same setup share a round in short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setup {
    pub relays: usize,
    pub standby: Standby,
    /// Whether Redis keeps a log of what it does.
    pub redis_log: bool,
    /// How long published rows stay.
    pub retention: &'static str,
    /// Whether the clocks of relay, Redis and PostgreSQL can be moved.
    pub clocks: bool,
    pub forgotten: Forgotten,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standby {
    None,
    /// Commits wait for it.
    Synchronous,
    /// Commits do not wait for it.
    Asynchronous,
}

#[derive(Debug, Clone, Copy)]
pub struct Row {
    pub name: &'static str,
    pub what: &'static str,
    pub setup: Setup,
    pub fault: Fault,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    ApiDies,
    RelayKilled,
    RelayKilledDeleting,
    RelayHangs,
    LeaderKilled,
    WayToRedis,
    WayToPostgres,
    PostgresKilled,
    Promoted,
    RedisKilled,
    RedisStopped,
    RedisEmptied,
    ClockOfRelay,
    ClockOfRedis,
    ClockOfPostgres,
    /// As those, and Redis is started again meanwhile.
    ClockOfRelayAndRestart,
    ClockOfRedisAndRestart,
    ClockOfPostgresAndRestart,
}

impl Fault {
    /// Whether it can come a second time: a standby is promoted once, and a clock is not set back.
    pub fn comes_again(self) -> bool {
        !matches!(
            self,
            Self::Promoted
                | Self::ClockOfRelay
                | Self::ClockOfRedis
                | Self::ClockOfPostgres
                | Self::ClockOfRelayAndRestart
                | Self::ClockOfRedisAndRestart
                | Self::ClockOfPostgresAndRestart
        )
    }
}

const NOTHING: Forgotten = Forgotten { histories: false, guards: false, commits: false };
const HISTORIES: Forgotten = Forgotten { histories: true, ..NOTHING };
const EPOCHS: Forgotten = Forgotten { histories: true, guards: true, ..NOTHING };

const PLAIN: Setup = Setup {
    relays: 1,
    standby: Standby::None,
    redis_log: false,
    retention: "1d",
    clocks: false,
    forgotten: NOTHING,
};
const DELETING: Setup = Setup { retention: "0s", ..PLAIN };
const TWO: Setup = Setup { relays: 2, ..PLAIN };
const SYNCHRONOUS: Setup = Setup { standby: Standby::Synchronous, ..PLAIN };
const ASYNCHRONOUS: Setup = Setup {
    standby: Standby::Asynchronous,
    forgotten: Forgotten { commits: true, ..NOTHING },
    ..PLAIN
};
const EMPTY: Setup = Setup { forgotten: EPOCHS, ..PLAIN };
const LOG: Setup = Setup { redis_log: true, ..EMPTY };
const CLOCKS: Setup = Setup { redis_log: true, clocks: true, forgotten: HISTORIES, ..PLAIN };
const CLOCKS_AND_RESTART: Setup = Setup { forgotten: EPOCHS, ..CLOCKS };

const fn row(name: &'static str, what: &'static str, setup: Setup, fault: Fault) -> Row {
    Row { name, what, setup, fault }
}

pub const ROWS: &[Row] = &[
    row("purchase-none", "purchases, no fault", PLAIN, Fault::None),
    row("purchase-api-dies", "the API dies before, in and after COMMIT", PLAIN, Fault::ApiDies),
    row("purchase-relay-kill", "the relay is killed at each step", PLAIN, Fault::RelayKilled),
    row(
        "purchase-relay-delete",
        "the relay is killed while it deletes",
        DELETING,
        Fault::RelayKilledDeleting,
    ),
    row("purchase-relay-hung", "the leader of two relays hangs", TWO, Fault::RelayHangs),
    row("purchase-relay-two", "the leader of two relays is killed", TWO, Fault::LeaderKilled),
    row(
        "purchase-cut-redis",
        "the relay's network to Redis is cut, each way",
        PLAIN,
        Fault::WayToRedis,
    ),
    row(
        "purchase-cut-postgres",
        "the relay's network to PostgreSQL is cut, each way",
        PLAIN,
        Fault::WayToPostgres,
    ),
    row("purchase-postgres-kill", "PostgreSQL kill -9", PLAIN, Fault::PostgresKilled),
    row(
        "purchase-failover",
        "a synchronous standby is promoted by hand",
        SYNCHRONOUS,
        Fault::Promoted,
    ),
    row(
        "purchase-failover-late",
        "an asynchronous standby that is behind is promoted by hand",
        ASYNCHRONOUS,
        Fault::Promoted,
    ),
    row("purchase-redis-aof", "Redis kill -9, back with its AOF", LOG, Fault::RedisKilled),
    row("purchase-redis-empty", "Redis kill -9, back without data", EMPTY, Fault::RedisKilled),
    row("purchase-redis-stop", "Redis SIGSTOP", PLAIN, Fault::RedisStopped),
    row("purchase-flushall", "FLUSHALL", EMPTY, Fault::RedisEmptied),
    row("purchase-clock-relay", "the relay's clock moves", CLOCKS, Fault::ClockOfRelay),
    row("purchase-clock-redis", "Redis' clock moves", CLOCKS, Fault::ClockOfRedis),
    row("purchase-clock-postgres", "PostgreSQL's clock moves", CLOCKS, Fault::ClockOfPostgres),
    row(
        "purchase-clock-relay-restart",
        "the relay's clock moves, and Redis is killed",
        CLOCKS_AND_RESTART,
        Fault::ClockOfRelayAndRestart,
    ),
    row(
        "purchase-clock-redis-restart",
        "Redis' clock moves, and Redis is killed",
        CLOCKS_AND_RESTART,
        Fault::ClockOfRedisAndRestart,
    ),
    row(
        "purchase-clock-postgres-restart",
        "PostgreSQL's clock moves, and Redis is killed",
        CLOCKS_AND_RESTART,
        Fault::ClockOfPostgresAndRestart,
    ),
];
