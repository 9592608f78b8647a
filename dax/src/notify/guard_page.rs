//! The pin's guard page, looked at by the clock: needs no tracing and no privilege beyond the
//! pin's own.
//!
//! A file system that starts to wait for our pin first takes the file's pages out of every page
//! table, the guard page's among them. So the guard page's entry in pagemap going is the
//! news; it tells neither range nor cause. Reading one entry is a `pread` of 8 bytes that takes no
//! lock of the file.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::unistd::read;

use super::{Notice, Notifier, NotifierKind, NotifyError, Probe, Stage, Subject, Terms, Watched};

const KIND: NotifierKind = NotifierKind::GuardPage;

/// Looks at the signs of all watched files once a period.
///
/// A sign is told once: after it the file is not looked at until it is watched again, with the
/// sign of its new pin.
#[derive(Debug)]
pub struct GuardPages {
    timer: TimerFd,
    period: Duration,
    watched: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    subject: Subject,
    probe: Arc<dyn Probe>,
    told: bool,
}

impl GuardPages {
    /// Looks once a `period`, which is also the longest it can be late; a millisecond suits.
    pub fn new(period: Duration) -> Result<Self, NotifyError> {
        let call = |call| {
            move |errno| NotifyError::Call { notifier: KIND, call, what: "its timer".into(), errno }
        };
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).map_err(call("timerfd_create"))?;
        let mut this = Self { timer, period, watched: Vec::new() };
        this.arm().map_err(call("timerfd_settime"))?;
        Ok(this)
    }

    /// Runs the timer while there is something to look at, and only then.
    fn arm(&mut self) -> Result<(), Errno> {
        if self.watched.iter().any(|entry| !entry.told) {
            let period = Expiration::Interval(TimeSpec::from_duration(self.period));
            self.timer.set(period, TimerSetTimeFlags::empty())
        } else {
            self.timer.unset()
        }
    }
}

