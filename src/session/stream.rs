//! What a session does that is an HTTP response: its channels are given with the request, all of them
//! or none, and it tells gaps and positions so that its client can come back by itself.

use super::subscribe::{Begun, Permission, Refusal, Wanted};
use super::{Admission, Session, start_of};
use crate::channel::{ChannelName, GapReason, Position};
use crate::gateway::Resumed;
use crate::protocol::codes::{Close, CloseCode, ErrorCode};
use crate::protocol::place::{self, Place};
use crate::protocol::{ChannelRef, Reply, Subscribe};

/// An id that does not come back would end the stream for good.
const TOO_MANY: &str = "these are too many channels for one stream, whose position has to fit into a \
                        header: take fewer, or a WebSocket";

/// What only a stream has.
pub(super) struct Stream {
    channels: Vec<ChannelName>,
    permissions: Vec<Permission>,
    /// Where the client has been.
    place: Place,
}

impl Session {
    /// The session is a stream of these channels.
    #[must_use]
    pub fn streaming(mut self, channels: Vec<ChannelName>, place: Place) -> Self {
        self.stream = Some(Box::new(Stream { channels, permissions: Vec::new(), place }));
        self
    }

    /// Whether a stream's client has had its channels before, which are then all that it asks for; and where it
    /// is in this one, if it has been there in the history that is here.
    pub(super) fn been(&self, channel: &ChannelName) -> (bool, Option<Position>) {
        let Some(stream) = &self.stream else { return (false, None) };
        let here = self.context.gateway.position(channel);
        let there = here.and_then(|here| {
            let offset = stream.place.offset(channel, &here.epoch)?;
            Some(Position { offset, ..here })
        });
        (stream.place.is_somewhere(), there)
    }

    /// May it have all of its channels? Before anything is subscribed.
    ///
    /// # Errors
    /// Why it may not have one of them.
    pub async fn permit_stream(&mut self, admission: &Admission) -> Result<(), Refusal> {
        let Some(stream) = &self.stream else { return Ok(()) };
        if !place::fits(stream.channels.len()) {
            return Err(Refusal(ErrorCode::BadRequest, TOO_MANY.to_owned()));
        }
        let wanted: Vec<Wanted> = stream.channels.iter().map(wanted).collect();
        if let Admission::Identity(identity) = admission {
            self.identity = Some(identity.clone());
        }
        let permissions = futures_util::future::join_all(wanted.iter().map(|w| self.permit(w)));
        let permissions: Result<Vec<_>, _> = permissions.await.into_iter().collect();
        self.identity = None;
        let permissions = permissions?;
        if let Some(stream) = &mut self.stream {
            stream.permissions = permissions;
        }
        Ok(())
    }

    /// Its ids begin with where the client is, so that one that is cut off while it catches up comes
    /// back to that.
    ///
    /// # Errors
    /// When they could become too long to come back.
    pub(super) fn begin_stream(&mut self, automatic: &[ChannelName]) -> Result<(), Close> {
        let Some(stream) = &mut self.stream else { return Ok(()) };
        let Stream { channels, place, .. } = &mut **stream;
        let others = automatic.iter().filter(|name| !channels.contains(name));
        if !place::fits(channels.len() + others.count()) {
            return Err(Close::new(CloseCode::TooMany, TOO_MANY));
        }
        place.retain(|c| channels.contains(c) || automatic.contains(c));
        self.context.gateway.hub().stands(&self.connection, Some(&stream.place));
        Ok(())
    }

    /// Subscribes it to its channels.
    ///
    /// # Errors
    /// Why it has to end.
    pub async fn subscribe_stream(&mut self) -> Result<(), Close> {
        let Some(stream) = &mut self.stream else { return Ok(()) };
        let channels = std::mem::take(&mut stream.channels);
        let permissions = std::mem::take(&mut stream.permissions);
        let hub = std::sync::Arc::clone(self.context.gateway.hub());
        let had = hub.channels_of(&self.connection);
        let mut begun: Vec<Begun> = Vec::with_capacity(channels.len());
        for (channel, permission) in channels.iter().zip(permissions) {
            if !had.contains(channel) {
                begun.extend(self.begin_one(None, wanted(channel).what, permission));
            }
        }
        let asked = begun.len();
        self.finish(&mut begun).await;
        hub.stands(&self.connection, None);
        if let Some(stream) = &mut self.stream {
            stream.place = Place::default();
        }

        let have = hub.channels_of(&self.connection);
        if channels.iter().all(|name| have.contains(name)) {
            return Ok(());
        }
        let missing = channels.iter().filter(|name| !had.contains(name)).count();
        Err(if asked < missing {
            Close::new(CloseCode::TooMany, "too many channels on this connection")
        } else {
            Close::new(CloseCode::TryAgainLater, "broker unavailable")
        })
    }
}

/// On a stream a gap comes before the position behind it; and pages that listen for `gap` alone
/// hear of every one.
pub(super) fn replies<'r>(
    channel: &'r ChannelRef,
    data: Option<&'r str>,
    resumed: &'r Resumed,
) -> Vec<Reply<'r>> {
    let reason = GapReason::HistoryLost;
    let lost = resumed.recovered == Some(false);
    let gap = lost.then_some(Reply::Gap { channel: &channel.name, reason });
    let subscribed = Reply::Subscribed { id: None, channel, data, start: start_of(resumed) };

    gap.into_iter().chain([subscribed]).collect()
}

fn wanted(name: &ChannelName) -> Wanted {
    let channel = ChannelRef::from_name(name.clone());
    Wanted { id: None, what: Subscribe { channel, token: None, since: None } }
}
