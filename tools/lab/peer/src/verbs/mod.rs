//! libibverbs, loaded at run time: the machine that builds this program needs no RDMA packages.
//!
//! Objects here own what libibverbs made and keep alive what it belongs to. They may be used from
//! one thread.
#![allow(unsafe_code)]

mod functions;

use std::ffi::{CStr, CString, c_int, c_void};
use std::io;
use std::ptr::{self, NonNull};
use std::rc::Rc;

use anyhow::{Context as _, Result, anyhow, bail};
use holdfast::Memory;

use crate::end::{Address, Done, MTU, Operation, Request};
use abi::{mask, wr};
use holdfast_verbs_abi as abi;

/// A function of the library.
fn symbol(name: &str) -> Result<NonNull<c_void>> {
    // SAFETY: the library runs no code of ours when it is loaded, and is never unloaded; both
    // names are C strings.
    let address = unsafe {
        let library = libc::dlopen(c"libibverbs.so.1".as_ptr(), libc::RTLD_NOW);
        if library.is_null() {
            bail!("libibverbs.so.1 cannot be loaded: install libibverbs1 and ibverbs-providers");
        }
        libc::dlsym(library, CString::new(name)?.as_ptr())
    };
    NonNull::new(address).with_context(|| format!("libibverbs.so.1 has no {name}"))
}

/// Calls `$name` of the library, whose type is `$type`.
macro_rules! call {
    ($name:literal as $type:ty, $($argument:expr),*) => {
        // SAFETY: the type is that of the function in infiniband/verbs.h; the arguments are live
        // objects of the library, or point to memory that outlives the call.
        unsafe {
            let function = std::mem::transmute::<*mut c_void, $type>(symbol($name)?.as_ptr());
            function($($argument),*)
        }
    };
}

/// Something the library made; given back when the last user is gone.
struct Object {
    pointer: NonNull<c_void>,
    destroy: &'static str,
    /// What it belongs to, which must outlive it.
    _parents: Vec<Rc<Object>>,
}

impl Object {
    fn new<T>(
        made: *mut T,
        what: &str,
        destroy: &'static str,
        parents: &[&Rc<Object>],
    ) -> Result<Rc<Self>> {
        let pointer = NonNull::new(made.cast::<c_void>())
            .ok_or_else(io::Error::last_os_error)
            .with_context(|| format!("libibverbs made no {what}"))?;
        let parents = parents.iter().map(|parent| Rc::clone(parent)).collect();
        Ok(Rc::new(Self { pointer, destroy, _parents: parents }))
    }

    fn as_ptr<T>(&self) -> *mut T {
        self.pointer.as_ptr().cast()
    }

    fn destroy(&self) -> Result<()> {
        let function = symbol(self.destroy)?.as_ptr();
        // SAFETY: the function takes the object as its only argument and returns an errno; this
        // runs once, when nobody has the object any more.
        let status = unsafe {
            std::mem::transmute::<*mut c_void, functions::Destroy>(function)(self.pointer.as_ptr())
        };
        succeeded(status, self.destroy)
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        if let Err(error) = self.destroy() {
            eprintln!("lab-peer: {error:#}");
        }
    }
}

/// Functions of the library return 0, or an errno.
fn succeeded(status: c_int, what: &str) -> Result<()> {
    match status {
        0 => Ok(()),
        _ => Err(io::Error::from_raw_os_error(status.abs()).into())
            .map_err(|error: anyhow::Error| error.context(format!("{what} failed"))),
    }
}

/// An open device.
pub struct Context {
    object: Rc<Object>,
}

impl Context {
    /// Opens the device that `ibv_devices` lists under `name`.
    pub fn open(name: &str) -> Result<Self> {
        let mut count: c_int = 0;
        let list = call!("ibv_get_device_list" as functions::GetDeviceList, &mut count);
        if list.is_null() {
            return Err(io::Error::last_os_error()).context("ibv_get_device_list failed");
        }
        let mut opened = Err(anyhow!("there is no RDMA device {name}"));
        for index in 0..usize::try_from(count)? {
            // SAFETY: the list has `count` entries.
            let device = unsafe { *list.add(index) };
            let text = call!("ibv_get_device_name" as functions::GetDeviceName, device);
            // SAFETY: the name is a C string that lives as long as the list.
            if unsafe { CStr::from_ptr(text) }.to_bytes() == name.as_bytes() {
                let context = call!("ibv_open_device" as functions::OpenDevice, device);
                opened = Object::new(context, "context", "ibv_close_device", &[]);
            }
        }
        call!("ibv_free_device_list" as functions::FreeDeviceList, list);
        Ok(Self { object: opened? })
    }

