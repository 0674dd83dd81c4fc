//! Whether one connection gets all events of one channel, once and in order. A missing range that a
//! `gap` declared is no fault of the server's and is counted apart.

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Counts {
    pub delivered: u64,
    pub missing: u64,
    /// Missing events that a `gap` declared.
    pub declared: u64,
    pub doubled: u64,
    pub out_of_order: u64,
    /// Events of a channel that this connection has not subscribed to.
    pub stray: u64,
}

impl Counts {
    pub fn add(&mut self, other: &Counts) {
        self.delivered += other.delivered;
        self.missing += other.missing;
        self.declared += other.declared;
        self.doubled += other.doubled;
        self.out_of_order += other.out_of_order;
        self.stray += other.stray;
    }
}

#[derive(Debug, Default)]
pub struct Sequence {
    last: u32,
    /// False until the first event of a connection that comes back, which takes that event as
    /// it is.
    joined: bool,
    gap: bool,
    /// The missing ranges, by which a late event is told from a doubled one. They are allocated
    /// when the first one appears.
    #[expect(clippy::box_collection, reason = "one word in each of many thousand connections")]
    holes: Option<Box<Vec<(u32, u32)>>>,
}

impl Sequence {
    /// The sequence of a client that subscribed before anything was published.
    pub fn from_the_start() -> Self {
        Sequence { joined: true, ..Sequence::default() }
    }

    pub fn joining_late() -> Self {
        Sequence::default()
    }

    pub fn gap(&mut self) {
        self.gap = true;
    }

    /// Counts an event. False: it came before.
    pub fn see(&mut self, sequence: u32, counts: &mut Counts) -> bool {
        if !self.joined {
            self.joined = true;
        } else if sequence <= self.last {
            return self.late(sequence, counts);
        } else if sequence != self.last + 1 {
            let passed_over = u64::from(sequence - self.last - 1);
            if self.gap {
                counts.declared += passed_over;
            } else {
                counts.missing += passed_over;
                self.holes.get_or_insert_default().push((self.last + 1, sequence - 1));
            }
        }

        self.gap = false;
        self.last = sequence;
        counts.delivered += 1;
        true
    }

    /// Counts what is missing at the end, once the last event is known.
    pub fn finish(&self, last: u32, counts: &mut Counts) {
        if self.joined && last > self.last {
            let missing = u64::from(last - self.last);
            *(if self.gap { &mut counts.declared } else { &mut counts.missing }) += missing;
        }
    }

    fn late(&mut self, sequence: u32, counts: &mut Counts) -> bool {
        let holes = self.holes.as_mut();
        let hole = holes.and_then(|holes| {
            let at = holes.iter().position(|&(from, to)| from <= sequence && sequence <= to)?;
            Some((holes.swap_remove(at), holes))
        });

        let Some(((from, to), holes)) = hole else {
            counts.doubled += 1;
            return false;
        };

        // A late event leaves up to two parts of its missing range.
        if from < sequence {
            holes.push((from, sequence - 1));
        }
        if sequence < to {
            holes.push((sequence + 1, to));
        }

        counts.missing -= 1;
        counts.out_of_order += 1;
        counts.delivered += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(of: &[u32], last: u32) -> Counts {
        let mut sequence = Sequence::from_the_start();
        let mut counts = Counts::default();

        for &seen in of {
            if seen == 0 {
                sequence.gap();
            } else {
                sequence.see(seen, &mut counts);
            }
        }

        sequence.finish(last, &mut counts);
        counts
    }

    #[test]
    fn all_in_order_is_clean() {
        assert_eq!(counts(&[1, 2, 3], 3), Counts { delivered: 3, ..Counts::default() });
    }

    #[test]
    fn holes_and_the_end_are_missing() {
        assert_eq!(counts(&[2, 5], 7), Counts { delivered: 2, missing: 5, ..Counts::default() });
        assert_eq!(counts(&[], 7), Counts { missing: 7, ..Counts::default() });
    }

    #[test]
    fn a_gap_declares_the_hole_in_which_it_stands() {
        let expected = Counts { delivered: 3, declared: 3, missing: 1, ..Counts::default() };
        assert_eq!(counts(&[1, 0, 4, 6, 0], 7), expected);
        let nothing_lost = Counts { delivered: 3, missing: 1, ..Counts::default() };
        assert_eq!(counts(&[1, 0, 2, 4], 4), nothing_lost);
    }

    #[test]
    fn late_is_told_from_twice() {
        let expected = Counts { delivered: 5, out_of_order: 3, doubled: 2, ..Counts::default() };
        assert_eq!(counts(&[1, 5, 3, 3, 2, 4, 5], 5), expected);
    }

    #[test]
    fn who_comes_late_misses_nothing_before() {
        let mut sequence = Sequence::joining_late();
        let mut counts = Counts::default();
        assert!(sequence.see(40, &mut counts) && sequence.see(41, &mut counts));
        sequence.finish(41, &mut counts);
        assert_eq!(counts, Counts { delivered: 2, ..Counts::default() });

        Sequence::joining_late().finish(41, &mut counts);
        assert_eq!(counts.missing, 0);
    }
}
