//! A slot: one connection in its shard's table, and the list of ranges that it is to be sent.

use std::sync::Arc;

use super::connection::Connection;
use super::ranges::NONE;
use crate::channel::{ChannelName, Publication};
use crate::protocol::Wire;
use crate::protocol::stream_position::PositionTracker;

/// A connection, its channels and its list.
pub(super) struct Slot {
    pub(super) connection: Arc<Connection>,
    pub(super) wire: Wire,
    /// True once `connected` was sent.
    pub(super) greeted: bool,
    /// The connection's list in the batch that is being composed.
    pub(super) head: u32,
    pub(super) tail: u32,
    pub(super) channels: Vec<ChannelName>,
    /// The positions of a stream's channels, which are its `id:`.
    pub(super) positions: Option<Box<PositionTracker>>,
}

impl Slot {
    pub(super) fn new(connection: Arc<Connection>) -> Self {
        let wire = connection.wire();
        let positions = wire.is_stream().then(Box::default);
        let head = NONE;
        let tail = NONE;
        Self { connection, wire, greeted: false, head, tail, channels: Vec::new(), positions }
    }

    /// Moves a stream's position past this publication. Returns the stream's positions, or `None`
    /// if its `id:` does not change.
    #[inline]
    pub(super) fn advance_position(
        &mut self,
        publication: &Publication,
    ) -> Option<&PositionTracker> {
        let position = publication.position.as_ref()?;
        let positions = self.positions.as_mut()?;
        positions.moves(&publication.channel, Some(position));
        Some(positions)
    }
}
