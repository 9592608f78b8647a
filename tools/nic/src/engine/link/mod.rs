//! Links: the wire between engines in different processes, over a stream socket.
//!
//! Each side says hello and announces the GIDs of its NICs, then requests, replies and datagrams
//! travel as frames. The engine never blocks on a link: a reader thread decodes what
//! arrives into a short channel that the engine polls, and an outgoing queue is written as far as
//! the socket takes it; while it is full, queue pairs wait. Bytes of READs that may be under way
//! are limited per link, so that two engines that read from each other cannot fill both sockets
//! with answers that neither takes.
//!
//! A responder that must wait for a translation says Busy, and the requester sends the burst again;
//! the responder keeps no copy. A link that goes down takes its GIDs with it, and what was under
//! way ends with RetryExceeded. There are at most `MAX_LINKS` at a time; one that is down is
//! remembered, with the reason, until its place is needed. A link's id is never used again.

mod frame;
mod fuzz;
mod outbox;
mod reader;
mod socket;
mod traffic;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, bounded};
use serde::Serialize;

#[doc(hidden)]
pub use self::fuzz::fuzz_link_frames;
use self::outbox::Outbox;
use self::reader::Event;
pub use self::socket::Socket;
use super::config::LinkId;
use super::fabric::{Fabric, Route};
use super::gather::{self, Payload};
use super::packet::{Datagram, Request};

/// Most links at a time.
pub(crate) const MAX_LINKS: usize = 64;
/// Frames that wait between the reader and the engine.
const CHANNEL: usize = 64;
/// READ bytes that may be under way on one link.
const READ_CREDIT: u64 = 8 << 20;
/// How long a queue pair waits for room in a link's queue, in nanoseconds.
pub(crate) const FULL_WAIT: u64 = 20_000;
/// How long to wait for a socket that takes no more, in nanoseconds.
const SOCKET_WAIT: u64 = 50_000;

/// How a link is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LinkStatus {
    /// Links count from 0 in the order they were added, until there were 64; one that takes the
    /// place of one that is down has its id and 64.
    pub id: usize,
    /// The peer said hello and the link is not down.
    pub up: bool,
    /// Why it is down.
    pub down_reason: Option<String>,
    /// GIDs that the peer announced.
    pub gids: usize,
    /// Bytes written to the socket.
    pub bytes_sent: u64,
    /// Bytes taken from the socket.
    pub bytes_received: u64,
    /// Bytes that wait for the socket.
    pub queued: usize,
}

/// Why something was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unsent {
    /// The queue is full, or too many READs are under way.
    Full,
    /// The memory to send was gone.
    Gone,
}

struct Link {
    /// Its place, plus a multiple of [`MAX_LINKS`].
    id: usize,
    outbox: Outbox,
    events: Option<Receiver<Event>>,
    reader: Option<JoinHandle<()>>,
    bytes_received: Arc<AtomicU64>,
    up: bool,
    down_reason: Option<String>,
    /// Which one to go down it was; 0 while it is not.
    down_at: u64,
    /// READ bytes under way.
    reading: u64,
    /// It was told that the peer announced too many GIDs.
    surplus_told: bool,
}

/// Every link of an engine.
#[derive(Default)]
pub(crate) struct Links {
    links: Vec<Link>,
    /// The place of the link whose turn it is.
    turn: usize,
    /// How many went down.
    downs: u64,
}

impl Links {
    pub(crate) fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    pub(crate) fn add(
        &mut self,
        stream: Socket,
        waker: Box<dyn Fn() + Send>,
        fabric: &Fabric,
    ) -> io::Result<LinkId> {
        let (sender, events) = bounded(CHANNEL);
        let bytes_received = Arc::new(AtomicU64::new(0));
        let (theirs, count) = (stream.try_clone()?, bytes_received.clone());
        let mut outbox = Outbox::new(stream);
        frame::put_hello(&mut outbox.bytes);
        for gid in fabric.locals() {
            frame::put_gid(&mut outbox.bytes, gid, true);
        }
        let id = self.vacancy()?;
        let reader = std::thread::Builder::new()
            .name(format!("link-{id}"))
            .spawn(move || reader::run(theirs, sender, count, waker, reader::HELLO_WAIT))?;
        let link = Link {
            id,
            outbox,
            events: Some(events),
            reader: Some(reader),
            bytes_received,
            up: false,
            down_reason: None,
            down_at: 0,
            reading: 0,
            surplus_told: false,
        };
        match self.links.get_mut(id % MAX_LINKS) {
            Some(place) => *place = link,
            None => self.links.push(link),
        }
        Ok(LinkId(id))
    }

    /// The id of a next link: a new place, or that of the link which is down for the longest time.
    fn vacancy(&self) -> io::Result<usize> {
        if self.links.len() < MAX_LINKS {
            return Ok(self.links.len());
        }
        let down = self.links.iter().filter(|link| link.down_at != 0);
        let oldest = down.min_by_key(|link| link.down_at);
        let why = || io::Error::other(format!("all {MAX_LINKS} links are in use"));
        oldest.map(|link| link.id + MAX_LINKS).ok_or_else(why)
    }

    fn get(&mut self, id: usize) -> Option<&mut Link> {
        self.links.get_mut(id % MAX_LINKS).filter(|link| link.id == id)
    }

