//! What the broker needs to know, taken from the `[redis]` section.

use std::path::PathBuf;
use std::time::Duration;

use tokio_rustls::TlsConnector;

use super::login::Login;

/// What the broker needs to know, taken from the `[redis]` section.
#[derive(Clone)]
pub struct Settings {
    /// The URL may hold a password: never log it.
    pub url: String,
    /// The file that holds the password if the URL does not; it is read for each connection.
    pub password_file: Option<PathBuf>,
    pub prefix: String,
    /// Used if the URL asks for TLS.
    pub tls: Option<TlsConnector>,
    /// The login at the Sentinels.
    pub sentinel: Login,
    /// The number of subscribing connections to each master.
    pub subscribers: usize,
    pub connect_timeout: Duration,
    pub command_timeout: Duration,
    pub ping_interval: Duration,
    pub ping_timeout: Duration,
    pub canary_interval: Duration,
    pub canary_deadline: Duration,
    pub reconnect_min: Duration,
    pub reconnect_max: Duration,
    /// True if replicas of version 0.1 run on the same Redis.
    pub beside_0_1: bool,
    /// True if the function library refuses mistakes of publishers, false if it only warns.
    pub refuse_wrong: bool,
    /// The initial limit for publications that are delivered whole, in bytes.
    pub max_publication: usize,
    /// How often a server's address is checked for a change.
    pub address_interval: Duration,
}
