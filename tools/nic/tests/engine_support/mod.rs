//! An engine under test: hosts whose rings are queues and whose memory is a vector, and pairs of
//! connected queue pairs over every kind of path.
#![allow(unsafe_code, dead_code, missing_docs)]

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use holdfast_nic::engine::host::*;
use holdfast_nic::engine::*;
use holdfast_nic::memory::Span;
use holdfast_wire::attr::*;
use holdfast_wire::completion::Status;
use holdfast_wire::event::EventKind;
use holdfast_wire::wqe::*;
use zerocopy::IntoBytes;

pub const PAGE: usize = 4096;
/// Pages of each side's memory.
pub const PAGES: usize = 640;
/// Where each side's region starts in its own address space: not at the start of a page.
pub const BASE: u64 = 0x7000_0000_0120;
pub const REGION: usize = (PAGES - 1) * PAGE;

/// A host in memory.
pub struct MemHost {
    words: Vec<u64>,
    iovas: BTreeMap<u64, usize>,
    /// Pages without translation now, by bus address.
    pub missing: HashSet<u64>,
    pub sends: HashMap<u32, VecDeque<SendRequest>>,
    pub receives: HashMap<RecvQueue, VecDeque<RecvRequest>>,
    pub completions: HashMap<u32, VecDeque<Completion>>,
    pub cq_depth: usize,
    pub cq_missing: bool,
    pub events: Vec<(EventKind, u32)>,
}

impl MemHost {
    pub fn new() -> Self {
        // Neighbouring pages on the bus in runs of three, so that runs and gaps both occur.
        let iovas = (0..PAGES).map(|p| (Self::iova_of(p), p)).collect();
        Self {
            words: vec![0; PAGES * PAGE / 8],
            iovas,
            missing: HashSet::new(),
            sends: HashMap::new(),
            receives: HashMap::new(),
            completions: HashMap::new(),
            cq_depth: 1024,
            cq_missing: false,
            events: Vec::new(),
        }
    }

    pub fn iova_of(page: usize) -> u64 {
        ((page / 3 * 7 + page % 3 + 1) * PAGE) as u64
    }

    fn bytes(&mut self) -> &mut [u8] {
        self.words.as_mut_bytes()
    }
}

impl Host for MemHost {
    fn translate(&mut self, iova: u64, len: usize, _write: bool) -> Result<Span, Miss> {
        let page = iova & !(PAGE as u64 - 1);
        let within = (iova - page) as usize;
        match self.iovas.get(&page) {
            Some(index) if !self.missing.contains(&page) => {
                let ptr = self.words.as_mut_ptr().cast::<u8>();
                let len = len.min(PAGE - within);
                // SAFETY: within `words`, which lives as long as the host; nothing else borrows it
                // while the engine runs.
                Ok(unsafe { Span::new(ptr.add(index * PAGE + within), len) })
            }
            _ => Err(Miss { iova }),
        }
    }

    fn next_send(&mut self, qp: u32, request: &mut SendRequest) -> Fetch {
        match self.sends.get_mut(&qp).and_then(VecDeque::pop_front) {
            Some(next) => {
                *request = next;
                Fetch::Got
            }
            None => Fetch::Empty,
        }
    }

    fn next_recv(&mut self, queue: RecvQueue, request: &mut RecvRequest) -> Fetch {
        match self.receives.get_mut(&queue).and_then(VecDeque::pop_front) {
            Some(next) => {
                *request = next;
                Fetch::Got
            }
            None => Fetch::Empty,
        }
    }

    fn recv_available(&mut self, queue: RecvQueue) -> u32 {
        self.receives.get(&queue).map_or(0, |q| q.len() as u32)
    }

    fn complete(&mut self, cq: u32, completion: &Completion) -> Result<(), CqRefusal> {
        if self.cq_missing {
            return Err(CqRefusal::Miss(Miss { iova: 0 }));
        }
        let queue = self.completions.entry(cq).or_default();
        if queue.len() >= self.cq_depth {
            return Err(CqRefusal::Overrun);
        }
        queue.push_back(*completion);
        Ok(())
    }

    fn event(&mut self, kind: EventKind, info: u32) {
        self.events.push((kind, info));
    }
}

/// How two queue pairs reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    SameNic,
    TwoNics,
    Link,
}

pub const PATHS: [Path; 3] = [Path::SameNic, Path::TwoNics, Path::Link];

/// What a pair is made of.
#[derive(Clone)]
pub struct Options {
    pub path: Path,
    pub qp_type: QpType,
    pub miss: MissPolicy,
    pub mr_access: u32,
    pub qp_access: u32,
    pub mtu: u32,
    pub timeout: u8,
    pub retry: u8,
    pub rnr_retry: u8,
    pub reads: u8,
    pub signal_all: bool,
    pub srq: bool,
}

