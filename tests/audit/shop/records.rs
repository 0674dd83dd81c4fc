//! What is left of a round of purchases, for the verdict: what was bought, what the table, the histories
//! and the outbox hold, and what each device saw.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::record::ClientLog;

/// What the shop knows of a purchase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The database said at that time that it is committed.
    Committed(Duration),
    /// It was never committed.
    RolledBack,
    /// The answer to COMMIT is missing: the table says what became of it.
    Unknown,
}

/// One purchase. Its number, which its event carries and no other purchase has, is its place in the list.
#[derive(Debug, Clone, Copy)]
pub struct Purchase {
    pub user: usize,
    /// When its transaction began.
    pub began: Duration,
    pub fate: Fate,
}

/// A purchase at its place in a history: as the history has it, or as the outbox says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    pub user: usize,
    pub epoch: u64,
    pub offset: u64,
    pub purchase: usize,
}

/// A device of a user: what came, and what the shop's API answered when it was asked.
#[derive(Debug, Clone)]
pub struct Device {
    pub user: usize,
    pub log: ClientLog,
    pub answered: BTreeSet<usize>,
    /// How often it has asked.
    pub asked: usize,
    /// It has been told that something may be missing, and has no answer yet.
    pub owes: bool,
}

/// What the databases may rightly have forgotten, by what was done to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Forgotten {
    /// Redis may have lost histories, or they came to their end.
    pub histories: bool,
    /// Redis has begun new epochs of its own: the guards of rows in doubt went with the old ones.
    pub guards: bool,
    /// PostgreSQL may have lost what it had committed.
    pub commits: bool,
}

/// All that is left of a round.
#[derive(Debug, Clone, Default)]
pub struct Records {
    pub forgotten: Forgotten,
    pub purchases: Vec<Purchase>,
    /// The purchases that the table has at the end: the truth.
    pub table: BTreeSet<usize>,
    /// What any history has held.
    pub history: BTreeSet<Entry>,
    /// Where the outbox says that its rows are, as far as it still has them.
    pub marks: Vec<Entry>,
    pub pending: i64,
    pub dead: i64,
    /// What is still guarded in Redis at the end, or has no end there.
    pub unsettled: Vec<String>,
    pub devices: Vec<Device>,
}
