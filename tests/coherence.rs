//! A region whose file changes under it: the device goes on, and the application is told. Here on
//! ordinary files and an emulated NIC, which any machine has; the lab's suites do the same on DAX
//! files behind the kernel's VFIO.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use holdfast::coherence::{
    Cause, Event, EventKind, Events, Guard, GuardOptions, NotifierKind, NotifierOptions, Part,
    Policy, RegionId,
};
use holdfast::{
    Access, Completion, CompletionQueue, Device, EmulatedNic, EmulatedOptions, Memory,
    MemoryRegion, Populate, ProtectionDomain, QueuePair, QueuePairOptions, Remote, SendFlags,
    Source, Status,
};
use nix::fcntl::{FallocateFlags, fallocate};

const PATIENCE: Duration = Duration::from_secs(20);
/// The unit in which memory is taken away.
const CHUNK: u64 = 2 << 20;
const LEN: u64 = 4 * CHUNK;

/// A file of four chunks, its guarded region, and a peer that writes it.
struct Bench {
    region: MemoryRegion,
    events: Events,
    file: File,
    path: PathBuf,
    qp: QueuePair,
    _peer: QueuePair,
    cq: CompletionQueue,
    source: MemoryRegion,
    guard: Guard,
    pd: ProtectionDomain,
    device: Device,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn new(policy: Policy) -> Self {
        // A file system that needs no guessing: what gets shorter was cut at its end.
        Self::on(tempfile::tempdir_in("/dev/shm").unwrap(), policy)
    }

    fn on(folder: tempfile::TempDir, policy: Policy) -> Self {
        Self::told_by(&NotifierKind::ALL, folder, policy)
    }

    fn told_by(kinds: &[NotifierKind], folder: tempfile::TempDir, policy: Policy) -> Self {
        let path = folder.path().join("region");
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        file.set_len(LEN).unwrap();
        let notifiers = NotifierOptions { kinds: kinds.to_vec(), ..Default::default() };
        let guard = Guard::start(GuardOptions { notifiers, ..Default::default() }).unwrap();
        let events = guard.events().unwrap();
        let device = EmulatedNic::start(EmulatedOptions::default()).unwrap().open(0).unwrap();
        let pd = device.protection_domain().unwrap();
        let memory = Memory::open(&Source::file(&path), 1, Populate::Yes).unwrap();
        let region = pd.register_guarded(memory, Access::ALL, &guard, policy).unwrap();
        let memory = Memory::open(&Source::Memfd, 4096, Populate::Yes).unwrap();
        let source = pd.register(memory, Access::ALL).unwrap();
        let cq = device.completion_queue(64).unwrap();
        let options = QueuePairOptions { send_depth: 8, recv_depth: 8, ..Default::default() };
        let mut qp = pd.queue_pair(&options, &cq, &cq).unwrap();
        let mut peer = pd.queue_pair(&options, &cq, &cq).unwrap();
        QueuePair::connect_pair(&mut qp, &mut peer).unwrap();
        let _folder = folder;
        Self { region, events, file, path, qp, _peer: peer, cq, source, guard, pd, device, _folder }
    }

    fn id(&self) -> RegionId {
        self.region.id().unwrap()
    }

    /// The peer writes 8 bytes; how that ended.
    fn write(&mut self, offset: u64, value: u64) -> Status {
        self.source.memory().write_at(0, &value.to_ne_bytes()).unwrap();
        let local = [self.source.slice(0, 8).unwrap()];
        let Remote { addr, rkey } =
            Remote { addr: self.region.remote().addr + offset, rkey: self.region.rkey() };
        self.qp.write(1, &local, Remote { addr, rkey }, SendFlags::SIGNALED).unwrap();
        self.qp.ring_sends();
        let mut done = [Completion::default()];
        let started = Instant::now();
        while self.cq.poll(&mut done).unwrap() == 0 {
            assert!(started.elapsed() < PATIENCE, "the write never completed");
            std::thread::yield_now();
        }
        done[0].status
    }

    fn in_file(&self, offset: u64) -> u64 {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, offset).unwrap();
        u64::from_ne_bytes(bytes)
    }

    /// The next event of this kind; those before it are dropped.
    fn expect(&self, kind: EventKind) -> Event {
        let started = Instant::now();
        while let Some(left) = PATIENCE.checked_sub(started.elapsed()) {
            match self.events.next_within(left) {
                Some(event) if event.kind == kind => return event,
                Some(_) => {}
                None => break,
            }
        }
        panic!("no event '{kind}' within {PATIENCE:?}");
    }

    fn expect_silence(&self) {
        let event = self.events.next_within(Duration::from_millis(300));
        assert_eq!(event, None, "nothing happened");
    }
}

fn part(start: u64, end: u64) -> Part {
    Part { start, end }
}

