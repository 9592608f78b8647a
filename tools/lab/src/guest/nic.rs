//! RDMA NICs and DMA engines for a guest.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;
use serde_json::json;

use super::QemuVersion;
use super::pvrdma::{self, Pvrdma};
use crate::process::{self, Guarded, Terminal};

/// A device on the guest's PCI bus, behind its IOMMU.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Nic {
    /// Our emulated NIC, in a process of its own, behind `vfio-user-pci`.
    Holdfast { vmxnet3: bool },
    /// A vfio-user device that someone else serves on a socket.
    Socket { path: PathBuf, vmxnet3: bool },
    /// The PVRDMA device that QEMU 7.2 has itself, at function 1 beside its vmxnet3.
    QemuPvrdma,
    /// QEMU's `edu` DMA engine.
    Edu,
    /// QEMU's `iommu-testdev` DMA engine (QEMU 11.1).
    IommuTestdev,
}

/// How people write them.
pub const SYNTAX: &str = "holdfast | socket=PATH | qemu-pvrdma | edu | iommu-testdev; the first \
                          two with +vmxnet3 to sit beside the Ethernet NIC that Linux's driver \
                          wants";

impl Nic {
    /// The one QEMU that has it, if not both do.
    pub fn needs(&self) -> Option<QemuVersion> {
        match self {
            Nic::Holdfast { .. } | Nic::Socket { .. } | Nic::IommuTestdev => {
                Some(QemuVersion::V11_1)
            }
            Nic::QemuPvrdma => Some(QemuVersion::V7_2),
            Nic::Edu => None,
        }
    }
}

/// The QEMU for all of these NICs: the one `asked` for, or the newest that has them.
pub fn qemu_for(nics: &[Nic], asked: Option<QemuVersion>) -> Result<QemuVersion> {
    let mut needed: Vec<QemuVersion> = nics.iter().filter_map(Nic::needs).chain(asked).collect();
    needed.sort();
    needed.dedup();
    match needed[..] {
        [] => Ok(QemuVersion::V11_1),
        [one] => Ok(one),
        _ => Err(anyhow!(
            "no QEMU is both: qemu-pvrdma is in 7.2 alone, and 11.1 alone has vfio-user-pci (for \
             holdfast and socket=) and iommu-testdev"
        )),
    }
}

impl FromStr for Nic {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, vmxnet3) = match text.strip_suffix("+vmxnet3") {
            Some(name) => (name, true),
            None => (text, false),
        };
        match name.split_once('=') {
            Some(("socket", path)) if !path.is_empty() => {
                Ok(Nic::Socket { path: path.into(), vmxnet3 })
            }
            None if name == "holdfast" => Ok(Nic::Holdfast { vmxnet3 }),
            None if name == "qemu-pvrdma" && !vmxnet3 => Ok(Nic::QemuPvrdma),
            None if name == "edu" && !vmxnet3 => Ok(Nic::Edu),
            None if name == "iommu-testdev" && !vmxnet3 => Ok(Nic::IommuTestdev),
            _ => Err(anyhow!("no such NIC: {text:?}; write {SYNTAX}")),
        }
    }
}

