//! Lines that clients or servers can cause again and again. The first is logged at once, then one
//! for each kind and interval, with a count and one example.
//!
//! Invariants: kinds are a closed set, and the subjects of each are bounded; no lock is held while
//! a line is logged; what was counted is logged, at the latest after the interval.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Subjects of one kind that are told apart. The others share a line.
const MAX_SUBJECTS: usize = 16;

/// The kind of a line: what it says, in words of the code, and a variety of that.
pub type Kind = (&'static str, &'static str);

/// Logs the line. With `Some(n)` it stands for n lines since the last one, itself included.
type Tell = Box<dyn FnOnce(Option<u64>) + Send>;

struct Entry {
    /// A hash of the subject; `None` for all subjects without an entry of their own.
    subject: Option<u64>,
    interval: Duration,
    told_at: Instant,
    /// How many lines were not logged since.
    more: u64,
    /// The first of those lines.
    example: Option<Tell>,
}

#[derive(Default)]
struct Lines {
    kinds: Mutex<HashMap<Kind, Vec<Entry>>>,
    hasher: ahash::RandomState,
}

static LINES: LazyLock<Lines> = LazyLock::new(Lines::default);

/// `log.summary_interval` in milliseconds.
static INTERVAL: AtomicU64 = AtomicU64::new(10_000);

/// Sets how often a line of one kind is logged.
pub fn set_interval(interval: Duration) {
    let millis = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
    INTERVAL.store(millis, Ordering::Relaxed);
}

/// Logs a line now, or later together with others of its kind about the same subject. `tell` is
/// given how many lines it stands for, and puts that into the line as `repeated`.
pub fn repeated<F>(kind: Kind, subject: &(impl Hash + ?Sized), tell: F)
where
    F: FnOnce(Option<u64>) + Send + 'static,
{
    let interval = Duration::from_millis(INTERVAL.load(Ordering::Relaxed));
    repeated_each(interval, kind, subject, tell);
}

/// Logs a line as [`repeated`] does, with an interval of its own.
pub fn repeated_each<F>(interval: Duration, kind: Kind, subject: &(impl Hash + ?Sized), tell: F)
where
    F: FnOnce(Option<u64>) + Send + 'static,
{
    let subject = LINES.hasher.hash_one(subject);
    LINES.add((interval, Instant::now()), kind, subject, tell);
}

/// Logs the lines that are due.
pub(super) fn sweep() {
    LINES.sweep(|entry| entry.told_at.elapsed() >= entry.interval);
}

/// Logs everything that was held back.
pub(super) fn finish() {
    LINES.sweep(|_| true);
}

impl Lines {
    fn add<F>(&self, (interval, now): (Duration, Instant), kind: Kind, subject: u64, tell: F)
    where
        F: FnOnce(Option<u64>) + Send + 'static,
    {
        let mut kinds = self.kinds.lock();
        let entries = kinds.entry(kind).or_default();
        let full = entries.len() >= MAX_SUBJECTS;
        let found = entries.iter().position(|e| e.subject == Some(subject));
        let subject = if found.is_none() && full { None } else { Some(subject) };
        let found = found.or_else(|| entries.iter().position(|e| e.subject == subject));

        let stands_for = match found.map(|at| &mut entries[at]) {
            None => {
                entries.push(Entry { subject, interval, told_at: now, more: 0, example: None });
                None
            }
            Some(entry) if now.duration_since(entry.told_at) >= interval => {
                entry.told_at = now;
                entry.example = None;
                let more = std::mem::take(&mut entry.more);
                (more > 0).then_some(more + 1)
            }
            Some(entry) => {
                entry.more += 1;
                entry.example.get_or_insert_with(|| Box::new(tell));
                return;
            }
        };

        drop(kinds);
        tell(stands_for);
    }

    /// Logs what was held back of the entries that are due, and removes the entries that held
    /// nothing back.
    fn sweep(&self, is_due: impl Fn(&Entry) -> bool) {
        let mut due = Vec::new();
        self.kinds.lock().retain(|_, entries| {
            entries.retain_mut(|entry| {
                if !is_due(entry) {
                    return true;
                }
                let Some(tell) = entry.example.take() else { return false };
                due.push((tell, std::mem::take(&mut entry.more)));
                entry.told_at = Instant::now();
                true
            });
            !entries.is_empty()
        });

        for (tell, more) in due {
            tell(Some(more));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const INTERVAL: Duration = Duration::from_secs(10);

    type Told = Arc<Mutex<Vec<(u32, Option<u64>)>>>;

    fn say(told: &Told, n: u32) -> impl FnOnce(Option<u64>) + Send + 'static {
        let told = Arc::clone(told);
        move |more| told.lock().push((n, more))
    }

    #[test]
    fn field_a3_repeated_lines_are_summed_up() {
        let lines = Lines::default();
        let told = Told::default();
        let now = Instant::now();
        for n in 0..1000 {
            lines.add((INTERVAL, now), ("refused", "expired"), 1, say(&told, n));
        }
        lines.add((INTERVAL, now), ("refused", "missing"), 1, say(&told, 5000));
        assert_eq!(*told.lock(), [(0, None), (5000, None)], "the first of each at once");

        lines.sweep(|_| true);
        assert_eq!(told.lock()[2..], [(1, Some(999))], "the others, with an example");
        lines.sweep(|_| true);
        assert!(lines.kinds.lock().is_empty(), "a quiet interval, and it is forgotten");

        told.lock().clear();
        for n in 0..3 {
            lines.add((INTERVAL, now), ("refused", "expired"), 1, say(&told, n));
        }
        let later = now + INTERVAL;
        lines.add((INTERVAL, later), ("refused", "expired"), 1, say(&told, 3));
        assert_eq!(*told.lock(), [(0, None), (3, Some(3))], "also without a sweep");
    }

    #[test]
    fn field_a3_subjects_are_told_apart_and_bounded() {
        let lines = Lines::default();
        let told = Told::default();
        let now = Instant::now();
        for subject in 0..10_000 {
            lines.add((INTERVAL, now), ("bad", "channel"), subject, say(&told, 0));
        }
        assert_eq!(told.lock().len(), MAX_SUBJECTS + 1);
        lines.sweep(|_| true);
        let rest = 10_000 - MAX_SUBJECTS as u64 - 1;
        assert_eq!(told.lock()[MAX_SUBJECTS + 1..], [(0, Some(rest))]);
    }
}
