//! A session that is an HTTP response. Its channels are given with the request, and it gets all of
//! them or none. It is told gaps and positions so that its client can resume by itself.

use super::subscribe::{Begun, Permission, Refusal, Wanted};
use super::{Admission, Session, start_of};
use crate::channel::{ChannelName, GapReason, Position};
use crate::gateway::Resumed;
use crate::protocol::codes::{Close, CloseCode, ErrorCode};
use crate::protocol::place::{self, Place};
use crate::protocol::{ChannelRef, Reply, Subscribe};

/// A stream whose id is too long for the client's header could never be resumed.
const TOO_MANY: &str = "these are too many channels for one stream, whose position has to fit into a \
                        header: take fewer, or a WebSocket";

/// The state that only a stream has.
pub(super) struct Stream {
    channels: Vec<ChannelName>,
    permissions: Vec<Permission>,
    /// The client's last positions.
    place: Place,
}

impl Session {
    /// Makes the session a stream of these channels.
    #[must_use]
    pub fn streaming(mut self, channels: Vec<ChannelName>, place: Place) -> Self {
        self.stream = Some(Box::new(Stream { channels, permissions: Vec::new(), place }));
        self
    }

    /// Whether the stream's client resumes, and its position in this channel if that is of the
    /// epoch that is here. A client that resumes asks for the channels that it had, and no others.
    pub(super) fn been(&self, channel: &ChannelName) -> (bool, Option<Position>) {
        let Some(stream) = &self.stream else { return (false, None) };
        let here = self.context.gateway.position(channel);
        let there = here.and_then(|here| {
            let offset = stream.place.offset(channel, &here.epoch)?;
            Some(Position { offset, ..here })
        });
        (stream.place.is_somewhere(), there)
    }

    /// Checks that the stream may have all of its channels, before any of them is subscribed.
    ///
    /// # Errors
    /// Why it may not have one of them.
    pub async fn permit_stream(&mut self, admission: &Admission) -> Result<(), Refusal> {
        let Some(stream) = &self.stream else { return Ok(()) };
        if !place::fits(stream.channels.len()) {
            return Err(Refusal(ErrorCode::BadRequest, TOO_MANY.to_owned()));
        }

        let wanted: Vec<Wanted> = stream.channels.iter().map(wanted).collect();

        // The session gets its identity only when it is opened; the permissions need it now.
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

    /// Sets the client's last positions as the beginning of the stream's ids: a client that is cut
    /// off while it catches up resumes from there.
    ///
    /// # Errors
    /// The ids could become too long for the client to send back.
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

    /// Subscribes the stream to its channels.
    ///
    /// # Errors
    /// Why the stream has to end.
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

/// The replies that begin a channel. On a stream a gap comes before the position behind it, and
/// pages that listen for `gap` alone hear of every gap.
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
