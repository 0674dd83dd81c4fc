//! The login at a server: a name and a password. A file may hold the password instead.
//!
//! Invariant: the file is read for each connection, so that the password may change meanwhile.

use std::path::PathBuf;

use redis::{ProtocolVersion, RedisConnectionInfo, RedisResult};

/// The login may hold a password: never log it.
#[derive(Clone)]
pub struct Login {
    redis: RedisConnectionInfo,
    password_file: Option<PathBuf>,
}

impl Default for Login {
    fn default() -> Self {
        Self::new("", "", None)
    }
}

impl Login {
    /// Creates a login; an empty name or password is not sent.
    #[must_use]
    pub fn new(user: &str, password: &str, password_file: Option<PathBuf>) -> Self {
        let mut redis = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3);
        if !user.is_empty() {
            redis = redis.set_username(user);
        }
        if !password.is_empty() {
            redis = redis.set_password(password);
        }
        Self { redis, password_file }
    }

    /// Creates the login that the URL holds, with its database.
    pub(super) fn of_url(redis: RedisConnectionInfo, password_file: Option<PathBuf>) -> Self {
        Self { redis, password_file }
    }

    /// Reads the login, with the file's password if there is a file.
    pub(super) async fn read(&self) -> RedisResult<RedisConnectionInfo> {
        let redis = self.redis.clone();
        let Some(path) = &self.password_file else { return Ok(redis) };
        let text = tokio::fs::read_to_string(path).await.map_err(|e| {
            std::io::Error::new(e.kind(), format!("password file {}: {e}", path.display()))
        })?;

        let password = text.trim_end_matches(['\r', '\n']);
        if password.is_empty() {
            let why = format!("password file {} is empty", path.display());
            return Err(std::io::Error::other(why).into());
        }
        Ok(redis.set_password(password))
    }
}
