//! The bytes are what a server answers to the vfio-user client.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| holdfast_vfio::user::fuzz_client_replies(data));
