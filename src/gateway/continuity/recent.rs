//! The latest deliveries of a channel, as fingerprints: enough to tell a publication that comes
//! twice from a different one that claims the same offset.
//!
//! Invariant: a bounded number of offsets is remembered, without gaps between them.

use std::collections::VecDeque;
use std::sync::LazyLock;

use crate::channel::Publication;

/// Most offsets of one channel that are remembered. It is small for the fuzz target, so that a
/// short input can reach it.
const KEPT: usize = if cfg!(fuzzing) { 8 } else { 64 };

/// Most publications that claimed the offset of another one and were delivered too.
const MAX_RIVALS: usize = if cfg!(fuzzing) { 4 } else { 32 };

/// What was delivered at an offset.
#[derive(Clone, Copy)]
struct Delivery {
    delivered: u32,
    /// The history has this publication.
    proven: bool,
}

/// How a publication relates to what was delivered at its offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// This publication was delivered.
    Delivered,
    /// A different one was delivered, and nobody knows which is true.
    Contested,
    /// A different one was delivered, and the history has that different one.
    False,
}

/// The latest offsets at which something was delivered.
#[derive(Default)]
pub(super) struct Recent {
    /// The offset after the last delivered one.
    next: u64,
    deliveries: VecDeque<Delivery>,
    /// Offsets and fingerprints of the publications that claimed a taken offset.
    rivals: Vec<(u64, u32)>,
}

/// The key differs in each process, so that nobody outside can construct two payloads with the
/// same fingerprint.
fn fingerprint(publication: &Publication) -> u32 {
    static HASHER: LazyLock<ahash::RandomState> = LazyLock::new(ahash::RandomState::new);
    HASHER.hash_one(&publication.payload) as u32
}

impl Recent {
    /// Remembers a delivery behind the last one. `proven`: the publication is in the history.
    pub(super) fn push(&mut self, offset: u64, publication: &Publication, proven: bool) {
        if offset != self.next {
            self.forget();
        }
        if self.deliveries.len() == KEPT {
            self.deliveries.pop_front();
        }

        self.next = offset + 1;
        self.deliveries.push_back(Delivery { delivered: fingerprint(publication), proven });
    }

    /// How the publication relates to the delivery at this offset; `None` if that is
    /// not remembered.
    pub(super) fn lookup(&self, offset: u64, publication: &Publication) -> Option<Known> {
        let delivery = self.deliveries.get(self.at(offset)?)?;
        let own = fingerprint(publication);
        Some(if delivery.delivered == own || self.rivals.contains(&(offset, own)) {
            Known::Delivered
        } else if delivery.proven {
            Known::False
        } else {
            Known::Contested
        })
    }

    /// Remembers a rival that is to be delivered too. Returns false if there is no room to
    /// remember it.
    pub(super) fn add_rival(&mut self, offset: u64, publication: &Publication) -> bool {
        let first = self.next.saturating_sub(self.deliveries.len() as u64);
        self.rivals.retain(|(offset, _)| *offset >= first);

        let has_room = self.rivals.len() < MAX_RIVALS;
        if has_room {
            self.rivals.push((offset, fingerprint(publication)));
        }
        has_room
    }

    /// The history has this publication at its offset.
    pub(super) fn prove(&mut self, offset: u64, publication: &Publication) {
        let at = self.at(offset);
        if let Some(delivery) = at.and_then(|at| self.deliveries.get_mut(at)) {
            *delivery = Delivery { delivered: fingerprint(publication), proven: true };
        }
    }

    /// Forgets what was delivered behind this offset.
    pub(super) fn end_at(&mut self, offset: u64) {
        match self.at(offset) {
            Some(at) => {
                self.deliveries.truncate(at + 1);
                self.next = offset + 1;
            }
            None => self.forget(),
        }
    }

    fn at(&self, offset: u64) -> Option<usize> {
        let back = usize::try_from(self.next.checked_sub(offset)?).ok()?;
        self.deliveries.len().checked_sub(back).filter(|at| *at < self.deliveries.len())
    }

    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}
