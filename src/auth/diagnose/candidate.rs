//! Candidates for the secret that the other side may have used.

use super::causes::{Cause, Side};

/// A way in which the other side's secret may differ from ours.
pub(super) struct Candidate {
    pub(super) cause: Cause,
    pub(super) side: Side,
    pub(super) bytes: Vec<u8>,
    /// The exact difference, without any part of the secret.
    pub(super) how: String,
}

/// The candidates so far.
pub(super) struct Candidates(pub(super) Vec<Candidate>);

impl Candidates {
    pub(super) fn add(
        &mut self,
        cause: Cause,
        side: Side,
        bytes: impl Into<Vec<u8>>,
        how: impl Into<String>,
    ) {
        self.0.push(Candidate { cause, side, bytes: bytes.into(), how: how.into() });
    }
}
