//! The log. A thread of its own writes it, so that the log's reader can neither hold up nor end the
//! gateway, whether it reads or not.
//!
//! Not here: what is logged. Invariants: no task that logs ever waits; the lines that wait to be
//! written are bounded in number and bytes; a line that cannot be written is dropped and counted,
//! and changes nothing else.

mod format;
mod repeated;
mod writer;

use std::io::{IsTerminal as _, Write};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tracing_appender::non_blocking::NonBlockingBuilder;
use tracing_subscriber::EnvFilter;

pub use format::Format;
pub use repeated::{Kind, repeated, repeated_each, set_interval};
use writer::{Lines, MAX_LINES, State, Writer};

/// How long the process's end waits for lines that have not been written.
const LAST_LINES: Duration = Duration::from_secs(2);

/// How often repeated lines that are due are looked for, and a log that has lost lines is
/// tried again.
const SWEEP: Duration = Duration::from_secs(1);

/// The process's log, once it has begun.
static LOG: OnceLock<Log> = OnceLock::new();

struct Log {
    lines: Lines,
    state: Arc<State>,
}

/// Begins the process's log on standard error. Panics are logged there too.
///
/// # Errors
/// The filter cannot be parsed.
pub fn init(filter: &str, format: Format) -> anyhow::Result<()> {
    let filter = EnvFilter::builder().parse(filter);
    let filter = filter.map_err(|e| anyhow::anyhow!("log.level: {e}"))?;
    let state = Arc::new(State::default());
    let lines = start(std::io::stderr(), format, Arc::clone(&state));

    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(lines.clone())
        // By default the library prints its own errors to standard error directly.
        .log_internal_errors(false);
    match format {
        Format::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        Format::Json => builder.json().init(),
    }

    let _ = LOG.set(Log { lines, state });
    std::panic::set_hook(Box::new(panicked));
    Ok(())
}

/// Starts the thread that writes to `out`.
fn start(out: impl Write + Send + 'static, format: Format, state: Arc<State>) -> Lines {
    let writer = Writer::new(out, format, Arc::clone(&state));
    let builder = NonBlockingBuilder::default().lossy(true).thread_name("log");
    let (queue, guard) = builder.buffered_lines_limit(MAX_LINES).finish(writer);
    // The guard's drop would print to standard output if the thread is stuck. `end` waits for the
    // lines instead.
    std::mem::forget(guard);
    Lines::new(queue, state)
}

/// Logs a panic. The default hook would write to standard error itself: that may fail, which would
/// be another panic, or never return.
fn panicked(panic: &std::panic::PanicHookInfo<'_>) {
    let payload = panic.payload();
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let at = panic.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current().name().unwrap_or_default().to_owned();
    tracing::error!(thread, at, "panicked: {}", text.unwrap_or("without a message"));

    // If a panic ends the process, this is the last chance to write the line.
    if cfg!(panic = "abort") {
        end();
    }
}

/// How many lines were dropped since the start.
#[must_use]
pub fn dropped() -> u64 {
    LOG.get().map_or(0, |log| log.state.dropped())
}

/// Sums up repeated lines when they are due, for ever.
pub async fn sum_up() {
    loop {
        tokio::time::sleep(SWEEP).await;
        repeated::sweep();
        if let Some(log) = LOG.get() {
            log.lines.probe();
        }
    }
}

