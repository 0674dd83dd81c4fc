//! The last publications of a channel, kept for clients that resume at the same time.
//!
//! Not here: the reading of the history (`resume`). Invariant: a cache has no missing ranges; it
//! ends where a publication does not follow.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::broker::{History, HistoryBounds};
use crate::channel::Publication;

/// The last publications of a channel, kept for clients that resume.
pub(in crate::gateway) struct ReplayCache {
    /// The publications are those after this offset.
    pub(in crate::gateway) from: u64,
    pub(in crate::gateway) publications: VecDeque<Publication>,
    bytes: usize,
    /// The part of the history from before the cache began has been read too.
    pub(in crate::gateway) whole: bool,
    /// When a client last resumed from it.
    pub(in crate::gateway) used: Instant,
}

/// The bytes that all caches hold.
static HELD: AtomicUsize = AtomicUsize::new(0);

/// Above this size no cache is begun, and idle caches end early.
const MAX_HELD: usize = 64 << 20;

/// True while there is no room for another cache.
pub(in crate::gateway) fn caches_are_full() -> bool {
    HELD.load(Ordering::Relaxed) > MAX_HELD
}

impl Drop for ReplayCache {
    fn drop(&mut self) {
        HELD.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl ReplayCache {
    /// Begins to keep the publications after an offset.
    pub(in crate::gateway) fn begin(from: u64) -> Self {
        let publications = VecDeque::new();
        let bytes = 0;
        let whole = false;
        Self { from, publications, bytes, whole, used: Instant::now() }
    }

    /// Adds the next publication. If it is not the next one, adds nothing and returns false.
    pub(super) fn push(&mut self, publication: &Publication, bounds: HistoryBounds) -> bool {
        let next = self.from + self.publications.len() as u64 + 1;
        if publication.position.as_ref().is_none_or(|p| p.offset != next) {
            return false;
        }

        self.grow(publication.payload.len());
        self.publications.push_back(publication.clone());
        self.cut(bounds);
        true
    }

    fn grow(&mut self, bytes: usize) {
        self.bytes += bytes;
        HELD.fetch_add(bytes, Ordering::Relaxed);
    }

    fn shrink(&mut self, bytes: usize) {
        self.bytes -= bytes;
        HELD.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(super) fn cut(&mut self, bounds: HistoryBounds) {
        while self.publications.len() > bounds.messages || self.bytes > bounds.bytes {
            let Some(old) = self.publications.pop_front() else { return };
            self.shrink(old.payload.len());
            self.from += 1;
        }
    }

    /// Puts the publications that were read before those that have come since. Returns false if the
    /// two do not meet.
    pub(in crate::gateway) fn complete(&mut self, history: History, bounds: HistoryBounds) -> bool {
        if history.top.offset < self.from {
            return false;
        }

        let offset = |p: &Publication| p.position.as_ref().map_or(0, |p| p.offset);
        for publication in history.publications.into_iter().rev() {
            if offset(&publication) == self.from && self.from > 0 {
                self.grow(publication.payload.len());
                self.from -= 1;
                self.publications.push_front(publication);
            }
        }

        self.whole = true;
        self.cut(bounds);
        true
    }

    /// The publications after an offset, or `None` if some of them are not here.
    pub(in crate::gateway) fn since(&mut self, offset: u64) -> Option<Vec<Publication>> {
        let skip = usize::try_from(offset.checked_sub(self.from)?).ok()?;
        self.used = Instant::now();
        Some(self.publications.iter().skip(skip).cloned().collect())
    }
}
