//! One device as its engine sees it: work queues, completion queues, registered memory.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use holdfast_nic::engine::host::{
    Completion, CqRefusal, Fetch, Host, Miss, RecvQueue, RecvRequest, SendRequest,
};
use holdfast_nic::memory::Span;
use holdfast_wire::event::EventKind;
use holdfast_wire::wqe::{Opcode, Sge};

use crate::channel::Channel;
use crate::error::Error;
use crate::memory::Memory;

/// A send that waits for the engine; its lists were checked against the engine's bounds.
#[derive(Debug)]
pub(crate) struct Send {
    pub(crate) wr_id: u64,
    pub(crate) opcode: Opcode,
    pub(crate) flags: u32,
    pub(crate) ex: u32,
    pub(crate) sges: Vec<Sge>,
    pub(crate) inline: Vec<u8>,
    pub(crate) body: [u8; 48],
}

/// A receive that waits for a message.
#[derive(Debug)]
pub(crate) struct Recv {
    pub(crate) wr_id: u64,
    pub(crate) sges: Vec<Sge>,
}

/// Requests in order of posting.
#[derive(Debug)]
struct WorkQueue<T> {
    what: &'static str,
    depth: u32,
    requests: VecDeque<T>,
}

impl<T> WorkQueue<T> {
    fn new(what: &'static str, depth: u32) -> Self {
        Self { what, depth, requests: VecDeque::new() }
    }

    fn push(&mut self, request: T) -> Result<(), Error> {
        if self.requests.len() >= self.depth as usize {
            return Err(Error::Full { what: self.what, depth: self.depth });
        }
        self.requests.push_back(request);
        Ok(())
    }
}

/// Which completion raises the next event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Armed {
    No,
    Any,
    Solicited,
}

#[derive(Debug)]
struct CompletionQueue {
    depth: usize,
    entries: VecDeque<Completion>,
    armed: Armed,
    /// Where events go, and the address that names the queue there.
    channel: Option<(Arc<Channel>, usize)>,
}

/// A device's queues and memory. Handles are the engine's.
#[derive(Debug)]
pub(crate) struct Hca {
    name: String,
    log: bool,
    pub(crate) memory: Memory,
    sends: HashMap<u32, WorkQueue<Send>>,
    receives: HashMap<RecvQueue, WorkQueue<Recv>>,
    cqs: HashMap<u32, CompletionQueue>,
}

impl Hca {
    pub(crate) fn new(name: String, log: bool) -> Self {
        Self {
            name,
            log,
            memory: Memory::default(),
            sends: HashMap::new(),
            receives: HashMap::new(),
            cqs: HashMap::new(),
        }
    }

    pub(crate) fn add_qp(&mut self, handle: u32, sends: u32, receives: Option<u32>) {
        self.sends.insert(handle, WorkQueue::new("send queue", sends));
        if let Some(depth) = receives {
            let queue = WorkQueue::new("receive queue", depth);
            self.receives.insert(RecvQueue::Own(handle), queue);
        }
    }

    /// Forgets what a queue pair has posted and completed.
    pub(crate) fn empty_qp(&mut self, handle: u32) {
        if let Some(queue) = self.sends.get_mut(&handle) {
            queue.requests.clear();
        }
        if let Some(queue) = self.receives.get_mut(&RecvQueue::Own(handle)) {
            queue.requests.clear();
        }
        for cq in self.cqs.values_mut() {
            cq.entries.retain(|entry| entry.qp_handle != handle);
        }
    }

    pub(crate) fn remove_qp(&mut self, handle: u32) {
        self.empty_qp(handle);
        self.sends.remove(&handle);
        self.receives.remove(&RecvQueue::Own(handle));
    }

    pub(crate) fn add_srq(&mut self, handle: u32, depth: u32) {
        let queue = WorkQueue::new("shared receive queue", depth);
        self.receives.insert(RecvQueue::Shared(handle), queue);
    }

    pub(crate) fn remove_srq(&mut self, handle: u32) {
        self.receives.remove(&RecvQueue::Shared(handle));
    }

