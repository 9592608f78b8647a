//! Completions and events through MSI-X eventfds, for those who do not poll.

mod support;

use std::os::fd::BorrowedFd;
use std::time::Duration;

use holdfast::{Access, Completion, Interrupts, Options, QueuePair, SendFlags, Waiter};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use support::{
    Nics, PATIENCE, POLLING_AND_SLEEPING, Setting, Side, any_setting, options, payload, settings,
};

/// Whether `fd` becomes readable within so many milliseconds.
fn fires(fd: BorrowedFd<'_>, milliseconds: u16) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::from(milliseconds)).expect("poll works") == 1
}

/// Takes what an eventfd has counted.
fn clear(fd: BorrowedFd<'_>) {
    nix::unistd::read(fd, &mut [0; 8]).expect("an eventfd that fired");
}

/// Two connected endpoints, the second of them on a device with interrupts.
fn with_interrupts(setting: Setting, access: Access) -> (Nics, Side, Side) {
    let eventfds = Options { interrupts: Interrupts::Eventfd, ..Default::default() };
    let nics = Nics::with(setting, &eventfds);
    let mut a = Side::new(&nics.a, 1 << 16, Access::ALL, &options());
    let mut b = Side::new(&nics.b, 1 << 16, access, &options());
    QueuePair::connect_pair(&mut a.qp, &mut b.qp).unwrap();
    (nics, a, b)
}

#[test]
fn an_armed_completion_queue_fires_once_and_an_unarmed_one_never() {
    for setting in settings(&POLLING_AND_SLEEPING) {
        let (nics, mut a, mut b) = with_interrupts(setting, Access::ALL);
        let device = nics.b.driver().clone();
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
    let (nics, mut a, mut b) = with_interrupts(any_setting(), Access::LOCAL_WRITE);
    let device = nics.b.driver().clone();
    let fd = device.event_fd().expect("interrupts were asked for");
    assert!(!fires(fd, 0));
    // A WRITE that the target's region does not allow.
    let (local, remote) = (a.region.slice(0, 8).unwrap(), b.at(0));
    a.qp.write(1, &[local], remote, SendFlags::SIGNALED).unwrap();
    a.qp.ring_sends();
    assert!(!a.completion().is_success());
    assert!(fires(fd, 5000));
    let event = nics.b.next_event().unwrap().expect("an event");
    assert_eq!(event.kind, holdfast_wire::event::EventKind::QpAccessError);
    assert_eq!(event.info, b.qp.driver().handle());
}

#[test]
fn a_receiver_that_sleeps_between_messages_misses_none() {
    const MESSAGES: u64 = 300;
    const LEN: usize = 100;
    for setting in settings(&POLLING_AND_SLEEPING) {
        let (nics, mut a, mut b) = with_interrupts(setting, Access::ALL);
        let device = nics.b.driver().clone();
        let fd = device.notification_fd().expect("interrupts were asked for");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for id in 0..MESSAGES {
                    a.region.memory().write_at(0, &payload(id, LEN)).unwrap();
                    a.qp.send(id, &[a.region.slice(0, LEN).unwrap()], SendFlags::SIGNALED).unwrap();
                    a.qp.ring_sends();
                    assert!(a.completion().is_success());
                }
            });
            let mut slept = 0;
            for id in 0..MESSAGES {
                b.qp.receive(id, &[b.region.slice(0, LEN).unwrap()]).unwrap();
                b.qp.ring_receives();
                let mut out = [Completion::default()];
                while b.cq.poll(&mut out).unwrap() == 0 {
                    b.cq.arm(false).unwrap();
                    // What arrived before the arming fires nothing: look once more, then sleep.
                    if b.cq.poll(&mut out).unwrap() == 1 {
                        break;
                    }
                    assert!(fires(fd, PATIENCE.as_millis() as u16), "message {id} woke nobody");
                    clear(fd);
                    assert_eq!(device.next_notification().unwrap(), Some(b.cq.handle()));
                    slept += 1;
                }
                assert!(out[0].is_success() && out[0].wr_id == id, "{:?}", out[0]);
                assert_eq!(b.bytes(0, LEN), payload(id, LEN), "message {id}");
            }
            assert!(slept > 0, "{setting:?}: it never slept, so nothing was shown");
        });
    }
}

#[test]
fn a_waiter_polls_while_it_may_and_sleeps_without_missing_one() {
    const MESSAGES: u64 = 200;
    // One that never polls for long, and one that never has to sleep.
    for (spin, sleeps) in [(Duration::ZERO, true), (2 * PATIENCE, false)] {
        let (nics, mut a, mut b) = with_interrupts(any_setting(), Access::ALL);
        let mut waiter = Waiter::new(&nics.b, spin).expect("interrupts were asked for");
        let mut out = [Completion::default(); 4];
        let soon = Duration::from_millis(20);
        assert_eq!(waiter.wait(&mut b.cq, &mut out, soon).unwrap(), 0, "nothing was sent");
        assert_eq!(waiter.sleeps() > 0, sleeps, "spin {spin:?}");
        std::thread::scope(|scope| {
            let (next, told) = std::sync::mpsc::channel();
            scope.spawn(move || {
                // Each is sent when the one before was received: the waiter has nothing to do
                // meanwhile.
                for id in told {
                    a.qp.send(id, &[], SendFlags::SIGNALED).unwrap();
                    a.qp.ring_sends();
                    assert!(a.completion().is_success());
                }
            });
            for id in 0..MESSAGES {
                b.qp.receive(id, &[]).unwrap();
                b.qp.ring_receives();
                next.send(id).unwrap();
                let count = waiter.wait(&mut b.cq, &mut out, PATIENCE).unwrap();
                assert_eq!(
                    (count, out[0].wr_id),
                    (1, id),
                    "spin {spin:?}: message {id} was missed"
                );
                assert!(out[0].is_success());
            }
        });
        assert_eq!(waiter.sleeps() > 0, sleeps, "spin {spin:?}");
    }
}

#[test]
fn a_device_without_interrupts_has_no_waiter() {
    let nics = Nics::new(any_setting());
    assert!(Waiter::new(&nics.a, Duration::ZERO).is_none());
}
