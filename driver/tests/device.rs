//! Bring-up, the command channel and objects, against a scripted device.

mod fake;

use std::time::{Duration, Instant};

use fake::{Fake, Model, error_of};
use holdfast_driver::wire::attr::{QpState, QpType, mask};
use holdfast_driver::wire::cmd::Command;
use holdfast_driver::wire::dsr::Caps;
use holdfast_driver::wire::event::EventKind;
use holdfast_driver::wire::{PAGE_SIZE, regs};
use holdfast_driver::{
    Error, Init, Interrupts, Options, Path, QpConfig, ReadyToReceive, ReadyToSend,
};

fn model(change: impl FnOnce(&mut Model)) -> Model {
    let mut model = Model::default();
    change(&mut model);
    model
}

#[test]
fn bring_up_works_for_every_version_and_model() {
    let qemu = Model::qemu();
    let mut cases: Vec<Model> = (17..=20).map(|v| model(|m| m.version = v)).collect();
    cases.extend([model(|m| m.extension = None), qemu]);
    for case in cases {
        let fake = Fake::new(case.clone());
        let device = fake.open().unwrap();
        assert_eq!(device.version(), case.version);
        let uar = device.alloc_uar().unwrap();
        let pd = device.alloc_pd(&uar).unwrap();
        let cq = device.create_cq(&uar, 64).unwrap();
        let qp = device.create_qp(&pd, &uar, &QpConfig::new(QpType::Rc, 8), &cq, &cq).unwrap();
        assert_eq!(qp.qpn() != qp.handle(), case.version >= 20, "version {}", case.version);
    }
}

#[test]
fn bring_up_refuses_what_it_cannot_drive() {
    let caps = |change: fn(&mut Caps)| model(|m| change(&mut m.caps));
    type Check = fn(&Error) -> bool;
    let cases: [(Model, Check); 6] = [
        (model(|m| m.version = 16), |e| matches!(e, Error::Version { version: 16 })),
        (model(|m| m.version = 21), |e| matches!(e, Error::Version { version: 21 })),
        (caps(|c| *c = Caps::default()), |e| matches!(e, Error::SharedRegion { .. })),
        (caps(|c| c.mode = 1), |e| matches!(e, Error::NotRoce { mode: 1, .. })),
        (caps(|c| c.gid_types = 3), |e| matches!(e, Error::NotRoce { gid_types: 3, .. })),
        (model(|m| (m.version, m.caps.gid_types) = (17, 2)), |e| {
            matches!(e, Error::NotRoce { gid_types: 2, .. })
        }),
    ];
    for (case, check) in cases {
        let fake = Fake::new(case);
        let error = error_of(fake.open());
        assert!(check(&error), "{error:?}");
        let last = fake.state().writes.iter().rev().find(|w| w.0 == 7).copied();
        if let Some((_, _, command)) = last
            && fake.state().region.is_some()
        {
            assert_eq!(command & 4, 0, "bus mastering is off again");
        }
        assert_eq!(fake.memory.page_count(), 0, "nothing leaks");
    }
}

#[test]
fn teardown_stops_the_device_and_frees_everything() {
    for (case, resets) in [(Model::default(), true), (Model::qemu(), false)] {
        let fake = Fake::new(case);
        let device = fake.open().unwrap();
        device.bind_gid(0, [3; 16]).unwrap();
        let uar = device.alloc_uar().unwrap();
        let pd = device.alloc_pd(&uar).unwrap();
        let cq = device.create_cq(&uar, 64).unwrap();
        let qp = device.create_qp(&pd, &uar, &QpConfig::new(QpType::Rc, 8), &cq, &cq).unwrap();
        let before = fake.state().log.len();
        // The worst order a caller can choose.
        drop((device, uar, pd, cq));
        assert_eq!(fake.state().log.len(), before, "the queue pair keeps all of it alive");
        drop(qp);
        let state = fake.state();
        let order: Vec<_> =
            state.log[before..].iter().filter(|c| **c != Command::ModifyQp).copied().collect();
        use Command::*;
        assert_eq!(order[0], DestroyQp);
        assert_eq!(order.last(), Some(&DestroyBind));
        let at = |command| order.iter().position(|c| *c == command).unwrap();
        assert!(at(DestroyCq) < at(DestroyUc) && at(DestroyPd) < at(DestroyUc));
        let reset = state.writes.contains(&(regs::BAR_REGS, regs::CTL, regs::CTL_RESET));
        assert_eq!(reset, resets);
        drop(state);
        assert_eq!(fake.memory.page_count(), 0);
    }
}

