//! Everything that a round of purchases is played on: PostgreSQL and Redis, two replicas, relays behind a
//! network that can be cut on both sides, devices, the API.
//!
//! Not here: what goes wrong (`faults`), and what is judged (`verdict`).

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tollgate_support::gateway::{Gateway, Launch};
use tollgate_support::postgres::{DATABASE, Postgres, RELAY};
use tollgate_support::proxy::{Mode, Proxy, Then};
use tollgate_support::redis::Redis;
use tollgate_support::relay::Relay;
use tollgate_support::tokens::{SECRET, now};
use tollgate_support::{eventually, eventually_within};

use super::api::{Api, TABLE, user_name};
use super::clocks::{Clocks, Whose};
use super::device::{KINDS, Watched};
use super::recorder::{meta_key, read_all, record};
use super::records::{Entry, Records};
use super::rows::{Setup, Standby};
use super::verdict::{Offence, Verdict, judge};
use crate::cast::{Cast, Part};
use crate::gateway::{self, PROGRAM};
use crate::record::{Shared, shared};

const USERS: usize = 6;
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the outbox may take to be empty once all is well.
const DRAINING: Duration = Duration::from_secs(60);
const JUDGE: Duration = Duration::from_millis(300);

/// The one rule, of gateways and relays. Plain events do not exist, so a gap means that something was
/// missed. The history is longer than a round.
const RULES: &str = r#"
[[channels]]
pattern = "user:{user}"
allow = "owner"
auto_subscribe = true
history = { size = 100000, ttl = "1h", plain = false }
"#;

const GATEWAY: &str = r#"
[server]
listen = "127.0.0.1:0"
[admin]
listen = "127.0.0.1:0"
[limits]
queue_bytes = 33554432
[broker]
kind = "redis"
linger = "300ms"
"#;

/// How much is sold.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    pub quota: usize,
    /// Between two purchases of one process of the API.
    pub pause: Duration,
    /// Whether a fault comes again and again until most is sold.
    pub again: bool,
}

pub struct Shop {
    pub setup: Setup,
    pub pace: Pace,
    pub cast: Cast,
    pub api: Arc<Api>,
    pub postgres: Postgres,
    pub standby: Option<Postgres>,
    pub redis: Redis,
    /// The relays' network, to Redis and to PostgreSQL.
    pub to_redis: Proxy,
    pub to_postgres: Proxy,
    pub relays: Vec<Relay>,
    pub clocks: Option<Clocks>,
    /// How often something was done to the shop.
    pub faults: usize,
    /// How far clocks were moved, at most.
    pub moved: Duration,
    devices: Vec<Watched>,
    history: Shared<BTreeSet<Entry>>,
    gateways: Vec<Gateway>,
    logs: TempDir,
    selling: JoinSet<()>,
    beside: JoinSet<()>,
}

impl Shop {
    pub async fn start(setup: Setup, pace: Pace) -> Self {
        let clocks = setup.clocks.then(Clocks::new);
        let of = |whose| clocks.as_ref().map(|c| c.environment(whose)).unwrap_or_default();
        let lines: &[&str] = match setup.redis_log {
            true => &["appendonly yes", "appendfsync always"],
            false => &[],
        };
        let (redis_clock, postgres_clock) = (of(Whose::Redis), of(Whose::Postgres));
        let (redis, (postgres, standby)) = tokio::join!(
            Redis::within(&redis_clock, lines),
            start_postgres(setup.standby, postgres_clock)
        );

        let mut gateways = Vec::new();
        for _ in 0..2 {
            let keys = format!("[[auth.keys]]\nsecret = \"{SECRET}\"\n");
            let config = format!("{GATEWAY}{RULES}[redis]\nurl = \"{}\"\n{keys}", redis.url());
            gateways.push(gateway::start(Launch::new(Path::new(PROGRAM), config)).await);
        }

        let to_redis = Proxy::start(redis.address()).await;
        let to_postgres = Proxy::start(postgres.address()).await;
        let logs = tempfile::tempdir().unwrap();
        let config = relay_config(&to_postgres, &to_redis, setup.retention);
        let start = |n: usize| {
            let log = log_file(&logs, n);
            Relay::logging_to(log, PROGRAM, &config, of(Whose::Relay))
        };
        let relays = (0..setup.relays).map(start).collect();

        let cast = Cast::new(gateways.iter().map(|g| g.public.clone()));
        let api = Api::new(cast.clock, postgres.port, USERS, pace.quota, pace.pause);
        Self {
            setup,
            pace,
            cast,
            api,
            postgres,
            standby,
            redis,
            to_redis,
            to_postgres,
            relays,
            clocks,
            faults: 0,
            moved: Duration::ZERO,
            devices: Vec::new(),
            history: shared(BTreeSet::new()),
            gateways,
            logs,
            selling: JoinSet::new(),
            beside: JoinSet::new(),
        }
    }

