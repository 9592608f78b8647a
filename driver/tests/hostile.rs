//! Random strings of bytes play the device. Nothing to assert beyond what `fuzz_device` asserts:
//! the driver neither panics nor hands out credit that nobody gave.

use holdfast_driver::testing::{fuzz_device, fuzz_device_steps};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_device_can_make_the_driver_panic(data in prop::collection::vec(any::<u8>(), 0..1500)) {
        fuzz_device(&data);
    }

    /// Mostly zeroes: an honest device that lies now and then, which gets furthest.
    #[test]
    fn nor_can_one_that_lies_now_and_then(
        caller in prop::collection::vec(any::<u8>(), 300),
        device in prop::collection::vec(prop_oneof![8 => 0u8..8, 1 => any::<u8>()], 900),
    ) {
        fuzz_device(&[caller, device].concat());
    }
}

#[test]
fn an_honest_string_gets_to_the_end() {
    // Two bytes of the caller's choose the kind of queue pair; each step then takes two.
    let mut data = vec![4; 102];
    data.resize(4 * 102, 0);
    assert_eq!(fuzz_device_steps(&data), 50);
}
