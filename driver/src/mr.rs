//! Memory regions: pages the device may reach, named by keys.

use std::sync::Arc;

use holdfast_wire::attr::{
    ACCESS_LOCAL_WRITE, ACCESS_REMOTE_ATOMIC, ACCESS_REMOTE_READ, ACCESS_REMOTE_WRITE,
};
use holdfast_wire::{PAGE_SIZE, cmd, pdir};

use crate::error::{Error, Result};
use crate::limits::Permit;
use crate::pages::PageDirectory;
use crate::pd::ProtectionDomain;

/// Access rights that reach a region from outside.
const REMOTE: u32 = ACCESS_REMOTE_WRITE | ACCESS_REMOTE_READ | ACCESS_REMOTE_ATOMIC;

/// A registered region. The pages it names must stay mapped for the device until it is gone.
pub struct MemoryRegion {
    pd: Arc<ProtectionDomain>,
    handle: u32,
    lkey: u32,
    rkey: u32,
    start: u64,
    length: u64,
    directory: Option<PageDirectory>,
    _permits: [Permit; 2],
}

impl std::fmt::Debug for MemoryRegion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MemoryRegion({:#x}+{:#x}, lkey {:#x})", self.start, self.length, self.lkey)
    }
}

impl MemoryRegion {
    pub(crate) fn new(
        pd: &Arc<ProtectionDomain>,
        start: u64,
        length: u64,
        pages: &[u64],
        access: u32,
    ) -> Result<Self> {
        let device = pd.device();
        let quirks = device.quirks();
        if length == 0 {
            return Err(Error::Invalid("a memory region of no bytes"));
        }
        let most = device.limits().max_mr_size.min((pdir::MAX_PAGES * PAGE_SIZE) as u64);
        Error::check_limit("memory region length in bytes", length, most)?;
        if start.checked_add(length).is_none() {
            return Err(Error::Invalid("a memory region that passes the end of address space"));
        }
        let lead = start % PAGE_SIZE as u64;
        if quirks.aligned_regions_only && lead != 0 {
            return Err(Error::Unsupported {
                what: "register a region that does not start on a page boundary",
                why: "its page count ignores the offset; align the start to 4096 bytes",
            });
        }
        let spanned = (lead + length).div_ceil(PAGE_SIZE as u64);
        if spanned != pages.len() as u64 {
            return Err(Error::Invalid(
                "the page list must name every page the region touches, and no more",
            ));
        }
        if access & (ACCESS_REMOTE_WRITE | ACCESS_REMOTE_ATOMIC) != 0
            && access & ACCESS_LOCAL_WRITE == 0
        {
            return Err(Error::Invalid("remote write or atomic access needs local write access"));
        }
        if quirks.sends_only && access & REMOTE != 0 {
            return Err(Error::Unsupported {
                what: "give remote access to a region",
                why: "it carries out only SEND and RECV, and its remote keys mean nothing",
            });
        }
        let permits = [
            device.counts.memory_regions.take()?,
            device.counts.registered_pages.take_many(pages.len() as u32)?,
        ];
        let directory = PageDirectory::new(device.dma.as_ref(), pages)?;
        let created = device.channel.execute(cmd::CreateMr {
            hdr: Default::default(),
            start,
            length,
            pdir_dma: directory.address(),
            pd_handle: pd.handle(),
            access_flags: access,
            flags: 0,
            nchunks: directory.count(),
        });
        let response = match created {
            Ok(response) => response,
            Err(error) => return Err(device.not_created("memory region", error, directory)),
        };
        Ok(Self {
            pd: pd.clone(),
            handle: response.mr_handle,
            lkey: response.lkey,
            rkey: response.rkey,
            start,
            length,
            directory: Some(directory),
            _permits: permits,
        })
    }

    /// Key for scatter/gather entries.
    pub fn lkey(&self) -> u32 {
        self.lkey
    }

    /// Key to give to peers. Means nothing on a device that carries out only sends
    /// ([`crate::Quirks::sends_only`]).
    pub fn rkey(&self) -> u32 {
        self.rkey
    }

    /// The device's handle.
    pub fn handle(&self) -> u32 {
        self.handle
    }

    /// Where the region starts in its own address space.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Its protection domain.
    pub fn protection_domain(&self) -> &Arc<ProtectionDomain> {
        &self.pd
    }

    /// Takes the region from the device, which will not touch its pages again once this returns
    /// `Ok`. On an error it still may: keep the pages mapped. Blocks for a command.
    pub fn destroy(mut self) -> Result<()> {
        self.revoke()
    }

    fn revoke(&mut self) -> Result<()> {
        let Some(directory) = self.directory.take() else { return Ok(()) };
        let request =
            cmd::DestroyMr { hdr: Default::default(), mr_handle: self.handle, reserved: 0 };
        let result = self.pd.device().channel.execute(request).map(drop);
        if result.as_ref().is_err_and(|error| !error.is_gone()) {
            // The device may still read the directory.
            std::mem::forget(directory);
        }
        result
    }
}

impl Drop for MemoryRegion {
    fn drop(&mut self) {
        if let Err(error) = self.revoke()
            && !error.is_gone()
        {
            tracing::error!(%error, region = ?self, "a memory region was not destroyed");
        }
    }
}
