//! One end of a connection, whatever drives its NIC: memory that the peer may reach, and a queue
//! pair to reach the peer's. What is asked of an end is written once and asked of both kinds.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long any completion may take: a guest without KVM on a busy machine is slow.
const PATIENCE: Duration = Duration::from_secs(20);
/// Requests that an end may have outstanding, and receives.
pub const DEPTH: u32 = 64;
/// Path MTU code of every connection: 1024 bytes.
pub const MTU: u32 = 3;

/// What the peer needs to know of an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Address {
    /// GID of its port.
    pub gid: [u8; 16],
    /// Its queue pair's number.
    pub qpn: u32,
    /// First packet sequence number it sends.
    pub psn: u32,
    /// Address of its memory's first byte.
    pub addr: u64,
    /// Key of its memory.
    pub rkey: u32,
}

/// What to do with the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Send,
    SendImm(u32),
    Write,
    WriteImm(u32),
    Read,
    CompareSwap { compare: u64, swap: u64 },
    FetchAdd { add: u64 },
}

/// One request, always signalled.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    pub operation: Operation,
    /// Offset in the end's own memory.
    pub local: usize,
    pub len: usize,
    /// Address in the peer's memory; means nothing to a send.
    pub addr: u64,
    pub rkey: u32,
}

/// How a request or a receive ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// 0 is success; the codes are those of `enum ibv_wc_status`, which the device uses too.
    pub status: u32,
    /// `enum ibv_wc_opcode`; 128 and 129 are receives.
    pub opcode: u32,
    pub len: u32,
    pub imm: Option<u32>,
}

/// `IBV_WC_RECV`: a message arrived in a receive.
pub const RECEIVED: u32 = 128;
/// `IBV_WC_RECV_RDMA_WITH_IMM`: a WRITE with immediate data used up a receive.
pub const RECEIVED_WRITE: u32 = 129;
/// `IBV_WC_REM_ACCESS_ERR`: the peer's NIC refused the key or the range.
pub const REMOTE_ACCESS: u32 = 10;

/// One end of a connection.
pub trait End {
    /// Who drives its NIC.
    fn driver(&self) -> &'static str;
    /// What the peer needs to know.
    fn address(&self) -> Address;
    /// Connects its queue pair; the peer must do the same.
    fn connect(&mut self, peer: &Address) -> Result<()>;
    /// Posts a request and shows it to the NIC.
    fn post(&mut self, request: &Request) -> Result<()>;
    /// Posts a receive into a range of its memory.
    fn receive(&mut self, offset: usize, len: usize) -> Result<()>;
    /// The next completion, if there is one.
    fn poll(&mut self) -> Result<Option<Done>>;
    /// Writes its memory.
    fn write_memory(&self, offset: usize, bytes: &[u8]) -> Result<()>;
    /// Reads its memory.
    fn read_memory(&self, offset: usize, bytes: &mut [u8]) -> Result<()>;

    /// The next completion, whatever it says.
    fn wait(&mut self) -> Result<Done> {
        let start = Instant::now();
        loop {
            if let Some(done) = self.poll()? {
                return Ok(done);
            }
            if start.elapsed() > PATIENCE {
                bail!("{}: no completion within {} s", self.driver(), PATIENCE.as_secs());
            }
            std::thread::yield_now();
        }
    }

    /// The next completion, which must be a success.
    fn wait_success(&mut self) -> Result<Done> {
        let done = self.wait()?;
        if done.status != 0 {
            bail!("{}: a request ended with status {}", self.driver(), done.status);
        }
        Ok(done)
    }
}
