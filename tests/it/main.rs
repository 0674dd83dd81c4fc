//! One integration binary: the real program, a real Redis, real sockets.
//!
//! Every test starts what it needs on free ports of loopback and stops it again, so all of them run
//! in parallel. Tests wait for conditions, with one generous deadline, never for time to pass.
//!
//! Not here: what the tests start and speak to (`tests/support`).

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_types, clippy::disallowed_methods, reason = "not the gateway")]

mod access;
mod admin;
mod api;
mod cli;
mod closing;
mod conformance;
mod docs;
mod doctor_url;
mod drain;
mod faults;
mod gateway;
mod groups;
mod history;
mod hostile;
mod identity;
mod isolation;
mod keys;
mod limits;
mod load;
mod logging;
mod old_masters;
mod origins;
mod outage;
mod outbox_faults;
mod passwords;
mod payloads;
mod permissions;
mod places;
mod plain;
mod publish_command;
mod publishing;
mod redis_edges;
mod redis_faults;
mod relay;
mod reload;
mod reserved;
mod revocation;
mod shop;
mod simulation;
mod sse;
mod streams;
mod subscribing;
mod tokens;
mod topologies;
mod upstream;
