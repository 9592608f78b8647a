//! Buckets of latencies: eight to each doubling, so that a bucket is at most an eighth wide. Up to
//! 7 ns each has its own; what takes longer than 68 s is in the last.

/// Buckets for each doubling, as a power of two.
const BITS: u32 = 3;
/// The largest exponent that has buckets: 2^36 ns is 68 s.
const LARGEST: u32 = 36;
/// Number of buckets.
pub const COUNT: usize = ((LARGEST - BITS + 2) << BITS) as usize;

/// The bucket of a latency in nanoseconds.
#[inline(always)]
pub fn of(ns: u64) -> usize {
    if ns < 1 << BITS {
        return ns as usize;
    }
    let exponent = 63 - ns.leading_zeros();
    if exponent > LARGEST {
        return COUNT - 1;
    }
    let within = ns >> (exponent - BITS) & ((1 << BITS) - 1);
    ((exponent - BITS + 1) << BITS) as usize + within as usize
}

/// The longest latency of a bucket, in nanoseconds.
pub fn longest(bucket: usize) -> u64 {
    let (octave, within) = (bucket >> BITS, (bucket & ((1 << BITS) - 1)) as u64);
    match octave {
        0 => within,
        octave => (((1 << BITS) + within + 1) << (octave - 1)) - 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_latency_is_in_the_bucket_that_reaches_it() {
        for ns in (0..5000).chain((0..37).flat_map(|e| [(1 << e) - 1, 1 << e, (1 << e) + 1])) {
            let bucket = of(ns);
            assert!(ns <= longest(bucket), "{ns} is above bucket {bucket}");
            assert!(bucket == 0 || ns > longest(bucket - 1), "{ns} is below bucket {bucket}");
        }
        assert_eq!((of(u64::MAX), of(1 << 37)), (COUNT - 1, COUNT - 1));
    }

    #[test]
    fn a_bucket_is_an_eighth_wide_at_most() {
        for bucket in 9..COUNT {
            let (low, high) = (longest(bucket - 1) as f64 + 1.0, longest(bucket) as f64 + 1.0);
            assert!(high / low <= 1.125 + 1e-9, "bucket {bucket}: {low} to {high}");
        }
    }
}
