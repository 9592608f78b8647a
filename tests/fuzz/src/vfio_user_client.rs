//! The bytes are what a server answers to the vfio-user client: as they are, or made into replies.
#![no_main]

mod messages;

libfuzzer_sys::fuzz_target!(|data: &[u8]| match data {
    [0, raw @ ..] => holdfast_vfio::user::fuzz_client_replies(raw),
    _ => holdfast_vfio::user::fuzz_client_replies(&messages::from_server(data)),
});
