//! The server thread's side of a NIC: what a vfio-user message does.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};
use holdfast_wire::regs::{
    BAR_MSIX, BAR_MSIX_SIZE, BAR_REGS, BAR_REGS_SIZE, BAR_UAR, BAR_UAR_SIZE, VECTOR_COUNT,
};
use nix::errno::Errno;

use super::UarPages;
use super::irq::Irqs;
use super::pci::{CONFIG_SIZE, ConfigSpace};
use crate::memory::{FileRange, Prot, Space};
use crate::processor::Mail;
use crate::processor::bell::Bell;
use crate::server::{Backend, DmaMap, DmaUnmap, Irq, IrqAction, Region, RegionMap};

/// How often a waiting server thread looks whether the processor is still there.
const PATIENCE: Duration = Duration::from_millis(200);
const CONFIG_REGION: u32 = 7;
const MSIX_INDEX: u32 = 2;

/// One NIC as a [`Backend`]. Registers and doorbells are passed to the processor, which has
/// carried them out when the call returns (but for commands of an asynchronous device).
#[derive(Debug)]
pub struct NicBackend {
    nic: usize,
    space: Arc<Space>,
    irqs: Arc<Irqs>,
    mail: Sender<Mail>,
    bell: Arc<Bell>,
    mapped_doorbells: bool,
    reset_on_disconnect: bool,
    unplugged: Arc<AtomicBool>,
    config: ConfigSpace,
    // MSI-X table and pending bits: plain memory, since vectors are bound by message.
    msix: Box<[u8]>,
    pages: Option<Arc<UarPages>>,
    reply: (Sender<u32>, Receiver<u32>),
}

impl NicBackend {
    /// NIC number `nic` of the processor that reads `mail` and hears `bell`.
    pub(crate) fn new(
        nic: usize,
        space: Arc<Space>,
        irqs: Arc<Irqs>,
        mail: Sender<Mail>,
        bell: Arc<Bell>,
        mapped_doorbells: bool,
        reset_on_disconnect: bool,
        unplugged: Arc<AtomicBool>,
    ) -> Self {
        Self {
            nic,
            space,
            irqs,
            mail,
            bell,
            mapped_doorbells,
            reset_on_disconnect,
            unplugged,
            config: ConfigSpace::default(),
            msix: vec![0; BAR_MSIX_SIZE as usize].into_boxed_slice(),
            pages: None,
            reply: bounded(1),
        }
    }

    /// Passes something to the processor and waits until it is done. EIO when the processor ended.
    fn ask(&self, make: impl FnOnce(Sender<u32>) -> Mail) -> Result<u32, Errno> {
        self.mail.send(make(self.reply.0.clone())).map_err(|_| Errno::EIO)?;
        self.bell.ring();
        // This side holds a sender of its own, so the channel does not tell of the processor's end.
        loop {
            match self.reply.1.recv_timeout(PATIENCE) {
                Ok(value) => return Ok(value),
                Err(_) if self.bell.is_closed() => return Err(Errno::EIO),
                Err(_) => {}
            }
        }
    }

    fn read_register(&self, offset: u64) -> Result<u32, Errno> {
        self.ask(|reply| Mail::Read { nic: self.nic, offset, reply })
    }

    fn write_doorbells(&self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        // Each is a round trip to the processor, and drivers store one word, or two as one.
        if data.len() > 8 {
            return Err(Errno::EINVAL);
        }
        for (word, at) in words(offset, data)? {
            self.ask(|reply| Mail::Doorbell { nic: self.nic, offset: at, word, reply })?;
        }
        Ok(())
    }
}

/// The aligned 32-bit words of a register write, in order; EINVAL when it is not made of them.
fn words(offset: u64, data: &[u8]) -> Result<impl Iterator<Item = (u32, u64)>, Errno> {
    let (words, rest) = data.as_chunks::<4>();
    if !rest.is_empty() || !offset.is_multiple_of(4) {
        return Err(Errno::EINVAL);
    }
    Ok(words.iter().map(|word| u32::from_le_bytes(*word)).zip((offset..).step_by(4)))
}

impl Backend for NicBackend {
    fn regions(&self) -> Vec<Region> {
        let uar = match &self.pages {
            Some(pages) if self.mapped_doorbells => {
                let map = RegionMap { fd: pages.fd(), offset: 0, areas: Vec::new() };
                Region::mapped(BAR_UAR_SIZE, map)
            }
            _ => Region::trapped(BAR_UAR_SIZE),
        };
        let mut regions = vec![Region::default(); CONFIG_REGION as usize + 1];
        regions[BAR_MSIX as usize] = Region::trapped(BAR_MSIX_SIZE);
        regions[BAR_REGS as usize] = Region::trapped(BAR_REGS_SIZE);
        regions[BAR_UAR as usize] = uar;
        regions[CONFIG_REGION as usize] = Region::trapped(CONFIG_SIZE as u64);
        regions
    }

    fn irqs(&self) -> Vec<Irq> {
        let msix = Irq { count: VECTOR_COUNT, maskable: false, no_resize: true };
        vec![Irq::default(), Irq::default(), msix]
    }

    fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        if self.unplugged.load(Ordering::Acquire) {
            // What a host bridge makes of a read that no card answers.
            data.fill(0xff);
            return Ok(());
        }
        match region {
            CONFIG_REGION => self.config.read(offset, data),
            BAR_MSIX => {
                let start = usize::try_from(offset).map_err(|_| Errno::EINVAL)?;
                let end = start.checked_add(data.len()).ok_or(Errno::EINVAL)?;
                data.copy_from_slice(self.msix.get(start..end).ok_or(Errno::EINVAL)?);
            }
            BAR_REGS => {
                let mut word = (u64::MAX, [0; 4]);
                for (byte, at) in data.iter_mut().zip(offset..) {
                    if word.0 != at & !3 {
                        word = (at & !3, self.read_register(at & !3)?.to_le_bytes());
                    }
                    *byte = word.1[at as usize & 3];
                }
            }
            // A doorbell region reads as all ones, as QEMU's model has it.
            BAR_UAR => data.fill(0xff),
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        if self.unplugged.load(Ordering::Acquire) {
            return Ok(());
        }
        match region {
            CONFIG_REGION => {
                let was_master = self.config.bus_master();
                self.config.write(offset, data);
                // Whoever takes bus mastering away wants no more DMA: a kernel does when the
                // device's owner died. Queues that went on would write into the memory of the
                // next owner, who cannot reset a function without FLR.
                if was_master && !self.config.bus_master() {
                    self.ask(|reply| Mail::Reset { nic: self.nic, gone: false, reply })?;
                }
            }
            BAR_MSIX => {
                let start = usize::try_from(offset).map_err(|_| Errno::EINVAL)?;
                let end = start.checked_add(data.len()).ok_or(Errno::EINVAL)?;
                self.msix.get_mut(start..end).ok_or(Errno::EINVAL)?.copy_from_slice(data);
            }
            BAR_REGS => {
                for (value, offset) in words(offset, data)? {
                    self.ask(|reply| Mail::Write { nic: self.nic, offset, value, reply })?;
                }
            }
            BAR_UAR => self.write_doorbells(offset, data)?,
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    fn dma_map(&mut self, map: DmaMap) -> Result<(), Errno> {
        let prot = Prot { read: map.read, write: map.write };
        let file = map.fd.as_ref().map(|fd| FileRange { fd: fd.as_fd(), offset: map.offset });
        self.space.map(map.iova, map.len, prot, file).map_err(|error| {
            tracing::warn!(nic = self.nic, %error, "DMA_MAP refused");
            error.errno()
        })
    }

    fn dma_unmap(&mut self, what: DmaUnmap) -> Result<u64, Errno> {
        match what {
            DmaUnmap::All => Ok(self.space.unmap_all()),
            DmaUnmap::Range { iova, len } => self.space.unmap(iova, len).map_err(|error| {
                tracing::warn!(nic = self.nic, %error, "DMA_UNMAP refused");
                error.errno()
            }),
        }
    }

    fn set_irqs(&mut self, index: u32, start: u32, action: IrqAction) -> Result<(), Errno> {
        if index != MSIX_INDEX {
            return if matches!(action, IrqAction::Disable) { Ok(()) } else { Err(Errno::EINVAL) };
        }
        let start = start as usize;
        match action {
            IrqAction::Disable => self.irqs.unbind_all(),
            IrqAction::Bind(fds) => {
                for (vector, fd) in (start..).zip(fds) {
                    self.irqs.bind(vector, fd).inspect_err(|_| {
                        tracing::warn!(nic = self.nic, vector, "an interrupt must be an eventfd");
                    })?;
                }
            }
            IrqAction::Fire(which) => {
                for (vector, _) in (start..).zip(which).filter(|(_, fire)| *fire) {
                    self.irqs.force(vector);
                }
            }
            IrqAction::Mask(_) | IrqAction::Unmask(_) => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    fn reset(&mut self) -> Result<(), Errno> {
        self.config = ConfigSpace::default();
        self.msix.fill(0);
        self.ask(|reply| Mail::Reset { nic: self.nic, gone: false, reply }).map(drop)
    }

    fn client_connected(&mut self) {
        match UarPages::new() {
            Ok(pages) => {
                let pages = Arc::new(pages);
                self.pages = Some(pages.clone());
                let _ = self.ask(|reply| Mail::Connected { nic: self.nic, pages, reply });
            }
            Err(errno) => {
                tracing::error!(%errno, "no memory for doorbell pages; they are trapped");
                self.pages = None;
            }
        }
    }

    fn client_gone(&mut self) {
        // The engine lets go of everything first, so that nothing is left to miss.
        if self.reset_on_disconnect {
            let _ = self.ask(|reply| Mail::Reset { nic: self.nic, gone: true, reply });
            self.config = ConfigSpace::default();
            self.msix.fill(0);
        }
        self.space.unmap_all();
        self.irqs.unbind_all();
        self.pages = None;
    }
}
