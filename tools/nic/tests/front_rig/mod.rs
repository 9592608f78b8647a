//! A driver small enough to test the front with: one file of client memory, a bump allocator, and
//! the queues at fixed shapes. It plays the backend's calls directly, without a socket.
#![allow(unsafe_code, dead_code, unreachable_pub)]

pub mod pair;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use holdfast_nic::server::{Backend, DmaMap, IrqAction};
use holdfast_nic::{NicOptions, NicProcess};
use holdfast_wire::attr::{QpAttr, QpType, mask};
use holdfast_wire::cmd::{self, Command, RequestHeader, ResponseHeader};
use holdfast_wire::completion::Cqe;
use holdfast_wire::dsr::{Caps, RingPages, SharedRegion, gos_linux};
use holdfast_wire::ring::RingSize;
use holdfast_wire::wqe::{RecvHeader, SendHeader, Sge, recv_stride, send_stride};
use holdfast_wire::{regs, uar};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

pub const PAGE: usize = 4096;
pub const IOVA: u64 = 0x1000_0000;
pub const MEMORY: usize = 8 << 20;
pub const DEPTH: u32 = 16;
pub const SGES: u32 = 4;
const PATIENCE: Duration = Duration::from_secs(5);

pub struct Mapping {
    base: *mut u8,
    len: usize,
}

impl Mapping {
    pub fn new(fd: impl AsFd, len: usize) -> Self {
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh shared mapping, unmapped by drop.
        let base = unsafe {
            mmap(None, len.try_into().unwrap(), prot, MapFlags::MAP_SHARED, fd, 0).unwrap()
        };
        Self { base: base.as_ptr().cast(), len }
    }

    pub fn word(&self, at: usize) -> &AtomicU32 {
        assert!(at + 4 <= self.len && at.is_multiple_of(4));
        // SAFETY: in bounds, aligned.
        unsafe { AtomicU32::from_ptr(self.base.add(at).cast()) }
    }

    pub fn long(&self, at: usize) -> &AtomicU64 {
        assert!(at + 8 <= self.len && at.is_multiple_of(8));
        // SAFETY: in bounds, aligned.
        unsafe { AtomicU64::from_ptr(self.base.add(at).cast()) }
    }

    pub fn write(&self, at: usize, data: &[u8]) {
        assert!(at + data.len() <= self.len);
        // SAFETY: in bounds.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.base.add(at), data.len()) }
    }

    pub fn read<T: FromBytes + IntoBytes>(&self, at: usize) -> T {
        let mut value = T::new_zeroed();
        value.as_mut_bytes().copy_from_slice(&self.bytes(at, size_of::<T>()));
        value
    }

    pub fn bytes(&self, at: usize, len: usize) -> Vec<u8> {
        assert!(at + len <= self.len);
        let mut data = vec![0; len];
        // SAFETY: in bounds.
        unsafe { std::ptr::copy_nonoverlapping(self.base.add(at), data.as_mut_ptr(), len) };
        data
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by `new`.
        unsafe { munmap(std::ptr::NonNull::new(self.base).unwrap().cast(), self.len).unwrap() };
    }
}

pub struct Client<'a> {
    pub process: &'a NicProcess,
    pub nic: usize,
    pub fd: OwnedFd,
    pub memory: Mapping,
    pub uar: Option<Mapping>,
    pub version: u32,
    next_page: usize,
    dsr: usize,
    command: usize,
    response: usize,
    notify: usize,
    events: usize,
    notify_head: u32,
    event_head: u32,
    key: u64,
}

/// Pages of a queue and the directory that names them: offsets in client memory.
#[derive(Clone, Copy)]
pub struct Pages {
    pub first: usize,
    pub pdir: u64,
}

pub struct Cq {
    pub handle: u32,
    pub pages: Pages,
    head: u32,
}

pub struct Qp {
    pub handle: u32,
    pub qpn: u32,
    pub pages: Pages,
    pub send_tail: u32,
    pub recv_tail: u32,
    send_pages: usize,
}

#[derive(Debug)]
pub struct Refused {
    pub register: u32,
    pub errno: u8,
}

pub fn process(nics: usize, change: impl FnOnce(&mut NicOptions)) -> NicProcess {
    let mut options = NicOptions { extra_nics: nics, ..Default::default() };
    change(&mut options);
    NicProcess::start(options).unwrap()
}

