//! What becomes of the blocks that the region's file gives up. A storm shows something only if others
//! get them, so that is counted: a file system may well hand out other blocks.

use std::ops::Range;

use holdfast_dax::Segment;

/// Bytes that the region's file gave up, and those of them that a canary got at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Freed {
    pub given_up: u64,
    pub taken: u64,
}

impl Freed {
    /// Of a file that had blocks `before` and has them `now`, beside a canary.
    pub fn between(before: &[Segment], now: &[Segment], canary: &[Segment]) -> Self {
        Self::of(&on_device(before), &on_device(now), &on_device(canary))
    }

    fn of(before: &[Range<u64>], now: &[Range<u64>], canary: &[Range<u64>]) -> Self {
        let mut freed = Self::default();
        for old in before {
            let len = old.end - old.start;
            freed.given_up += len.saturating_sub(overlap(old, now));
            // The canary has none that the file still has.
            freed.taken += overlap(old, canary);
        }
        freed
    }

    /// Both together.
    pub fn add(&mut self, other: Self) {
        self.given_up += other.given_up;
        self.taken += other.taken;
    }
}

/// Where blocks are on the device, in bytes.
fn on_device(segments: &[Segment]) -> Vec<Range<u64>> {
    let range = |one: &Segment| one.device_offset.map(|start| start..start + one.len);
    segments.iter().filter_map(range).collect()
}

/// Bytes that are in `one` and in any of `others`.
fn overlap(one: &Range<u64>, others: &[Range<u64>]) -> u64 {
    let common =
        |other: &Range<u64>| one.end.min(other.end).saturating_sub(one.start.max(other.start));
    others.iter().map(common).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_given_up_and_taken() {
        let before = [100..150, 200..250];
        let freed = Freed::of(&before, &[100..120, 300..310], &[120..150, 190..210, 400..405]);
        assert_eq!(freed, Freed { given_up: 80, taken: 40 });
        assert_eq!(Freed::of(&before, &before, &[]), Freed::default());
    }
}