    /// The place of the link whose turn it is; then it is the next one's.
    fn next_slot(&mut self) -> usize {
        let slot = if self.turn < self.links.len() { self.turn } else { 0 };
        self.turn = slot + 1;
        slot
    }

    /// The peer said hello.
    fn greeted(&mut self, link: usize) {
        if let Some(link) = self.get(link) {
            link.up = true;
        }
    }

    /// The peer announced more GIDs than are remembered.
    #[cold]
    fn warn_of_surplus(&mut self, link: usize) {
        if let Some(link) = self.get(link)
            && !std::mem::replace(&mut link.surplus_told, true)
        {
            tracing::warn!(link = link.id, "the peer announced too many GIDs; some are ignored");
        }
    }

    /// Whether a reader has something for the engine.
    pub(crate) fn has_input(&self) -> bool {
        self.links.iter().any(|l| l.events.as_ref().is_some_and(|e| !e.is_empty()))
    }

    /// Writes what the sockets take. Gives the time to try again, if something is left.
    pub(crate) fn flush(&mut self, now: u64) -> Option<u64> {
        let mut left = false;
        for link in &mut self.links {
            if link.down_reason.is_none() && link.outbox.queued() > 0 {
                match link.outbox.flush() {
                    Ok(all) => left |= !all,
                    // The reader sees the end of the connection and tells why it is down.
                    Err(_) => link.outbox.shut(),
                }
            }
        }
        left.then(|| now.saturating_add(SOCKET_WAIT))
    }

    /// Tells every peer of a new GID.
    pub(crate) fn announce(&mut self, gid: u128) {
        self.tell(gid, true);
    }

    /// Tells every peer that a GID is gone.
    pub(crate) fn withdraw(&mut self, gid: u128) {
        self.tell(gid, false);
    }

    fn tell(&mut self, gid: u128, add: bool) {
        for link in self.links.iter_mut().filter(|l| l.down_reason.is_none()) {
            frame::put_gid(&mut link.outbox.bytes, gid, add);
        }
    }

    /// Queues a request; `credit` READ bytes will come back.
    pub(crate) fn send_request(
        &mut self,
        link: usize,
        req: &Request,
        payload: Payload<'_>,
        credit: u64,
    ) -> Result<(), Unsent> {
        let Some(link) = self.get(link) else { return Err(Unsent::Full) };
        let room = link.reading == 0 || link.reading + credit <= READ_CREDIT;
        if !link.outbox.has_room() || (credit > 0 && !room) {
            return Err(Unsent::Full);
        }
        let brings = if req.op.is_answered() { 0 } else { req.len as usize };
        let out = &mut link.outbox.bytes;
        let start = out.len();
        frame::put_request(out, req, brings);
        put_payload(out, start, payload)?;
        link.reading += credit;
        Ok(())
    }

    /// Queues a datagram.
    pub(crate) fn send_datagram(
        &mut self,
        link: usize,
        datagram: &Datagram,
        payload: Payload<'_>,
    ) -> Result<(), Unsent> {
        let Some(link) = self.get(link) else { return Err(Unsent::Full) };
        if !link.outbox.has_room() {
            return Err(Unsent::Full);
        }
        let out = &mut link.outbox.bytes;
        let start = out.len();
        frame::put_datagram(out, datagram);
        put_payload(out, start, payload)
    }

    /// READ bytes came, or will not come any more.
    pub(crate) fn return_credit(&mut self, route: Route, bytes: u64) {
        if let Route::Link(link) = route
            && let Some(link) = self.get(link)
        {
            link.reading = link.reading.saturating_sub(bytes);
        }
    }

    /// Cuts a link.
    pub(crate) fn close(&mut self, link: usize, why: &str) {
        let order = self.downs + 1;
        if let Some(link) = self.get(link)
            && link.down_at == 0
        {
            link.close(why);
            link.down_at = order;
            self.downs = order;
        }
    }

    pub(crate) fn status(&self, fabric: &Fabric) -> Vec<LinkStatus> {
        let each = self.links.iter().map(|link| LinkStatus {
            id: link.id,
            up: link.up,
            down_reason: link.down_reason.clone(),
            gids: fabric.learned(link.id),
            bytes_sent: link.outbox.total_written,
            bytes_received: link.bytes_received.load(Ordering::Relaxed),
            queued: link.outbox.queued(),
        });
        each.collect()
    }
}

/// Appends payload to a frame that begins at `start`; takes the frame back when its memory is gone.
fn put_payload(out: &mut Vec<u8>, start: usize, payload: Payload<'_>) -> Result<(), Unsent> {
    match payload {
        Payload::Bytes(bytes) => out.extend_from_slice(bytes),
        Payload::Spans(spans) => {
            if gather::append(spans, out).is_err() {
                out.truncate(start);
                return Err(Unsent::Gone);
            }
        }
    }
    Ok(())
}

impl Link {
    fn close(&mut self, why: &str) {
        self.up = false;
        self.reading = 0;
        self.down_reason.get_or_insert_with(|| why.to_owned());
        self.outbox.shut();
        // A reader that waits for room in the channel learns that nobody takes from it any more.
        self.events = None;
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        self.outbox.discard();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.close("the engine is gone");
    }
}
