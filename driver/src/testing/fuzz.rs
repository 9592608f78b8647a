//! A hostile device: everything it says comes from a string of bytes.
//!
//! It is often honest, so that a fuzzer gets past bring-up, and then scribbles: into answers, ring
//! indices, completions and events. The driver must survive any string without a panic.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_vfio::device::{DeviceInfo, IrqInfo, REGION_CONFIG, RegionInfo};
use holdfast_vfio::{Device as Transport, Error as TransportError, MappedRegion};
use holdfast_wire::attr::{QpType, mask};
use holdfast_wire::cmd::{self, Command, MAX_RESPONSE, RequestHeader};
use holdfast_wire::dsr::{Caps, SharedRegion};
use holdfast_wire::wqe::Sge;
use holdfast_wire::{PCI_DEVICE_ID, PCI_VENDOR_ID, regs, uar};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::HeapMemory;
use crate::dma::DmaAllocator;
use crate::{
    AddressHandle, Completion, CompletionQueue, Datagram, Device, Init, Options, Path, QpConfig,
    QueuePair, ReadyToReceive, ReadyToSend, Remote, Result, SendFlags,
};

/// The string of bytes; zeroes when it is used up.
struct Bytes {
    data: Vec<u8>,
    at: usize,
}

impl Bytes {
    fn new(data: &[u8]) -> Self {
        Self { data: data.to_vec(), at: 0 }
    }

    fn byte(&mut self) -> u8 {
        let byte = self.data.get(self.at).copied().unwrap_or(0);
        self.at += 1;
        byte
    }

    fn word(&mut self) -> u32 {
        u32::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    fn fill(&mut self, buf: &mut [u8]) {
        buf.iter_mut().for_each(|byte| *byte = self.byte());
    }

    fn is_empty(&self) -> bool {
        self.at >= self.data.len()
    }
}

struct State {
    bytes: Bytes,
    dsr_low: u32,
    slots: (u64, u64),
    handles: u32,
}

struct HostileDevice {
    memory: HeapMemory,
    state: Mutex<State>,
}

impl HostileDevice {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Loads the shared region and writes capabilities.
    fn load(&self, state: &mut State, address: u64) {
        let mut region = SharedRegion::new_zeroed();
        if !self.memory.read(address, region.as_mut_bytes()) {
            return;
        }
        state.slots = (region.cmd_slot_dma, region.resp_slot_dma);
        let mut caps = Caps {
            fw_ver: 1,
            max_mr_size: 1 << 30,
            max_qp: 64,
            max_qp_wr: 4096,
            max_sge: 16,
            max_cq: 64,
            max_cqe: 4096,
            max_mr: 64,
            max_pd: 64,
            max_srq: 16,
            max_srq_wr: 4096,
            max_srq_sge: 16,
            max_uar: 64,
            gid_tbl_len: 8,
            atomic_ops: 3,
            gid_types: 1,
            ..Caps::default()
        };
        for _ in 0..state.bytes.byte() % 4 {
            let at = usize::from(state.bytes.byte()) % size_of::<Caps>();
            caps.as_mut_bytes()[at] = state.bytes.byte();
        }
        self.memory
            .write(address + std::mem::offset_of!(SharedRegion, caps) as u64, caps.as_bytes());
    }

    /// Answers the command in the slot: honestly, or not.
    fn answer(&self, state: &mut State) {
        let mut request = [0; cmd::MAX_REQUEST];
        let mut response = [0; MAX_RESPONSE];
        self.memory.read(state.slots.0, &mut request);
        let header = RequestHeader::read_from_prefix(&request).map(|(header, _)| header);
        let header = header.unwrap_or_default();
        let mood = state.bytes.byte();
        if mood >= 250 {
            return;
        }
        response[0..8].copy_from_slice(&header.response.to_le_bytes());
        response[8..12].copy_from_slice(&cmd::ack(header.cmd).to_le_bytes());
        state.handles += 1;
        let handle = state.handles.to_le_bytes();
        response[16..20].copy_from_slice(&handle);
        match Command::try_from(header.cmd) {
            Ok(Command::CreateCq) => response[20..24].copy_from_slice(&[0, 0, 1, 0]),
            Ok(Command::CreateQp) => response[20..24].copy_from_slice(&handle),
            Ok(Command::QueryPort) => response[16..20].copy_from_slice(&[4, 0, 0, 0]),
            _ => {}
        }
        if mood >= 200 {
            let at = usize::from(state.bytes.byte()) % (MAX_RESPONSE - 16);
            let len = usize::from(state.bytes.byte() % 16);
            state.bytes.fill(&mut response[at..at + len]);
        }
        self.memory.write(state.slots.1, &response);
    }

