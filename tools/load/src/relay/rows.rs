//! Which row is for which channel, and which of those a socket is on. Doing it is the business
//! of `committers`.

use crate::event::{Event, Events};

/// The sockets' channels lie evenly among all.
#[derive(Debug, Clone, Copy)]
pub struct Spread {
    pub channels: usize,
    pub heard: usize,
}

impl Spread {
    /// The number that a channel has among those that are heard.
    pub fn heard_as(self, channel: usize) -> Option<u32> {
        let stride = self.channels / self.heard;
        let number = channel / stride;
        (channel.is_multiple_of(stride) && number < self.heard).then_some(number as u32)
    }

    pub fn name(self, channel: usize) -> String {
        match self.heard_as(channel) {
            Some(number) => format!("post:{number}"),
            None => format!("post:quiet{channel}"),
        }
    }
}

/// The channels of one committer, whose rows it numbers.
pub struct Lane {
    spread: Spread,
    first: usize,
    step: usize,
    next: usize,
    /// The last sequence number on each channel.
    sequences: Vec<u32>,
}

/// A row to commit.
pub struct Row {
    pub channel: String,
    pub event: String,
    /// The heard channel's number, and the event's on it.
    pub heard: Option<(u32, u32)>,
}

impl Lane {
    /// So many lanes as there are committers, but not more than channels.
    pub fn all(spread: Spread, committers: usize) -> Vec<Lane> {
        let step = committers.clamp(1, spread.channels);
        let lane = |first: usize| {
            let sequences = vec![0; (spread.channels - first).div_ceil(step)];
            Lane { spread, first, step, next: 0, sequences }
        };
        (0..step).map(lane).collect()
    }

    pub fn row(&mut self, events: &Events, intended: u64) -> Row {
        let channel = self.first + self.next * self.step;
        let sequence = &mut self.sequences[self.next];
        *sequence += 1;
        self.next = (self.next + 1) % (self.spread.channels - self.first).div_ceil(self.step);

        let number = self.spread.heard_as(channel);
        let event = Event { channel: number.unwrap_or(u32::MAX), sequence: *sequence, intended };
        let event = String::from_utf8_lossy(&events.compose(event)).into_owned();
        let heard = number.map(|number| (number, *sequence));
        Row { channel: self.spread.name(channel), event, heard }
    }

    /// Notes the last sequence number of each heard channel.
    pub fn last(&self, into: &mut [u32]) {
        for (at, sequence) in self.sequences.iter().enumerate() {
            if let Some(number) = self.spread.heard_as(self.first + at * self.step) {
                into[number as usize] = *sequence;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_heard_channel_has_one_committer_and_all_are_used() {
        for (channels, heard, committers) in [(1, 1, 4), (7, 3, 4), (10, 10, 3), (100, 7, 4)] {
            let spread = Spread { channels, heard };
            let names = (0..channels).filter_map(|channel| spread.heard_as(channel));
            assert!(names.eq(0..heard as u32), "{channels} {heard}");

            let (events, mut last) = (Events::new(1, 0), vec![0; heard]);
            let mut rows = 0;
            for lane in &mut Lane::all(spread, committers) {
                for _ in 0..2 * lane.sequences.len() {
                    rows += 1;
                    lane.row(&events, 1);
                }
                lane.last(&mut last);
            }
            assert_eq!((rows, last), (2 * channels, vec![2; heard]));
        }
    }
}
