//! A scripted PVRDMA device in this process: honest unless a test tells it to lie.
//!
//! Sends complete at once, in order, signalled ones only (or all, with `complete_all`), or flushed
//! when their queue pair is in error. Receives complete when a test says so, or flushed. Rings
//! are reached only through page directories and bus addresses.
#![allow(dead_code)] // each test file uses its own part

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use holdfast_driver::testing::HeapMemory;
use holdfast_driver::wire::attr::{PortAttr, QpState};
use holdfast_driver::wire::cmd::{self, Command, MAX_REQUEST, MAX_RESPONSE, RequestHeader};
use holdfast_driver::wire::completion::{Cqe, CqeOpcode, Status};
use holdfast_driver::wire::dsr::{Caps, SharedRegion};
use holdfast_driver::wire::wqe::{self, FLAG_SIGNALED, RecvHeader, SendHeader};
use holdfast_driver::wire::{PAGE_SIZE, PCI_DEVICE_ID, PCI_VENDOR_ID, pdir, regs, uar};
use holdfast_driver::{Device, Error, Options};
use holdfast_vfio::device::{DeviceInfo, IRQ_REQUEST, IrqInfo, REGION_CONFIG, RegionInfo};
use holdfast_vfio::{Device as Transport, MappedRegion, Result};
use zerocopy::{FromBytes, IntoBytes};

/// What a hostile device does to an answer: gets the opcode and the response's bytes, and says
/// whether the response is written at all.
pub type Lie = Box<dyn FnMut(Command, &mut [u8; MAX_RESPONSE]) -> bool + Send>;

/// How the device is.
#[derive(Clone)]
pub struct Model {
    pub version: u32,
    pub caps: Caps,
    pub extension: Option<u32>,
    /// Doorbell pages are memory (a memfd) rather than trapped writes.
    pub mapped_doorbells: bool,
    /// Answers come from another thread, this much later.
    pub answer_delay: Option<Duration>,
    /// Unsignalled sends complete too, all as SEND.
    pub complete_all: bool,
    /// Sends are fetched but not completed.
    pub hold_sends: bool,
}

impl Default for Model {
    fn default() -> Self {
        let caps = Caps {
            fw_ver: 1,
            max_mr_size: 1 << 40,
            max_qp: 8,
            max_qp_wr: 1024,
            max_sge: 4,
            max_cq: 8,
            max_cqe: 4096,
            max_mr: 4,
            max_pd: 4,
            max_srq: 2,
            max_srq_wr: 256,
            max_srq_sge: 4,
            max_uar: 16,
            gid_tbl_len: 4,
            atomic_ops: 3,
            gid_types: 1,
            ..Caps::default()
        };
        Self {
            version: 20,
            caps,
            extension: Some(0),
            mapped_doorbells: false,
            answer_delay: None,
            complete_all: false,
            hold_sends: false,
        }
    }
}

impl Model {
    /// QEMU 7.2's model, as it reports itself.
    pub fn qemu() -> Self {
        let model = Self::default();
        let caps = Caps { fw_ver: 14, max_uar: 0x20_0000, ..model.caps };
        Self { version: 17, caps, extension: None, complete_all: true, ..model }
    }
}

/// One ring of an object: where its pages are, and the device's own index.
#[derive(Default, Clone)]
pub struct Ring {
    pub state: u64,
    pub pages: Vec<u64>,
    pub slots: u32,
    pub stride: usize,
    pub index: u32,
}

impl Ring {
    fn slot(&self, index: u32) -> u64 {
        let at = (index & (self.slots - 1)) as usize * self.stride;
        self.pages[at / PAGE_SIZE] + (at % PAGE_SIZE) as u64
    }
}

#[derive(Default, Clone)]
pub struct Qp {
    pub request: cmd::CreateQp,
    pub state: u32,
    pub send: Ring,
    pub recv: Ring,
    /// Fetched receives that wait for a message.
    pub waiting: VecDeque<u64>,
    /// The raw headers of all sends fetched.
    pub sends: Vec<(SendHeader, Vec<u8>)>,
}

