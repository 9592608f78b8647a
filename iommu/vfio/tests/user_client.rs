//! The client against servers that die, stall, or answer nonsense.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use holdfast_vfio::user::wire::{self, Header};
use holdfast_vfio::user::{
    Capabilities, Channel, ChannelError, Command, ConnectOptions, UserDevice, Wait,
    fuzz_client_replies, version,
};
use holdfast_vfio::{Device, Error};
use nix::errno::Errno;
use proptest::prelude::*;
use zerocopy::IntoBytes;

/// A server by hand: answers the questions of connecting, then does as the test says.
struct Hand {
    channel: Channel,
    payload: Vec<u8>,
}

impl Hand {
    fn next(&mut self) -> Header {
        self.channel.recv(&mut self.payload, 1 << 20, 8, Wait::default()).unwrap().header
    }

    fn reply(&self, to: &Header, payload: &[u8]) {
        self.channel.send(&to.reply(payload.len()), &[payload], &[], Wait::default()).unwrap();
    }

    /// One region of 4 KiB, no interrupts.
    fn connect(&mut self) {
        let header = self.next();
        assert_eq!(header.kind(), Command::VERSION);
        let version = version::encode(wire::Version::default(), &Capabilities::default());
        self.reply(&header, &version);
        let header = self.next();
        let info = wire::DeviceInfo { argsz: 16, flags: 2, regions: 1, irqs: 0 };
        self.reply(&header, info.as_bytes());
        let header = self.next();
        let region = wire::RegionInfo { argsz: 32, flags: 3, size: 4096, ..Default::default() };
        self.reply(&header, region.as_bytes());
    }
}

fn with_server<T>(
    timeout: Duration,
    server: impl FnOnce(Hand) + Send,
    client: impl FnOnce(&UserDevice) -> T,
) -> T {
    let (ours, theirs) = UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut hand = Hand { channel: Channel::new(theirs), payload: Vec::new() };
            hand.connect();
            server(hand);
        });
        let options = ConnectOptions { timeout };
        client(&UserDevice::from_stream(ours, "/run/toy.sock", options).unwrap())
    })
}

const LONG: Duration = Duration::from_secs(20);

#[test]
fn a_server_that_dies_is_named_and_later_calls_fail_at_once() {
    with_server(
        LONG,
        |mut hand| {
            hand.next();
        },
        |device| {
            let lost = device.reset().unwrap_err();
            assert!(matches!(&lost, Error::UserLost { command: Command::DEVICE_RESET, .. }));
            let text = lost.to_string();
            assert!(text.contains("/run/toy.sock") && text.contains("DEVICE_RESET"), "{text}");
            assert!(matches!(device.reset(), Err(Error::UserGone { .. })));
        },
    );
}

#[test]
fn a_server_that_dies_inside_a_reply_is_noticed() {
    with_server(
        LONG,
        |mut hand| {
            let header = hand.next();
            let reply = header.reply(16);
            hand.channel.stream().write_all(&reply.as_bytes()[..9]).unwrap();
        },
        |device| {
            let lost = device.reset().unwrap_err();
            let Error::UserLost { source, .. } = lost else { panic!("{lost}") };
            assert_eq!(source, ChannelError::Truncated { got: 9, want: 16 });
        },
    );
}

#[test]
fn a_silent_server_runs_into_the_deadline_and_disconnect_still_fences() {
    with_server(
        Duration::from_millis(30),
        |mut hand| {
            hand.next();
            // The client gave up and closed its direction; a late answer does no harm.
            let end = hand.channel.recv(&mut hand.payload, 64, 0, Wait::default()).unwrap_err();
            assert_eq!(end, ChannelError::Closed);
            let _ = hand.channel.stream().write_all(&[0; 100]);
        },
        |device| {
            let start = Instant::now();
            let late = device.dma_unmap(0, 4096).unwrap_err();
            assert!(start.elapsed() >= Duration::from_millis(30));
            let Error::UserLost { source, .. } = late else { panic!("{late}") };
            assert_eq!(source, ChannelError::TimedOut);
            device.disconnect(LONG).unwrap();
        },
    );
}

#[test]
fn disconnect_says_when_the_server_does_not_let_go() {
    let (done, wait_for_it) = std::sync::mpsc::channel::<()>();
    with_server(
        LONG,
        move |hand| {
            let _ = wait_for_it.recv();
            drop(hand);
        },
        move |device| {
            let kept = device.disconnect(Duration::from_millis(20)).unwrap_err();
            assert!(matches!(&kept, Error::UserDisconnect { .. }), "{kept}");
            drop(done);
        },
    );
}

#[test]
fn an_error_reply_carries_its_errno_and_the_connection_goes_on() {
    with_server(
        LONG,
        |mut hand| {
            for errno in [libc::EEXIST, 0] {
                let header = hand.next();
                let reply = header.failure(errno);
                hand.channel.send(&reply, &[], &[], Wait::default()).unwrap();
            }
            let header = hand.next();
            hand.reply(&header, &[]);
        },
        |device| {
            for expected in [Errno::EEXIST, Errno::UnknownErrno] {
                let refused = device.reset().unwrap_err();
                let Error::UserRefused { errno, .. } = refused else { panic!("{refused}") };
                assert_eq!(errno, expected);
            }
            device.reset().unwrap();
        },
    );
}

#[test]
fn a_question_from_the_server_is_declined_and_the_reply_still_found() {
    with_server(
        LONG,
        |mut hand| {
            let header = hand.next();
            let ask = wire::DmaAccess { address: 0x1000, count: 64 };
            let question = Header::command(9, Command::DMA_READ, 16);
            hand.channel.send(&question, &[ask.as_bytes()], &[], Wait::default()).unwrap();
            let answer = hand.next();
            assert!(answer.is_reply() && answer.is_failure());
            assert_eq!((answer.id, answer.error), (9, libc::ENOTSUP as u32));
            hand.reply(&header, &[]);
        },
        |device| device.reset().unwrap(),
    );
}

