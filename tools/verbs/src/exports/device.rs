//! Devices and contexts.

use std::ffi::{c_char, c_int};

use super::{minus_one, object, status, write};
use crate::abi::{Context, Device, DeviceAttr, Gid, PortAttr};
use crate::error::Error;
use crate::process::with;

/// All devices, as a list that ends with null; the caller frees it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_get_device_list(num_devices: *mut c_int) -> *mut *mut Device {
    object("ibv_get_device_list", || {
        let devices: Vec<_> = with(|state| Ok(state.devices().collect()))?;
        let entries = devices.len() + 1;
        // SAFETY: calloc of a small array; freed by `ibv_free_device_list`.
        let list = unsafe { libc::calloc(entries, size_of::<*mut Device>()) }.cast::<*mut Device>();
        if list.is_null() {
            return Err(Error::os("memory for the list", nix::errno::Errno::ENOMEM));
        }
        // SAFETY: the array has room for all and a null besides; `num_devices` is the caller's.
        unsafe {
            list.copy_from_nonoverlapping(devices.as_ptr(), devices.len());
            write(num_devices, devices.len() as c_int);
        }
        Ok(list)
    })
}

/// Frees a list; its devices stay.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_free_device_list(list: *mut *mut Device) {
    // SAFETY: null, or what `ibv_get_device_list` gave.
    unsafe { libc::free(list.cast()) }
}

/// A device's name; it lives as long as the process.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_get_device_name(device: *mut Device) -> *const c_char {
    object("ibv_get_device_name", || {
        let known = with(|state| Ok(state.devices().any(|known| known == device)))?;
        if !known {
            return Err(Error::NoSuch { what: "device", address: device.addr() });
        }
        // SAFETY: a device of ours, which is never freed.
        Ok(unsafe { (&raw mut (*device).name).cast::<c_char>() })
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_open_device(device: *mut Device) -> *mut Context {
    object("ibv_open_device", || with(|state| state.open(device.addr())))
}

/// Closes a context and destroys what is left of it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_close_device(context: *mut Context) -> c_int {
    status("ibv_close_device", || with(|state| state.close(context.addr())))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_query_device(context: *mut Context, attr: *mut DeviceAttr) -> c_int {
    status("ibv_query_device", || {
        let found = with(|state| state.query_device(context.addr()))?;
        // SAFETY: the caller's.
        unsafe { write(attr, found) };
        Ok(())
    })
}

/// Fills in the first 48 bytes of the caller's structure, as libibverbs's own does.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_query_port(
    context: *mut Context,
    port: u8,
    attr: *mut PortAttr,
) -> c_int {
    status("ibv_query_port", || {
        let found = with(|state| state.query_port(context.addr(), port))?;
        // SAFETY: the caller's.
        unsafe { write(attr, found) };
        Ok(())
    })
}

/// -1 past the end of the table.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_query_gid(
    context: *mut Context,
    port: u8,
    index: c_int,
    gid: *mut Gid,
) -> c_int {
    minus_one("ibv_query_gid", || {
        let found = with(|state| state.query_gid(context.addr(), port, index))?;
        // SAFETY: the caller's.
        unsafe { write(gid, found) };
        Ok(())
    })
}