    /// A GID of its port.
    pub fn gid(&self, index: c_int) -> Result<[u8; 16]> {
        let mut gid = [0_u64; 2];
        let context = self.object.as_ptr();
        let status = call!("ibv_query_gid" as functions::QueryGid, context, 1, index, &mut gid);
        succeeded(status, "ibv_query_gid")?;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&gid[0].to_ne_bytes());
        bytes[8..].copy_from_slice(&gid[1].to_ne_bytes());
        Ok(bytes)
    }

    /// A completion queue.
    pub fn completion_queue(&self, depth: u32) -> Result<CompletionQueue> {
        let (context, depth) = (self.object.as_ptr(), depth.cast_signed());
        let (user, channel) = (ptr::null_mut(), ptr::null_mut());
        let cq = call!("ibv_create_cq" as functions::CreateCq, context, depth, user, channel, 0);
        let object = Object::new(cq, "completion queue", "ibv_destroy_cq", &[&self.object])?;
        Ok(CompletionQueue { object })
    }
}

/// A protection domain.
pub struct Domain {
    object: Rc<Object>,
}

impl Domain {
    /// A new one.
    pub fn new(context: &Context) -> Result<Self> {
        let pd = call!("ibv_alloc_pd" as functions::AllocPd, context.object.as_ptr());
        let parents = [&context.object];
        Ok(Self { object: Object::new(pd, "protection domain", "ibv_dealloc_pd", &parents)? })
    }

    /// Registers memory for everything.
    pub fn register(&self, memory: Memory) -> Result<Region> {
        let address = memory.as_ptr().as_ptr().cast::<c_void>();
        let access = abi::ACCESS_ALL.cast_signed();
        let pd = self.object.as_ptr();
        let mr = call!("ibv_reg_mr" as functions::RegMr, pd, address, memory.len(), access);
        let object = Object::new(mr, "memory region", "ibv_dereg_mr", &[&self.object])?;
        Ok(Region { object, memory })
    }

    /// A queue pair for connections, of so many sends and receives, ready to take receives.
    pub fn queue_pair(&self, cq: &CompletionQueue, depth: u32) -> Result<QueuePair> {
        let cap = abi::QpCap {
            max_send_wr: depth,
            max_recv_wr: depth,
            max_send_sge: 1,
            max_recv_sge: 1,
            max_inline_data: 0,
        };
        let mut init = abi::QpInitAttr {
            qp_context: ptr::null_mut(),
            send_cq: cq.object.as_ptr(),
            recv_cq: cq.object.as_ptr(),
            srq: ptr::null_mut(),
            cap,
            qp_type: abi::QPT_RC,
            sq_sig_all: 0,
        };
        let qp = call!("ibv_create_qp" as functions::CreateQp, self.object.as_ptr(), &mut init);
        let parents = [&self.object, &cq.object];
        let qp = QueuePair { object: Object::new(qp, "queue pair", "ibv_destroy_qp", &parents)? };
        let mut attr = abi::QpAttr {
            qp_state: abi::QPS_INIT,
            port_num: 1,
            qp_access_flags: abi::ACCESS_ALL,
            ..Default::default()
        };
        let bits = mask::STATE | mask::PKEY_INDEX | mask::PORT | mask::ACCESS_FLAGS;
        qp.modify(&mut attr, bits, "to INIT")?;
        Ok(qp)
    }
}

/// A memory region, with its memory.
pub struct Region {
    // Before the memory.
    object: Rc<Object>,
    memory: Memory,
}

impl Region {
    fn mr(&self) -> *const abi::Mr {
        self.object.as_ptr()
    }

    /// Its memory.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Address of the first byte.
    pub fn addr(&self) -> u64 {
        self.memory.as_ptr().as_ptr() as u64
    }

    /// The remote key.
    pub fn rkey(&self) -> u32 {
        // SAFETY: the region lives as long as its object.
        unsafe { (*self.mr()).rkey }
    }

    /// Takes the memory back.
    pub fn deregister(self) -> Memory {
        drop(self.object);
        self.memory
    }

    fn entry(&self, offset: usize, len: usize) -> Result<abi::Sge> {
        self.memory.slice(offset, len)?;
        // SAFETY: as above.
        let lkey = unsafe { (*self.mr()).lkey };
        Ok(abi::Sge { addr: self.addr() + offset as u64, length: u32::try_from(len)?, lkey })
    }
}

/// A completion queue.
pub struct CompletionQueue {
    object: Rc<Object>,
}

impl CompletionQueue {
    /// The next completion, if there is one.
    pub fn poll(&mut self) -> Result<Option<Done>> {
        let mut wc = abi::Wc::default();
        let cq = self.object.as_ptr::<abi::Cq>();
        // SAFETY: the queue and its context live; `ibv_poll_cq` is this jump, and writes at most
        // one entry.
        let found = unsafe { (*(*cq).context).ops.poll_cq.map(|poll| poll(cq, 1, &mut wc)) };
        match found.context("the device cannot poll")? {
            0 => Ok(None),
            1 => Ok(Some(Done {
                status: wc.status,
                opcode: wc.opcode,
                len: wc.byte_len,
                imm: (wc.wc_flags & abi::WC_WITH_IMM != 0).then(|| u32::from_be(wc.imm_data)),
            })),
            _ => bail!("ibv_poll_cq failed"),
        }
    }
}