#[test]
fn a_cut_file_costs_its_peer_nothing_and_comes_back_when_it_grows() {
    let mut b = Bench::new(Policy::FOLLOW);
    assert_eq!(b.write(CHUNK, 1), Status::Success);
    assert_eq!(b.in_file(CHUNK), 1);

    b.file.set_len(2 * CHUNK).unwrap();
    let broken = b.expect(EventKind::Broken);
    assert_eq!((broken.region, broken.part), (b.id(), part(2 * CHUNK, LEN)), "and no more of it");
    assert_eq!(broken.cause, Cause::Truncate { size: 2 * CHUNK });
    assert!(broken.timing.is_some());
    let lost = b.expect(EventKind::Lost);
    assert_eq!(lost.part, part(2 * CHUNK, LEN));
    // What is left of the file is written, what is not is not, and both succeed.
    assert_eq!(b.write(CHUNK, 2), Status::Success);
    assert_eq!(b.write(3 * CHUNK, 3), Status::Success);
    assert_eq!(b.in_file(CHUNK), 2);
    assert_eq!(b.file.metadata().unwrap().len(), 2 * CHUNK);

    b.file.set_len(LEN).unwrap();
    let restored = b.expect(EventKind::Restored);
    assert_eq!(restored.part.end, LEN);
    assert_eq!(b.in_file(3 * CHUNK), 0, "what went to scrap is not in the file");
    assert_eq!(b.write(3 * CHUNK, 4), Status::Success);
    assert_eq!(b.in_file(3 * CHUNK), 4);
}

#[test]
fn the_chunk_with_a_punched_hole_is_exchanged_and_comes_back_with_the_hole() {
    let mut b = Bench::new(Policy::FOLLOW);
    assert_eq!(b.write(CHUNK, 1), Status::Success);
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let hole = part(CHUNK, CHUNK + (64 << 10));
    fallocate(b.file.as_fd(), punch, hole.start as i64, hole.len() as i64).unwrap();
    let broken = b.expect(EventKind::Broken);
    assert_eq!((broken.part, broken.cause), (part(CHUNK, 2 * CHUNK), Cause::PunchHole));
    assert_eq!(broken.named, Some(hole));
    assert_eq!(b.expect(EventKind::Restored).part, part(CHUNK, 2 * CHUNK));
    assert_eq!(b.in_file(CHUNK), 0, "what was in the hole is gone");
    let blocks = b.file.metadata().unwrap().blocks();
    assert_eq!(blocks, (LEN - hole.len()) / 512, "coming back did not fill the hole");
    assert_eq!(b.write(CHUNK, 2), Status::Success);
    assert_eq!(b.in_file(CHUNK), 2, "a write does");
}

#[test]
fn on_a_disk_file_that_gets_shorter_all_is_exchanged_for_blocks_may_have_moved() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut b = Bench::told_by(&[NotifierKind::Inotify], folder, Policy::FOLLOW);
    assert_eq!(b.write(0, 1), Status::Success);
    b.file.set_len(CHUNK).unwrap();
    assert_eq!(b.expect(EventKind::Broken).part, part(0, LEN));
    assert_eq!(b.expect(EventKind::Restored).part, part(0, CHUNK));
    assert_eq!(b.expect(EventKind::Lost).part, part(CHUNK, LEN));
    assert_eq!(b.write(8, 2), Status::Success);
    assert_eq!((b.in_file(0), b.in_file(8)), (1, 2));
}

#[test]
fn without_follow_a_part_stays_on_scrap() {
    let mut b = Bench::new(Policy::RETARGET);
    b.file.set_len(CHUNK).unwrap();
    assert_eq!(b.expect(EventKind::Broken).part, part(CHUNK, LEN));
    b.file.set_len(LEN).unwrap();
    b.expect_silence();
    assert_eq!(b.write(2 * CHUNK, 5), Status::Success);
    assert_eq!(b.in_file(2 * CHUNK), 0);
}

#[test]
fn a_revoked_region_is_unknown_to_the_device_and_can_still_be_given_back() {
    let mut b = Bench::new(Policy::REVOKE);
    assert_eq!(b.write(0, 1), Status::Success);
    b.file.set_len(0).unwrap();
    b.expect(EventKind::Broken);
    assert_eq!(b.write(0, 2), Status::RemoteAccess);
    let Bench { region, qp, .. } = b;
    drop(qp);
    region.deregister().unwrap();
}

#[test]
fn opening_with_o_trunc_is_told_whoever_does_it() {
    let mut b = Bench::new(Policy::FOLLOW);
    let done = std::process::Command::new("truncate").args(["-s", "0"]).arg(&b.path).status();
    assert!(done.unwrap().success());
    assert_eq!(b.expect(EventKind::Broken).part, part(0, LEN));
    b.file.set_len(LEN).unwrap();
    while b.expect(EventKind::Restored).part.end < LEN {}
    drop(OpenOptions::new().write(true).truncate(true).open(&b.path).unwrap());
    assert_eq!(b.expect(EventKind::Broken).part, part(0, LEN));
    assert_eq!(b.write(0, 9), Status::Success);
}

