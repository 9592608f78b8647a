//! A client made of arbitrary bytes.
//!
//! The bytes are a little program: register writes, stores to shared memory, commands (some of
//! them sensible at first, then spoiled), doorbells, mapping changes, truncation. It runs against a
//! NIC without threads. Whatever the program does, the NIC must neither panic nor hang.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam::channel::bounded;
use holdfast_wire::PAGE_SIZE;
use holdfast_wire::cmd::{self, Command, RequestHeader};
use holdfast_wire::dsr::{RingPages, SharedRegion};
use holdfast_wire::{regs, uar};
use zerocopy::{FromZeros, IntoBytes};

use crate::engine::{MissPolicy, NicConfig};
use crate::memory::{FileRange, Prot, Space};
use crate::processor::bell::Bell;
use crate::processor::{Mail, Processor};
use crate::pvrdma::irq::Irqs;
use crate::pvrdma::{DeviceConfig, UarPages, caps};

const PAGES: usize = 32;
const PAGE: u64 = PAGE_SIZE as u64;
const BASE: u64 = 0x10_0000;
// Page numbers of what bring-up uses; the rest is for queues, regions and accidents.
const DSR: u64 = 0;
const COMMAND: u64 = 1;
const RESPONSE: u64 = 2;
const DIRECTORY: u64 = 3;
const TABLE: u64 = 4;
const RING: u64 = 5;
/// Longest program: keeps one run short.
const MAX_STEPS: usize = 2000;

/// Takes values from the program, zeroes when it has ended.
struct Program<'a>(&'a [u8]);

impl Program<'_> {
    fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((&first, rest)) => {
                self.0 = rest;
                first
            }
            None => 0,
        }
    }

    fn word(&mut self) -> u32 {
        u32::from_le_bytes([self.byte(), self.byte(), self.byte(), self.byte()])
    }

    /// Mostly small, sometimes anything.
    fn number(&mut self) -> u32 {
        match self.byte() {
            255 => self.word(),
            small => small.into(),
        }
    }
}

struct Rig {
    processor: Processor,
    space: Arc<Space>,
    pages: Arc<UarPages>,
    file: OwnedFd,
}

fn iova(page: u64) -> u64 {
    BASE + page % PAGES as u64 * PAGE
}

impl Rig {
    fn new(version: u32) -> Option<Self> {
        let file =
            nix::sys::memfd::memfd_create(c"fuzz", nix::sys::memfd::MFdFlags::empty()).ok()?;
        nix::unistd::ftruncate(&file, (PAGES * PAGE_SIZE) as i64).ok()?;
        let (_mail, mailbox) = bounded::<Mail>(1);
        let mut processor = Processor::new(mailbox, Arc::new(Bell::new().ok()?));
        let (space, reader) = Space::new();
        let device = DeviceConfig {
            version,
            guid: 1,
            mapped_doorbells: true,
            async_commands: false,
            may_sleep: true,
        };
        let config = NicConfig { miss: MissPolicy::Fail, limits: caps::limits() };
        processor.add_nic(space.clone(), reader, Arc::new(Irqs::default()), device, config);
        let pages = Arc::new(UarPages::new().ok()?);
        processor.connect(0, pages.clone());
        let this = Self { processor, space, pages, file };
        for page in 0..PAGES as u64 {
            this.map(page, page);
        }
        Some(this)
    }

    fn map(&self, at: u64, page: u64) {
        let file = FileRange { fd: self.file.as_fd(), offset: page * PAGE };
        let _ = self.space.map(iova(at), PAGE, Prot::READ_WRITE, Some(file));
    }

    fn store(&self, page: u64, offset: usize, data: &[u8]) {
        let at = page % PAGES as u64 * PAGE + (offset % PAGE_SIZE) as u64;
        let _ = nix::sys::uio::pwrite(&self.file, data, at as i64);
    }

    /// A directory whose tables all name the pages from `RING` on.
    fn bring_up(&mut self) {
        for entry in 0..512u64 {
            self.store(DIRECTORY, entry as usize * 8, &iova(TABLE).to_le_bytes());
            let page = RING + entry % (PAGES as u64 - RING);
            self.store(TABLE, entry as usize * 8, &iova(page).to_le_bytes());
        }
        let mut region = SharedRegion::new_zeroed();
        region.cmd_slot_dma = iova(COMMAND);
        region.resp_slot_dma = iova(RESPONSE);
        let ring = RingPages { num_pages: 4, reserved: 0, pdir_dma: iova(DIRECTORY) };
        (region.async_ring, region.cq_ring) = (ring, ring);
        self.store(DSR, 0, region.as_bytes());
        self.write(regs::DSR_LOW, iova(DSR) as u32);
        self.write(regs::DSR_HIGH, (iova(DSR) >> 32) as u32);
        self.write(regs::CTL, regs::CTL_ACTIVATE);
    }

    fn write(&mut self, offset: u64, value: u32) {
        self.processor.write_register(0, offset, value);
    }