/// A queue pair for a connection.
pub struct QueuePair {
    object: Rc<Object>,
}

impl QueuePair {
    /// Its number.
    pub fn number(&self) -> u32 {
        // SAFETY: the queue pair lives as long as its object.
        unsafe { (*self.object.as_ptr::<abi::Qp>()).qp_num }
    }

    /// Connects it to a peer's; sends are counted from `psn`.
    pub fn connect(&mut self, peer: &Address, psn: u32) -> Result<()> {
        let path = abi::AhAttr {
            grh: abi::GlobalRoute { dgid: peer.gid, hop_limit: 64, ..Default::default() },
            is_global: 1,
            port_num: 1,
            ..Default::default()
        };
        let mut attr = abi::QpAttr {
            qp_state: abi::QPS_RTR,
            path_mtu: MTU,
            dest_qp_num: peer.qpn,
            rq_psn: peer.psn,
            max_dest_rd_atomic: 4,
            min_rnr_timer: 12,
            ah_attr: path,
            ..Default::default()
        };
        let bits = mask::STATE
            | mask::AV
            | mask::PATH_MTU
            | mask::DEST_QPN
            | mask::RQ_PSN
            | mask::MAX_DEST_RD_ATOMIC
            | mask::MIN_RNR_TIMER;
        self.modify(&mut attr, bits, "to RTR")?;
        let mut attr = abi::QpAttr {
            qp_state: abi::QPS_RTS,
            sq_psn: psn,
            timeout: 14,
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
        self.modify(&mut attr, bits, "to RTS")
    }

    /// Posts a request.
    pub fn post_send(&mut self, region: &Region, request: &Request) -> Result<()> {
        let mut entry = region.entry(request.local, request.len)?;
        let rkey = u64::from(request.rkey);
        let (opcode, imm, compare_add, swap) = match request.operation {
            Operation::Write => (wr::RDMA_WRITE, 0, rkey, 0),
            Operation::WriteImm(imm) => (wr::RDMA_WRITE_WITH_IMM, imm, rkey, 0),
            Operation::Send => (wr::SEND, 0, 0, 0),
            Operation::SendImm(imm) => (wr::SEND_WITH_IMM, imm, 0, 0),
            Operation::Read => (wr::RDMA_READ, 0, rkey, 0),
            Operation::CompareSwap { compare, swap } => (wr::ATOMIC_CMP_AND_SWP, 0, compare, swap),
            Operation::FetchAdd { add } => (wr::ATOMIC_FETCH_AND_ADD, 0, add, 0),
        };
        let mut request = abi::SendWr {
            wr_id: 0,
            next: ptr::null_mut(),
            sg_list: &mut entry,
            num_sge: 1,
            opcode,
            send_flags: abi::SEND_SIGNALED,
            imm_data: imm.to_be(),
            // RDMA: address and key. Atomics: address, what to compare with or to add, new value, key.
            wr: [request.addr, compare_add, swap, rkey],
            xrc: 0,
            bind_mw: [0; 6],
        };
        let mut bad = ptr::null_mut();
        let qp = self.object.as_ptr::<abi::Qp>();
        // SAFETY: the queue pair and its context live; `ibv_post_send` is this jump, and copies
        // the request and its entry before it returns.
        let status =
            unsafe { (*(*qp).context).ops.post_send.map(|post| post(qp, &mut request, &mut bad)) };
        succeeded(status.context("the device cannot send")?, "ibv_post_send")
    }

    /// Posts a receive.
    pub fn post_recv(&mut self, region: &Region, offset: usize, len: usize) -> Result<()> {
        let mut entry = region.entry(offset, len)?;
        let mut request =
            abi::RecvWr { wr_id: 0, next: ptr::null_mut(), sg_list: &mut entry, num_sge: 1 };
        let mut bad = ptr::null_mut();
        let qp = self.object.as_ptr::<abi::Qp>();
        // SAFETY: as in `post_send`.
        let status =
            unsafe { (*(*qp).context).ops.post_recv.map(|post| post(qp, &mut request, &mut bad)) };
        succeeded(status.context("the device cannot receive")?, "ibv_post_recv")
    }

    fn modify(&self, attr: &mut abi::QpAttr, bits: u32, what: &str) -> Result<()> {
        let qp = self.object.as_ptr();
        let status = call!("ibv_modify_qp" as functions::ModifyQp, qp, attr, bits.cast_signed());
        succeeded(status, &format!("ibv_modify_qp {what}"))
    }
}