pub const ALL_ACCESS: u32 =
    ACCESS_LOCAL_WRITE | ACCESS_REMOTE_WRITE | ACCESS_REMOTE_READ | ACCESS_REMOTE_ATOMIC;

impl Options {
    pub fn new(path: Path) -> Self {
        Self {
            path,
            qp_type: QpType::Rc,
            miss: MissPolicy::Stall { bound: Duration::from_millis(10) },
            mr_access: ALL_ACCESS,
            qp_access: ALL_ACCESS,
            mtu: 3,
            // 1 second: the clock of a test is its own and runs slowly.
            timeout: 18,
            retry: 3,
            rnr_retry: 7,
            reads: 4,
            signal_all: true,
            srq: false,
        }
    }
}

/// One end.
#[derive(Clone, Copy)]
pub struct Side {
    pub engine: usize,
    pub nic: NicId,
    pub gid: Gid,
    pub pd: u32,
    pub send_cq: u32,
    pub recv_cq: u32,
    pub srq: Option<u32>,
    pub mr: MrInfo,
    pub qp: QpInfo,
}

/// Two connected queue pairs.
pub struct Pair {
    pub engines: Vec<Engine<MemHost>>,
    /// The link's name at each engine, if there is one.
    pub links: Vec<LinkId>,
    pub now: u64,
    pub a: Side,
    pub b: Side,
    pub options: Options,
}

pub fn gid(n: u8) -> Gid {
    let mut gid = [0xfe; 16];
    gid[15] = n;
    gid
}

impl Pair {
    pub fn new(options: Options) -> Self {
        let mut pair = Self::unconnected(options);
        pair.connect();
        pair
    }

    pub fn on(path: Path) -> Self {
        Self::new(Options::new(path))
    }

    pub fn unconnected(options: Options) -> Self {
        let config = NicConfig { miss: options.miss, ..NicConfig::default() };
        let mut engines = vec![Engine::new()];
        let a_nic = engines[0].add_nic(MemHost::new(), config);
        let (b_engine, b_nic) = match options.path {
            Path::SameNic => (0, a_nic),
            Path::TwoNics => (0, engines[0].add_nic(MemHost::new(), config)),
            Path::Link => {
                engines.push(Engine::new());
                (1, engines[1].add_nic(MemHost::new(), config))
            }
        };
        let a = side(&mut engines[0], 0, a_nic, gid(1), 0, &options);
        let b = side(&mut engines[b_engine], b_engine, b_nic, gid(2), 1, &options);
        let mut links = Vec::new();
        if options.path == Path::Link {
            let (one, other) = UnixStream::pair().expect("a socket pair");
            links.push(engines[0].add_link(one, Box::new(|| {})).expect("a link"));
            links.push(engines[1].add_link(other, Box::new(|| {})).expect("a link"));
        }
        let mut pair = Self { engines, links, now: 1_000, a, b, options };
        if pair.options.path == Path::Link {
            pair.until("the link is up", |p| {
                p.engines.iter().all(|e| e.links()[0].up && e.links()[0].gids > 0)
            });
        }
        pair
    }

    fn connect(&mut self) {
        let (a, b, options) = (self.a, self.b, self.options.clone());
        self.bring_up(a, b, &options);
        self.bring_up(b, a, &options);
    }

    pub fn bring_up(&mut self, me: Side, peer: Side, options: &Options) {
        for (mask, attr) in way_up(me, peer, options) {
            self.engines[me.engine].modify_qp(me.nic, me.qp.handle, mask, &attr).expect("way up");
        }
    }

    pub fn engine(&mut self, side: Side) -> &mut Engine<MemHost> {
        &mut self.engines[side.engine]
    }

    pub fn host(&mut self, side: Side) -> &mut MemHost {
        self.engines[side.engine].host(side.nic)
    }

    /// Posts a send and rings.
    pub fn send(&mut self, side: Side, request: SendRequest) {
        self.host(side).sends.entry(side.qp.handle).or_default().push_back(request);
        let now = self.now;
        self.engine(side).send_doorbell(side.nic, side.qp.handle, now);
    }

    pub fn recv(&mut self, side: Side, wr_id: u64, sges: &[Sge]) {
        let queue = match side.srq {
            Some(srq) => RecvQueue::Shared(srq),
            None => RecvQueue::Own(side.qp.handle),
        };
        let request = RecvRequest { wr_id, sges: sges.iter().copied().collect() };
        self.host(side).receives.entry(queue).or_default().push_back(request);
        self.engine(side).recv_doorbell(side.nic, side.qp.handle);
    }

