//! Tollgate: a horizontally scaled real-time gateway. Backends publish JSON on channels. Every
//! authorised connection that is subscribed to a channel gets its events in order and once, or is
//! told that it may have missed some.
//!
//! The modules stand in layers, and imports go downward only, which `tests/tidy.rs` enforces. Start
//! with `ARCHITECTURE.md` for the map and the walkthroughs.

// 0 vocabulary: no IO, no tasks
pub mod access;
pub mod auth;
pub mod channel;
pub mod config;
pub mod lifecycle;
pub mod logging;
pub mod metrics;
pub mod origin;
pub mod protocol;
pub mod redis_url;
mod sizes;
pub mod strict;
pub mod tls;
pub mod websocket;

// 1 mechanism: none knows another
pub mod broker;
pub mod diagnosis;
pub mod hub;
pub mod upstream;

// 2 mediation
pub mod gateway;

// 3 session
pub mod session;

// 4 edge
pub mod app;
pub mod cli;
pub mod demo;
pub mod http;
pub mod probe;
pub mod terminal;
