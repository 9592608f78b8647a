//! One completion by itself: every value is checked before it means anything. A completion that
//! names no work queue of this completion queue, or a request that is not outstanding, or an
//! unknown status or opcode, is an error of the device's. One of a work queue that has been
//! destroyed is left over, and dropped.

use holdfast_wire::completion::{CqeOpcode, Status};
use holdfast_wire::uar;

use crate::account::{Account, Posted, Tag};
use crate::completion::Completion;
use crate::completion_ring::{CqeWords, received};
use crate::cq_shared::Ledger;
use crate::cq_table::Table;
use crate::device::Device;
use crate::tickets::Tickets;

/// What a completion turned out to be.
pub(crate) enum Decoded {
    Report(Completion),
    /// Nothing for the caller: an unsignalled send, or a drain marker.
    Silent,
    /// Of a work queue that is gone.
    Leftover,
    Nonsense(&'static str, u64),
}

use Decoded::{Leftover, Nonsense, Report, Silent};

const NOT_OUTSTANDING: &str = "completion of a request that is not outstanding";
const WRONG_PAIR: &str = "queue pair in a completion";

/// Says what a completion is, and retires what it completes.
pub(crate) fn decode(words: &CqeWords, table: &Table, device: &Device) -> Decoded {
    let tag = Tag(words[0]);
    let Some(row) = table.find(tag) else {
        return match device.was_issued(tag.key()) {
            true => Leftover,
            false => Nonsense("work request id in a completion", tag.0),
        };
    };
    match &row.ledger {
        Ledger::Shared(tickets) => any_order(words, tickets, table, device),
        _ if u64::from(row.qp) != words[1] => Nonsense(WRONG_PAIR, words[1]),
        Ledger::Send(account) => in_order(words, account, false),
        Ledger::Recv(account) => in_order(words, account, true),
        Ledger::Nobody => Nonsense("work request id in a completion", tag.0),
    }
}

/// Of a queue that completes in order.
fn in_order(words: &CqeWords, account: &Account, receive: bool) -> Decoded {
    if let Err(nonsense) = check(words, receive) {
        return nonsense;
    }
    match account.retire(Tag(words[0]).slot()) {
        Some(posted) => report(words, posted, receive),
        None => Nonsense(NOT_OUTSTANDING, words[0]),
    }
}

/// Of a shared receive queue.
fn any_order(words: &CqeWords, tickets: &Tickets, table: &Table, device: &Device) -> Decoded {
    let ticket = Tag(words[0]).slot();
    let failed = words[2] >> 32 != 0;
    let nobody = failed && words[1] == 0 && device.quirks().srq_errors_name_qp_zero;
    if !table.shares(words[1]) && !nobody {
        // A queue pair that left its shared receive queue behind: the receive is used up.
        if words[1] <= u64::from(uar::HANDLE_MASK) && tickets.retire(ticket).is_some() {
            return Leftover;
        }
        return Nonsense(WRONG_PAIR, words[1]);
    }
    if let Err(nonsense) = check(words, true) {
        return nonsense;
    }
    match tickets.retire(ticket) {
        Some(wr_id) => {
            let posted = Posted { wr_id, opcode: CqeOpcode::Recv, status: Status::Success };
            report(words, posted, true)
        }
        None => Nonsense(NOT_OUTSTANDING, words[0]),
    }
}

/// Whether status and opcode are any at all.
fn check(words: &CqeWords, receive: bool) -> Result<(), Decoded> {
    let (opcode, status) = (words[2] as u32, (words[2] >> 32) as u32);
    if status > Status::General.wire() {
        return Err(Nonsense("completion status", u64::from(status)));
    }
    let known = if receive {
        opcode.wrapping_sub(CqeOpcode::Recv.wire()) < 2
    } else {
        opcode <= CqeOpcode::MaskedFetchAdd.wire()
    };
    if known || status != 0 {
        return Ok(());
    }
    Err(Nonsense("completion opcode", u64::from(opcode)))
}

/// What the caller is told. For a send, what was posted is reported, whatever the device calls it:
/// some devices call everything a SEND.
fn report(words: &CqeWords, posted: Posted, receive: bool) -> Decoded {
    let (opcode, status) = (words[2] as u32, (words[2] >> 32) as u32);
    // An unsignalled request that succeeded is not reported, even where the device does (QEMU's
    // completes every send).
    let unasked = posted.status == Posted::UNSIGNALLED && status == 0;
    if unasked || posted.status == Posted::MARKER {
        return Silent;
    }
    Report(Completion {
        wr_id: posted.wr_id,
        opcode: if receive { received(opcode) } else { posted.opcode },
        status: Status::try_from(status).unwrap_or(Status::General),
        byte_len: words[3] as u32,
        imm: (words[3] >> 32) as u32,
        src_qp: words[4] as u32,
        flags: (words[4] >> 32) as u32,
        qp: words[1] as u32,
        vendor_err: words[5] as u32,
    })
}
