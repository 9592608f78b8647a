//! Queue pairs: making one, splitting it, and taking it apart safely.
//!
//! A [`QueuePair`] is three things that may live on different threads: a [`SendQueue`], a
//! [`RecvQueue`] (unless it uses a shared one), and a [`QpControl`] for commands. The device's
//! queue pair is destroyed when the last of them is dropped; it keeps its completion queues,
//! protection domain and doorbell page alive, so the order in which the device sees objects go is
//! always a safe one: queue pairs, then completion and shared receive queues, regions and
//! protection domains, then contexts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_wire::attr::ACCESS_LOCAL_WRITE;
use holdfast_wire::{PAGE_SIZE, cmd, regs, uar};

use crate::account::Key;
use crate::command::{CreateQpV1, CreateQpV2};
use crate::completion::Completion;
use crate::cq::CompletionQueue;
use crate::cq_shared::CqShared;
use crate::device::Device;
use crate::doorbell_policy::DoorbellPolicy;
use crate::error::{Error, Result};
use crate::pages::PageDirectory;
use crate::pd::ProtectionDomain;
use crate::qp_config::{QpConfig, Shape};
use crate::qp_inner::{Books, InnerParts, QpInner};
use crate::qp_state::QpControl;
use crate::recv::{RecvQueue, recv_ring};
use crate::send::SendQueue;
use crate::send_slow::{SEND_BITS, send_ring};
use crate::uar::{Uar, doorbell_word};
use crate::work_queue::{Parts, WorkQueue};

/// A queue pair with its queues, before they are taken apart.
#[derive(Debug)]
pub struct QueuePair {
    /// Commands.
    pub control: QpControl,
    /// Sends.
    pub send: SendQueue,
    /// Receives, unless they come from a shared receive queue.
    pub recv: Option<RecvQueue>,
}

/// What the device granted.
struct Granted {
    qpn: u32,
    handle: u32,
    send_depth: u32,
    recv_depth: u32,
    inline: u32,
}

impl QueuePair {
    pub(crate) fn new(
        pd: &Arc<ProtectionDomain>,
        uar: &Arc<Uar>,
        config: &QpConfig,
        send_cq: &CompletionQueue,
        recv_cq: &CompletionQueue,
    ) -> Result<Self> {
        let device = pd.device();
        device.check_same(uar.device())?;
        device.check_same(send_cq.device())?;
        device.check_same(recv_cq.device())?;
        let config = &config.at_least_one();
        config.check(device)?;
        let srq = config.srq.as_ref().map(|srq| srq.0.clone());
        if let Some(srq) = &srq {
            device.check_same(srq.pd.device())?;
        }
        let shape = Shape::new(config, device.quirks().max_ring_pages)?;
        let permit = device.counts.queue_pairs.take()?;
        let pages = shape.pages();
        let memory = Arc::new(device.dma.allocate(pages * PAGE_SIZE)?);
        let directory = PageDirectory::new(device.dma.as_ref(), &memory.pages()[..pages])?;

        let recv_depth = if srq.is_some() { 0 } else { config.recv_depth };
        let reserved = Reservation::new(
            [(send_cq.shared(), config.send_depth), (recv_cq.shared(), recv_depth)],
            config.overcommit,
        )?;
        let keys = Keys::new(device, srq.is_none())?;
        let request = Self::request(pd, config, &shape, &directory, send_cq, recv_cq);
        let granted = match Self::execute(device, request) {
            Ok(granted) => granted,
            Err(error) => {
                return Err(device.not_created("queue pair", error, (memory, directory)));
            }
        };

        // From here on the device has the queue pair, and `inner` destroys it.
        let (send_key, recv_key) = keys.keep();
        let (slots, sges, inline) = (shape.send_slots, config.send_sges, config.max_inline);
        let ring = send_ring(memory.clone(), PAGE_SIZE, slots, sges, inline);
        let bell = (uar.doorbell(uar::QP), granted.handle | SEND_BITS);
        let send = Parts::new(ring, send_key, bell, config.doorbells);
        let recv = recv_key.map(|key| {
            let (offset, slots) = (shape.recv_offset(), shape.recv_slots);
            let ring = recv_ring(memory.clone(), offset, slots, config.recv_sges);
            let bell = (uar.doorbell(uar::QP), granted.handle | uar::QP_RECV);
            Parts::new(ring, key, bell, config.doorbells)
        });
        let inner = QpInner::new(InnerParts {
            pd: pd.clone(),
            handle: granted.handle,
            qpn: granted.qpn,
            qp_type: config.qp_type,
            send_cq: send_cq.shared().clone(),
            recv_cq: recv_cq.shared().clone(),
            srq,
            reserved: reserved.keep(),
            books: Books {
                send: send.book.clone(),
                recv: recv.as_ref().map(|parts| parts.book.clone()),
            },
            memory: (memory, directory),
            permit,
        });
        doorbell_word("queue pair handle", granted.handle, SEND_BITS)?;
        if granted.inline < config.max_inline {
            return Err(Error::Limit {
                what: "inline bytes granted",
                asked: u64::from(config.max_inline),
                limit: u64::from(granted.inline),
            });
        }
        if config.doorbells == DoorbellPolicy::Coalesced {
            send_cq.ring_for_others();
            recv_cq.ring_for_others();
        }

        let depth = config.send_depth.min(granted.send_depth);
        let bounds = config.bounds(&device.limits(), device.quirks());
        let send = WorkQueue::new(send, depth, inner.clone());
        let send = SendQueue::new(send, bounds, config.signal_all);
        let recv = recv.map(|parts| {
            let depth = recv_depth.min(granted.recv_depth);
            RecvQueue::new(WorkQueue::new(parts, depth, inner.clone()))
        });
        Ok(Self { control: QpControl::new(inner), send, recv })
    }

