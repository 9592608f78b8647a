//! A PCI function behind the kernel's VFIO.

use std::ffi::CString;
use std::fs::File;
use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, VFIO_IRQ_INFO_EVENTFD,
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE,
    vfio_device_info, vfio_irq_info, vfio_irq_set, vfio_region_info,
};

use super::caps::{self, Region};
use super::container::{answer, put32};
use super::departure::Departure;
use super::group::Group;
use super::ioctl::{self, Plain, Sized};
use crate::pci::{Address, Tree};
use crate::{Device, DeviceInfo, Error, IrqInfo, MappedRegion, RegionInfo, Result};

/// Standard regions and interrupts of vfio-pci; devices may have a few more.
const INDICES_MAX: u32 = 64;

/// A PCI function that VFIO has given to this process. Closing it disables the function's DMA.
#[derive(Debug)]
pub struct KernelDevice {
    file: File,
    address: Address,
    tree: Tree,
    info: DeviceInfo,
    regions: Vec<Region>,
    irqs: Vec<IrqInfo>,
    // Which interrupt indices have eventfds: they must be taken down before a change.
    enabled: Mutex<Vec<u32>>,
    // Waited for after the device was closed.
    departure: Departure,
    // Closed after that.
    _group: Arc<Group>,
}

impl KernelDevice {
    /// Takes the function at `address` out of its group.
    pub fn open(tree: &Tree, address: Address, group: Arc<Group>) -> Result<Self> {
        let name = CString::new(address.to_string())
            .map_err(|_| Error::usage("a PCI address holds no NUL"))?;
        let fd = ioctl::device_fd(group.as_fd(), &name).map_err(|error| match error {
            Error::Ioctl { errno: nix::errno::Errno::ENODEV, .. } => Error::NotBound { address },
            error => error,
        })?;
        let file = File::from(fd);
        let mut bytes = vec![0; size_of::<vfio_device_info>()];
        ioctl::sized(file.as_fd(), Sized::DeviceGetInfo, &mut bytes)?;
        let word = |bytes: &[u8], offset: usize| {
            bytes.get(offset..).and_then(|rest| rest.first_chunk()).copied().map(u32::from_ne_bytes)
        };
        let field = |offset| word(&bytes, offset).unwrap_or(0);
        let flags = field(offset_of!(vfio_device_info, flags));
        if flags & VFIO_DEVICE_FLAGS_PCI == 0 {
            return Err(Error::usage(format!("{address} is no PCI device for VFIO")));
        }
        let info = DeviceInfo {
            regions: field(offset_of!(vfio_device_info, num_regions)).min(INDICES_MAX),
            irqs: field(offset_of!(vfio_device_info, num_irqs)).min(INDICES_MAX),
            can_reset: flags & VFIO_DEVICE_FLAGS_RESET != 0,
        };
        let regions =
            (0..info.regions).map(|index| read_region_info(&file, index)).collect::<Result<_>>()?;
        let irqs =
            (0..info.irqs).map(|index| read_irq_info(&file, index)).collect::<Result<_>>()?;
        let departure = Departure::new(tree, address);
        let (tree, enabled) = (tree.clone(), Mutex::default());
        Ok(Self { file, address, tree, info, regions, irqs, enabled, departure, _group: group })
    }

    /// Where the function sits.
    pub fn address(&self) -> Address {
        self.address
    }

    fn region_at(&self, index: u32) -> Result<&Region> {
        self.regions.get(index as usize).ok_or(Error::NoRegion { index })
    }

    /// The offset in the descriptor of an access that lies inside the region.
    fn place(&self, index: u32, offset: u64, len: usize) -> Result<u64> {
        let region = self.region_at(index)?;
        let size = region.info.size;
        let inside = offset.checked_add(len as u64).is_some_and(|end| end <= size);
        if inside {
            Ok(region.offset + offset)
        } else {
            Err(Error::OutsideRegion { index, offset, len: len as u64, size })
        }
    }

    fn set_irqs(&self, index: u32, flags: u32, fds: &[i32]) -> Result<()> {
        let count = u32::try_from(fds.len())
            .map_err(|_| Error::usage("more eventfds than interrupts can be"))?;
        let mut bytes = vec![0; offset_of!(vfio_irq_set, data)];
        put32(&mut bytes, offset_of!(vfio_irq_set, flags), flags | VFIO_IRQ_SET_ACTION_TRIGGER);
        put32(&mut bytes, offset_of!(vfio_irq_set, index), index);
        put32(&mut bytes, offset_of!(vfio_irq_set, start), 0);
        put32(&mut bytes, offset_of!(vfio_irq_set, count), count);
        bytes.extend(fds.iter().flat_map(|fd| fd.to_ne_bytes()));
        ioctl::sized(self.file.as_fd(), Sized::DeviceSetIrqs, &mut bytes)
    }
}

impl Device for KernelDevice {
    fn info(&self) -> DeviceInfo {
        self.info
    }

    fn region(&self, index: u32) -> Result<RegionInfo> {
        self.region_at(index).map(|region| region.info.clone())
    }

    fn read_region(&self, index: u32, offset: u64, buf: &mut [u8]) -> Result<()> {
        let at = self.place(index, offset, buf.len())?;
        let len = buf.len() as u64;
        let fail = |source| Error::RegionAccess { index, offset, len, source };
        self.file.read_exact_at(buf, at).map_err(fail)
    }