impl Notifier for GuardPages {
    fn kind(&self) -> NotifierKind {
        KIND
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    fn watch(&mut self, watched: &Watched<'_>) -> Result<(), NotifyError> {
        let unsuited =
            |what, reason| NotifyError::Unsuited { notifier: KIND, what, reason, errno: None };
        let Watched::File(file) = watched else {
            let what = watched.subject().to_string();
            return Err(unsuited(what, "it is no file, and only files are pinned"));
        };
        let Some(probe) = file.probe.clone() else {
            return Err(unsuited(
                file.what(),
                "it has no layout pin, whose guard page could be looked at",
            ));
        };
        self.unwatch(file.id.into());
        self.watched.push(Entry { subject: file.id.into(), probe, told: false });
        self.arm().map_err(|errno| NotifyError::Call {
            notifier: KIND,
            call: "timerfd_settime",
            what: "its timer".into(),
            errno,
        })
    }

    fn unwatch(&mut self, subject: Subject) {
        self.watched.retain(|entry| entry.subject != subject);
        // It only stops a timer that would find nothing.
        let _ = self.arm();
    }

    fn collect(&mut self, sink: &mut dyn FnMut(Notice)) -> Result<(), NotifyError> {
        // The expirations; EAGAIN when looked at between two of them.
        let _ = read(&self.timer, &mut [0; 8]);
        let mut told = false;
        for entry in self.watched.iter_mut().filter(|entry| !entry.told) {
            // A sign that cannot be read is taken for the worst.
            let disturbed = entry.probe.disturbed();
            if !matches!(disturbed, Ok(false)) {
                entry.told = true;
                told = true;
                sink(Notice::new(entry.subject, KIND, Stage::Waiting));
            }
            if let Err(errno) = disturbed {
                tracing::error!(subject = %entry.subject, %errno, "guard page cannot be read");
            }
        }
        if told {
            let _ = self.arm();
        }
        Ok(())
    }

    /// Its pin is released now, which disturbs the sign: that is no news.
    fn allow(&mut self, subject: Subject) {
        for entry in self.watched.iter_mut().filter(|entry| entry.subject == subject) {
            entry.told = true;
        }
    }

    fn statement(&self) -> Terms {
        Terms {
            sees: format!(
                "every operation that waits for the pin, and a swap of extents after the fact, \
                 at most {:?} late; neither cause nor range",
                self.period
            ),
            misses: "files without a pin".into(),
            costs: format!("one pread of 8 bytes for each file every {:?}", self.period),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use std::time::Instant;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;
    use crate::FileId;
    use crate::notify::{Cause, WatchedFile};

    #[derive(Debug, Default)]
    struct Sign {
        up: AtomicBool,
        broken: AtomicBool,
        looks: AtomicU32,
    }

    impl Probe for Sign {
        fn disturbed(&self) -> Result<bool, Errno> {
            self.looks.fetch_add(1, Ordering::Relaxed);
            match self.broken.load(Ordering::Relaxed) {
                true => Err(Errno::EIO),
                false => Ok(self.up.load(Ordering::Relaxed)),
            }
        }
    }

    fn collected(pages: &mut GuardPages) -> Vec<Notice> {
        let mut notices = Vec::new();
        pages.collect(&mut |notice| notices.push(notice)).unwrap();
        notices
    }

    fn readable(pages: &GuardPages, timeout: u16) -> bool {
        let mut fds = [PollFd::new(pages.fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(timeout)).unwrap() == 1
    }

    fn watched(sign: &Arc<Sign>) -> (GuardPages, FileId, std::fs::File) {
        let file = tempfile::tempfile().unwrap();
        let mut pages = GuardPages::new(Duration::from_millis(1)).unwrap();
        let watched = WatchedFile::of(&file).unwrap().probe(sign.clone());
        let id = watched.id;
        pages.watch(&watched.into()).unwrap();
        (pages, id, file)
    }

    #[test]
    fn a_sign_is_told_once_until_the_file_is_watched_again() {
        let sign = Arc::new(Sign::default());
        let (mut pages, id, file) = watched(&sign);
        assert!(readable(&pages, 2000));
        assert_eq!(collected(&mut pages), []);
        let before = Instant::now();
        sign.up.store(true, Ordering::Relaxed);
        assert!(readable(&pages, 2000));
        let notices = collected(&mut pages);
        let [notice] = &notices[..] else { panic!("{notices:?}") };
        assert_eq!(notice.file(), Some(id));
        assert_eq!(
            (notice.cause, notice.stage, &notice.range),
            (Cause::Unknown, Stage::Waiting, &None)
        );
        assert!(notice.at >= before);
        assert_eq!(collected(&mut pages), [], "told twice");
        let looks = sign.looks.load(Ordering::Relaxed);
        assert!(!readable(&pages, 20), "the timer runs with nothing to look at");
        assert_eq!(sign.looks.load(Ordering::Relaxed), looks);
        let again = WatchedFile::of(&file).unwrap().probe(sign.clone());
        pages.watch(&again.into()).unwrap();
        assert!(readable(&pages, 2000));
        assert_eq!(collected(&mut pages).len(), 1);
    }

    #[test]
    fn a_sign_that_cannot_be_read_is_taken_for_the_worst() {
        let sign = Arc::new(Sign::default());
        let (mut pages, ..) = watched(&sign);
        sign.broken.store(true, Ordering::Relaxed);
        assert_eq!(collected(&mut pages).len(), 1);
    }

    #[test]
    fn a_pin_that_was_released_is_no_news() {
        let sign = Arc::new(Sign::default());
        let (mut pages, id, _file) = watched(&sign);
        sign.up.store(true, Ordering::Relaxed);
        pages.allow(id.into());
        assert_eq!(collected(&mut pages), []);
    }

    #[test]
    fn what_is_not_watched_any_more_is_not_looked_at() {
        let sign = Arc::new(Sign::default());
        let (mut pages, id, _file) = watched(&sign);
        sign.up.store(true, Ordering::Relaxed);
        pages.unwatch(id.into());
        assert_eq!(collected(&mut pages), []);
        assert_eq!(sign.looks.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_file_without_a_pin_is_refused() {
        let file = tempfile::tempfile().unwrap();
        let mut pages = GuardPages::new(Duration::from_millis(1)).unwrap();
        let refusal = pages.watch(&WatchedFile::of(&file).unwrap().into()).unwrap_err();
        assert!(matches!(refusal, NotifyError::Unsuited { .. }), "{refusal}");
    }
}
