//! The catalogue of faults, one row each: what is started for it, and what shows that it
//! took place.

use super::round::Pace;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setup {
    Alone(&'static [&'static str]),
    /// A master that takes no writes without its replica.
    Followed,
    /// The gateways log in as the user of `docs/redis.md`.
    Limited,
    Proxied,
    /// Two servers, and an address that leads to the first of them.
    Moving,
    Sentinel,
    Cluster,
}

/// How the outside can tell that the fault took place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// A log line of the gateway, or a `gap`.
    Noticed,
    /// A `gap` at a client that stays.
    Told,
    /// Plain events on each of these channels were missing and declared.
    Declared(&'static [&'static str]),
    /// Every gateway shows the fault in `/readyz`, and its end.
    Shown,
    /// The end of sockets.
    Closed,
    /// The round itself looks for it.
    Nothing,
}

#[derive(Debug, Clone, Copy)]
pub struct Row {
    pub name: &'static str,
    pub what: &'static str,
    pub setup: Setup,
    pub sign: Sign,
    pub fault: Fault,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    KillPubsub,
    KillNormal,
    Stop,
    Restart,
    Overflow,
    Flush,
    Clock,
    Delay,
    Cut,
    Blackhole,
    GatewayKill,
    GatewayTerm,
    SentinelPlanned,
    SentinelKill,
    ClusterKill,
    ClusterFailover,
    SlotMigration,
    Revocations,
    OutOfMemory,
    NoReplicas,
    /// The gateways' user loses these rights for a while: the rules that take them, and those that
    /// give them back.
    Forbidden(&'static [&'static str], &'static [&'static str]),
    Poison,
    Forge,
    BothKinds,
    Moved,
    LogGone,
    LogHung,
    LogFull,
    Descriptors,
    OneAddress,
}

impl Fault {
    /// Whether the first gateway is told to drain.
    pub fn ends_the_first(self) -> bool {
        matches!(self, Self::GatewayTerm) || self.is_of_the_log()
    }

    pub fn is_of_the_log(self) -> bool {
        matches!(self, Self::LogGone | Self::LogHung | Self::LogFull)
    }

    /// Settings of the gateways besides those of every round.
    pub fn settings(self, pace: Pace) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::LogGone | Self::LogHung | Self::LogFull => &[
                ("LOG__SUMMARY_INTERVAL", "0s"),
                ("LIMITS__COMMANDS_PER_SECOND", "1000000"),
                ("LIMITS__COMMAND_BURST", "1000000"),
            ],
            // The default interval would take up most of a short round.
            Self::Moved if !pace.full => &[("REDIS__ADDRESS_INTERVAL", "2s")],
            Self::OneAddress => &[
                ("LIMITS__CONNECTIONS_PER_IP", "60"),
                ("LIMITS__HTTP_CONNECTIONS", "120"),
                ("LIMITS__HTTP_CONNECTIONS_PER_IP", "40"),
            ],
            _ => &[],
        }
    }
}

const ALONE: Setup = Setup::Alone(&[]);
const AOF: Setup = Setup::Alone(&["appendonly yes", "appendfsync always"]);

/// Rights that the gateways lose: to write, and to hear and say anything.
const WRITES: Fault = Fault::Forbidden(&["-fcall"], &["+fcall"]);
const CHANNELS: Fault =
    Fault::Forbidden(&["resetchannels"], &["&tollgate:*", "&gateway:tollgate:*"]);

const fn row(
    name: &'static str,
    what: &'static str,
    setup: Setup,
    sign: Sign,
    fault: Fault,
) -> Row {
    Row { name, what, setup, sign, fault }
}

