//! The queue pair state machine: each transition with exactly the attributes the InfiniBand
//! specification (11.2.5.2, table 91) asks for, and no others, as devices may refuse more.

use std::sync::{Arc, PoisonError};

use holdfast_wire::attr::{
    ACCESS_REMOTE_ATOMIC, ACCESS_REMOTE_READ, ACCESS_REMOTE_WRITE, QpAttr, QpState, QpType, mask,
    mtu_bytes,
};
use holdfast_wire::cmd;

use crate::ah::Path;
use crate::error::{Error, Result};
use crate::qp_inner::QpInner;
use crate::recv::RecvQueue;
use crate::send::SendQueue;

/// Queue pair numbers and packet sequence numbers have 24 bits.
const BITS_24: u32 = 0x00ff_ffff;

/// What a device with [`crate::Quirks::queries_few_attributes`] answers in the right place.
const FEW: u32 = mask::STATE
    | mask::CUR_STATE
    | mask::PATH_MTU
    | mask::QKEY
    | mask::RQ_PSN
    | mask::SQ_PSN
    | mask::DEST_QPN
    | mask::ACCESS_FLAGS;

/// Attributes of the step to INIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Init {
    /// Port, counted from 1.
    pub port: u8,
    /// Partition key index.
    pub pkey_index: u16,
    /// RC: `holdfast_wire::attr::ACCESS_REMOTE_*` that the peer gets.
    pub access: u32,
    /// UD: our queue key.
    pub qkey: u32,
}

impl Default for Init {
    fn default() -> Self {
        Self {
            port: 1,
            pkey_index: 0,
            access: ACCESS_REMOTE_WRITE | ACCESS_REMOTE_READ | ACCESS_REMOTE_ATOMIC,
            qkey: 0,
        }
    }
}

/// Attributes of the step to RTR of an RC queue pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadyToReceive {
    /// Path to the peer.
    pub path: Path,
    /// MTU code, 1 to 5 for 256 to 4096 bytes.
    pub path_mtu: u32,
    /// The peer's queue pair number.
    pub dest_qpn: u32,
    /// First packet sequence number to expect.
    pub rq_psn: u32,
    /// Reads and atomics of the peer's that may be outstanding.
    pub max_dest_rd_atomic: u8,
    /// RNR NAK timer code (IBTA table 45).
    pub min_rnr_timer: u8,
}

/// Attributes of the step to RTS of an RC queue pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadyToSend {
    /// First packet sequence number to send.
    pub sq_psn: u32,
    /// ACK timeout code: 4.096 µs · 2^timeout, 0 for never.
    pub timeout: u8,
    /// Retries after a timeout or a sequence error, up to 7.
    pub retry_cnt: u8,
    /// Retries after RNR, up to 7, which means for ever.
    pub rnr_retry: u8,
    /// Reads and atomics of ours that may be outstanding.
    pub max_rd_atomic: u8,
}

impl Default for ReadyToSend {
    fn default() -> Self {
        Self { sq_psn: 0, timeout: 14, retry_cnt: 7, rnr_retry: 7, max_rd_atomic: 16 }
    }
}

/// The commands of a queue pair. Every method that talks to the device blocks for a command.
pub struct QpControl {
    inner: Arc<QpInner>,
}

impl std::fmt::Debug for QpControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (handle, qpn, state) = (self.handle(), self.qpn(), self.state());
        write!(f, "QpControl(handle {handle}, number {qpn}, {state:?})")
    }
}

impl QpControl {
    pub(crate) fn new(inner: Arc<QpInner>) -> Self {
        Self { inner }
    }

    /// Queue pair number, to give to peers.
    pub fn qpn(&self) -> u32 {
        self.inner.qpn
    }

    /// Handle, as completions and events name it.
    pub fn handle(&self) -> u32 {
        self.inner.handle
    }

    /// Its type.
    pub fn qp_type(&self) -> QpType {
        self.inner.qp_type
    }

    /// The state the driver last moved it to. The device may have moved it to an error state
    /// since; [`QpControl::query`] asks.
    pub fn state(&self) -> QpState {
        self.inner.state()
    }

    /// Requests the device has and has not completed (not those of a shared receive queue).
    pub fn outstanding(&self) -> u32 {
        self.inner.outstanding()
    }

