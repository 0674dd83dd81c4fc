//! Tollgate: a horizontally scaled real-time gateway. Backends publish JSON on channels. Every
//! authorised connection that is subscribed to a channel gets its events in order and once, or is
//! told that it may have missed some.
//!
//! The modules are layered, and imports go downward only, which `tests/tidy.rs` enforces. Start
//! with `ARCHITECTURE.md`, which is the second half of this page, for the map and the walks.

#![cfg_attr(doc, doc = "\n---\n", doc = include_str!("../ARCHITECTURE.md"))]
#![warn(unreachable_pub)]

// 0 vocabulary: no IO, no tasks
pub mod access;
pub mod auth;
pub mod channel;
mod clock;
pub mod config;
pub mod lifecycle;
pub mod logging;
pub mod metrics;
mod origin;
mod process_limits;
pub mod protocol;
mod redis_url;
mod sizes;
mod strict;
mod tls;
pub mod websocket;

// 1 mechanism: none knows another
pub mod broker;
pub mod diagnosis;
pub mod hub;
pub mod upstream;

// 2 mediation
pub mod gateway;
mod relay;

// 3 session
pub mod session;

// 4 edge
mod app;
pub mod cli;
mod demo;
pub mod http;
pub mod probe;
mod terminal;
