//! The bytes arrive on a link between two emulated NICs of different processes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| holdfast_nic::engine::link::fuzz_link_frames(data));