    /// RESET to INIT: receives may be posted.
    pub fn to_init(&self, init: &Init) -> Result<()> {
        let own = match self.inner.qp_type {
            QpType::Ud => mask::QKEY,
            _ => mask::ACCESS_FLAGS,
        };
        let attrs = QpAttr {
            port_num: init.port,
            pkey_index: init.pkey_index,
            qp_access_flags: init.access,
            qkey: init.qkey,
            ..Default::default()
        };
        let bits = mask::PKEY_INDEX | mask::PORT | own;
        modify(&self.inner, &[QpState::Reset, QpState::Init], QpState::Init, bits, attrs)
    }

    /// INIT to RTR of an RC queue pair: it answers the peer.
    pub fn to_rtr(&self, rtr: &ReadyToReceive) -> Result<()> {
        self.only(QpType::Rc, "connect")?;
        if mtu_bytes(rtr.path_mtu).is_none() {
            return Err(Error::Limit {
                what: "MTU code",
                asked: u64::from(rtr.path_mtu),
                limit: 5,
            });
        }
        Error::check_limit("queue pair number", u64::from(rtr.dest_qpn), u64::from(BITS_24))?;
        Error::check_limit("packet sequence number", u64::from(rtr.rq_psn), u64::from(BITS_24))?;
        Error::check_limit("RNR timer code", u64::from(rtr.min_rnr_timer), 31)?;
        rtr.path.check_bound(self.inner.device())?;
        let attrs = QpAttr {
            ah_attr: rtr.path.attributes()?,
            path_mtu: rtr.path_mtu,
            dest_qp_num: rtr.dest_qpn,
            rq_psn: rtr.rq_psn,
            max_dest_rd_atomic: rtr.max_dest_rd_atomic,
            min_rnr_timer: rtr.min_rnr_timer,
            ..Default::default()
        };
        let bits = mask::AV
            | mask::PATH_MTU
            | mask::DEST_QPN
            | mask::RQ_PSN
            | mask::MAX_DEST_RD_ATOMIC
            | mask::MIN_RNR_TIMER;
        modify(&self.inner, &[QpState::Init], QpState::ReadyToReceive, bits, attrs)?;
        self.inner.set_gid_index(rtr.path.sgid_index);
        Ok(())
    }

    /// INIT to RTR of a UD queue pair.
    pub fn to_rtr_datagram(&self) -> Result<()> {
        self.only(QpType::Ud, "receive datagrams")?;
        let attrs = QpAttr::default();
        modify(&self.inner, &[QpState::Init], QpState::ReadyToReceive, 0, attrs)
    }

    /// RTR to RTS of an RC queue pair: sends may be posted.
    pub fn to_rts(&self, rts: &ReadyToSend) -> Result<()> {
        self.only(QpType::Rc, "send on a connection")?;
        Error::check_limit("packet sequence number", u64::from(rts.sq_psn), u64::from(BITS_24))?;
        Error::check_limit("ACK timeout code", u64::from(rts.timeout), 31)?;
        Error::check_limit("retry count", u64::from(rts.retry_cnt), 7)?;
        Error::check_limit("RNR retry count", u64::from(rts.rnr_retry), 7)?;
        let attrs = QpAttr {
            sq_psn: rts.sq_psn,
            timeout: rts.timeout,
            retry_cnt: rts.retry_cnt,
            rnr_retry: rts.rnr_retry,
            max_rd_atomic: rts.max_rd_atomic,
            ..Default::default()
        };
        let bits = mask::SQ_PSN
            | mask::TIMEOUT
            | mask::RETRY_CNT
            | mask::RNR_RETRY
            | mask::MAX_QP_RD_ATOMIC;
        modify(&self.inner, &[QpState::ReadyToReceive], QpState::ReadyToSend, bits, attrs)
    }

    /// RTR to RTS of a UD queue pair.
    pub fn to_rts_datagram(&self, sq_psn: u32) -> Result<()> {
        self.only(QpType::Ud, "send datagrams")?;
        Error::check_limit("packet sequence number", u64::from(sq_psn), u64::from(BITS_24))?;
        let attrs = QpAttr { sq_psn, ..Default::default() };
        let from = [QpState::ReadyToReceive];
        modify(&self.inner, &from, QpState::ReadyToSend, mask::SQ_PSN, attrs)
    }

    /// RTS to SQD: sends under way finish, no new ones start. With `notify`, an event says when.
    pub fn to_sqd(&self, notify: bool) -> Result<()> {
        let attrs = QpAttr { en_sqd_async_notify: u8::from(notify), ..Default::default() };
        let bits = if notify { mask::EN_SQD_ASYNC_NOTIFY } else { 0 };
        modify(&self.inner, &[QpState::ReadyToSend], QpState::SendQueueDrained, bits, attrs)
    }

