//! A stream's positions on all of its channels, as its `id:` says them and as a client
//! sends them back.
//!
//! A client keeps only its last id, so every id holds all positions. It has one of two forms:
//!
//! - With few channels each of them is named, `<channel>=<epoch>-<offset>`, with nothing behind the
//!   `=` of a channel without a history, as a form-urlencoded list:
//!   `post%3A42=1764000000000000-7&news=`. Version 0.1 had only this form.
//! - With more channels each one that has a history takes six bytes or a few more: a `Tag` and its
//!   offset as a LEB128 varint, all of them in base64url, in pieces that look like channels without
//!   a history: `_2.3q2-7wE…=&_2.…=`. A replica of version 0.1 takes such an id for positions on
//!   other channels, and declares a gap on its own. A tag can be compared with a channel's epoch,
//!   but not be turned back into it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::BytesMut;
use sha2::{Digest as _, Sha256};

use super::sse::{MAX_ID, id, parse_id};
use crate::channel::{ChannelName, Position};

/// Most channels that are named.
const FEW: usize = 8;

/// Begins each piece of the short form, which ends with `=`.
const PIECE: &str = "_2.";

/// The length of a piece. With its prefix it has to be a valid channel's name, whose
/// length is bounded.
const PIECE_BYTES: usize = 240;

/// The size of a tag and of the longest varint.
const MAX_MARK: usize = 5 + 10;

/// How many marks fit into an id, whatever their offsets are.
const MAX_MARKS: usize = (MAX_ID - MAX_ID / PIECE_BYTES * (PIECE.len() + 2) - 8) * 3 / 4 / MAX_MARK;

/// The first bytes of a hash of a channel's name and its history's epoch. Two channels of one
/// stream, or two epochs of one channel, have the same tag once in 10^12.
type Tag = [u8; 5];

/// The part of an id that is about one channel's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PositionMark {
    tag: Tag,
    offset: u64,
}

fn tag(channel: &ChannelName, epoch: &str) -> Tag {
    let mut hash = Sha256::new();
    hash.update(channel.as_str());
    // The separator: no name holds this byte.
    hash.update([0]);
    hash.update(epoch);
    let mut tag = Tag::default();

    tag.copy_from_slice(&hash.finalize()[..5]);
    tag
}

/// A client's last positions, as it sent them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamPosition {
    marks: Vec<PositionMark>,
    /// The same positions by name, if all were named and do not contradict each other.
    named: Option<Vec<(ChannelName, Option<Position>)>>,
    /// True if the client has been on the stream before, even on channels without a history.
    somewhere: bool,
}

/// The positions of a client that connects for the first time.
impl Default for StreamPosition {
    fn default() -> Self {
        Self { marks: Vec::new(), named: Some(Vec::new()), somewhere: false }
    }
}

impl StreamPosition {
    /// Reads an id, from `Last-Event-ID` or a query. An empty one holds no positions.
    ///
    /// # Errors
    /// What is wrong with the id.
    pub fn read(text: &str) -> Result<Self, &'static str> {
        let mut place = Self::default();
        if text.is_empty() {
            return Ok(place);
        }

        place.somewhere = true;
        match marks(text)? {
            Some(marks) => {
                place.named = None;
                marks.into_iter().for_each(|mark| place.insert(mark));
            }
            None => parse_id(text)?.into_iter().for_each(|(c, p)| place.name(c, p)),
        }
        Ok(place)
    }

    /// Adds other positions of the same client. On each channel the later one counts.
    pub fn merge(&mut self, other: Self) {
        self.somewhere |= other.somewhere;
        other.marks.into_iter().for_each(|mark| self.insert(mark));
        match other.named {
            Some(named) => named.into_iter().for_each(|(c, p)| self.name(c, p)),
            None => self.named = None,
        }
    }

    /// Removes named channels that are not on the requested stream.
    pub fn retain(&mut self, mut wanted: impl FnMut(&ChannelName) -> bool) {
        if let Some(named) = &mut self.named {
            named.retain(|(channel, _)| wanted(channel));
        }
    }

    fn insert(&mut self, mark: PositionMark) {
        match self.marks.iter_mut().find(|known| known.tag == mark.tag) {
            Some(known) => known.offset = known.offset.max(mark.offset),
            None => self.marks.push(mark),
        }
    }

    fn name(&mut self, channel: ChannelName, position: Option<Position>) {
        if let Some(Position { epoch, offset }) = &position {
            self.insert(PositionMark { tag: tag(&channel, epoch), offset: *offset });
        }

        let Some(named) = &mut self.named else { return };
        let Some((_, known)) = named.iter_mut().find(|(c, _)| *c == channel) else {
            return named.push((channel, position));
        };

        match (known, position) {
            (_, None) => {}
            (Some(known), Some(new)) if known.epoch == new.epoch => {
                known.offset = known.offset.max(new.offset);
            }
            (known @ None, new) => *known = new,
            // Only the channel's history knows which of the two epochs is over.
            (Some(_), Some(_)) => self.named = None,
        }
    }

    /// False for a client that connects for the first time.
    #[must_use]
    pub fn is_somewhere(&self) -> bool {
        self.somewhere
    }

    /// The offset in this epoch of a channel's history, if the client has one.
    #[must_use]
    pub fn offset(&self, channel: &ChannelName, epoch: &str) -> Option<u64> {
        let tag = tag(channel, epoch);
        self.marks.iter().find(|mark| mark.tag == tag).map(|mark| mark.offset)
    }
}