pub const ROWS: &[Row] = &[
    row("none", "no fault", ALONE, Sign::Nothing, Fault::None),
    row("kill-pubsub", "CLIENT KILL TYPE pubsub", ALONE, Sign::Noticed, Fault::KillPubsub),
    row("kill-normal", "CLIENT KILL TYPE normal", ALONE, Sign::Noticed, Fault::KillNormal),
    row("stop", "Redis SIGSTOP for 6 s", ALONE, Sign::Noticed, Fault::Stop),
    row("restart-empty", "Redis kill -9, back without data", ALONE, Sign::Noticed, Fault::Restart),
    row("restart-aof", "Redis kill -9, back with its AOF", AOF, Sign::Noticed, Fault::Restart),
    row("overflow", "Redis output buffer overflows", ALONE, Sign::Noticed, Fault::Overflow),
    row("flushall", "FLUSHALL", ALONE, Sign::Noticed, Fault::Flush),
    row("clock", "the gateway's clock jumps by ±1 h", ALONE, Sign::Nothing, Fault::Clock),
    row("proxy-delay", "answers of Redis come late", Setup::Proxied, Sign::Nothing, Fault::Delay),
    row("proxy-cut", "connections cut in a frame", Setup::Proxied, Sign::Noticed, Fault::Cut),
    row(
        "proxy-blackhole",
        "nothing passes for 6 s",
        Setup::Proxied,
        Sign::Noticed,
        Fault::Blackhole,
    ),
    row("gateway-kill", "gateway SIGKILL", ALONE, Sign::Closed, Fault::GatewayKill),
    row("gateway-term", "gateway SIGTERM", ALONE, Sign::Closed, Fault::GatewayTerm),
    row(
        "sentinel-planned",
        "SENTINEL FAILOVER",
        Setup::Sentinel,
        Sign::Noticed,
        Fault::SentinelPlanned,
    ),
    row(
        "sentinel-kill",
        "Sentinel: master kill -9",
        Setup::Sentinel,
        Sign::Noticed,
        Fault::SentinelKill,
    ),
    row(
        "cluster-kill",
        "Cluster: master kill -9",
        Setup::Cluster,
        Sign::Noticed,
        Fault::ClusterKill,
    ),
    row(
        "cluster-failover",
        "CLUSTER FAILOVER",
        Setup::Cluster,
        Sign::Noticed,
        Fault::ClusterFailover,
    ),
    row("cluster-slots", "slots migrate", Setup::Cluster, Sign::Noticed, Fault::SlotMigration),
    row(
        "revocations",
        "a replica starts with 20,000 revocations",
        ALONE,
        Sign::Nothing,
        Fault::Revocations,
    ),
    row("no-writes", "Redis at maxmemory for 5 s", ALONE, Sign::Shown, Fault::OutOfMemory),
    row(
        "no-replicas",
        "min-replicas-to-write not met for 5 s",
        Setup::Followed,
        Sign::Shown,
        Fault::NoReplicas,
    ),
    row("acl-writes", "the gateway may not write for 5 s", Setup::Limited, Sign::Shown, WRITES),
    row("acl-channels", "the gateway may not hear for 5 s", Setup::Limited, Sign::Shown, CHANNELS),
    row("poison", "garbage in histories' keys", ALONE, Sign::Noticed, Fault::Poison),
    row("forge", "forged positions between events", ALONE, Sign::Noticed, Fault::Forge),
    row(
        "both-kinds",
        "plain events where there is a history, connections killed",
        ALONE,
        Sign::Declared(&["mixed:1", "mixed:2"]),
        Fault::BothKinds,
    ),
    row(
        "address-moved",
        "Redis' address leads elsewhere, old connections live",
        Setup::Moving,
        Sign::Told,
        Fault::Moved,
    ),
    row("log-gone", "the log's reader is gone", ALONE, Sign::Nothing, Fault::LogGone),
    row("log-hung", "the log's reader does not read", ALONE, Sign::Nothing, Fault::LogHung),
    row("log-full", "the log's disk is full", ALONE, Sign::Nothing, Fault::LogFull),
    row(
        "descriptors",
        "too few file descriptors, Redis' connections killed",
        ALONE,
        Sign::Noticed,
        Fault::Descriptors,
    ),
    row(
        "one-address",
        "one address takes what it can get",
        ALONE,
        Sign::Nothing,
        Fault::OneAddress,
    ),
];