    fn request(
        pd: &ProtectionDomain,
        config: &QpConfig,
        shape: &Shape,
        directory: &PageDirectory,
        send_cq: &CompletionQueue,
        recv_cq: &CompletionQueue,
    ) -> cmd::CreateQp {
        cmd::CreateQp {
            pdir_dma: directory.address(),
            pd_handle: pd.handle(),
            send_cq_handle: send_cq.handle(),
            recv_cq_handle: recv_cq.handle(),
            srq_handle: config.srq.as_ref().map_or(0, |srq| srq.0.handle),
            max_send_wr: shape.send_slots,
            max_recv_wr: shape.recv_slots,
            max_send_sge: config.send_sges,
            max_recv_sge: if config.srq.is_some() { 0 } else { config.recv_sges },
            max_inline_data: config.max_inline,
            access_flags: ACCESS_LOCAL_WRITE,
            total_chunks: shape.pages() as u16,
            send_chunks: shape.send_pages as u16,
            sq_sig_all: u8::from(config.signal_all),
            qp_type: config.qp_type.wire(),
            is_srq: u8::from(config.srq.is_some()),
            ..Default::default()
        }
    }

    /// Sends CREATE_QP; the answer's layout depends on the version.
    fn execute(device: &Device, request: cmd::CreateQp) -> Result<Granted> {
        // A device that does not say what it granted granted what was asked.
        let depth = |granted: u32| if granted == 0 { u32::MAX } else { granted };
        if device.version() >= regs::VERSION_QP_HANDLE {
            let response = device.channel.execute(CreateQpV2(request))?;
            Ok(Granted {
                qpn: response.qpn,
                handle: response.qp_handle,
                send_depth: depth(response.max_send_wr),
                recv_depth: depth(response.max_recv_wr),
                inline: response.max_inline_data,
            })
        } else {
            let response = device.channel.execute(CreateQpV1(request))?;
            Ok(Granted {
                qpn: response.qpn,
                handle: response.qpn,
                send_depth: depth(response.max_send_wr),
                recv_depth: depth(response.max_recv_wr),
                inline: response.max_inline_data,
            })
        }
    }