    /// Connects the devices, and begins to sell.
    pub async fn open(&mut self) {
        for user in 0..USERS {
            for (home, (wire, manner)) in KINDS[user % KINDS.len()].into_iter().enumerate() {
                let channels = vec![format!("user:{}", user_name(user))];
                let from = Ipv4Addr::LOCALHOST;
                let part = Part { wire, manner, user: user_name(user), channels, home, from };
                self.cast.client(part);
                let log = Arc::clone(self.cast.clients.last().unwrap());
                let (device, asking) = Watched::new(user, log, Arc::clone(&self.api));
                self.devices.push(device);
                self.beside.spawn(asking);
            }
        }
        self.cast.all_live(PATIENCE).await;

        self.leader().await;
        let history = Arc::clone(&self.history);
        self.beside.spawn(record(self.redis.address(), USERS, history));
        self.selling = self.api.open();
    }

    /// Sells what is left to sell, waits until everything has come to rest, and judges.
    pub async fn close(mut self) -> Outcome {
        self.to_redis.pass();
        self.to_postgres.pass();
        self.api.dies.store(false, Ordering::Relaxed);
        self.api.closing.store(true, Ordering::Relaxed);
        while self.selling.join_next().await.is_some() {}
        // Where settling has failed, the channel's next row makes up for it.
        self.api.sell_to_all().await;
        self.cast.rest().await;

        let began = Instant::now();
        while self.pending().await > 0 && began.elapsed() < DRAINING {
            sleep(JUDGE).await;
        }
        let began = Instant::now();
        let verdict = loop {
            let verdict = judge(&self.records().await);
            let waits = [Offence::Lost, Offence::Undrained].map(|kind| verdict.count(kind));
            if waits == [0, 0] || began.elapsed() > PATIENCE {
                break verdict;
            }
            sleep(JUDGE).await;
        };
        self.cast.end();

        let log = |n| std::fs::read_to_string(log_file(&self.logs, n)).unwrap_or_default();
        let relay_logs = (0..self.relays.len()).map(log).collect();
        let gateway_logs = self.gateways.iter().map(Gateway::log).collect();
        Outcome {
            verdict,
            faults: self.faults,
            deaths: self.api.deaths.load(Ordering::Relaxed),
            moved: self.moved,
            logs: [relay_logs, gateway_logs],
        }
    }

    async fn records(&self) -> Records {
        let owner = self.postgres.owner().await;
        let rows = owner.query("SELECT post FROM purchases", &[]).await.unwrap();
        let table = rows.iter().map(|row| usize::try_from(row.get::<_, i64>(0)).unwrap());
        let table = table.collect();
        let count = "SELECT count(*) FROM tollgate_outbox_dead";
        let dead = owner.query_one(count, &[]).await.unwrap().get(0);

        self.look_at_histories().await;
        let history = self.history.lock().clone();
        Records {
            forgotten: self.setup.forgotten,
            purchases: self.api.purchases(),
            table,
            history,
            marks: marks(&owner).await,
            pending: self.pending().await,
            dead,
            unsettled: self.unsettled().await,
            devices: self.devices.iter().map(Watched::now).collect(),
        }
    }

    /// Notes what the histories hold now.
    pub async fn look_at_histories(&self) {
        let all = read_all(&self.redis.address(), USERS).await;
        self.history.lock().extend(all);
    }

    /// How many rows wait.
    pub async fn pending(&self) -> i64 {
        let owner = self.postgres.owner().await;
        let sql = "SELECT count(*) FROM tollgate_outbox WHERE published_at IS NULL";
        owner.query_one(sql, &[]).await.unwrap().get(0)
    }

    /// The rows in doubt that Redis guards, of all channels.
    pub async fn in_doubt(&self) -> usize {
        let mut all = 0;
        for user in 0..USERS {
            let guarded = self.redis.try_command(&["HGET", &meta_key(user), "g"]).await;
            let text: Option<String> = guarded.and_then(|g| redis::from_redis_value(g).ok());
            all += text.map_or(0, |text| text.split_whitespace().count());
        }
        all
    }

    /// What is guarded, or has no end.
    async fn unsettled(&self) -> Vec<String> {
        let mut found = Vec::new();
        for user in 0..USERS {
            let key = meta_key(user);
            let guarded = self.redis.command(&["HEXISTS", &key, "g"]).await;
            let left = self.redis.command(&["PTTL", &key]).await;
            if guarded != redis::Value::Int(0) || left == redis::Value::Int(-1) {
                found.push(format!("{key}: guarded {guarded:?}, ends in {left:?}"));
            }
        }
        found
    }

    /// A number that no fault before had.
    pub fn number(&self) -> u32 {
        u32::try_from(self.faults).unwrap()
    }