/// Waits until `what` gives something.
pub fn eventually<T>(mut what: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = what() {
            return found;
        }
        assert!(Instant::now() < end, "it never happened");
        std::thread::yield_now();
    }
}

impl<'a> Client<'a> {
    /// Connects and maps its memory, no more.
    pub fn connect(process: &'a NicProcess, nic: usize) -> Self {
        let fd = memfd_create(c"client", MFdFlags::empty()).unwrap();
        nix::unistd::ftruncate(&fd, MEMORY as i64).unwrap();
        let memory = Mapping::new(&fd, MEMORY);
        let uar = process.with_backend(nic, |backend| {
            backend.client_connected();
            let map = backend.regions().swap_remove(regs::BAR_UAR as usize).map;
            map.map(|map| Mapping::new(&map.fd, regs::BAR_UAR_SIZE as usize))
        });
        let mut this = Self {
            process,
            nic,
            fd,
            memory,
            uar,
            version: 0,
            next_page: 0,
            dsr: 0,
            command: 0,
            response: 0,
            notify: 0,
            events: 0,
            notify_head: 0,
            event_head: 0,
            key: 100,
        };
        this.version = this.read(regs::VERSION);
        this.map_all().unwrap();
        this
    }

    pub fn map_all(&self) -> Result<(), nix::errno::Errno> {
        let map = DmaMap {
            iova: IOVA,
            len: MEMORY as u64,
            read: true,
            write: true,
            fd: Some(self.fd.try_clone().unwrap()),
            offset: 0,
        };
        self.process.with_backend(self.nic, |backend| backend.dma_map(map))
    }

    /// Connects and brings the device up.
    pub fn start(process: &'a NicProcess, nic: usize) -> Self {
        let mut this = Self::connect(process, nic);
        this.load_dsr();
        this.write(regs::CTL, regs::CTL_ACTIVATE);
        assert_eq!(this.read(regs::ERR), 0);
        this
    }

    pub fn load_dsr(&mut self) {
        let notify = self.alloc(4);
        let events = self.alloc(4);
        let page = self.alloc(3).first;
        (self.dsr, self.command, self.response) = (page, page + PAGE, page + 2 * PAGE);
        (self.notify, self.events) = (notify.first, events.first);
        let mut region = SharedRegion::new_zeroed();
        region.driver_version = 20;
        region.gos = gos_linux();
        region.cmd_slot_dma = IOVA + self.command as u64;
        region.resp_slot_dma = IOVA + self.response as u64;
        region.cq_ring = RingPages { num_pages: 4, reserved: 0, pdir_dma: notify.pdir };
        region.async_ring = RingPages { num_pages: 4, reserved: 0, pdir_dma: events.pdir };
        self.memory.write(self.dsr, region.as_bytes());
        let dsr = IOVA + self.dsr as u64;
        self.write(regs::DSR_LOW, dsr as u32);
        self.write(regs::DSR_HIGH, (dsr >> 32) as u32);
    }

    pub fn caps(&self) -> Caps {
        self.memory.read::<SharedRegion>(self.dsr).caps
    }

