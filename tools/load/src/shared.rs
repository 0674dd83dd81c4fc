//! What the load threads, the publishers and the scenario tell each other while a run goes on:
//! counters, the phases' beginnings, and which publications are complete.

use std::sync::OnceLock;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize};
use std::thread::Thread;

use crate::arrivals::Arrivals;
use crate::tally::PHASES;
use crate::topology::Topology;

/// The most publications that a closed loop may have under way.
pub const MAX_WINDOW: usize = 1024;

pub struct Shared {
    /// Connections with all their subscriptions.
    pub ready: AtomicUsize,
    /// Connections that will not be tried again.
    pub over: AtomicUsize,
    pub delivered: AtomicU64,
    pub measured: AtomicU64,
    /// When the last connection became ready, and when the last event came.
    pub last_ready: AtomicU64,
    pub last_delivery: AtomicU64,
    /// Publishing has begun: a client that connects from now on takes the first event as it is.
    pub publishing: AtomicBool,
    /// When phases 1 to `PHASES` begin.
    phases: [AtomicU64; PHASES],
    pub window: Window,
    /// Where events are noted whose delay is computed afterwards.
    pub arrivals: OnceLock<Arrivals>,
}

impl Shared {
    pub fn new(window: Window) -> Self {
        Shared {
            ready: AtomicUsize::new(0),
            over: AtomicUsize::new(0),
            delivered: AtomicU64::new(0),
            measured: AtomicU64::new(0),
            last_ready: AtomicU64::new(0),
            last_delivery: AtomicU64::new(0),
            publishing: AtomicBool::new(false),
            phases: [const { AtomicU64::new(u64::MAX) }; PHASES],
            window,
            arrivals: OnceLock::new(),
        }
    }

    pub fn begin_phase(&self, phase: usize, at: u64) {
        self.phases[phase - 1].store(at, Release);
    }

    pub fn phases(&self) -> [u64; PHASES] {
        [0, 1, 2].map(|phase: usize| self.phases[phase].load(Acquire))
    }
}

/// A closed loop: which publications have reached all their subscribers.
pub struct Window {
    enabled: bool,
    threads: usize,
    completed: AtomicU64,
    publisher: OnceLock<Thread>,
    /// For each shared channel: how many threads have subscribers, and how many of them have seen
    /// all deliveries of a publication, by its sequence number.
    channels: Vec<(u32, Vec<AtomicU32>)>,
    subscribers: Vec<Vec<u32>>,
}

impl Window {
    pub fn new(enabled: bool, topology: &Topology, threads: usize) -> Self {
        let count = if enabled { topology.shared_channels() } else { 0 };
        let mut subscribers = vec![vec![0u32; count]; threads];
        for client in 0..if count > 0 { topology.clients } else { 0 } {
            if let Some(channel) = topology.shared_of(client) {
                subscribers[topology.thread_of(client, threads)][channel] += 1;
            }
        }

        let channels = (0..count)
            .map(|channel| {
                let with = subscribers.iter().filter(|thread| thread[channel] > 0).count();
                (with as u32, (0..MAX_WINDOW).map(|_| AtomicU32::new(0)).collect())
            })
            .collect();

        let (completed, publisher) = (AtomicU64::new(0), OnceLock::new());
        Window { enabled, threads, completed, publisher, channels, subscribers }
    }

    pub fn completed(&self) -> u64 {
        self.completed.load(Acquire)
    }

    /// Makes the calling thread the publisher, which is woken when something is complete.
    pub fn publish_from_here(&self) {
        let _ = self.publisher.set(std::thread::current());
    }

    pub fn of_thread(&self, thread: usize) -> ThreadWindow {
        let subscribers = self.subscribers[thread].clone();
        let seen = vec![0; subscribers.len() * MAX_WINDOW];
        ThreadWindow { subscribers, seen, completed: 0 }
    }
}

/// One thread's part in the window, without contention for each delivery.
pub struct ThreadWindow {
    subscribers: Vec<u32>,
    seen: Vec<u32>,
    completed: u64,
}

impl ThreadWindow {
    pub fn delivered(&mut self, window: &Window, channel: u32, sequence: u32) {
        if !window.enabled {
            return;
        }

        let channel = channel as usize;
        let Some(subscribers) = self.subscribers.get(channel) else {
            // A client's own channel has no other subscriber.
            self.completed += 1;
            return;
        };

        let slot = sequence as usize % MAX_WINDOW;
        let seen = &mut self.seen[channel * MAX_WINDOW + slot];
        *seen += 1;
        if *seen < *subscribers {
            return;
        }

        // All of this thread's subscribers have it; the last thread of which this is true
        // completes it.
        *seen = 0;
        let (threads, complete) = &window.channels[channel];
        if window.threads == 1 || complete[slot].fetch_add(1, AcqRel) + 1 == *threads {
            complete[slot].store(0, Relaxed);
            self.completed += 1;
        }
    }

    /// Tells the publisher what is complete, once for many deliveries: waking it is a system call.
    pub fn publish(&mut self, window: &Window) {
        if self.completed > 0 {
            window.completed.fetch_add(self.completed, AcqRel);
            self.completed = 0;
            if let Some(publisher) = window.publisher.get() {
                publisher.unpark();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publication_is_complete_when_all_subscribers_of_all_threads_have_it() {
        let shared = Some(("post:{n}".to_owned(), 1));
        let topology = Topology { shared, own: None, auto: false, bystanders: None, clients: 3 };
        let window = Window::new(true, &topology, 2);
        let (mut even, mut odd) = (window.of_thread(0), window.of_thread(1));

        // A client that is ahead does not complete what another lacks.
        even.delivered(&window, 0, 1);
        odd.delivered(&window, 0, 1);
        odd.delivered(&window, 0, 2);
        even.publish(&window);
        odd.publish(&window);
        assert_eq!(window.completed(), 0);

        even.delivered(&window, 0, 1);
        even.publish(&window);
        assert_eq!(window.completed(), 1);
    }
}
