//! Doorbells: the words of a UAR page, and what a 32-bit store to one of them says.
//!
//! A doorbell is one 32-bit store: a handle in the low 24 bits, what to do with it in the top
//! three. Any page of BAR2 has the same words; a process rings only the page it was given.

use crate::PAGE_SIZE;

/// Size of a UAR page in bytes.
pub const UAR_PAGE_SIZE: usize = PAGE_SIZE;
/// Offset of the queue pair doorbell in a UAR page.
pub const QP: usize = 0;
/// Offset of the completion queue doorbell.
pub const CQ: usize = 4;
/// Offset of the shared receive queue doorbell.
pub const SRQ: usize = 8;
/// Offset of the word that this project's NIC sets non-zero while it sleeps (see
/// [`crate::regs::EXT_FEATURE_WAKE`]); a cache line of its own, so that reading it costs nothing
/// while doorbells fly.
pub const ASLEEP: usize = 128;

/// The handle's bits in a doorbell word.
pub const HANDLE_MASK: u32 = 0x00ff_ffff;
/// QP: work was added to the send queue.
pub const QP_SEND: u32 = 1 << 30;
/// QP: work was added to the receive queue.
pub const QP_RECV: u32 = 1 << 31;
/// CQ: notify on the next solicited completion.
pub const CQ_ARM_SOLICITED: u32 = 1 << 29;
/// CQ: notify on the next completion.
pub const CQ_ARM: u32 = 1 << 30;
/// CQ: let the device make completions visible now.
pub const CQ_POLL: u32 = 1 << 31;
/// SRQ: work was added to the shared receive queue.
pub const SRQ_RECV: u32 = 1 << 30;

/// The handle a doorbell word names.
pub const fn handle(word: u32) -> u32 {
    word & HANDLE_MASK
}
