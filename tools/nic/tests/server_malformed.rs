//! What a client must not say, and what becomes of one that does.

mod server_util;

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use holdfast_nic::server::toy::{BAR0, Toy, VECTORS};
use holdfast_nic::server::{End, Limits, Shutdown, fuzz_server_bytes, serve_connection};
use holdfast_vfio::user::wire::{self, Header};
use holdfast_vfio::user::{Capabilities, ChannelError, Command, version};
use libc::{EINVAL, EMSGSIZE, ENOTSUP, EPERM};
use nix::sys::eventfd::EventFd;
use proptest::prelude::*;
use server_util::{Raw, serving};
use zerocopy::{FromBytes, IntoBytes};

fn talk<T>(client: impl FnOnce(&mut Raw) -> T) -> (T, Toy) {
    let (outcome, toy, end) = serving(Toy::new(), |stream| client(&mut Raw::negotiated(stream)));
    assert_eq!(end, End::Closed);
    (outcome, toy)
}

fn access(region: u32, offset: u64, count: u32) -> wire::RegionAccess {
    wire::RegionAccess { offset, region, count }
}

fn irq_set(flags: u32, index: u32, start: u32, count: u32) -> wire::IrqSet {
    wire::IrqSet { argsz: 20, flags, index, start, count }
}

