//! Candidates for the secret that the other side may have used.

use super::causes::{Cause, Side};
use crate::auth::secret::Encoding;

/// A way in which the other side's secret may differ from ours.
pub(super) struct Candidate {
    pub(super) cause: Cause,
    pub(super) side: Side,
    pub(super) bytes: Vec<u8>,
    /// The exact difference, without any part of the secret.
    pub(super) how: String,
    /// The encoding in which the gateway would have to read its own text.
    pub(super) encoding: Option<Encoding>,
}

/// The candidates so far.
pub(super) struct Candidates(pub(super) Vec<Candidate>);

impl Candidates {
    /// Adds the bytes that an issuer has who decodes the text that the gateway uses as it is.
    pub(super) fn add_decoded(&mut self, encoding: Encoding, bytes: Vec<u8>) {
        let (name, cause, side) = (encoding.name(), Cause::SecretEncoding, Side::Gateway);
        let how = format!("the issuer decodes the secret ({name}), but the gateway does not");
        self.0.push(Candidate { cause, side, bytes, how, encoding: Some(encoding) });
    }

    pub(super) fn add(
        &mut self,
        cause: Cause,
        side: Side,
        bytes: impl Into<Vec<u8>>,
        how: impl Into<String>,
    ) {
        self.0.push(Candidate {
            cause,
            side,
            bytes: bytes.into(),
            how: how.into(),
            encoding: None,
        });
    }
}
