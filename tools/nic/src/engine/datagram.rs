//! Unreliable datagrams, both ends: UD queue pairs and the general services one (number 1).
//!
//! A send is over when it has left. A datagram that finds no queue pair, the wrong queue key, no
//! receive, or memory without translation is dropped without a word. The receiver gets 40 bytes of
//! global routing header before the payload, in network order as on the wire.

use holdfast_wire::attr::{ACCESS_LOCAL_WRITE, QpType, mtu_bytes};
use holdfast_wire::completion::{CqeOpcode, Status, WC_GRH, WC_WITH_IMM};
use holdfast_wire::wqe::{FLAG_INLINE, FLAG_SOLICITED, Opcode, Ud};
use zerocopy::FromBytes;

use super::completion::Posted;
use super::fabric::Route;
use super::gather::{self, Memory, Obstacle, Payload};
use super::host::{Completion, Fetch, Host};
use super::link::{FULL_WAIT, Unsent};
use super::packet::{Datagram, Ends};
use super::requester::{Scratch, Step};
use super::responder::Responder;
use super::sched::QpRef;
use super::vendor;
use super::{Budget, Engine};

/// Bytes of a global routing header.
const GRH: usize = 40;

impl<H: Host> Engine<H> {
    /// One turn of a datagram queue pair: one datagram.
    pub(super) fn datagram_step(&mut self, at: QpRef, now: u64, budget: &mut Budget) -> Step {
        if self.settle(at, now) == Step::Stop {
            return Step::Stop;
        }
        let Some(qp) = self.nics[at.nic].qps.get(at.handle) else { return Step::Stop };
        if qp.sender.window.is_empty() && self.fetch(at, now, budget) == Step::Stop {
            return Step::Stop;
        }
        let nic = &mut self.nics[at.nic];
        let limits = nic.config.limits;
        let Some(qp) = nic.qps.get_mut(at.handle) else { return Step::Stop };
        let Some(wqe) = qp.sender.window.get(0) else { return Step::Stop };
        if wqe.failed.is_some() || wqe.is_over() {
            return Step::Go;
        }
        let request = &wqe.request;
        if !matches!(request.opcode, Opcode::Send | Opcode::SendImm) {
            return self.fail_at(at, 0, Status::LocalQpOperation, vendor::OPCODE);
        }
        if wqe.total > mtu_bytes(limits.max_mtu).unwrap_or(4096) {
            return self.fail_at(at, 0, Status::LocalLength, vendor::LENGTH);
        }
        let ud = Ud::read_from_bytes(&request.body).ok();
        let from = ud.and_then(|ud| nic.gids.get(usize::from(ud.av.gid_index)).copied().flatten());
        let (Some(ud), Some(from)) = (ud, from) else {
            return self.fail_at(at, 0, Status::LocalQpOperation, vendor::GID_INDEX);
        };
        // A queue key with the top bit set is a privileged one: the queue pair's own is meant.
        let qkey = if ud.remote_qkey >> 31 != 0 { qp.attr.qkey } else { ud.remote_qkey };
        let datagram = Datagram {
            ends: Ends {
                to: u128::from_be_bytes(ud.av.dgid),
                to_qpn: ud.remote_qpn & 0xff_ffff,
                from,
                from_qpn: qp.qpn,
            },
            qkey,
            solicited: request.flags & FLAG_SOLICITED != 0,
            imm: (request.opcode == Opcode::SendImm).then_some(request.ex),
            class_flow: ud.av.sl_tclass_flowlabel & 0x0fff_ffff,
            hop_limit: ud.av.hop_limit,
            len: wqe.total,
        };
        let is_inline = request.flags & FLAG_INLINE != 0;
        let scratch = &mut *self.scratch;
        if is_inline {
            scratch.inline.clone_from(&request.inline);
        } else {
            let len = datagram.len as usize;
            let mut memory = Memory { host: &mut nic.host, mrs: &nic.mrs, pd: qp.init.pd };
            match memory.entries(&request.sges, 0, len, 0, &mut scratch.own) {
                Ok(got) if got == len => {}
                Ok(_) => return self.fail_at(at, 0, Status::LocalQpOperation, vendor::PIECES),
                Err(Obstacle::Refused) => {
                    return self.fail_at(at, 0, Status::LocalProtection, vendor::ENTRY);
                }
                Err(Obstacle::Miss(_)) => return self.missed(at, 0, now),
            }
        }
        let Scratch { own, peer, inline } = scratch;
        let payload = if is_inline { Payload::Bytes(inline) } else { Payload::Spans(own) };
        match self.fabric.route(datagram.ends.to) {
            Route::Nowhere => nic.counters.datagrams_dropped += 1,
            Route::Nic(there) => {
                let nic = &mut self.nics[there];
                Responder { nic, sched: &mut self.sched, spans: peer, now }
                    .receive_datagram(&datagram, payload);
            }
            Route::Link(link) => match self.links.send_datagram(link, &datagram, payload) {
                Ok(()) => {}
                Err(Unsent::Full) => {
                    self.wait(at, now.saturating_add(FULL_WAIT));
                    return Step::Stop;
                }
                Err(Unsent::Gone) => return self.missed(at, 0, now),
            },
        }
        let nic = &mut self.nics[at.nic];
        nic.counters.packets_sent += 1;
        nic.counters.bytes_sent += u64::from(datagram.len);
        budget.spend(datagram.len, 0);
        if let Some(qp) = nic.qps.get_mut(at.handle) {
            qp.sender.window.cursor = 1;
            if let Some(wqe) = qp.sender.window.get_mut(0) {
                wqe.done = true;
            }
        }
        Step::Go
    }
}