#[test]
fn payloads_that_make_no_sense_are_refused_and_the_connection_goes_on() {
    let map = wire::DmaMap { argsz: 32, flags: 3, offset: 0, address: 0x1000, size: 0x1000 };
    let unmap = wire::DmaUnmap { argsz: 24, flags: 0, address: 0x1000, size: 0x1000 };
    let region = wire::RegionInfo { argsz: 32, index: 0, ..Default::default() };
    let bar0 = BAR0;
    let cases: &[(&str, Command, Vec<u8>, i32)] = &[
        ("an unknown command", Command(999), vec![], ENOTSUP),
        ("a device feature", Command::DEVICE_FEATURE, vec![0; 8], ENOTSUP),
        ("a server's command", Command::DMA_READ, vec![0; 16], ENOTSUP),
        ("a second VERSION", Command::VERSION, vec![0; 4], EINVAL),
        ("a short DMA_MAP", Command::DMA_MAP, vec![0; 31], EINVAL),
        (
            "an empty DMA_MAP",
            Command::DMA_MAP,
            wire::DmaMap { size: 0, ..map }.as_bytes().into(),
            EINVAL,
        ),
        (
            "a wrapping DMA_MAP",
            Command::DMA_MAP,
            wire::DmaMap { size: u64::MAX, ..map }.as_bytes().into(),
            EINVAL,
        ),
        (
            "a wrapping file offset",
            Command::DMA_MAP,
            wire::DmaMap { offset: u64::MAX, ..map }.as_bytes().into(),
            EINVAL,
        ),
        (
            "unknown map flags",
            Command::DMA_MAP,
            wire::DmaMap { flags: 0x80, ..map }.as_bytes().into(),
            EINVAL,
        ),
        (
            "a map without its file",
            Command::DMA_MAP,
            wire::DmaMap { flags: 7, ..map }.as_bytes().into(),
            EINVAL,
        ),
        (
            "too small an argsz",
            Command::DMA_MAP,
            wire::DmaMap { argsz: 8, ..map }.as_bytes().into(),
            EINVAL,
        ),
        (
            "a dirty bitmap",
            Command::DMA_UNMAP,
            wire::DmaUnmap { flags: 1, ..unmap }.as_bytes().into(),
            EINVAL,
        ),
        (
            "everything, and a range",
            Command::DMA_UNMAP,
            wire::DmaUnmap { flags: 2, ..unmap }.as_bytes().into(),
            EINVAL,
        ),
        (
            "a wrapping unmap",
            Command::DMA_UNMAP,
            wire::DmaUnmap { size: u64::MAX, ..unmap }.as_bytes().into(),
            EINVAL,
        ),
        (
            "an empty unmap",
            Command::DMA_UNMAP,
            wire::DmaUnmap { size: 0, ..unmap }.as_bytes().into(),
            EINVAL,
        ),
        ("a short question", Command::DEVICE_GET_INFO, vec![16, 0, 0], EINVAL),
        ("no room for the answer", Command::DEVICE_GET_INFO, vec![0; 16], EINVAL),
        (
            "a region beyond the last",
            Command::DEVICE_GET_REGION_INFO,
            wire::RegionInfo { index: 9, ..region }.as_bytes().into(),
            EINVAL,
        ),
        (
            "too small an argsz for a region",
            Command::DEVICE_GET_REGION_INFO,
            wire::RegionInfo { argsz: 31, ..region }.as_bytes().into(),
            EINVAL,
        ),
        (
            "an interrupt index beyond the last",
            Command::DEVICE_GET_IRQ_INFO,
            wire::IrqInfo { argsz: 16, index: 5, ..Default::default() }.as_bytes().into(),
            EINVAL,
        ),
        (
            "a read beyond the end",
            Command::REGION_READ,
            access(0, bar0, 1).as_bytes().into(),
            EINVAL,
        ),
        (
            "a read over the end",
            Command::REGION_READ,
            access(0, bar0 - 3, 4).as_bytes().into(),
            EINVAL,
        ),
        (
            "a read that wraps",
            Command::REGION_READ,
            access(0, u64::MAX, 4).as_bytes().into(),
            EINVAL,
        ),
        ("an absurd count", Command::REGION_READ, access(0, 0, u32::MAX).as_bytes().into(), EINVAL),
        ("a read of nothing", Command::REGION_READ, access(0, 0, 0).as_bytes().into(), EINVAL),
        ("a read of no region", Command::REGION_READ, access(77, 0, 4).as_bytes().into(), EINVAL),
        (
            "a read of an absent region",
            Command::REGION_READ,
            access(1, 0, 4).as_bytes().into(),
            EINVAL,
        ),
        ("a write without data", Command::REGION_WRITE, access(0, 0, 4).as_bytes().into(), EINVAL),
        (
            "a write with more data",
            Command::REGION_WRITE,
            [access(0, 0, 4).as_bytes(), &[0; 5]].concat(),
            EINVAL,
        ),
        (
            "a write to what is read only",
            Command::REGION_WRITE,
            [access(6, 0, 4).as_bytes(), &[0; 4]].concat(),
            EPERM,
        ),
        ("a reset with a payload", Command::DEVICE_RESET, vec![0], EINVAL),
        (
            "a write count that lies",
            Command::REGION_WRITE_MULTI,
            u64::MAX.to_le_bytes().into(),
            EINVAL,
        ),
        ("no action", Command::DEVICE_SET_IRQS, irq_set(1, 2, 0, 0).as_bytes().into(), EINVAL),
        (
            "two kinds of data",
            Command::DEVICE_SET_IRQS,
            irq_set(0x23, 2, 0, 1).as_bytes().into(),
            EINVAL,
        ),
        (
            "unknown interrupt flags",
            Command::DEVICE_SET_IRQS,
            irq_set(0x121, 2, 0, 1).as_bytes().into(),
            EINVAL,
        ),
        (
            "vectors beyond the last",
            Command::DEVICE_SET_IRQS,
            irq_set(0x21, 2, 1, VECTORS).as_bytes().into(),
            EINVAL,
        ),
        (
            "vectors that wrap",
            Command::DEVICE_SET_IRQS,
            irq_set(0x21, 2, u32::MAX, 2).as_bytes().into(),
            EINVAL,
        ),
        (
            "an absurd number of vectors",
            Command::DEVICE_SET_IRQS,
            irq_set(0x24, 2, 0, u32::MAX).as_bytes().into(),
            EINVAL,
        ),
        (
            "booleans that are missing",
            Command::DEVICE_SET_IRQS,
            irq_set(0x22, 2, 0, 4).as_bytes().into(),
            EINVAL,
        ),
        (
            "masking what cannot be",
            Command::DEVICE_SET_IRQS,
            irq_set(0x9, 2, 0, 1).as_bytes().into(),
            ENOTSUP,
        ),
        (
            "an eventfd for unmasking",
            Command::DEVICE_SET_IRQS,
            irq_set(0x14, 0, 0, 1).as_bytes().into(),
            ENOTSUP,
        ),
    ];
    talk(|raw| {
        for (name, command, payload, errno) in cases {
            assert_eq!(raw.errno(*command, payload, &[]), *errno, "{name}");
        }
        let ask = wire::DeviceInfo { argsz: 16, ..Default::default() };
        assert_eq!(raw.errno(Command::DEVICE_GET_INFO, ask.as_bytes(), &[]), 0);
    });
}

