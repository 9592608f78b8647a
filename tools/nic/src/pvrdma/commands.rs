//! The command slot: one request in, one response out.

use holdfast_wire::PAGE_SIZE;
use holdfast_wire::attr::{QpAttr, QpCap, QpState, QpType, mask};
use holdfast_wire::cmd::{self, Command, MAX_REQUEST, MAX_RESPONSE, RequestHeader, ResponseHeader};
use holdfast_wire::completion::CQE_SIZE;
use holdfast_wire::dsr::{GID_TYPE_ROCE_V1, GID_TYPE_ROCE_V2};
use holdfast_wire::regs::{ERR_NO_DSR, VECTOR_RESPONSE, VERSION_QP_HANDLE};
use holdfast_wire::ring::RingSize;
use zerocopy::{FromBytes, IntoBytes};

use super::client::{self, BadDirectory, Unreachable};
use super::cq::CompletionRing;
use super::device::negative;
use super::front::{QpRings, SrqRings, put, take};
use super::pages::QueuePages;
use super::work::WorkRing;
use super::{Device, Front, caps};
use crate::engine::host::{Miss, QpInit};
use crate::engine::{self, Engine, MrInit, MrKind, SrqInit};

/// Why a command failed, as a positive errno for the response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Errno(i32);

/// Most pages of a queue pair: other NICs of the process wait while their list is read.
const MAX_QP_PAGES: u32 = 8193;

const INVALID: Errno = Errno(libc::EINVAL);

impl From<engine::Error> for Errno {
    fn from(error: engine::Error) -> Self {
        tracing::debug!(%error, "command refused");
        Errno(error.errno())
    }
}

impl From<BadDirectory> for Errno {
    fn from(error: BadDirectory) -> Self {
        tracing::debug!(%error, "command refused");
        match error {
            BadDirectory::Unreachable(_) => Errno(libc::EFAULT),
            _ => INVALID,
        }
    }
}

impl From<Unreachable> for Errno {
    fn from(_: Unreachable) -> Self {
        Errno(libc::EFAULT)
    }
}

impl From<Miss> for Errno {
    fn from(_: Miss) -> Self {
        Errno(libc::EFAULT)
    }
}

/// A response under construction; every response type fits.
struct Response([u8; MAX_RESPONSE]);

type Outcome = Result<Response, Errno>;

fn answer<T: IntoBytes + zerocopy::Immutable>(body: &T) -> Outcome {
    let mut bytes = [0; MAX_RESPONSE];
    let body = body.as_bytes();
    bytes[..body.len()].copy_from_slice(body);
    Ok(Response(bytes))
}

fn done() -> Outcome {
    Ok(Response([0; MAX_RESPONSE]))
}

fn parse<T: FromBytes>(request: &[u8; MAX_REQUEST]) -> Result<T, Errno> {
    T::read_from_prefix(request).map(|(value, _)| value).map_err(|_| INVALID)
}

impl Device {
    /// Executes the command slot and gives the value of ERR.
    pub(super) fn request(&mut self, engine: &mut Engine<Front>) -> u32 {
        let Some(slots) = self.slots else { return ERR_NO_DSR };
        let mut request = [0; MAX_REQUEST];
        let front = engine.host(self.nic);
        front.counters.commands += 1;
        if client::read_bytes(&mut front.reader, slots.command, &mut request).is_err() {
            front.counters.failed_commands += 1;
            return negative(libc::EFAULT);
        }
        let Ok(header) = parse::<RequestHeader>(&request) else { return negative(libc::EINVAL) };
        let known = Command::try_from(header.cmd);
        let outcome = match known {
            Ok(command) => self.execute(engine, command, &request),
            Err(_) => Err(INVALID),
        };
        let front = engine.host(self.nic);
        let (mut bytes, errno) = match outcome {
            Ok(Response(bytes)) => (bytes, 0),
            Err(Errno(errno)) => {
                front.counters.failed_commands += 1;
                ([0; MAX_RESPONSE], errno)
            }
        };
        let header = ResponseHeader {
            response: header.response,
            ack: cmd::ack(header.cmd),
            err: u8::try_from(errno).unwrap_or(libc::EINVAL as u8),
            reserved: [0; 3],
        };
        bytes[..size_of::<ResponseHeader>()].copy_from_slice(header.as_bytes());
        let err = match known {
            Err(_) => ERR_NO_DSR,
            Ok(_) => {
                self.respond(front, slots.response, &bytes).map_or(libc::EFAULT, |()| errno) as u32
            }
        };
        front.irqs.fire(VECTOR_RESPONSE);
        match err {
            ERR_NO_DSR => ERR_NO_DSR,
            errno => negative(errno as i32),
        }
    }

