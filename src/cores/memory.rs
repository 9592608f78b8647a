//! Memory that is never away: locked, and a stack that has been touched.

use std::fs;

use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use super::CoreError;

/// Keeps all memory of the process where it is, what there is and what is to come, until it ends.
/// Whatever is mapped from now on is brought in at once, and counts against the limit. Blocks until
/// all of it is there.
///
/// # Errors
/// [`CoreError::Lock`]: RLIMIT_MEMLOCK is below the size of the process, which is told; nothing is
/// locked then.
pub fn lock_memory() -> Result<(), CoreError> {
    mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE).map_err(|errno| {
        let limit = match getrlimit(Resource::RLIMIT_MEMLOCK) {
            Ok((RLIM_INFINITY, _)) => "any number".to_owned(),
            Ok((bytes, _)) => format!("{} KiB", bytes / 1024),
            Err(_) => "an unknown number".to_owned(),
        };
        CoreError::Lock { errno, size_kib: size_kib(), limit }
    })
}

/// Size of this process's memory in KiB; 0 where the kernel does not tell.
fn size_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
    size.and_then(|text| text.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

const PAGE: usize = 4096;

/// Touches so many bytes of the stack below the caller, so that no call that goes as deep is a page
/// fault later.
#[inline(never)]
pub(super) fn touch_stack(bytes: usize) {
    let mut page = [0_u8; PAGE];
    std::hint::black_box(&mut page);
    if bytes > PAGE {
        touch_stack(bytes - PAGE);
    }
    // Used again, so that the pages lie below each other.
    std::hint::black_box(&mut page);
}

#[cfg(test)]
mod tests {
    use nix::sys::resource::{UsageWho, getrusage};

    use super::*;

    fn faults() -> i64 {
        getrusage(UsageWho::RUSAGE_THREAD).unwrap().minor_page_faults()
    }

    #[test]
    fn a_stack_that_was_touched_has_no_faults_left() {
        const PAGES: usize = 128;
        let touched = || {
            let start = faults();
            touch_stack(PAGES * PAGE);
            let first = faults() - start;
            touch_stack(PAGES * PAGE);
            (first, faults() - start - first)
        };
        let (first, again) = std::thread::spawn(touched).join().unwrap();
        // The kernel may give a stack in larger pieces; it never takes it back so soon.
        assert!(first > again && again < PAGES as i64 / 4, "{first} faults, then {again}");
    }
}
