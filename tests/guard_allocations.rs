//! From the news of an operation to scrap, the guard's thread allocates nothing: what it waits for
//! must not be the very memory that is short. Every call of the allocator by that thread is counted,
//! and each break of the file makes it walk its whole path.

use std::fs::OpenOptions;
use std::time::Duration;

use holdfast::coherence::{
    EventKind, Events, Guard, GuardOptions, NotifierKind, NotifierOptions, Policy,
};
use holdfast::{Access, EmulatedNic, EmulatedOptions, Memory, Populate, Source};
use holdfast_lab_check::allocations::{self, CountingAllocator};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn expect(events: &Events, kind: EventKind) {
    while events.next_within(Duration::from_secs(30)).expect("an event").kind != kind {}
}

#[test]
fn from_the_news_to_scrap_nothing_is_allocated() {
    const LEN: u64 = 8 << 20;
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = folder.path().join("region");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    file.set_len(LEN).unwrap();
    let kinds = vec![NotifierKind::Inotify];
    let notifiers = NotifierOptions { kinds, ..Default::default() };
    let guard = Guard::start(GuardOptions { notifiers, ..Default::default() }).unwrap();
    let events = guard.events().unwrap();
    let nic = EmulatedNic::start(EmulatedOptions::default()).unwrap();
    let pd = nic.open(0).unwrap().protection_domain().unwrap();
    let memory = Memory::open(&Source::file(&path), 1, Populate::Yes).unwrap();
    let _region = pd.register_guarded(memory, Access::ALL, &guard, Policy::FOLLOW).unwrap();
    let round = || {
        file.set_len(LEN / 2).unwrap();
        expect(&events, EventKind::Broken);
        file.set_len(LEN).unwrap();
        expect(&events, EventKind::Restored);
    };
    // Lists find their sizes.
    (0..20).for_each(|_| round());
    assert!(allocations::watch_thread("holdfast-guard"));
    (0..50).for_each(|_| round());
    assert_eq!(allocations::calls(), 0, "calls of the allocator by the guard's thread");
}