#[test]
fn replies_that_do_not_fit_the_question_are_refused() {
    type Answer = fn(&Header) -> (Header, Vec<u8>);
    let cases: [(&str, Answer); 6] = [
        ("another id", |ask| (Header { id: ask.id ^ 1, ..ask.reply(0) }, vec![])),
        ("another command", |ask| (Header { command: 1, ..ask.reply(0) }, vec![])),
        ("no such type", |ask| (Header { flags: 3, ..ask.reply(0) }, vec![])),
        ("too little", |ask| (ask.reply(8), vec![0; 8])),
        ("other data", |ask| {
            let access = wire::RegionAccess { offset: 4, region: 0, count: 4 };
            (ask.reply(20), [access.as_bytes(), &[0; 4]].concat())
        }),
        ("less data", |ask| {
            let access = wire::RegionAccess { offset: 0, region: 0, count: 4 };
            (ask.reply(18), [access.as_bytes(), &[0; 2]].concat())
        }),
    ];
    for (name, answer) in cases {
        with_server(
            LONG,
            move |mut hand| {
                let (header, payload) = answer(&hand.next());
                hand.channel.send(&header, &[&payload], &[], Wait::default()).unwrap();
            },
            |device| {
                let wrong = device.read_u32(0, 0).unwrap_err();
                assert!(matches!(wrong, Error::UserProtocol { .. }), "{name}: {wrong}");
                assert!(matches!(device.reset(), Err(Error::UserGone { .. })), "{name}");
            },
        );
    }
}

#[test]
fn a_reply_too_large_to_be_one_is_not_read() {
    with_server(
        LONG,
        |mut hand| {
            let header = Header { size: u32::MAX, ..hand.next().reply(0) };
            hand.channel.stream().write_all(header.as_bytes()).unwrap();
        },
        |device| {
            let lost = device.read_u32(0, 0).unwrap_err();
            let Error::UserLost { source: ChannelError::BadSize { .. }, .. } = lost else {
                panic!("{lost}")
            };
        },
    );
}

#[test]
fn nobody_listening_is_said_with_the_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("none.sock");
    let error = UserDevice::connect(&path).unwrap_err();
    assert!(matches!(&error, Error::UserConnect { errno: Errno::ENOENT, .. }));
    assert!(error.to_string().contains("none.sock"));
}

#[test]
fn descriptors_of_a_long_vector_list_travel_in_pieces_the_server_takes() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            let mut hand = Hand { channel: Channel::new(theirs), payload: Vec::new() };
            let header = hand.next();
            let told = Capabilities { max_msg_fds: 3, ..Default::default() };
            hand.reply(&header, &version::encode(wire::Version::default(), &told));
            let header = hand.next();
            let info = wire::DeviceInfo { argsz: 16, flags: 2, regions: 0, irqs: 1 };
            hand.reply(&header, info.as_bytes());
            let header = hand.next();
            let irq = wire::IrqInfo { argsz: 16, flags: 1, index: 0, count: 8 };
            hand.reply(&header, irq.as_bytes());
            let mut pieces = Vec::new();
            for _ in 0..4 {
                let got = hand.channel.recv(&mut hand.payload, 64, 8, Wait::default()).unwrap();
                let (start, count) = (hand.payload[12], hand.payload[16]);
                pieces.push((start, count, got.fds.len()));
                hand.reply(&got.header, &[]);
            }
            pieces
        });
        let device =
            UserDevice::from_stream(ours, "toy", ConnectOptions { timeout: LONG }).unwrap();
        let event = nix::sys::eventfd::EventFd::new().unwrap();
        let some = Some(event.as_fd());
        device.enable_irqs(0, &[some, some, some, some, None, None, some]).unwrap();
        assert_eq!(server.join().unwrap(), [(0, 3, 3), (3, 1, 1), (4, 2, 0), (6, 1, 1)]);
    });
}

/// Replies to the questions of connecting, as a well-behaved server would send them.
fn good_replies() -> Vec<u8> {
    let mut stream = Vec::new();
    let mut add = |id, command, payload: &[u8]| {
        let header = Header::command(id, command, 0).reply(payload.len());
        stream.extend_from_slice(header.as_bytes());
        stream.extend_from_slice(payload);
    };
    let version = version::encode(wire::Version::default(), &Capabilities::default());
    add(0, Command::VERSION, &version);
    let info = wire::DeviceInfo { argsz: 16, flags: 2, regions: 1, irqs: 1 };
    add(1, Command::DEVICE_GET_INFO, info.as_bytes());
    let region = wire::RegionInfo { argsz: 32, flags: 3, size: 4096, ..Default::default() };
    add(2, Command::DEVICE_GET_REGION_INFO, region.as_bytes());
    let irq = wire::IrqInfo { argsz: 16, flags: 1, index: 0, count: 1 };
    add(3, Command::DEVICE_GET_IRQ_INFO, irq.as_bytes());
    stream
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..Default::default() })]

    #[test]
    fn arbitrary_replies_never_hurt(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        fuzz_client_replies(&bytes);
    }

    #[test]
    fn damaged_replies_never_hurt(
        cut in 0usize..300,
        damage in prop::collection::vec((0usize..300, any::<u8>()), 0..4),
        more in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let mut bytes = good_replies();
        for (at, value) in damage {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        bytes.truncate(cut);
        bytes.extend_from_slice(&more);
        fuzz_client_replies(&bytes);
    }
}
