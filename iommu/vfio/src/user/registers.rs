//! [`Device`] over the socket: registers, mappings and interrupts of a [`UserDevice`].

use std::os::fd::{AsFd, BorrowedFd};

use zerocopy::IntoBytes;

use super::client::{MAX_TRANSFER, SMALL_REPLY, UserDevice};
use super::link::take;
use super::regions::Region;
use super::wire::{self, Command};
use crate::device::REGION_CONFIG;
use crate::{Device, DeviceInfo, Error, IrqInfo, MappedRegion, RegionInfo, Result};

impl Device for UserDevice {
    fn info(&self) -> DeviceInfo {
        self.info
    }

    fn region(&self, index: u32) -> Result<RegionInfo> {
        Ok(self.entry(index)?.info.clone())
    }

    fn read_region(&self, index: u32, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.check_access(index, offset, buf.len())?;
        let mut offset = offset;
        for chunk in buf.chunks_mut(self.transfer()) {
            let count = chunk.len() as u32;
            let ask = wire::RegionAccess { offset, region: index, count };
            let max = size_of_val(&ask) + chunk.len();
            offset += chunk.len() as u64;
            self.call(Command::REGION_READ, &[ask.as_bytes()], &[], max, |payload, _| {
                let access = take::<wire::RegionAccess>(payload)?;
                let data = &payload[size_of_val(&access)..];
                if access != ask || data.len() != chunk.len() {
                    return Err(format!("{} bytes for {access:?} instead of {ask:?}", data.len()));
                }
                chunk.copy_from_slice(data);
                Ok(())
            })?;
        }
        Ok(())
    }

    fn write_region(&self, index: u32, offset: u64, data: &[u8]) -> Result<()> {
        self.check_access(index, offset, data.len())?;
        let mut offset = offset;
        for chunk in data.chunks(self.transfer()) {
            let count = chunk.len() as u32;
            let ask = wire::RegionAccess { offset, region: index, count };
            offset += chunk.len() as u64;
            let parts = [ask.as_bytes(), chunk];
            self.call(Command::REGION_WRITE, &parts, &[], SMALL_REPLY, |payload, _| {
                let access = take::<wire::RegionAccess>(payload)?;
                if access.count != count {
                    return Err(format!("{} bytes written of {count}", access.count));
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    fn map_region(&self, index: u32, offset: u64, len: u64) -> Result<MappedRegion> {
        let region = self.entry(index)?;
        let fd = region.fd.as_ref().filter(|_| region.is_mappable(offset, len));
        let (Some(fd), Ok(bytes)) = (fd, usize::try_from(len)) else {
            return Err(Error::usage(format!(
                "{len:#x} bytes at {offset:#x} of region {index} cannot be mapped; the server at \
                 {} lets these (offset, length) be mapped: {:x?}",
                self.socket, region.info.mappable
            )));
        };
        MappedRegion::new(fd.as_fd(), region.offset + offset, bytes)
    }

    fn bus_address(&self, index: u32) -> Result<u64> {
        if index > 5 {
            return Err(Error::usage(format!("region {index} is not a BAR")));
        }
        let register = 0x10 + u64::from(index) * 4;
        let low = self.read_u32(REGION_CONFIG, register)?;
        if low & 1 != 0 {
            return Ok(u64::from(low & !0x3));
        }
        let base = u64::from(low & !0xf);
        if low & 0x6 != 0x4 {
            return Ok(base);
        }
        if index == 5 {
            return Err(Error::UserProtocol {
                socket: self.socket.clone(),
                command: Command::REGION_READ,
                detail: "BAR 5 claims to be 64 bits wide".into(),
            });
        }
        Ok(u64::from(self.read_u32(REGION_CONFIG, register + 4)?) << 32 | base)
    }

    fn irq(&self, index: u32) -> Result<IrqInfo> {
        self.irqs.get(index as usize).copied().ok_or_else(|| {
            Error::usage(format!(
                "interrupt index {index} of {} ({})",
                self.irqs.len(),
                self.socket
            ))
        })
    }

    fn enable_irqs(&self, index: u32, fds: &[Option<BorrowedFd<'_>>]) -> Result<()> {
        let info = self.irq(index)?;
        if fds.is_empty() || fds.len() > info.count as usize || !info.eventfd {
            return Err(Error::usage(format!(
                "{} eventfds for interrupt index {index}, which takes 1 to {}",
                fds.len(),
                if info.eventfd { info.count } else { 0 }
            )));
        }
        // One message binds only, or unbinds only, and carries as many as the server takes.
        let most = (self.peer.max_msg_fds.max(1) as usize).min(super::scm::SCM_MAX_FD);
        let flags = wire::IRQ_SET_DATA_EVENTFD | wire::IRQ_SET_ACTION_TRIGGER;
        let mut start = 0;
        for run in fds.chunk_by(|a, b| a.is_some() == b.is_some()) {
            for chunk in run.chunks(most) {
                let bound: Vec<BorrowedFd<'_>> = chunk.iter().flatten().copied().collect();
                self.set_irqs(flags, index, start, chunk.len() as u32, &bound)?;
                start += chunk.len() as u32;
            }
        }
        Ok(())
    }

    fn disable_irqs(&self, index: u32) -> Result<()> {
        self.irq(index)?;
        let flags = wire::IRQ_SET_DATA_NONE | wire::IRQ_SET_ACTION_TRIGGER;
        self.set_irqs(flags, index, 0, 0, &[])
    }

    fn reset(&self) -> Result<()> {
        self.call(Command::DEVICE_RESET, &[], &[], SMALL_REPLY, |_, _| Ok(()))
    }
}

impl UserDevice {
    fn set_irqs(
        &self,
        flags: u32,
        index: u32,
        start: u32,
        count: u32,
        fds: &[BorrowedFd<'_>],
    ) -> Result<()> {
        let argsz = size_of::<wire::IrqSet>() as u32;
        let set = wire::IrqSet { argsz, flags, index, start, count };
        let command = Command::DEVICE_SET_IRQS;
        self.call(command, &[set.as_bytes()], fds, SMALL_REPLY, |_, _| Ok(()))
    }

    fn entry(&self, index: u32) -> Result<&Region> {
        self.regions.get(index as usize).ok_or_else(|| {
            Error::usage(format!(
                "region {index} of a device with {} regions ({})",
                self.regions.len(),
                self.socket
            ))
        })
    }

    /// Checks an access of `len` bytes before it is sent.
    fn check_access(&self, index: u32, offset: u64, len: usize) -> Result<()> {
        let size = self.entry(index)?.info.size;
        match offset.checked_add(len as u64) {
            Some(end) if end <= size => Ok(()),
            _ => Err(Error::usage(format!(
                "{len} bytes at {offset:#x} are not inside region {index} of {size:#x} bytes"
            ))),
        }
    }

    /// Most data bytes of one message.
    fn transfer(&self) -> usize {
        MAX_TRANSFER.min(self.peer.max_data_xfer_size as usize)
    }
}
