//! A small HTTP server in the application's place: key sets and the callback.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use parking_lot::Mutex;
use serde_json::Value;

/// A running server: what it answers next, and what it was asked.
pub struct Upstream {
    pub url: String,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    answer: Mutex<(u16, String)>,
    asked: Mutex<Vec<(String, Value)>>,
    count: AtomicUsize,
    stalls: Mutex<bool>,
    /// The user about whom the server never answers.
    stalls_for: Mutex<Option<String>>,
    delay: Mutex<std::time::Duration>,
}

impl Upstream {
    pub async fn start() -> Self {
        let shared = Arc::new(Shared::default());
        let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, shared, task }
    }

    pub fn answers(&self, status: u16, body: &Value) {
        *self.shared.answer.lock() = (status, body.to_string());
    }

    pub fn answers_text(&self, status: u16, body: &str) {
        *self.shared.answer.lock() = (status, body.to_owned());
    }

    /// Takes requests, but never answers.
    pub fn stalls(&self, stalls: bool) {
        *self.shared.stalls.lock() = stalls;
    }

    /// Never answers questions about this user.
    pub fn stalls_for(&self, user: &str) {
        *self.shared.stalls_for.lock() = Some(user.to_owned());
    }

    pub fn delays(&self, delay: std::time::Duration) {
        *self.shared.delay.lock() = delay;
    }

    pub fn count(&self) -> usize {
        self.shared.count.load(Ordering::SeqCst)
    }

    /// The `Authorization` header and body of each request so far.
    pub fn asked(&self) -> Vec<(String, Value)> {
        self.shared.asked.lock().clone()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> (StatusCode, String) {
    let authorization =
        request.headers().get("authorization").map(|v| v.to_str().unwrap().to_owned());
    let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let stalls = shared.stalls_for.lock().as_deref() == Some(body["user"].as_str().unwrap_or(""));
    shared.asked.lock().push((authorization.unwrap_or_default(), body));
    shared.count.fetch_add(1, Ordering::SeqCst);
    if stalls || *shared.stalls.lock() {
        std::future::pending::<()>().await;
    }
    let delay = *shared.delay.lock();
    tokio::time::sleep(delay).await;
    let (status, body) = shared.answer.lock().clone();
    (StatusCode::from_u16(status).unwrap_or(StatusCode::NOT_FOUND), body)
}
