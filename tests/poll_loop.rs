//! The run-to-completion loop on real traffic: every completion is handled once and in order, whatever
//! ends the loop, and nothing that was posted stays unrung.

mod support;

use std::ops::ControlFlow::{Break, Continue};
use std::time::{Duration, Instant};

use holdfast::cores::{PollLoop, Step};
use holdfast::stats::Stats;
use holdfast::{Access, CompletionQueue, DoorbellPolicy, Error, QueuePairOptions, SendFlags};
use support::{PATIENCE, POLLING_AND_SLEEPING, Pair, Side, options, settings};

const SIGNALED: SendFlags = SendFlags::SIGNALED;

fn coalesced() -> QueuePairOptions<'static> {
    QueuePairOptions { doorbells: DoorbellPolicy::Coalesced, ..options() }
}

/// Writes 8 bytes at `offset` of the peer, with this id.
fn write(side: &mut Side, peer: holdfast::Remote, id: u64) -> Result<(), Error> {
    side.qp.write(id, &[side.region.slice(0, 8)?], peer, SIGNALED)?;
    side.qp.ring_sends();
    Ok(())
}

#[test]
fn messages_go_back_and_forth_over_two_queues_of_one_loop() {
    const MESSAGES: u64 = 2000;
    for setting in settings(&POLLING_AND_SLEEPING) {
        let mut pair = Pair::with(setting, 4096, Access::ALL, &coalesced());
        let (a, b) = (&mut pair.a, &mut pair.b);
        let mut poll: PollLoop<&mut CompletionQueue> = PollLoop::new();
        let numbers = [poll.add(&mut a.cq), poll.add(&mut b.cq)];
        assert_eq!(numbers, [0, 1]);
        let ends = [(&mut a.qp, &a.region), (&mut b.qp, &b.region)];
        let mut ends = ends.map(|(qp, region)| (qp, region.slice(0, 8).unwrap()));
        for (qp, slice) in &mut ends {
            qp.receive(1, &[*slice]).unwrap();
            qp.ring_receives();
        }
        let (mut received, mut sent, mut started) = (0, 0, false);
        let ended: Result<u64, Error> = poll.run(|step| {
            let (queue, done) = match step {
                Step::Completion { queue, completion } => (queue, *completion),
                Step::Turn { .. } if !started => {
                    started = true;
                    let (qp, slice) = &mut ends[0];
                    qp.send(0, &[*slice], SIGNALED)?;
                    qp.ring_sends();
                    return Ok(Continue(()));
                }
                Step::Turn { .. } => return Ok(Continue(())),
            };
            assert!(done.is_success(), "{done:?}");
            if done.wr_id == 0 {
                sent += 1;
                return Ok(Continue(()));
            }
            // A message: the queue that it came to is the end that answers.
            assert_eq!(queue as u64, (received + 1) % 2);
            received += 1;
            if received == MESSAGES {
                return Ok(Break(sent));
            }
            let (qp, slice) = &mut ends[queue];
            qp.receive(1, &[*slice])?;
            qp.send(0, &[*slice], SIGNALED)?;
            // Both are rung at the loop's next poll.
            qp.ring_receives();
            qp.ring_sends();
            Ok(Continue(()))
        });
        let sent = ended.unwrap();
        assert!((MESSAGES - 2..=MESSAGES).contains(&sent), "{setting:?}: {sent}");
        let counts = poll.counts();
        assert_eq!(counts.completions, received + sent, "{setting:?}");
        assert!(counts.turns > counts.empty_turns, "{counts:?}");
        assert_eq!(poll.longest_turn(), None, "nobody asked");
    }
}