#[test]
fn a_device_that_stays_active_is_activated_once_and_again_after_a_reset() {
    let activations = |fake: &Fake| {
        let write = (regs::BAR_REGS, regs::CTL, regs::CTL_ACTIVATE);
        fake.state().writes.iter().filter(|w| **w == write).count()
    };
    for (model, each, name) in [(Model::qemu(), 0, "qemu"), (Model::default(), 1, "ours")] {
        let fake = Fake::new(model);
        drop(fake.open().unwrap());
        assert_eq!(activations(&fake), 1, "{name}: a fresh device");
        drop(fake.open().unwrap());
        assert_eq!(activations(&fake), 1 + each, "{name}: one that was left active");
        // As Linux's driver leaves it.
        fake.state().ctl = regs::CTL_RESET;
        drop(fake.open().unwrap());
        assert_eq!(activations(&fake), 2 + each, "{name}: one that was reset");
    }
}

#[test]
fn where_an_interrupt_could_meet_it_poll_is_never_rung() {
    for (interrupts, rung) in [(Interrupts::Polling, true), (Interrupts::Eventfd, false)] {
        let fake = Fake::new(Model::qemu());
        let device = fake.open_with(Options { interrupts, ..Options::default() }).unwrap();
        let uar = device.alloc_uar().unwrap();
        let mut cq = device.create_cq(&uar, 64).unwrap();
        let before = fake.state().doorbells;
        let mut none = [];
        for _ in 0..1000 {
            cq.poll(&mut none).unwrap();
        }
        cq.poll_device();
        assert_eq!(fake.state().doorbells > before, rung, "{interrupts:?}");
    }
}

#[test]
fn an_index_that_a_dead_driver_may_have_bound_is_unbound_first() {
    for (model, first) in [(Model::qemu(), true), (Model::default(), false)] {
        let fake = Fake::new(model);
        let device = fake.open().unwrap();
        let before = fake.state().log.len();
        device.bind_gid(0, [3; 16]).unwrap();
        let bound = if first { vec![Command::DestroyBind] } else { vec![] };
        assert_eq!(fake.state().log[before..], [bound, vec![Command::CreateBind]].concat());
    }
}

#[test]
fn polling_touches_no_interrupt_and_eventfds_are_offered_on_request() {
    let imr = |fake: &Fake| {
        let state = fake.state();
        state
            .writes
            .iter()
            .filter(|w| (w.0, w.1) == (1, regs::IMR))
            .map(|w| w.2)
            .collect::<Vec<_>>()
    };
    let fake = Fake::new(Model::default());
    let device = fake.open().unwrap();
    assert!(device.event_fd().is_none() && device.notification_fd().is_none());
    drop(device);
    assert!(imr(&fake).is_empty());

    let fake = Fake::new(Model::default());
    let options = Options { interrupts: Interrupts::Eventfd, ..Options::default() };
    let device = fake.open_with(options).unwrap();
    assert!(device.event_fd().is_some() && device.notification_fd().is_some());
    drop(device);
    assert_eq!(imr(&fake), [0, !0]);
}

#[test]
fn the_kernel_can_ask_for_the_function_until_the_device_is_closed() {
    let fake = Fake::new(Model::default());
    let device = fake.open().unwrap();
    assert!(device.removal_fd().is_some() && !device.removal_requested());
    let ask = || {
        let state = fake.state();
        nix::unistd::write(state.removal.as_ref().unwrap(), &1u64.to_ne_bytes()).unwrap();
    };
    ask();
    assert!(device.removal_requested() && device.removal_requested(), "it stays so");
    // It asks again and again.
    ask();
    assert!(device.removal_requested());
    drop(device);
    assert!(fake.state().removal.is_none());
}