/// Writes the lines that have not been written, as far as that is possible in a short time.
pub fn end() {
    repeated::finish();
    let Some(log) = LOG.get() else { return };
    log.lines.probe();

    let began = Instant::now();
    while log.state.waiting() > 0 && began.elapsed() < LAST_LINES {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Writes a text that is not a line of the log. It waits no longer for that than for the
/// log's last lines.
pub fn write_within(mut out: impl Write + Send + 'static, text: String) {
    let (done, wait) = std::sync::mpsc::sync_channel(1);
    let writing = std::thread::Builder::new().name("print".to_owned()).spawn(move || {
        // The reader may be gone, which is no failure of ours.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        let _ = done.send(());
    });
    if writing.is_ok() {
        let _ = wait.recv_timeout(LAST_LINES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::{Condvar, Mutex};

    #[derive(Default)]
    struct Kept {
        hung: bool,
        full: bool,
        bytes: Vec<u8>,
    }

    /// A log whose reader the test holds up, on a disk that the test fills.
    #[derive(Clone, Default)]
    struct Disk(Arc<(Mutex<Kept>, Condvar)>);

    impl Disk {
        fn set(&self, hung: bool, full: bool) {
            let mut state = self.0.0.lock();
            (state.hung, state.full) = (hung, full);
            self.0.1.notify_all();
        }

        fn text(&self) -> String {
            String::from_utf8(self.0.0.lock().bytes.clone()).unwrap()
        }
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let mut state = self.0.0.lock();
            self.0.1.wait_while(&mut state, |state| state.hung);
            // A full disk still takes a part of a line.
            let room = if state.full {
                3_usize.saturating_sub(state.bytes.len() % 4)
            } else {
                bytes.len()
            };
            if room == 0 {
                return Err(std::io::ErrorKind::StorageFull.into());
            }
            let taken = room.min(bytes.len());
            state.bytes.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn log(format: Format) -> (Disk, Lines, Arc<State>) {
        let disk = Disk::default();
        let state = Arc::new(State::default());
        let lines = start(disk.clone(), format, Arc::clone(&state));
        (disk, lines, state)
    }

    fn settle(state: &State) {
        let began = Instant::now();
        while state.waiting() > 0 {
            assert!(began.elapsed() < Duration::from_secs(30), "{} wait", state.waiting());
            std::thread::yield_now();
        }
    }

    #[test]
    fn field_a2_a_reader_that_does_not_read_holds_up_nobody() {
        let (disk, mut lines, state) = log(Format::Text);
        disk.set(true, false);
        for _ in 0..3 * MAX_LINES {
            lines.write_all(b"a line\n").unwrap();
        }
        let dropped = state.dropped();
        assert!(dropped >= 2 * MAX_LINES as u64, "{dropped}");
        assert!(state.waiting() <= MAX_LINES);

        disk.set(false, false);
        settle(&state);
        lines.write_all(b"the next\n").unwrap();
        settle(&state);
        let text = disk.text();
        assert!(text.ends_with("the next\n"));

        // A thread that was late begins with what was dropped by then, and tells the rest later.
        let told = text.lines().filter_map(|line| line.split_once(" WARN tollgate::logging: "));
        let counts = told.map(|(_, told)| told.split(' ').next().unwrap().parse::<u64>().unwrap());
        let counts: Vec<_> = counts.collect();
        assert!(counts.len() <= 2 && counts.iter().sum::<u64>() == dropped, "{counts:?}");
    }

    #[test]
    fn field_a1_a_full_disk_drops_lines_and_takes_them_again() {
        for format in [Format::Text, Format::Json] {
            let (disk, mut lines, state) = log(format);
            lines.write_all(b"one\n").unwrap();
            settle(&state);

            disk.set(false, true);
            for _ in 0..10 {
                lines.write_all(b"lost\n").unwrap();
            }
            settle(&state);
            assert_eq!(state.dropped(), 10);

            disk.set(false, false);
            // Without another line, the probe finds that the log takes lines again.
            lines.probe();
            settle(&state);
            let text = disk.text();
            let last = text.lines().last().unwrap();
            assert!(last.contains("10 log lines were dropped"), "{text}");
            assert_eq!(
                format == Format::Json,
                serde_json::from_str::<serde_json::Value>(last).is_ok()
            );
            // The line that was cut off is on a line of its own.
            assert!(text.starts_with("one\n") && text.lines().count() >= 3, "{text}");
            lines.probe();
            settle(&state);
            assert_eq!(disk.text(), text, "told once");
        }
    }

    /// The lines that wait are bounded by their bytes too.
    #[test]
    fn field_a2_long_lines_do_not_fill_the_memory() {
        let (disk, mut lines, state) = log(Format::Text);
        disk.set(true, false);
        let long = "x".repeat(1 << 20);
        for _ in 0..100 {
            lines.write_all(long.as_bytes()).unwrap();
        }
        assert!(state.waiting() < 10 && state.dropped() > 90);

        disk.set(false, false);
        settle(&state);
    }
}
