//! Holdfast's own client against its own server.

mod server_util;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use holdfast_nic::server::toy::{AREAS, BAR0, BAR2, CONFIG, FIRE, Toy, VECTORS};
use holdfast_nic::server::{End, Limits, Listener, ServerError, Shutdown};
use holdfast_vfio::device::{IRQ_INTX, IRQ_MSIX, REGION_CONFIG};
use holdfast_vfio::user::{ConnectOptions, UserDevice};
use holdfast_vfio::{Device, Error};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use server_util::serving;

fn with_device<T>(client: impl FnOnce(&UserDevice) -> T) -> (T, Toy) {
    let (outcome, toy, end) = serving(Toy::new(), |stream| {
        client(&UserDevice::from_stream(stream, "toy", ConnectOptions::default()).unwrap())
    });
    assert_eq!(end, End::Closed);
    assert!(toy.maps.is_empty() && toy.vectors.is_empty(), "everything was let go");
    (outcome, toy)
}

fn memfd(len: u64) -> OwnedFd {
    let file = tempfile::tempfile().unwrap();
    file.set_len(len).unwrap();
    file.into()
}

#[test]
fn the_client_learns_what_the_device_has() {
    with_device(|device| {
        let info = device.info();
        assert_eq!((info.regions, info.irqs, info.can_reset), (9, 5, true));
        let sizes: Vec<u64> = (0..9).map(|index| device.region(index).unwrap().size).collect();
        assert_eq!(sizes, [BAR0, 0, BAR2, 0, 0, 0, 16, CONFIG, 0]);
        assert_eq!(device.region(0).unwrap().mappable, []);
        assert_eq!(device.region(2).unwrap().mappable, AREAS);
        assert!(!device.region(6).unwrap().writable);
        let counts: Vec<u32> = (0..5).map(|index| device.irq(index).unwrap().count).collect();
        assert_eq!(counts, [1, 0, VECTORS, 0, 0]);
        assert!(device.region(9).is_err() && device.irq(5).is_err());
        assert_eq!(device.capabilities().max_msg_fds, 16);
        assert!(!device.capabilities().write_multiple, "it was not proposed");
    });
}

#[test]
fn registers_read_back_what_was_written() {
    with_device(|device| {
        device.write_u32(0, 0x1ffc, 0x1234_5678).unwrap();
        assert_eq!(device.read_u32(0, 0x1ffc).unwrap(), 0x1234_5678);
        let pattern: Vec<u8> = (0..BAR2).map(|at| (at % 251) as u8).collect();
        device.write_region(2, 0, &pattern).unwrap();
        let mut back = vec![0; pattern.len()];
        device.read_region(2, 0, &mut back).unwrap();
        assert!(back == pattern);
        device.read_region(0, 0, &mut []).unwrap();
        assert!(device.read_u32(0, BAR0 - 3).is_err());
        assert!(device.read_u32(0, u64::MAX).is_err());
        assert!(device.read_u32(1, 0).is_err());
    });
}

#[test]
fn a_refused_access_says_so_and_the_connection_goes_on() {
    with_device(|device| {
        let refused = device.write_region(6, 0, &[0]).unwrap_err();
        assert!(matches!(&refused, Error::UserRefused { errno: Errno::EPERM, .. }), "{refused}");
        assert_eq!(device.read_u32(6, 0).unwrap(), u32::MAX);
    });
}

#[test]
fn a_store_to_a_mapped_area_reaches_the_device() {
    let ((), toy) = with_device(|device| {
        let region = device.map_region(2, 0x4000, 0x1000).unwrap();
        region.write_u32(8, 0xcafe);
        assert_eq!(device.read_u32(2, 0x4008).unwrap(), 0xcafe);
        assert!(device.map_region(2, 0x1000, 0x1000).is_err(), "between the areas");
        assert!(device.map_region(2, 0x4000, 0x4000).is_err(), "over an area's end");
        assert!(device.map_region(0, 0, 0x1000).is_err(), "a trapped region");
    });
    let mut word = [0; 4];
    File::from(toy.bar2.try_clone().unwrap()).read_exact_at(&mut word, 0x4008).unwrap();
    assert_eq!(u32::from_le_bytes(word), 0xcafe);
}

#[test]
fn bus_addresses_come_from_the_bar_registers() {
    with_device(|device| {
        assert_eq!(device.bus_address(0).unwrap(), 0xfe00_0000);
        assert_eq!(device.bus_address(1).unwrap(), 0xc000, "an I/O BAR");
        assert_eq!(device.bus_address(2).unwrap(), 0x12_d000_0000, "a 64-bit BAR");
        assert!(device.bus_address(6).is_err());
        device.write_u32(REGION_CONFIG, 0x24, 0x4).unwrap();
        assert!(device.bus_address(5).is_err(), "half of a 64-bit BAR");
    });
}

