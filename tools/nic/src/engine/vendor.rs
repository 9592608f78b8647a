//! Codes of [`super::host::Completion::vendor_err`]: why the engine refused a send.

/// The front found the request malformed.
pub(crate) const MALFORMED: u32 = 1;
/// The opcode is not supported on this queue pair.
pub(crate) const OPCODE: u32 = 2;
/// The payload's length does not fit the operation.
pub(crate) const LENGTH: u32 = 3;
/// A scatter/gather entry's key, range or rights.
pub(crate) const ENTRY: u32 = 4;
/// An address could not be translated within the bound.
pub(crate) const MISS: u32 = 5;
/// `max_rd_atomic` is 0.
pub(crate) const NO_READS: u32 = 6;
/// The key of a local operation.
pub(crate) const KEY: u32 = 7;
/// The list of a fast registration.
pub(crate) const PAGE_LIST: u32 = 8;
/// The source GID index.
pub(crate) const GID_INDEX: u32 = 9;
/// Memory is in more pieces than a burst can have.
pub(crate) const PIECES: u32 = 10;
/// The peer or the path, as the status says.
pub(crate) const REMOTE: u32 = 11;
