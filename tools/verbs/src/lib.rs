//! A stand-in for libibverbs on machines without RDMA: the verbs of an emulated NIC, in process.
//!
//! QEMU 7.2's `pvrdma` device drives a host RDMA NIC through libibverbs and does not start without
//! one. This crate builds a shared library with the entry points that QEMU imports, over the
//! engine of the emulated NIC ([`holdfast_nic::engine`]). Preloaded into QEMU it gives it as many
//! RDMA devices as are asked for, all joined to each other inside the process:
//!
//! ```text
//! cargo build --release -p holdfast-verbs
//! env LD_PRELOAD=$PWD/target/release/libholdfast_verbs.so \
//!     HOLDFAST_VERBS_DEVICES=hf0,hf1 \
//!     HOLDFAST_VERBS_GIDS=hf0=fe80::5054:ff:fe12:1,hf1=fe80::5054:ff:fe12:2 \
//!   qemu-system-x86_64 -M q35,memory-backend=ram0 -m 2G \
//!     -object memory-backend-memfd,id=ram0,size=2G,share=on \
//!     -object memory-backend-ram,id=zz,size=64K,share=on \
//!     -chardev null,id=mad0 \
//!     -device vmxnet3,bus=pcie.0,addr=10.0,multifunction=on,mac=52:54:00:12:00:01 \
//!     -device pvrdma,bus=pcie.0,addr=10.1,ibdev=hf0,netdev=eth0,mad-chardev=mad0 ...
//! ```
//!
//! Preload QEMU itself, not a program that starts it (`timeout`, a shell). A second device takes
//! another slot, `ibdev=hf1` and a chardev of its own; with two of them QEMU 7.2 crashes when it
//! *ends*, because it frees its table of address handles once for each device. The small shared `memory-backend-ram` is
//! what QEMU's check of its memory wants to see; memfd alone it refuses.
//!
//! # Settings
//! All are environment variables, read at the first call.
//!
//! | variable | meaning |
//! |---|---|
//! | `HOLDFAST_VERBS_DEVICES` | names, separated by commas; `hf0,hf1` unless set |
//! | `HOLDFAST_VERBS_GIDS` | `DEVICE=ADDRESS` pairs, separated by commas; a device may have several |
//! | `HOLDFAST_VERBS_LINKS` | sockets that join other processes: `connect:PATH`, `listen:PATH`, separated by commas |
//! | `HOLDFAST_VERBS_LOG` | not empty: refused calls and asynchronous events go to standard error |
//!
//! A GID that the guest binds must be in its device's table, at any index from 1 on (index 0 is
//! all zeroes and QEMU takes it for "none"); QEMU looks for it byte by byte, until the library
//! answers with an error at the table's end. A device without an entry has the link-local address
//! of MAC 02:48:46:00:00:NN, where NN counts devices from 01: `fe80::48:46ff:fe00:1` for the first.
//! Linux's driver binds the link-local address of its vmxnet3's MAC. No two devices share a GID.
//!
//! A link speaks the protocol of the emulated NIC, so that a guest of QEMU 7.2 reaches the NICs of
//! `holdfast nic` and of other QEMUs that preload the library.
//!
//! # What is there
//! RC and UD queue pairs: SEND and RECV, and RDMA WRITE, READ and atomics besides, for other users
//! than QEMU. Shared receive queues, completion channels, queries, error completions and flushes.
//! Memory regions are memory of the process itself; registering one checks that it is there, and
//! its owner keeps it mapped until the region is gone. Not there: asynchronous events (logged
//! only), memory windows, resizing, multicast, extended verbs, UC and raw queue pairs, and the
//! general services queue pair, which QEMU runs over its own chardev.
//!
//! # Where QEMU decided how it is
//! - A queue pair's number is its handle, so that it fits QEMU's and Linux's tables (numbers from
//!   2 on and below `max_qp`).
//! - Destroying a queue pair takes its completions off the queues: QEMU uses request ids again.
//! - Address handles are not counted in their protection domain, and one of another device is
//!   taken for its destination: QEMU keeps one cache of them, by destination, for all devices.
//! - Destroying a completion queue does not wait for events to be acknowledged; its structure
//!   lives on until they are. QEMU's two threads could wait for each other otherwise.
//!
//! # Threads and errors
//! Every call may come from any thread. One lock guards everything; only
//! `ibv_get_cq_event` blocks, without it. One thread of the library's own runs timers and links.
//! Objects are known by their address, so that a stale or foreign pointer is answered with
//! EINVAL. Nothing unwinds into C: a panic ends at the entry point, which answers EIO.
//!
//! # Rooms
//! `abi`: the structures of verbs.h, from a crate of their own. `exports`: the C entry points, thin.
//! `state`: objects and commands. `hca`: queues, the engine's side. `memory`, `ranges`: registered
//! memory. `channel`: completion events. `process`: the lock, the thread, the links. `config`: the
//! environment.

pub use holdfast_verbs_abi as abi;
mod channel;
mod config;
mod error;
mod exports;
mod face;
mod hca;
mod memory;
mod process;
mod ranges;
mod state;