#[test]
fn interrupts_arrive_at_their_own_eventfds() {
    with_device(|device| {
        let flags = EfdFlags::EFD_NONBLOCK;
        let fds: Vec<EventFd> =
            (0..VECTORS).map(|_| EventFd::from_value_and_flags(0, flags).unwrap()).collect();
        // More than one message's worth of descriptors, with a gap.
        let mut bound: Vec<_> = fds.iter().map(|fd| Some(fd.as_fd())).collect();
        bound[20] = None;
        device.enable_irqs(IRQ_MSIX, &bound).unwrap();

        for vector in [0, 15, 16, 20, VECTORS - 1, VECTORS] {
            device.write_u32(0, FIRE, vector).unwrap();
        }
        for (vector, fd) in fds.iter().enumerate() {
            let fired = [0, 15, 16, VECTORS as usize - 1].contains(&vector);
            assert_eq!(fd.read().ok(), fired.then_some(1), "vector {vector}");
        }

        assert!(device.enable_irqs(IRQ_MSIX, &[]).is_err());
        assert!(device.enable_irqs(IRQ_INTX, &bound).is_err(), "it has one vector");
        device.disable_irqs(IRQ_MSIX).unwrap();
        device.write_u32(0, FIRE, 0).unwrap();
        assert!(fds.iter().all(|fd| fd.read() == Err(Errno::EAGAIN)));
    });
}

#[test]
fn dma_mappings_come_and_go_and_unmap_counts_bytes() {
    with_device(|device| {
        let fd = memfd(0x10000);
        let map = |iova, len| device.dma_map(iova, len, true, true, fd.as_fd(), 0x1000);
        map(0x10000, 0x2000).unwrap();
        map(0x20000, 0x3000).unwrap();
        let twice = map(0x21000, 0x1000).unwrap_err();
        assert!(matches!(&twice, Error::UserRefused { errno: Errno::EEXIST, .. }), "{twice}");
        assert_eq!(device.dma_unmap(0x10000, 0x2000).unwrap(), 0x2000);
        assert_eq!(device.dma_unmap(0x10000, 0x2000).unwrap(), 0);
        map(0x50000, 0x1000).unwrap();
        // As QEMU takes down what a vIOMMU had above its interrupt window.
        assert_eq!(device.dma_unmap(0x50000, 0x5_0000u64.wrapping_neg()).unwrap(), 0x1000);
        assert!(device.dma_unmap(0x50000, 0x4_f000u64.wrapping_neg()).is_err(), "beyond 2^64");
        assert_eq!(device.dma_unmap_all().unwrap(), 0x3000);
        assert!(map(u64::MAX - 0xfff, 0x2000).is_err(), "it wraps");
        assert!(map(0x1000, 0).is_err(), "it is empty");
    });
}

#[test]
fn reset_reaches_the_device() {
    let ((), toy) = with_device(|device| {
        device.write_u32(0, 0, 7).unwrap();
        device.reset().unwrap();
        assert_eq!(device.read_u32(0, 0).unwrap(), 0);
    });
    assert_eq!(toy.log, ["connected", "reset", "gone"]);
}

#[test]
fn disconnect_returns_when_the_server_has_let_go() {
    serving(Toy::new(), |stream| {
        let device = UserDevice::from_stream(stream, "toy", ConnectOptions::default()).unwrap();
        device.disconnect(Duration::from_secs(20)).unwrap();
        let gone = device.reset().unwrap_err();
        assert!(matches!(&gone, Error::UserGone { .. }), "{gone}");
        assert!(gone.to_string().contains("toy"));
    });
}

#[test]
fn calls_from_several_threads_do_not_mix() {
    with_device(|device| {
        std::thread::scope(|scope| {
            for thread in 0..4u32 {
                scope.spawn(move || {
                    let offset = u64::from(thread) * 4;
                    for value in 0..200 {
                        device.write_u32(0, offset, value << 8 | thread).unwrap();
                        assert_eq!(device.read_u32(0, offset).unwrap(), value << 8 | thread);
                    }
                });
            }
        });
    });
}

#[test]
fn a_listener_serves_one_client_after_another_until_it_is_told_to_stop() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nic.sock");
    let listener = Listener::bind(&path).unwrap();
    let shutdown = Shutdown::new().unwrap();
    let mut ends = Vec::new();
    std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            let mut toy = Toy::new();
            let limits = Limits::default();
            listener.serve(&mut toy, &limits, &shutdown, |end| ends.push(end)).unwrap();
            toy
        });
        let first = UserDevice::connect(&path).unwrap();
        first.write_u32(0, 0, 5).unwrap();

        // A second client waits until the first is gone, and finds the device as it was left.
        let options = ConnectOptions { timeout: Duration::from_millis(50) };
        let busy = UserDevice::connect_with(&path, options).unwrap_err();
        assert!(busy.to_string().contains("nic.sock"), "{busy}");
        drop(first);
        let second = UserDevice::connect(&path).unwrap();
        assert_eq!(second.read_u32(0, 0).unwrap(), 5);

        shutdown.trigger();
        let toy = server.join().unwrap();
        assert!(second.read_u32(0, 0).is_err(), "the server is gone");
        assert!(toy.log.iter().filter(|line| *line == "gone").count() >= 2);
    });
    assert_eq!(ends.first(), Some(&End::Closed));
    assert_eq!(ends.last(), Some(&End::Stopped));
    assert!(shutdown.is_triggered());
    drop(listener);
    assert!(!path.exists());
}

#[test]
fn a_stale_socket_is_replaced_and_a_living_one_or_a_file_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nic.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let listener = Listener::bind(&path).unwrap();
    assert!(matches!(Listener::bind(&path), Err(ServerError::InUse { .. })));
    drop(listener);
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(Listener::bind(&path), Err(ServerError::NotASocket { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}
