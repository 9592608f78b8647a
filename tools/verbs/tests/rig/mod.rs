//! The built library, loaded as a program's dynamic linker would load it, and queue pairs made
//! through its C interface in the way QEMU's `rdma_backend.c` makes them.
#![allow(unsafe_code, dead_code, missing_docs)]
// Every block calls the C interface with objects of this rig, or reads a structure it was given.
#![allow(clippy::undocumented_unsafe_blocks)]

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::path::PathBuf;
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use holdfast_verbs::abi::*;

/// Where cargo put the library.
pub fn library() -> PathBuf {
    let exe = std::env::current_exe().expect("a path");
    let found = exe.with_file_name("libholdfast_verbs.so");
    assert!(found.exists(), "cargo builds the library with its tests");
    found
}

macro_rules! entry_points {
    ($($name:ident: fn($($arg:ty),*) -> $ret:ty;)+) => {
        /// The entry points that QEMU imports.
        pub struct Verbs { $(pub $name: unsafe extern "C" fn($($arg),*) -> $ret,)+ }

        impl Verbs {
            fn load() -> Self {
                let path = CString::new(library().to_str().expect("a path")).expect("a path");
                unsafe {
                    let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
                    assert!(!handle.is_null(), "{:?}", CStr::from_ptr(libc::dlerror()));
                    Verbs { $($name: {
                        let name = CString::new(stringify!($name)).expect("a name");
                        let symbol = libc::dlsym(handle, name.as_ptr());
                        assert!(!symbol.is_null(), "{} is missing", stringify!($name));
                        std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($arg),*) -> $ret>(
                            symbol,
                        )
                    },)+ }
                }
            }
        }
    };
}

entry_points! {
    ibv_get_device_list: fn(*mut c_int) -> *mut *mut Device;
    ibv_free_device_list: fn(*mut *mut Device) -> ();
    ibv_get_device_name: fn(*mut Device) -> *const c_char;
    ibv_open_device: fn(*mut Device) -> *mut Context;
    ibv_close_device: fn(*mut Context) -> c_int;
    ibv_query_device: fn(*mut Context, *mut DeviceAttr) -> c_int;
    ibv_query_port: fn(*mut Context, u8, *mut PortAttr) -> c_int;
    ibv_query_gid: fn(*mut Context, u8, c_int, *mut Gid) -> c_int;
    ibv_alloc_pd: fn(*mut Context) -> *mut Pd;
    ibv_dealloc_pd: fn(*mut Pd) -> c_int;
    ibv_reg_mr: fn(*mut Pd, *mut c_void, usize, c_int) -> *mut Mr;
    ibv_reg_mr_iova2: fn(*mut Pd, *mut c_void, usize, u64, c_uint) -> *mut Mr;
    ibv_dereg_mr: fn(*mut Mr) -> c_int;
    ibv_create_ah: fn(*mut Pd, *mut AhAttr) -> *mut Ah;
    ibv_destroy_ah: fn(*mut Ah) -> c_int;
    ibv_create_comp_channel: fn(*mut Context) -> *mut CompChannel;
    ibv_destroy_comp_channel: fn(*mut CompChannel) -> c_int;
    ibv_get_cq_event: fn(*mut CompChannel, *mut *mut Cq, *mut *mut c_void) -> c_int;
    ibv_ack_cq_events: fn(*mut Cq, c_uint) -> ();
    ibv_create_cq: fn(*mut Context, c_int, *mut c_void, *mut CompChannel, c_int) -> *mut Cq;
    ibv_destroy_cq: fn(*mut Cq) -> c_int;
    ibv_create_srq: fn(*mut Pd, *mut SrqInitAttr) -> *mut Srq;
    ibv_modify_srq: fn(*mut Srq, *mut SrqAttr, c_int) -> c_int;
    ibv_query_srq: fn(*mut Srq, *mut SrqAttr) -> c_int;
    ibv_destroy_srq: fn(*mut Srq) -> c_int;
    ibv_create_qp: fn(*mut Pd, *mut QpInitAttr) -> *mut Qp;
    ibv_modify_qp: fn(*mut Qp, *mut QpAttr, c_int) -> c_int;
    ibv_query_qp: fn(*mut Qp, *mut QpAttr, c_int, *mut QpInitAttr) -> c_int;
    ibv_destroy_qp: fn(*mut Qp) -> c_int;
    ibv_wc_status_str: fn(c_int) -> *const c_char;
}

