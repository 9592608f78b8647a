//! The bytes are what the other side of a connection sends: the first one says how it begins.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| match data {
    [0, raw @ ..] => holdfast::connect::fuzz_peer_bytes(raw),
    [_, rest @ ..] => {
        let hello =
            format!("{{\"magic\":\"holdfast\",\"version\":{}}}\n", holdfast::connect::VERSION);
        holdfast::connect::fuzz_peer_bytes(&[hello.as_bytes(), rest].concat());
    }
    [] => {}
});