    pub(crate) fn add_cq(
        &mut self,
        handle: u32,
        depth: u32,
        channel: Option<(Arc<Channel>, usize)>,
    ) {
        let depth = depth as usize;
        let cq = CompletionQueue { depth, entries: VecDeque::new(), armed: Armed::No, channel };
        self.cqs.insert(handle, cq);
    }

    pub(crate) fn remove_cq(&mut self, handle: u32) {
        if let Some((channel, address)) = self.cqs.remove(&handle).and_then(|cq| cq.channel) {
            channel.purge(address);
        }
    }

    /// Asks for an event at the next completion. A wider request stays in force.
    pub(crate) fn arm(&mut self, cq: u32, armed: Armed) {
        if let Some(cq) = self.cqs.get_mut(&cq)
            && cq.armed != Armed::Any
        {
            cq.armed = armed;
        }
    }

    /// Takes the oldest completion.
    pub(crate) fn poll(&mut self, cq: u32) -> Option<Completion> {
        self.cqs.get_mut(&cq)?.entries.pop_front()
    }

    pub(crate) fn post_send(&mut self, qp: u32, send: Send) -> Result<(), Error> {
        match self.sends.get_mut(&qp) {
            Some(queue) => queue.push(send),
            None => Err(Error::Invalid { what: "queue pair handle", value: qp.into() }),
        }
    }

    pub(crate) fn post_recv(&mut self, queue: RecvQueue, recv: Recv) -> Result<(), Error> {
        match self.receives.get_mut(&queue) {
            Some(queue) => queue.push(recv),
            // A queue pair on a shared receive queue has none of its own.
            None => Err(Error::Unsupported { what: "a receive queue beside a shared one" }),
        }
    }
}

impl Host for Hca {
    #[inline]
    fn translate(&mut self, iova: u64, len: usize, _write: bool) -> Result<Span, Miss> {
        self.memory.span(iova, len)
    }

    fn next_send(&mut self, qp: u32, request: &mut SendRequest) -> Fetch {
        let next = self.sends.get_mut(&qp).and_then(|queue| queue.requests.pop_front());
        let Some(send) = next else { return Fetch::Empty };
        request.wr_id = send.wr_id;
        request.opcode = send.opcode;
        request.flags = send.flags;
        request.ex = send.ex;
        request.body = send.body;
        let fits = request.sges.try_extend_from_slice(&send.sges).is_ok()
            && request.inline.try_extend_from_slice(&send.inline).is_ok();
        if fits { Fetch::Got } else { Fetch::Malformed }
    }

    fn next_recv(&mut self, queue: RecvQueue, request: &mut RecvRequest) -> Fetch {
        let next = self.receives.get_mut(&queue).and_then(|queue| queue.requests.pop_front());
        let Some(recv) = next else { return Fetch::Empty };
        request.wr_id = recv.wr_id;
        match request.sges.try_extend_from_slice(&recv.sges) {
            Ok(()) => Fetch::Got,
            Err(_) => Fetch::Malformed,
        }
    }

    fn recv_available(&mut self, queue: RecvQueue) -> u32 {
        self.receives.get(&queue).map_or(0, |queue| queue.requests.len() as u32)
    }

    fn complete(&mut self, cq: u32, completion: &Completion) -> Result<(), CqRefusal> {
        let cq = self.cqs.get_mut(&cq).ok_or(CqRefusal::Dead)?;
        if cq.entries.len() >= cq.depth {
            return Err(CqRefusal::Overrun);
        }
        cq.entries.push_back(*completion);
        let fires = match cq.armed {
            Armed::No => false,
            Armed::Any => true,
            Armed::Solicited => completion.solicited,
        };
        if fires {
            cq.armed = Armed::No;
            if let Some((channel, address)) = &cq.channel {
                channel.push(*address);
            }
        }
        Ok(())
    }

    fn event(&mut self, kind: EventKind, info: u32) {
        if self.log {
            eprintln!("holdfast-verbs: {}: event {kind:?} of object {info}", self.name);
        }
    }
}