/// The marks of an id in the short form; `None` for an id in the other form.
fn marks(text: &str) -> Result<Option<Vec<PositionMark>>, &'static str> {
    if text.len() > MAX_ID {
        return Err("it is too long");
    }

    let piece = |pair| str::strip_prefix(pair, PIECE).and_then(|piece| piece.strip_suffix('='));
    let Some(pieces) = text.split('&').map(piece).collect::<Option<Vec<&str>>>() else {
        return Ok(None);
    };

    let damaged = "it is damaged: return an event id unchanged";
    let bytes = URL_SAFE_NO_PAD.decode(pieces.concat()).map_err(|_| damaged)?;

    let mut rest = bytes.as_slice();
    let mut found = Vec::new();
    while let Some((tag, behind)) = rest.split_first_chunk() {
        let (offset, behind) = varint(behind).ok_or(damaged)?;
        found.push(PositionMark { tag: *tag, offset });
        rest = behind;
    }

    if rest.is_empty() { Ok(Some(found)) } else { Err(damaged) }
}

/// True for an id that only a stream can use.
#[must_use]
pub fn is_short(text: &str) -> bool {
    !matches!(marks(text), Ok(None))
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0u64;
    for (n, byte) in bytes.iter().enumerate().take(10) {
        let part = u64::from(byte & 0x7f);
        let shifted = part << (7 * n);

        if shifted >> (7 * n) != part {
            return None;
        }
        value |= shifted;
        if byte & 0x80 == 0 {
            return Some((value, &bytes[n + 1..]));
        }
    }
    None
}

fn put(out: &mut Vec<u8>, PositionMark { tag, offset }: PositionMark) {
    out.extend_from_slice(&tag);
    let mut left = offset;
    while left >= 0x80 {
        out.push(left.to_le_bytes()[0] | 0x80);
        left >>= 7;
    }
    out.push(left.to_le_bytes()[0]);
}

/// A stream's positions now: the content of its next `id:`.
#[derive(Debug, Default)]
pub struct PositionTracker {
    channels: Vec<(ChannelName, Option<Position>)>,
    /// The tags of the channels that have a position.
    tags: Vec<Tag>,
    /// The marks that the client brought, until it has been told of all channels: a client that is
    /// cut off meanwhile resumes from them.
    brought: Vec<PositionMark>,
}

impl PositionTracker {
    /// Begins with the positions that the client brought.
    pub fn begin(&mut self, place: &StreamPosition) {
        match &place.named {
            Some(named) if named.len() <= FEW => {
                named.iter().for_each(|(channel, position)| self.moves(channel, position.as_ref()));
            }
            _ => self.brought = place.marks.iter().copied().take(MAX_MARKS / 2).collect(),
        }
    }

    /// Notes that the client has been told of all channels.
    pub fn settle(&mut self) {
        self.brought = Vec::new();
    }