#[test]
fn what_changes_no_block_is_no_loss() {
    let mut b = Bench::new(Policy::FOLLOW);
    b.file.write_all_at(&[7; 4096], 100).unwrap();
    b.file.sync_all().unwrap();
    std::fs::rename(&b.path, b.path.with_extension("other")).unwrap();
    std::fs::remove_file(b.path.with_extension("other")).unwrap();
    b.expect_silence();
    assert_eq!(b.write(CHUNK, 6), Status::Success);
    assert_eq!(b.in_file(CHUNK), 6);
}

#[test]
fn two_regions_on_one_file_each_lose_their_own_part() {
    let b = Bench::new(Policy::FOLLOW);
    let source = Source::File { path: b.path.clone(), range: Some((3 * CHUNK, CHUNK)) };
    let memory = Memory::open(&source, 1, Populate::Yes).unwrap();
    let other = b.pd.register_guarded(memory, Access::ALL, &b.guard, Policy::FOLLOW).unwrap();
    b.file.set_len(3 * CHUNK).unwrap();
    let mut broken = [b.expect(EventKind::Broken), b.expect(EventKind::Broken)];
    broken.sort_by_key(|event| event.region);
    assert_eq!((broken[0].region, broken[0].part), (b.id(), part(3 * CHUNK, LEN)));
    assert_eq!((broken[1].region, broken[1].part), (other.id().unwrap(), part(0, CHUNK)));
}

#[test]
fn a_region_is_given_back_while_its_file_is_cut_again_and_again() {
    let b = Bench::new(Policy::FOLLOW);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let stopped = || stop.load(std::sync::atomic::Ordering::Relaxed);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stopped() {
                b.file.set_len(CHUNK).unwrap();
                b.file.set_len(LEN).unwrap();
            }
        });
        let before = b.device.address_space().mappings();
        for _ in 0..40 {
            let source = Source::File { path: b.path.clone(), range: Some((0, CHUNK)) };
            let memory = Memory::open(&source, 1, Populate::Yes).unwrap();
            let region = b.pd.register_guarded(memory, Access::ALL, &b.guard, Policy::FOLLOW);
            let memory = region.unwrap().deregister().unwrap();
            assert_eq!(memory.len() as u64, CHUNK);
        }
        assert!(b.device.address_space().mappings() >= before.min(2));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn memory_that_the_devices_process_cannot_map_is_refused_and_the_reason_told() {
    let b = Bench::new(Policy::FOLLOW);
    let memory = Memory::open(&Source::Anon, 4096, Populate::Yes).unwrap();
    let before = b.device.address_space().mappings();
    let error = b.pd.register_guarded(memory, Access::ALL, &b.guard, Policy::FOLLOW).unwrap_err();
    assert!(error.to_string().contains("use memfd"), "{error}");
    assert_eq!(b.device.address_space().mappings(), before, "and nothing stays behind");
}

#[test]
fn the_statement_says_of_every_notifier_whether_it_is_in_force() {
    let b = Bench::new(Policy::FOLLOW);
    let text = b.guard.statement().to_string();
    for kind in NotifierKind::ALL {
        assert!(text.contains(kind.name()), "{text}");
    }
    assert!(b.guard.statement().in_force().any(|kind| kind == NotifierKind::Inotify), "{text}");
}

/// Whoever registers a region and the guard's own thread put files back behind regions, of the same
/// file perhaps: one at a time.
#[test]
fn regions_come_while_others_of_their_file_come_back() {
    let b = Bench::new(Policy::FOLLOW);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mover = scope.spawn(|| {
            let mut moves = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                b.file.set_len(LEN / 2).unwrap();
                b.file.set_len(LEN).unwrap();
                moves += 1;
                std::thread::sleep(Duration::from_micros(200));
            }
            moves
        });
        let register = || {
            for _ in 0..40 {
                let memory = Memory::open(&Source::file(&b.path), 1, Populate::No).unwrap();
                match b.pd.register_guarded(memory, Access::ALL, &b.guard, Policy::FOLLOW) {
                    Ok(region) => drop(region),
                    Err(error) => {
                        let error = error.to_string();
                        assert!(error.contains("changes without pause"), "{error}");
                    }
                }
            }
        };
        let threads = [scope.spawn(register), scope.spawn(register)];
        let results = threads.map(|thread| thread.join());
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(mover.join().unwrap() > 0);
        results.into_iter().for_each(|result| result.unwrap());
    });
}

/// A notifier that looks afterwards may see the size that it knew: cut, grown and restored, and cut
/// again before it has looked.
#[test]
fn a_file_that_is_cut_as_soon_as_it_is_back_is_told_of_each_time() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let b = Bench::told_by(&[NotifierKind::Inotify], folder, Policy::FOLLOW);
    for _ in 0..400 {
        b.file.set_len(3 * CHUNK).unwrap();
        assert_eq!(b.expect(EventKind::Broken).part.end, LEN);
        b.file.set_len(LEN).unwrap();
        while b.expect(EventKind::Restored).part.end < LEN {}
    }
}