    /// Writes the response so that a driver that polls for the acknowledgement sees it last.
    fn respond(
        &self,
        front: &mut Front,
        slot: u64,
        bytes: &[u8; MAX_RESPONSE],
    ) -> Result<(), Unreachable> {
        const HEADER: usize = size_of::<ResponseHeader>();
        let body = slot.checked_add(HEADER as u64).ok_or(Unreachable { iova: slot })?;
        client::write_bytes(&mut front.reader, body, &bytes[HEADER..])?;
        client::write_bytes(&mut front.reader, body - 4, &bytes[12..HEADER])?;
        client::write_bytes(&mut front.reader, slot, &bytes[..8])?;
        // One aligned 4-byte store, released after all of the above.
        client::write_bytes(&mut front.reader, slot + 8, &bytes[8..12])
    }

    fn execute(
        &mut self,
        engine: &mut Engine<Front>,
        command: Command,
        request: &[u8; MAX_REQUEST],
    ) -> Outcome {
        let nic = self.nic;
        match command {
            Command::QueryPort => {
                let port: cmd::QueryPort = parse(request)?;
                if port.port_num != 1 {
                    return Err(INVALID);
                }
                let attrs = caps::port(engine.limits(nic));
                answer(&cmd::QueryPortResp { attrs, ..Default::default() })
            }
            Command::QueryPkey => {
                let query: cmd::QueryPkey = parse(request)?;
                if (query.port_num, query.index) != (1, 0) {
                    return Err(INVALID);
                }
                answer(&cmd::QueryPkeyResp { pkey: 0xffff, ..Default::default() })
            }
            Command::CreateUc => {
                let uc: cmd::CreateUc = parse(request)?;
                let ctx_handle = self.add_context(uc.pfn).ok_or(Errno(libc::ENOMEM))?;
                answer(&cmd::CreateUcResp { ctx_handle, ..Default::default() })
            }
            Command::DestroyUc => {
                let uc: cmd::DestroyUc = parse(request)?;
                if self.remove_context(uc.ctx_handle) { done() } else { Err(INVALID) }
            }
            Command::CreatePd => {
                let pd_handle = engine.create_pd(nic)?;
                answer(&cmd::CreatePdResp { pd_handle, ..Default::default() })
            }
            Command::DestroyPd => {
                let pd: cmd::DestroyPd = parse(request)?;
                engine.destroy_pd(nic, pd.pd_handle)?;
                done()
            }
            Command::CreateMr => self.create_mr(engine, &parse(request)?),
            Command::DestroyMr => {
                let mr: cmd::DestroyMr = parse(request)?;
                engine.destroy_mr(nic, mr.mr_handle)?;
                done()
            }
            Command::CreateCq => self.create_cq(engine, &parse(request)?),
            Command::ResizeCq => Err(Errno(libc::EOPNOTSUPP)),
            Command::DestroyCq => {
                let cq: cmd::DestroyCq = parse(request)?;
                engine.destroy_cq(nic, cq.cq_handle)?;
                let front = engine.host(nic);
                take(&mut front.cqs, cq.cq_handle);
                front.unsent.remove(&cq.cq_handle);
                done()
            }
            Command::CreateQp => self.create_qp(engine, &parse(request)?),
            Command::ModifyQp => self.modify_qp(engine, &parse(request)?),
            Command::QueryQp => {
                let query: cmd::QueryQp = parse(request)?;
                let attrs = engine.query_qp(nic, query.qp_handle)?;
                answer(&cmd::QueryQpResp { attrs, ..Default::default() })
            }
            Command::DestroyQp => {
                let qp: cmd::DestroyQp = parse(request)?;
                engine.destroy_qp(nic, qp.qp_handle)?;
                let front = engine.host(nic);
                if take(&mut front.qps, qp.qp_handle).is_some() {
                    front.live_qps -= 1;
                }
                answer(&cmd::DestroyQpResp::default())
            }
            Command::CreateBind => {
                let bind: cmd::CreateBind = parse(request)?;
                if bind.gid_type & (GID_TYPE_ROCE_V1 | GID_TYPE_ROCE_V2) == 0 {
                    return Err(INVALID);
                }
                engine.bind_gid(nic, bind.index, bind.new_gid)?;
                done()
            }
            Command::DestroyBind => {
                let bind: cmd::DestroyBind = parse(request)?;
                engine.unbind_gid(nic, bind.index)?;
                done()
            }
            Command::CreateSrq => self.create_srq(engine, &parse(request)?),
            Command::ModifySrq => {
                let srq: cmd::ModifySrq = parse(request)?;
                engine.modify_srq(nic, srq.srq_handle, srq.attr_mask, &srq.attrs)?;
                done()
            }
            Command::QuerySrq => {
                let srq: cmd::QuerySrq = parse(request)?;
                let attrs = engine.query_srq(nic, srq.srq_handle)?;
                answer(&cmd::QuerySrqResp { attrs, ..Default::default() })
            }
            Command::DestroySrq => {
                let srq: cmd::DestroySrq = parse(request)?;
                engine.destroy_srq(nic, srq.srq_handle)?;
                take(&mut engine.host(nic).srqs, srq.srq_handle);
                done()
            }
        }
    }

