//! Judging a session's channels again after the rules have changed: only the channels whose own
//! rule is another one, by what the session knows. A subscription that is allowed no longer ends
//! with a reason.
//!
//! Invariant: a change that arrives while a session decides by the old rules is judged right after
//! that decision, so no subscription escapes it.

use super::{Questions, Session};
use crate::access::{self, Decision};
use crate::hub::TICKS_PER_SECOND;
use crate::protocol::codes::{Close, ErrorCode};

/// How often the application is asked about a channel that its new rule leaves to the application.
/// `ASK_AGAIN` is the seconds between two attempts, so that a deployment of gateway and application
/// together does not cost the subscriptions.
const ATTEMPTS: u8 = 4;
const ASK_AGAIN: std::ops::RangeInclusive<u32> = 5..=10;

impl Session {
    /// Judges the session's channels if the rules have changed since it judged them last. True if it
    /// judged any.
    ///
    /// # Errors
    /// Why the connection has to be closed.
    pub(super) fn judge(&mut self) -> Result<bool, Close> {
        let change = self.context.change.load_full();
        if !self.opened || change.number == self.judged {
            return Ok(false);
        }

        let one_change = change.number == self.judged.wrapping_add(1);
        self.judged = change.number;
        let policy = self.context.policy.load_full();
        self.may_stay(policy.anonymous)?;

        let mut questions = Vec::new();
        let channels = self.channels();
        let any = !channels.is_empty();
        for channel in channels {
            let (now, before) =
                (access::rule(&channel, &policy.rules), access::rule(&channel, &change.before));
            if one_change && now == before {
                continue;
            }

            match access::decide(self.identity.as_deref(), &channel, &policy.rules) {
                // The channel needs no subscription token any more, so the end of the one that was
                // given takes nothing away.
                Ok(Decision::Allowed) => self.grants.retain(|(c, _)| *c != channel),
                Ok(Decision::Token) if self.grants.iter().any(|(c, _)| *c == channel) => {}
                Ok(Decision::Token) => {
                    let why = "missing: this channel needs a subscription token now";
                    self.end_subscription(channel, ErrorCode::TokenRefused, why);
                }
                Ok(Decision::Callback(_)) => questions.push(channel),
                Err(why) => self.end_subscription(channel, ErrorCode::Forbidden, why.reason()),
            }
        }

        if !questions.is_empty() {
            // Channels that wait for an answer since an earlier change wait for this one too.
            for channel in self.questions.take().map_or_else(Vec::new, |pending| pending.channels) {
                if !questions.contains(&channel) {
                    questions.push(channel);
                }
            }

            let due = self.now();
            self.questions = Some(Box::new(Questions { channels: questions, attempts: 0, due }));
        }

        Ok(any)
    }

    /// True if it is time to ask the application.
    #[must_use]
    pub fn has_questions(&self) -> bool {
        self.questions.as_ref().is_some_and(|questions| self.now() >= questions.due)
    }

    /// Asks the application about channels that were subscribed under another rule. A clear no ends
    /// a subscription; several attempts without an answer end it too.
    pub async fn ask_questions(&mut self) {
        let Some(questions) = self.questions.take() else { return };
        let Questions { channels, attempts, .. } = *questions;

        let mut unanswered = Vec::new();
        for (channel, answer) in self.ask_about(channels).await {
            match answer {
                Ok(()) => {}
                Err(ErrorCode::CallbackFailed) if attempts + 1 < ATTEMPTS => {
                    unanswered.push(channel);
                }
                Err(code @ ErrorCode::CallbackFailed) => {
                    let why = "the application could not be asked whether this is still allowed";
                    self.end_subscription(channel, code, why);
                }
                Err(code) => {
                    let why = "the application does not allow this channel any more";
                    self.end_subscription(channel, code, why);
                }
            }
        }

        if !unanswered.is_empty() {
            let due = self.now() + fastrand::u32(ASK_AGAIN) * TICKS_PER_SECOND;
            let attempts = attempts + 1;
            self.questions = Some(Box::new(Questions { channels: unanswered, attempts, due }));
            self.timers.wake_at(due);
            self.schedule();
        }
    }
}