    fn write_region(&self, index: u32, offset: u64, data: &[u8]) -> Result<()> {
        let at = self.place(index, offset, data.len())?;
        let len = data.len() as u64;
        let fail = |source| Error::RegionAccess { index, offset, len, source };
        self.file.write_all_at(data, at).map_err(fail)
    }

    fn map_region(&self, index: u32, offset: u64, len: u64) -> Result<MappedRegion> {
        let region = self.region_at(index)?;
        let size = region.info.size;
        let outside = || Error::OutsideRegion { index, offset, len, size };
        let end = offset.checked_add(len).ok_or_else(outside)?;
        let fits = |(start, part): &(u64, u64)| offset >= *start && end <= start + part;
        if !region.info.mappable.iter().any(fits) {
            return Err(Error::NotMappable { index, offset, len });
        }
        let len = usize::try_from(len).map_err(|_| outside())?;
        MappedRegion::new(self.file.as_fd(), region.offset + offset, len)
    }

    fn bus_address(&self, index: u32) -> Result<u64> {
        let path = format!("sys/bus/pci/devices/{}/resource", self.address);
        bar_address(&self.tree.read(path)?, index).ok_or(Error::NoRegion { index })
    }

    fn irq(&self, index: u32) -> Result<IrqInfo> {
        self.irqs.get(index as usize).copied().ok_or(Error::NoIrq { index })
    }

    fn enable_irqs(&self, index: u32, fds: &[Option<BorrowedFd<'_>>]) -> Result<()> {
        let info = self.irq(index)?;
        if !info.eventfd || fds.is_empty() || fds.len() > info.count as usize {
            return Err(Error::IrqVectors { index, wanted: fds.len(), count: info.count });
        }
        // Kernels without dynamic MSI-X refuse to grow what is enabled.
        self.disable_irqs(index)?;
        let fds: Vec<i32> = fds.iter().map(|fd| fd.map_or(-1, |fd| fd.as_raw_fd())).collect();
        self.set_irqs(index, VFIO_IRQ_SET_DATA_EVENTFD, &fds)?;
        self.enabled.lock().unwrap_or_else(PoisonError::into_inner).push(index);
        Ok(())
    }

    fn disable_irqs(&self, index: u32) -> Result<()> {
        self.irq(index)?;
        let mut enabled = self.enabled.lock().unwrap_or_else(PoisonError::into_inner);
        // The kernel refuses to take down an index that is not up.
        if enabled.contains(&index) {
            self.set_irqs(index, VFIO_IRQ_SET_DATA_NONE, &[])?;
            enabled.retain(|other| *other != index);
        }
        Ok(())
    }

    fn reset(&self) -> Result<()> {
        if !self.info.can_reset {
            return Err(Error::NoReset { address: self.address });
        }
        ioctl::plain(self.file.as_fd(), Plain::DeviceReset).map(drop)
    }

    fn removal_asked(&self) {
        self.departure.expect();
    }
}

/// The address of BAR `index` in the text of a sysfs `resource` file: a line per BAR, with first
/// address, last address and flags in hexadecimal. `None` when there is no such BAR.
pub fn bar_address(resource: &str, index: u32) -> Option<u64> {
    const BARS: u32 = 6;
    let line = resource.lines().nth(index as usize).filter(|_| index < BARS)?;
    let mut numbers = line
        .split_whitespace()
        .map(|number| u64::from_str_radix(number.strip_prefix("0x").unwrap_or(number), 16).ok());
    let (start, end) = (numbers.next()??, numbers.next()??);
    (end > start).then_some(start)
}

fn read_region_info(file: &File, index: u32) -> Result<Region> {
    let mut question = vec![0; size_of::<vfio_region_info>()];
    put32(&mut question, offset_of!(vfio_region_info, index), index);
    match answer(file.as_fd(), Sized::DeviceGetRegionInfo, question) {
        Ok(answer) => Ok(caps::region(&answer)?),
        // Optional regions (VGA) answer so when the function lacks them.
        Err(Error::Ioctl { errno: nix::errno::Errno::EINVAL, .. }) => Ok(Region {
            info: RegionInfo { size: 0, readable: false, writable: false, mappable: Vec::new() },
            offset: 0,
        }),
        Err(error) => Err(error),
    }
}

fn read_irq_info(file: &File, index: u32) -> Result<IrqInfo> {
    let mut bytes = [0; size_of::<vfio_irq_info>()];
    put32(&mut bytes, offset_of!(vfio_irq_info, index), index);
    match ioctl::sized(file.as_fd(), Sized::DeviceGetIrqInfo, &mut bytes) {
        Ok(()) => {}
        // Optional interrupts (error reporting) answer so when the function lacks them.
        Err(Error::Ioctl { errno: nix::errno::Errno::EINVAL, .. }) => {
            return Ok(IrqInfo { count: 0, eventfd: false });
        }
        Err(error) => return Err(error),
    }
    let [_, _, _, _, f0, f1, f2, f3, _, _, _, _, c0, c1, c2, c3] = bytes;
    Ok(IrqInfo {
        count: u32::from_ne_bytes([c0, c1, c2, c3]),
        eventfd: u32::from_ne_bytes([f0, f1, f2, f3]) & VFIO_IRQ_INFO_EVENTFD != 0,
    })
}
