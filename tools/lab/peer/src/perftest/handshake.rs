//! How two perftests meet: over TCP, in messages of fixed length, the client always first.
//!
//! First the version (16 bytes), the page and cache line sizes (4 bytes each, network order) and
//! the path MTU code (a digit and a NUL); then, several times over, each side's address in one
//! line: LID, reads under way, queue pair, PSN, key, memory, the 16 bytes of the GID and the
//! number of a shared receive queue, in hexadecimal with colons between. (perftest 24.10:
//! `exchange_versions`, `check_sys_data`, `check_mtu` and `ethernet_write_keys` in
//! perftest_communication.c.)

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::play::{CACHE_LINE, PAGE};
use crate::end::{Address, MTU};

/// The version that we claim: old enough that perftest 6.28 and later do not compare their whole
/// command lines with ours, new enough that none refuses it.
const VERSION: &[u8; 16] = b"6.00\0\0\0\0\0\0\0\0\0\0\0\0";
/// Length of an address, with its NUL.
const LINE: usize = 108;
/// Reads and atomics that the tool may have under way with us.
const READS: u32 = 1;
/// How long the other side may take; it tests for that long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A conversation with a tool.
pub struct Talk {
    stream: TcpStream,
    client: bool,
}

impl Talk {
    /// Meets a tool that waits for its client.
    pub fn connect(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address);
        Self::new(stream.with_context(|| format!("nobody waits at {address}"))?, true)
    }

    /// Waits for a tool that looks for its server.
    pub fn listen(address: &str) -> Result<Self> {
        Self::accept(&TcpListener::bind(address)?)
    }

    /// The same, on a socket that listens already.
    pub fn accept(listener: &TcpListener) -> Result<Self> {
        Self::new(listener.accept()?.0, false)
    }

    fn new(stream: TcpStream, client: bool) -> Result<Self> {
        // The tools take what one read gives them for the whole message.
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream, client })
    }

    /// Whether we are the client.
    pub fn is_client(&self) -> bool {
        self.client
    }

    /// Says something and hears as much.
    fn swap<const N: usize>(&mut self, ours: &[u8; N], what: &str) -> Result<[u8; N]> {
        let mut theirs = [0; N];
        if self.client {
            self.stream.write_all(ours)?;
        }
        self.stream.read_exact(&mut theirs).with_context(|| format!("the tool sent no {what}"))?;
        if !self.client {
            self.stream.write_all(ours)?;
        }
        Ok(theirs)
    }

    /// Everything up to the addresses.
    pub fn introduce(&mut self) -> Result<()> {
        let version = self.swap(VERSION, "version")?;
        ensure!(version[0].is_ascii_digit(), "the tool's version is {version:?}");
        // Both sides use the larger ones.
        self.swap(&(PAGE as u32).to_be_bytes(), "page size")?;
        self.swap(&(CACHE_LINE as u32).to_be_bytes(), "cache line size")?;
        // Both sides use the smaller one.
        let mtu = self.swap(&[b'0' + MTU as u8, 0], "path MTU")?;
        ensure!(u32::from(mtu[0] - b'0') >= MTU, "the tool's path MTU code is {mtu:?}, below ours");
        Ok(())
    }

    /// Tells our address and hears the tool's.
    pub fn address(&mut self, ours: &Address) -> Result<Address> {
        let line = self.swap(&write(ours), "address")?;
        read(&line).with_context(|| format!("no address: {}", String::from_utf8_lossy(&line)))
    }

    /// The figures of a bandwidth test; ours are not asked for.
    pub fn reports(&mut self) -> Result<()> {
        for what in ["size", "count", "peak", "average", "rate"] {
            self.swap(&[0; 8], what)?;
        }
        Ok(())
    }

    /// Waits until the tool has left.
    pub fn until_closed(mut self) -> Result<()> {
        self.stream.shutdown(std::net::Shutdown::Write)?;
        let more = self.stream.read(&mut [0]).unwrap_or(0);
        ensure!(more == 0, "the tool has more to say");
        Ok(())
    }
}

fn write(address: &Address) -> [u8; LINE] {
    let Address { gid, qpn, psn, addr, rkey } = address;
    let gid = gid.map(|byte| format!("{byte:02x}")).join(":");
    let text =
        format!("0000:{READS:04x}:{qpn:06x}:{psn:06x}:{rkey:08x}:{addr:016x}:{gid}:00000000:");
    let mut line = [0; LINE];
    line[..text.len()].copy_from_slice(text.as_bytes());
    line
}

fn read(line: &[u8; LINE]) -> Result<Address> {
    let text = std::str::from_utf8(line)?;
    let mut fields = text.split(':').map(|field| u64::from_str_radix(field, 16));
    let mut next = || fields.next().context("too short")?.context("not a number");
    let (_lid, _reads) = (next()?, next()?);
    let (qpn, psn, rkey) = (next()?.try_into()?, next()?.try_into()?, next()?.try_into()?);
    let addr = next()?;
    let mut gid = [0; 16];
    for byte in &mut gid {
        *byte = next()?.try_into()?;
    }
    Ok(Address { gid, qpn, psn, addr, rkey })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_as_perftest_reads_it() {
        let mut gid = [0; 16];
        (gid[0], gid[1], gid[15]) = (0xfe, 0x80, 0x2a);
        let address =
            Address { gid, qpn: 0x11, psn: 0xab_cdef, addr: 0x7f00_1234_5000, rkey: 0x81 };
        let line = write(&address);
        let text = "0000:0001:000011:abcdef:00000081:00007f0012345000:\
                    fe:80:00:00:00:00:00:00:00:00:00:00:00:00:00:2a:00000000:\0";
        assert_eq!(std::str::from_utf8(&line).unwrap(), text);
        assert_eq!(read(&line).unwrap(), address);
    }

    #[test]
    fn a_line_of_something_else_is_refused() {
        for text in ["", "0000:0001:000011", "0000:0001:zz0011:abcdef:0:0:0:0:0:0:0:0:0:0:0:0:0:0"]
        {
            let mut line = [0; LINE];
            line[..text.len()].copy_from_slice(text.as_bytes());
            assert!(read(&line).is_err(), "{text}");
        }
    }
}
