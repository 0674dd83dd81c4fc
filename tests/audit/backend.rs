//! What the gateways of a round are connected to, and where its publishers find it.
//!
//! Not here: servers and their groups (`tollgate_support::redis`).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tollgate_support::proxy::Proxy;
use tollgate_support::redis::{Cluster, Redis, Replicated, Sentinels, Timing, connect};

use super::publisher::Place;
use super::record::{Shared, shared};
use super::rows::Setup;

/// The gateways' user in Redis, and the page that says what it may do.
const USER: &str = "gateway:secret";
const DOCUMENTED: &str = include_str!("../../docs/redis.md");

/// Sentinels act soon, because a round lasts seconds only.
const SOON: Timing =
    Timing { down_after: Duration::from_secs(1), failover: Duration::from_secs(6) };

pub enum Backend {
    Alone(Redis),
    Followed(Replicated),
    Limited(Redis),
    Proxied(Redis, Proxy),
    Moving(Moving),
    Watched(Sentinels),
    Cluster(Cluster),
}

/// Two servers, and an address that leads to the first of them until it moves.
pub struct Moving {
    servers: [Redis; 2],
    /// The address that the gateways connect to.
    proxy: Proxy,
    /// The address that publishers are told.
    leads_to: Shared<String>,
}

impl Moving {
    async fn start() -> Self {
        let servers = [Redis::start().await, Redis::start().await];
        let proxy = Proxy::start(servers[0].address()).await;
        let leads_to = shared(servers[0].address());
        Self { servers, proxy, leads_to }
    }

    /// Points the address to the other server, which gets the functions of the first.
    pub async fn goes(&self) {
        let [old, new] = &self.servers;
        let library = old.command(&["FUNCTION", "DUMP"]).await;
        let library: Vec<u8> = redis::from_redis_value(library).unwrap();
        let mut connection = connect(&new.address()).await.unwrap();
        let mut restore = redis::cmd("FUNCTION");
        restore.arg("RESTORE").arg(library).exec_async(&mut connection).await.unwrap();

        self.proxy.lead_to(new.address());
        *self.leads_to.lock() = new.address();
    }
}

/// Creates the gateways' user with the rules of `docs/redis.md`.
async fn limit(server: &Redis) {
    let (name, password) = USER.split_once(':').unwrap();
    let line = DOCUMENTED.split(&format!("`ACL SETUSER {name} ")).nth(1).unwrap();
    let rules = line.split('`').next().unwrap().replace("PASSWORD", password);
    let words = ["ACL", "SETUSER", name].into_iter().chain(rules.split_whitespace());
    server.command(&words.collect::<Vec<_>>()).await;
}

impl Backend {
    pub async fn start(setup: Setup) -> Self {
        match setup {
            Setup::Alone(lines) => Self::Alone(Redis::with(lines).await),
            Setup::Proxied => {
                let server = Redis::start().await;
                let proxy = Proxy::start(server.address()).await;
                Self::Proxied(server, proxy)
            }
            Setup::Followed => Self::Followed(Replicated::start().await),
            Setup::Limited => {
                let server = Redis::start().await;
                limit(&server).await;
                Self::Limited(server)
            }
            Setup::Moving => Self::Moving(Moving::start().await),
            Setup::Sentinel => {
                let group = Sentinels::start(2, SOON).await;
                // The Sentinels have just found each other; a failover right now would find
                // no majority.
                sleep(Duration::from_secs(10)).await;
                Self::Watched(group)
            }
            Setup::Cluster => Self::Cluster(Cluster::start().await),
        }
    }

    pub fn url(&self) -> String {
        match self {
            Self::Alone(server) => server.url(),
            Self::Followed(followed) => followed.master.url(),
            Self::Limited(server) => format!("redis://{USER}@{}", server.address()),
            Self::Proxied(_, proxy) => format!("redis://{}", proxy.address),
            Self::Moving(moving) => format!("redis://{}", moving.proxy.address),
            Self::Watched(watched) => watched.url(),
            Self::Cluster(cluster) => cluster.url(),
        }
    }

    pub fn place(&self) -> Place {
        match self {
            Self::Alone(server) | Self::Limited(server) | Self::Proxied(server, _) => {
                Place::Fixed(server.address())
            }
            Self::Followed(followed) => Place::Fixed(followed.master.address()),
            Self::Moving(moving) => Place::Named(Arc::clone(&moving.leads_to)),
            Self::Watched(watched) => Place::Sentinel(watched.addresses()),
            Self::Cluster(cluster) => Place::Cluster(cluster.addresses()),
        }
    }
}
