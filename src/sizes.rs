//! Tables grow with a rush of connections and keep their size by themselves: they are made smaller when
//! few are left.
//!
//! Not here: when to look. Invariant: a small table is left alone, so that quiet coming and going costs
//! nothing.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};

use dashmap::DashMap;

/// Below this a table is left alone.
const SMALL: usize = 1024;

/// A table that is filled by less than one part in so many is too large.
const PARTS: usize = 8;

fn is_too_large(len: usize, capacity: usize) -> bool {
    capacity > SMALL && len < capacity / PARTS
}

/// Looks at a table of which something was taken out; what that costs is spread over the removals.
pub fn shrink<K: Eq + Hash, V, S: BuildHasher>(table: &mut HashMap<K, V, S>) {
    if is_too_large(table.len(), table.capacity()) {
        table.shrink_to(table.len() * 2);
    }
}

/// The same for a shared table, now and then.
pub fn shrink_shared<K: Eq + Hash, V, S: BuildHasher + Clone>(table: &DashMap<K, V, S>) {
    if is_too_large(table.len(), table.capacity()) {
        table.shrink_to_fit();
    }
}
