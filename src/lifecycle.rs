//! The process's life: readiness, signals, the phases of a drain, and the only place that spawns
//! tasks.
//!
//! Not here: what a drain does to sockets (`app`). Invariant: a phase only ever moves forward, and
//! a second signal ends the process at once.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

/// The phases of the process's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Running,
    /// Not ready, still accepting, so that load balancers notice.
    Settling,
    /// Not accepting; sockets are told to reconnect elsewhere.
    Draining,
}

/// A shared handle on the process's life.
#[derive(Clone)]
pub struct Lifecycle {
    phase: watch::Sender<Phase>,
    /// Set by the first round trip to the broker; never unset.
    ready: Arc<AtomicBool>,
    /// Why the last reload was refused, until one succeeds.
    reload: Arc<Mutex<Option<String>>>,
    tasks: TaskTracker,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self {
            phase: watch::Sender::new(Phase::Running),
            ready: Arc::default(),
            reload: Arc::default(),
            tasks: TaskTracker::new(),
        }
    }
}

impl Lifecycle {
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    pub fn advance(&self, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let forward = to > *phase;
            if forward {
                *phase = to;
            }
            forward
        });
    }

    /// Waits until the phase is `phase` or later.
    pub async fn wait_for(&self, phase: Phase) {
        let mut rx = self.phase.subscribe();
        // An error would mean that there is no sender, and `self` holds one.
        let _ = rx.wait_for(|p| *p >= phase).await;
    }

    /// Notes that the broker answered for the first time.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Release);
    }

    #[must_use]
    pub fn is_broker_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Notes that a reload was refused for this reason, or succeeded (`None`).
    pub fn record_reload(&self, problem: Option<String>) {
        *self.reload.lock() = problem;
    }

    #[must_use]
    pub fn reload_problem(&self) -> Option<String> {
        self.reload.lock().clone()
    }

    /// Spawns a connection's task. The drain waits for these tasks.
    #[expect(clippy::disallowed_methods, reason = "the one place that spawns tracked tasks")]
    pub fn spawn_connection<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        tokio::spawn(self.tasks.track_future(task));
    }

    /// Waits until all connections' tasks have ended.
    pub async fn connections_ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Spawns a task that lives as long as the process, or as the owner of its handle wants.
#[expect(clippy::disallowed_methods, reason = "the one place that spawns background tasks")]
pub fn spawn<F>(name: &'static str, task: F) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    tokio::spawn(async move {
        task.await;
        tracing::debug!(task = name, "task ended");
    })
}

/// SIGTERM and SIGINT. The handlers are installed before anything listens, and kept: a signal
/// counts even if it comes before anybody waits for it, or right behind another.
pub struct Termination {
    term: Signal,
    int: Signal,
}

impl Termination {
    /// Installs the handlers.
    ///
    /// # Errors
    /// A handler cannot be installed.
    pub fn install() -> std::io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next signal.
    pub async fn signalled(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

/// SIGHUP. Without a handler it would end the process, so its handler too is installed before
/// anything runs.
pub struct Hangup(Signal);

impl Hangup {
    /// Installs the handler.
    ///
    /// # Errors
    /// The handler cannot be installed.
    pub fn install() -> std::io::Result<Self> {
        Ok(Self(signal(SignalKind::hangup())?))
    }

    /// Waits for the next signal.
    pub async fn signalled(&mut self) {
        self.0.recv().await;
    }
}
