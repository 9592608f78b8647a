//! Entry point for fuzzing what the client reads.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::{ConnectOptions, UserDevice};
use crate::Device;

/// Lets a client connect to, and use, a server that answers with `replies` and then closes its
/// end. Whatever they are, the client's calls return.
#[doc(hidden)]
pub fn fuzz_client_replies(replies: &[u8]) {
    let Ok((client, server)) = UnixStream::pair() else { return };
    let Ok(requests) = server.try_clone() else { return };
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut server = server;
            // Fails when the client has hung up, as it may.
            let _ = server.write_all(replies);
            let _ = server.shutdown(Shutdown::Write);
        });
        scope.spawn(move || {
            let mut requests = requests;
            let _ = requests.read_to_end(&mut Vec::new());
        });
        let options = ConnectOptions { timeout: Duration::from_secs(5) };
        if let Ok(device) = UserDevice::from_stream(client, "fuzz", options) {
            use_everything(&device);
        }
    });
}

fn use_everything(device: &UserDevice) {
    let info = device.info();
    for index in 0..info.regions {
        let Ok(region) = device.region(index) else { continue };
        let mut buf = [0; 8];
        let _ = device.read_region(index, 0, &mut buf);
        let _ = device.write_region(index, region.size.saturating_sub(4), &buf[..4]);
        for (offset, len) in region.mappable {
            let _ = device.map_region(index, offset, len);
        }
    }
    for index in 0..info.irqs {
        let _ = device.enable_irqs(index, &[None]);
        let _ = device.disable_irqs(index);
    }
    for index in 0..6 {
        let _ = device.bus_address(index);
    }
    let _ = device.dma_unmap(0, 4096);
    let _ = device.dma_unmap_all();
    let _ = device.reset();
}
