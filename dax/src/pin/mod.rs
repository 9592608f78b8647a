//! The layout pin: one page of a file, held so that the file system waits before it frees or moves
//! any of the file's blocks.
//!
//! ext4 and xfs look for pages that somebody holds before they change which blocks a DAX file has
//! (`ext4_break_layouts`, `xfs_break_dax_layouts`; both end in `dax_layout_busy_page_range` over
//! the **whole** inode), and wait until nobody does. A page in a pipe is held (vmsplice takes a
//! short-term reference, which DAX allows). So a [`Pin`] is a pipe with a page in it, plus a
//! *guard mapping*, one page of the file mapped a second time, which has two offices:
//!
//! - Linux 6.1 and 6.12 do not look at files that nobody maps; the guard mapping sees to that.
//! - The file system takes the page out of every page table as it starts to wait. Nobody ever
//!   touches the guard page, so once its entry is gone it stays gone: [`Pin::disturbed`].
//!
//! What waits (punch, truncate, growing by ftruncate, collapse, clone, ...) waits whatever part of
//! the file it is about, and until [`Pin::release`] or until its caller is killed. **While it
//! waits it holds the file's lock**: whoever deals with it must not read, write, sync or ask for
//! the layout of that file. fstat, page faults and reading pagemap go through.
//!
//! On Linux 7.3 the operation waits until *nothing* refers to the page, so a page that this process
//! or another touches meanwhile keeps it waiting after the release. Let the guard page be one that
//! nobody touches, or call [`Memory::forget`](crate::Memory::forget) for it before and after the
//! release; and do not populate the file again before the operation has ended, which
//! [`allocated`](crate::allocated) waits for.
//!
//! Several processes may pin a file, by the same page or not. An operation waits for all of them, and
//! shows at each: a pin that an operation would not show at is not taken.
//!
//! The pin does not see everything: xfs's SWAPEXT and ext4's SWAP_BOOT exchange blocks without
//! looking (the guard page's entry shows it afterwards), and closing the last descriptor of an
//! unlinked file frees its blocks on Linux 6.1 and 6.12, wherefore a pin keeps the file open.
//!
//! Before Linux 6.15 a page that is just being written back is not seen either, and a pin needs several
//! pages ([`Pin::take_several`], [`others_to_pin`]).
//!
//! [`prove`] shows on a scratch file that all this is true of a mount. An [`AdoptedPin`] is a copy
//! of a pin in another process, which outlives the one that took it.

mod adopt;
mod guard;
mod pipe;
mod prove;
mod several;
mod take;

pub use adopt::{AdoptedPin, OwnedPinParts};
pub use prove::{Proof, ProofFailure, prove};
pub(crate) use several::wants_small_pages;
pub use several::{others_to_pin, touch_small_pages};
pub use take::{Pin, PinParts, Sign};
