//! The one harness of the Rust tests: it starts gateways, Redis servers and what stands between
//! them, and has the clients that speak to a gateway.
//!
//! Not here: what a test or a round of the auditor expects, and the rules and limits that
//! it configures.
//!
//! Everything that is started listens on loopback and ends when its value is dropped. The harness
//! waits for conditions, with a deadline, never for time to pass.

#![warn(missing_docs)]
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "not the gateway")]

pub mod client;
pub mod gateway;
pub mod http;
pub mod metrics;
pub mod nginx;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod redis;
pub mod relay;
pub mod sse;
pub mod tokens;
mod wait;

pub use wait::{DEADLINE, eventually, eventually_within};
