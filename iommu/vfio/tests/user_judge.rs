//! An outside judge: our client against the `vfio_user` crate's server.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex};

use holdfast_vfio::user::UserDevice;
use holdfast_vfio::{Device, Error};
use nix::sys::eventfd::EventFd;
use vfio_bindings::bindings::vfio::{vfio_region_info, vfio_region_sparse_mmap_area};
use vfio_user::{DmaMapFlags, DmaUnmapFlags, IrqInfo, ServerBackend, ServerRegion, SparseArea};

const BAR: usize = 0x4000;

#[derive(Default)]
struct Backend {
    memory: Vec<u8>,
    log: Arc<Mutex<Vec<String>>>,
}

impl Backend {
    fn note(&self, what: String) {
        self.log.lock().unwrap().push(what);
    }
}

impl ServerBackend for Backend {
    fn region_read(&mut self, _: u32, offset: u64, data: &mut [u8]) -> Result<(), io::Error> {
        data.copy_from_slice(&self.memory[offset as usize..][..data.len()]);
        Ok(())
    }

    fn region_write(&mut self, _: u32, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.memory[offset as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }

    fn dma_map(
        &mut self,
        flags: DmaMapFlags,
        offset: u64,
        address: u64,
        size: u64,
        fd: Option<File>,
    ) -> Result<(), io::Error> {
        if address == 0xbad000 {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        let (bits, with_fd) = (flags.bits(), fd.is_some());
        self.note(format!("map {bits} {offset:#x} {address:#x} {size:#x} {with_fd}"));
        Ok(())
    }

    fn dma_unmap(&mut self, _: DmaUnmapFlags, at: u64, size: u64) -> Result<(), io::Error> {
        self.note(format!("unmap {at:#x} {size:#x}"));
        Ok(())
    }

    fn reset(&mut self) -> Result<(), io::Error> {
        self.note("reset".into());
        Ok(())
    }

    fn set_irqs(
        &mut self,
        index: u32,
        flags: u32,
        start: u32,
        count: u32,
        fds: Vec<File>,
    ) -> Result<(), io::Error> {
        self.note(format!("irqs {index} {flags:#x} {start} {count} {}", fds.len()));
        Ok(())
    }
}

fn regions(file: &File) -> Vec<ServerRegion> {
    (0..9)
        .map(|index| {
            let size = if index == 0 { BAR as u64 } else { 0 };
            let flags = if index == 0 { 7 } else { 0 };
            let region_info =
                vfio_region_info { argsz: 32, flags, index, size, ..Default::default() };
            let area = vfio_region_sparse_mmap_area { offset: 0x1000, size: 0x2000 };
            let sparse_areas = if index == 0 { vec![SparseArea { area }] } else { vec![] };
            let mmap_fd = (index == 0).then(|| file.as_raw_fd());
            ServerRegion { region_info, sparse_areas, mmap_fd }
        })
        .collect()
}

#[test]
fn our_client_can_drive_the_vfio_user_crates_server() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("judge.sock");
    let file = tempfile::tempfile().unwrap();
    file.set_len(BAR as u64).unwrap();
    let irqs = (0..5).map(|index| IrqInfo { index, flags: 1, count: index }).collect();
    let server = vfio_user::Server::new(&path, true, irqs, regions(&file)).unwrap();
    let log = Arc::new(Mutex::new(Vec::new()));
    let mut backend = Backend { memory: vec![0; BAR], log: log.clone() };

    std::thread::scope(|scope| {
        let running = scope.spawn(move || server.run(&mut backend));
        drive(&path);
        running.join().unwrap().unwrap();
    });
    assert_eq!(
        *log.lock().unwrap(),
        [
            "irqs 2 0x24 0 1 1",
            "irqs 2 0x24 1 1 0",
            "irqs 2 0x21 0 0 0",
            "map 3 0x1000 0x10000 0x2000 true",
            "unmap 0x10000 0x2000",
            "reset",
        ]
    );
}

fn drive(path: &std::path::Path) {
    let device = UserDevice::connect(path).unwrap();
    let info = device.info();
    assert_eq!((info.regions, info.irqs), (9, 5));
    let region = device.region(0).unwrap();
    assert_eq!((region.size, region.readable, region.writable), (BAR as u64, true, true));
    assert_eq!(region.mappable, [(0x1000, 0x2000)]);
    device.map_region(0, 0x1000, 0x2000).unwrap().write_u32(0, 7);
    assert!(device.map_region(0, 0, 0x1000).is_err());

    device.write_region(0, 5, &[1, 2, 3]).unwrap();
    let mut back = [0; 5];
    device.read_region(0, 4, &mut back).unwrap();
    assert_eq!(back, [0, 1, 2, 3, 0]);

    let event = EventFd::new().unwrap();
    device.enable_irqs(2, &[Some(event.as_fd()), None]).unwrap();
    device.disable_irqs(2).unwrap();

    let memory = tempfile::tempfile().unwrap();
    let map = |iova| device.dma_map(iova, 0x2000, true, true, memory.as_fd(), 0x1000);
    map(0x10000).unwrap();
    assert!(matches!(map(0xbad000), Err(Error::UserRefused { .. })));
    assert_eq!(device.dma_unmap(0x10000, 0x2000).unwrap(), 0x2000);
    device.reset().unwrap();
}
