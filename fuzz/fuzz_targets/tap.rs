//! The stream of a subscribing connection. Whatever a server sends, and however it is cut, the same
//! messages are told, everything else passes byte for byte, and no claimed length costs memory.
//!
//! The constants of the tap are a thousandth of their usual values, so that a few bytes reach them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tollgate::broker::redis::tap_fuzzing::{
    BEGIN, Cost, KEPT, MAX_DIGITS, MAX_LINE, MAX_STRING, Told, read,
};

/// The most bytes and elements of one answer.
const ANSWER: usize = 1024;

/// The next item of the stream.
enum Item {
    /// An item of so many bytes, of which this is told. The bytes pass if the item is no message.
    Whole(usize, Option<Told>),
    /// The stream ends before the item does.
    Cut,
    /// The connection ends here.
    Refused,
}

/// A line without its end, and the bytes behind it.
fn line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.windows(2).position(|two| two == b"\r\n")?;
    Some((&bytes[..end], &bytes[end + 2..]))
}

/// The length behind a sign, as Redis writes it.
fn length(line: &[u8], sign: u8) -> Option<usize> {
    let digits = line.strip_prefix(&[sign])?;
    let good = (1..=MAX_DIGITS).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| good)?.parse().ok()
}

/// Reads one push of Pub/Sub, seen as a whole; `None` where the bytes are no push.
fn push(bytes: &[u8], limit: usize) -> Option<Item> {
    let (head, mut rest) = line(bytes)?;
    if length(head, b'>') != Some(3) {
        return None;
    }

    let mut names = [&b""[..]; 2];
    for name in &mut names {
        let (head, behind) = line(rest)?;
        let len = length(head, b'$')?;
        if len > MAX_LINE {
            return Some(Item::Refused);
        }
        let Some(string) = behind.get(..len + 2) else { return Some(Item::Cut) };
        (*name, rest) = (&string[..len], &behind[len + 2..]);
    }

    let [kind, channel] = names.map(<[u8]>::to_vec);
    if rest.first() == Some(&b':') && line(rest).is_none() && rest.len() > MAX_DIGITS + 9 {
        return Some(Item::Refused);
    }

    let (head, behind) = line(rest)?;
    if head.first() == Some(&b':') {
        let whole = bytes.len() - behind.len();
        let refused = head.len() > MAX_DIGITS + 8;
        return Some(if refused { Item::Refused } else { told(&kind, channel, vec![], whole) });
    }

    let len = length(head, b'$')?;
    let whole = bytes.len() - behind.len() + len + 2;
    let is_message = matches!(&kind[..], b"message" | b"smessage");
    if len > MAX_STRING || len > limit && !is_message {
        return Some(Item::Refused);
    }

    if len > limit {
        let begin = behind.get(..len.min(BEGIN));
        return Some(match begin {
            Some(begin) => Item::Whole(whole, Some(Told::TooLarge(channel, begin.into(), len))),
            None => Item::Cut,
        });
    }

    let Some(payload) = behind.get(..len + 2) else { return Some(Item::Cut) };
    Some(told(&kind, channel, payload[..len].into(), whole))
}

fn told(kind: &[u8], channel: Vec<u8>, payload: Vec<u8>, whole: usize) -> Item {
    let told = match kind {
        b"message" | b"smessage" => Told::Message(channel, payload),
        b"subscribe" | b"ssubscribe" => Told::Subscribed(channel),
        b"unsubscribe" => Told::Unsubscribed(channel),
        b"sunsubscribe" => Told::ShardUnsubscribed(channel),
        _ => return Item::Whole(whole, None),
    };
    Item::Whole(whole, Some(told))
}

/// Reads an answer of any kind: lines and strings, counted until nothing more of it is due.
fn answer(bytes: &[u8]) -> Item {
    let (mut rest, mut due, mut size) = (bytes, 1_usize, 0_usize);
    while due > 0 {
        let Some((head, behind)) = line(rest) else {
            return if rest.len() > MAX_LINE + 1 { Item::Refused } else { Item::Cut };
        };

        let number: Option<usize> =
            head.get(1..).and_then(|n| std::str::from_utf8(n).ok()).and_then(|n| n.parse().ok());
        let kind = head.first().copied().unwrap_or_default();
        let number = number.filter(|_| b"$!=*~>%|".contains(&kind));
        size = size.saturating_add(head.len() + 2).saturating_add(number.unwrap_or(0));

        if head.len() > MAX_LINE || size > ANSWER {
            return Item::Refused;
        }

        let (string, elements) = match (kind, number) {
            (b'$' | b'!' | b'=', Some(len)) => (len + 2, 0),
            (b'*' | b'~' | b'>', Some(len)) => (0, len),
            (b'%', Some(len)) => (0, len * 2),
            (b'|', Some(len)) => (0, len * 2 + 1),
            _ => (0, 0),
        };

        let Some(behind) = behind.get(string..) else { return Item::Cut };
        (rest, due) = (behind, due - 1 + elements);
    }

    Item::Whole(bytes.len() - rest.len(), None)
}

/// The expected result of a stream: what is told, what passes, where an incomplete item begins, and
/// whether the stream is refused.
fn expected(wire: &[u8], limit: usize) -> (Vec<Told>, Vec<u8>, usize, bool) {
    let (mut all, mut passed, mut at) = (Vec::new(), Vec::new(), 0);

    while let Some(rest) = wire.get(at..).filter(|rest| !rest.is_empty()) {
        match push(rest, limit).unwrap_or_else(|| answer(rest)) {
            Item::Whole(len, told) => {
                let hidden = matches!(told, Some(Told::Message(..) | Told::TooLarge(..)));
                if !hidden {
                    passed.extend_from_slice(&rest[..len]);
                }
                all.extend(told);
                at += len;
            }
            Item::Cut => return (all, passed, at, false),
            Item::Refused => return (all, passed, at, true),
        }
    }

    (all, passed, at.min(wire.len()), false)
}

fuzz_target!(|input: (u16, u64, &[u8])| {
    let (limit, seed, wire) = input;
    let limit = usize::from(limit) % 2048;
    let mut random = seed;

    let mixed = move || {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let most = if random >> 63 == 0 { 4 } else { 300 };
        (random >> 40) as usize % most
    };

    let (whole, mut cost) = read(wire, (limit, ANSWER), || usize::MAX);
    for (parts, its) in [read(wire, (limit, ANSWER), || 1), read(wire, (limit, ANSWER), mixed)] {
        assert_eq!(whole, parts, "it depends on the reads");
        cost = Cost { room: cost.room.max(its.room), looked: cost.looked.max(its.looked) };
    }

    // There are two buffers, each of which doubles when it has to grow.
    let needed = limit + 2 * MAX_LINE + 100;
    assert!(cost.room <= 2 * 2 * (KEPT + needed), "{cost:?} for payloads of {limit}");
    // The count in a push is read from its beginning again each time, and is short.
    assert!(cost.looked <= 10 * wire.len(), "{cost:?} for {} bytes", wire.len());

    let (told, passed, at, refused) = expected(wire, limit);
    assert_eq!(whole.told, told);
    assert_eq!(whole.error.is_some(), refused, "{:?}", whole.error);
    let rest = whole.passed.strip_prefix(&passed[..]).expect("everything else passes");
    assert!(wire[at..].starts_with(rest), "byte for byte");
});
