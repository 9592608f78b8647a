//! The keeper: a small process that holds what must outlive the driver.
//!
//! A layout pin keeps a file system from freeing blocks that a device may still reach. It must not
//! go before the device's mapping of those blocks has gone, and a driver that is killed has no say
//! in which goes first. So each driver that maps fs-dax files starts a keeper and hands duplicates
//! over: of its VFIO containers, and of each pin's pipe and file. When the driver dies, by whatever
//! cause, the keeper empties the containers first and the pipes second. It also watches for a driver
//! that lives but does not answer: when a layout operation has waited for longer than a pin's
//! deadline, it does the same, and tells the driver so.
//!
//! [`Keeper`] is the driver's side. `holdfast keeper` is the other ([`run`], [`serve`]).
//!
//! # What holds at each instant
//! A DMA reaches a block through the IOMMU; the block is freed only once no layout pin is in force.
//! To show: at no instant is the pin gone while the mapping is there. Notation: *P* is the page
//! reference in the pipe, *G* a mapping of the file that makes the reference count (Linux before
//! 6.15 ignores references to pages of a file which nobody maps), *M* the IOMMU mapping.
//!
//! 1. *Before anything is mapped.* [`Keeper::hold_container`] and [`Keeper::hold_pin`] have been
//!    answered, so the keeper holds the container, both ends of the pipe, the file, and a guard page
//!    of its own. From here on *P* and *G* do not depend on the driver's life. A death before the
//!    answer finds no *M*. (It may find a *P*, on its way to the keeper. That the file system does
//!    not go past that one either, and warn of it, is what [`Keeper::hold_file`] is for.)
//! 2. *SIGKILL is sent.* Nothing changes yet: every thread of the driver goes on until it returns
//!    from, or is interrupted in, its system call. A call that maps either completes (*M* in the
//!    container that the keeper holds) or does not.
//! 3. *The driver's address space goes* (`exit_mm`, on all kernels before the descriptors). Its own
//!    guard page goes with it. Before 6.15 this would end the pin; the keeper's *G* keeps it. On
//!    7.3 *P* alone counts. The device still runs and *M* is still there: they may.
//! 4. *Its descriptors go*, in whatever order the kernel chooses. Its ends of the pipe: *P* stays,
//!    as the keeper's ends are open (a pipe is emptied by its last close or by a read, and nobody
//!    reads). The device: bus mastering is cleared. The group: with the last one the kernel empties
//!    the container itself. The container: the keeper's duplicate stays. The socket: the keeper
//!    wakes up. Whichever came first, *P* and *G* are in force.
//! 5. *The driver is gone*: its pidfd says that all threads have exited, which is after their last
//!    descriptors were closed; so nobody maps any more, and no group is just leaving its container.
//!    (The socket closes earlier, and tells of a driver without a pidfd. The keeper waits for the
//!    pidfd then, 5 s at most: the kernel frees what a call on a container uses when the last group
//!    leaves at the same time.)
//! 6. *The keeper empties every container* (VFIO_DMA_UNMAP_FLAG_ALL; a container without a group is
//!    empty already). When the call returns, the IOTLB is flushed: *M* is gone. If it fails, this
//!    step is repeated for as long as it takes, and *P* and *G* stay.
//! 7. *The keeper drops its guard page's entry and empties the pipes.* Only here does *P* go. On 7.3
//!    the waiting operation wants a reference count of zero, hence the entry first.
//!
//! *The keeper is killed instead*: the driver lives and holds its own ends of everything, so nothing
//! changes but that a second death would find nobody. The driver sees [`KeeperEvent::Died`], starts
//! another and hands everything over again. *Both are killed at once* (a cgroup's kill, the power of
//! root): then the order of steps 3 and 4 is the kernel's, which on 7.3 goes well when the pipes
//! were opened before the VFIO descriptors, and before 6.15 leaves a moment between the end of the
//! last guard page and the end of the device. A service should be stopped in a way that reaches the
//! driver first (systemd: `KillMode=mixed` with a driver that ends on SIGTERM, or
//! `KillMode=process`).
//!
//! *The driver is late*, not dead: the keeper empties the containers of a driver that could map
//! again at any moment. What it could map there is what it looked up under a pin that has been let
//! go meanwhile, so a driver maps pinned memory only in a turn ([`Keeper::begin_map`]), and the
//! keeper does not let a pin go in the middle of one. A driver that is late in the middle of a turn
//! is killed, and steps 2 to 7 follow.

mod client;
mod error;
mod held;
mod note;
mod process;
pub mod protocol;
mod serve;
mod spawn;
mod sys;

#[cfg(test)]
mod tests;

pub use client::{Keeper, KeeperEvent, KeeperOptions, MapTurn};
pub use error::KeeperError;
pub use holdfast_dax::PinParts;
pub use process::run;
pub use protocol::{ContainerId, HeldFileId, PinId};
pub use serve::{Fence, PERIOD, Sockets, VfioFence, serve};