    /// Holds what relays send on the connections that they have now.
    pub fn hold_old(&self) -> Mode {
        Mode::HoldOld(self.number())
    }

    /// Whether most of the quota is sold.
    pub fn most_is_sold(&self) -> bool {
        self.api.sold() * 10 > self.pace.quota * 8
    }

    /// Whether a relay has written to its log by a clock that has moved so far.
    pub fn relay_has_logged(&self, seconds: i64) -> bool {
        let hour = |ago: i64| {
            let then = format!("@{}", now().cast_signed() + seconds - ago);
            let date = Command::new("date").args(["-u", "-d", &then, "+%Y-%m-%dT%H"]).output();
            String::from_utf8(date.unwrap().stdout).unwrap().trim().to_owned()
        };
        let log = std::fs::read_to_string(log_file(&self.logs, 0)).unwrap_or_default();
        [0, 60].into_iter().any(|ago| log.contains(&hour(ago)))
    }

    /// Waits until one relay leads, and says which.
    pub async fn leader(&self) -> usize {
        eventually("a relay leads", || async {
            for (n, relay) in self.relays.iter().enumerate() {
                if relay.try_readyz().await.is_some_and(|ready| ready["leader"] == true) {
                    return Some(n);
                }
            }
            None
        })
        .await
    }

    /// Waits until all that was committed before now is marked.
    pub async fn caught_up(&self) {
        let owner = self.postgres.owner().await;
        let last = "SELECT coalesce(max(id), 0) FROM tollgate_outbox";
        let last: i64 = owner.query_one(last, &[]).await.unwrap().get(0);
        eventually_within(DRAINING, "the relay has caught up", || async {
            let sql =
                "SELECT count(*) FROM tollgate_outbox WHERE published_at IS NULL AND id <= $1";
            let waiting: i64 = owner.query_one(sql, &[&last]).await.ok()?.get(0);
            (waiting == 0).then_some(())
        })
        .await;
    }
}

/// Waits until a relay sends bytes with these texts, and does something before they go on, once.
pub async fn when_sent(
    way: &Proxy,
    texts: &[&'static str],
    work: impl Fn() -> Then + Send + 'static,
) {
    let (came, mut comes) = tokio::sync::watch::channel(false);
    way.at(texts, move || match came.send_replace(true) {
        false => work(),
        true => Then::Pass,
    });
    let heard = timeout(PATIENCE, comes.wait_for(|came| *came)).await;
    assert!(heard.is_ok_and(|heard| heard.is_ok()), "the relay sends {texts:?}");
}

async fn start_postgres(
    standby: Standby,
    clock: Vec<(String, String)>,
) -> (Postgres, Option<Postgres>) {
    let mut postgres = Postgres::start().await;
    postgres.install(PROGRAM).await;
    postgres.owner().await.batch_execute(TABLE).await.unwrap();
    if !clock.is_empty() {
        postgres.environment(clock);
        postgres.restart().await;
    }
    let standby = match standby {
        Standby::None => None,
        Standby::Synchronous => Some(postgres.standby(true).await),
        Standby::Asynchronous => Some(postgres.standby(false).await),
    };
    (postgres, standby)
}

fn relay_config(postgres: &Proxy, redis: &Proxy, retention: &str) -> String {
    format!(
        "[broker]\nkind = \"redis\"\n[redis]\nurl = \"redis://{}\"\ncommand_timeout = \"1s\"\n\
         [relay]\nurl = \"postgres://{RELAY}@{}/{DATABASE}\"\nstatement_timeout = \"3s\"\n\
         connect_timeout = \"1s\"\nretention = \"{retention}\"\n{RULES}",
        redis.address, postgres.address
    )
}

fn log_file(folder: &TempDir, relay: usize) -> PathBuf {
    folder.path().join(format!("relay-{relay}.log"))
}

/// Where the outbox says that its rows are.
async fn marks(owner: &tokio_postgres::Client) -> Vec<Entry> {
    let sql = "SELECT (payload->>'s')::bigint, epoch::bigint, \"offset\", (payload->>'n')::bigint \
               FROM tollgate_outbox WHERE published_at IS NOT NULL";
    let rows = owner.query(sql, &[]).await.unwrap();
    let number = |row: &tokio_postgres::Row, at| row.get::<_, i64>(at).cast_unsigned();
    let mark = |row| Entry {
        user: usize::try_from(number(row, 0)).unwrap(),
        epoch: number(row, 1),
        offset: number(row, 2),
        purchase: usize::try_from(number(row, 3)).unwrap(),
    };
    rows.iter().map(mark).collect()
}

/// How a round ended.
pub struct Outcome {
    pub verdict: Verdict,
    pub faults: usize,
    pub deaths: usize,
    pub moved: Duration,
    /// Of relays and of gateways.
    pub logs: [Vec<String>; 2],
}