#[derive(Default)]
pub struct State {
    dsr_low: u32,
    pub region: Option<SharedRegion>,
    err: u32,
    pub ctl: u32,
    pci_command: u16,
    pub qps: BTreeMap<u32, Qp>,
    pub cqs: BTreeMap<u32, Ring>,
    pub srqs: BTreeMap<u32, Ring>,
    pub regions: BTreeMap<u32, (cmd::CreateMr, Vec<u64>)>,
    next: u32,
    /// Every command, in order.
    pub log: Vec<Command>,
    pub modifies: Vec<cmd::ModifyQp>,
    /// Every doorbell and register write: (region, offset, value).
    pub writes: Vec<(u32, u64, u32)>,
    /// Doorbells received through the transport.
    pub doorbells: u32,
    /// What the driver wants to be asked by for the function.
    pub removal: Option<OwnedFd>,
    /// The device was pulled: reads give all ones, writes go nowhere.
    pub gone: bool,
    /// What commands are refused with.
    pub refuse: Option<nix::errno::Errno>,
}

pub struct Fake {
    pub memory: HeapMemory,
    pub model: Model,
    state: Mutex<State>,
    lie: Mutex<Option<Lie>>,
    doorbells: OwnedFd,
}

impl Fake {
    pub fn new(model: Model) -> Arc<Self> {
        let name = c"fake doorbells";
        let fd = nix::sys::memfd::memfd_create(name, nix::sys::memfd::MFdFlags::empty()).unwrap();
        nix::unistd::ftruncate(&fd, 16 * 4096).unwrap();
        Arc::new(Self {
            memory: HeapMemory::default(),
            model,
            state: Mutex::new(State { err: regs::ERR_NO_DSR, ..State::default() }),
            lie: Mutex::new(None),
            doorbells: fd,
        })
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on answers go through `lie`.
    pub fn lie(&self, lie: impl FnMut(Command, &mut [u8; MAX_RESPONSE]) -> bool + Send + 'static) {
        *self.lie.lock().unwrap() = Some(Box::new(lie));
    }

    pub fn be_honest(&self) {
        *self.lie.lock().unwrap() = None;
    }

    pub fn open(self: &Arc<Self>) -> holdfast_driver::Result<Arc<Device>> {
        let options =
            Options { command_deadline: Duration::from_millis(200), ..Options::default() };
        self.open_with(options)
    }

    pub fn open_with(self: &Arc<Self>, options: Options) -> holdfast_driver::Result<Arc<Device>> {
        Device::open(self.clone(), Arc::new(self.memory.clone()), options)
    }

    fn get<T: FromBytes + IntoBytes>(&self, address: u64) -> T {
        let mut value = T::new_zeroed();
        assert!(self.memory.read(address, value.as_mut_bytes()), "no memory at {address:#x}");
        value
    }

    pub fn put(&self, address: u64, bytes: &[u8]) {
        assert!(self.memory.write(address, bytes), "no memory at {address:#x}");
    }

    /// The pages a directory names.
    fn directory(&self, address: u64, count: usize) -> Vec<u64> {
        (0..count)
            .map(|page| {
                let (table, entry) = pdir::position(page).unwrap();
                let table: u64 = self.get(address + table as u64 * 8);
                self.get(table + entry as u64 * 8)
            })
            .collect()
    }

    fn load(&self, state: &mut State, address: u64) {
        if state.pci_command & 4 == 0 {
            return; // Not a bus master: the device sees nothing, and says nothing.
        }
        let region: SharedRegion = self.get(address);
        assert_eq!(region.gos, 6, "64-bit Linux");
        for ring in [region.async_ring, region.cq_ring] {
            let pages = self.directory(ring.pdir_dma, ring.num_pages as usize);
            pages.iter().for_each(|page| self.put(*page, &[0; 16]));
        }
        self.put(address + 72, self.model.caps.as_bytes());
        state.region = Some(region);
    }

    fn execute(&self, state: &mut State) {
        let Some(region) = state.region else {
            state.err = regs::ERR_NO_DSR;
            return;
        };
        let request: [u8; MAX_REQUEST] = self.get(region.cmd_slot_dma);
        let header = RequestHeader::read_from_prefix(&request).unwrap().0;
        let Ok(command) = Command::try_from(header.cmd) else {
            state.err = regs::ERR_NO_DSR;
            return;
        };
        state.err = state.refuse.map_or(0, |errno| -(errno as i32) as u32);
        state.log.push(command);
        if state.refuse.is_some() {
            return;
        }
        let mut response = [0; MAX_RESPONSE];
        response[..8].copy_from_slice(&header.response.to_le_bytes());
        response[8..12].copy_from_slice(&cmd::ack(header.cmd).to_le_bytes());
        self.carry_out(state, command, &request, &mut response);
        let told = match self.lie.lock().unwrap().as_mut() {
            Some(lie) => lie(command, &mut response),
            None => true,
        };
        if !told {
            return;
        }
        match self.model.answer_delay {
            None => self.put(region.resp_slot_dma, &response),
            Some(delay) => {
                let memory = self.memory.clone();
                std::thread::spawn(move || {
                    std::thread::sleep(delay);
                    // The acknowledgement last, as a device does.
                    memory.write(region.resp_slot_dma + 12, &response[12..]);
                    memory.write(region.resp_slot_dma, &response[..8]);
                    memory.write(region.resp_slot_dma + 8, &response[8..12]);
                });
            }
        }
    }

    fn carry_out(
        &self,
        state: &mut State,
        command: Command,
        request: &[u8; MAX_REQUEST],
        response: &mut [u8; MAX_RESPONSE],
    ) {
        state.next += 1;
        let handle = state.next;
        let mut fail = |errno: i32| response[12] = errno as u8;
        match command {
            Command::QueryPort => {
                let attrs = PortAttr {
                    state: 4,
                    active_mtu: 3,
                    max_msg_sz: 1 << 20,
                    ..PortAttr::default()
                };
                response[16..64].copy_from_slice(attrs.as_bytes());
            }
            Command::CreateCq => {
                let cq = cmd::CreateCq::read_from_prefix(request).unwrap().0;
                let pages = self.directory(cq.pdir_dma, cq.nchunks as usize);
                let ring = Ring {
                    state: pages[0] + 8,
                    pages: pages[1..].to_vec(),
                    slots: cq.cqe,
                    stride: 64,
                    index: 0,
                };
                state.cqs.insert(handle, ring);
                response[16..20].copy_from_slice(&handle.to_le_bytes());
                response[20..24].copy_from_slice(&cq.cqe.to_le_bytes());
            }
            Command::CreateMr => {
                let mr = cmd::CreateMr::read_from_prefix(request).unwrap().0;
                let pages = self.directory(mr.pdir_dma, mr.nchunks as usize);
                state.regions.insert(handle, (mr, pages));
                for (i, key) in [handle, handle | 0x1000, handle | 0x2000].iter().enumerate() {
                    response[16 + 4 * i..20 + 4 * i].copy_from_slice(&key.to_le_bytes());
                }
            }
            Command::DestroyMr => {
                let mr = cmd::DestroyMr::read_from_prefix(request).unwrap().0;
                if state.regions.remove(&mr.mr_handle).is_none() {
                    fail(22);
                }
            }
            Command::CreateQp => {
                let qp = cmd::CreateQp::read_from_prefix(request).unwrap().0;
                self.create_qp(state, handle, qp, response);
            }
            Command::ModifyQp => {
                let modify = cmd::ModifyQp::read_from_prefix(request).unwrap().0;
                state.modifies.push(modify);
                match state.qps.get_mut(&modify.qp_handle) {
                    Some(qp) => qp.state = modify.attrs.qp_state,
                    None => return fail(22),
                }
                if modify.attrs.qp_state == QpState::Error.wire() {
                    self.run(state, modify.qp_handle);
                }
                if modify.attrs.qp_state == QpState::Reset.wire()
                    && let Some(qp) = state.qps.get_mut(&modify.qp_handle)
                {
                    (qp.send.index, qp.recv.index) = (0, 0);
                    qp.waiting.clear();
                }
            }
            Command::QueryQp => {
                let query = cmd::QueryQp::read_from_prefix(request).unwrap().0;
                let qp = state.qps.get(&query.qp_handle).map_or(99, |qp| qp.state);
                response[16..20].copy_from_slice(&qp.to_le_bytes());
            }
            Command::DestroyQp => {
                let qp = cmd::DestroyQp::read_from_prefix(request).unwrap().0;
                state.qps.remove(&qp.qp_handle);
            }
            Command::DestroyCq => {
                let cq = cmd::DestroyCq::read_from_prefix(request).unwrap().0;
                state.cqs.remove(&cq.cq_handle);
            }
            Command::CreateSrq => {
                let srq = cmd::CreateSrq::read_from_prefix(request).unwrap().0;
                let pages = self.directory(srq.pdir_dma, srq.nchunks as usize);
                let ring = Ring {
                    state: pages[0] + 8,
                    pages: pages[1..].to_vec(),
                    slots: srq.max_wr,
                    stride: wqe::recv_stride(srq.max_sge),
                    index: 0,
                };
                state.srqs.insert(handle, ring);
                response[16..20].copy_from_slice(&handle.to_le_bytes());
            }
            Command::DestroySrq => {
                let srq = cmd::DestroySrq::read_from_prefix(request).unwrap().0;
                state.srqs.remove(&srq.srq_handle);
            }
            _ => response[16..20].copy_from_slice(&handle.to_le_bytes()),
        }
    }

    fn create_qp(
        &self,
        state: &mut State,
        handle: u32,
        qp: cmd::CreateQp,
        response: &mut [u8; MAX_RESPONSE],
    ) {
        let pages = self.directory(qp.pdir_dma, qp.total_chunks.into());
        let sends = usize::from(qp.send_chunks);
        let send = Ring {
            state: pages[0],
            pages: pages[1..=sends].to_vec(),
            slots: qp.max_send_wr,
            stride: wqe::send_stride(qp.max_send_sge, qp.max_inline_data),
            index: 0,
        };
        let recv = Ring {
            state: pages[0] + 8,
            pages: pages[1 + sends..].to_vec(),
            slots: qp.max_recv_wr,
            stride: wqe::recv_stride(qp.max_recv_sge),
            index: 0,
        };
        let qp = Qp { request: qp, send, recv, ..Qp::default() };
        let granted = [qp.request.max_send_wr, qp.request.max_recv_wr, 4, 4];
        let inline = qp.request.max_inline_data;
        state.qps.insert(handle, qp);
        // Version 20 tells number and handle apart.
        let words: Vec<u32> = if self.model.version >= 20 {
            [handle + 0x10_0000, handle].into_iter().chain(granted).chain([inline]).collect()
        } else {
            [handle].into_iter().chain(granted).chain([inline]).collect()
        };
        response[16..16 + 4 * words.len()].copy_from_slice(words.as_bytes());
    }

    /// Runs a queue pair: completes sends, takes receives, flushes both when in error.
    fn run(&self, state: &mut State, handle: u32) {
        let Some(mut qp) = state.qps.remove(&handle) else { return };
        let failed = qp.state == QpState::Error.wire();
        let tail: u32 = self.get(qp.send.state);
        while qp.send.index != tail {
            let at = qp.send.slot(qp.send.index);
            let header: SendHeader = self.get(at);
            let mut rest = vec![0; qp.send.stride - 80];
            self.memory.read(at + 80, &mut rest);
            qp.sends.push((header, rest));
            qp.send.index = (qp.send.index + 1) & (2 * qp.send.slots - 1);
            self.put(qp.send.state + 4, qp.send.index.as_bytes());
            let wanted = header.send_flags & FLAG_SIGNALED != 0 || self.model.complete_all;
            if failed || wanted && !self.model.hold_sends {
                let opcode = if self.model.complete_all { 0 } else { header.opcode.min(2) };
                let status = if failed { Status::WorkRequestFlushed } else { Status::Success };
                let cqe = Cqe {
                    wr_id: header.wr_id,
                    qp: handle.into(),
                    opcode,
                    status: status.wire(),
                    ..Cqe::default()
                };
                self.complete(state, qp.request.send_cq_handle, &cqe);
            }
        }
        if qp.request.is_srq == 0 {
            let tail: u32 = self.get(qp.recv.state);
            while qp.recv.index != tail {
                let header: RecvHeader = self.get(qp.recv.slot(qp.recv.index));
                qp.waiting.push_back(header.wr_id);
                qp.recv.index = (qp.recv.index + 1) & (2 * qp.recv.slots - 1);
                self.put(qp.recv.state + 4, qp.recv.index.as_bytes());
            }
        }
        if failed {
            for wr_id in std::mem::take(&mut qp.waiting) {
                let cqe = Cqe {
                    wr_id,
                    qp: handle.into(),
                    opcode: CqeOpcode::Recv.wire(),
                    status: Status::WorkRequestFlushed.wire(),
                    ..Cqe::default()
                };
                self.complete(state, qp.request.recv_cq_handle, &cqe);
            }
        }
        state.qps.insert(handle, qp);
    }

    /// What a queue pair does when its doorbell is heard: for doorbell pages that are memory, which
    /// nobody here watches.
    pub fn ring(&self, handle: u32) {
        self.run(&mut self.state(), handle);
    }

    /// Puts a completion in a queue.
    pub fn complete(&self, state: &mut State, cq: u32, cqe: &Cqe) {
        let Some(ring) = state.cqs.get_mut(&cq) else { return };
        self.put(ring.slot(ring.index), cqe.as_bytes());
        ring.index = (ring.index + 1) & (2 * ring.slots - 1);
        self.put(ring.state, ring.index.as_bytes());
    }

    /// A message arrives for the oldest receive of a queue pair.
    pub fn receive(&self, handle: u32, cqe: Cqe) {
        let mut state = self.state();
        self.run(&mut state, handle);
        let qp = state.qps.get_mut(&handle).unwrap();
        let wr_id = qp.waiting.pop_front().expect("a receive is posted");
        let cq = qp.request.recv_cq_handle;
        self.complete(&mut state, cq, &Cqe { wr_id, qp: handle.into(), ..cqe });
    }

    /// The next receives of a shared queue, by their ids.
    pub fn take_shared(&self, srq: u32) -> Vec<u64> {
        let mut state = self.state();
        let ring = state.srqs.get_mut(&srq).unwrap();
        let tail: u32 = self.get(ring.state);
        let mut ids = Vec::new();
        while ring.index != tail {
            let header: RecvHeader = self.get(ring.slot(ring.index));
            ids.push(header.wr_id);
            ring.index = (ring.index + 1) & (2 * ring.slots - 1);
            self.put(ring.state + 4, ring.index.as_bytes());
        }
        ids
    }

    /// Puts an entry in the event ring (8 bytes) or the notification ring (4 bytes).
    pub fn notify(&self, entry: &[u8]) {
        let state = self.state();
        let region = state.region.unwrap();
        let ring = if entry.len() == 8 { region.async_ring } else { region.cq_ring };
        let pages = self.directory(ring.pdir_dma, ring.num_pages as usize);
        let tail: u32 = self.get(pages[0] + 8);
        let slots = (ring.num_pages - 1) * (PAGE_SIZE / entry.len()) as u32;
        let at = (tail & (slots - 1)) as usize * entry.len();
        self.put(pages[1 + at / PAGE_SIZE] + (at % PAGE_SIZE) as u64, entry);
        self.put(pages[0] + 8, ((tail + 1) & (2 * slots - 1)).as_bytes());
    }

    /// Its own view of the doorbell pages.
    pub fn doorbell_pages(&self) -> MappedRegion {
        MappedRegion::new(self.doorbells.as_fd(), 0, 16 * 4096).unwrap()
    }
}

impl Transport for Fake {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { regions: 9, irqs: 5, can_reset: false }
    }

