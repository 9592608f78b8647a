//! Why a function must not be taken from its driver now.
//!
//! The kernel unbinds whatever it is told to: a disk with a mounted file system, the network
//! interface that carries the login. So each kind of use is looked for first. What is not seen:
//! use by kernel code that leaves no trace in these files (NFS over RDMA, a display's console), and
//! whatever begins after the look.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;

use super::{Function, Tree};
use crate::Result;

/// Interface flag of `linux/if.h`.
const IFF_UP: u32 = 1;
/// Scope of a link-local address in `/proc/net/if_inet6`.
const LINK_LOCAL: &str = "20";

/// One reason why a function must not be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// A network interface is up and has an address or a route, or belongs to a bond or bridge.
    Network {
        /// The interface.
        interface: String,
        /// In what way it is used.
        how: &'static str,
    },
    /// A disk or partition is mounted, is swap, or is held by another device or program.
    Block {
        /// The disk or partition.
        device: String,
        /// In what way it is used.
        how: String,
    },
    /// A program has the function's VFIO group open.
    VfioGroup {
        /// The group.
        group: u32,
        /// The program, as far as it can be seen.
        holder: Option<String>,
    },
    /// A program uses the RDMA device.
    Rdma {
        /// The kernel's device node.
        device: String,
        /// The program.
        holder: String,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network { interface, how } => {
                write!(f, "network interface {interface} {how} (`ip link set {interface} down`)")
            }
            Self::Block { device, how } => write!(f, "block device {device} {how}"),
            Self::VfioGroup { group, holder: Some(holder) } => {
                write!(f, "{holder} has VFIO group {group} open")
            }
            Self::VfioGroup { group, holder: None } => {
                write!(f, "another process has VFIO group {group} open")
            }
            Self::Rdma { device, holder } => write!(f, "{holder} uses RDMA device {device}"),
        }
    }
}

/// All reasons found; none means that nothing known speaks against taking the function.
/// Reads other processes' descriptors where permissions allow, so root sees more.
pub fn in_use(tree: &Tree, function: &Function) -> Result<Vec<Reason>> {
    let mut reasons = Vec::new();
    for interface in &function.interfaces {
        if let Some(how) = network_use(tree, function, interface) {
            reasons.push(Reason::Network { interface: interface.clone(), how });
        }
    }
    block_uses(tree, function, &mut reasons)?;
    if function.driver.as_deref().is_some_and(|driver| driver.starts_with("vfio"))
        && let Some(group) = function.iommu_group
    {
        let holders = holders(tree, &format!("/dev/vfio/{group}"))?;
        let busy = is_busy(tree, &format!("dev/vfio/{group}"), 0);
        if busy && holders.is_empty() {
            reasons.push(Reason::VfioGroup { group, holder: None });
        }
        let named = |holder| Reason::VfioGroup { group, holder: Some(holder) };
        reasons.extend(holders.into_iter().map(named));
    }
    let verbs = format!("sys/bus/pci/devices/{}/infiniband_verbs", function.address);
    for device in tree.names(verbs)? {
        for holder in holders(tree, &format!("/dev/infiniband/{device}"))? {
            reasons.push(Reason::Rdma { device: device.clone(), holder });
        }
    }
    Ok(reasons)
}

fn network_use(tree: &Tree, function: &Function, interface: &str) -> Option<&'static str> {
    let dir = format!("sys/bus/pci/devices/{}/net/{interface}", function.address);
    if tree.path(&dir).join("master").symlink_metadata().is_ok() {
        return Some("belongs to a bond or bridge");
    }
    let flags = tree.read(format!("{dir}/flags")).unwrap_or_default();
    let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).unwrap_or(IFF_UP);
    if flags & IFF_UP == 0 {
        return None;
    }
    // An IPv4 address brings the route to its own network.
    let routes = tree.read("proc/net/route").unwrap_or_default();
    if routes.lines().skip(1).any(|line| line.split_whitespace().next() == Some(interface)) {
        return Some("is up and has a route or an IPv4 address");
    }
    let addresses = tree.read("proc/net/if_inet6").unwrap_or_default();
    let global = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(5) == Some(&interface) && fields.get(3) != Some(&LINK_LOCAL)
    };
    addresses.lines().any(global).then_some("is up and has an IPv6 address")
}

fn block_uses(tree: &Tree, function: &Function, reasons: &mut Vec<Reason>) -> Result<()> {
    let address = function.address.to_string();
    let mounts = [
        tree.read("proc/self/mountinfo").unwrap_or_default(),
        // The mounts outside this process's container, where they may be seen.
        tree.read("proc/1/mountinfo").unwrap_or_default(),
    ];
    let swaps = tree.read("proc/swaps").unwrap_or_default();
    for device in tree.names("sys/class/block")? {
        let dir = tree.path("sys/class/block").join(&device);
        // The real path names every device between the root complex and the disk.
        let Ok(real) = fs::canonicalize(&dir) else { continue };
        if !real.components().any(|part| part.as_os_str() == address.as_str()) {
            continue;
        }
        let number = fs::read_to_string(dir.join("dev")).unwrap_or_default();
        let node = format!("/dev/{device}");
        let point = mounts.iter().find_map(|text| mount_point(text, number.trim(), &node));
        let held = tree.names(format!("sys/class/block/{device}/holders"))?;
        let how = if let Some(point) = point {
            format!("is mounted on {point}")
        } else if swaps.lines().any(|line| line.split_whitespace().next() == Some(&node)) {
            "is swap".to_owned()
        } else if let Some(holder) = held.first() {
            format!("is part of {holder}")
        } else if is_busy(tree, &format!("dev/{device}"), libc::O_EXCL) {
            "is open exclusively".to_owned()
        } else {
            continue;
        };
        reasons.push(Reason::Block { device, how });
    }
    Ok(())
}

/// Where a block device is mounted, by its number or (btrfs has numbers of its own) by its name.
fn mount_point(mountinfo: &str, number: &str, node: &str) -> Option<String> {
    mountinfo.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let dash = fields.iter().position(|field| *field == "-")?;
        let same = fields.get(2) == Some(&number) || fields.get(dash + 2) == Some(&node);
        same.then(|| fields.get(4).map(|point| (*point).to_owned()))?
    })
}

/// Whether opening the node says EBUSY: a VFIO group opens once, and O_EXCL on a block device
/// fails while anything claims it.
fn is_busy(tree: &Tree, node: &str, flags: i32) -> bool {
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(tree.path(node));
    opened.is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
}

/// The programs that have a device node open, as far as permissions let us see.
fn holders(tree: &Tree, node: &str) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for pid in tree.names("proc")?.iter().filter(|name| name.bytes().all(|b| b.is_ascii_digit())) {
        let Ok(fds) = tree.names(format!("proc/{pid}/fd")) else { continue };
        let dir = tree.path(format!("proc/{pid}/fd"));
        let opens = |fd: &String| {
            fs::read_link(dir.join(fd)).is_ok_and(|target| target.as_os_str() == node)
        };
        if fds.iter().any(opens) {
            let name = tree.read(format!("proc/{pid}/comm")).unwrap_or_default();
            found.insert(format!("process {pid} ({})", name.trim()));
        }
    }
    Ok(found)
}
