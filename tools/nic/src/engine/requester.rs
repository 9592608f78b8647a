//! In progress.
use super::{Budget, Engine};
use super::host::Host;
use super::sched::QpRef;
#[derive(Default)]
pub(crate) struct Scratch {}
impl<H: Host> Engine<H> {
    pub(super) fn run(&mut self, _at: QpRef, _now: u64, _budget: &mut Budget) {}
    pub(super) fn run_links(&mut self, _now: u64, _budget: &mut Budget) -> bool { false }
}