#[test]
fn a_device_that_was_pulled_is_gone_at_once_and_takes_its_objects_along() {
    let fake = Fake::new(Model::default());
    let device = fake.open().unwrap();
    device.bind_gid(0, [3; 16]).unwrap();
    let uar = device.alloc_uar().unwrap();
    let pd = device.alloc_pd(&uar).unwrap();
    let cq = device.create_cq(&uar, 64).unwrap();
    let qp = device.create_qp(&pd, &uar, &QpConfig::new(QpType::Rc, 8), &cq, &cq).unwrap();
    let mr = device.register_mr(&pd, 0x1000, 4096, &[0x7000], 1).unwrap();
    device.check_present().unwrap();

    fake.state().gone = true;
    let start = Instant::now();
    assert!(matches!(device.check_present(), Err(Error::Gone)));
    assert!(matches!(device.query_port(1), Err(Error::Gone)));
    // Whatever is plugged in there next is not what was opened.
    fake.state().gone = false;
    assert!(matches!(device.query_port(1), Err(Error::Gone)));
    fake.state().gone = true;
    assert!(error_of(mr.destroy()).is_gone());
    drop((qp, cq, pd, uar, device));
    assert!(start.elapsed() < Duration::from_secs(1), "nothing was waited for");
    assert_eq!(fake.memory.page_count(), 0, "and its memory came back");
    assert!(error_of(fake.open()).is_gone());
}

#[test]
fn a_refusal_with_eperm_is_not_taken_for_an_absent_device() {
    let fake = Fake::new(Model::default());
    let device = fake.open().unwrap();
    fake.state().refuse = Some(nix::errno::Errno::EPERM);
    let error = error_of(device.query_port(1));
    assert!(matches!(error, Error::Refused { errno: nix::errno::Errno::EPERM, .. }), "{error}");
}

#[test]
fn an_asynchronous_device_is_waited_for() {
    let fake = Fake::new(model(|m| m.answer_delay = Some(Duration::from_millis(3))));
    let device = fake.open().unwrap();
    let uar = device.alloc_uar().unwrap();
    let pd = device.alloc_pd(&uar).unwrap();
    let pages = [0x1000, 0x9000];
    let mr = device.register_mr(&pd, 0x7000, 0x2000, &pages, 1).unwrap();
    assert_eq!(mr.lkey(), mr.handle() | 0x1000);
    mr.destroy().unwrap();
}

#[test]
fn a_device_that_never_answers_costs_one_deadline_and_then_less() {
    let fake = Fake::new(Model::default());
    let device = fake.open().unwrap();
    fake.lie(|_, _| false);
    let started = Instant::now();
    let error = error_of(device.query_port(1));
    assert!(matches!(error, Error::Timeout { command: Command::QueryPort, .. }), "{error:?}");
    assert!(started.elapsed() >= Duration::from_millis(200));
    let started = Instant::now();
    error_of(device.query_port(1));
    assert!(
        started.elapsed() < Duration::from_millis(150),
        "a tenth, as the first went unanswered"
    );
    fake.be_honest();
    device.query_port(1).expect("and it recovers");
}

#[test]
fn wrong_answers_are_errors() {
    type Lie = fn(&mut [u8; 176]);
    type Check = fn(&Error) -> bool;
    let cases: [(&str, Lie, Check); 5] = [
        ("wrong opcode", |r| r[8] = 5, |e| matches!(e, Error::DeviceNonsense { .. })),
        ("no ack bit", |r| r[11] = 0, |e| matches!(e, Error::Timeout { .. })),
        ("another key", |r| r[0] ^= 0x55, |e| matches!(e, Error::Timeout { .. })),
        (
            "errno",
            |r| r[12] = 12,
            |e| matches!(e, Error::Refused { errno, .. } if *errno as i32 == 12),
        ),
        ("no echo", |r| r[..8].fill(0), |_| false),
    ];
    for (name, lie, check) in cases {
        let fake = Fake::new(Model::default());
        let device = fake.open().unwrap();
        fake.lie(move |_, response| {
            lie(response);
            true
        });
        match device.query_pkey(1, 0) {
            Ok(_) => assert_eq!(name, "no echo", "devices need not echo keys"),
            // QUERY_PKEY is opcode 1; an ack without its top bit but not zero is nonsense too.
            Err(Error::DeviceNonsense { .. }) if name == "no ack bit" => {}
            Err(error) => assert!(check(&error), "{name}: {error:?}"),
        }
        fake.be_honest();
    }
}

