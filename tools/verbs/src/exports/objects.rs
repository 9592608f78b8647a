//! Protection domains, memory regions, address handles, completion channels and queues, shared
//! receive queues and queue pairs: made, changed, queried, destroyed.

use std::ffi::{c_int, c_uint, c_void};

use super::{minus_one, object, read, run, status, write};
use crate::abi::{
    Ah, AhAttr, CompChannel, Context, Cq, Mr, Pd, Qp, QpAttr, QpInitAttr, Srq, SrqAttr, SrqInitAttr,
};
use crate::error::Error;
use crate::process::with;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_alloc_pd(context: *mut Context) -> *mut Pd {
    object("ibv_alloc_pd", || with(|state| state.alloc_pd(context.addr())))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_dealloc_pd(pd: *mut Pd) -> c_int {
    status("ibv_dealloc_pd", || with(|state| state.dealloc_pd(pd.addr())))
}

/// Registers `length` bytes at `addr`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_reg_mr(
    pd: *mut Pd,
    addr: *mut c_void,
    length: usize,
    access: c_int,
) -> *mut Mr {
    let address = addr.expose_provenance();
    object("ibv_reg_mr", || {
        with(|state| state.register(pd.addr(), address, length, address as u64, access as u32))
    })
}

/// As `ibv_reg_mr`; entries and peers count the region's addresses from `iova`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_reg_mr_iova2(
    pd: *mut Pd,
    addr: *mut c_void,
    length: usize,
    iova: u64,
    access: c_uint,
) -> *mut Mr {
    let address = addr.expose_provenance();
    object("ibv_reg_mr_iova2", || {
        with(|state| state.register(pd.addr(), address, length, iova, access))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_dereg_mr(mr: *mut Mr) -> c_int {
    status("ibv_dereg_mr", || with(|state| state.deregister(mr.addr())))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_create_ah(pd: *mut Pd, attr: *mut AhAttr) -> *mut Ah {
    object("ibv_create_ah", || {
        // SAFETY: the caller's.
        let attr = unsafe { read("address attributes", attr) }?;
        with(|state| state.create_ah(pd.addr(), attr))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_destroy_ah(ah: *mut Ah) -> c_int {
    status("ibv_destroy_ah", || with(|state| state.destroy_ah(ah.addr())))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_create_comp_channel(context: *mut Context) -> *mut CompChannel {
    object("ibv_create_comp_channel", || with(|state| state.create_channel(context.addr())))
}

/// EBUSY while completion queues are on it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_destroy_comp_channel(channel: *mut CompChannel) -> c_int {
    status("ibv_destroy_comp_channel", || with(|state| state.destroy_channel(channel.addr())))
}

/// Takes an event, and waits for one unless the channel's descriptor is non-blocking. -1 with
/// errno otherwise.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_get_cq_event(
    channel: *mut CompChannel,
    cq: *mut *mut Cq,
    cq_context: *mut *mut c_void,
) -> c_int {
    minus_one("ibv_get_cq_event", || {
        let waits = with(|state| state.channel(channel.addr()))?;
        let (fired, value) = loop {
            if let Some(event) = with(|state| state.take_event(channel.addr()))? {
                break event;
            }
            waits.wait()?;
        };
        // SAFETY: the caller's.
        unsafe {
            write(cq, fired);
            write(cq_context, std::ptr::with_exposed_provenance_mut(value));
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_ack_cq_events(cq: *mut Cq, nevents: c_uint) {
    let _ = run("ibv_ack_cq_events", || with(|state| state.acknowledge(cq.addr(), nevents)));
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_create_cq(
    context: *mut Context,
    cqe: c_int,
    cq_context: *mut c_void,
    channel: *mut CompChannel,
    comp_vector: c_int,
) -> *mut Cq {
    let value = cq_context.expose_provenance();
    object("ibv_create_cq", || {
        if comp_vector != 0 {
            return Err(Error::Invalid { what: "completion vector", value: comp_vector as u64 });
        }
        let channel = (!channel.is_null()).then(|| channel.addr());
        with(|state| state.create_cq(context.addr(), cqe, value, channel))
    })
}

/// EBUSY while queue pairs use it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_destroy_cq(cq: *mut Cq) -> c_int {
    status("ibv_destroy_cq", || with(|state| state.destroy_cq(cq.addr())))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_create_srq(pd: *mut Pd, init: *mut SrqInitAttr) -> *mut Srq {
    object("ibv_create_srq", || {
        // SAFETY: the caller's.
        let attr = unsafe { read("attributes of a shared receive queue", init) }?;
        let value = attr.srq_context.expose_provenance();
        with(|state| state.create_srq(pd.addr(), value, attr.attr))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_modify_srq(srq: *mut Srq, attr: *mut SrqAttr, mask: c_int) -> c_int {
    status("ibv_modify_srq", || {
        // SAFETY: the caller's.
        let attr = unsafe { read("attributes of a shared receive queue", attr) }?;
        with(|state| state.modify_srq(srq.addr(), attr, mask as u32))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_query_srq(srq: *mut Srq, attr: *mut SrqAttr) -> c_int {
    status("ibv_query_srq", || {
        let found = with(|state| state.query_srq(srq.addr()))?;
        // SAFETY: the caller's.
        unsafe { write(attr, found) };
        Ok(())
    })
}

/// EBUSY while queue pairs use it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_destroy_srq(srq: *mut Srq) -> c_int {
    status("ibv_destroy_srq", || with(|state| state.destroy_srq(srq.addr())))
}

/// Writes what was granted back to `init`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_create_qp(pd: *mut Pd, init: *mut QpInitAttr) -> *mut Qp {
    object("ibv_create_qp", || {
        // SAFETY: the caller's.
        let wanted = unsafe { read("attributes of a queue pair", init) }?;
        let (qp, cap) = with(|state| state.create_qp(pd.addr(), &wanted))?;
        // SAFETY: not null, as it was read.
        unsafe { write(init, QpInitAttr { cap, ..wanted }) };
        Ok(qp)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_modify_qp(qp: *mut Qp, attr: *mut QpAttr, mask: c_int) -> c_int {
    status("ibv_modify_qp", || {
        // SAFETY: the caller's.
        let attr = unsafe { read("attributes of a queue pair", attr) }?;
        with(|state| state.modify_qp(qp.addr(), &attr, mask as u32))
    })
}

/// Gives all attributes, whatever the mask asks for.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_query_qp(
    qp: *mut Qp,
    attr: *mut QpAttr,
    _mask: c_int,
    init: *mut QpInitAttr,
) -> c_int {
    status("ibv_query_qp", || {
        let found = with(|state| state.query_qp(qp.addr()))?;
        // SAFETY: the caller's.
        unsafe {
            write(attr, found.0);
            write(init, found.1);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_destroy_qp(qp: *mut Qp) -> c_int {
    status("ibv_destroy_qp", || with(|state| state.destroy_qp(qp.addr())))
}
