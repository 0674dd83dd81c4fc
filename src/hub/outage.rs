//! What is silent: that nothing can arrive now, and on which of a connection's channels.
//!
//! Not here: when clients are told (`gateway::outage`), and who was told what (`table::outage`).

use crate::channel::ChannelName;
use crate::protocol::Reply;

/// A connection with more silent channels than this is told that all are silent: lists for every
/// connection could take more memory than everything else.
const LISTED: usize = 32;

/// An outage: nothing can arrive now, on all channels or on some.
pub struct Outage {
    /// When the outage began, in Unix seconds.
    since: u64,
    concerns: Option<Concerns>,
}

type Concerns = Box<dyn Fn(&ChannelName) -> bool + Send + Sync>;

/// The channels of a connection that are silent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Silent {
    All,
    These(Box<[ChannelName]>),
}

impl Outage {
    /// An outage of all channels.
    #[must_use]
    pub fn of_all(since: u64) -> Self {
        Self { since, concerns: None }
    }

    /// An outage of those channels for which `concerns` is true.
    pub fn of_some(
        since: u64,
        concerns: impl Fn(&ChannelName) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self { since, concerns: Some(Box::new(concerns)) }
    }

    /// Which of these channels are silent; `None` if none is.
    pub(super) fn silent_of(&self, channels: &[ChannelName]) -> Option<Silent> {
        let Some(concerns) = &self.concerns else { return Some(Silent::All) };
        let mut silent: Vec<_> = channels.iter().filter(|channel| concerns(channel)).collect();
        silent.sort_unstable();

        match silent.len() {
            0 => None,
            n if n > LISTED => Some(Silent::All),
            _ => Some(Silent::These(silent.into_iter().cloned().collect())),
        }
    }

    pub(super) fn message<'o>(&self, silent: &'o Silent) -> Reply<'o> {
        let channels = match silent {
            Silent::All => None,
            Silent::These(channels) => Some(&**channels),
        };
        Reply::Interrupted { since: self.since, channels }
    }
}
