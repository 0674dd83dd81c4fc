//! What an error of Redis means, decided in one place: for the connection, for the command,
//! for the key.
//!
//! Only [`Fault::Gone`] ends a connection: an error answer is an answer, and a server that gives
//! one is alive. This module also makes Redis' own words fit for a log, and handles answers of an
//! unexpected shape, which are faults of their key and not of the connection that brought them.

use redis::{Cmd, ErrorKind, FromRedisValue, RedisError, RedisResult, Value};

use crate::broker::{BrokerError, Said};

/// What an error concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The connection: closed, late, not speaking Redis' protocol, or not logged in.
    Gone,
    /// The place: another server has the slot, or this one is not, or not yet, a master in charge.
    Elsewhere,
    /// The state: the server accepts no writes now (memory full, snapshot failing, too
    /// few replicas).
    CannotWrite,
    /// The command: no permission, unknown to the server, or invalid.
    Refused,
    /// The key: it holds something that nobody wrote by the contract.
    BadKey,
}

impl Fault {
    pub(super) const ALL: [Self; 5] =
        [Self::Gone, Self::Elsewhere, Self::CannotWrite, Self::Refused, Self::BadKey];

    pub(super) fn of(error: &RedisError) -> Self {
        let gone = [
            ErrorKind::Io,
            ErrorKind::Parse,
            ErrorKind::AuthenticationFailed,
            ErrorKind::RESP3NotSupported,
        ];

        if gone.contains(&error.kind()) {
            Self::Gone
        } else if error.kind() == ErrorKind::UnexpectedReturnType {
            Self::BadKey
        } else {
            Self::of_code(error.code().unwrap_or_default(), &error.to_string())
        }
    }

    fn of_code(code: &str, text: &str) -> Self {
        match code {
            "NOAUTH" | "WRONGPASS" => Self::Gone,
            "MOVED" | "ASK" | "CLUSTERDOWN" | "TRYAGAIN" | "READONLY" | "LOADING"
            | "MASTERDOWN" | "UNBLOCKED" => Self::Elsewhere,
            "OOM" | "MISCONF" | "NOREPLICAS" => Self::CannotWrite,
            "WRONGTYPE" => Self::BadKey,
            // Before Redis 7 the error of a script contains the code of the inner failure only in
            // its text. In this library that is also true of the errors of a pipeline.
            _ if ["OOM command", "MISCONF ", "NOREPLICAS "].iter().any(|c| text.contains(c)) => {
                Self::CannotWrite
            }
            _ if text.contains("WRONGTYPE ") => Self::BadKey,
            _ => Self::Refused,
        }
    }

    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Gone => "connection",
            Self::Elsewhere => "moved",
            Self::CannotWrite => "cannot_write",
            Self::Refused => "refused",
            Self::BadKey => "bad_key",
        }
    }

    /// True if the same connection may still bring other answers.
    pub(super) fn is_an_answer(self) -> bool {
        self != Self::Gone
    }
}

/// The error as it is returned to the broker's caller.
pub(super) fn classify(error: &RedisError) -> BrokerError {
    match Fault::of(error) {
        Fault::Gone if error.is_timeout() => BrokerError::TimedOut,
        Fault::Gone | Fault::Elsewhere => BrokerError::Unavailable,
        Fault::CannotWrite => BrokerError::CannotWrite(Said::new(&describe(error))),
        Fault::Refused | Fault::BadKey => BrokerError::Refused(Said::new(&describe(error))),
    }
}

/// True if the server that answered is not the right one, or not now: the masters have to be
/// looked up again.
pub(super) fn is_moved(error: &RedisError) -> bool {
    Fault::of(error) == Fault::Elsewhere
}

/// What Redis said, or what happened, without anything that could hold a credential.
pub(super) fn describe(error: &RedisError) -> String {
    let text = match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        (Some(code), None) => code.to_owned(),
        (None, _) => error.to_string(),
    };

    // An old server repeats the arguments of an unknown command, and those of HELLO include
    // the password.
    let text = text.split(", with args beginning with").next().unwrap_or_default();
    Said::new(text).to_string()
}

/// Sends a command and converts its answer here. An answer of the wrong shape is then a fault of
/// the key, whereas the library would call it one of the connection.
pub(super) async fn ask<T: FromRedisValue>(
    connection: &mut impl redis::aio::ConnectionLike,
    command: &Cmd,
) -> RedisResult<T> {
    read(&command.query_async::<Value>(connection).await?)
}

/// Converts an answer to its expected type.
pub(super) fn read<T: FromRedisValue>(answer: &Value) -> RedisResult<T> {
    redis::from_redis_value_ref(answer).map_err(|e| unexpected(&e.to_string()))
}

/// The error for an answer of an unexpected shape.
pub(super) fn unexpected(what: &str) -> RedisError {
    let what = Said::new(what).to_string();
    (ErrorKind::UnexpectedReturnType, "unexpected value", what).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(line: &str) -> RedisError {
        let value = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap();
        value.extract_error().unwrap_err()
    }

    #[test]
    fn field_a5_errors_are_sorted_by_what_they_concern() {
        for (line, fault) in [
            ("NOAUTH Authentication required.", Fault::Gone),
            ("MOVED 1 127.0.0.1:7000", Fault::Elsewhere),
            ("READONLY You can't write against a read only replica.", Fault::Elsewhere),
            ("LOADING Redis is loading the dataset in memory", Fault::Elsewhere),
            ("CLUSTERDOWN The cluster is down", Fault::Elsewhere),
            ("OOM command not allowed when used memory > 'maxmemory'.", Fault::CannotWrite),
            ("MISCONF Redis is configured to save RDB snapshots", Fault::CannotWrite),
            ("NOREPLICAS Not enough good replicas to write.", Fault::CannotWrite),
            ("ERR Error running script: -OOM command not allowed when", Fault::CannotWrite),
            ("NOPERM this user has no permissions", Fault::Refused),
            ("ERR unknown command 'INFO'", Fault::Refused),
            ("ERR max number of clients reached", Fault::Refused),
            ("WRONGTYPE Operation against a key", Fault::BadKey),
            ("WEIRD words", Fault::Refused),
        ] {
            assert_eq!(Fault::of(&error(line)), fault, "{line}");
        }

        let closed = RedisError::from(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
        assert_eq!(Fault::of(&closed), Fault::Gone);
        let shape = read::<u64>(&Value::BulkString(b"abc".to_vec())).unwrap_err();
        assert_eq!(Fault::of(&shape), Fault::BadKey, "a value is not a lost connection");
    }

    #[test]
    fn field_d5_redis_own_words_are_told_bounded_and_without_arguments() {
        let full = error("OOM command not allowed when used memory > 'maxmemory'.");
        assert_eq!(describe(&full), "OOM command not allowed when used memory > 'maxmemory'.");
        let old = error("ERR unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `pw`");
        assert_eq!(describe(&old), "ERR unknown command `HELLO`");
        let odd = describe(&error(&format!("ERR \u{1b}[31m{}", "x".repeat(10_000))));
        assert!(odd.len() < 300 && !odd.contains('\u{1b}'), "{odd}");
    }
}
