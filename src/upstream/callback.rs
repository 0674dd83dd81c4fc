//! The `callback` rule: asking the application whether a user may have a channel.
//!
//! Not here: what follows from the answer (`session::permission`). Invariants: questions are
//! bounded in time and in number at once, of which a user has a share; an answer is kept for
//! `cache_ttl`, a failure never; anything but a clear yes is a no.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dashmap::DashMap;
use reqwest::Client;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use tokio::sync::Semaphore;

use super::UpstreamError;
use crate::strict;

/// The longest answer, `data` included.
const MAX_ANSWER: usize = 64 * 1024;

/// The settings of the callback.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    pub url: String,
    /// Sent as `Authorization: Bearer`: never logged.
    pub secret: String,
    /// PEM of the certificates to trust instead of the system's authorities.
    pub ca: Option<String>,
    pub timeout: Duration,
    pub concurrency: usize,
    pub cache_ttl: Duration,
    pub cache_entries: usize,
}

/// What the application is asked.
#[derive(Debug, Serialize)]
pub struct Question<'a> {
    pub user: Option<&'a str>,
    pub channel: &'a str,
    pub claims: Map<String, Value>,
}

/// The application's answer: `{"allow":true,"data":…}`.
#[derive(Debug, Clone, Deserialize)]
pub struct Answer {
    pub allow: bool,
    /// Goes into the `subscribed` reply.
    #[serde(default)]
    pub data: Option<Arc<RawValue>>,
}

/// The answers by the whole question: with other claims it is another question.
type Cache = DashMap<Box<[u8]>, (Answer, Instant), ahash::RandomState>;

/// The client that asks the application.
pub struct Callback {
    client: Client,
    settings: Settings,
    under_way: Arc<Semaphore>,
    users: Arc<Users>,
    cache: Arc<Cache>,
}

/// The permits of each user with a question under way, by name. Connections without a user
/// share one entry.
type Users = DashMap<Box<str>, Arc<Semaphore>, ahash::RandomState>;

/// The share of one user is one part in this many, so three quarters stay for others.
const SHARE: usize = 4;

/// A user's permits, for a question that has or wants one.
struct Own<'c> {
    users: &'c Users,
    user: &'c str,
    places: Arc<Semaphore>,
}

impl<'c> Own<'c> {
    fn new(users: &'c Users, user: &'c str, share: usize) -> Self {
        let entry = users.entry(user.into());
        let places = Arc::clone(&entry.or_insert_with(|| Arc::new(Semaphore::new(share))));
        Self { users, user, places }
    }
}

impl Drop for Own<'_> {
    fn drop(&mut self) {
        // A count of two is the table and this question: no other question has the permits, and the
        // entry's lock keeps others from taking them meanwhile.
        self.users.remove_if(self.user, |_, places| Arc::strong_count(places) <= 2);
    }
}

impl Callback {
    /// Starts a callback. It keeps whatever these settings do not touch of the one before: all of
    /// it if they are the same; otherwise the answers if they come from the same application, the
    /// connections and the permits.
    ///
    /// # Errors
    /// No client can be made.
    pub fn start(settings: Settings, before: Option<&Arc<Self>>) -> Result<Arc<Self>, String> {
        if let Some(same) = before.filter(|b| b.settings == settings) {
            return Ok(Arc::clone(same));
        }

        let same_client =
            |b: &&Arc<Self>| b.settings.timeout == settings.timeout && b.settings.ca == settings.ca;
        let client = match before.filter(same_client) {
            Some(before) => before.client.clone(),
            None => super::client(settings.timeout, settings.ca.as_deref().map(str::as_bytes))?,
        };

        let under_way = match before.filter(|b| b.settings.concurrency == settings.concurrency) {
            Some(before) => Arc::clone(&before.under_way),
            None => Arc::new(Semaphore::new(settings.concurrency)),
        };
        let users = match before.filter(|b| b.settings.concurrency == settings.concurrency) {
            Some(before) => Arc::clone(&before.users),
            None => Arc::default(),
        };

        let cache = before.filter(|b| b.settings.url == settings.url);
        let cache = cache.map(|before| Arc::clone(&before.cache)).unwrap_or_default();

        Ok(Arc::new(Self { client, settings, under_way, users, cache }))
    }

    /// True if a question that is asked now gets its permit without waiting.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.under_way.available_permits() > 0
    }

    /// Asks the application, or remembers its answer.
    ///
    /// # Errors
    /// There is no clear answer in time. Then the answer is no, and the question may be asked
    /// again.
    pub async fn ask(&self, question: &Question<'_>) -> Result<Answer, UpstreamError> {
        let body: Box<[u8]> = serde_json::to_vec(question).unwrap_or_default().into();
        let kept = self.cache.get(&body).map(|c| c.clone());
        if let Some((answer, at)) = kept
            && at.elapsed() < self.settings.cache_ttl
        {
            return Ok(answer);
        }

        let share = (self.settings.concurrency / SHARE).max(1);
        let own = Own::new(&self.users, question.user.unwrap_or_default(), share);
        let work = async {
            // A question that waits for a permit of its own user takes none from the others.
            let _own = own.places.acquire().await.map_err(|_| UpstreamError::TimedOut)?;
            self.request(&body).await
        };

        let asked = tokio::time::timeout(self.settings.timeout, work).await;
        let answer = asked.map_err(|_| UpstreamError::TimedOut)??;

        if !self.settings.cache_ttl.is_zero() {
            self.keep(body, answer.clone());
        }
        Ok(answer)
    }

    /// Sends a question, once there is a permit.
    async fn request(&self, question: &[u8]) -> Result<Answer, UpstreamError> {
        let _place = self.under_way.acquire().await.map_err(|_| UpstreamError::TimedOut)?;
        let request =
            self.client.post(&self.settings.url).header("content-type", "application/json");
        let request = match self.settings.secret.as_str() {
            "" => request,
            secret => request.bearer_auth(secret),
        };
        let body = super::body(request.body(question.to_vec()).send().await?, MAX_ANSWER).await?;
        strict::from_slice(&body)
            .map_err(|_| UpstreamError::Unusable("is not {\"allow\":true|false}".to_owned()))
    }

    /// Keeps an answer, if there is room.
    fn keep(&self, question: Box<[u8]>, answer: Answer) {
        if self.cache.len() >= self.settings.cache_entries {
            self.cache.retain(|_, (_, at)| at.elapsed() < self.settings.cache_ttl);
            if self.cache.len() >= self.settings.cache_entries {
                return;
            }
        }
        self.cache.insert(question, (answer, Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_f7_a_users_places_are_forgotten_with_the_last_question() {
        let users = Users::default();
        let one = Own::new(&users, "u1", 2);
        let two = Own::new(&users, "u1", 2);
        assert!(Arc::ptr_eq(&one.places, &two.places));
        let other = Own::new(&users, "u2", 2);
        drop(one);
        assert_eq!(users.len(), 2);
        drop((two, other));
        assert!(users.is_empty());
    }
}