#[test]
fn descriptors_are_refused_where_none_belong_or_too_many_come() {
    talk(|raw| {
        let event = EventFd::new().unwrap();
        let fds: Vec<_> = (0..VECTORS).map(|_| event.as_fd()).collect();
        let map = wire::DmaMap { argsz: 32, flags: 3, offset: 0, address: 0x1000, size: 0x1000 };
        let bind = |count| irq_set(0x24, 2, 0, count);
        for (name, command, payload, count) in [
            ("a reset", Command::DEVICE_RESET, vec![], 1),
            ("a read", Command::REGION_READ, access(0, 0, 4).as_bytes().to_vec(), 1),
            ("two for one map", Command::DMA_MAP, map.as_bytes().to_vec(), 2),
            ("more than vectors", Command::DEVICE_SET_IRQS, bind(2).as_bytes().to_vec(), 3),
            ("fewer than vectors", Command::DEVICE_SET_IRQS, bind(3).as_bytes().to_vec(), 2),
            (
                "more than a message may have",
                Command::DEVICE_SET_IRQS,
                bind(17).as_bytes().to_vec(),
                17,
            ),
            (
                "with a trigger",
                Command::DEVICE_SET_IRQS,
                irq_set(0x21, 2, 0, 1).as_bytes().to_vec(),
                1,
            ),
        ] {
            assert_eq!(raw.errno(command, &payload, &fds[..count]), EINVAL, "{name}");
        }
        assert_eq!(raw.errno(Command::DEVICE_SET_IRQS, bind(16).as_bytes(), &fds[..16]), 0);
        // Fire vectors 1 and 2 by booleans, then detach vector 2, then fire all.
        let fire = [irq_set(0x22, 2, 0, 4).as_bytes(), &[0, 1, 9, 0]].concat();
        assert_eq!(raw.errno(Command::DEVICE_SET_IRQS, &fire, &[]), 0);
        assert_eq!(event.read().unwrap(), 2);
        assert_eq!(raw.errno(Command::DEVICE_SET_IRQS, irq_set(0x24, 2, 2, 1).as_bytes(), &[]), 0);
        assert_eq!(raw.errno(Command::DEVICE_SET_IRQS, irq_set(0x21, 2, 0, 16).as_bytes(), &[]), 0);
        assert_eq!(event.read().unwrap(), 15);
    });
}

#[test]
fn region_information_says_what_it_needs_and_sends_capabilities_when_they_fit() {
    talk(|raw| {
        let mut ask = wire::RegionInfo { argsz: 32, index: 2, ..Default::default() };
        let (_, payload, fds) = raw.ask(Command::DEVICE_GET_REGION_INFO, ask.as_bytes(), &[]);
        let info = wire::RegionInfo::read_from_bytes(&payload).unwrap();
        assert_eq!((info.argsz, info.flags, info.cap_offset), (32 + 8 + 8 + 32, 7, 0));
        assert_eq!(fds.len(), 1);
        ask.argsz = info.argsz;
        let (header, payload, fds) = raw.ask(Command::DEVICE_GET_REGION_INFO, ask.as_bytes(), &[]);
        let (info, _) = wire::RegionInfo::read_from_prefix(&payload).unwrap();
        assert_eq!((info.argsz, info.flags, info.cap_offset), (80, 15, 32));
        assert_eq!((header.size, payload.len(), fds.len()), (96, 80, 1));
    });
}

#[test]
fn a_version_reply_is_no_longer_than_qemus_request() {
    // What QEMU proposes; it has no room for a reply that is longer than its request.
    let json = br#"{"capabilities": {"migration": {"max_bitmap_size": 268435456, "pgsize": 4096}, "max_msg_fds": 16, "max_data_xfer_size": 1048576, "pgsizes": 4096, "max_dma_maps": 65535, "write_multiple": true}}"#;
    let request = [&[0; 4][..], json, &[0]].concat();
    serving(Toy::new(), |stream| {
        let (_, payload, _) = Raw::new(stream).ask(Command::VERSION, &request, &[]);
        assert!(payload.len() <= request.len());
        let (version, told) = version::decode(&payload).unwrap();
        assert_eq!(version, wire::Version { major: 0, minor: 0 });
        assert_eq!(told, Capabilities { max_msg_fds: 16, write_multiple: true, ..told });
        assert!(!String::from_utf8_lossy(&payload).contains("migration"));
    });
}

