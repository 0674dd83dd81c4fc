//! The events that the driver publishes and recognises again: which run, which channel, which
//! sequence number, and when it was meant to be sent. Whether they are the right ones is `check`'s.

use memchr::memmem;

/// Composes and finds events. Parsing JSON to find them, a million times a second, would measure
/// the parser.
pub struct Events {
    head: Vec<u8>,
    finder: memmem::Finder<'static>,
    payload: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// The channel's number in this run.
    pub channel: u32,
    pub sequence: u32,
    /// When the event should have been sent, on this process's clock: not when it was.
    pub intended: u64,
}

impl Events {
    /// `run` keeps apart drivers that share a channel.
    pub fn new(run: u32, payload: usize) -> Self {
        let head = format!(r#"{{"type":"load","run":{run},"channel":"#).into_bytes();
        let finder = memmem::Finder::new(&head).into_owned();
        Events { head, finder, payload }
    }

    /// JSON text of `payload` bytes, or a little more if that cannot hold the fields.
    pub fn compose(&self, event: Event) -> Vec<u8> {
        let mut text = Vec::with_capacity(self.payload.max(128));
        text.extend_from_slice(&self.head);
        let Event { channel, sequence, intended } = event;
        text.extend_from_slice(
            format!(r#"{channel},"seq":{sequence},"ts":{intended},"pad":""#).as_bytes(),
        );
        text.resize(text.len().max(self.payload.saturating_sub(2)), b'x');
        text.extend_from_slice(b"\"}");
        text
    }

    /// Finds an event, also inside an envelope (`format=envelope`).
    pub fn find(&self, payload: &[u8]) -> Option<Event> {
        let rest = match payload.strip_prefix(&self.head[..]) {
            Some(rest) => rest,
            None if payload.starts_with(br#"{"type":"event""#) => {
                &payload[self.finder.find(payload)? + self.head.len()..]
            }
            None => return None,
        };

        let (channel, rest) = number(rest)?;
        let (sequence, rest) = number(rest.strip_prefix(br#","seq":"#)?)?;
        let (intended, _) = number(rest.strip_prefix(br#","ts":"#)?)?;
        Some(Event { channel: channel as u32, sequence: sequence as u32, intended })
    }
}

fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0u64;
    let mut at = 0;
    while let Some(digit @ b'0'..=b'9') = text.get(at) {
        value = value.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
        at += 1;
    }
    (at > 0).then(|| (value, &text[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENT: Event = Event { channel: 7, sequence: 12, intended: 9_876_543_210 };

    #[test]
    fn an_event_is_recognised_plain_and_wrapped() {
        let events = Events::new(4711, 200);
        let text = events.compose(EVENT);
        assert_eq!(text.len(), 200);
        serde_json::from_slice::<serde_json::Value>(&text).unwrap();
        assert_eq!(events.find(&text), Some(EVENT));

        let mut wrapped = br#"{"type":"event","channel":"post:42","data":"#.to_vec();
        wrapped.extend_from_slice(&text);
        wrapped.push(b'}');
        assert_eq!(events.find(&wrapped), Some(EVENT));
    }

    #[test]
    fn another_runs_events_and_the_servers_messages_are_not_ours() {
        let events = Events::new(4711, 20);
        assert_eq!(events.find(&Events::new(471, 20).compose(EVENT)), None);
        assert_eq!(events.find(br#"{"type":"connected","data":{}}"#), None);
        assert_eq!(events.find(br#"{"type":"load","run":4711,"channel":x"#), None);
        assert_eq!(events.find(&events.compose(EVENT)), Some(EVENT));
    }
}
