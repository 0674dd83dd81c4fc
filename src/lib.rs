//! Tollgate: a horizontally scaled real-time gateway.
pub mod access;
pub mod auth;
pub mod channel;
pub mod config;
pub mod protocol;
pub mod websocket;