    /// Polls every engine once.
    pub fn poll(&mut self) {
        let mut busy = false;
        let mut deadline = u64::MAX;
        for engine in &mut self.engines {
            let progress = engine.poll(self.now);
            busy |= progress.did_work || progress.more_to_do;
            deadline = deadline.min(progress.next_deadline.unwrap_or(u64::MAX));
        }
        self.now += 1_000;
        if !busy && self.options.path == Path::Link {
            // Where others have the processor, a timeout must not take as many turns as it has
            // microseconds; nor may one pass before the link has had turns of its own.
            let start = Instant::now();
            std::thread::yield_now();
            self.now += (start.elapsed().as_nanos() as u64).min(20_000);
        } else if !busy && deadline != u64::MAX {
            self.now = self.now.max(deadline);
        }
    }

    pub fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(start.elapsed() < Duration::from_secs(20), "in vain: {what}");
            self.poll();
        }
    }

    /// Polls until nothing moves any more: for links, for a while.
    pub fn settle(&mut self) {
        for _ in 0..200 {
            self.poll();
        }
    }

    fn next(&mut self, side: Side, cq: u32) -> Completion {
        let mut got = None;
        self.until("a completion", |p| {
            let queue = p.host(side).completions.entry(cq).or_default();
            got = queue.pop_front();
            got.is_some()
        });
        got.expect("one")
    }

    pub fn sent(&mut self, side: Side) -> Completion {
        self.next(side, side.send_cq)
    }

    pub fn received(&mut self, side: Side) -> Completion {
        self.next(side, side.recv_cq)
    }

    /// Completions that are there, sends and receives.
    pub fn pending(&mut self, side: Side) -> usize {
        let completions = &self.host(side).completions;
        [side.send_cq, side.recv_cq]
            .iter()
            .filter_map(|cq| completions.get(cq))
            .map(VecDeque::len)
            .sum()
    }

    pub fn write(&mut self, side: Side, addr: u64, data: &[u8]) {
        let at = offset(addr);
        self.host(side).bytes()[at..at + data.len()].copy_from_slice(data);
    }

    pub fn read(&mut self, side: Side, addr: u64, len: usize) -> Vec<u8> {
        let at = offset(addr);
        self.host(side).bytes()[at..at + len].to_vec()
    }

    /// Takes away, or gives back, the page an address is in.
    pub fn miss(&mut self, side: Side, addr: u64, missing: bool) {
        let page = offset(addr) / PAGE;
        let set = &mut self.host(side).missing;
        if missing {
            set.insert(MemHost::iova_of(page));
        } else {
            set.remove(&MemHost::iova_of(page));
        }
    }

    pub fn state(&mut self, side: Side) -> QpState {
        let attr = self.engine(side).query_qp(side.nic, side.qp.handle).expect("a queue pair");
        QpState::try_from(attr.qp_state).expect("a state")
    }

    pub fn events(&mut self, side: Side) -> Vec<EventKind> {
        self.host(side).events.iter().map(|e| e.0).collect()
    }
}

/// Where an address of a region is in its host's memory. Two sides of one NIC share it.
fn offset(addr: u64) -> usize {
    (addr - BASE) as usize + BASE as usize % PAGE
}

fn side(
    engine: &mut Engine<MemHost>,
    index: usize,
    nic: NicId,
    address: Gid,
    slot: u32,
    options: &Options,
) -> Side {
    engine.bind_gid(nic, slot, address).expect("a GID");
    let pd = engine.create_pd(nic).expect("a domain");
    let pages = (0..PAGES).map(MemHost::iova_of).collect();
    let mr = engine
        .create_mr(
            nic,
            MrInit {
                pd,
                start: BASE,
                length: REGION as u64,
                access: options.mr_access,
                kind: MrKind::Pages(pages),
            },
        )
        .expect("a region");
    let send_cq = engine.create_cq(nic, 1024).expect("a queue");
    let recv_cq = engine.create_cq(nic, 1024).expect("a queue");
    let srq = options.srq.then(|| {
        let init = SrqInit { pd, max_wr: 64, max_sge: 4, limit: 0 };
        engine.create_srq(nic, init).expect("a shared queue")
    });
    let init = QpInit {
        qp_type: options.qp_type,
        pd,
        send_cq,
        recv_cq,
        srq,
        signal_all: options.signal_all,
        cap: QpCap {
            max_send_wr: 64,
            max_recv_wr: 64,
            max_send_sge: 32,
            max_recv_sge: 32,
            max_inline_data: 432,
            reserved: 0,
        },
    };
    let qp = engine.create_qp(nic, &init).expect("a queue pair");
    Side { engine: index, nic, gid: address, pd, send_cq, recv_cq, srq, mr, qp }
}