    fn region(&self, index: u32) -> Result<RegionInfo> {
        let size = if index == regs::BAR_UAR { 16 * 4096 } else { 256 };
        let mapped = index == regs::BAR_UAR && self.model.mapped_doorbells;
        let mappable = if mapped { vec![(0, size)] } else { Vec::new() };
        Ok(RegionInfo { size, readable: true, writable: true, mappable })
    }

    fn read_region(&self, index: u32, offset: u64, buf: &mut [u8]) -> Result<()> {
        let state = self.state();
        let value = match (index, offset) {
            _ if state.gone => !0,
            (REGION_CONFIG, 0) => u32::from(PCI_VENDOR_ID) | u32::from(PCI_DEVICE_ID) << 16,
            (REGION_CONFIG, 4) => state.pci_command.into(),
            (regs::BAR_REGS, regs::VERSION) => self.model.version,
            (regs::BAR_REGS, regs::ERR) => state.err,
            (regs::BAR_REGS, regs::CTL) => state.ctl,
            (regs::BAR_REGS, regs::EXT_MAGIC) if self.model.extension.is_some() => {
                regs::EXT_MAGIC_VALUE
            }
            (regs::BAR_REGS, regs::EXT_FEATURES) => self.model.extension.unwrap_or(0),
            _ => 0,
        };
        buf.copy_from_slice(&value.to_le_bytes()[..buf.len()]);
        Ok(())
    }

