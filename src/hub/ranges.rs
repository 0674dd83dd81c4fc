//! What a connection is to be sent: a list of ranges of the batch's buffer for its wire.

/// Marks the end of a list.
pub(super) const NONE: u32 = u32::MAX;

/// A range of a batch's buffer, which consists of whole frames.
#[derive(Debug, Clone, Copy)]
pub(super) struct FrameRange {
    pub(super) start: u32,
    pub(super) end: u32,
    pub(super) messages: u32,
    pub(super) next: u32,
}