    pub fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.process
            .with_backend(self.nic, |backend| backend.read(regs::BAR_REGS, offset, &mut data))
            .unwrap();
        u32::from_le_bytes(data)
    }

    pub fn write(&self, offset: u64, value: u32) {
        self.process
            .with_backend(self.nic, |b| b.write(regs::BAR_REGS, offset, &value.to_le_bytes()))
            .unwrap();
    }

    /// A doorbell: a store when the page is mapped, else a message.
    pub fn ring(&self, offset: usize, word: u32) {
        match &self.uar {
            Some(page) => {
                page.word(offset).store(word, Ordering::SeqCst);
                if page.word(uar::ASLEEP).load(Ordering::SeqCst) != 0 {
                    self.write(regs::EXT_WAKE, 1);
                }
            }
            None => self
                .process
                .with_backend(self.nic, |b| {
                    b.write(regs::BAR_UAR, offset as u64, &word.to_le_bytes())
                })
                .unwrap(),
        }
    }

    pub fn arm(&self, cq: &Cq, word: u32) {
        self.ring(uar::CQ, cq.handle | word);
        if let Some(page) = &self.uar {
            eventually(|| (page.word(uar::CQ).load(Ordering::SeqCst) == 0).then_some(()));
        }
    }

    /// Pages, zeroed, with a directory (one table).
    pub fn alloc(&mut self, pages: usize) -> Pages {
        let first = self.next_page * PAGE;
        let (pdir, table) = (first + pages * PAGE, first + (pages + 1) * PAGE);
        self.next_page += pages + 2;
        assert!(self.next_page * PAGE <= MEMORY && pages <= 512);
        self.memory.write(pdir, &(IOVA + table as u64).to_le_bytes());
        for page in 0..pages {
            let address = IOVA + (first + page * PAGE) as u64;
            self.memory.write(table + 8 * page, &address.to_le_bytes());
        }
        Pages { first, pdir: IOVA + pdir as u64 }
    }

    pub fn header(&mut self, command: Command) -> RequestHeader {
        self.key += 1;
        RequestHeader { response: self.key, cmd: command.wire(), reserved: 0 }
    }

    /// Puts bytes in the command slot and executes them; gives ERR.
    pub fn execute(&mut self, request: &[u8]) -> u32 {
        self.memory.write(self.response, &[0; cmd::MAX_RESPONSE]);
        self.memory.write(self.command, &[0; cmd::MAX_REQUEST]);
        self.memory.write(self.command, request);
        self.write(regs::REQUEST, 0);
        self.read(regs::ERR)
    }

    pub fn response<T: FromBytes + IntoBytes>(&self) -> T {
        self.memory.read(self.response)
    }

    pub fn call<T: FromBytes + IntoBytes>(
        &mut self,
        command: Command,
        make: impl FnOnce(RequestHeader) -> Vec<u8>,
    ) -> Result<T, Refused> {
        let header = self.header(command);
        let request = make(header);
        let register = self.execute(&request);
        let ack = self.response + 8;
        if register == 0 {
            let expected = cmd::ack(command.wire());
            eventually(|| {
                (self.memory.word(ack).load(Ordering::Acquire) == expected).then_some(())
            });
        }
        let answer: ResponseHeader = self.response();
        if register != 0 || answer.err != 0 {
            return Err(Refused { register, errno: answer.err });
        }
        assert_eq!(answer.response, self.key, "the key is echoed");
        Ok(self.response())
    }

    pub fn create_pd(&mut self) -> u32 {
        let resp: cmd::CreatePdResp = self
            .call(Command::CreatePd, |hdr| bytes(&cmd::CreatePd { hdr, ..Default::default() }))
            .unwrap();
        resp.pd_handle
    }

    pub fn bind_gid(&mut self, index: u32, gid: [u8; 16]) {
        let _: ResponseHeader = self
            .call(Command::CreateBind, |hdr| {
                bytes(&cmd::CreateBind {
                    hdr,
                    mtu: 1024,
                    vlan: 0xfff,
                    index,
                    new_gid: gid,
                    gid_type: 2,
                    ..Default::default()
                })
            })
            .unwrap();
    }

    pub fn create_cq(&mut self, cqe: u32) -> Cq {
        let pages = self.alloc(1 + (cqe as usize * 64).div_ceil(PAGE));
        let resp: cmd::CreateCqResp = self
            .call(Command::CreateCq, |hdr| {
                let nchunks = 1 + (cqe * 64).div_ceil(4096);
                let pdir_dma = pages.pdir;
                bytes(&cmd::CreateCq { hdr, pdir_dma, cqe, nchunks, ..Default::default() })
            })
            .unwrap();
        Cq { handle: resp.cq_handle, pages, head: 0 }
    }

    /// A region over `pages` fresh pages with every right: (offset in memory, start, key).
    pub fn create_mr(&mut self, pd: u32, pages: usize) -> (usize, u64, u32) {
        let at = self.alloc(pages);
        let start = 0x5000_0000 + at.first as u64;
        let resp: cmd::CreateMrResp = self
            .call(Command::CreateMr, |hdr| {
                bytes(&cmd::CreateMr {
                    hdr,
                    start,
                    length: (pages * PAGE) as u64,
                    pdir_dma: at.pdir,
                    pd_handle: pd,
                    access_flags: 15,
                    flags: 0,
                    nchunks: pages as u32,
                })
            })
            .unwrap();
        assert_eq!(resp.lkey, resp.rkey);
        (at.first, start, resp.lkey)
    }

    pub fn qp_request(&mut self, pd: u32, cq: &Cq, inline: u32) -> (cmd::CreateQp, Pages, usize) {
        let send = (DEPTH as usize * send_stride(SGES, inline)).div_ceil(PAGE);
        let recv = (DEPTH as usize * recv_stride(SGES)).div_ceil(PAGE);
        let pages = self.alloc(1 + send + recv);
        let request = cmd::CreateQp {
            hdr: self.header(Command::CreateQp),
            pdir_dma: pages.pdir,
            pd_handle: pd,
            send_cq_handle: cq.handle,
            recv_cq_handle: cq.handle,
            max_send_wr: DEPTH,
            max_recv_wr: DEPTH,
            max_send_sge: SGES,
            max_recv_sge: SGES,
            max_inline_data: inline,
            total_chunks: (1 + send + recv) as u16,
            send_chunks: send as u16,
            qp_type: 2,
            ..Default::default()
        };
        (request, pages, send)
    }

    pub fn create_qp(&mut self, pd: u32, cq: &Cq) -> Qp {
        self.create_qp_of(QpType::Rc, pd, cq)
    }

    pub fn create_qp_of(&mut self, qp_type: QpType, pd: u32, cq: &Cq) -> Qp {
        let (mut request, pages, send_pages) = self.qp_request(pd, cq, 0);
        request.qp_type = qp_type.wire();
        assert_eq!(self.execute(request.as_bytes()), 0);
        let (handle, qpn) = if self.version >= regs::VERSION_QP_HANDLE {
            let resp: cmd::CreateQpRespV2 = self.response();
            assert_eq!(resp.max_send_wr, DEPTH);
            (resp.qp_handle, resp.qpn)
        } else {
            let resp: cmd::CreateQpResp = self.response();
            assert_eq!(resp.max_send_wr, DEPTH);
            (resp.qpn, resp.qpn)
        };
        Qp { handle, qpn, pages, send_tail: 0, recv_tail: 0, send_pages }
    }

    pub fn modify(&mut self, qp: &Qp, attr_mask: u32, attrs: QpAttr) -> Result<(), Refused> {
        let qp_handle = qp.handle;
        self.call(Command::ModifyQp, |hdr| {
            bytes(&cmd::ModifyQp { hdr, qp_handle, attr_mask, attrs })
        })
        .map(|_: ResponseHeader| ())
    }

    /// Takes an RC queue pair to RTS towards `peer`.
    pub fn connect_qp(&mut self, qp: &Qp, peer: u32, dgid: [u8; 16]) {
        let init = QpAttr { qp_state: 1, port_num: 1, qp_access_flags: 15, ..Default::default() };
        self.modify(qp, mask::STATE | mask::PORT | mask::PKEY_INDEX | mask::ACCESS_FLAGS, init)
            .unwrap();
        let mut rtr = QpAttr {
            qp_state: 2,
            path_mtu: 5,
            dest_qp_num: peer,
            max_dest_rd_atomic: 4,
            min_rnr_timer: 1,
            ..Default::default()
        };
        rtr.ah_attr.dgid = dgid;
        rtr.ah_attr.port_num = 1;
        rtr.ah_attr.ah_flags = 1;
        let bits = mask::STATE
            | mask::AV
            | mask::PATH_MTU
            | mask::DEST_QPN
            | mask::RQ_PSN
            | mask::MAX_DEST_RD_ATOMIC
            | mask::MIN_RNR_TIMER;
        self.modify(qp, bits, rtr).unwrap();
        let rts = QpAttr {
            qp_state: 3,
            timeout: 10,
            retry_cnt: 7,
            rnr_retry: 7,
            max_rd_atomic: 4,
            ..Default::default()
        };
        let bits = mask::STATE
            | mask::TIMEOUT
            | mask::RETRY_CNT
            | mask::RNR_RETRY
            | mask::SQ_PSN
            | mask::MAX_QP_RD_ATOMIC;
        self.modify(qp, bits, rts).unwrap();
    }

    /// Takes a datagram queue pair to RTS with queue key `qkey`.
    pub fn open_datagrams(&mut self, qp: &Qp, qkey: u32) {
        let to = |qp_state| QpAttr { qp_state, port_num: 1, qkey, ..Default::default() };
        // General services have no port of their own.
        let port = if qp.qpn == 1 { 0 } else { mask::PORT };
        let init = mask::STATE | mask::PKEY_INDEX | mask::QKEY | port;
        self.modify(qp, init, to(1)).unwrap();
        self.modify(qp, mask::STATE, to(2)).unwrap();
        self.modify(qp, mask::STATE | mask::SQ_PSN, to(3)).unwrap();
    }

    /// Puts a request in the send ring, without a doorbell.
    pub fn post_send(&self, qp: &mut Qp, header: SendHeader, sges: &[Sge]) {
        let size = RingSize::new(DEPTH).unwrap();
        let stride = send_stride(SGES, 0);
        let at = qp.pages.first + PAGE + size.slot(qp.send_tail) as usize * stride;
        self.memory.write(at, header.as_bytes());
        self.memory.write(at + size_of::<SendHeader>(), sges.as_bytes());
        qp.send_tail = size.next(qp.send_tail);
        self.memory.word(qp.pages.first).store(qp.send_tail, Ordering::Release);
    }

    pub fn post_recv(&self, qp: &mut Qp, wr_id: u64, sges: &[Sge]) {
        let size = RingSize::new(DEPTH).unwrap();
        let slot = size.slot(qp.recv_tail) as usize * recv_stride(SGES);
        let at = qp.pages.first + (1 + qp.send_pages) * PAGE + slot;
        let header = RecvHeader { wr_id, num_sge: sges.len() as u32, total_len: 0 };
        self.memory.write(at, header.as_bytes());
        self.memory.write(at + size_of::<RecvHeader>(), sges.as_bytes());
        qp.recv_tail = size.next(qp.recv_tail);
        self.memory.word(qp.pages.first + 8).store(qp.recv_tail, Ordering::Release);
    }

    pub fn try_poll(&self, cq: &mut Cq, entries: u32) -> Option<Cqe> {
        let size = RingSize::new(entries).unwrap();
        let tail = self.memory.word(cq.pages.first + 8).load(Ordering::Acquire);
        if tail == cq.head {
            return None;
        }
        let cqe = self.memory.read(cq.pages.first + PAGE + size.slot(cq.head) as usize * 64);
        cq.head = size.next(cq.head);
        self.memory.word(cq.pages.first + 12).store(cq.head, Ordering::Release);
        Some(cqe)
    }

    pub fn poll(&self, cq: &mut Cq, entries: u32) -> Cqe {
        eventually(|| self.try_poll(cq, entries))
    }

    pub fn next_notification(&mut self) -> Option<u32> {
        let size = RingSize::of_device_ring(4, 4).unwrap();
        take_entry(&self.memory, self.notify, size, &mut self.notify_head)
    }

    pub fn next_event(&mut self) -> Option<(u32, u32)> {
        let size = RingSize::of_device_ring(4, 8).unwrap();
        let entry: Option<u64> = take_entry(&self.memory, self.events, size, &mut self.event_head);
        entry.map(|entry| (entry as u32, (entry >> 32) as u32))
    }

    /// Binds eventfds to all three vectors.
    pub fn bind_irqs(&self) -> [EventFd; 3] {
        let fds =
            [(); 3].map(|()| EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).unwrap());
        let clones = fds.iter().map(|fd| Some(fd.as_fd().try_clone_to_owned().unwrap())).collect();
        self.process.with_backend(self.nic, |b| b.set_irqs(2, 0, IrqAction::Bind(clones))).unwrap();
        fds
    }

    pub fn raw_fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    pub fn disconnect(&self) {
        self.process.with_backend(self.nic, |backend| backend.client_gone());
    }
}

fn take_entry<T: FromBytes + IntoBytes>(
    memory: &Mapping,
    at: usize,
    size: RingSize,
    head: &mut u32,
) -> Option<T> {
    if memory.word(at + 8).load(Ordering::Acquire) == *head {
        return None;
    }
    let entry = memory.read(at + PAGE + size.slot(*head) as usize * size_of::<T>());
    *head = size.next(*head);
    memory.word(at + 12).store(*head, Ordering::Release);
    Some(entry)
}

pub fn bytes<T: IntoBytes + Immutable>(value: &T) -> Vec<u8> {
    value.as_bytes().to_vec()
}