impl<H: Host> Responder<'_, H> {
    /// Takes a datagram, or drops it.
    pub(crate) fn receive_datagram(&mut self, datagram: &Datagram, payload: Payload<'_>) {
        if self.accept(datagram, payload).is_none() {
            self.nic.counters.datagrams_dropped += 1;
        }
    }

    /// `None` when the datagram is dropped.
    fn accept(&mut self, datagram: &Datagram, payload: Payload<'_>) -> Option<()> {
        let handle = self.nic.handle_of(datagram.ends.to_qpn)?;
        let qp = self.nic.qps.get(handle)?;
        let of_kind = matches!(qp.init.qp_type, QpType::Ud | QpType::Gsi);
        if !of_kind || !qp.can_receive() || qp.attr.qkey != datagram.qkey {
            return None;
        }
        self.nic.counters.packets_received += 1;
        // A receive that an earlier, dropped datagram had taken is still there.
        if !qp.receiver.taken {
            match self.nic.take_receive(handle) {
                Fetch::Got => {}
                Fetch::Malformed => {
                    return self.fail_receive(handle, datagram, Status::LocalQpOperation);
                }
                Fetch::Corrupt => {
                    self.nic.fatal(self.sched, handle);
                    return None;
                }
                Fetch::Empty | Fetch::Miss(_) => return None,
            }
        }
        let qp = self.nic.qps.get(handle)?;
        let (pd, sges) = (qp.init.pd, &qp.receiver.recv.sges);
        let len = datagram.len as usize;
        if gather::total(sges) < (GRH + len) as u64 {
            return self.fail_receive(handle, datagram, Status::LocalLength);
        }
        let header = grh(datagram);
        for (skip, part) in [(0, Payload::Bytes(&header)), (GRH, payload)] {
            let want = if skip == 0 { GRH } else { len };
            let mut memory = Memory { host: &mut self.nic.host, mrs: &self.nic.mrs, pd };
            match memory.entries(sges, skip as u64, want, ACCESS_LOCAL_WRITE, self.spans) {
                Ok(got) if got == want => {}
                Ok(_) | Err(Obstacle::Refused) => {
                    return self.fail_receive(handle, datagram, Status::LocalProtection);
                }
                Err(Obstacle::Miss(_)) => {
                    self.nic.counters.translation_misses += 1;
                    return None;
                }
            }
            if part.copy_to(self.spans).is_err() {
                self.nic.counters.translation_misses += 1;
                return None;
            }
        }
        self.nic.counters.bytes_received += u64::from(datagram.len);
        self.complete_datagram(handle, datagram, Status::Success)
    }

    /// A receive that cannot take what came: it fails, and with it the queue pair.
    #[cold]
    fn fail_receive(&mut self, handle: u32, datagram: &Datagram, status: Status) -> Option<()> {
        self.complete_datagram(handle, datagram, status)?;
        self.nic.enter_error(self.sched, handle);
        None
    }

    fn complete_datagram(
        &mut self,
        handle: u32,
        datagram: &Datagram,
        status: Status,
    ) -> Option<()> {
        let qp = self.nic.qps.get(handle)?;
        let success = status == Status::Success;
        let imm = if datagram.imm.is_some() { WC_WITH_IMM } else { 0 };
        let entry = Completion {
            wr_id: qp.receiver.recv.wr_id,
            qp_handle: handle,
            opcode: CqeOpcode::Recv.wire(),
            status,
            byte_len: if success { datagram.len + GRH as u32 } else { 0 },
            imm_data: datagram.imm.unwrap_or(0),
            src_qp: datagram.ends.from_qpn,
            wc_flags: WC_GRH | imm,
            vendor_err: 0,
            solicited: datagram.solicited || !success,
        };
        match self.nic.post(self.sched, qp.init.recv_cq, &entry) {
            Posted::Yes => {
                self.nic.qps.get_mut(handle)?.receiver.taken = false;
                Some(())
            }
            Posted::Later | Posted::Lost => None,
        }
    }
}

/// The global routing header (IBTA 1.4, 8.3).
fn grh(datagram: &Datagram) -> [u8; GRH] {
    let mut grh = [0; GRH];
    grh[..4].copy_from_slice(&(6 << 28 | datagram.class_flow).to_be_bytes());
    grh[4..6].copy_from_slice(&(datagram.len as u16).to_be_bytes());
    grh[6] = 0x1b;
    grh[7] = datagram.hop_limit;
    grh[8..24].copy_from_slice(&datagram.ends.from.to_be_bytes());
    grh[24..].copy_from_slice(&datagram.ends.to.to_be_bytes());
    grh
}