    fn write_region(&self, index: u32, offset: u64, data: &[u8]) -> Result<()> {
        let mut word = [0; 4];
        word[..data.len()].copy_from_slice(data);
        let value = u32::from_le_bytes(word);
        let mut state = self.state();
        state.writes.push((index, offset, value));
        if state.gone {
            return Ok(());
        }
        match (index, offset) {
            (REGION_CONFIG, 4) => state.pci_command = value as u16,
            (regs::BAR_REGS, regs::DSR_LOW) => state.dsr_low = value,
            (regs::BAR_REGS, regs::DSR_HIGH) => {
                let address = u64::from(value) << 32 | u64::from(state.dsr_low);
                self.load(&mut state, address);
            }
            (regs::BAR_REGS, regs::REQUEST) => self.execute(&mut state),
            (regs::BAR_REGS, regs::CTL) => {
                state.ctl = value;
                if value == regs::CTL_ACTIVATE {
                    state.err = 0;
                }
            }
            (regs::BAR_UAR, at) => {
                state.doorbells += 1;
                let handle = uar::handle(value);
                if at as usize % PAGE_SIZE == uar::QP {
                    self.run(&mut state, handle);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn map_region(&self, index: u32, offset: u64, len: u64) -> Result<MappedRegion> {
        assert_eq!(index, regs::BAR_UAR);
        MappedRegion::new(self.doorbells.as_fd(), offset, len as usize)
    }

    fn bus_address(&self, _index: u32) -> Result<u64> {
        Ok(0xfeb0_0000)
    }

    fn irq(&self, index: u32) -> Result<IrqInfo> {
        Ok(IrqInfo { count: if index == IRQ_REQUEST { 1 } else { 3 }, eventfd: true })
    }

    fn enable_irqs(&self, index: u32, fds: &[Option<BorrowedFd<'_>>]) -> Result<()> {
        assert_eq!(fds.len() as u32, self.irq(index)?.count);
        if index == IRQ_REQUEST {
            let fd = fds[0].expect("an eventfd").try_clone_to_owned().expect("a descriptor");
            self.state().removal = Some(fd);
        }
        Ok(())
    }

    fn disable_irqs(&self, index: u32) -> Result<()> {
        if index == IRQ_REQUEST {
            self.state().removal = None;
        }
        Ok(())
    }

    fn reset(&self) -> Result<()> {
        Ok(())
    }
}

/// The error of a result that must be one.
pub fn error_of<T>(result: holdfast_driver::Result<T>) -> Error {
    match result {
        Ok(_) => panic!("this must fail"),
        Err(error) => error,
    }
}
