//! The bytes are what a client sends to the vfio-user server.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| holdfast_nic::server::fuzz_server_bytes(data));
