//! The publications that arrive on a channel between the confirmation of its subscription and the
//! answer with its history's position. For this round trip nobody knows yet which of them are new.
//!
//! Invariant: they are bounded.

use crate::broker::Event;
use crate::channel::{ChannelName, GapReason, Position, Publication};

/// Most publications, and most bytes, that are kept for one channel. If more arrive, an overflow is
/// reported: the missing ones are read from the history or declared lost.
const MAX_HELD: usize = 256;
const MAX_HELD_BYTES: usize = 64 * 1024;

/// The publications that wait for the position.
#[derive(Default)]
pub(super) struct Early {
    publications: Vec<Publication>,
    bytes: usize,
    /// More arrived than is kept.
    overflowed: bool,
}

impl Early {
    pub(super) fn hold(&mut self, publication: Publication) {
        self.bytes += publication.payload.len();
        self.overflowed |= self.publications.len() >= MAX_HELD || self.bytes > MAX_HELD_BYTES;
        if !self.overflowed {
            self.publications.push(publication);
        }
    }

    /// Returns the events in the order of arrival, without publications that `known` covers: the
    /// position that a first subscriber is told.
    pub(super) fn events(self, channel: &ChannelName, known: Option<&Position>) -> Vec<Event> {
        let is_new = |publication: &Publication| {
            let position = publication.position.as_ref();
            !position.zip(known).is_some_and(|(position, known)| known.has_reached(position))
        };
        let publications = self.publications.into_iter().filter(is_new).map(Event::Publication);
        let overflow = Event::Interrupted(channel.clone(), GapReason::Overflow, None);

        publications.chain(self.overflowed.then_some(overflow)).collect()
    }
}
