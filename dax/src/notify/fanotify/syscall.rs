//! What a thread that waits in the kernel is about to do: fanotify tells where in a file, and not
//! whether it reads or punches a hole; `/proc/TID/syscall` has the system call and its arguments.
//!
//! A thread that does not run a system call of its own (a worker of io_uring, nfsd) is in none, or
//! in somebody else's; what it does is unknown, and is taken for anything. So are the
//! numbers of 32-bit programs.

use std::fs;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;

use crate::FileId;
use crate::notify::Cause;

/// What a thread does, as far as the layout of the file goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Doing {
    /// Nothing to it: reads, writes, maps or opens.
    Harmless,
    /// This, to this range; without a range, to the one that the event has.
    Layout(Cause, Option<Range<u64>>),
}

/// A system call: its number and its arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    pub number: i64,
    pub arguments: [u64; 6],
}

/// `FICLONE`, `FICLONERANGE` and `FIDEDUPERANGE` of linux/fs.h.
const FICLONE: u64 = 0x4004_9409;
const FICLONERANGE: u64 = 0x4020_940d;
const FIDEDUPERANGE: u64 = 0xc018_9436;
/// `XFS_IOC_EXCHANGE_RANGE` of xfs/libxfs/xfs_fs.h.
const XFS_IOC_EXCHANGE_RANGE: u64 = 0x4028_5881;

