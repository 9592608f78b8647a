//! When a completion queue rings the POLL doorbell.
//!
//! Looking at the ring in memory costs nothing to speak of; a POLL doorbell may cost an exit from a
//! virtual machine. So it is rung after a number of empty polls, never on each. While completions
//! come, that number is the device's own ([`crate::Quirks::poll_doorbell_interval`]). When none has
//! come since the last POLL, ringing did not help: the number is doubled, up to [`MOST`] times, and
//! falls back as soon as something comes.

/// An interval grows to so many times what it is at first.
const MOST: u32 = 16;

/// Counts empty polls.
#[derive(Debug)]
pub(crate) struct Cadence {
    left: u32,
    interval: u32,
    shortest: u32,
    /// Where the ring stood at the last POLL.
    seen: u32,
}

impl Cadence {
    /// POLL after `shortest` empty polls at first; `u32::MAX` for (as good as) never.
    pub(crate) fn new(shortest: u32) -> Self {
        let shortest = shortest.max(2);
        Self { left: shortest, interval: shortest, shortest, seen: 0 }
    }

    /// A poll was empty: whether to ring POLL now.
    #[inline(always)]
    pub(crate) fn is_due(&mut self) -> bool {
        self.left -= 1;
        self.left == 0
    }

    /// Empty polls until the next POLL, right after one.
    pub(crate) fn interval(&self) -> u32 {
        self.interval
    }

    /// POLL is rung, with the ring at `head`.
    pub(crate) fn rung(&mut self, head: u32) {
        let longest = self.shortest.saturating_mul(MOST);
        self.interval = match head == self.seen {
            true => self.interval.saturating_mul(2).min(longest),
            false => self.shortest,
        };
        (self.left, self.seen) = (self.interval, head);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Empty polls until the next POLL.
    fn polls(cadence: &mut Cadence, head: u32) -> u32 {
        let mut count = 1;
        while !cadence.is_due() {
            count += 1;
        }
        cadence.rung(head);
        count
    }

    #[test]
    fn the_interval_grows_while_nothing_comes_and_falls_back_when_something_does() {
        let mut cadence = Cadence::new(4);
        let idle: Vec<u32> = (0..8).map(|_| polls(&mut cadence, 0)).collect();
        assert_eq!(idle, [4, 8, 16, 32, 64, 64, 64, 64]);
        assert_eq!([polls(&mut cadence, 1), polls(&mut cadence, 2)], [64, 4]);
        assert_eq!([polls(&mut cadence, 2), polls(&mut cadence, 2)], [4, 8]);
    }

    #[test]
    fn not_every_empty_poll_rings_whatever_is_asked() {
        let mut cadence = Cadence::new(0);
        assert_eq!([polls(&mut cadence, 0), polls(&mut cadence, 1)], [2, 4]);
        let mut never = Cadence::new(u32::MAX);
        assert!((0..1000).all(|_| !never.is_due()));
    }
}
