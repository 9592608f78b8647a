//! A queue pair: what it is, and the state of its two halves.
//!
//! The *sender* half belongs to `requester` (and `datagram`), the *receiver* half to `responder`.
//! They are apart because a queue pair may be connected to itself.

use arrayvec::ArrayVec;
use holdfast_wire::attr::{AhAttr, QpAttr, QpState, QpType, ack_timeout_ns, mtu_bytes};

use super::fabric::Route;
use super::host::{QpInit, RecvQueue, RecvRequest};
use super::packet::{Op, psn_diff};
use super::sched::QpRef;
use super::window::Window;

/// Names of a new queue pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QpInfo {
    /// Handle, for commands, doorbells and completions; at most 0xffff.
    pub handle: u32,
    /// Number, for peers; 24 bits. 1 for GSI.
    pub qpn: u32,
}

/// Most atomics whose results a responder keeps.
pub(crate) const MAX_REPLAY: usize = 32;

/// The half that sends.
#[derive(Debug)]
pub(crate) struct Sender {
    pub(crate) window: Window,
    /// Number of the next new packet.
    pub(crate) next_psn: u32,
    /// Retries left after timeouts and sequence errors.
    pub(crate) retries: u8,
    /// Retries left after RNR NAKs.
    pub(crate) rnr_retries: u8,
    /// Not before this time; 0 for now.
    pub(crate) wait_until: u64,
    /// An acknowledgement is due by then; 0 for never.
    pub(crate) ack_deadline: u64,
    /// Since when its own memory misses.
    pub(crate) stalled_since: Option<u64>,
    /// Since when the peer says that it is busy.
    pub(crate) busy_since: Option<u64>,
    /// READ bytes asked of a link and not yet answered.
    pub(crate) read_credit: u64,
}

impl Sender {
    /// Takes everything before packet `psn` as acknowledged, unless that was never sent. Says
    /// whether it was news.
    #[inline]
    pub(crate) fn acknowledge(&mut self, psn: u32) -> bool {
        psn_diff(self.next_psn, psn) >= 0 && self.window.acknowledge(psn)
    }
}

/// A message under way at the receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) op: Op,
    pub(crate) total: u32,
    /// The next burst must begin here.
    pub(crate) next: u32,
}

/// The half that receives.
#[derive(Debug)]
pub(crate) struct Receiver {
    /// Number of the packet that is expected.
    pub(crate) psn: u32,
    pub(crate) message: Option<Message>,
    /// The receive that was taken, while `taken`.
    pub(crate) recv: RecvRequest,
    pub(crate) taken: bool,
    /// A sequence NAK was sent for the packet that is expected.
    pub(crate) nak_sent: bool,
    /// Since when memory misses.
    pub(crate) stalled_since: Option<u64>,
    /// Numbers and results of the last atomics, oldest first.
    pub(crate) replay: ArrayVec<(u32, u64), MAX_REPLAY>,
    /// The first packet has arrived.
    pub(crate) established: bool,
}

/// A queue pair.
#[derive(Debug)]
pub(crate) struct Qp {
    pub(crate) me: QpRef,
    pub(crate) qpn: u32,
    pub(crate) init: QpInit,
    pub(crate) state: QpState,
    /// What MODIFY_QP set, as QUERY_QP tells it; the state apart.
    pub(crate) attr: QpAttr,
    /// Bytes.
    pub(crate) mtu: u32,
    /// The peer's GID.
    pub(crate) peer: u128,
    /// Where the peer is, while `route_epoch` is the fabric's.
    pub(crate) route: Route,
    pub(crate) route_epoch: u64,
    /// The own GID; refreshed with the route.
    pub(crate) own_gid: u128,
    pub(crate) sender: Sender,
    pub(crate) receiver: Receiver,
    /// Stands in the run queue.
    pub(crate) queued: bool,
    /// When its timer fires.
    pub(crate) timer_at: Option<u64>,
    /// It wants an event when it has drained.
    pub(crate) notify_drained: bool,
    /// Its last-receive event was raised.
    pub(crate) last_wqe_told: bool,
}

impl Qp {
    pub(crate) fn new(me: QpRef, qpn: u32, init: QpInit) -> Self {
        Qp {
            me,
            qpn,
            init,
            state: QpState::Reset,
            attr: QpAttr::default(),
            mtu: 1024,
            peer: 0,
            route: Route::Nowhere,
            route_epoch: 0,
            own_gid: 0,
            sender: Sender {
                window: Window::new(),
                next_psn: 0,
                retries: 0,
                rnr_retries: 0,
                wait_until: 0,
                ack_deadline: 0,
                stalled_since: None,
                busy_since: None,
                read_credit: 0,
            },
            receiver: Receiver {
                psn: 0,
                message: None,
                recv: RecvRequest::default(),
                taken: false,
                nak_sent: false,
                stalled_since: None,
                replay: ArrayVec::new(),
                established: false,
            },
            queued: false,
            timer_at: None,
            notify_drained: false,
            last_wqe_told: false,
        }
    }

