//! `/sse`: checks that the first bytes and the heartbeats of an idle stream come at once.

use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::time::{Instant, timeout_at};

use super::causes::Cause;
use super::report::{Checked, Trouble};
use super::target::{Line, Stream, millis};
use super::wire::{Asked, ask};

/// The first words of every stream.
const BEGINS: &[u8] = b"event: connected";

/// The heartbeat: a comment as it comes between two chunks or behind an event.
const HEARTBEAT: &[u8] = b"\n:\n";

/// The beginning of the last event of a stream that the gateway ends.
const ENDS: &[u8] = b"event: close";

/// Most bytes of a stream that are kept for examination.
const MAX_KEPT: usize = 4096;

/// A stream of the gateway, and the bytes of it that were not examined yet.
pub(super) struct Sse {
    stream: Stream,
    seen: Vec<u8>,
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|w| w == text)
}

/// Opens a stream and waits for its first event.
pub(super) async fn open(line: &Line, bearer: &str, channel: Option<&str>) -> Checked<Sse> {
    let line = line.beside("sse");
    let query: Vec<_> = channel.map(|c| ("channels", c)).into_iter().collect();

    // Browsers ask for gzip: a proxy that would compress the stream has to do so now.
    let headers =
        [("Accept", "text/event-stream"), ("Accept-Encoding", "gzip"), ("Authorization", bearer)];
    let headers = if bearer.is_empty() { &headers[..2] } else { &headers[..] };

    let began = Instant::now();
    let asked = Asked { query: &query, headers };
    let (mut stream, answer) = match ask(&line, &asked, false).await {
        Ok(answered) => answered,
        // A head that a proxy holds back looks like no answer at all.
        Err(Trouble { cause: Cause::NoAnswer, found }) => {
            return Err(Trouble::new(Cause::SseBuffered, found));
        }
        Err(trouble) => return Err(trouble),
    };

    let kind = answer.header("content-type").unwrap_or("no Content-Type").to_owned();

    if answer.status != 200 {
        let ours = matches!(answer.status, 400 | 401 | 403 | 405) && kind.starts_with("text/plain");
        let cause = if ours { Cause::SseRefused } else { Cause::SseAnswer };
        return Err(Trouble::new(cause, answer.told()));
    }

    if !kind.starts_with("text/event-stream") {
        let found = format!("200 with {kind} ({})", answer.by());
        return Err(Trouble::new(Cause::SseAnswer, found));
    }

    if let Some(coding) = answer.header("content-encoding") {
        let found = format!("Content-Encoding: {coding} ({})", answer.by());
        return Err(Trouble::new(Cause::SseCompressed, found));
    }

    let by = answer.by();
    let mut seen = answer.rest;
    let until = began + line.patience;

    while !contains(&seen, BEGINS) {
        match timeout_at(until, stream.read_buf(&mut seen)).await {
            Ok(Ok(n)) if n > 0 => {}
            Ok(_) => {
                let said = String::from_utf8_lossy(&seen).into_owned();
                return Err(Trouble::new(Cause::SseRefused, format!("ended immediately: {said}")));
            }
            Err(_) => {
                let found = format!(
                    "the response head arrived, but no event within {} ({by})",
                    millis(line.patience)
                );
                return Err(Trouble::new(Cause::SseBuffered, found));
            }
        }
    }

    let said = format!("first event after {}", millis(began.elapsed()));
    Ok((Sse { stream, seen }, said))
}

/// True if heartbeats are held back on the way. The first one is due within `limits.ping_interval`,
/// and a socket's first ping after half of that or later.
pub(super) fn holds_back(beats: u32, first_ping: Option<Duration>, idle: Duration) -> bool {
    let spare = Duration::from_secs(1);
    beats == 0 && first_ping.is_some_and(|first| idle > first * 2 + spare)
}

impl Sse {
    /// Listens for a while and returns how many heartbeats came.
    pub(super) async fn idles(mut self, idle: Duration) -> Checked<u32> {
        let began = Instant::now();
        let mut beats = 0u32;
        loop {
            if let Some(at) = self.seen.windows(HEARTBEAT.len()).position(|w| w == HEARTBEAT) {
                beats += 1;
                // The line's end stays, because the next heartbeat begins with it.
                self.seen.drain(..at + HEARTBEAT.len() - 1);
                continue;
            }

            let read = timeout_at(began + idle, self.stream.read_buf(&mut self.seen)).await;
            let after = format!("after {:.1} s", began.elapsed().as_secs_f32());

            match read {
                // Only the end is kept: a busy channel must not fill the memory.
                Ok(Ok(n)) if n > 0 => {
                    let old = self.seen.len().saturating_sub(MAX_KEPT);
                    self.seen.drain(..old);
                }
                Ok(_) if contains(&self.seen, ENDS) => {
                    let said = String::from_utf8_lossy(&self.seen);
                    let said = said.rsplit("event: close").next().unwrap_or_default();
                    return Err(Trouble::new(Cause::SseRefused, format!("closed {after}: {said}")));
                }
                Ok(_) => return Err(Trouble::new(Cause::SseCut, format!("cut {after}"))),
                Err(_) => {
                    let said = match beats {
                        0 => "no heartbeat yet: try a longer --idle".to_owned(),
                        n => format!("heartbeats: {n}"),
                    };
                    return Ok((beats, format!("open {after}; {said}")));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heartbeats_that_are_due_are_missed() {
        let s = Duration::from_secs;
        assert!(holds_back(0, Some(s(13)), s(30)));
        for (beats, first, idle) in [(1, Some(s(13)), 30), (0, Some(s(15)), 30), (0, None, 90)] {
            assert!(!holds_back(beats, first, s(idle)), "{beats} {first:?} {idle}");
        }
    }
}
