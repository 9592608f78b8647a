//! The arithmetic of atomics. The responder applies it to an 8-byte word of the target's memory
//! in one atomic step, also against the target's own processor.

use super::packet::Op;
use crate::memory::{Fault, Span};

/// How often an atomic is tried on a word that others keep changing.
const TRIES: u32 = 10_000;

/// One atomic on a shared word: what it makes of each value found there, for a bounded number of
/// times.
struct Update {
    op: Op,
    args: [u64; 4],
    tries: u32,
    gave_up: bool,
}

impl Update {
    fn new(op: Op, args: [u64; 4]) -> Self {
        Self { op, args, tries: 0, gave_up: false }
    }

    #[inline]
    fn attempt(&mut self, old: u64) -> Option<u64> {
        self.tries += 1;
        self.gave_up = self.tries > TRIES;
        if self.gave_up { None } else { apply(self.op, old, self.args) }
    }
}

/// Carries out an atomic on the word at the start of a span and gives the old value; `None` when
/// others changed the word each time it was tried.
#[inline]
pub(crate) fn update(word: &Span, op: Op, args: [u64; 4]) -> Result<Option<u64>, Fault> {
    let mut update = Update::new(op, args);
    let old = word.fetch_update(|old| update.attempt(old))?;
    Ok((!update.gave_up).then_some(old))
}

/// What an atomic makes of the old value; `None` leaves the word alone.
#[inline]
pub(crate) fn apply(op: Op, old: u64, args: [u64; 4]) -> Option<u64> {
    let [operand, swap, compare_or_boundary, swap_mask] = args;
    match op {
        Op::CompareSwap => (old == operand).then_some(swap),
        Op::FetchAdd => Some(old.wrapping_add(operand)),
        Op::MaskedCompareSwap => {
            let differs = (old ^ operand) & compare_or_boundary != 0;
            (!differs).then_some(old & !swap_mask | swap & swap_mask)
        }
        Op::MaskedFetchAdd => Some(add_fields(old, operand, compare_or_boundary)),
        _ => None,
    }
}

/// Adds field by field; a set bit of `boundary` is the top bit of a field, and no carry leaves it.
fn add_fields(a: u64, b: u64, boundary: u64) -> u64 {
    let low = (a & !boundary).wrapping_add(b & !boundary);
    low ^ ((a ^ b) & boundary)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bit by bit, as the definition has it.
    fn add_slowly(a: u64, b: u64, boundary: u64) -> u64 {
        let (mut sum, mut carry) = (0, 0);
        for bit in 0..64 {
            let (x, y) = (a >> bit & 1, b >> bit & 1);
            sum |= (x ^ y ^ carry) << bit;
            carry = if boundary >> bit & 1 == 1 { 0 } else { (x & y) | (carry & (x ^ y)) };
        }
        sum
    }

    proptest! {
        #[test]
        fn fields_do_not_carry_into_each_other(a: u64, b: u64, boundary: u64) {
            prop_assert_eq!(add_fields(a, b, boundary), add_slowly(a, b, boundary));
        }

        #[test]
        fn full_masks_make_a_plain_compare_and_swap(old: u64, compare: u64, swap: u64) {
            let plain = apply(Op::CompareSwap, old, [compare, swap, 0, 0]);
            let masked = apply(Op::MaskedCompareSwap, old, [compare, swap, u64::MAX, u64::MAX]);
            prop_assert_eq!(plain, masked);
        }
    }

    #[test]
    fn a_word_that_others_keep_changing_is_given_up() {
        let mut update = Update::new(Op::FetchAdd, [1, 0, 0, 0]);
        for old in 0..u64::from(TRIES) {
            assert_eq!((update.attempt(old), update.gave_up), (Some(old + 1), false));
        }
        assert_eq!((update.attempt(0), update.gave_up), (None, true));
        let mut unequal = Update::new(Op::CompareSwap, [1, 5, 0, 0]);
        assert_eq!((unequal.attempt(0), unequal.gave_up), (None, false));
    }

    #[test]
    fn masks_choose_what_is_compared_and_what_is_swapped() {
        let old = 0x1111_2222_3333_4444;
        let args = [0xffff_ffff_ffff_4444, 0xaaaa_aaaa_aaaa_aaaa, 0xffff, 0xffff << 48];
        assert_eq!(apply(Op::MaskedCompareSwap, old, args), Some(0xaaaa_2222_3333_4444));
        let args = [0x4445, 0, 0xffff, u64::MAX];
        assert_eq!(apply(Op::MaskedCompareSwap, old, args), None);
    }
}
