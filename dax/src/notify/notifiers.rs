//! All notifiers that this machine allows, and why each of the others is not among them.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use super::{
    Fanotify, GuardPages, Hold, Inotify, KprobeEvents, Leases, Notice, Notifier, NotifierKind,
    NotifyError, Subject, Terms, Userfaultfd, Watched,
};

/// Which notifiers to bring up, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// Those wanted; the others are stated as switched off.
    pub kinds: Vec<NotifierKind>,
    /// How often guard pages are looked at.
    pub guard_period: Duration,
    /// How long notifiers that hold operations themselves (fanotify) do so when nobody allows
    /// them.
    pub hold_at_most: Duration,
    /// Lease or delegation.
    pub hold: Hold,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            kinds: NotifierKind::ALL.to_vec(),
            guard_period: Duration::from_millis(1),
            hold_at_most: Duration::from_secs(5),
            hold: Hold::default(),
        }
    }
}

/// The notifiers in force.
#[derive(Debug, Default)]
pub struct Notifiers {
    in_force: Vec<Box<dyn Notifier>>,
    absent: Vec<(NotifierKind, Absence)>,
}

#[derive(Debug)]
enum Absence {
    SwitchedOff,
    Failed(NotifyError),
}

impl Notifiers {
    /// Brings up those that were wanted and that this machine allows. That none can be had is no
    /// error here: [`Notifiers::statement`] says why of each.
    pub fn available(options: &Options) -> Self {
        let mut this = Self::default();
        for kind in NotifierKind::ALL {
            if !options.kinds.contains(&kind) {
                this.absent.push((kind, Absence::SwitchedOff));
                continue;
            }
            match bring_up(kind, options) {
                Ok(notifier) => this.in_force.push(notifier),
                Err(error) => this.absent.push((kind, Absence::Failed(error))),
            }
        }
        this
    }

    /// Those in force, for their descriptors and to collect from one at a time.
    pub fn in_force(&self) -> impl Iterator<Item = &dyn Notifier> {
        self.in_force.iter().map(AsRef::as_ref)
    }

    /// The same, to be used.
    pub fn in_force_mut(&mut self) -> impl Iterator<Item = &mut Box<dyn Notifier>> {
        self.in_force.iter_mut()
    }

    /// Takes one out of force (and off, if the caller drops it).
    pub fn take(&mut self, kind: NotifierKind) -> Option<Box<dyn Notifier>> {
        let at = self.in_force.iter().position(|notifier| notifier.kind() == kind)?;
        self.absent.push((kind, Absence::SwitchedOff));
        Some(self.in_force.remove(at))
    }

    /// Has it watched by all that can; gives back which those are, and why not by the others.
    pub fn watch(&mut self, watched: &Watched<'_>) -> (Vec<NotifierKind>, Vec<NotifyError>) {
        let (mut by, mut refusals) = (Vec::new(), Vec::new());
        for notifier in &mut self.in_force {
            // Each of its events opens the file, which breaks a lease and waits for it. A lease is
            // tried first: it is also what closes the door to swaps of extents.
            if notifier.kind() == NotifierKind::Fanotify && by.contains(&NotifierKind::Lease) {
                refusals.push(NotifyError::Unsuited {
                    notifier: NotifierKind::Fanotify,
                    what: watched.subject().to_string(),
                    reason: "it has a lease, which fanotify's own descriptors would break",
                    errno: None,
                });
                notifier.unwatch(watched.subject());
                continue;
            }
            match notifier.watch(watched) {
                Ok(()) => by.push(notifier.kind()),
                Err(error) => refusals.push(error),
            }
        }
        (by, refusals)
    }

    /// [`Notifier::unwatch`] of each.
    pub fn unwatch(&mut self, subject: Subject) {
        self.in_force.iter_mut().for_each(|notifier| notifier.unwatch(subject));
    }

    /// [`Notifier::allow`] of each.
    pub fn allow(&mut self, subject: Subject) {
        self.in_force.iter_mut().for_each(|notifier| notifier.allow(subject));
    }

    /// [`Notifier::filled`] of each.
    pub fn filled(&mut self, subject: Subject, range: Range<u64>) {
        self.in_force.iter_mut().for_each(|notifier| notifier.filled(subject, range.clone()));
    }