#[test]
fn a_client_that_does_not_begin_with_its_version_is_hung_up_on() {
    for (name, command, payload) in [
        ("another command", Command::DEVICE_RESET, vec![]),
        ("another major version", Command::VERSION, vec![1, 0, 0, 0]),
        ("no version", Command::VERSION, vec![]),
        ("no terminator", Command::VERSION, b"\0\0\0\0{}".to_vec()),
        ("no JSON", Command::VERSION, b"\0\0\0\0{\0".to_vec()),
        ("deep JSON", Command::VERSION, [&[0; 4], &[b'['; 50_000][..], &[0]].concat()),
    ] {
        let ((), toy, end) = serving(Toy::new(), |stream| {
            let mut raw = Raw::new(stream);
            assert_eq!(raw.errno(command, &payload, &[]), EINVAL, "{name}");
            assert_eq!(raw.recv().unwrap_err(), ChannelError::Closed, "{name}");
        });
        assert_eq!(end, End::NoVersion, "{name}");
        assert_eq!(toy.log, ["connected", "gone"], "{name}");
    }
}

#[test]
fn a_message_of_an_impossible_size_ends_the_connection() {
    for size in [0, 15, 2 << 20, u32::MAX] {
        let ((), _, end) = serving(Toy::new(), |stream| {
            let mut raw = Raw::negotiated(stream);
            let header = Header { size, ..Header::command(7, Command::REGION_WRITE, 0) };
            raw.channel.stream().write_all(header.as_bytes()).unwrap();
            let (reply, ..) = raw.recv().unwrap();
            assert_eq!((reply.id, reply.error), (7, EMSGSIZE as u32));
            assert_eq!(raw.recv().unwrap_err(), ChannelError::Closed);
        });
        assert!(matches!(end, End::Broken(ChannelError::BadSize { .. })), "{end:?}");
    }
}

#[test]
fn a_command_that_wants_no_reply_gets_none_not_even_an_error() {
    let ((), toy) = talk(|raw| {
        let write = [access(0, 0, 4).as_bytes(), &[1, 2, 3, 4]].concat();
        let one = |offset, byte| wire::WriteOne { offset, region: 0, count: 1, data: [byte; 8] };
        let multi = [&2u64.to_le_bytes(), one(8, 8).as_bytes(), one(9, 9).as_bytes()].concat();
        raw.send(Command::REGION_WRITE, wire::FLAG_NO_REPLY, &write, &[]);
        raw.send(Command::REGION_WRITE_MULTI, wire::FLAG_NO_REPLY, &multi, &[]);
        raw.send(Command::REGION_WRITE, wire::FLAG_NO_REPLY, &[], &[]);
        raw.send(Command(999), wire::FLAG_NO_REPLY, &[], &[]);
        // `ask` checks that the next thing that comes is the reply to this.
        let (_, payload, _) = raw.ask(Command::REGION_READ, access(0, 0, 10).as_bytes(), &[]);
        assert_eq!(payload[16..], [1, 2, 3, 4, 0, 0, 0, 0, 8, 9]);
    });
    assert_eq!(toy.bar0[..4], [1, 2, 3, 4]);
}

#[test]
fn of_several_writes_none_is_done_when_one_is_not_acceptable() {
    let ((), toy) = talk(|raw| {
        let one = |offset, count| wire::WriteOne { offset, region: 0, count, data: [7; 8] };
        for bad in [one(0, 9), one(0, 0), one(BAR0, 1)] {
            let multi = [&2u64.to_le_bytes(), one(0, 1).as_bytes(), bad.as_bytes()].concat();
            assert_eq!(raw.errno(Command::REGION_WRITE_MULTI, &multi, &[]), EINVAL);
        }
    });
    assert_eq!(toy.bar0[0], 0);
}

