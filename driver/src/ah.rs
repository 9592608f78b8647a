//! Address handles: where a datagram goes. The device has no command for them; they are part of
//! each UD send request.

use std::sync::Arc;

use holdfast_wire::attr::AhAttr;
use holdfast_wire::wqe::Av;

use crate::error::{Error, Result};
use crate::pd::ProtectionDomain;
use crate::request::Datagram;

/// A path to another port, for datagrams and for connecting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// GID of the other port.
    pub dgid: [u8; 16],
    /// MAC address of the next hop. `None` takes it from a link-local GID, whose last 8 bytes
    /// hold it as a modified EUI-64 (RFC 4291, appendix A).
    pub dmac: Option<[u8; 6]>,
    /// Index of our GID in the table; see [`crate::Device::bind_gid`].
    pub sgid_index: u8,
    /// Hop limit; 1 stays on the link.
    pub hop_limit: u8,
    /// Traffic class.
    pub traffic_class: u8,
    /// Flow label, 20 bits.
    pub flow_label: u32,
    /// Service level.
    pub sl: u8,
    /// Our port, counted from 1.
    pub port: u8,
}

impl Path {
    /// A path with plain values, from GID `sgid_index` of port 1.
    pub fn new(dgid: [u8; 16], sgid_index: u8) -> Self {
        Self {
            dgid,
            dmac: None,
            sgid_index,
            hop_limit: 64,
            traffic_class: 0,
            flow_label: 0,
            sl: 0,
            port: 1,
        }
    }

    /// The next hop's MAC address.
    fn mac(&self) -> [u8; 6] {
        let g = &self.dgid;
        self.dmac.unwrap_or([g[8] ^ 2, g[9], g[10], g[13], g[14], g[15]])
    }

    fn check(&self) -> Result<()> {
        Error::check_limit("flow label", u64::from(self.flow_label), 0xf_ffff)?;
        if self.port == 0 { Err(Error::Invalid("ports are counted from 1")) } else { Ok(()) }
    }

    /// Refuses a source that is not in the device's table: a device may hang on the first send.
    pub(crate) fn check_bound(&self, device: &crate::Device) -> Result<()> {
        match device.gid(u32::from(self.sgid_index)) {
            Some(_) => Ok(()),
            None => Err(Error::Invalid("no GID is bound at the path's source index: bind one")),
        }
    }

    /// The form MODIFY_QP wants.
    pub(crate) fn attributes(&self) -> Result<AhAttr> {
        self.check()?;
        Ok(AhAttr {
            dgid: self.dgid,
            flow_label: self.flow_label,
            sgid_index: self.sgid_index,
            hop_limit: self.hop_limit,
            traffic_class: self.traffic_class,
            vlan_id: 0xffff,
            sl: self.sl,
            ah_flags: 1,
            port_num: self.port,
            dmac: self.mac(),
            ..Default::default()
        })
    }
}

/// A destination for datagrams of one protection domain.
#[derive(Debug, Clone)]
pub struct AddressHandle {
    av: Av,
    pd: Arc<ProtectionDomain>,
}

impl AddressHandle {
    /// Makes the handle; no command is involved.
    pub fn new(pd: &Arc<ProtectionDomain>, path: &Path) -> Result<Self> {
        path.check()?;
        path.check_bound(pd.device())?;
        let av = Av {
            port_pd: pd.handle() & 0x00ff_ffff | u32::from(path.port) << 24,
            sl_tclass_flowlabel: u32::from(path.traffic_class) << 20 | path.flow_label,
            dgid: path.dgid,
            src_path_bits: 0x80,
            gid_index: path.sgid_index,
            stat_rate: 0,
            hop_limit: path.hop_limit,
            dmac: path.mac(),
            reserved: [0; 6],
        };
        Ok(Self { av, pd: pd.clone() })
    }

    /// Its protection domain.
    pub fn protection_domain(&self) -> &Arc<ProtectionDomain> {
        &self.pd
    }

    /// The body of a send request to this address.
    #[inline]
    pub(crate) fn body(&self, to: &Datagram<'_>) -> [u64; 6] {
        let ud = holdfast_wire::wqe::Ud { remote_qpn: to.qpn, remote_qkey: to.qkey, av: self.av };
        zerocopy::transmute!(ud)
    }
}
