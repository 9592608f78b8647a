//! Protection domains: what may be used together.

use std::sync::Arc;

use holdfast_wire::cmd;

use crate::device::Device;
use crate::error::Result;
use crate::limits::Permit;
use crate::uar::Uar;

/// A protection domain. Queue pairs, regions and address handles keep it alive.
pub struct ProtectionDomain {
    uar: Arc<Uar>,
    handle: u32,
    _permit: Permit,
}

impl std::fmt::Debug for ProtectionDomain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ProtectionDomain({})", self.handle)
    }
}

impl ProtectionDomain {
    pub(crate) fn new(uar: &Arc<Uar>) -> Result<Arc<Self>> {
        let device = uar.device();
        let permit = device.counts.protection_domains.take()?;
        let request =
            cmd::CreatePd { hdr: Default::default(), ctx_handle: uar.context(), reserved: 0 };
        let response = device.channel.execute(request)?;
        Ok(Arc::new(Self { uar: uar.clone(), handle: response.pd_handle, _permit: permit }))
    }

    /// The device's handle.
    pub fn handle(&self) -> u32 {
        self.handle
    }

    /// The device it belongs to.
    pub fn device(&self) -> &Arc<Device> {
        self.uar.device()
    }
}

impl Drop for ProtectionDomain {
    fn drop(&mut self) {
        let request =
            cmd::DestroyPd { hdr: Default::default(), pd_handle: self.handle, reserved: 0 };
        if let Err(error) = self.device().channel.execute(request)
            && !error.is_gone()
        {
            tracing::warn!(%error, pd = self.handle, "a protection domain was not destroyed");
        }
    }
}
