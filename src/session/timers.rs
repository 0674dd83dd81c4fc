//! The deadlines of a session, in ticks of the hub's wheel. One entry on the wheel serves
//! all of them.
//!
//! Not here: what follows once a deadline has passed (`session`).

use std::time::Duration;

use crate::auth::Reason;
use crate::clock::unix_now;
use crate::config::{Limits, Policy};
use crate::hub::{Connection, TICK, TICKS_PER_SECOND};
use crate::protocol::Reply;
use crate::protocol::codes::{Close, CloseCode};

/// No deadline.
const NEVER: u32 = u32::MAX;

/// A token's end is announced when this share of its life is left, or later if so configured. A
/// client that answers with a token of the same kind uses each for three quarters of its life.
const NOTICE_SHARE: u64 = 4;

/// Seconds after which a token's end is compared with the wall clock again.
const LOOK_AT_CLOCK: u32 = 30;

/// When something is due; `NEVER` if it is not.
#[derive(Debug)]
pub(super) struct Timers {
    /// When a token has to have arrived.
    token_due: u32,
    next_ping: u32,
    /// When bytes have to have arrived.
    pong_due: u32,
    /// When a message that was begun has to be complete.
    rest_due: u32,
    /// When the token's end is compared with the clock again.
    expiry: u32,
    /// When subscriptions and rules have to be looked at.
    ends: u32,
    /// Unix seconds.
    expires_at: Option<u64>,
    /// The Unix second at which the client is told of the token's end; `None` once it has been
    /// told, or if no time is left for that.
    notice: Option<u64>,
}

/// Which deadline has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overdue {
    NoToken,
    NoPong,
    /// A message was begun and not finished in time.
    Unfinished,
    /// The token has ended.
    Expired,
}

impl Overdue {
    pub(super) fn close(self) -> Close {
        match self {
            Self::NoToken => Close::new(CloseCode::Deadline, "no token in time"),
            Self::NoPong => Close::new(CloseCode::Deadline, "no answer to ping"),
            Self::Unfinished => Close::new(CloseCode::Deadline, "message not finished in time"),
            Self::Expired => Close::new(CloseCode::TokenRefused, Reason::Expired.slug()),
        }
    }

    /// The token's failure in this deadline, for the metric.
    pub(super) fn failure(self) -> Option<Reason> {
        match self {
            Self::NoToken => Some(Reason::Missing),
            Self::Expired => Some(Reason::Expired),
            Self::NoPong | Self::Unfinished => None,
        }
    }
}

/// What one read held: the end of an incomplete message, the beginning of another. Each message has
/// its own deadline, which control frames between its parts do not renew.
#[derive(Debug, Clone, Copy)]
pub struct Heard {
    pub completed: bool,
    pub partial: bool,
}

/// The same moment on both clocks: the wheel's, which never jumps, and the wall clock, which tokens
/// refer to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub(super) now: u32,
    /// Unix seconds.
    pub(super) unix: u64,
}

fn ticks(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis().div_ceil(TICK.as_millis())).unwrap_or(NEVER / 2)
}

impl Timers {
    /// Pings begin at a random moment in the second half of the interval, so that connections that
    /// were opened together are not pinged together.
    pub(super) fn new(now: u32, limits: &Limits) -> Self {
        let interval = ticks(limits.ping_interval.0);
        Self {
            token_due: NEVER,
            next_ping: now + interval / 2 + fastrand::u32(0..=interval / 2),
            pong_due: NEVER,
            rest_due: NEVER,
            expiry: NEVER,
            ends: NEVER,
            expires_at: None,
            notice: None,
        }
    }

    /// Plans a look at the subscriptions for `until`, when one of them ends.
    pub(super) fn look_at(&mut self, now: u32, until: u64, unix: u64) {
        let seconds = u32::try_from(until.saturating_sub(unix)).unwrap_or(NEVER).min(LOOK_AT_CLOCK);
        self.ends = self.ends.min(now + seconds * TICKS_PER_SECOND);
    }

    /// Plans a look at the subscriptions for a tick.
    pub(super) fn wake_at(&mut self, tick: u32) {
        self.ends = self.ends.min(tick);
    }

    pub(super) fn forget_ends(&mut self) {
        self.ends = NEVER;
    }

    pub(super) fn await_token(&mut self, now: u32, deadline: Duration) {
        self.token_due = now + ticks(deadline);
    }

    pub(super) fn token_came(&mut self) {
        self.token_due = NEVER;
    }