    /// Scribbles over some page: indices, completions, events, or anything.
    fn scribble(&self, state: &mut State) {
        let [page, kind, from, index] = std::array::from_fn(|_| state.bytes.byte());
        let (Some(page), Some(source)) =
            (self.memory.nth_page(page.into()), self.memory.nth_page(from.into()))
        else {
            return;
        };
        match kind % 4 {
            0 => {
                // Small, plausible indices.
                let word = u32::from(index % 80).to_le_bytes();
                self.memory.write(page + u64::from(kind >> 2) % 4 * 4, &word);
            }
            1 => {
                // A completion whose id is some word of some ring.
                let mut cqe = [0; 64];
                self.memory.read(source + u64::from(index) * 8, &mut cqe[..8]);
                cqe[8] = state.bytes.byte();
                cqe[16] = state.bytes.byte();
                cqe[20] = state.bytes.byte() % 32;
                self.memory.write(page + u64::from(index % 64) * 64, &cqe);
            }
            _ => {
                let mut noise = [0; 16];
                state.bytes.fill(&mut noise);
                self.memory.write(page + u64::from(index) * 16, &noise);
            }
        }
    }
}

impl Transport for HostileDevice {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { regions: 9, irqs: 5, can_reset: true }
    }

    fn region(&self, _index: u32) -> holdfast_vfio::Result<RegionInfo> {
        let size = u64::from(self.lock().bytes.byte() % 32 + 8) * 4096;
        Ok(RegionInfo { size, readable: true, writable: true, mappable: Vec::new() })
    }

    fn read_region(&self, index: u32, offset: u64, buf: &mut [u8]) -> holdfast_vfio::Result<()> {
        let mut state = self.lock();
        let honest = match (index, offset) {
            (REGION_CONFIG, 0) => Some(u32::from(PCI_VENDOR_ID) | u32::from(PCI_DEVICE_ID) << 16),
            (REGION_CONFIG, _) => Some(0),
            (regs::BAR_REGS, regs::VERSION) => Some(17 + u32::from(state.bytes.byte()) % 4),
            (regs::BAR_REGS, regs::EXT_MAGIC) => {
                let extended = state.bytes.byte() & 1 != 0;
                Some(if extended { regs::EXT_MAGIC_VALUE } else { 0 })
            }
            (regs::BAR_REGS, regs::ERR) => match state.bytes.byte() {
                255 => None,
                _ => Some(0),
            },
            _ => None,
        };
        match honest {
            Some(value) => {
                let len = buf.len().min(4);
                buf[..len].copy_from_slice(&value.to_le_bytes()[..len]);
            }
            None => state.bytes.fill(buf),
        }
        Ok(())
    }

    fn write_region(&self, index: u32, offset: u64, data: &[u8]) -> holdfast_vfio::Result<()> {
        let mut state = self.lock();
        let value = u32::read_from_bytes(data).unwrap_or(0);
        match (index, offset) {
            (regs::BAR_REGS, regs::DSR_LOW) => state.dsr_low = value,
            (regs::BAR_REGS, regs::DSR_HIGH) => {
                let address = u64::from(value) << 32 | u64::from(state.dsr_low);
                self.load(&mut state, address);
            }
            (regs::BAR_REGS, regs::REQUEST) => self.answer(&mut state),
            (regs::BAR_UAR, _) => {
                if state.bytes.byte() == 255 {
                    return Err(TransportError::usage("the fuzzer broke the transport"));
                }
                let times = state.bytes.byte() % 8;
                (0..times).for_each(|_| self.scribble(&mut state));
            }
            _ => {}
        }
        Ok(())
    }

    fn map_region(&self, _: u32, _: u64, _: u64) -> holdfast_vfio::Result<MappedRegion> {
        Err(TransportError::usage("nothing can be mapped"))
    }

    fn bus_address(&self, _index: u32) -> holdfast_vfio::Result<u64> {
        Ok(u64::from(self.lock().bytes.word()) << 12)
    }

    fn irq(&self, _index: u32) -> holdfast_vfio::Result<IrqInfo> {
        Ok(IrqInfo { count: 3, eventfd: true })
    }