    fn create_mr(&self, engine: &mut Engine<Front>, mr: &cmd::CreateMr) -> Outcome {
        let max_pages = engine.limits(self.nic).max_mr_pages as u64;
        let kind = match mr.flags & (cmd::MR_FLAG_DMA | cmd::MR_FLAG_FRMR) {
            cmd::MR_FLAG_DMA => MrKind::Dma,
            cmd::MR_FLAG_FRMR => MrKind::FastReg { max_pages: mr.nchunks },
            0 => {
                let first = mr.start % PAGE_SIZE as u64;
                let bytes = mr.length.checked_add(first).ok_or(INVALID)?;
                let pages = bytes.div_ceil(PAGE_SIZE as u64);
                if pages == 0 || pages > max_pages || pages > u64::from(mr.nchunks) {
                    return Err(INVALID);
                }
                let front = engine.host(self.nic);
                let list = client::read_directory(&mut front.reader, mr.pdir_dma, pages as usize)?;
                MrKind::Pages(list.into_vec())
            }
            _ => return Err(INVALID),
        };
        let init = MrInit {
            pd: mr.pd_handle,
            start: mr.start,
            length: mr.length,
            access: mr.access_flags,
            kind,
        };
        let info = engine.create_mr(self.nic, init)?;
        answer(&cmd::CreateMrResp {
            mr_handle: info.handle,
            lkey: info.lkey,
            rkey: info.rkey,
            ..Default::default()
        })
    }

    fn create_cq(&self, engine: &mut Engine<Front>, cq: &cmd::CreateCq) -> Outcome {
        let size = ring_size(cq.cqe, engine.limits(self.nic).max_cqe)?.ok_or(INVALID)?;
        let data = (size.slots() as usize * CQE_SIZE).div_ceil(PAGE_SIZE);
        let front = engine.host(self.nic);
        let pages = queue_pages(front, cq.pdir_dma, 1 + data, cq.nchunks)?;
        let cq_handle = engine.create_cq(self.nic, size.slots())?;
        let ring = CompletionRing::new(size, pages);
        put(&mut engine.host(self.nic).cqs, cq_handle, Box::new(ring));
        answer(&cmd::CreateCqResp { cq_handle, cqe: size.slots(), ..Default::default() })
    }

    fn create_srq(&self, engine: &mut Engine<Front>, srq: &cmd::CreateSrq) -> Outcome {
        let limits = *engine.limits(self.nic);
        let size = ring_size(srq.max_wr, limits.max_srq_wr)?.ok_or(INVALID)?;
        if srq.max_sge > limits.max_sge {
            return Err(INVALID);
        }
        let recv = WorkRing::recv(size, srq.max_sge, 1);
        let front = engine.host(self.nic);
        let pages = queue_pages(front, srq.pdir_dma, 1 + recv.pages(), srq.nchunks)?;
        let init = SrqInit {
            pd: srq.pd_handle,
            max_wr: size.slots(),
            max_sge: srq.max_sge,
            limit: srq.srq_limit,
        };
        let srqn = engine.create_srq(self.nic, init)?;
        put(&mut engine.host(self.nic).srqs, srqn, Box::new(SrqRings { pages, recv }));
        answer(&cmd::CreateSrqResp { srqn, ..Default::default() })
    }