#[test]
fn a_region_is_named_page_by_page_and_checked_before() {
    let fake = Fake::new(Model::default());
    let device = fake.open().unwrap();
    let uar = device.alloc_uar().unwrap();
    let pd = device.alloc_pd(&uar).unwrap();
    // More than one table, to cross the directory's second level.
    let pages: Vec<u64> = (0..1025).map(|i| (i * 7 + 3) * PAGE_SIZE as u64).collect();
    let length = 1024 * PAGE_SIZE as u64 + 5;
    let mr = device.register_mr(&pd, 0x10_0000, length, &pages, 0xf).unwrap();
    assert_eq!(fake.state().regions[&mr.handle()].1, pages);

    let refused: [(u64, u64, &[u64], u32); 7] = [
        (0, 0, &[], 1),
        (0, 4096, &[], 1),
        (0, 4096, &[0, 4096], 1),
        (1, 4096, &[0], 1),
        (0, 4096, &[8], 1),
        (u64::MAX - 100, 4096, &[0, 4096], 1),
        (0, 4096, &[0], 2),
    ];
    for (start, length, pages, access) in refused {
        let error = error_of(device.register_mr(&pd, start, length, pages, access));
        assert!(matches!(error, Error::Invalid(_)), "{start:#x} {length:#x}: {error:?}");
    }
    let error = error_of(device.register_mr(&pd, 0, (1 << 30) + 1, &[], 1));
    assert!(matches!(error, Error::Limit { limit, .. } if limit == 1 << 30), "{error:?}");
    assert_eq!(fake.state().regions.len(), 1);
}

#[test]
fn no_more_objects_are_asked_for_than_the_device_has() {
    let fake = Fake::new(Model::default());
    let device = fake.open().unwrap();
    let uar = device.alloc_uar().unwrap();
    let mut pds: Vec<_> = (0..4).map(|_| device.alloc_pd(&uar).unwrap()).collect();
    assert!(matches!(error_of(device.alloc_pd(&uar)), Error::Limit { limit: 4, .. }));
    pds.pop();
    pds.push(device.alloc_pd(&uar).unwrap());
    // 16 pages, of which the first is the driver's own and one is taken.
    let uars: Vec<_> = std::iter::from_fn(|| device.alloc_uar().ok()).collect();
    assert_eq!(uars.len(), 14);
    let mut numbers: Vec<_> = uars.iter().map(|uar| uar.page()).collect();
    numbers.dedup();
    assert!(numbers.len() == 14 && !numbers.contains(&0) && !numbers.contains(&uar.page()));
}

#[test]
fn transitions_carry_exactly_the_attributes_they_need() {
    let fake = Fake::new(Model::default());
    let device = fake.open().unwrap();
    device.bind_gid(1, [1; 16]).unwrap();
    let uar = device.alloc_uar().unwrap();
    let pd = device.alloc_pd(&uar).unwrap();
    let cq = device.create_cq(&uar, 64).unwrap();
    let config = QpConfig::new(QpType::Rc, 8);
    let rc = device.create_qp(&pd, &uar, &config, &cq, &cq).unwrap();
    let ud = device.create_qp(&pd, &uar, &QpConfig::new(QpType::Ud, 8), &cq, &cq).unwrap();
    let rtr = ReadyToReceive {
        path: Path::new([2; 16], 1),
        path_mtu: 5,
        dest_qpn: 0x123,
        rq_psn: 7,
        max_dest_rd_atomic: 4,
        min_rnr_timer: 12,
    };
    let error = error_of(rc.control.to_rtr(&rtr));
    assert!(matches!(error, Error::QpState { state: QpState::Reset, .. }), "{error:?}");
    rc.control.to_init(&Init::default()).unwrap();
    rc.control.to_rtr(&rtr).unwrap();
    rc.control.to_rts(&ReadyToSend::default()).unwrap();
    rc.control.to_sqd(true).unwrap();
    rc.control.resume().unwrap();
    rc.control.to_error().unwrap();
    assert_eq!(rc.control.query_state().unwrap(), QpState::Error);
    ud.control.to_init(&Init { qkey: 5, ..Init::default() }).unwrap();
    ud.control.to_rtr_datagram().unwrap();
    ud.control.to_rts_datagram(9).unwrap();
    assert!(matches!(error_of(ud.control.to_rtr(&rtr)), Error::Unsupported { .. }));

    use mask::*;
    let masks: Vec<_> = fake.state().modifies.iter().map(|m| m.attr_mask).collect();
    assert_eq!(
        masks,
        [
            STATE | PKEY_INDEX | PORT | ACCESS_FLAGS,
            STATE | AV | PATH_MTU | DEST_QPN | RQ_PSN | MAX_DEST_RD_ATOMIC | MIN_RNR_TIMER,
            STATE | SQ_PSN | TIMEOUT | RETRY_CNT | RNR_RETRY | MAX_QP_RD_ATOMIC,
            STATE | EN_SQD_ASYNC_NOTIFY,
            STATE,
            STATE,
            STATE | PKEY_INDEX | PORT | QKEY,
            STATE,
            STATE | SQ_PSN,
        ]
    );
}

