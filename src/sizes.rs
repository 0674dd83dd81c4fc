//! Hash tables never shrink on their own. After a rush of connections these helpers shrink them, if
//! few entries are left.
//!
//! Not here: when a table is checked. Invariant: a small table is left alone, so that the coming
//! and going of a few connections costs nothing.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};

use dashmap::DashMap;

/// Tables with a smaller capacity are left alone.
const SMALL: usize = 1024;

/// A table that is filled by less than one part in this many is too large.
const PARTS: usize = 8;

fn is_too_large(len: usize, capacity: usize) -> bool {
    capacity > SMALL && len < capacity / PARTS
}

/// Shrinks a table if it is too large. It is called after removals, which share the cost.
pub(crate) fn shrink<K: Eq + Hash, V, S: BuildHasher>(table: &mut HashMap<K, V, S>) {
    if is_too_large(table.len(), table.capacity()) {
        table.shrink_to(table.len() * 2);
    }
}

/// Shrinks a shared table if it is too large. It is called now and then.
pub(crate) fn shrink_shared<K: Eq + Hash, V, S: BuildHasher + Clone>(table: &DashMap<K, V, S>) {
    if is_too_large(table.len(), table.capacity()) {
        table.shrink_to_fit();
    }
}