    fn enable_irqs(&self, _: u32, _: &[Option<BorrowedFd<'_>>]) -> holdfast_vfio::Result<()> {
        Ok(())
    }

    fn disable_irqs(&self, _: u32) -> holdfast_vfio::Result<()> {
        Ok(())
    }

    fn reset(&self) -> holdfast_vfio::Result<()> {
        Ok(())
    }
}

/// Runs the driver against a device that answers from `data`, with a caller that does what the
/// first quarter of `data` says. Must not panic.
pub fn fuzz_device(data: &[u8]) {
    fuzz_device_steps(data);
}

/// The same; gives the number of things the caller came to do, none if bring-up failed.
pub fn fuzz_device_steps(data: &[u8]) -> u32 {
    let (caller, device) = data.split_at(data.len() / 4);
    let memory = HeapMemory::default();
    let transport = Arc::new(HostileDevice {
        memory: memory.clone(),
        state: Mutex::new(State {
            bytes: Bytes::new(device),
            dsr_low: 0,
            slots: (0, 0),
            handles: 0,
        }),
    });
    let mut steps = 0;
    let _ = run(&mut Bytes::new(caller), transport, memory.clone(), &mut steps);
    // A device that refuses to destroy an object makes the driver leak its rings: rightly, but a
    // fuzzer runs this millions of times.
    #[allow(unsafe_code)]
    // SAFETY: `run` has returned, and with it every object of the driver's is gone.
    unsafe {
        memory.free_leaked();
    }
    steps
}

fn run(
    caller: &mut Bytes,
    transport: Arc<HostileDevice>,
    memory: HeapMemory,
    steps: &mut u32,
) -> Result<()> {
    let options = Options { command_deadline: Duration::from_millis(1), ..Options::default() };
    let pages = memory.allocate(4 * 4096)?;
    let device = Device::open(transport, Arc::new(memory), options)?;
    let _ = device.bind_gid(0, [1; 16]);
    let uar = device.alloc_uar()?;
    let pd = device.alloc_pd(&uar)?;
    let region = device.register_mr(&pd, 0, 4 * 4096, pages.pages(), 1)?;
    let mut cq = device.create_cq(&uar, 256)?;
    let mut srq = device.create_srq(&pd, &uar, 20, 2).ok();
    let qp_type = if caller.byte() & 1 == 0 { QpType::Rc } else { QpType::Ud };
    let mut config = QpConfig::new(qp_type, 16);
    config.srq = srq.as_ref().filter(|_| caller.byte() & 1 == 0).map(|srq| srq.share());
    let mut qp = device.create_qp(&pd, &uar, &config, &cq, &cq)?;
    bring_up(&qp)?;

    let ah = AddressHandle::new(&pd, &Path::new([2; 16], 0))?;
    let sge = Sge { addr: 0, length: 64, lkey: region.lkey() };
    let mut out = [Completion::default(); 8];
    while !caller.is_empty() && *steps < 4096 {
        *steps += 1;
        let flags = if caller.byte() & 1 == 0 { SendFlags::NONE } else { SendFlags::SIGNALED };
        let remote = Remote { addr: 64, rkey: 7 };
        let wr_id = u64::from(*steps);
        match caller.byte() % 12 {
            0 => {
                let _ = qp.send.write(wr_id, &[sge], remote, flags);
            }
            1 => {
                let _ = qp.send.send_imm(wr_id, &[sge], 9, flags);
            }
            2 => {
                let _ = qp.send.fetch_add(wr_id, Sge { length: 8, ..sge }, remote, 1, flags);
            }
            3 => {
                let to = Datagram { to: &ah, qpn: 3, qkey: 4 };
                let _ = qp.send.ud_send(wr_id, &[sge], to, flags);
            }
            4 | 5 => qp.send.ring(),
            6 => {
                if let Some(recv) = &mut qp.recv {
                    let _ = recv.post(wr_id, &[sge]);
                    recv.ring();
                }
                if let Some(srq) = &mut srq {
                    let _ = srq.post(wr_id, &[sge]);
                    srq.ring();
                }
            }
            7 => cq.poll_device(),
            8 => {
                let _ = (device.next_event(), device.next_notification());
            }
            9 => {
                let _ = cq.arm(false);
            }
            _ => {
                let _ = cq.poll(&mut out);
            }
        }
        let depth = qp.send.depth();
        assert!(qp.send.outstanding() <= depth, "credit was invented");
    }
    drain(&mut qp, &mut cq);
    drop((qp, srq));
    let _ = cq.poll(&mut out);
    region.destroy()
}

fn bring_up(qp: &QueuePair) -> Result<()> {
    qp.control.to_init(&Init::default())?;
    if qp.control.qp_type() == QpType::Ud {
        qp.control.to_rtr_datagram()?;
        return qp.control.to_rts_datagram(0);
    }
    qp.control.to_rtr(&ReadyToReceive {
        path: Path::new([2; 16], 0),
        path_mtu: 3,
        dest_qpn: 1,
        rq_psn: 0,
        max_dest_rd_atomic: 1,
        min_rnr_timer: 1,
    })?;
    qp.control.to_rts(&ReadyToSend::default())?;
    let _ = qp.control.query(mask::STATE);
    Ok(())
}

fn drain(qp: &mut QueuePair, cq: &mut CompletionQueue) {
    let _ = qp.drain(&mut [cq], Duration::from_millis(1), &mut drop);
}

// The doorbell page is trapped, so every doorbell gives the device a chance to scribble.
const _: () = assert!(uar::UAR_PAGE_SIZE == 4096);