    /// Sets the position of a channel.
    pub fn moves(&mut self, channel: &ChannelName, position: Option<&Position>) {
        let at = match self.channels.iter().position(|(known, _)| known == channel) {
            Some(at) => at,
            None => {
                self.channels.push((channel.clone(), None));
                self.tags.push(Tag::default());
                self.tags.len() - 1
            }
        };

        let known = &mut self.channels[at].1;
        let new = position;
        match (known, new) {
            (Some(known), Some(new)) if known.epoch == new.epoch => known.offset = new.offset,
            (known, new) => {
                *known = new.cloned();
                self.tags[at] = new.map_or(Tag::default(), |new| tag(channel, &new.epoch));
                self.brought.retain(|mark| new.is_none() || mark.tag != self.tags[at]);
            }
        }
    }

    /// Removes a channel that the stream has no longer.
    pub fn leaves(&mut self, channel: &ChannelName) {
        if let Some(at) = self.channels.iter().position(|(known, _)| known == channel) {
            self.channels.swap_remove(at);
            self.tags.swap_remove(at);
        }
    }

    /// True if the id is short in any case, whatever the channels do.
    #[must_use]
    pub fn is_small(&self) -> bool {
        self.channels.len() <= FEW
    }

    /// Appends the field `id:`.
    pub fn encode(&self, out: &mut BytesMut) {
        if self.is_small() && self.brought.is_empty() {
            return id(out, &self.channels);
        }

        let mut bytes = Vec::with_capacity((self.tags.len() + self.brought.len()) * 8);
        for ((_, position), tag) in self.channels.iter().zip(&self.tags) {
            if let Some(position) = position {
                put(&mut bytes, PositionMark { tag: *tag, offset: position.offset });
            }
        }
        self.brought.iter().for_each(|mark| put(&mut bytes, *mark));

        let text = URL_SAFE_NO_PAD.encode(bytes);
        let mut begin = "id: ";
        let mut rest = text.as_str();
        loop {
            let (piece, behind) = rest.split_at(rest.len().min(PIECE_BYTES));
            for part in [begin, PIECE, piece, "="] {
                out.extend_from_slice(part.as_bytes());
            }

            if behind.is_empty() {
                break;
            }
            (begin, rest) = ("&", behind);
        }
        out.extend_from_slice(b"\n");
    }
}

