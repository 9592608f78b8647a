//! A device of plain memory, for tests and for fuzzing the server.
//!
//! It keeps every promise that a [`Backend`] is given as an assertion, and remembers what it was
//! asked.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{Backend, DmaMap, DmaUnmap, Irq, IrqAction, Region, RegionMap};

/// Bytes of BAR 0 (trapped), BAR 2 (partly mappable) and of configuration space.
pub const BAR0: u64 = 0x2000;
/// As [`BAR0`].
pub const BAR2: u64 = 0x8000;
/// As [`BAR0`].
pub const CONFIG: u64 = 256;
/// Where in BAR 0 a 32-bit write of a number fires that MSI-X vector.
pub const FIRE: u64 = 0x1000;
/// Vectors of MSI-X.
pub const VECTORS: u32 = 40;
/// The mappable parts of BAR 2.
pub const AREAS: [(u64, u64); 2] = [(0, 0x1000), (0x4000, 0x2000)];

/// The device.
#[derive(Debug)]
pub struct Toy {
    /// Contents of BAR 0.
    pub bar0: Vec<u8>,
    /// Contents of BAR 2, which the client may map.
    pub bar2: Arc<OwnedFd>,
    /// Contents of configuration space.
    pub config: Vec<u8>,
    /// DMA mappings by address.
    pub maps: BTreeMap<u64, DmaMap>,
    /// eventfds of the MSI-X vectors.
    pub vectors: Vec<Option<OwnedFd>>,
    /// Calls of note, in order.
    pub log: Vec<String>,
}

impl Toy {
    /// A device in which everything is 0, except the BAR registers.
    ///
    /// # Panics
    /// When there is no memory for it.
    pub fn new() -> Self {
        let bar2 = memfd_create("toy", MFdFlags::MFD_CLOEXEC).expect("a memfd");
        nix::unistd::ftruncate(&bar2, BAR2 as i64).expect("memory for a BAR");
        let mut config = vec![0; CONFIG as usize];
        config[0x10..0x14].copy_from_slice(&0xfe00_0000u32.to_le_bytes());
        config[0x14..0x18].copy_from_slice(&0xc001u32.to_le_bytes());
        config[0x18..0x1c].copy_from_slice(&0xd000_000cu32.to_le_bytes());
        config[0x1c..0x20].copy_from_slice(&0x12u32.to_le_bytes());
        Self {
            bar0: vec![0; BAR0 as usize],
            bar2: Arc::new(bar2),
            config,
            maps: BTreeMap::new(),
            vectors: Vec::new(),
            log: Vec::new(),
        }
    }

    /// Fires a vector as the device would.
    pub fn fire(&self, vector: usize) {
        if let Some(Some(fd)) = self.vectors.get(vector) {
            let _ = nix::unistd::write(fd, &1u64.to_ne_bytes());
        }
    }

    fn file(&self) -> File {
        File::from(self.bar2.try_clone().expect("a descriptor"))
    }
}

impl Default for Toy {
    fn default() -> Self {
        Self::new()
    }
}

impl Backend for Toy {
    fn regions(&self) -> Vec<Region> {
        let map = RegionMap { fd: self.bar2.clone(), offset: 0, areas: AREAS.to_vec() };
        let mut regions = vec![Region::default(); 8];
        regions[0] = Region::trapped(BAR0);
        regions[2] = Region::mapped(BAR2, map);
        regions[6] = Region { write: false, ..Region::trapped(16) };
        regions[7] = Region::trapped(CONFIG);
        regions
    }

    fn irqs(&self) -> Vec<Irq> {
        let mut irqs = vec![Irq::default(); 3];
        irqs[0] = Irq { count: 1, maskable: true, no_resize: false };
        irqs[2] = Irq { count: VECTORS, maskable: false, no_resize: true };
        irqs
    }

    fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        assert!(!data.is_empty());
        let start = offset as usize;
        match region {
            0 => data.copy_from_slice(&self.bar0[start..][..data.len()]),
            2 => self.file().read_exact_at(data, offset).map_err(|_| Errno::EIO)?,
            6 => data.fill(0xff),
            7 => data.copy_from_slice(&self.config[start..][..data.len()]),
            _ => unreachable!("there is no region {region}"),
        }
        Ok(())
    }

    fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        assert!(!data.is_empty());
        let start = offset as usize;
        match region {
            0 => {
                self.bar0[start..][..data.len()].copy_from_slice(data);
                if let (FIRE, Ok(vector)) = (offset, data.try_into()) {
                    self.fire(u32::from_le_bytes(vector) as usize);
                }
            }
            2 => self.file().write_all_at(data, offset).map_err(|_| Errno::EIO)?,
            7 => self.config[start..][..data.len()].copy_from_slice(data),
            _ => unreachable!("region {region} cannot be written"),
        }
        Ok(())
    }

    fn dma_map(&mut self, map: DmaMap) -> Result<(), Errno> {
        let end = map.iova + map.len;
        assert!(map.len != 0 && map.offset.checked_add(map.len).is_some());
        if self.maps.len() >= 1024 {
            return Err(Errno::ENOSPC);
        }
        let below = self.maps.range(..end).next_back();
        if below.is_some_and(|(iova, other)| iova + other.len > map.iova) {
            return Err(Errno::EEXIST);
        }
        self.maps.insert(map.iova, map);
        Ok(())
    }

    fn dma_unmap(&mut self, what: DmaUnmap) -> Result<u64, Errno> {
        let before: u64 = self.maps.values().map(|map| map.len).sum();
        match what {
            DmaUnmap::All => self.maps.clear(),
            DmaUnmap::Range { iova, len } => {
                let last = iova + (len - 1);
                self.maps.retain(|&start, map| start < iova || start + (map.len - 1) > last);
            }
        }
        let after: u64 = self.maps.values().map(|map| map.len).sum();
        Ok(before.wrapping_sub(after))
    }

    fn set_irqs(&mut self, index: u32, start: u32, action: IrqAction) -> Result<(), Errno> {
        let count = [1, 0, VECTORS][index as usize] as usize;
        let check = |len: usize| assert!(len > 0 && start as usize + len <= count);
        match action {
            IrqAction::Disable => self.vectors.clear(),
            IrqAction::Bind(fds) => {
                check(fds.len());
                self.vectors.resize_with(count, || None);
                for (offset, fd) in fds.into_iter().enumerate() {
                    self.vectors[start as usize + offset] = fd;
                }
            }
            IrqAction::Fire(meant) => {
                check(meant.len());
                for (offset, _) in meant.iter().enumerate().filter(|(_, meant)| **meant) {
                    self.fire(start as usize + offset);
                }
            }
            IrqAction::Mask(meant) => {
                check(meant.len());
                self.log.push(format!("mask {index} {start} {meant:?}"));
            }
            IrqAction::Unmask(meant) => {
                check(meant.len());
                self.log.push(format!("unmask {index} {start} {meant:?}"));
            }
        }
        Ok(())
    }

    fn reset(&mut self) -> Result<(), Errno> {
        self.log.push("reset".into());
        self.bar0.fill(0);
        Ok(())
    }

    fn client_connected(&mut self) {
        self.log.push("connected".into());
    }

    fn client_gone(&mut self) {
        self.log.push("gone".into());
        self.maps.clear();
        self.vectors.clear();
    }
}