/// The library.
pub fn verbs() -> &'static Verbs {
    static VERBS: OnceLock<Verbs> = OnceLock::new();
    VERBS.get_or_init(Verbs::load)
}

/// Calls an entry point.
#[macro_export]
macro_rules! call {
    ($name:ident $(, $arg:expr)* $(,)?) => { unsafe { ($crate::rig::verbs().$name)($($arg),*) } };
}

pub fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().expect("an errno")
}

/// Devices by name, in order.
pub fn devices() -> Vec<(String, usize)> {
    let mut count = 0;
    let list = call!(ibv_get_device_list, &mut count);
    assert!(!list.is_null());
    let devices = (0..count as usize)
        .map(|at| {
            let device = unsafe { *list.add(at) };
            let name = call!(ibv_get_device_name, device);
            let name = unsafe { CStr::from_ptr(name) };
            (name.to_str().expect("a name").to_owned(), device.expose_provenance())
        })
        .collect();
    assert!(unsafe { *list.add(count as usize) }.is_null(), "the list ends with null");
    call!(ibv_free_device_list, list);
    devices
}

pub fn open(index: usize) -> *mut Context {
    let device = std::ptr::with_exposed_provenance_mut(devices()[index].1);
    let context = call!(ibv_open_device, device);
    assert!(!context.is_null());
    context
}

pub const MEMORY: usize = 64 << 10;

/// One end: a device with all that a queue pair needs.
pub struct Side {
    pub context: *mut Context,
    pub pd: *mut Pd,
    pub channel: *mut CompChannel,
    pub cq: *mut Cq,
    pub srq: *mut Srq,
    pub qp: *mut Qp,
    pub mr: *mut Mr,
    pub memory: Vec<u64>,
    pub gid: Gid,
}

// The library allows any thread to use any object.
unsafe impl Send for Side {}
unsafe impl Sync for Side {}

/// Differences from what QEMU does.
#[derive(Clone, Copy)]
pub struct Options {
    pub qp_type: u32,
    pub srq: bool,
    pub rnr_retry: u8,
    pub timeout: u8,
    pub max_wr: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { qp_type: QPT_RC, srq: false, rnr_retry: 7, timeout: 14, max_wr: 64 }
    }
}

pub const ALL_ACCESS: c_int = 15;

impl Side {
    pub fn new(device: usize, options: &Options) -> Self {
        let context = open(device);
        let mut gid = Gid::default();
        assert_eq!(call!(ibv_query_gid, context, 1, 1, &mut gid), 0);
        let pd = call!(ibv_alloc_pd, context);
        let channel = call!(ibv_create_comp_channel, context);
        let cq = call!(ibv_create_cq, context, 256, null_mut(), channel, 0);
        assert!(!pd.is_null() && !channel.is_null() && !cq.is_null());
        let mut memory = vec![0u64; MEMORY / 8];
        let mr = call!(ibv_reg_mr, pd, memory.as_mut_ptr().cast(), MEMORY, ALL_ACCESS);
        assert!(!mr.is_null());
        let attr = SrqAttr { max_wr: options.max_wr, max_sge: 4, srq_limit: 0 };
        let srq = match options.srq {
            true => call!(ibv_create_srq, pd, &mut SrqInitAttr { srq_context: null_mut(), attr }),
            false => null_mut(),
        };
        let mut side = Side { context, pd, channel, cq, srq, qp: null_mut(), mr, memory, gid };
        side.qp = side.create_qp(options);
        side
    }

