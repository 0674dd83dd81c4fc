//! What comes on a channel between the confirmation of its subscription and the answer that says where
//! its history stands: a round trip, in which nobody knows yet what of it is new.

use crate::broker::Event;
use crate::channel::{ChannelName, GapReason, Position, Publication};

/// What is kept of one channel; more is declared, or read from the history.
const MAX_HELD: usize = 256;
const MAX_HELD_BYTES: usize = 64 * 1024;

#[derive(Default)]
pub(super) struct Early {
    publications: Vec<Publication>,
    bytes: usize,
    /// More came.
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

    /// In the order in which it came. What a first subscriber is told that it has, at `known`, is left out.
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
