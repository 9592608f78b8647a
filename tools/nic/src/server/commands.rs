//! The commands, one handler each: check what the client says, call the backend, fill the reply.
//!
//! `argsz` is what the client has room for in the reply (or, where a reply has no payload, the
//! size of the request's structure): less than the structure is an error, and in the reply it
//! says what all of it would need, also when it was not all sent.

use std::os::fd::OwnedFd;

use holdfast_vfio::user::wire;
use nix::errno::Errno;
use zerocopy::FromBytes;

use super::session::Session;
use super::{Backend, DmaMap, DmaUnmap, IrqAction, Region};

/// The structure that a payload begins with, and what follows it.
fn take<T: FromBytes>(payload: &[u8]) -> Result<(T, &[u8]), Errno> {
    T::read_from_prefix(payload).map_err(|_| Errno::EINVAL)
}

/// `argsz` has room for a `T`.
fn check_room<T>(argsz: u32) -> Result<(), Errno> {
    if (argsz as usize) < size_of::<T>() { Err(Errno::EINVAL) } else { Ok(()) }
}

fn flag(value: bool, bit: u32) -> u32 {
    if value { bit } else { 0 }
}

impl<B: Backend + ?Sized> Session<'_, B> {
    pub(super) fn dma_map(&mut self, payload: &[u8], fds: Vec<OwnedFd>) -> Result<(), Errno> {
        let (map, _) = take::<wire::DmaMap>(payload)?;
        check_room::<wire::DmaMap>(map.argsz)?;
        let known = wire::DMA_MAP_READ | wire::DMA_MAP_WRITE | wire::DMA_MAP_MMAP;
        if map.flags & !known != 0
            || (map.flags & wire::DMA_MAP_MMAP != 0 && fds.is_empty())
            || map.size == 0
            || map.address.checked_add(map.size).is_none()
            || map.offset.checked_add(map.size).is_none()
        {
            return Err(Errno::EINVAL);
        }
        self.backend.dma_map(DmaMap {
            iova: map.address,
            len: map.size,
            read: map.flags & wire::DMA_MAP_READ != 0,
            write: map.flags & wire::DMA_MAP_WRITE != 0,
            fd: fds.into_iter().next(),
            offset: map.offset,
        })
    }

    pub(super) fn dma_unmap(&mut self, payload: &[u8]) -> Result<(), Errno> {
        let (unmap, _) = take::<wire::DmaUnmap>(payload)?;
        check_room::<wire::DmaUnmap>(unmap.argsz)?;
        let (iova, len) = (unmap.address, unmap.size);
        // The last address may be the last of all: QEMU takes down the part of a vIOMMU's address
        // space above the interrupt window as one range that ends at 2^64.
        let what = match unmap.flags {
            0 if len != 0 && iova.checked_add(len - 1).is_some() => DmaUnmap::Range { iova, len },
            wire::DMA_UNMAP_ALL if iova == 0 && len == 0 => DmaUnmap::All,
            flags => {
                tracing::debug!(flags, iova, len, "no range to unmap");
                return Err(Errno::EINVAL);
            }
        };
        let bytes = self.backend.dma_unmap(what)?;
        let argsz = size_of::<wire::DmaUnmap>() as u32;
        self.put(&wire::DmaUnmap { argsz, size: bytes, ..unmap });
        Ok(())
    }

    pub(super) fn device_info(&mut self, payload: &[u8]) -> Result<(), Errno> {
        let (ask, _) = take::<wire::DeviceInfo>(payload)?;
        check_room::<wire::DeviceInfo>(ask.argsz)?;
        self.put(&wire::DeviceInfo {
            argsz: size_of::<wire::DeviceInfo>() as u32,
            flags: wire::DEVICE_IS_PCI | wire::DEVICE_RESET_WORKS,
            regions: self.regions.len() as u32,
            irqs: self.irqs.len() as u32,
        });
        Ok(())
    }

    /// The descriptor comes with every reply on a mappable region, also when the capabilities did
    /// not fit: clients that ask again close the first one.
    pub(super) fn region_info(&mut self, payload: &[u8]) -> Result<(), Errno> {
        let (ask, _) = take::<wire::RegionInfo>(payload)?;
        check_room::<wire::RegionInfo>(ask.argsz)?;
        let region = self.regions.get(ask.index as usize).ok_or(Errno::EINVAL)?.clone();

        let fixed = size_of::<wire::RegionInfo>();
        let mut info = wire::RegionInfo {
            argsz: fixed as u32,
            flags: flag(region.read, wire::REGION_READABLE)
                | flag(region.write, wire::REGION_WRITABLE),
            index: ask.index,
            size: region.size,
            ..Default::default()
        };
        let Some(map) = region.map.filter(|_| region.size != 0) else {
            self.put(&info);
            return Ok(());
        };
        info.flags |= wire::REGION_MAPPABLE;
        info.offset = map.offset;
        let caps = match map.areas.len() {
            0 => 0,
            areas => {
                size_of::<wire::CapHeader>()
                    + size_of::<wire::SparseMmap>()
                    + areas * size_of::<wire::SparseArea>()
            }
        };
        info.argsz = u32::try_from(fixed + caps).map_err(|_| Errno::E2BIG)?;
        let send_caps = caps != 0 && info.argsz <= ask.argsz;
        if send_caps {
            info.flags |= wire::REGION_HAS_CAPS;
            info.cap_offset = fixed as u32;
        }
        self.put(&info);
        if send_caps {
            self.put(&wire::CapHeader { id: wire::CAP_SPARSE_MMAP, version: 1, next: 0 });
            self.put(&wire::SparseMmap { areas: map.areas.len() as u32, reserved: 0 });
            for (offset, size) in map.areas {
                self.put(&wire::SparseArea { offset, size });
            }
        }
        self.fd = Some(map.fd);
        Ok(())
    }

    /// There are never any: the doorbells are a file that is mapped, which is faster still.
    pub(super) fn region_io_fds(&mut self, payload: &[u8]) -> Result<(), Errno> {
        let (ask, _) = take::<wire::RegionIoFds>(payload)?;
        check_room::<wire::RegionIoFds>(ask.argsz)?;
        if ask.flags != 0 || ask.count != 0 || ask.index as usize >= self.regions.len() {
            return Err(Errno::EINVAL);
        }
        let argsz = size_of::<wire::RegionIoFds>() as u32;
        self.put(&wire::RegionIoFds { argsz, flags: 0, index: ask.index, count: 0 });
        Ok(())
    }

    pub(super) fn irq_info(&mut self, payload: &[u8]) -> Result<(), Errno> {
        let (ask, _) = take::<wire::IrqInfo>(payload)?;
        check_room::<wire::IrqInfo>(ask.argsz)?;
        let irq = *self.irqs.get(ask.index as usize).ok_or(Errno::EINVAL)?;
        self.put(&wire::IrqInfo {
            argsz: size_of::<wire::IrqInfo>() as u32,
            flags: flag(irq.count != 0, wire::IRQ_EVENTFD)
                | flag(irq.maskable, wire::IRQ_MASKABLE)
                | flag(irq.no_resize, wire::IRQ_NORESIZE),
            index: ask.index,
            count: irq.count,
        });
        Ok(())
    }

    pub(super) fn set_irqs(&mut self, payload: &[u8], fds: Vec<OwnedFd>) -> Result<(), Errno> {
        let (set, data) = take::<wire::IrqSet>(payload)?;
        check_room::<wire::IrqSet>(set.argsz)?;
        let irq = *self.irqs.get(set.index as usize).ok_or(Errno::EINVAL)?;
        let kind = set.flags & wire::IRQ_SET_DATA;
        let action = set.flags & wire::IRQ_SET_ACTION;
        if set.flags != kind | action || !kind.is_power_of_two() || !action.is_power_of_two() {
            return Err(Errno::EINVAL);
        }
        if kind != wire::IRQ_SET_DATA_EVENTFD && !fds.is_empty() {
            return Err(Errno::EINVAL);
        }
        if set.count == 0 {
            let disable = kind == wire::IRQ_SET_DATA_NONE
                && action == wire::IRQ_SET_ACTION_TRIGGER
                && set.start == 0;
            return if disable {
                self.backend.set_irqs(set.index, 0, IrqAction::Disable)
            } else {
                Err(Errno::EINVAL)
            };
        }
        match set.start.checked_add(set.count) {
            Some(end) if end <= irq.count => {}
            _ => return Err(Errno::EINVAL),
        }
        if action != wire::IRQ_SET_ACTION_TRIGGER && !irq.maskable {
            return Err(Errno::ENOTSUP);
        }

        // The range lies inside the index, so `count` is no more than the device's own vectors.
        let count = set.count as usize;
        let action = if kind == wire::IRQ_SET_DATA_EVENTFD {
            if action != wire::IRQ_SET_ACTION_TRIGGER {
                return Err(Errno::ENOTSUP);
            }
            match fds.len() {
                0 => IrqAction::Bind((0..count).map(|_| None).collect()),
                len if len == count => IrqAction::Bind(fds.into_iter().map(Some).collect()),
                _ => return Err(Errno::EINVAL),
            }
        } else {
            let meant = if kind == wire::IRQ_SET_DATA_BOOL {
                data.get(..count).ok_or(Errno::EINVAL)?.iter().map(|&byte| byte != 0).collect()
            } else {
                vec![true; count]
            };
            match action {
                wire::IRQ_SET_ACTION_MASK => IrqAction::Mask(meant),
                wire::IRQ_SET_ACTION_UNMASK => IrqAction::Unmask(meant),
                _ => IrqAction::Fire(meant),
            }
        };
        self.backend.set_irqs(set.index, set.start, action)
    }

    /// The region of an access that lies inside it and is not too large.
    fn accessed(&self, access: &wire::RegionAccess) -> Result<&Region, Errno> {
        let region = self.regions.get(access.region as usize).ok_or(Errno::EINVAL)?;
        let end = access.offset.checked_add(u64::from(access.count)).ok_or(Errno::EINVAL)?;
        if access.count == 0 || access.count > self.limits.max_data_xfer_size || end > region.size {
            return Err(Errno::EINVAL);
        }
        Ok(region)
    }

    pub(super) fn region_read(&mut self, payload: &[u8]) -> Result<(), Errno> {
        let (access, _) = take::<wire::RegionAccess>(payload)?;
        if !self.accessed(&access)?.read {
            return Err(Errno::EPERM);
        }
        self.put(&access);
        let start = self.reply.len();
        self.reply.resize(start + access.count as usize, 0);
        self.backend.read(access.region, access.offset, &mut self.reply[start..])
    }

    pub(super) fn region_write(&mut self, payload: &[u8]) -> Result<(), Errno> {
        let (access, data) = take::<wire::RegionAccess>(payload)?;
        if !self.accessed(&access)?.write {
            return Err(Errno::EPERM);
        }
        if data.len() != access.count as usize {
            return Err(Errno::EINVAL);
        }
        self.backend.write(access.region, access.offset, data)?;
        self.put(&access);
        Ok(())
    }

    /// Nothing is written unless every write of the message is acceptable; the first that the
    /// backend refuses ends it, and those before it have been done.
    pub(super) fn region_write_multi(&mut self, payload: &[u8]) -> Result<(), Errno> {
        let (multi, writes) = take::<wire::WriteMulti>(payload)?;
        let (writes, rest) = writes.as_chunks::<{ size_of::<wire::WriteOne>() }>();
        if multi.count != writes.len() as u64 || !rest.is_empty() {
            return Err(Errno::EINVAL);
        }
        let writes = writes
            .iter()
            .map(|bytes| wire::WriteOne::read_from_bytes(bytes).expect("it has that size"));
        for write in writes.clone() {
            let wire::WriteOne { offset, region, count, .. } = write;
            let access = wire::RegionAccess { offset, region, count };
            if count as usize > write.data.len() {
                return Err(Errno::EINVAL);
            }
            if !self.accessed(&access)?.write {
                return Err(Errno::EPERM);
            }
        }
        for write in writes {
            self.backend.write(write.region, write.offset, &write.data[..write.count as usize])?;
        }
        self.put(&multi);
        Ok(())
    }

    pub(super) fn reset(&mut self, payload: &[u8]) -> Result<(), Errno> {
        if !payload.is_empty() {
            return Err(Errno::EINVAL);
        }
        self.backend.reset()
    }
}
