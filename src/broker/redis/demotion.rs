//! Old masters: whoever still publishes to one, until it is a replica, loses that. Its channels are
//! declared for as long as that may go on, and at its end.

use std::sync::Arc;
use std::time::Duration;

use redis::RedisResult;
use tokio::time::{Instant, sleep};

use super::connect::Link;
use super::masters::Map;
use super::{Shared, fence};
use crate::broker::Track;
use crate::channel::ChannelName;

const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How long an old master is watched for its demotion, and how often what it may take is declared.
const DEMOTED_WITHIN: Duration = Duration::from_secs(300);
const DECLARE_EVERY: Duration = Duration::from_secs(15);

/// Waits until the old master takes no more publications, and declares those that it took since: now and
/// then while it goes on, once where it cannot be reached by us and may go on, and at its end.
pub(super) async fn watch(shared: Arc<Shared>, map: Arc<Map>, index: usize) {
    let old = &map.masters[index];
    let was_its = |c: &ChannelName| map.master_of(shared.key(c).as_bytes()) == Some(index);
    let declare = || shared.declare_lost(&|channel, _| was_its(channel));
    let over = || async {
        match fence::raise(&shared).await {
            // Another epoch declares what is followed by offset, also to who is away now.
            Ok(true) => {
                shared.declare_lost(&|channel, track| track == Track::No && was_its(channel));
                shared.renew();
            }
            Ok(false) => declare(),
            Err(error) => {
                tracing::warn!(%error, "who is away now will not be told of what the old master took");
                declare();
            }
        }
    };
    let (began, mut declared, mut unreached) = (Instant::now(), Instant::now(), false);
    while began.elapsed() < DEMOTED_WITHIN {
        sleep(LOOK_EVERY).await;
        match shared.connector.master(old, None).await {
            // It is one of the cluster, and sends away whoever asks for slots that it gave up.
            Ok(link) if shared.is_cluster() && is_in_touch(&link).await => return over().await,
            Ok(_) if declared.elapsed() > DECLARE_EVERY => {
                declared = Instant::now();
                declare();
            }
            Ok(_) => {}
            // A replica, or nothing that listens.
            Err(e) if e.kind() == redis::ErrorKind::Client || e.is_connection_refusal() => {
                tracing::info!(server = %old, "the old master is a master no more");
                return over().await;
            }
            Err(_) if !unreached => {
                unreached = true;
                declare();
            }
            Err(_) => {}
        }
    }
    tracing::warn!(server = %old, "the old master has not become a replica; what it takes is lost");
    over().await;
}

async fn is_in_touch(link: &Link) -> bool {
    let mut ask = redis::cmd("CLUSTER");
    let info: RedisResult<String> = ask.arg("INFO").query_async(&mut link.connection.clone()).await;
    info.is_ok_and(|info| info.contains("cluster_state:ok"))
}
