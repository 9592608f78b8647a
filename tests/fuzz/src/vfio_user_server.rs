//! The bytes are what a client sends to the vfio-user server: as they are, or made into messages.
#![no_main]

mod messages;

libfuzzer_sys::fuzz_target!(|data: &[u8]| match data {
    [0, raw @ ..] => holdfast_nic::server::fuzz_server_bytes(raw),
    _ => holdfast_nic::server::fuzz_server_bytes(&messages::from_client(data)),
});
