//! Work requests that never leave the NIC: LOCAL_INV and FAST_REG.
//!
//! They are carried out in their turn and take no packet numbers. Failures complete with
//! MemoryWindowBind, which is also the specification's memory management operation error.

use holdfast_wire::PAGE_SIZE;
use holdfast_wire::completion::Status;
use holdfast_wire::pdir;
use holdfast_wire::wqe::{FastReg, Opcode};
use zerocopy::FromBytes;

use super::Engine;
use super::error::Error;
use super::host::{Host, Miss};
use super::mr::{self, Mr};
use super::requester::Step;
use super::sched::QpRef;
use super::table::Table;
use super::vendor;

/// Why a fast registration was not made.
enum Failure {
    Refused(u32),
    Miss,
}

impl From<Miss> for Failure {
    fn from(_: Miss) -> Self {
        Failure::Miss
    }
}

impl From<Error> for Failure {
    fn from(_: Error) -> Self {
        Failure::Refused(vendor::PAGE_LIST)
    }
}

impl<H: Host> Engine<H> {
    /// Carries out the local operation at the window's cursor.
    #[cold]
    pub(super) fn local_operation(&mut self, at: QpRef, now: u64) -> Step {
        let nic = &mut self.nics[at.nic];
        let Some(qp) = nic.qps.get_mut(at.handle) else { return Step::Stop };
        let (pd, cursor) = (qp.init.pd, qp.sender.window.cursor);
        let Some(wqe) = qp.sender.window.get_mut(cursor) else { return Step::Stop };
        let done = match wqe.request.opcode {
            Opcode::LocalInv => mr::invalidate(&mut nic.mrs, wqe.request.ex, pd)
                .map_err(|_| Failure::Refused(vendor::KEY)),
            _ => match FastReg::read_from_prefix(&wqe.request.body) {
                Ok((reg, _)) => fast_register(&mut nic.host, &mut nic.mrs, pd, &reg),
                Err(_) => Err(Failure::Refused(vendor::PAGE_LIST)),
            },
        };
        match done {
            Ok(()) => {
                wqe.done = true;
                qp.sender.window.cursor += 1;
                self.settle(at, now)
            }
            Err(Failure::Refused(why)) => self.fail_at(at, cursor, Status::MemoryWindowBind, why),
            Err(Failure::Miss) => self.missed(at, cursor, now),
        }
    }
}

/// Reads the page list out of its directory and gives it to the region of the key.
fn fast_register<H: Host>(
    host: &mut H,
    mrs: &mut Table<Mr>,
    pd: u32,
    reg: &FastReg,
) -> Result<(), Failure> {
    let mr = mrs.get_mut(reg.rkey >> 8).ok_or(Failure::Refused(vendor::KEY))?;
    let room = mr.fast_reg_room(pd, reg.rkey).ok_or(Failure::Refused(vendor::KEY))?;
    if reg.page_shift != PAGE_SIZE.trailing_zeros() || reg.page_list_len > room {
        return Err(Failure::Refused(vendor::PAGE_LIST));
    }
    let mut pages = Vec::with_capacity(reg.page_list_len as usize);
    let mut buf = [0; PAGE_SIZE];
    for table in 0..pdir::tables(reg.page_list_len as usize) {
        let mut entry = [0; 8];
        let at = reg.pl_pdir_dma.checked_add(table as u64 * 8);
        read_bus(host, at.ok_or(Failure::Refused(vendor::PAGE_LIST))?, &mut entry)?;
        let table_at = u64::from_le_bytes(entry);
        let entries = (reg.page_list_len as usize - pages.len()).min(pdir::ENTRIES);
        let bytes = &mut buf[..entries * 8];
        read_bus(host, table_at, bytes)?;
        pages.extend(bytes.as_chunks().0.iter().map(|page| u64::from_le_bytes(*page)));
    }
    let length = u64::from(reg.length);
    mr.fast_register(reg.rkey, reg.iova_start, length, reg.access_flags, pages.into_iter())?;
    Ok(())
}

/// Copies bus memory out. Memory that vanishes counts as a miss.
fn read_bus<H: Host>(host: &mut H, iova: u64, mut buf: &mut [u8]) -> Result<(), Miss> {
    let mut at = iova;
    while !buf.is_empty() {
        let span = host.translate(at, buf.len(), false)?;
        let span = span.slice(0, buf.len());
        if span.is_empty() || span.read(&mut buf[..span.len()]).is_err() {
            return Err(Miss { iova: at });
        }
        let read = span.len();
        buf = &mut buf[read..];
        at = at.checked_add(read as u64).ok_or(Miss { iova: at })?;
    }
    Ok(())
}