    /// Sets the end of the token that counts now.
    pub(super) fn token_until(&mut self, expires_at: Option<u64>, policy: &Policy) {
        self.expires_at = expires_at;
        self.notice = expires_at.and_then(|end| {
            // The notice goes by the life that is left on arrival: the client may have stored the
            // token for a while.
            let left = end.saturating_sub(unix_now());
            let before = policy.expiring_notice.as_secs().min(left.div_ceil(NOTICE_SHARE));
            (before < left).then(|| end - before)
        });
        // The next timer compares the token's end with the clock, and plans the next look.
        self.expiry = if expires_at.is_some() { 0 } else { NEVER };
    }

    /// Notes that bytes arrived. Returns true if the wheel has to know a new deadline.
    pub(super) fn heard(&mut self, now: u32, heard: Heard, within: Duration) -> bool {
        self.pong_due = NEVER;
        if !heard.partial {
            self.rest_due = NEVER;
            return false;
        }

        // The deadline is for one message: after a completed one, the next has its own.
        let begun = self.rest_due == NEVER;
        if begun || heard.completed {
            self.rest_due = now + ticks(within);
        }

        // The wheel finds a later deadline when the earlier one comes due.
        begun
    }

    /// Acts on the deadlines that have come due.
    pub(super) fn check(
        &mut self,
        Moment { now, unix }: Moment,
        policy: &Policy,
        connection: &Connection,
    ) -> Result<(), Overdue> {
        if now >= self.token_due {
            return Err(Overdue::NoToken);
        }
        if now >= self.pong_due {
            return Err(Overdue::NoPong);
        }
        if now >= self.rest_due {
            return Err(Overdue::Unfinished);
        }

        if now >= self.next_ping {
            self.next_ping = now + ticks(policy.limits.ping_interval.0);
            let ping = connection.wire().ping();
            connection.send(ping.frame);
            if ping.is_answered {
                // An older ping may still be unanswered: its deadline counts.
                self.pong_due = self.pong_due.min(now + ticks(policy.limits.pong_timeout.0));
            }
        }

        if now >= self.expiry
            && let Some(expires_at) = self.expires_at
        {
            self.check_token(Moment { now, unix }, expires_at, policy, connection)?;
        }

        Ok(())
    }

    /// Compares the token's end with the wall clock, and tells the client in time.
    fn check_token(
        &mut self,
        Moment { now, unix }: Moment,
        expires_at: u64,
        policy: &Policy,
        connection: &Connection,
    ) -> Result<(), Overdue> {
        let end = expires_at.saturating_add(policy.leeway.as_secs());
        if unix >= end {
            return Err(Overdue::Expired);
        }

        if self.notice.is_some_and(|notice| unix >= notice) {
            self.notice = None;
            connection.say(&Reply::TokenExpiring { expires_at });
        }

        let next = self.notice.unwrap_or(end);
        // The wall clock may be set, or the machine may sleep, so it is read again every
        // now and then.
        let seconds = u32::try_from(next - unix).unwrap_or(NEVER).min(LOOK_AT_CLOCK);
        self.expiry = now.saturating_add(seconds.saturating_mul(TICKS_PER_SECOND)).min(NEVER - 1);

        Ok(())
    }

    /// The earliest deadline.
    pub(super) fn next(&self) -> u32 {
        [self.token_due, self.next_ping, self.pong_due, self.rest_due, self.expiry, self.ends]
            .into_iter()
            .min()
            .unwrap_or(self.next_ping)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A busy client whose reads always ended within a message used to be closed for not
    /// finishing one.
    #[test]
    fn each_message_has_its_own_deadline() {
        let mut timers = Timers {
            token_due: NEVER,
            next_ping: NEVER,
            pong_due: NEVER,
            rest_due: NEVER,
            expiry: NEVER,
            ends: NEVER,
            expires_at: None,
            notice: None,
        };

        let within = Duration::from_secs(10);
        let partial = |completed| Heard { completed, partial: true };

        assert!(timers.heard(0, partial(false), within), "the wheel has to know");
        assert_eq!(timers.rest_due, 40);

        assert!(!timers.heard(30, partial(false), within));
        assert_eq!(timers.rest_due, 40, "bytes alone do not extend it");

        assert!(!timers.heard(39, partial(true), within));
        assert_eq!(timers.rest_due, 79, "the next message has its own");

        timers.heard(50, Heard { completed: true, partial: false }, within);
        assert_eq!(timers.rest_due, NEVER);
    }
}