#[test]
fn completions_that_were_taken_are_handled_by_the_next_run_whatever_ended_this_one() {
    const REQUESTS: u64 = 40;
    let mut pair = Pair::new(support::any_setting(), 4096);
    let remote = pair.b.at(0);
    for id in 0..REQUESTS {
        write(&mut pair.a, remote, id).unwrap();
    }
    let mut poll = PollLoop::new();
    poll.add(&mut pair.a.cq);
    let mut next = 0;
    let (mut breaks, mut failures) = (0, 0);
    while next < REQUESTS {
        let ended: Result<(), Error> = poll.run(|step| {
            let Step::Completion { completion, .. } = step else { return Ok(Continue(())) };
            assert_eq!(completion.wr_id, next, "none is lost, none comes twice");
            next += 1;
            match next % 3 {
                0 => Ok(Continue(())),
                1 => Ok(Break(())),
                _ => Err(Error::Guard("enough".to_owned())),
            }
        });
        match ended {
            Ok(()) => breaks += 1,
            Err(_) => failures += 1,
        }
    }
    assert_eq!((breaks, failures), (14, 13));
    assert_eq!(poll.counts().completions, REQUESTS);
}

#[test]
fn what_a_failing_handler_was_given_counts() {
    let mut pair = Pair::new(support::any_setting(), 4096);
    let remote = pair.b.at(0);
    write(&mut pair.a, remote, 1).unwrap();
    let mut poll = PollLoop::new();
    poll.add(&mut pair.a.cq);
    let ended: Result<(), Error> = poll.run(|step| match step {
        Step::Completion { .. } => Err(Error::Guard("enough".to_owned())),
        Step::Turn { .. } => Ok(Continue(())),
    });
    assert!(ended.is_err());
    assert_eq!(poll.counts().completions, 1);
}

#[test]
fn what_is_posted_last_is_rung_when_the_loop_ends() {
    let mut pair = Pair::with(support::any_setting(), 4096, Access::ALL, &coalesced());
    let (remote, a) = (pair.b.at(64), &mut pair.a);
    a.region.memory().write_at(0, &[7; 8]).unwrap();
    let slice = a.region.slice(0, 8).unwrap();
    let mut poll = PollLoop::new();
    poll.add(&mut a.cq);
    let end_with =
        |poll: &mut PollLoop<&mut CompletionQueue>, qp: &mut holdfast::QueuePair, fails| {
            poll.run(|_| {
                qp.write(1, &[slice], remote, SIGNALED)?;
                qp.ring_sends();
                if fails { Err(Error::Guard("enough".to_owned())) } else { Ok(Break(())) }
            })
        };
    for fails in [false, true] {
        pair.b.region.memory().write_at(64, &[0; 8]).unwrap();
        assert_eq!(end_with(&mut poll, &mut a.qp, fails).is_err(), fails);
        // Nobody polls from here on.
        let start = Instant::now();
        let mut bytes = [0; 8];
        while bytes != [7; 8] {
            assert!(start.elapsed() < PATIENCE, "it was never rung");
            std::thread::yield_now();
            pair.b.region.memory().read_at(64, &mut bytes).unwrap();
        }
        // The completion, so that the next begins with none.
        let done: Result<u64, Error> = poll.run(|step| match step {
            Step::Completion { completion, .. } => Ok(Break(completion.wr_id)),
            Step::Turn { .. } => Ok(Continue(())),
        });
        assert_eq!(done.unwrap(), 1);
    }
}

#[test]
fn turns_are_timed_and_counted_for_others_where_that_is_asked_for() {
    let mut pair = Pair::new(support::any_setting(), 4096);
    let stats = Stats::new("test");
    let mut poll = PollLoop::new();
    poll.add(&mut pair.a.cq);
    poll.count_in(stats.turns("cpu 0"));
    poll.time_turns();
    let mut turns = 0;
    let pause = Duration::from_millis(3);
    let ended: Result<(), Error> = poll.run(|step| {
        assert!(matches!(step, Step::Turn { completions: 0 }));
        turns += 1;
        if turns == 5 {
            std::thread::sleep(pause);
        }
        Ok(if turns == 10 { Break(()) } else { Continue(()) })
    });
    ended.unwrap();
    assert!(poll.longest_turn().unwrap() >= pause);
    assert_eq!((poll.counts().turns, poll.counts().empty_turns), (10, 10));
    let text = stats.prometheus();
    let line = "holdfast_poll_empty_turns_total{loop=\"cpu 0\"} 10";
    assert!(text.lines().any(|l| l == line), "'{line}' is missing in\n{text}");
}