    /// A command that might succeed, some of its bytes replaced.
    fn command(&mut self, program: &mut Program<'_>) {
        let opcode = u32::from(program.byte()) % 23;
        let hdr = RequestHeader { response: 7, cmd: opcode, reserved: 0 };
        let mut request = [0u8; cmd::MAX_REQUEST];
        let mut fill = |body: &[u8]| request[..body.len()].copy_from_slice(body);
        let pdir_dma = iova(DIRECTORY);
        match Command::try_from(opcode) {
            Ok(Command::CreateMr) => fill(
                cmd::CreateMr {
                    hdr,
                    start: 0x1000,
                    length: u64::from(program.number()) * 64,
                    pdir_dma,
                    access_flags: 15,
                    nchunks: 16,
                    flags: u32::from(program.byte() % 4),
                    ..Default::default()
                }
                .as_bytes(),
            ),
            Ok(Command::CreateCq) => fill(
                cmd::CreateCq {
                    hdr,
                    pdir_dma,
                    cqe: 1 << (program.byte() % 8),
                    nchunks: 8,
                    ..Default::default()
                }
                .as_bytes(),
            ),
            Ok(Command::CreateSrq) => fill(
                cmd::CreateSrq {
                    hdr,
                    pdir_dma,
                    max_wr: 1 << (program.byte() % 6),
                    max_sge: 2,
                    nchunks: 4,
                    ..Default::default()
                }
                .as_bytes(),
            ),
            Ok(Command::CreateQp) => fill(
                cmd::CreateQp {
                    hdr,
                    pdir_dma,
                    max_send_wr: 1 << (program.byte() % 5),
                    max_recv_wr: 1 << (program.byte() % 5),
                    max_send_sge: 2,
                    max_recv_sge: 2,
                    max_inline_data: program.byte().into(),
                    total_chunks: 9,
                    send_chunks: 4,
                    qp_type: program.byte() % 5,
                    is_srq: program.byte() & 1,
                    ..Default::default()
                }
                .as_bytes(),
            ),
            Ok(Command::ModifyQp) => {
                let mut modify =
                    cmd::ModifyQp { hdr, qp_handle: program.number(), ..Default::default() };
                modify.attrs.qp_state = (program.byte() % 7).into();
                (modify.attr_mask, modify.attrs.path_mtu) = match modify.attrs.qp_state {
                    1 => (0x39, 0),
                    2 => (0x12_9181, 5),
                    3 => (0x1_2e01, 5),
                    _ => (1, 0),
                };
                modify.attrs.port_num = 1;
                modify.attrs.qp_access_flags = 15;
                modify.attrs.dest_qp_num = program.number();
                modify.attrs.timeout = 1;
                modify.attrs.ah_attr.dgid = [9; 16];
                fill(modify.as_bytes());
            }
            Ok(Command::CreateBind) => fill(
                cmd::CreateBind { hdr, new_gid: [9; 16], gid_type: 3, ..Default::default() }
                    .as_bytes(),
            ),
            _ => fill(hdr.as_bytes()),
        }
        for _ in 0..program.byte() % 8 {
            let at = usize::from(program.byte()) % request.len();
            request[at] = program.byte();
        }
        self.store(COMMAND, 0, &request);
        self.write(regs::REQUEST, 0);
    }

    fn step(&mut self, program: &mut Program<'_>) {
        match program.byte() % 12 {
            0 => {
                let offset = u64::from(program.byte()) & !3;
                let value = program.number();
                self.write(offset, value);
                self.processor.read_register(0, offset);
            }
            1..=3 => self.command(program),
            4 | 5 => {
                let (page, offset) = (program.byte(), program.number() as usize);
                let data: Vec<u8> = (0..program.byte() % 64).map(|_| program.byte()).collect();
                self.store(page.into(), offset & !3, &data);
            }
            6 | 7 => {
                // Something posted: the tail of the state page that all queues share.
                let tail = (program.byte() % 34).into();
                let at = if program.byte() & 1 == 0 { 0 } else { 8 };
                self.store(RING, at, &u32::to_le_bytes(tail));
                let word = u32::from(program.byte()) | uar::QP_SEND | uar::QP_RECV;
                self.processor.ring_doorbell(0, uar::QP as u64, word);
            }
            8 => {
                let offset = [uar::QP, uar::CQ, uar::SRQ][usize::from(program.byte() % 3)];
                let word = program.number() | u32::from(program.byte()) << 24;
                self.pages.word(0, offset).store(word, Ordering::Relaxed);
            }
            9 => self.remap(program),
            10 => {
                let pages = i64::from(program.byte()) % (PAGES as i64 + 1);
                let _ = nix::unistd::ftruncate(&self.file, pages * PAGE as i64);
                self.turn();
                let _ = nix::unistd::ftruncate(&self.file, (PAGES * PAGE_SIZE) as i64);
            }
            _ => self.bring_up(),
        }
        self.turn();
    }

    fn remap(&mut self, program: &mut Program<'_>) {
        let (at, page) = (u64::from(program.byte()), u64::from(program.byte()));
        // The fence would wait for this thread.
        self.processor.offline();
        let _ = self.space.unmap(iova(at), PAGE);
        if program.byte() & 3 != 0 {
            self.map(at, page % PAGES as u64);
        }
        self.processor.online();
    }

    fn turn(&mut self) {
        for _ in 0..3 {
            self.processor.turn();
        }
    }
}

/// Plays `data` as a client; returns when the program has ended. Must not panic.
pub fn fuzz_client(data: &[u8]) {
    let mut program = Program(data);
    let version = regs::VERSION_MIN + u32::from(program.byte() % 4);
    let Some(mut rig) = Rig::new(version) else { return };
    rig.processor.online();
    if program.byte() & 7 != 0 {
        rig.bring_up();
    }
    for _ in 0..MAX_STEPS {
        if program.0.is_empty() {
            break;
        }
        rig.step(&mut program);
    }
    rig.processor.reset(0, true);
    rig.processor.offline();
}
