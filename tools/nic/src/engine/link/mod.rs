//! In progress.
use std::io;
use std::os::unix::net::UnixStream;
use super::config::LinkId;
use super::fabric::{Fabric, Route};
/// How a link is.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LinkStatus {
    /// Which.
    pub id: usize,
    /// Handshake done, and not down.
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
#[derive(Default)]
pub(crate) struct Links {}
impl Links {
    pub(crate) fn is_empty(&self) -> bool { true }
    pub(crate) fn has_input(&self) -> bool { false }
    pub(crate) fn flush(&mut self, _now: u64) -> Option<u64> { None }
    pub(crate) fn announce(&mut self, _gid: u128) {}
    pub(crate) fn withdraw(&mut self, _gid: u128) {}
    pub(crate) fn return_credit(&mut self, _route: Route, _bytes: u64) {}
    pub(crate) fn add(&mut self, _s: UnixStream, _w: Box<dyn Fn() + Send>, _f: &Fabric) -> io::Result<LinkId> { Err(io::ErrorKind::Unsupported.into()) }
    pub(crate) fn close(&mut self, _link: usize, _why: &str) {}
    pub(crate) fn status(&self, _f: &Fabric) -> Vec<LinkStatus> { Vec::new() }
}