    pub(crate) fn is_rc(&self) -> bool {
        self.init.qp_type == QpType::Rc
    }

    /// Where its receives come from.
    #[inline]
    pub(crate) fn recv_queue(&self) -> RecvQueue {
        match self.init.srq {
            Some(srq) => RecvQueue::Shared(srq),
            None => RecvQueue::Own(self.me.handle),
        }
    }

    /// Whether packets are taken in this state.
    #[inline]
    pub(crate) fn can_receive(&self) -> bool {
        matches!(
            self.state,
            QpState::ReadyToReceive
                | QpState::ReadyToSend
                | QpState::SendQueueDrained
                | QpState::SendQueueError
        )
    }

    /// The earliest time that something is due, if anything is.
    pub(crate) fn deadline(&self) -> Option<u64> {
        let due = [self.sender.wait_until, self.sender.ack_deadline];
        due.into_iter().filter(|t| *t != 0 && *t != u64::MAX).min()
    }

    /// Starts the clock for an acknowledgement, or stops it when none is awaited.
    pub(crate) fn await_ack(&mut self, now: u64) {
        let timeout = ack_timeout_ns(self.attr.timeout).filter(|_| self.sender.window.awaits());
        self.sender.ack_deadline = timeout.map_or(0, |ns| now.saturating_add(ns));
    }

    /// Refills the retry counters, when progress was made.
    pub(crate) fn refill_retries(&mut self) {
        self.sender.retries = self.attr.retry_cnt;
        self.sender.rnr_retries = self.attr.rnr_retry;
        self.sender.busy_since = None;
    }

    /// Back to how it was created.
    pub(crate) fn reset(&mut self) {
        let fresh = Qp::new(self.me, self.qpn, self.init);
        let (queued, timer_at) = (self.queued, self.timer_at);
        *self = Qp { queued, timer_at, ..fresh };
    }

    /// Takes over new attributes, checked before.
    pub(crate) fn apply(&mut self, mask: u32, new: &QpAttr) {
        use holdfast_wire::attr::mask as m;
        let attr = &mut self.attr;
        let has = |bit: u32| mask & bit != 0;
        macro_rules! take {
            ($($bit:ident: $field:ident),+ $(,)?) => {
                $(if has(m::$bit) { attr.$field = new.$field; })+
            };
        }
        take!(ACCESS_FLAGS: qp_access_flags, PKEY_INDEX: pkey_index, PORT: port_num, QKEY: qkey,
            AV: ah_attr, PATH_MTU: path_mtu, TIMEOUT: timeout, RETRY_CNT: retry_cnt,
            RNR_RETRY: rnr_retry, RQ_PSN: rq_psn, MAX_QP_RD_ATOMIC: max_rd_atomic,
            MIN_RNR_TIMER: min_rnr_timer, SQ_PSN: sq_psn, MAX_DEST_RD_ATOMIC: max_dest_rd_atomic,
            PATH_MIG_STATE: path_mig_state, DEST_QPN: dest_qp_num);
        if has(m::ALT_PATH) {
            attr.alt_ah_attr = new.alt_ah_attr;
            attr.alt_pkey_index = new.alt_pkey_index;
            attr.alt_port_num = new.alt_port_num;
            attr.alt_timeout = new.alt_timeout;
        }
        if has(m::EN_SQD_ASYNC_NOTIFY) {
            self.notify_drained = new.en_sqd_async_notify != 0;
        }
        if has(m::AV) {
            self.peer = u128::from_be_bytes(new.ah_attr.dgid);
            self.route_epoch = 0;
        }
        if has(m::PATH_MTU) {
            self.mtu = mtu_bytes(new.path_mtu).unwrap_or(1024);
        }
        if has(m::RQ_PSN) {
            self.receiver.psn = new.rq_psn & 0xff_ffff;
        }
        if has(m::SQ_PSN) {
            self.sender.next_psn = new.sq_psn & 0xff_ffff;
        }
        if mask & (m::RETRY_CNT | m::RNR_RETRY) != 0 {
            self.refill_retries();
        }
    }

    /// What QUERY_QP tells.
    pub(crate) fn query(&self) -> QpAttr {
        let drains = self.state == QpState::SendQueueDrained && !self.sender.window.is_empty();
        QpAttr {
            qp_state: self.state.wire(),
            cur_qp_state: self.state.wire(),
            cap: self.init.cap,
            sq_draining: drains.into(),
            en_sqd_async_notify: self.notify_drained.into(),
            rq_psn: self.receiver.psn,
            sq_psn: self.sender.next_psn,
            ..self.attr
        }
    }

    /// The address vector in force.
    pub(crate) fn path(&self) -> &AhAttr {
        &self.attr.ah_attr
    }
}
