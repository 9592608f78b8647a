//! What a guest may ask of the machine below it: to have a NIC pulled, in the two ways in which
//! that happens, and to tell what the NICs count.
//!
//! Each is a virtio serial port that QEMU joins to a socket:
//!
//! | port | speaks with | to |
//! |---|---|---|
//! | `lab.nic` | the control socket of `holdfast nic` | `unplug N`: pulled without a word; `state` |
//! | `lab.monitor` | QEMU's own monitor | `device_del nicN`: the guest's kernel is asked first |

use std::path::Path;

use serde_json::json;

/// A port joined to the control socket of the NICs. They drop a silent client after a minute;
/// QEMU then connects again.
pub fn control(socket: &Path) -> Vec<String> {
    let path = escaped(socket);
    let chardev = format!("socket,id=nic-control,path={path},reconnect-ms=500");
    port(&chardev, "nic-control", "lab.nic")
}

/// A port joined to QEMU's monitor, by a socket of which QEMU holds both ends.
pub fn monitor(folder: &Path) -> Vec<String> {
    let path = escaped(&folder.join("monitor.sock"));
    let server = format!("socket,id=monitor,path={path},server=on,wait=off");
    let mut arguments = words(["-chardev", &server, "-mon", "chardev=monitor,mode=readline"]);
    let client = format!("socket,id=monitor-port,path={path}");
    arguments.extend(port(&client, "monitor-port", "lab.monitor"));
    arguments
}

/// A NIC in a PCI Express port of its own; number n has the id `nicN`.
pub fn pluggable(socket: &Path, number: usize, slot: usize) -> Vec<String> {
    let port =
        format!("pcie-root-port,id=port{number},chassis={slot},slot={slot},addr={slot:#x}.0");
    let nic = json!({
        "driver": "vfio-user-pci",
        "id": format!("nic{number}"),
        "bus": format!("port{number}"),
        "socket": { "type": "unix", "path": socket },
        "x-no-posted-writes": true,
    });
    words(["-device", &port, "-device", &nic.to_string()])
}

fn port(chardev: &str, id: &str, name: &str) -> Vec<String> {
    let device = format!("virtserialport,chardev={id},name={name}");
    words(["-chardev", chardev, "-device", &device])
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}