impl Call {
    /// The system call that a thread is in. The thread must wait; of a running one nothing is
    /// known.
    pub fn of(tid: i32) -> Option<Self> {
        let path = format!("/proc/{tid}/syscall");
        // It may not have gone to sleep yet when its event is read.
        for _ in 0..100 {
            let mut text = [0; 256];
            let len = fs::File::open(&path).ok()?.read(&mut text).ok()?;
            let text = std::str::from_utf8(&text[..len]).ok()?;
            if !text.starts_with("running") {
                return Self::parse(text);
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        None
    }

    fn parse(text: &str) -> Option<Self> {
        let word = |text: &str| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok();
        let mut words = text.split_whitespace();
        let number = words.next()?.parse().ok()?;
        let mut arguments = [0; 6];
        for argument in &mut arguments {
            *argument = word(words.next()?)?;
        }
        // A worker of io_uring shows a system call that another thread was in as it made the worker,
        // and no stack pointer nor program counter.
        let (stack, program) = (word(words.next()?)?, word(words.next()?)?);
        (stack != 0 || program != 0).then_some(Self { number, arguments })
    }

    /// What it does to a file of `size` bytes; `is_file(n)`: whether the caller's descriptor `n` is
    /// of that file.
    pub fn doing(&self, size: u64, is_file: impl Fn(u64) -> bool) -> Doing {
        let [a, b, c, d, ..] = self.arguments;
        match self.number {
            libc::SYS_ftruncate | libc::SYS_truncate => {
                let (cause, range) = match b {
                    to if to > size => (Cause::Grow { size: to }, size..to),
                    to => (Cause::Truncate { size: to }, to..size),
                };
                Doing::Layout(cause, Some(range))
            }
            libc::SYS_fallocate => fallocate(b, c, d),
            libc::SYS_ioctl => match b & 0xffff_ffff {
                FICLONE | FICLONERANGE if is_file(a) => Doing::Layout(Cause::CloneOnto, None),
                FICLONE | FICLONERANGE => Doing::Layout(Cause::CloneFrom, None),
                FIDEDUPERANGE => Doing::Layout(Cause::Dedupe, None),
                XFS_IOC_EXCHANGE_RANGE => Doing::Layout(Cause::ExchangeRange, None),
                _ => Doing::Layout(Cause::Unknown, None),
            },
            libc::SYS_madvise if c == libc::MADV_REMOVE as u64 => {
                Doing::Layout(Cause::Remove, None)
            }
            // It may share blocks instead of copying them.
            libc::SYS_copy_file_range if is_file(c) => Doing::Layout(Cause::CloneOnto, None),
            libc::SYS_copy_file_range => Doing::Harmless,
            number if HARMLESS.contains(&number) => Doing::Harmless,
            _ => Doing::Layout(Cause::Unknown, None),
        }
    }

    /// What it does, where it is known to open the file.
    pub fn opening(&self) -> Doing {
        let truncates = |flags: u64| match flags & libc::O_TRUNC as u64 {
            0 => Doing::Harmless,
            _ => Doing::Layout(Cause::OpenTruncate, Some(0..u64::MAX)),
        };
        match self.number {
            #[cfg(target_arch = "x86_64")]
            libc::SYS_open => truncates(self.arguments[1]),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_creat => truncates(libc::O_TRUNC as u64),
            libc::SYS_openat => truncates(self.arguments[2]),
            libc::SYS_execve | libc::SYS_execveat => Doing::Harmless,
            // The flags of openat2 and of io_uring are in memory.
            _ => Doing::Layout(Cause::Unknown, None),
        }
    }
}

/// Calls that read, write or map, and leave blocks where they are.
const HARMLESS: &[i64] = &[
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_readv,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_write,
    libc::SYS_pwrite64,
    libc::SYS_writev,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_tee,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_readahead,
    libc::SYS_fadvise64,
    libc::SYS_execve,
    libc::SYS_execveat,
];

/// `FALLOC_FL_*` of linux/falloc.h.
fn fallocate(mode: u64, offset: u64, len: u64) -> Doing {
    let (range, rest) = (offset..offset.saturating_add(len), offset..u64::MAX);
    let (cause, range) = match mode {
        mode if mode & 0x02 != 0 => (Cause::PunchHole, range),
        mode if mode & 0x08 != 0 => (Cause::CollapseRange, rest),
        mode if mode & 0x20 != 0 => (Cause::InsertRange, rest),
        mode if mode & (0x10 | 0x80) != 0 => (Cause::ZeroRange, range),
        mode if mode & 0x40 != 0 => (Cause::UnshareRange, range),
        _ => (Cause::Allocate, range),
    };
    Doing::Layout(cause, Some(range))
}

/// Whether a thread's descriptor is of this file. Looks at its number alone, and opens nothing.
pub fn is_file(tid: i32, descriptor: u64, id: FileId) -> bool {
    let stat = fs::metadata(format!("/proc/{tid}/fd/{descriptor}"));
    stat.is_ok_and(|stat| (stat.dev(), stat.ino()) == (id.dev, id.ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(number: i64, arguments: [u64; 4]) -> Call {
        let [a, b, c, d] = arguments;
        Call { number, arguments: [a, b, c, d, 0, 0] }
    }

    #[test]
    fn calls_are_read_as_the_kernel_prints_them() {
        let text = "285 0x3 0x3 0x1000 0x2000 0x0 0x7ff 0x7ffe1 0x7fab2\n";
        let punch = Call::parse(text).unwrap();
        assert_eq!(punch.arguments, [3, 3, 0x1000, 0x2000, 0, 0x7ff]);
        let worker = "77 0x3 0x1000 0x0 0x0 0x0 0x0 0x0 0x0\n";
        for text in ["running\n", "-1 0x7ffc 0x7f11\n", "", "0 3\n", worker] {
            assert_eq!(Call::parse(text), None, "{text}");
        }
    }

    #[test]
    fn this_thread_is_in_the_call_that_reads_it() {
        let call = Call::of(nix::unistd::gettid().as_raw()).unwrap();
        assert_eq!(call.doing(0, |_| false), Doing::Harmless);
        assert_eq!(call.number, libc::SYS_read);
    }

    #[test]
    fn calls_are_told_apart_by_number_and_arguments() {
        let layout = |cause, range| Doing::Layout(cause, range);
        let size = 1 << 20;
        for (call, doing) in [
            (call(libc::SYS_pwrite64, [3, 0, 0, 0]), Doing::Harmless),
            (
                call(libc::SYS_ftruncate, [3, 4096, 0, 0]),
                layout(Cause::Truncate { size: 4096 }, Some(4096..size)),
            ),
            (
                call(libc::SYS_truncate, [0xabc, 2 << 20, 0, 0]),
                layout(Cause::Grow { size: 2 << 20 }, Some(size..2 << 20)),
            ),
            (
                call(libc::SYS_fallocate, [3, 3, 4096, 8192]),
                layout(Cause::PunchHole, Some(4096..12288)),
            ),
            (
                call(libc::SYS_fallocate, [3, 8, 4096, 8192]),
                layout(Cause::CollapseRange, Some(4096..u64::MAX)),
            ),
            (call(libc::SYS_ioctl, [3, FICLONE, 4, 0]), layout(Cause::CloneOnto, None)),
            (call(libc::SYS_ioctl, [4, FICLONE, 3, 0]), layout(Cause::CloneFrom, None)),
            (call(libc::SYS_copy_file_range, [4, 0, 3, 0]), layout(Cause::CloneOnto, None)),
            (call(libc::SYS_copy_file_range, [3, 0, 4, 0]), Doing::Harmless),
            (call(libc::SYS_io_uring_enter, [3, 0, 0, 0]), layout(Cause::Unknown, None)),
        ] {
            assert_eq!(call.doing(size, |fd| fd == 3), doing, "{call:?}");
        }
    }

    #[test]
    fn only_an_open_that_truncates_is_told() {
        let flags = (libc::O_RDWR | libc::O_TRUNC) as u64;
        let truncates = Doing::Layout(Cause::OpenTruncate, Some(0..u64::MAX));
        assert_eq!(call(libc::SYS_openat, [0, 0, flags, 0]).opening(), truncates);
        assert_eq!(call(libc::SYS_openat, [0, 0, 2, 0]).opening(), Doing::Harmless);
        let unknown = Doing::Layout(Cause::Unknown, None);
        assert_eq!(call(libc::SYS_openat2, [0, 0, 0, 0]).opening(), unknown);
    }
}
