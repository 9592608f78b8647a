//! The C entry points, and the structures through which C finds some of them.
//!
//! Each one turns pointers into addresses, calls the state, and turns its answer into what verbs
//! return: 0 or an errno, a pointer or null with errno set. Memory of the caller is read and
//! written here and nowhere else. A panic ends here as EIO.
#![allow(unsafe_code)]
// Every entry point has the one contract of verbs: pointers are null or what verbs.h says.
#![allow(clippy::missing_safety_doc)]

mod device;
mod objects;
mod work;

use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::abi;
use crate::error::Error;
use crate::face::Face;
use crate::process;

/// Runs an entry point. Refusals are told to the log, but for those that belong to the ordinary
/// course of things.
fn run<R>(name: &str, call: impl FnOnce() -> Result<R, Error>) -> Result<R, Error> {
    // What a panic leaves half done stays half done: the engine's tables are changed in single
    // steps, and the next call finds them in order.
    let result = catch_unwind(AssertUnwindSafe(call)).unwrap_or(Err(Error::Panic));
    if let Err(error) = &result
        && *error != Error::Again
        && process::logs()
    {
        eprintln!("holdfast-verbs: {name}: {error}");
    }
    result
}

/// For entry points that return 0 or an errno.
fn status(name: &str, call: impl FnOnce() -> Result<(), Error>) -> c_int {
    match run(name, call) {
        Ok(()) => 0,
        Err(error) => {
            error.errno().set();
            error.errno() as c_int
        }
    }
}

/// For entry points that return 0, or -1 and set errno.
fn minus_one(name: &str, call: impl FnOnce() -> Result<(), Error>) -> c_int {
    if status(name, call) == 0 { 0 } else { -1 }
}

/// For entry points that return a pointer, or null and set errno.
fn object<T>(name: &str, call: impl FnOnce() -> Result<*mut T, Error>) -> *mut T {
    match run(name, call) {
        Ok(made) => made,
        Err(error) => {
            error.errno().set();
            std::ptr::null_mut()
        }
    }
}

/// Copies a structure in.
///
/// # Safety
/// `from` is null or good to read.
unsafe fn read<T: Copy>(what: &'static str, from: *const T) -> Result<T, Error> {
    if from.is_null() {
        return Err(Error::Invalid { what, value: 0 });
    }
    // SAFETY: by the contract; a caller's alignment is not relied upon.
    Ok(unsafe { from.read_unaligned() })
}

/// Copies a structure out; null asks for nothing.
///
/// # Safety
/// `to` is null or good to write.
unsafe fn write<T>(to: *mut T, value: T) {
    if !to.is_null() {
        // SAFETY: by the contract.
        unsafe { to.write_unaligned(value) }
    }
}

/// The structure of a new device.
pub(crate) fn device_face(name: &str) -> Face<abi::Device> {
    let mut chars = [0; 64];
    // Names are shorter than that, so that a zero is left.
    for (to, from) in chars.iter_mut().zip(name.bytes()) {
        *to = from as _;
    }
    Face::new(abi::Device {
        ops: [0; 2],
        node_type: abi::NODE_CA,
        transport_type: abi::TRANSPORT_IB,
        name: chars,
        dev_name: chars,
        dev_path: [0; 256],
        ibdev_path: [0; 256],
    })
}

/// The structure of an open device, with the functions that verbs.h calls through it.
pub(crate) fn context_face(device: *mut abi::Device) -> Face<abi::Context> {
    let ops = abi::ContextOps {
        compat: [None; 7],
        alloc_mw: Some(alloc_mw),
        bind_mw: Some(bind_mw),
        dealloc_mw: Some(dealloc_mw),
        compat_create_cq: None,
        poll_cq: Some(work::poll_cq),
        req_notify_cq: Some(work::req_notify_cq),
        compat_cq: [None; 7],
        post_srq_recv: Some(work::post_srq_recv),
        compat_qp: [None; 4],
        post_send: Some(work::post_send),
        post_recv: Some(work::post_recv),
        compat_ah: [None; 5],
    };
    Face::new(abi::Context {
        device,
        ops,
        cmd_fd: -1,
        async_fd: -1,
        num_comp_vectors: 1,
        mutex: [0; 5],
        abi_compat: 0,
    })
}

const NO_WINDOWS: Error = Error::Unsupported { what: "a memory window" };

unsafe extern "C" fn alloc_mw(_pd: *mut abi::Pd, _kind: u32) -> *mut c_void {
    object("alloc_mw", || Err(NO_WINDOWS))
}

unsafe extern "C" fn bind_mw(_: *mut abi::Qp, _: *mut c_void, _: *mut c_void) -> c_int {
    status("bind_mw", || Err(NO_WINDOWS))
}

unsafe extern "C" fn dealloc_mw(_window: *mut c_void) -> c_int {
    status("dealloc_mw", || Err(NO_WINDOWS))
}

/// What a status means, in words that live for ever.
#[unsafe(no_mangle)]
pub extern "C" fn ibv_wc_status_str(status: c_int) -> *const std::ffi::c_char {
    let words = match u32::try_from(status) {
        Ok(0) => c"success",
        Ok(1) => c"local length error",
        Ok(2) => c"local QP operation error",
        Ok(3) => c"local EE context operation error",
        Ok(4) => c"local protection error",
        Ok(5) => c"Work Request Flushed Error",
        Ok(6) => c"memory management operation error",
        Ok(7) => c"bad response error",
        Ok(8) => c"local access error",
        Ok(9) => c"remote invalid request error",
        Ok(10) => c"remote access error",
        Ok(11) => c"remote operation error",
        Ok(12) => c"transport retry counter exceeded",
        Ok(13) => c"RNR retry counter exceeded",
        Ok(14) => c"local RDD violation error",
        Ok(15) => c"remote invalid RD request",
        Ok(16) => c"aborted error",
        Ok(17) => c"invalid EE context number",
        Ok(18) => c"invalid EE context state",
        Ok(19) => c"fatal error",
        Ok(20) => c"response timeout error",
        Ok(21) => c"general error",
        _ => c"unknown",
    };
    words.as_ptr()
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    #[test]
    fn a_panic_ends_at_the_entry_point() {
        let refused = status("test", || panic!("on purpose"));
        assert_eq!(refused, Errno::EIO as c_int);
        let made: *mut u8 = object("test", || panic!("on purpose"));
        assert!(made.is_null());
        assert_eq!(Errno::last(), Errno::EIO);
    }
}
