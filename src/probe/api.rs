//! Publishing by the server API, and waiting for the event on the socket.
//!
//! Invariant: no server but a gateway sees the key.

use std::time::{Duration, Instant};

use reqwest::Url;
use serde_json::{Value, json};

use super::causes::Cause;
use super::report::{Checked, Trouble};
use super::session::Socket;
use super::target::{Target, millis};
use crate::upstream::{self, UpstreamError};

/// A text in the gateway's answer to a call without a key, and in no other server's;
/// `tests/it/doctor_url.rs` checks it with a real gateway.
const ASKS_FOR_KEY: &str = "api.keys";

/// The address to publish at, and the key.
pub(super) struct Api {
    url: String,
    /// True if `--api` was not given: there may be no server API at the address.
    guessed: bool,
    key: String,
    client: reqwest::Client,
}

impl Api {
    /// `url` may stop at the host, at `/api` or at `/api/publish`. Without one, the API is expected
    /// beside the sockets.
    pub(super) fn new(
        url: Option<&str>,
        target: &Target,
        key: String,
        patience: Duration,
        ca: Option<&[u8]>,
    ) -> Result<Self, String> {
        let guessed = url.is_none();
        let url = match url {
            None => target.beside("api/publish").http(),
            Some(text) => {
                let mut url = Url::parse(text).map_err(|e| format!("--api: {e}"))?;
                if !matches!(url.scheme(), "http" | "https") {
                    return Err("--api must begin with https:// or http://".to_owned());
                }
                if url.password().is_some() || !url.username().is_empty() {
                    return Err(
                        "--api contains credentials: leave them out, the key is enough".to_owned()
                    );
                }

                let path = url.path().trim_end_matches('/').to_owned();
                if path.is_empty() {
                    url.set_path("/api/publish");
                } else if !path.ends_with("/publish") {
                    url.set_path(&format!("{path}/publish"));
                }
                url.into()
            }
        };

        let client = upstream::client(patience, ca).map_err(|e| format!("--api: {e}"))?;
        Ok(Self { url, guessed, key, client })
    }

    /// Checks that a gateway answers at the address. The request has no key, because no other
    /// server may see it: another application's `/api/publish` would keep it in its log.
    ///
    /// # Errors
    /// The answer that came instead. The cause is `None` if `--api` was not given: if only backends
    /// may call the API, it is not beside the sockets.
    pub(super) async fn proves_itself(&self) -> Result<(), (Option<Cause>, String)> {
        let (status, text) = match self.ask(None, "{}".to_owned()).await {
            Ok(answer) => answer,
            Err(why) => return Err(((!self.guessed).then_some(Cause::ApiAway), why)),
        };

        if status == 401 && text.contains(ASKS_FOR_KEY) {
            return Ok(());
        }

        let found =
            format!("{} answers {status}, which no gateway does; the key was not sent", self.url);
        Err(((!self.guessed).then_some(Cause::ApiOther), found))
    }

    /// The status and the text of the answer.
    async fn ask(&self, key: Option<&str>, body: String) -> Result<(u16, String), String> {
        let away = |e: reqwest::Error| format!("{}: {}", self.url, UpstreamError::from(e));
        let request = self.client.post(&self.url).body(body);
        let request = match key {
            Some(key) => request.header("X-API-Key", key),
            None => request,
        };
        let answer = request.send().await.map_err(away)?;
        let status = answer.status().as_u16();
        Ok((status, answer.text().await.map_err(away)?))
    }

    /// Publishes a marked event on a channel of the socket, which has to receive it.
    pub(super) async fn round_trip(&self, socket: &mut Socket, patience: Duration) -> Checked<()> {
        let channel = socket.channels.first().cloned().unwrap_or_default();
        let mark = format!("{:016x}", fastrand::u64(..));
        let event = json!({"type": "tollgate_doctor", "mark": mark});
        let body = json!({"channel": channel, "data": event}).to_string();

        let began = Instant::now();
        self.publish(body).await?;
        let published = began.elapsed();

        if !socket.receives(&mark, patience).await {
            let found =
                format!("published on {channel}, but not received within {}", millis(patience));
            return Err(Trouble::new(Cause::EventLost, found));
        }

        let published = millis(published);
        let all = millis(began.elapsed());
        Ok(((), format!("{channel}: published in {published}, received after {all}")))
    }

    async fn publish(&self, body: String) -> Result<(), Trouble> {
        let answer = self.ask(Some(&self.key), body).await;
        let (status, text) = answer.map_err(|why| Trouble::new(Cause::ApiAway, why))?;

        let value = serde_json::from_str::<Value>(&text).unwrap_or(Value::Null);
        if status == 200 && value["result"].is_object() {
            return Ok(());
        }

        let ours = text.contains(ASKS_FOR_KEY);
        let cause = if ours { Cause::ApiKeyRefused } else { Cause::ApiAnswer };
        Err(Trouble::new(cause, format!("{} answers {status}: {text}", self.url)))
    }
}