    fn create_qp(&self, engine: &mut Engine<Front>, qp: &cmd::CreateQp) -> Outcome {
        let limits = *engine.limits(self.nic);
        let qp_type = QpType::try_from(qp.qp_type).map_err(|_| INVALID)?;
        let own_recv = qp.is_srq == 0;
        let cap = QpCap {
            max_send_wr: qp.max_send_wr,
            max_recv_wr: if own_recv { qp.max_recv_wr } else { 0 },
            max_send_sge: qp.max_send_sge,
            max_recv_sge: if own_recv { qp.max_recv_sge } else { 0 },
            max_inline_data: qp.max_inline_data,
            reserved: 0,
        };
        if cap.max_send_sge > limits.max_sge
            || cap.max_recv_sge > limits.max_sge
            || cap.max_inline_data > limits.max_inline
        {
            return Err(INVALID);
        }
        let (total, send_chunks) = (u32::from(qp.total_chunks), u32::from(qp.send_chunks));
        let recv_chunks = total.checked_sub(send_chunks + 1).ok_or(INVALID)?;
        let send = ring_size(cap.max_send_wr, limits.max_qp_wr)?
            .map(|size| WorkRing::send(size, cap.max_send_sge, cap.max_inline_data));
        let recv = ring_size(cap.max_recv_wr, limits.max_qp_wr)?
            .map(|size| WorkRing::recv(size, cap.max_recv_sge, 1 + send_chunks as usize));
        let fits = |ring: &Option<WorkRing>, chunks: u32| {
            ring.as_ref().is_none_or(|ring| ring.pages() <= chunks as usize)
        };
        if !fits(&send, send_chunks) || !fits(&recv, recv_chunks) {
            return Err(INVALID);
        }
        if total > MAX_QP_PAGES {
            return Err(INVALID);
        }
        let front = engine.host(self.nic);
        let pages = queue_pages(front, qp.pdir_dma, total as usize, total)?;
        let init = QpInit {
            qp_type,
            pd: qp.pd_handle,
            send_cq: qp.send_cq_handle,
            recv_cq: qp.recv_cq_handle,
            srq: (!own_recv).then_some(qp.srq_handle),
            signal_all: qp.sq_sig_all != 0,
            cap,
        };
        let info = engine.create_qp(self.nic, &init)?;
        let front = engine.host(self.nic);
        let rings = QpRings { pages, send, recv, seen_recvs: None };
        put(&mut front.qps, info.handle, Box::new(rings));
        front.live_qps += 1;
        if self.config.version >= VERSION_QP_HANDLE {
            return answer(&cmd::CreateQpRespV2 {
                qpn: info.qpn,
                qp_handle: info.handle,
                max_send_wr: cap.max_send_wr,
                max_recv_wr: cap.max_recv_wr,
                max_send_sge: cap.max_send_sge,
                max_recv_sge: cap.max_recv_sge,
                max_inline_data: cap.max_inline_data,
                ..Default::default()
            });
        }
        answer(&cmd::CreateQpResp {
            qpn: info.qpn,
            max_send_wr: cap.max_send_wr,
            max_recv_wr: cap.max_recv_wr,
            max_send_sge: cap.max_send_sge,
            max_recv_sge: cap.max_recv_sge,
            max_inline_data: cap.max_inline_data,
            ..Default::default()
        })
    }

    fn modify_qp(&self, engine: &mut Engine<Front>, modify: &cmd::ModifyQp) -> Outcome {
        let handle = modify.qp_handle;
        let before: QpAttr = engine.query_qp(self.nic, handle)?;
        engine.modify_qp(self.nic, handle, modify.attr_mask, &modify.attrs)?;
        let leaves_reset = before.qp_state == QpState::Reset.wire()
            && modify.attr_mask & mask::STATE != 0
            && modify.attrs.qp_state != QpState::Reset.wire();
        let front = engine.host(self.nic);
        if leaves_reset && let Some(Some(rings)) = front.qps.get_mut(handle as usize) {
            let QpRings { pages, send, recv, .. } = rings.as_mut();
            for ring in [send, recv].into_iter().flatten() {
                ring.restart(pages, &mut front.reader)?;
            }
        }
        done()
    }
}

/// The size of a queue of `slots` entries: `None` for none, an error when it is not a power of two
/// or above `limit`.
fn ring_size(slots: u32, limit: u32) -> Result<Option<RingSize>, Errno> {
    match slots {
        0 => Ok(None),
        slots if slots <= limit && slots.is_power_of_two() => Ok(RingSize::new(slots)),
        _ => Err(INVALID),
    }
}

/// The `pages` pages of a queue, of which the client gave `given`. They are left as they are: what
/// is in a ring is told by the indices in its state page alone, and clearing a large ring would
/// hold up the other NICs of the process for milliseconds.
fn queue_pages(
    front: &mut Front,
    pdir: u64,
    pages: usize,
    given: u32,
) -> Result<QueuePages, Errno> {
    if pages > given as usize {
        return Err(INVALID);
    }
    let lease = front.budget.take(pages).ok_or(Errno(libc::ENOMEM))?;
    let list = client::read_directory(&mut front.reader, pdir, pages)?;
    let mut pages = QueuePages::new(list, lease);
    pages.page(&mut front.reader, 0)?;
    Ok(pages)
}
