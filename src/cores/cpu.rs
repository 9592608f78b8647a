//! Processors: which there are for this process, binding a thread to one, and its NUMA node.

use std::fs;
use std::marker::PhantomData;
use std::path::Path;

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use super::CoreError;

const CPUS: &str = "sys/devices/system/cpu";

/// Processors that the scheduler may put the calling thread on, in order. An isolated processor
/// (`isolcpus=`) is none of them, and can be bound to all the same.
pub fn allowed() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(Pid::from_raw(0)) else { return Vec::new() };
    (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu) == Ok(true)).collect()
}

/// Binds the calling thread to one processor until what is returned is dropped. Threads and
/// processes that are started meanwhile are bound too.
///
/// # Errors
/// [`CoreError`] that says why: no such processor, offline, or a cpuset.
pub fn pin(cpu: usize) -> Result<Pinned, CoreError> {
    let refused = |errno| refusal(Path::new("/"), cpu, errno);
    let before = sched_getaffinity(Pid::from_raw(0)).map_err(refused)?;
    let mut set = CpuSet::new();
    set.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set)).map_err(refused)?;
    Ok(Pinned { cpu, before, _thread: PhantomData })
}

/// The NUMA node of a processor; `None` where the kernel has no NUMA, or no such processor.
pub fn node_of(cpu: usize) -> Option<u32> {
    node_under(Path::new("/"), cpu)
}

fn node_under(root: &Path, cpu: usize) -> Option<u32> {
    // A link to its node lies in the folder of each: node0.
    let names = fs::read_dir(root.join(CPUS).join(format!("cpu{cpu}"))).ok()?;
    let number = |name: std::io::Result<fs::DirEntry>| -> Option<u32> {
        name.ok()?.file_name().to_str()?.strip_prefix("node")?.parse().ok()
    };
    names.into_iter().find_map(number)
}

/// Why the kernel refused a processor.
fn refusal(root: &Path, cpu: usize, errno: Errno) -> CoreError {
    let folder = root.join(CPUS).join(format!("cpu{cpu}"));
    // The first processor often has no such file, and is never offline then.
    match fs::read_to_string(folder.join("online")) {
        _ if !folder.exists() => CoreError::NoCpu { cpu },
        Ok(online) if online.trim() == "0" => CoreError::Offline { cpu },
        _ => CoreError::NotAllowed { cpu, errno },
    }
}

/// A thread is bound to a processor; when this is dropped, it may use those again that it might
/// before. It stays on its thread.
#[derive(Debug)]
pub struct Pinned {
    cpu: usize,
    before: CpuSet,
    _thread: PhantomData<*const ()>,
}

impl Pinned {
    /// The processor.
    pub fn cpu(&self) -> usize {
        self.cpu
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Err(errno) = sched_setaffinity(Pid::from_raw(0), &self.before) {
            tracing::warn!(cpu = self.cpu, %errno, "the thread stays bound to its processor");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_was_bound_is_free_again() {
        let before = allowed();
        let pinned = pin(before[0]).unwrap();
        assert_eq!((allowed(), pinned.cpu()), (before[..1].to_vec(), before[0]));
        drop(pinned);
        assert_eq!(allowed(), before);
    }

    #[test]
    fn a_processor_that_is_not_there_is_refused() {
        for cpu in [CpuSet::count() - 1, CpuSet::count(), usize::MAX] {
            let error = pin(cpu).unwrap_err();
            assert!(matches!(error, CoreError::NoCpu { cpu: named } if named == cpu), "{error}");
        }
    }

    #[test]
    fn a_refusal_says_why_and_a_node_is_found() {
        let root = tempfile::tempdir().unwrap();
        let folder = |cpu: usize| root.path().join(CPUS).join(format!("cpu{cpu}"));
        for (cpu, online) in [(0, None), (1, Some("1\n")), (2, Some("0\n"))] {
            fs::create_dir_all(folder(cpu).join(format!("node{}", cpu / 2))).unwrap();
            if let Some(text) = online {
                fs::write(folder(cpu).join("online"), text).unwrap();
            }
        }
        let why = |cpu| refusal(root.path(), cpu, Errno::EINVAL).to_string();
        assert!(why(0).contains("cpuset") && why(1).contains("cpuset"), "{}", why(0));
        assert!(why(2).contains("offline") && why(3).contains("has none"), "{}", why(2));
        let nodes = [0, 1, 2, 3].map(|cpu| node_under(root.path(), cpu));
        assert_eq!(nodes, [Some(0), Some(0), Some(1), None]);
    }
}
