//! A device that is closed is reset: its next owner starts afresh, whatever the last one left.

mod support;

use std::time::{Duration, Instant};

use holdfast::{Access, SendFlags, Status};
use support::{Pair, SETTINGS, Side, options, settings};

const LEN: usize = 8 << 20;

#[test]
fn a_device_that_was_closed_under_load_starts_afresh() {
    for setting in settings(&SETTINGS) {
        let mut pair = Pair::new(setting, LEN);
        pair.a.region.memory().fill(0, LEN, 0x5a).unwrap();
        let remote = pair.b.at(0);
        // More than is carried out before the device is closed.
        for id in 0..64 {
            let local = pair.a.region.slice(0, LEN).unwrap();
            pair.a.qp.write(id, &[local], remote, SendFlags::SIGNALED).unwrap();
        }
        pair.a.qp.ring_sends();
        let Pair { a, b, nics } = pair;
        let closing = Instant::now();
        drop(a);
        let Side { qp, cq, region, pd } = b;
        drop((qp, cq));
        let memory = region.deregister().expect("nobody holds the region");
        drop(pd);
        let nics = nics.reopened();
        assert!(
            closing.elapsed() < Duration::from_secs(20),
            "{setting:?}: {:?}",
            closing.elapsed()
        );

        // The memory is ours alone: nothing of the 512 MiB that were posted arrives any more.
        memory.fill(0, LEN, 0).unwrap();
        let mut pair = Pair::on(nics, LEN, Access::ALL, &options());
        // What peers were told of the last owner's region means nothing to the new one.
        pair.a.region.memory().fill(0, LEN, 0x77).unwrap();
        let local = pair.a.region.slice(0, 64).unwrap();
        pair.a.qp.write(1, &[local], remote, SendFlags::SIGNALED).unwrap();
        pair.a.qp.ring_sends();
        assert_eq!(pair.a.completion().status, Status::RemoteAccess, "{setting:?}");
        let mut bytes = vec![1; LEN];
        memory.read_at(0, &mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0), "{setting:?}: the device wrote afterwards");
    }
}