    /// Queue pair number, to give to peers.
    pub fn qpn(&self) -> u32 {
        self.control.qpn()
    }

    /// Handle, as completions and events name it.
    pub fn handle(&self) -> u32 {
        self.control.handle()
    }

    /// Its parts, for different threads. The device's queue pair lives until all are dropped.
    pub fn into_parts(self) -> (QpControl, SendQueue, Option<RecvQueue>) {
        (self.control, self.send, self.recv)
    }

    /// Requests the device has and has not completed.
    pub fn outstanding(&self) -> u32 {
        self.control.outstanding()
    }

    /// Moves to ERR, so that the device completes everything outstanding as flushed.
    pub fn to_error(&self) -> Result<()> {
        self.control.to_error()
    }

    /// Back to RESET with empty queues. Completions not polled yet are dropped.
    ///
    /// # Errors
    /// [`Error::Unsupported`] on devices where RESET does nothing; destroy it and make a new one.
    pub fn reset(&mut self) -> Result<()> {
        self.control.reset(&mut self.send, self.recv.as_mut())
    }

    /// Moves to ERR and polls `queues`, which must be its completion queues, until nothing is
    /// outstanding. Every completion met, of this or of another queue pair, goes to `sink`.
    ///
    /// # Errors
    /// [`Error::Drain`] when something is still outstanding after `deadline`;
    /// [`Error::Unsupported`] on a device that never flushes.
    pub fn drain(
        &mut self,
        queues: &mut [&mut CompletionQueue],
        deadline: Duration,
        sink: &mut dyn FnMut(Completion),
    ) -> Result<()> {
        self.control.to_error()?;
        let started = Instant::now();
        let mut batch = [Completion::default(); 16];
        loop {
            if self.send.needs_marker() {
                match self.send.post_marker() {
                    Ok(()) | Err(crate::PostError::QueueFull { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            for queue in queues.iter_mut() {
                let count = queue.poll(&mut batch)?;
                batch[..count].iter().for_each(|completion| sink(*completion));
            }
            let left = self.outstanding();
            if left == 0 {
                return Ok(());
            }
            let waited = started.elapsed();
            if waited >= deadline {
                return Err(Error::Drain { left, waited });
            }
            std::thread::yield_now();
        }
    }
}

/// Room set aside in completion queues, given back unless kept.
struct Reservation<'a> {
    entries: [(&'a Arc<CqShared>, u32); 2],
    made: usize,
}

impl<'a> Reservation<'a> {
    fn new(entries: [(&'a Arc<CqShared>, u32); 2], overcommit: bool) -> Result<Self> {
        let mut all = Self { entries, made: 0 };
        for (queue, depth) in entries {
            queue.reserve(depth, overcommit)?;
            all.made += 1;
        }
        Ok(all)
    }

    fn keep(mut self) -> (u32, u32) {
        self.made = 0;
        (self.entries[0].1, self.entries[1].1)
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.entries[..self.made].iter().for_each(|(queue, depth)| queue.release(*depth));
    }
}

/// Keys for the work queues, given back unless kept.
struct Keys<'a> {
    device: &'a Device,
    keys: Vec<Key>,
}

impl<'a> Keys<'a> {
    fn new(device: &'a Device, with_recv: bool) -> Result<Self> {
        let mut all = Self { device, keys: Vec::with_capacity(2) };
        for _ in 0..1 + usize::from(with_recv) {
            all.keys.push(device.issue_key()?);
        }
        Ok(all)
    }

    fn keep(mut self) -> (Key, Option<Key>) {
        let keys = std::mem::take(&mut self.keys);
        (keys[0], keys.get(1).copied())
    }
}

impl Drop for Keys<'_> {
    fn drop(&mut self) {
        self.keys.iter().for_each(|key| self.device.release_key(*key));
    }
}
