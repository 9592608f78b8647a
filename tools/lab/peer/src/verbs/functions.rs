//! The functions of libibverbs that are called by name. Posting and polling are inline functions in
//! its header, which jump through the table in the device's context.

use std::ffi::{c_char, c_int, c_void};

use holdfast_verbs_abi::{CompChannel, Context, Cq, Device, Mr, Pd, Qp, QpAttr, QpInitAttr};

pub type GetDeviceList = unsafe extern "C" fn(*mut c_int) -> *mut *mut Device;
pub type FreeDeviceList = unsafe extern "C" fn(*mut *mut Device);
pub type GetDeviceName = unsafe extern "C" fn(*mut Device) -> *const c_char;
pub type OpenDevice = unsafe extern "C" fn(*mut Device) -> *mut Context;
pub type QueryGid = unsafe extern "C" fn(*mut Context, u8, c_int, *mut [u64; 2]) -> c_int;
pub type AllocPd = unsafe extern "C" fn(*mut Context) -> *mut Pd;
pub type RegMr = unsafe extern "C" fn(*mut Pd, *mut c_void, usize, c_int) -> *mut Mr;
pub type CreateCq =
    unsafe extern "C" fn(*mut Context, c_int, *mut c_void, *mut CompChannel, c_int) -> *mut Cq;
pub type CreateQp = unsafe extern "C" fn(*mut Pd, *mut QpInitAttr) -> *mut Qp;
pub type ModifyQp = unsafe extern "C" fn(*mut Qp, *mut QpAttr, c_int) -> c_int;
/// `ibv_close_device`, `ibv_dealloc_pd`, `ibv_dereg_mr`, `ibv_destroy_cq`, `ibv_destroy_qp`.
pub type Destroy = unsafe extern "C" fn(*mut c_void) -> c_int;
