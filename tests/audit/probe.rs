//! A single socket that shows how a gateway answers.

use std::time::Duration;

use serde_json::{Value, json};
use tollgate_support::client::{Client, Ended};

const PATIENCE: Duration = Duration::from_secs(10);

/// A socket of its own, outside the load.
pub struct Probe(Client);

impl Probe {
    /// Connects with a token, or says how the gateway refused it.
    pub async fn open(address: &str, token: &str) -> Result<Self, Ended> {
        let bearer = format!("Bearer {token}");
        let client = Client::open(address, "/ws", &[("authorization", &bearer)]).await;
        let mut probe = Self(client.map_err(|e| (0, e.to_string()))?);
        let hello = probe.next().await?;
        if hello["type"] == "connected" { Ok(probe) } else { Err((0, hello.to_string())) }
    }

    pub async fn subscribe(&mut self, channel: &str) -> Result<(), Ended> {
        let ask = json!({"type": "subscribe", "channel": channel});
        self.0.try_send_together(&[ask]).await?;
        let answer = self.next().await?;
        if answer["type"] == "subscribed" { Ok(()) } else { Err((0, answer.to_string())) }
    }

    /// Sends `many` refreshes with a malformed token. Returns how many were refused.
    pub async fn refused_refreshes(&mut self, many: usize) -> Result<usize, Ended> {
        let ask = json!({"type": "refresh", "token": "nonsense"});
        self.0.try_send_together(&vec![ask; many]).await?;
        for _ in 0..many {
            let answer = self.next().await?;
            if answer["data"]["code"] != "token_refused" {
                return Err((0, answer.to_string()));
            }
        }
        Ok(many)
    }

    /// The next message, or how the socket ended.
    pub async fn next(&mut self) -> Result<Value, Ended> {
        self.0.hear(PATIENCE).await
    }
}