    pub fn create_qp(&self, options: &Options) -> *mut Qp {
        let mut init = QpInitAttr {
            qp_context: null_mut(),
            send_cq: self.cq,
            recv_cq: self.cq,
            srq: self.srq,
            cap: QpCap {
                max_send_wr: options.max_wr,
                max_recv_wr: options.max_wr,
                max_send_sge: 4,
                max_recv_sge: 4,
                max_inline_data: 64,
            },
            qp_type: options.qp_type,
            sq_sig_all: 0,
        };
        let qp = call!(ibv_create_qp, self.pd, &mut init);
        assert!(!qp.is_null(), "errno {}", errno());
        qp
    }

    pub fn number(&self) -> u32 {
        unsafe { (*self.qp).qp_num }
    }

    /// Goes to RTS as QEMU does: towards the peer for connections.
    pub fn connect(&self, qp: *mut Qp, peer: &Gid, peer_qp: u32, options: &Options) {
        for (attr, mask) in way_up(peer, peer_qp, options) {
            let mut attr = attr;
            assert_eq!(call!(ibv_modify_qp, qp, &mut attr, mask), 0, "mask {mask:#x}");
        }
    }

    pub fn at(&self, offset: usize) -> u64 {
        self.memory.as_ptr().expose_provenance() as u64 + offset as u64
    }

    pub fn sge(&self, offset: usize, length: usize) -> Sge {
        let lkey = unsafe { (*self.mr).lkey };
        Sge { addr: self.at(offset), length: length as u32, lkey }
    }

    pub fn fill(&self, offset: usize, bytes: &[u8]) {
        let to = std::ptr::with_exposed_provenance_mut::<u8>(self.at(offset) as usize);
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    }

    pub fn bytes(&self, offset: usize, length: usize) -> Vec<u8> {
        let from = std::ptr::with_exposed_provenance::<u8>(self.at(offset) as usize);
        (0..length).map(|at| unsafe { from.add(at).read_volatile() }).collect()
    }

    /// Posts a send of QEMU's kind, changed by `change`; 0 or an errno.
    pub fn try_send(
        &self,
        wr_id: u64,
        sges: &mut [Sge],
        change: impl FnOnce(&mut SendWr),
    ) -> c_int {
        let mut wr = SendWr {
            wr_id,
            next: null_mut(),
            sg_list: sges.as_mut_ptr(),
            num_sge: sges.len() as c_int,
            opcode: wr::SEND,
            send_flags: SEND_SIGNALED,
            imm_data: 0,
            wr: [0; 4],
            xrc: 0,
            bind_mw: [0; 6],
        };
        change(&mut wr);
        let mut bad = null_mut();
        unsafe {
            let post = (*(*self.qp).context).ops.post_send.expect("an operation");
            post(self.qp, &mut wr, &mut bad)
        }
    }

    pub fn send(&self, wr_id: u64, sges: &mut [Sge], change: impl FnOnce(&mut SendWr)) {
        assert_eq!(self.try_send(wr_id, sges, change), 0);
    }

    pub fn try_recv(&self, wr_id: u64, sges: &mut [Sge]) -> c_int {
        let mut wr = RecvWr {
            wr_id,
            next: null_mut(),
            sg_list: sges.as_mut_ptr(),
            num_sge: sges.len() as c_int,
        };
        let mut bad = null_mut();
        unsafe {
            let ops = &(*self.context).ops;
            match self.srq.is_null() {
                true => ops.post_recv.expect("one")(self.qp, &mut wr, &mut bad),
                false => ops.post_srq_recv.expect("one")(self.srq, &mut wr, &mut bad),
            }
        }
    }

    pub fn recv(&self, wr_id: u64, sges: &mut [Sge]) {
        assert_eq!(self.try_recv(wr_id, sges), 0);
    }

    /// Completions that are there now, `most` at most.
    pub fn poll(&self, most: usize) -> Vec<Wc> {
        let mut wcs = vec![Wc::default(); most];
        let got = unsafe {
            let poll = (*self.context).ops.poll_cq.expect("an operation");
            poll(self.cq, most as c_int, wcs.as_mut_ptr())
        };
        assert!(got >= 0, "poll_cq: {got}");
        wcs.truncate(got as usize);
        wcs
    }