/// False if the ids of a stream with this many channels could become too long for the client
/// to send back.
#[must_use]
pub fn fits(channels: usize) -> bool {
    channels <= MAX_MARKS / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ChannelName {
        text.parse().unwrap()
    }

    fn text(standing: &PositionTracker) -> String {
        let mut out = BytesMut::new();
        standing.encode(&mut out);
        let text = std::str::from_utf8(&out).unwrap();
        let text = text.strip_prefix("id: ").unwrap().strip_suffix('\n').unwrap();
        assert!(text.bytes().all(|b| b.is_ascii_graphic()), "{text}");
        assert!(text.len() <= MAX_ID, "{}", text.len());
        text.to_owned()
    }

    fn stands(channels: usize, offset: impl Fn(usize) -> u64) -> PositionTracker {
        let mut standing = PositionTracker::default();
        for n in 0..channels {
            let epoch = format!("17640000000{n:05}");
            let position = Position::new(&epoch, offset(n)).unwrap();
            standing.moves(&name(&format!("post:{n}")), Some(&position));
        }
        standing
    }

    #[test]
    fn few_channels_are_named() {
        let mut standing = stands(2, |n| n as u64 + 7);
        standing.moves(&name("news"), None);
        let id = text(&standing);
        assert_eq!(id, "post%3A0=1764000000000000-7&post%3A1=1764000000000001-8&news=");

        let place = StreamPosition::read(&id).unwrap();
        assert_eq!(place.offset(&name("post:1"), "1764000000000001"), Some(8));
        assert_eq!(place.offset(&name("post:1"), "1764000000000002"), None, "another epoch");
        assert_eq!(place.offset(&name("post:2"), "1764000000000001"), None, "another channel");
        assert_eq!(place.offset(&name("news"), ""), None);
    }

    /// The id of such a stream used to have 4,955 bytes for an event of 7.
    #[test]
    fn field_f3_the_id_of_a_stream_of_many_channels_is_short_and_complete() {
        let standing = stands(120, |n| n as u64 * 3);
        let id = text(&standing);
        assert!(id.len() < 1100, "{} bytes", id.len());
        let place = StreamPosition::read(&id).unwrap();
        for n in 0..120u64 {
            let channel = name(&format!("post:{n}"));
            let epoch = format!("17640000000{n:05}");
            assert_eq!(place.offset(&channel, &epoch), Some(n * 3));
            assert_eq!(place.offset(&channel, "1"), None);
        }

        // A replica of 0.1 reads the id as positions on channels that its stream does not have.
        let old = parse_id(&id).unwrap();
        assert!(old.iter().all(|(channel, position)| {
            channel.as_str().starts_with(PIECE) && position.is_none()
        }));

        // The largest possible id: a full stream whose client brings as many other epochs.
        let mut full = stands(MAX_MARKS / 2, |_| u64::MAX);
        let mut other = StreamPosition { marks: Vec::new(), named: None, somewhere: true };
        for n in 0..MAX_MARKS as u64 {
            let position = Position::new("9", u64::MAX).unwrap();
            let tag = tag(&name(&format!("post:{n}")), &position.epoch);
            other.insert(PositionMark { tag, offset: u64::MAX });
        }
        full.begin(&other);
        let place = StreamPosition::read(&text(&full)).unwrap();
        assert_eq!(place.marks.len(), MAX_MARKS / 2 * 2);
        assert!(fits(150), "as many as in 0.1");
    }

    /// The client's positions have old epochs; the stream has channels without a history and one
    /// with a history.
    #[test]
    fn a_place_survives_a_stream_that_is_cut_off_at_its_beginning() {
        let place = StreamPosition::read(&text(&stands(9, |_| 300))).unwrap();
        let mut standing = PositionTracker::default();
        standing.begin(&place);

        let position = Position::new("1764000000000003", 301).unwrap();
        standing.moves(&name("post:3"), Some(&position));
        standing.moves(&name("plain:1"), None);

        let again = StreamPosition::read(&text(&standing)).unwrap();
        assert_eq!(again.offset(&name("post:3"), "1764000000000003"), Some(301));
        assert_eq!(again.offset(&name("post:8"), "1764000000000008"), Some(300));

        standing.settle();
        let again = StreamPosition::read(&text(&standing)).unwrap();
        assert_eq!(again.offset(&name("post:8"), "1764000000000008"), None);

        let mut nowhere = PositionTracker::default();
        (0..9).for_each(|n| nowhere.moves(&name(&format!("plain:{n}")), None));
        let id = text(&nowhere);
        assert_eq!(id, "_2.=");
        assert!(StreamPosition::read(&id).unwrap().is_somewhere());
        assert!(!StreamPosition::read("").unwrap().is_somewhere());

        nowhere.leaves(&name("plain:0"));
        assert_eq!(nowhere.channels.len(), 8);
    }

    #[test]
    fn the_later_of_two_places_counts() {
        let mut place = StreamPosition::read("a=1-7&b=1-2&c=2-9").unwrap();
        place.merge(StreamPosition::read("a=1-3&b=1-5&c=1-30&d=1-1").unwrap());
        let of = |channel: &str, epoch| place.offset(&name(channel), epoch);
        assert_eq!([of("a", "1"), of("b", "1"), of("d", "1")], [Some(7), Some(5), Some(1)]);
        assert_eq!([of("c", "1"), of("c", "2")], [Some(30), Some(9)], "the epoch decides");

        // A client that is cut off before any event has come is told the same positions again.
        let place = StreamPosition::read("a=1-7&b=&x=1-1").and_then(|mut place| {
            place.merge(StreamPosition::read("a=1-9&b=2-2")?);
            place.retain(|channel| channel.as_str() != "x");
            Ok(place)
        });
        let mut standing = PositionTracker::default();
        standing.begin(&place.unwrap());
        assert_eq!(text(&standing), "a=1-9&b=2-2");
    }

    #[test]
    fn damaged_ids_are_refused() {
        let id = text(&stands(50, |n| n as u64 * 100));
        assert!(is_short(&id));

        for bad in ["_2.!!=", "_2.AAAA=", "_2.AAAAAIA=", "_2.AAAAAID_____________="] {
            assert!(StreamPosition::read(bad).is_err(), "{bad}");
        }
        assert!(StreamPosition::read(&id[..id.len() - 3]).is_err());
        assert!(StreamPosition::read(&"_2.AAAAAAA=&".repeat(900)).is_err());
        for named in ["_2.x=1-7", "a=1-1&_2.AAAAAAA="] {
            assert!(!is_short(named) && StreamPosition::read(named).is_ok(), "{named}");
        }
    }
}