impl TryFrom<String> for Nic {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

/// First PCI slot for NICs on the guest's root bus.
const FIRST_SLOT: usize = 0x10;

/// The devices of a guest, and what serves them.
#[derive(Default)]
pub struct Attached {
    /// `holdfast nic`, if one of the devices needs it.
    pub server: Option<Guarded>,
    /// QEMU's arguments.
    pub arguments: Vec<String>,
    /// QEMU's environment.
    pub environment: Vec<(&'static str, String)>,
    /// Libraries to load into QEMU before its own.
    pub preload: Vec<PathBuf>,
}

/// Whether it is of no account that QEMU ended so: with two pvrdma devices it always crashes when
/// it ends.
pub fn may_end_so(nics: &[Nic], status: ExitStatus) -> bool {
    let pvrdma = nics.iter().filter(|nic| **nic == Nic::QemuPvrdma).count();
    pvrdma::may_end_so(pvrdma, status)
}

/// Starts what serves the devices, and says how QEMU attaches them. Number n sits in slot
/// 0x10 + n: at function 0, or at function 1 beside its vmxnet3. All emulated NICs of a guest are
/// served by one process, which joins them; so are QEMU's own.
pub fn attach(
    nics: &[Nic],
    holdfast: &Path,
    options: &[String],
    folder: &Path,
) -> Result<Attached> {
    let mut arguments = Vec::new();
    let mut sockets = Vec::new();
    let mut pvrdma = Pvrdma::default();
    for (index, nic) in nics.iter().enumerate() {
        let slot = FIRST_SLOT + index;
        match nic {
            Nic::Holdfast { vmxnet3 } => {
                let socket = folder.join(format!("nic{index}.sock"));
                arguments.extend(vfio_user(&socket, slot, *vmxnet3));
                sockets.push(socket);
            }
            Nic::Socket { path, vmxnet3 } => {
                let path = path.canonicalize().with_context(|| format!("no socket {path:?}"))?;
                arguments.extend(vfio_user(&path, slot, *vmxnet3));
            }
            Nic::QemuPvrdma => {
                arguments.extend(vmxnet3(slot));
                arguments.extend(pvrdma.add(slot));
            }
            Nic::Edu => {
                arguments.extend(device(format!("edu,addr={slot:#x}.0,dma_mask=0xffffffff")))
            }
            Nic::IommuTestdev => {
                arguments.extend(device(format!("iommu-testdev,addr={slot:#x}.0")))
            }
        }
    }
    // The guest reaches the control socket, unless the options name another.
    let control = folder.join("control.sock");
    let mut options = options.to_vec();
    if !sockets.is_empty() && !options.iter().any(|option| option.starts_with("--control")) {
        options.extend(["--control".to_owned(), control.display().to_string()]);
        arguments.extend(control_port(&control));
    }
    let log = folder.join("nic.log");
    let server =
        if sockets.is_empty() { None } else { Some(serve(holdfast, &sockets, &options, &log)?) };
    arguments.extend(pvrdma.arguments());
    let environment = pvrdma.environment();
    Ok(Attached { server, arguments, environment, preload: pvrdma.preload()? })
}

fn device(text: String) -> Vec<String> {
    vec!["-device".to_owned(), text]
}

/// The Ethernet NIC at function 0 of a slot; its MAC address ends in the slot's number.
fn vmxnet3(slot: usize) -> Vec<String> {
    // All of a guest's Ethernet NICs share one hub. None is booted from, so none needs a ROM.
    let mut arguments = vec!["-netdev".to_owned(), format!("hubport,id=net{slot},hubid=0")];
    arguments.extend(device(format!(
        "vmxnet3,netdev=net{slot},mac=52:54:00:00:00:{slot:02x},romfile=,addr={slot:#x}.0,\
         multifunction=on"
    )));
    arguments
}

/// How long QEMU waits for the NIC's answer to a message, in milliseconds: longer than any guest
/// runs into its limit.
const ANSWER_MS: u32 = 3_600_000;

fn vfio_user(socket: &Path, slot: usize, beside_vmxnet3: bool) -> Vec<String> {
    let mut arguments = if beside_vmxnet3 { vmxnet3(slot) } else { Vec::new() };
    let function = u8::from(beside_vmxnet3);
    let description = json!({
        "driver": "vfio-user-pci",
        "socket": { "type": "unix", "path": socket },
        "addr": format!("{slot:x}.{function}"),
        // Linux's driver looks at what the device answered right after a register write.
        "x-no-posted-writes": true,
        // After 5 s, by default, QEMU takes an unmap that has not been answered for one that has
        // failed, and lets the guest go on: the NIC may reach what the guest took from it.
        "x-msg-timeout": ANSWER_MS,
    });
    arguments.extend(device(description.to_string()));
    arguments
}

/// A virtio serial port, `lab.nic`, that is joined to the control socket of `holdfast nic`. A silent
/// client is dropped there after a minute; QEMU then connects again.
fn control_port(socket: &Path) -> Vec<String> {
    let path = socket.display().to_string().replace(',', ",,");
    let chardev = format!("socket,id=nic-control,path={path},reconnect-ms=500");
    let mut arguments = vec!["-chardev".to_owned(), chardev];
    arguments.extend(device("virtserialport,chardev=nic-control,name=lab.nic".to_owned()));
    arguments
}

/// Starts `holdfast nic` and waits until it listens.
fn serve(holdfast: &Path, sockets: &[PathBuf], options: &[String], log: &Path) -> Result<Guarded> {
    if !holdfast.is_file() {
        bail!(
            "no emulated NIC: {holdfast:?} is not there; cargo build --release, or --holdfast PATH"
        );
    }
    let file = File::create(log)?;
    let mut command = Command::new(holdfast);
    command.arg("nic").args(options);
    for socket in sockets {
        command.arg("--socket").arg(socket);
    }
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let mut server = Guarded::spawn(&mut command, Terminal::Own)?;
    let start = Instant::now();
    while !sockets.iter().all(|socket| socket.exists()) {
        if let Some(status) = server.ended()? {
            bail!("the emulated NIC ended with {status}:\n{}", process::tail(log, 20));
        }
        if process::interrupted() || start.elapsed() > Duration::from_secs(20) {
            bail!("the emulated NIC does not listen on {sockets:?}:\n{}", process::tail(log, 20));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(server)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nics_are_read_as_people_write_them() {
        let socket = |vmxnet3| Nic::Socket { path: "/run/x.sock".into(), vmxnet3 };
        for (text, nic) in [
            ("holdfast", Some(Nic::Holdfast { vmxnet3: false })),
            ("holdfast+vmxnet3", Some(Nic::Holdfast { vmxnet3: true })),
            ("socket=/run/x.sock", Some(socket(false))),
            ("socket=/run/x.sock+vmxnet3", Some(socket(true))),
            ("edu", Some(Nic::Edu)),
            ("qemu-pvrdma", Some(Nic::QemuPvrdma)),
            ("qemu-pvrdma+vmxnet3", None),
            ("edu+vmxnet3", None),
            ("socket=", None),
            ("mlx5", None),
        ] {
            assert_eq!(text.parse::<Nic>().ok(), nic, "{text}");
        }
    }
    #[test]
    fn a_nic_brings_the_qemu_that_has_it() {
        use QemuVersion::{V7_2, V11_1};
        let (holdfast, pvrdma) = (Nic::Holdfast { vmxnet3: false }, Nic::QemuPvrdma);
        for (nics, asked, qemu) in [
            (&[][..], None, Some(V11_1)),
            (&[][..], Some(V7_2), Some(V7_2)),
            (&[pvrdma.clone(), Nic::Edu], None, Some(V7_2)),
            (std::slice::from_ref(&pvrdma), Some(V11_1), None),
            (std::slice::from_ref(&holdfast), Some(V7_2), None),
            (&[holdfast.clone(), pvrdma.clone()], None, None),
        ] {
            assert_eq!(qemu_for(nics, asked).ok(), qemu, "{nics:?} {asked:?}");
        }
    }
}
