//! Where a client resumes: the positions that it had before.
//!
//! Not here: what it missed since then (`gateway::resume`).

use crate::channel::{ChannelName, Position};
use crate::protocol::stream_position::StreamPosition;

/// A client's last position in each channel that it had before; `None` for a channel without one.
pub type Positions = Vec<(ChannelName, Option<Position>)>;

/// What a client brought of its last connection.
#[derive(Debug, Default)]
pub(super) enum Since {
    /// The client has no earlier connection.
    #[default]
    Nothing,
    /// Positions by channel, each until its channel is subscribed again.
    Positions(Positions),
    /// The last id of a stream, which tells the positions of all of its channels.
    Id(Box<StreamPosition>),
}

/// What a client had of one channel.
pub(super) enum Had {
    Nothing,
    /// The client had the channel, but has no position that counts here: it may have missed events.
    WithoutPosition,
    UpTo(Position),
}

impl Since {
    /// Takes what the client had of a channel. `here`: the channel's position as this
    /// replica knows it.
    ///
    /// A stream that resumes asks for the channels that it had, and no others.
    pub(super) fn take(
        &mut self,
        channel: &ChannelName,
        here: impl FnOnce() -> Option<Position>,
    ) -> Had {
        match self {
            Self::Nothing => Had::Nothing,
            Self::Positions(positions) => {
                let Some(at) = positions.iter().position(|(c, _)| c == channel) else {
                    return Had::Nothing;
                };
                positions.swap_remove(at).1.map_or(Had::WithoutPosition, Had::UpTo)
            }
            Self::Id(place) if place.is_somewhere() => {
                let there = here().and_then(|here| {
                    let offset = place.offset(channel, &here.epoch)?;
                    Some(Position { offset, ..here })
                });
                there.map_or(Had::WithoutPosition, Had::UpTo)
            }
            Self::Id(_) => Had::Nothing,
        }
    }
}
