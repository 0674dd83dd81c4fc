//! A gateway's log, read by a thread of its own, each line with the time at which it was read.
//!
//! Not here: what a line means. Lines are kept in order, and none is dropped by the reader.

use std::io::{BufRead as _, BufReader};
use std::process::ChildStderr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// What the reader of a gateway's log does.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// Reads all that comes.
    #[default]
    Reads,
    /// Holds the pipe and reads nothing more.
    Hangs,
    /// Ends with the next line, and closes the pipe.
    Gone,
}

/// The lines that have been read.
#[derive(Clone, Default)]
pub(super) struct Log(Arc<Mutex<Lines>>);

#[derive(Default)]
struct Lines {
    reader: Reader,
    lines: Vec<(Instant, String)>,
    /// A reader has more to read. A log that goes to a file has no reader.
    being_read: bool,
}

impl Log {
    /// Reads from a process until its end.
    pub(super) fn of(stderr: ChildStderr) -> Self {
        let log = Self::default();
        log.0.lock().being_read = true;
        let sink = log.clone();
        std::thread::spawn(move || sink.read(stderr));
        log
    }

    fn read(&self, stderr: ChildStderr) {
        self.read_lines(stderr);
        self.0.lock().being_read = false;
    }

    fn read_lines(&self, stderr: ChildStderr) {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            loop {
                let mut log = self.0.lock();
                match log.reader {
                    Reader::Gone => return,
                    Reader::Hangs => {}
                    Reader::Reads => {
                        log.lines.push((Instant::now(), line));
                        break;
                    }
                }
                drop(log);
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// Changes what the reader does.
    pub(super) fn reader(&self, does: Reader) {
        self.0.lock().reader = does;
    }

    /// True if no line will be added: the process has closed its end, and all was read.
    pub(super) fn is_over(&self) -> bool {
        let log = self.0.lock();
        !log.being_read || log.reader == Reader::Hangs
    }

    /// The first line that holds `text`.
    pub(super) fn find(&self, text: &str) -> Option<String> {
        let log = self.0.lock();
        log.lines.iter().find(|(_, line)| line.contains(text)).map(|(_, line)| line.clone())
    }

    /// When a line with one of these texts was first read after a moment.
    pub(super) fn first(&self, after: Instant, texts: &[&str]) -> Option<Instant> {
        let log = self.0.lock();
        let mut later = log.lines.iter().filter(|(at, _)| *at >= after);
        later.find(|(_, line)| texts.iter().any(|text| line.contains(text))).map(|(at, _)| *at)
    }

    /// All lines, as one text.
    pub(super) fn text(&self) -> String {
        self.0.lock().lines.iter().map(|(_, line)| format!("{line}\n")).collect()
    }
}
