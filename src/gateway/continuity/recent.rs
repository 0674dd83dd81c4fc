//! What was delivered last, as fingerprints: enough to tell a publication that comes twice from another
//! one that claims its place.

use std::collections::VecDeque;
use std::sync::LazyLock;

use crate::channel::Publication;

/// Most offsets of one channel that are remembered.
const KEPT: usize = 64;

/// What was delivered at an offset.
#[derive(Clone, Copy)]
struct Place {
    delivered: u32,
    /// And another one that came with the same offset.
    rival: Option<u32>,
    /// The history has the first.
    proven: bool,
}

/// How a publication stands to what was delivered at its offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// It was delivered.
    Delivered,
    /// Another one was, and nobody knows which is true.
    Contested,
    /// Another one was, which the history has.
    False,
}

#[derive(Default)]
pub(super) struct Recent {
    /// The offset behind the last one.
    next: u64,
    places: VecDeque<Place>,
}

/// Keyed anew in each process, so that nobody outside can make two payloads alike.
fn fingerprint(publication: &Publication) -> u32 {
    static HASHER: LazyLock<ahash::RandomState> = LazyLock::new(ahash::RandomState::new);
    HASHER.hash_one(&publication.payload) as u32
}

impl Recent {
    /// Remembers a delivery; `proven` where it comes from the history.
    pub(super) fn push(&mut self, offset: u64, publication: &Publication, proven: bool) {
        if let Some(at) = self.at(offset) {
            // From here on something else is delivered.
            self.places.truncate(at);
        } else if offset != self.next {
            self.places.clear();
        }
        if self.places.len() == KEPT {
            self.places.pop_front();
        }
        self.next = offset + 1;
        self.places.push_back(Place { delivered: fingerprint(publication), rival: None, proven });
    }

    /// `None` where it is not known any more.
    pub(super) fn look(&self, offset: u64, publication: &Publication) -> Option<Known> {
        let place = self.places.get(self.at(offset)?)?;
        let own = fingerprint(publication);
        Some(if place.delivered == own || place.rival == Some(own) {
            Known::Delivered
        } else if place.proven {
            Known::False
        } else {
            Known::Contested
        })
    }

    /// A rival was delivered too.
    pub(super) fn add_rival(&mut self, offset: u64, publication: &Publication) {
        let at = self.at(offset);
        if let Some(place) = at.and_then(|at| self.places.get_mut(at)) {
            place.rival = Some(fingerprint(publication));
        }
    }

    /// The history has this publication at its offset.
    pub(super) fn prove(&mut self, offset: u64, publication: &Publication) {
        let at = self.at(offset);
        if let Some(place) = at.and_then(|at| self.places.get_mut(at)) {
            *place =
                Place { delivered: fingerprint(publication), rival: place.rival, proven: true };
        }
    }

    fn at(&self, offset: u64) -> Option<usize> {
        let back = usize::try_from(self.next.checked_sub(offset)?).ok()?;
        self.places.len().checked_sub(back).filter(|at| *at < self.places.len())
    }

    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}
