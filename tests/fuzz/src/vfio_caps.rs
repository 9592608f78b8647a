//! The bytes are what the kernel answers to VFIO's information calls.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| holdfast_vfio::kernel::caps::fuzz(data));
