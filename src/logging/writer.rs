//! Both ends of the log's queue: the side that accepts lines, and the side of the thread, which
//! writes them.

use std::io::{ErrorKind, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tracing_appender::non_blocking::NonBlocking;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer as Formatted;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};

use super::format::Format;

/// Most lines that wait to be written.
pub(super) const MAX_LINES: usize = 4096;

/// Most bytes that wait to be written.
const MAX_BYTES: usize = 4 * 1024 * 1024;

/// How often the number of dropped lines is logged while lines are lost again and again.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// How often a pipe that does not take bytes at once is tried again, and the pause before each try.
const PATIENCE: (u32, Duration) = (100, Duration::from_millis(10));

/// The counts that both ends share.
#[derive(Debug, Default)]
pub(super) struct State {
    lines: AtomicUsize,
    bytes: AtomicUsize,
    dropped: AtomicU64,
    /// How many of the dropped lines the log itself has reported.
    told: AtomicU64,
}

impl State {
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Lines that are not written yet.
    pub(super) fn waiting(&self) -> usize {
        self.lines.load(Ordering::Acquire)
    }

    fn untold(&self) -> u64 {
        self.dropped() - self.told.load(Ordering::Relaxed)
    }

    fn enter(&self, bytes: usize) -> bool {
        let lines = self.lines.fetch_add(1, Ordering::AcqRel);
        let before = self.bytes.fetch_add(bytes, Ordering::AcqRel);
        let fits = lines < MAX_LINES && before + bytes <= MAX_BYTES;
        if !fits {
            self.leave(bytes);
        }
        fits
    }

    fn leave(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.lines.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Accepts lines. A line that does not fit is dropped and counted.
#[derive(Clone)]
pub(super) struct Lines {
    queue: NonBlocking,
    state: Arc<State>,
}

impl Lines {
    pub(super) fn new(queue: NonBlocking, state: Arc<State>) -> Self {
        Self { queue, state }
    }

    /// Tests whether the log takes lines again, after some were lost and no other line follows.
    pub(super) fn probe(&self) {
        if self.state.untold() > 0 && self.state.waiting() == 0 && self.state.enter(0) {
            let _ = self.queue.clone().write(b"");
        }
    }
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        if self.state.enter(line.len()) {
            // The queue has room for every line that `enter` accepts.
            let _ = self.queue.write(line);
        } else {
            self.state.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// The side of the thread. It has no errors: an error is a dropped line.
pub(super) struct Writer<W> {
    out: W,
    format: Format,
    state: Arc<State>,
    /// True if a line was cut off: the next one begins on a line of its own.
    torn: bool,
    told_at: Option<Instant>,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(out: W, format: Format, state: Arc<State>) -> Self {
        Self { out, format, state, torn: false, told_at: None }
    }

    /// Writes the whole line. Returns false if that failed.
    fn put(&mut self, line: &[u8]) -> bool {
        if self.torn {
            self.torn = !self.put_all(b"\n");
        }
        !self.torn && self.put_all(line)
    }

    fn put_all(&mut self, line: &[u8]) -> bool {
        let mut rest = line;
        let mut tries = PATIENCE.0;
        while !rest.is_empty() {
            match self.out.write(rest) {
                Ok(n) if n > 0 => rest = &rest[n.min(rest.len())..],
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock && tries > 0 => {
                    tries -= 1;
                    std::thread::sleep(PATIENCE.1);
                }
                Ok(_) | Err(_) => {
                    self.torn |= rest.len() < line.len();
                    return false;
                }
            }
        }
        true
    }

    /// Logs how many lines were dropped.
    fn tell(&mut self) {
        let untold = self.state.untold();
        let lately = self.told_at.is_some_and(|at| at.elapsed() < TELL_EVERY);
        if untold == 0 || (lately && self.state.waiting() > 1) {
            return;
        }

        if self.put(self.told(untold).as_bytes()) {
            self.state.told.fetch_add(untold, Ordering::Relaxed);
            self.told_at = Some(Instant::now());
        }
    }

    fn told(&self, dropped: u64) -> String {
        let mut time = String::new();
        let _ = SystemTime.format_time(&mut Formatted::new(&mut time));
        let lines = if dropped == 1 { "log line was" } else { "log lines were" };
        let text =
            format!("{dropped} {lines} dropped: the reader of the log was full, slow or gone");
        match self.format {
            Format::Text => format!("{time}  WARN tollgate::logging: {text}\n"),
            Format::Json => format!(
                "{{\"timestamp\":\"{time}\",\"level\":\"WARN\",\"fields\":{{\"message\":\"{text}\",\
                 \"dropped\":{dropped}}},\"target\":\"tollgate::logging\"}}\n"
            ),
        }
    }
}

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        // The lines that were dropped came before this one.
        self.tell();
        if !self.put(line) {
            self.state.dropped.fetch_add(1, Ordering::Relaxed);
        }
        self.state.leave(line.len());
        Ok(line.len())
    }

    /// The library calls this for each line. A probe is an empty line, for which the default would
    /// not call `write`.
    fn write_all(&mut self, line: &[u8]) -> std::io::Result<()> {
        self.write(line).map(|_| ())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let _ = self.out.flush();
        Ok(())
    }
}