/// The state changes from Reset to RTS.
pub fn way_up(me: Side, peer: Side, options: &Options) -> Vec<(u32, QpAttr)> {
    use mask as m;
    let sgid_index = if me.gid == gid(1) { 0 } else { 1 };
    let ah_attr =
        AhAttr { dgid: peer.gid, sgid_index, port_num: 1, ah_flags: 1, ..AhAttr::default() };
    let attr = QpAttr {
        port_num: 1,
        qkey: 0x1234,
        qp_access_flags: options.qp_access,
        path_mtu: options.mtu,
        dest_qp_num: peer.qp.qpn,
        rq_psn: 0xff_fff0,
        sq_psn: 0xff_fff0,
        max_dest_rd_atomic: options.reads,
        max_rd_atomic: options.reads,
        min_rnr_timer: 1,
        timeout: options.timeout,
        retry_cnt: options.retry,
        rnr_retry: options.rnr_retry,
        ah_attr,
        ..QpAttr::default()
    };
    let masks = match options.qp_type {
        QpType::Rc => [
            m::PKEY_INDEX | m::PORT | m::ACCESS_FLAGS,
            m::AV
                | m::PATH_MTU
                | m::DEST_QPN
                | m::RQ_PSN
                | m::MAX_DEST_RD_ATOMIC
                | m::MIN_RNR_TIMER,
            m::TIMEOUT | m::RETRY_CNT | m::RNR_RETRY | m::SQ_PSN | m::MAX_QP_RD_ATOMIC,
        ],
        QpType::Gsi => [m::PKEY_INDEX | m::QKEY, 0, m::SQ_PSN],
        _ => [m::PKEY_INDEX | m::PORT | m::QKEY, 0, m::SQ_PSN],
    };
    let states = [QpState::Init, QpState::ReadyToReceive, QpState::ReadyToSend];
    let step = |(mask, state): (u32, QpState)| {
        (mask | m::STATE, QpAttr { qp_state: state.wire(), ..attr })
    };
    masks.into_iter().zip(states).map(step).collect()
}

/// Entry of a side's region.
pub fn sge(side: Side, addr: u64, length: usize) -> Sge {
    Sge { addr, length: length as u32, lkey: side.mr.lkey }
}

/// A request with the bytes of `body` in front of its body.
pub fn request(opcode: Opcode, sges: &[Sge], front: &[u8]) -> SendRequest {
    let mut body = [0; 48];
    body[..front.len()].copy_from_slice(front);
    SendRequest {
        wr_id: 77,
        opcode,
        flags: FLAG_SIGNALED,
        ex: 0,
        sges: sges.iter().copied().collect(),
        inline: Default::default(),
        body,
    }
}

pub fn rdma(opcode: Opcode, sges: &[Sge], remote_addr: u64, rkey: u32) -> SendRequest {
    request(opcode, sges, Rdma { remote_addr, rkey, reserved: 0 }.as_bytes())
}

pub fn send(sges: &[Sge]) -> SendRequest {
    request(Opcode::Send, sges, &[])
}

pub fn assert_status(completion: Completion, status: Status) {
    assert_eq!(completion.status, status, "{completion:?}");
}

/// Bytes that tell their place.
pub fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8 ^ (i / 251) as u8 ^ seed).collect()
}

/// A region for fast registrations.
pub fn fast_reg(side: Side, max_pages: u32) -> MrInit {
    let kind = MrKind::FastReg { max_pages };
    MrInit { pd: side.pd, start: 0, length: 0, access: 0, kind }
}

/// A datagram to a side's queue pair, with the queue key that every pair has.
pub fn datagram(to: Side, sges: &[Sge]) -> SendRequest {
    let from_index = if to.gid == gid(2) { 0 } else { 1 };
    let av = Av { gid_index: from_index, dgid: to.gid, ..zerocopy::FromZeros::new_zeroed() };
    let ud = Ud { remote_qpn: to.qp.qpn, remote_qkey: 0x1234, av };
    request(Opcode::Send, sges, ud.as_bytes())
}

impl Pair {
    /// Writes to the start of a page by its number.
    pub fn write_page(&mut self, side: Side, page: usize, data: &[u8]) {
        self.host(side).bytes()[page * PAGE..page * PAGE + data.len()].copy_from_slice(data);
    }

    pub fn read_page(&mut self, side: Side, page: usize) -> Vec<u8> {
        self.host(side).bytes()[page * PAGE..(page + 1) * PAGE].to_vec()
    }
}
