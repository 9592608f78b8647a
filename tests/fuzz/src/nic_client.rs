//! The bytes are a program that a client runs against the emulated NIC.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| holdfast_nic::fuzz_client(data));
