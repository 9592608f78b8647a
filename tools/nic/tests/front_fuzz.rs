//! Arbitrary clients: whatever they do, the NIC neither panics nor hangs.

use holdfast_nic::fuzz_client;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn no_client_breaks_the_nic(program in proptest::collection::vec(any::<u8>(), 0..3000)) {
        fuzz_client(&program);
    }

    /// Small numbers name handles, states and counts that exist: these programs get further.
    #[test]
    fn no_plausible_client_breaks_the_nic(program in proptest::collection::vec(0u8..16, 0..3000)) {
        fuzz_client(&program);
    }
}