#[test]
fn events_and_notifications_come_in_order_and_nonsense_is_reported() {
    let fake = Fake::new(Model::default());
    let device = fake.open().unwrap();
    assert_eq!(device.next_event().unwrap(), None);
    for (kind, info) in [(0u32, 7u32), (9, 1), (99, 3), (15, 4)] {
        let mut entry = [0; 8];
        entry[..4].copy_from_slice(&kind.to_le_bytes());
        entry[4..].copy_from_slice(&info.to_le_bytes());
        fake.notify(&entry);
    }
    let event = device.next_event().unwrap().unwrap();
    assert_eq!((event.kind, event.info), (EventKind::CqError, 7));
    assert_eq!(device.next_event().unwrap().unwrap().kind, EventKind::PortActive);
    assert!(matches!(error_of(device.next_event()), Error::DeviceNonsense { value: 99, .. }));
    assert_eq!(device.next_event().unwrap().unwrap().kind, EventKind::SrqLimitReached);
    assert_eq!(device.next_event().unwrap(), None);
    for handle in 0..5000u32 {
        fake.notify(&handle.to_le_bytes());
        assert_eq!(device.next_notification().unwrap(), Some(handle));
    }
    assert_eq!(device.next_notification().unwrap(), None);
}

#[test]
fn what_qemu_cannot_do_is_refused_before_it_sees_it() {
    let fake = Fake::new(Model::qemu());
    let device = fake.open().unwrap();
    use Command::*;
    for command in [DestroyQp, DestroySrq, DestroyCq, DestroyMr, DestroyPd, DestroyUc] {
        assert!(fake.state().log.contains(&command), "stale objects were swept: {command:?}");
    }
    let uar = device.alloc_uar().unwrap();
    let pd = device.alloc_pd(&uar).unwrap();
    let cq = device.create_cq(&uar, 64).unwrap();
    let inline = QpConfig { max_inline: 8, ..QpConfig::new(QpType::Rc, 8) };
    let deep = QpConfig { send_sges: 4, ..QpConfig::new(QpType::Rc, 1024) };
    let unsupported = [
        error_of(device.create_qp(&pd, &uar, &inline, &cq, &cq)),
        error_of(device.register_mr(&pd, 0, 4096, &[0], 3)),
        error_of(device.register_mr(&pd, 8, 4000, &[0], 1)),
    ];
    for error in unsupported {
        assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
    }
    let error = error_of(device.create_qp(&pd, &uar, &deep, &cq, &cq));
    assert!(matches!(error, Error::CqTooSmall { .. }), "{error:?}");
    let qp = device.create_qp(&pd, &uar, &QpConfig::new(QpType::Rc, 8), &cq, &cq).unwrap();
    assert!(matches!(error_of(qp.to_error()), Error::Unsupported { .. }));
    assert!(matches!(error_of(qp.control.query(mask::TIMEOUT)), Error::Unsupported { .. }));
    assert_eq!(qp.control.query_state().unwrap(), QpState::Reset);
}

#[test]
fn regions_together_stay_within_what_qemus_process_can_map() {
    let mut model = Model::qemu();
    model.caps.max_mr_size = 1 << 27;
    let fake = Fake::new(model);
    let device = fake.open().unwrap();
    let uar = device.alloc_uar().unwrap();
    let pd = device.alloc_pd(&uar).unwrap();
    let largest = vec![0u64; (1 << 27) / 4096];
    let register = || device.register_mr(&pd, 0, 1 << 27, &largest, 1);
    let first = register().unwrap();
    let error = error_of(register());
    assert!(matches!(error, Error::Limit { asked: 65_536, limit: 60_000, .. }), "{error:?}");
    drop(first);
    register().unwrap();
}
