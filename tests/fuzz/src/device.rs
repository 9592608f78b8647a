//! The bytes play the device: the driver brings it up, makes objects, posts and polls.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| holdfast_driver::testing::fuzz_device(data));