    /// [`Notifier::collect`] of each; of several failures the first is told, after all have been
    /// asked. Who tells most is asked last: what another one has just seen, that one has seen by
    /// then.
    pub fn collect(&mut self, sink: &mut dyn FnMut(Notice)) -> Result<(), NotifyError> {
        let mut result = Ok(());
        for notifier in self.in_force.iter_mut().rev() {
            result = result.and(notifier.collect(sink));
        }
        result
    }

    /// Which are in force with what they are worth, and why the others are not.
    pub fn statement(&self) -> Statement {
        let mut lines: Vec<_> = self
            .in_force
            .iter()
            .map(|notifier| (notifier.kind(), State::InForce(notifier.statement())))
            .chain(self.absent.iter().map(|(kind, absence)| match absence {
                Absence::SwitchedOff => (*kind, State::Absent("switched off".into())),
                Absence::Failed(error) => (*kind, State::Absent(error.to_string())),
            }))
            .collect();
        lines.sort_by_key(|(kind, _)| *kind);
        Statement { lines }
    }
}

fn bring_up(kind: NotifierKind, options: &Options) -> Result<Box<dyn Notifier>, NotifyError> {
    Ok(match kind {
        NotifierKind::GuardPage => Box::new(GuardPages::new(options.guard_period)?),
        NotifierKind::Kprobe => Box::new(KprobeEvents::new()?),
        NotifierKind::Inotify => Box::new(Inotify::new()?),
        NotifierKind::Fanotify => Box::new(Fanotify::new(options.hold_at_most)?),
        NotifierKind::Lease => Box::new(Leases::new(options.hold)?),
        NotifierKind::Userfaultfd => Box::new(Userfaultfd::new()?),
    })
}

/// For the start of a program: which notifiers are in force, and why the others are not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// One for each kind, in the order of [`NotifierKind::ALL`].
    pub lines: Vec<(NotifierKind, State)>,
}

/// Whether a notifier is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It is, and this is what it is worth.
    InForce(Terms),
    /// It is not, for this reason.
    Absent(String),
}

impl Statement {
    /// The kinds in force.
    pub fn in_force(&self) -> impl Iterator<Item = NotifierKind> {
        self.lines.iter().filter_map(|(kind, state)| match state {
            State::InForce(_) => Some(*kind),
            State::Absent(_) => None,
        })
    }
}

impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (kind, state)) in self.lines.iter().enumerate() {
            let newline = if at == 0 { "" } else { "\n" };
            match state {
                State::InForce(terms) => write!(
                    f,
                    "{newline}{kind}: in force\n  sees:   {}\n  misses: {}\n  costs:  {}",
                    terms.sees, terms.misses, terms.costs
                )?,
                State::Absent(why) => write!(f, "{newline}{kind}: not in force: {why}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_either_in_force_or_said_why_not() {
        let statement = Notifiers::available(&Options::default()).statement();
        let kinds: Vec<_> = statement.lines.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, NotifierKind::ALL);
        assert!(statement.in_force().any(|kind| kind == NotifierKind::GuardPage));
        let text = statement.to_string();
        for kind in NotifierKind::ALL {
            assert!(text.contains(&format!("{kind}: ")), "{text}");
        }
    }

    #[test]
    fn a_notifier_that_is_not_wanted_is_stated_as_switched_off() {
        let options = Options { kinds: vec![], ..Options::default() };
        let statement = Notifiers::available(&options).statement();
        assert_eq!(statement.in_force().count(), 0);
        assert!(statement.lines.iter().all(|(_, s)| *s == State::Absent("switched off".into())));
    }

    #[test]
    fn what_is_taken_is_in_force_no_more() {
        let mut notifiers = Notifiers::available(&Options::default());
        let taken = notifiers.take(NotifierKind::GuardPage).unwrap();
        assert_eq!(taken.kind(), NotifierKind::GuardPage);
        assert!(notifiers.take(NotifierKind::GuardPage).is_none());
        assert!(notifiers.statement().in_force().all(|kind| kind != NotifierKind::GuardPage));
    }
}
