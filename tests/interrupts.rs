//! Completions and events through MSI-X eventfds, for those who do not poll.

mod support;

use std::os::fd::BorrowedFd;

use holdfast::{Access, EmulatedNic, EmulatedOptions, Interrupts, Options, QueuePair, SendFlags};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use support::{Side, options};

/// Whether `fd` becomes readable within so many milliseconds.
fn fires(fd: BorrowedFd<'_>, milliseconds: u16) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::from(milliseconds)).expect("poll works") == 1
}

/// Takes what an eventfd has counted.
fn clear(fd: BorrowedFd<'_>) {
    nix::unistd::read(fd, &mut [0; 8]).expect("an eventfd that fired");
}

#[test]
fn an_armed_completion_queue_fires_once_and_an_unarmed_one_never() {
    // A NIC that polls and one that sleeps take doorbells in different ways.
    for poll in [true, false] {
        let nics = EmulatedNic::start(EmulatedOptions { nics: 2, poll, ..Default::default() });
        let nics = nics.unwrap();
        let with_interrupts = Options { interrupts: Interrupts::Eventfd, ..Default::default() };
        let (at_a, at_b) = (nics.open(0).unwrap(), nics.open_with(1, with_interrupts).unwrap());
        let mut a = Side::new(&at_a, 1 << 16, Access::ALL, &options());
        let mut b = Side::new(&at_b, 1 << 16, Access::ALL, &options());
        QueuePair::connect_pair(&mut a.qp, &mut b.qp).unwrap();
        let device = at_b.driver().clone();
        let fd = device.notification_fd().expect("interrupts were asked for");

        let send = |a: &mut Side, b: &mut Side, flags: SendFlags| {
            b.qp.receive(1, &[]).unwrap();
            b.qp.ring_receives();
            a.qp.send(1, &[], flags | SendFlags::SIGNALED).unwrap();
            a.qp.ring_sends();
            assert!(a.completion().is_success());
        };
        send(&mut a, &mut b, SendFlags::NONE);
        assert!(b.completion().is_success());
        assert!(!fires(fd, 50), "nobody armed it");

        b.cq.arm(false).unwrap();
        send(&mut a, &mut b, SendFlags::NONE);
        assert!(fires(fd, 5000), "it was armed");
        clear(fd);
        assert_eq!(device.next_notification().unwrap(), Some(b.cq.handle()));
        assert!(b.completion().is_success());
        send(&mut a, &mut b, SendFlags::NONE);
        assert!(b.completion().is_success());
        assert!(!fires(fd, 50), "arming is for once");

        // Armed for solicited completions only.
        b.cq.arm(true).unwrap();
        send(&mut a, &mut b, SendFlags::NONE);
        assert!(!fires(fd, 50), "that one was not solicited");
        send(&mut a, &mut b, SendFlags::SOLICITED);
        assert!(fires(fd, 5000), "that one was");
        clear(fd);
    }
}

#[test]
fn an_asynchronous_event_fires_its_own_vector() {
    let nics = EmulatedNic::start(EmulatedOptions { nics: 2, ..Default::default() }).unwrap();
    let with_interrupts = Options { interrupts: Interrupts::Eventfd, ..Default::default() };
    let (at_a, at_b) = (nics.open(0).unwrap(), nics.open_with(1, with_interrupts).unwrap());
    let mut a = Side::new(&at_a, 1 << 16, Access::ALL, &options());
    let mut b = Side::new(&at_b, 1 << 16, Access::LOCAL_WRITE, &options());
    QueuePair::connect_pair(&mut a.qp, &mut b.qp).unwrap();
    let device = at_b.driver().clone();
    let fd = device.event_fd().expect("interrupts were asked for");
    assert!(!fires(fd, 0));
    // A WRITE that the target's region does not allow.
    let (local, remote) = (a.region.slice(0, 8).unwrap(), b.at(0));
    a.qp.write(1, &[local], remote, SendFlags::SIGNALED).unwrap();
    a.qp.ring_sends();
    assert!(!a.completion().is_success());
    assert!(fires(fd, 5000));
    let event = at_b.next_event().unwrap().expect("an event");
    assert_eq!(event.kind, holdfast_wire::event::EventKind::QpAccessError);
    assert_eq!(event.info, b.qp.driver().handle());
}
