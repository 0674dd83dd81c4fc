//! A shop with an outbox: PostgreSQL and Redis, the relay between them, and purchases.
//!
//! Not here: what is tried with them (`relay`, `outbox_faults`).

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::{Duration, sleep};
use tollgate_support::eventually;
use tollgate_support::postgres::{DATABASE, Postgres, RELAY};
use tollgate_support::redis::Redis;
use tollgate_support::relay::Relay;

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_tollgate");

/// A long history, so that nothing is trimmed before it is looked at.
pub(crate) const RULES: &str = "[[channels]]\npattern = \"user:{user}\"\nallow = \"owner\"\nauto_subscribe = true\n\
                     history = { size = 100000, ttl = \"1h\", plain = false }\n";

/// Both sides of a relay.
pub(crate) struct Shop {
    pub(crate) postgres: Postgres,
    pub(crate) redis: Redis,
}

impl Shop {
    pub(crate) async fn start() -> Self {
        let (postgres, redis) = tokio::join!(Postgres::start(), Redis::start());
        postgres.install(PROGRAM).await;
        Self { postgres, redis }
    }

    /// The configuration of a relay that reaches the two at these addresses.
    pub(crate) fn config_at(&self, postgres: &str, redis: &str) -> String {
        format!(
            "[broker]\nkind = \"redis\"\n[redis]\nurl = \"redis://{redis}\"\ncommand_timeout = \"1s\"\n\
             [relay]\nurl = \"postgres://{RELAY}@{postgres}/{DATABASE}\"\nstatement_timeout = \"3s\"\n\
             connect_timeout = \"1s\"\n{RULES}"
        )
    }

    pub(crate) fn config(&self) -> String {
        self.config_at(&self.postgres.address(), &self.redis.address())
    }

    pub(crate) fn relay(&self) -> Relay {
        Relay::start(PROGRAM, &self.config())
    }

    /// Commits one purchase.
    pub(crate) async fn buy(&self, user: &str, post: i64) {
        buy(&self.postgres.application().await, user, post).await;
    }

    /// How many rows wait.
    pub(crate) async fn pending(&self) -> i64 {
        let owner = self.postgres.owner().await;
        let sql = "SELECT count(*) FROM tollgate_outbox WHERE published_at IS NULL";
        owner.query_one(sql, &[]).await.unwrap().get(0)
    }

    pub(crate) async fn all_published(&self) {
        eventually("all rows are published", || async {
            (self.pending().await == 0).then_some(())
        })
        .await;
    }

    /// What the histories hold of each user, in their order.
    pub(crate) fn histories(&self) -> BTreeMap<String, Vec<i64>> {
        let mut found = BTreeMap::new();
        let mut connection = self.redis.connection();
        let keys: Vec<String> =
            redis::cmd("KEYS").arg("tollgate:user:*:stream").query(&mut connection).unwrap();
        for key in keys {
            let user = key.split(':').nth(2).unwrap().to_owned();
            let mut range = redis::cmd("XRANGE");
            range.arg(&key).arg("-").arg("+");
            let entries: Vec<(String, Vec<String>)> = range.query(&mut connection).unwrap();
            let post = |fields: &[String]| -> i64 {
                serde_json::from_str::<Value>(&fields[1]).unwrap()["postId"].as_i64().unwrap()
            };
            found.insert(user, entries.iter().map(|(_, fields)| post(fields)).collect());
        }
        found
    }
}

pub(crate) async fn buy(client: &tokio_postgres::Client, user: &str, post: i64) {
    try_buy(client, user, post).await.unwrap();
}

pub(crate) async fn try_buy(
    client: &tokio_postgres::Client,
    user: &str,
    post: i64,
) -> Result<(), tokio_postgres::Error> {
    let event = json!({ "type": "post_unlocked", "postId": post }).to_string();
    let sql = format!("SELECT tollgate_publish('user:{user}', '{event}')");
    client.batch_execute(&sql).await
}

/// Buys from one connection, in order, until it is told to end. Answers how many.
pub(crate) fn buyer(
    shop: &Shop,
    user: &'static str,
) -> (tokio::sync::oneshot::Sender<()>, JoinHandle<i64>) {
    let (stop, mut stopped) = tokio::sync::oneshot::channel();
    let port = shop.postgres.port;
    let task = tokio::spawn(async move {
        let (client, _driver) =
            tollgate_support::postgres::connect(port, "web", DATABASE).await.unwrap();
        let mut post = 0;
        while stopped.try_recv().is_err() {
            post += 1;
            buy(&client, user, post).await;
            sleep(Duration::from_millis(1)).await;
        }
        post
    });
    (stop, task)
}

pub(crate) fn in_order(last: i64) -> Vec<i64> {
    (1..=last).collect()
}

/// The migration.
pub(crate) fn sql() -> String {
    let out = Command::new(PROGRAM).args(["relay", "sql"]).output().unwrap();
    assert!(out.status.success());
    String::from_utf8(out.stdout).unwrap()
}
