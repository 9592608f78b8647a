//! Why a thread or its memory could not be prepared.

use nix::errno::Errno;

/// Why a thread or its memory could not be prepared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CoreError {
    /// There is no such processor.
    #[error("cannot run on cpu {cpu}: this machine has none of that number")]
    NoCpu {
        /// The processor asked for.
        cpu: usize,
    },
    /// The processor is switched off.
    #[error(
        "cannot run on cpu {cpu}: it is offline (echo 1 >/sys/devices/system/cpu/cpu{cpu}/online)"
    )]
    Offline {
        /// The processor asked for.
        cpu: usize,
    },
    /// The processor is there, and this process may not have it.
    #[error(
        "cannot run on cpu {cpu}: a cpuset keeps this process from it (see Cpus_allowed_list in \
         /proc/self/status, and cpuset.cpus of its cgroup): {errno}"
    )]
    NotAllowed {
        /// The processor asked for.
        cpu: usize,
        /// What the kernel said.
        errno: Errno,
    },
    /// Memory is not to be locked.
    #[error(
        "cannot lock the memory of this process: {errno}. It has {size_kib} KiB, and may lock \
         {limit}: raise the limit (ulimit -l, LimitMEMLOCK=, /etc/security/limits.conf), or give it \
         CAP_IPC_LOCK"
    )]
    Lock {
        /// What the kernel said.
        errno: Errno,
        /// Size of the process's memory in KiB, reserved addresses too, all of which counts.
        size_kib: u64,
        /// RLIMIT_MEMLOCK, in words.
        limit: String,
    },
}