    /// SQD (or, for UD, SQE) back to RTS.
    pub fn resume(&self) -> Result<()> {
        let from = [QpState::SendQueueDrained, QpState::SendQueueError, QpState::ReadyToSend];
        modify(&self.inner, &from, QpState::ReadyToSend, 0, QpAttr::default())
    }

    /// Any state to ERR: the device completes everything outstanding as flushed, except on
    /// devices that never flush ([`crate::Quirks::never_flushes`]).
    pub fn to_error(&self) -> Result<()> {
        if self.inner.device().quirks().never_flushes {
            return Err(Error::Unsupported {
                what: "flush a queue pair",
                why: "it ignores the ERR state; destroy the queue pair instead",
            });
        }
        modify_to_error(&self.inner)
    }

    /// Any state back to RESET with empty queues; `send` and `recv` must be this queue pair's.
    ///
    /// # Errors
    /// [`Error::Unsupported`] on devices where RESET does nothing; destroy it and make a new one.
    pub fn reset(&self, send: &mut SendQueue, recv: Option<&mut RecvQueue>) -> Result<()> {
        if self.inner.device().quirks().never_flushes {
            return Err(Error::Unsupported {
                what: "reset a queue pair",
                why: "it ignores the RESET state; destroy the queue pair and make a new one",
            });
        }
        let ours = Arc::ptr_eq(send.qp(), &self.inner)
            && recv.as_ref().is_none_or(|queue| Arc::ptr_eq(queue.qp(), &self.inner))
            && recv.is_some() == self.inner.has_own_receives();
        if !ours {
            return Err(Error::Invalid("the queues given are not those of this queue pair"));
        }
        modify(&self.inner, QpState::ALL, QpState::Reset, 0, QpAttr::default())?;
        self.inner.restart(send, recv)
    }

    /// Asks the device for the attributes named by `wanted` (`holdfast_wire::attr::mask`).
    ///
    /// # Errors
    /// [`Error::Unsupported`] for those that [some devices](crate::Quirks::queries_few_attributes)
    /// answer elsewhere in the structure.
    pub fn query(&self, wanted: u32) -> Result<QpAttr> {
        if self.inner.device().quirks().queries_few_attributes && wanted & !FEW != 0 {
            return Err(Error::Unsupported {
                what: "tell these attributes of a queue pair",
                why: "it answers in a layout of its own; ask for state, path MTU, queue key, \
                      sequence numbers, the peer's number and access rights only",
            });
        }
        let request = cmd::QueryQp {
            hdr: Default::default(),
            qp_handle: self.inner.handle,
            attr_mask: wanted,
        };
        Ok(self.inner.device().channel.execute(request)?.attrs)
    }

    /// Asks the device for the state.
    pub fn query_state(&self) -> Result<QpState> {
        let state = self.query(mask::STATE)?.qp_state;
        QpState::try_from(state)
            .map_err(|value| Error::nonsense("queue pair state", u64::from(value)))
    }

    fn only(&self, qp_type: QpType, what: &'static str) -> Result<()> {
        if self.inner.qp_type == qp_type {
            return Ok(());
        }
        Err(Error::Unsupported { what, why: "the queue pair is of the other type" })
    }
}

/// To ERR, from wherever it is.
pub(crate) fn modify_to_error(inner: &QpInner) -> Result<()> {
    modify(inner, QpState::ALL, QpState::Error, 0, QpAttr::default())
}

/// One MODIFY_QP from one of the states `from`.
fn modify(
    inner: &QpInner,
    from: &[QpState],
    to: QpState,
    bits: u32,
    mut attrs: QpAttr,
) -> Result<()> {
    let _one_at_a_time = inner.transition.lock().unwrap_or_else(PoisonError::into_inner);
    let state = inner.state();
    if !from.contains(&state) {
        return Err(Error::QpState { state, what: step(to) });
    }
    attrs.qp_state = to.wire();
    inner.device().channel.execute(cmd::ModifyQp {
        hdr: Default::default(),
        qp_handle: inner.handle,
        attr_mask: bits | mask::STATE,
        attrs,
    })?;
    inner.set_state(to);
    Ok(())
}

fn step(to: QpState) -> &'static str {
    match to {
        QpState::Reset => "the step to RESET",
        QpState::Init => "the step to INIT",
        QpState::ReadyToReceive => "the step to RTR",
        QpState::ReadyToSend => "the step to RTS",
        QpState::SendQueueDrained => "the step to SQD",
        QpState::SendQueueError => "the step to SQE",
        QpState::Error => "the step to ERR",
    }
}
