//! No descriptor is left behind, whatever clients do. Alone in its binary, because it counts this
//! process' descriptors.

mod server_util;

use std::os::fd::{AsFd, BorrowedFd};

use holdfast_nic::server::toy::Toy;
use holdfast_vfio::Device;
use holdfast_vfio::device::IRQ_MSIX;
use holdfast_vfio::user::wire::{self, Header};
use holdfast_vfio::user::{Command, ConnectOptions, UserDevice};
use nix::sys::eventfd::EventFd;
use server_util::{Raw, serving};
use zerocopy::IntoBytes;

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn orderly_client() {
    serving(Toy::new(), |stream| {
        let device = UserDevice::from_stream(stream, "toy", ConnectOptions::default()).unwrap();
        let event = EventFd::new().unwrap();
        device.enable_irqs(IRQ_MSIX, &[Some(event.as_fd()); 20]).unwrap();
        device.dma_map(0, 0x1000, true, true, event.as_fd(), 0).unwrap();
        device.map_region(2, 0, 0x1000).unwrap();
    });
}

fn client_that_sends_descriptors_where_none_belong() {
    serving(Toy::new(), |stream| {
        let mut raw = Raw::negotiated(stream);
        let event = EventFd::new().unwrap();
        let fds = [event.as_fd(); 200];
        raw.errno(Command::DEVICE_RESET, &[], &fds);
        raw.errno(Command::DMA_MAP, &[0; 32], &fds[..1]);
        raw.errno(Command::DEVICE_SET_IRQS, &[0xff; 20], &fds[..16]);
        // Descriptors with every piece of one message.
        let header = Header::command(1, Command::REGION_WRITE, 64);
        let bytes = [header.as_bytes(), &[0; 64]].concat();
        for piece in bytes.chunks(4) {
            send(&raw, piece, &fds[..20]);
        }
        assert_ne!(raw.recv().unwrap().0.error, 0);
        // And with a message that is never completed.
        send(&raw, &header.as_bytes()[..7], &fds[..10]);
    });
}

fn client_whose_region_reply_is_never_read() {
    serving(Toy::new(), |stream| {
        let mut raw = Raw::negotiated(stream);
        let ask = wire::RegionInfo { argsz: 32, index: 2, ..Default::default() };
        raw.send(Command::DEVICE_GET_REGION_INFO, 0, ask.as_bytes(), &[]);
    });
}

fn send(raw: &Raw, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    use std::os::fd::AsRawFd;
    let numbers: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let part = [std::io::IoSlice::new(bytes)];
    let control = [ControlMessage::ScmRights(&numbers)];
    let socket = raw.channel.stream().as_raw_fd();
    let sent = sendmsg::<()>(socket, &part, &control, MsgFlags::empty(), None).unwrap();
    assert_eq!(sent, bytes.len());
}

#[test]
fn no_descriptor_is_left_behind() {
    for (name, client) in [
        ("orderly", orderly_client as fn()),
        ("stray descriptors", client_that_sends_descriptors_where_none_belong),
        ("unread reply", client_whose_region_reply_is_never_read),
    ] {
        client();
        let before = open_descriptors();
        for _ in 0..5 {
            client();
        }
        assert_eq!(open_descriptors(), before, "{name}");
    }
}
