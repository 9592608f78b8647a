//! Where and how the guard's thread runs: on a processor of its own, before others.
#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Binds the calling thread to a processor and gives it real-time priority, as far as it is
/// allowed to; what is not is logged, and makes the guard slower, not less safe.
pub fn prepare(cpu: Option<usize>, priority: Option<u8>) {
    if let Some(cpu) = cpu {
        let mut set = CpuSet::new();
        let bound = set.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
        if let Err(errno) = bound {
            tracing::warn!(%errno, cpu, "the guard's thread cannot run on this processor");
        }
    }
    if let Some(priority) = priority
        && let Err(errno) = real_time(priority)
    {
        tracing::warn!(%errno, priority, "the guard's thread gets no real-time priority: it needs \
             CAP_SYS_NICE or RLIMIT_RTPRIO");
    }
}

fn real_time(priority: u8) -> Result<(), Errno> {
    let parameters = libc::sched_param { sched_priority: i32::from(priority) };
    // SAFETY: the parameters live across the call; 0 names the calling thread.
    let set = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
    Errno::result(set).map(drop)
}