#[test]
fn a_stray_reply_is_passed_over() {
    talk(|raw| {
        raw.send(Command::REGION_READ, wire::TYPE_REPLY, &[1, 2, 3], &[]);
        assert_eq!(raw.errno(Command::DEVICE_RESET, &[], &[]), 0);
        raw.send(Command::DEVICE_RESET, 5, &[], &[]);
        assert_eq!(raw.recv().unwrap().0.error, EINVAL as u32, "a type that does not exist");
    });
}

/// A stream of messages as QEMU might send them.
fn script() -> Vec<u8> {
    let mut stream = Vec::new();
    let mut add = |command, payload: &[u8]| {
        stream.extend_from_slice(Header::command(1, command, payload.len()).as_bytes());
        stream.extend_from_slice(payload);
    };
    let version = wire::Version { major: 0, minor: 1 };
    add(Command::VERSION, &version::encode(version, &Capabilities::default()));
    add(Command::DEVICE_GET_INFO, wire::DeviceInfo { argsz: 16, ..Default::default() }.as_bytes());
    add(Command::REGION_WRITE, &[access(0, 0, 4).as_bytes(), &[1, 2, 3, 4]].concat());
    add(Command::DEVICE_SET_IRQS, irq_set(0x21, 2, 0, 0).as_bytes());
    let map = wire::DmaMap { argsz: 32, flags: 3, offset: 0, address: 0x1000, size: 0x1000 };
    add(Command::DMA_MAP, map.as_bytes());
    stream
}

#[test]
fn a_client_may_vanish_at_any_byte() {
    let script = script();
    for cut in 0..=script.len() {
        let ((), toy, end) = serving(Toy::new(), |mut stream| {
            stream.write_all(&script[..cut]).unwrap();
            // The replies are never read.
        });
        assert_eq!(toy.log.last().unwrap(), "gone", "cut at {cut}");
        assert!(toy.maps.is_empty(), "cut at {cut}");
        let orderly = matches!(end, End::Closed | End::Broken(_));
        assert!(orderly, "cut at {cut}: {end:?}");
    }
}

#[test]
fn messages_may_come_in_single_bytes() {
    let script = script();
    let ((), toy, end) = serving(Toy::new(), |mut stream| {
        let mut replies = stream.try_clone().unwrap();
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            replies.read_to_end(&mut all).unwrap();
            all
        });
        for byte in &script {
            stream.write_all(&[*byte]).unwrap();
        }
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(!reader.join().unwrap().is_empty());
    });
    assert_eq!(end, End::Closed);
    assert_eq!(toy.bar0[..4], [1, 2, 3, 4]);
}

#[test]
fn a_client_that_reads_no_replies_holds_nothing_up_but_itself() {
    let (theirs, ours) = UnixStream::pair().unwrap();
    let shutdown = Shutdown::new().unwrap();
    std::thread::scope(|scope| {
        let server = scope
            .spawn(|| serve_connection(theirs, &mut Toy::new(), &Limits::default(), &shutdown));
        let mut raw = Raw::negotiated(ours);
        let access = access(0, 0, 0x2000);
        let header = Header::command(1, Command::REGION_READ, access.as_bytes().len());
        let message = [header.as_bytes(), access.as_bytes()].concat();
        // Until both directions are full: the server waits to send a reply and takes nothing.
        let mut stream = raw.channel.stream();
        stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut sent = 0;
        while let Ok(bytes) = stream.write(&message[sent % message.len()..]) {
            sent += bytes;
        }
        shutdown.trigger();
        assert_eq!(server.join().unwrap(), End::Stopped);
        raw.recv().expect("what was sent before can be read");
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..Default::default() })]

    #[test]
    fn arbitrary_bytes_never_hurt(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        fuzz_server_bytes(&bytes);
    }

    #[test]
    fn arbitrary_messages_never_hurt(
        messages in prop::collection::vec(
            (0u16..18, prop_oneof![Just(0u32), Just(16), any::<u32>()],
             prop::collection::vec(prop_oneof![Just(0u8), Just(2), Just(32), any::<u8>()], 0..64)),
            0..12,
        ),
    ) {
        let mut stream = script();
        for (command, flags, payload) in messages {
            let header = Header { flags, ..Header::command(3, Command(command), payload.len()) };
            stream.extend_from_slice(header.as_bytes());
            stream.extend_from_slice(&payload);
        }
        fuzz_server_bytes(&stream);
    }
}