    /// The next completion.
    pub fn next(&self) -> Wc {
        let start = Instant::now();
        loop {
            if let Some(wc) = self.poll(1).first() {
                return *wc;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "no completion");
            std::thread::yield_now();
        }
    }

    pub fn arm(&self, solicited_only: bool) {
        let arm = unsafe { (*self.context).ops.req_notify_cq.expect("an operation") };
        assert_eq!(unsafe { arm(self.cq, solicited_only.into()) }, 0);
    }

    /// Whether the channel's descriptor polls readable within `ms`.
    pub fn readable(&self, ms: c_int) -> bool {
        let fd = unsafe { (*self.channel).fd };
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        unsafe { libc::poll(&mut poll, 1, ms) == 1 }
    }

    pub fn event(&self) -> Result<*mut Cq, i32> {
        let (mut cq, mut value) = (null_mut(), null_mut());
        match call!(ibv_get_cq_event, self.channel, &mut cq, &mut value) {
            0 => Ok(cq),
            _ => Err(errno()),
        }
    }

    pub fn nonblocking(&self) {
        unsafe { libc::fcntl((*self.channel).fd, libc::F_SETFL, libc::O_NONBLOCK) };
    }
}

impl Drop for Side {
    /// Everything goes with the context.
    fn drop(&mut self) {
        assert_eq!(call!(ibv_close_device, self.context), 0);
    }
}

pub const QKEY: u32 = 0x1111_1111;

/// QEMU's three modifications, with its constants.
pub fn way_up(peer: &Gid, peer_qp: u32, options: &Options) -> [(QpAttr, c_int); 3] {
    let rc = options.qp_type == QPT_RC;
    let grh = GlobalRoute { dgid: *peer, sgid_index: 1, hop_limit: 1, ..Default::default() };
    let ah_attr = AhAttr { grh, is_global: 1, port_num: 1, ..Default::default() };
    let base = QpAttr {
        port_num: 1,
        qp_access_flags: 14,
        qkey: QKEY,
        path_mtu: 3,
        dest_qp_num: peer_qp,
        max_dest_rd_atomic: 1,
        max_rd_atomic: 1,
        min_rnr_timer: 12,
        ah_attr,
        timeout: options.timeout,
        retry_cnt: 7,
        rnr_retry: options.rnr_retry,
        ..QpAttr::default()
    };
    let state = |state| QpAttr { qp_state: state, ..base };
    // STATE 1, ACCESS 8, PKEY 10, PORT 20, QKEY 40, AV 80, MTU 100, TIMEOUT 200, RETRY 400,
    // RNR 800, RQ_PSN 1000, MAX_RD 2000, MIN_RNR 8000, SQ_PSN 10000, DEST_RD 20000, DEST 100000.
    match rc {
        true => [(state(1), 0x39), (state(2), 0x12_9181), (state(3), 0x1_2e01)],
        false => [(state(1), 0x71), (state(2), 0x41), (state(3), 0x1_0041)],
    }
}

/// Two connected ends on the first two devices.
pub fn pair(options: Options) -> (Side, Side) {
    let (a, b) = (Side::new(0, &options), Side::new(1, &options));
    a.connect(a.qp, &b.gid, b.number(), &options);
    b.connect(b.qp, &a.gid, a.number(), &options);
    (a, b)
}

/// An address handle to a side.
pub fn handle_to(from: &Side, to: &Side) -> *mut Ah {
    let mut attr = way_up(&to.gid, 0, &Options::default())[1].0.ah_attr;
    let ah = call!(ibv_create_ah, from.pd, &mut attr);
    assert!(!ah.is_null());
    ah
}

/// Makes a send a datagram.
pub fn datagram(wr: &mut SendWr, ah: *mut Ah, to: u32) {
    wr.wr[0] = ah.expose_provenance() as u64;
    wr.wr[1] = u64::from(QKEY) << 32 | u64::from(to);
}
