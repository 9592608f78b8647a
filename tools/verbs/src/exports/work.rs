//! What verbs.h calls through a context: posting, polling, asking for events.

use std::ffi::c_int;

use holdfast_wire::wqe;

use super::{run, status, write};
use crate::abi::{Cq, Qp, RecvWr, SEND_INLINE, SendWr, Sge, Srq, Wc};
use crate::error::Error;
use crate::process::with;
use crate::state::{PostedRecv, PostedSend, State, Target};

/// Copies a request's list of entries in.
///
/// # Safety
/// `list` is good to read for `count` entries.
unsafe fn entries(list: *const Sge, count: c_int, most: u32) -> Result<Vec<wqe::Sge>, Error> {
    let invalid = Error::Invalid { what: "number of entries", value: count as u64 };
    let count = match u32::try_from(count) {
        Ok(count) if count <= most && (count == 0 || !list.is_null()) => count as usize,
        _ => return Err(invalid),
    };
    let entry = |at| {
        // SAFETY: within the list, by the contract.
        let Sge { addr, length, lkey } = unsafe { list.add(at).read_unaligned() };
        wqe::Sge { addr, length, lkey }
    };
    Ok((0..count).map(entry).collect())
}

/// Copies a send in, with its payload when that is inline.
///
/// # Safety
/// `wr` is a request as verbs.h says.
unsafe fn read_send(wr: *const SendWr, to: Target) -> Result<PostedSend, Error> {
    // SAFETY: by the contract.
    let wr = unsafe { wr.read_unaligned() };
    // SAFETY: by the contract.
    let sges = unsafe { entries(wr.sg_list, wr.num_sge, to.max_sge) }?;
    if wr.send_flags & SEND_INLINE == 0 {
        return Ok(PostedSend { wr, sges, inline: Vec::new() });
    }
    let total: u64 = sges.iter().map(|sge| u64::from(sge.length)).sum();
    if total > u64::from(to.max_inline) {
        return Err(Error::Invalid { what: "length of an inline payload", value: total });
    }
    let mut inline = Vec::with_capacity(total as usize);
    for sge in &sges {
        let from = std::ptr::with_exposed_provenance::<u8>(sge.addr as usize);
        let (at, len) = (inline.len(), sge.length as usize);
        inline.resize(at + len, 0);
        // SAFETY: inline payload is the caller's memory, good to read during the call; `inline`
        // was made long enough.
        unsafe { std::ptr::copy(from, inline[at..].as_mut_ptr(), len) };
    }
    Ok(PostedSend { wr, sges: Vec::new(), inline })
}

/// Walks a list of requests until one is refused, which is told to the caller.
///
/// # Safety
/// `first` is null or a list as verbs.h says, of which `read` reads one request and gives the next;
/// `bad` is null or good to write.
unsafe fn post_all<W>(
    first: *mut W,
    bad: *mut *mut W,
    mut post: impl FnMut(*mut W) -> Result<*mut W, Error>,
) -> Result<(), Error> {
    let mut wr = first;
    while !wr.is_null() {
        match post(wr) {
            Ok(next) => wr = next,
            Err(error) => {
                // SAFETY: by the contract.
                unsafe { write(bad, wr) };
                return Err(error);
            }
        }
    }
    Ok(())
}

pub(super) unsafe extern "C" fn post_send(
    qp: *mut Qp,
    first: *mut SendWr,
    bad: *mut *mut SendWr,
) -> c_int {
    let call = |state: &mut State| {
        let target = state.send_target(qp.addr()).inspect_err(|_| {
            // SAFETY: the caller's.
            unsafe { write(bad, first) }
        })?;
        let post = |wr: *mut SendWr| {
            // SAFETY: a request of the caller's list.
            let posted = unsafe { read_send(wr, target) }?;
            let next = posted.wr.next;
            state.post_send(target, posted)?;
            Ok(next)
        };
        // SAFETY: the caller's list.
        let result = unsafe { post_all(first, bad, post) };
        // What was posted before one was refused is carried out.
        state.ring_send(target);
        result
    };
    status("ibv_post_send", || with(call))
}

/// Posts receives to what `target` finds.
///
/// # Safety
/// As for [`post_all`].
unsafe fn post_receives(
    state: &mut State,
    target: Result<Target, Error>,
    first: *mut RecvWr,
    bad: *mut *mut RecvWr,
) -> Result<(), Error> {
    let target = target.inspect_err(|_| {
        // SAFETY: by the contract.
        unsafe { write(bad, first) }
    })?;
    let post = |wr: *mut RecvWr| {
        // SAFETY: a request of the caller's list.
        let wr = unsafe { wr.read_unaligned() };
        // SAFETY: its entries.
        let sges = unsafe { entries(wr.sg_list, wr.num_sge, target.max_sge) }?;
        state.post_recv(target, PostedRecv { wr_id: wr.wr_id, sges })?;
        Ok(wr.next)
    };
    // SAFETY: by the contract.
    let result = unsafe { post_all(first, bad, post) };
    state.ring_recv(target);
    result
}

pub(super) unsafe extern "C" fn post_recv(
    qp: *mut Qp,
    first: *mut RecvWr,
    bad: *mut *mut RecvWr,
) -> c_int {
    let call = |state: &mut State| {
        let target = state.recv_target(qp.addr());
        // SAFETY: the caller's list.
        unsafe { post_receives(state, target, first, bad) }
    };
    status("ibv_post_recv", || with(call))
}

pub(super) unsafe extern "C" fn post_srq_recv(
    srq: *mut Srq,
    first: *mut RecvWr,
    bad: *mut *mut RecvWr,
) -> c_int {
    let call = |state: &mut State| {
        let target = state.srq_target(srq.addr());
        // SAFETY: the caller's list.
        unsafe { post_receives(state, target, first, bad) }
    };
    status("ibv_post_srq_recv", || with(call))
}

/// Gives up to `count` completions; their number, or a negative errno.
pub(super) unsafe extern "C" fn poll_cq(cq: *mut Cq, count: c_int, wcs: *mut Wc) -> c_int {
    let call = |state: &mut State| {
        let mut done = 0;
        while done < count {
            let Some(wc) = state.poll_cq(cq.addr())? else { break };
            // SAFETY: the caller's array has `count` places, and `done` is below that.
            unsafe { wcs.add(done as usize).write_unaligned(wc) };
            done += 1;
        }
        Ok(done)
    };
    match run("ibv_poll_cq", || with(call)) {
        Ok(done) => done,
        Err(error) => -(error.errno() as c_int),
    }
}

pub(super) unsafe extern "C" fn req_notify_cq(cq: *mut Cq, solicited_only: c_int) -> c_int {
    status("ibv_req_notify_cq", || with(|state| state.arm(cq.addr(), solicited_only != 0)))
}
