//! An outside judge: the `vfio_user` crate's client against our server.

use std::os::fd::AsRawFd;

use holdfast_nic::server::toy::{AREAS, BAR0, BAR2, CONFIG, Toy, VECTORS};
use holdfast_nic::server::{Limits, Listener, Shutdown};
use nix::sys::eventfd::EventFd;
use vm_memory::FileOffset;

/// VFIO's flags of DEVICE_SET_IRQS.
const TRIGGER: u32 = 1 << 5;
const EVENTFD: u32 = 1 << 2;
const NONE: u32 = 1;

#[test]
fn the_vfio_user_crate_can_drive_our_server() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nic.sock");
    let listener = Listener::bind(&path).unwrap();
    let shutdown = Shutdown::new().unwrap();
    let toy = std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            let mut toy = Toy::new();
            listener.serve(&mut toy, &Limits::default(), &shutdown, |_| ()).unwrap();
            toy
        });
        // Ends the server also when an assertion below fails.
        let stop = StopOnDrop(&shutdown);
        drive(&path);
        drop(stop);
        server.join().unwrap()
    });
    assert!(toy.log.contains(&"reset".to_owned()));
    assert!(toy.maps.is_empty());
}

struct StopOnDrop<'a>(&'a Shutdown);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.trigger();
    }
}

fn drive(path: &std::path::Path) {
    let mut client = vfio_user::Client::new(path).unwrap();

    let sizes: Vec<u64> = (0..9).map(|index| client.region(index).unwrap().size).collect();
    assert_eq!(sizes, [BAR0, 0, BAR2, 0, 0, 0, 16, CONFIG, 0]);
    let bar2 = client.region(2).unwrap();
    let areas: Vec<(u64, u64)> =
        bar2.sparse_areas.iter().map(|area| (area.offset, area.size)).collect();
    assert_eq!(areas, AREAS);
    assert!(bar2.file_offset.as_ref().map(FileOffset::start) == Some(0));

    client.region_write(0, 8, &[1, 2, 3, 4]).unwrap();
    let mut back = [0; 6];
    client.region_read(0, 7, &mut back).unwrap();
    assert_eq!(back, [0, 1, 2, 3, 4, 0]);

    let msix = client.get_irq_info(2).unwrap();
    assert_eq!((msix.index, msix.count, msix.flags & 1), (2, VECTORS, 1));
    let event = EventFd::new().unwrap();
    client.set_irqs(2, EVENTFD | TRIGGER, 3, 1, &[event.as_raw_fd()]).unwrap();
    client.set_irqs(2, NONE | TRIGGER, 3, 1, &[]).unwrap();
    assert_eq!(event.read().unwrap(), 1, "vector 3 fired");
    client.set_irqs(2, NONE | TRIGGER, 0, 0, &[]).unwrap();

    let file = tempfile::tempfile().unwrap();
    file.set_len(0x2000).unwrap();
    client.dma_map(0, 0x10000, 0x2000, file.as_raw_fd()).unwrap();
    client.dma_unmap(0x10000, 0x2000).unwrap();
    client.reset().unwrap();
    client.region_read(0, 8, &mut back).unwrap();
    assert_eq!(back, [0; 6], "reset, and still in step");
    client.shutdown().unwrap();
}
