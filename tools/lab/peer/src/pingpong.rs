//! The peer of an unmodified `ibv_rc_pingpong` or `ibv_ud_pingpong`.
//!
//! The tools meet over TCP: the client says who it is in one line of fixed length
//! (`LID:QPN:PSN:GID`, in hexadecimal, with a NUL), the server answers with its own, the client
//! says `done`. Then the client sends, the server answers, and so on. Both tools receive into the
//! very buffer that they send from, so each message of theirs after the first of ours must be an
//! echo of it: every byte of every message is checked, in both directions.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};
use holdfast::{
    Access, AddressHandle, Completion, CompletionQueue, Datagram, Device, DeviceAddress, Memory,
    MemoryRegion, Path, Populate, QpType, QueuePair, QueuePairOptions, SendFlags, Source,
};

/// What to play.
#[derive(Debug, Args)]
pub struct Options {
    /// Connection or datagrams
    #[arg(value_enum)]
    kind: Kind,
    /// The NIC that Holdfast drives
    #[arg(long)]
    device: DeviceAddress,
    /// Wait for a client of the tool on this address
    #[arg(long, value_name = "HOST:PORT", required_unless_present = "connect")]
    listen: Option<String>,
    /// Be the client of a tool that waits there
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "listen")]
    connect: Option<String>,
    /// Bytes of a message, as the tool's -s
    #[arg(long, default_value_t = 1024)]
    size: usize,
    /// Messages each way, as the tool's -n
    #[arg(long, default_value_t = 200)]
    iters: u32,
}

/// Which tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// ibv_rc_pingpong
    Rc,
    /// ibv_ud_pingpong
    Ud,
}

/// Queue key of ibv_ud_pingpong.
const QKEY: u32 = 0x1111_1111;
/// Path MTU code that the tools use unless told otherwise: 1024 bytes.
const MTU: u32 = 3;
/// Bytes before a datagram's payload.
const GRH: usize = 40;
/// Length of the line, with its NUL.
const LINE: usize = 4 + 1 + 6 + 1 + 6 + 1 + 32 + 1;
/// The tools check the first byte of each page: it must be 0.
const PAGE: usize = 4096;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Who an end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    qpn: u32,
    psn: u32,
    gid: [u8; 16],
}

impl Identity {
    fn line(&self) -> [u8; LINE] {
        let gid: String = self.gid.iter().map(|byte| format!("{byte:02x}")).collect();
        let text = format!("{:04x}:{:06x}:{:06x}:{gid}", 0, self.qpn, self.psn);
        let mut line = [0; LINE];
        line[..text.len()].copy_from_slice(text.as_bytes());
        line
    }

    fn parse(line: &[u8; LINE]) -> Result<Self> {
        let text = std::str::from_utf8(&line[..LINE - 1])?;
        let mut fields = text.split(':');
        let mut field = || fields.next().with_context(|| format!("{text:?} lacks a field"));
        let _lid = field()?;
        let qpn = u32::from_str_radix(field()?, 16)?;
        let psn = u32::from_str_radix(field()?, 16)?;
        let gid = u128::from_str_radix(field()?, 16)?.to_be_bytes();
        Ok(Self { qpn, psn, gid })
    }
}

/// Plays the peer to the end.
pub fn run(options: &Options) -> Result<()> {
    let device = Device::open(&options.device)?;
    let mut player = Player::new(&device, options)?;
    let ours = player.identity(&device);
    let client = options.connect.is_some();
    let mut stream = meet(options)?;
    let theirs = if client {
        stream.write_all(&ours.line())?;
        let theirs = hear(&mut stream)?;
        player.connect(&theirs)?;
        stream.write_all(b"done\0")?;
        theirs
    } else {
        let theirs = hear(&mut stream)?;
        player.connect(&theirs)?;
        stream.write_all(&ours.line())?;
        let mut done = [0; 5];
        stream.read_exact(&mut done).context("the tool did not say that it is done")?;
        ensure!(&done == b"done\0", "the tool said {done:?}, not done");
        theirs
    };

    let start = Instant::now();
    for round in 0..options.iters {
        if client {
            player.send(round, &theirs)?;
            player.expect(&message(options.size, round), round)?;
        } else {
            // The first message has the tool's own contents; the others are echoes.
            let echo = (round > 0).then(|| message(options.size, round - 1));
            player.expect(&echo.unwrap_or_default(), round)?;
            player.send(round, &theirs)?;
        }
    }
    player.finish()?;
    let each = start.elapsed().as_secs_f64() * 1e6 / f64::from(options.iters);
    println!("{} round trips of {} bytes, {each:.1} us each", options.iters, options.size);
    // The tool closes its end when it has received everything.
    stream.set_read_timeout(Some(PATIENCE))?;
    let _ = stream.read(&mut [0]);
    Ok(())
}

/// What we send in a round.
fn message(size: usize, round: u32) -> Vec<u8> {
    let byte = |at: usize| {
        let mixed = (at as u32 ^ round.wrapping_mul(0x9e37_79b9)).wrapping_mul(2_654_435_761);
        if at.is_multiple_of(PAGE) { 0 } else { (mixed >> 24) as u8 }
    };
    (0..size).map(byte).collect()
}

fn meet(options: &Options) -> Result<TcpStream> {
    let stream = match (&options.connect, &options.listen) {
        (Some(address), _) => {
            TcpStream::connect(address).with_context(|| format!("nobody waits at {address}"))?
        }
        (None, Some(address)) => TcpListener::bind(address)?.accept()?.0,
        (None, None) => bail!("--listen or --connect"),
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn hear(stream: &mut TcpStream) -> Result<Identity> {
    let mut line = [0; LINE];
    stream.read_exact(&mut line).context("the tool did not say who it is")?;
    Identity::parse(&line)
}

/// Our side: a region whose first part is sent and whose second part is received into.
struct Player {
    handle: Option<AddressHandle>,
    qp: QueuePair,
    cq: CompletionQueue,
    region: MemoryRegion,
    domain: holdfast::ProtectionDomain,
    kind: Kind,
    size: usize,
    sends_open: u32,
    arrived: Option<u32>,
}

impl Player {
    fn new(device: &Device, options: &Options) -> Result<Self> {
        let domain = device.protection_domain()?;
        let bytes = 2 * (options.size + GRH);
        let memory = Memory::open(&Source::Memfd, bytes, Populate::Yes)?;
        let region = domain.register(memory, Access::LOCAL_WRITE)?;
        let cq = device.completion_queue(64)?;
        let (qp_type, qkey) = match options.kind {
            Kind::Rc => (QpType::Rc, 0),
            Kind::Ud => (QpType::Ud, QKEY),
        };
        let settings = QueuePairOptions {
            qp_type,
            qkey,
            psn: 0x12_3456,
            send_depth: 16,
            recv_depth: 16,
            ..Default::default()
        };
        let qp = domain.queue_pair(&settings, &cq, &cq)?;
        let mut player = Self {
            handle: None,
            qp,
            cq,
            region,
            domain,
            kind: options.kind,
            size: options.size,
            sends_open: 0,
            arrived: None,
        };
        player.receive()?;
        Ok(player)
    }

    fn identity(&self, device: &Device) -> Identity {
        let info = self.qp.info();
        Identity { qpn: info.qpn, psn: info.psn, gid: device.gid() }
    }

    fn connect(&mut self, theirs: &Identity) -> Result<()> {
        match self.kind {
            Kind::Rc => {
                let endpoint =
                    holdfast::connect::Endpoint { gid: theirs.gid, mtu: MTU, ..Default::default() };
                let info =
                    holdfast::connect::QueuePairInfo { qpn: theirs.qpn, psn: theirs.psn, qkey: 0 };
                Ok(self.qp.connect(&info, &endpoint)?)
            }
            Kind::Ud => {
                let path = Path::new(theirs.gid, 0);
                self.handle = Some(AddressHandle::new(self.domain.driver(), &path)?);
                Ok(self.qp.start_datagrams()?)
            }
        }
    }

    /// Bytes before the payload of what arrives.
    fn header(&self) -> usize {
        match self.kind {
            Kind::Rc => 0,
            Kind::Ud => GRH,
        }
    }

    fn receive(&mut self) -> Result<()> {
        let slice = self.region.slice(self.size, self.size + self.header())?;
        self.qp.receive(0, &[slice])?;
        self.qp.ring_receives();
        Ok(())
    }

    fn send(&mut self, round: u32, theirs: &Identity) -> Result<()> {
        // The message before must be out of the buffer.
        self.finish()?;
        self.region.memory().write_at(0, &message(self.size, round))?;
        let local = [self.region.slice(0, self.size)?];
        match &self.handle {
            None => self.qp.send(0, &local, SendFlags::SIGNALED)?,
            Some(to) => {
                let to = Datagram { to, qpn: theirs.qpn, qkey: QKEY };
                self.qp.send_datagram(0, &local, to, SendFlags::SIGNALED)?;
            }
        }
        self.qp.ring_sends();
        self.sends_open += 1;
        Ok(())
    }

    /// Waits for a message, which must be `expected` unless that is empty, and posts the next
    /// receive.
    fn expect(&mut self, expected: &[u8], round: u32) -> Result<()> {
        self.until("a message of the tool", |player| player.arrived.is_some())?;
        let len = self.arrived.take().unwrap_or_default() as usize;
        let header = self.header();
        ensure!(len == self.size + header, "round {round}: {len} bytes arrived");
        let mut found = vec![0; self.size];
        self.region.memory().read_at(self.size + header, &mut found)?;
        if !expected.is_empty() {
            let wrong = found.iter().zip(expected).position(|(a, b)| a != b);
            ensure!(wrong.is_none(), "round {round}: byte {wrong:?} is not what was sent");
        }
        self.receive()
    }

    /// Waits until all sends have completed.
    fn finish(&mut self) -> Result<()> {
        self.until("a send", |player| player.sends_open == 0)
    }

    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> Result<()> {
        let start = Instant::now();
        while !done(self) {
            let mut found = [Completion::default()];
            if self.cq.poll(&mut found)? == 0 {
                ensure!(start.elapsed() < PATIENCE, "waited in vain for {what}");
                std::thread::yield_now();
                continue;
            }
            let [completion] = found;
            ensure!(completion.is_success(), "{what} ended with {:?}", completion.status);
            if completion.is_receive() {
                self.arrived = Some(completion.byte_len);
            } else {
                self.sends_open -= 1;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_written_as_the_tools_read_it() {
        let mut gid = [0; 16];
        (gid[0], gid[1], gid[15]) = (0xfe, 0x80, 0x2a);
        let identity = Identity { qpn: 0x11, psn: 0xab_cdef, gid };
        let line = identity.line();
        assert_eq!(&line[..], b"0000:000011:abcdef:fe80000000000000000000000000002a\0");
        assert_eq!(Identity::parse(&line).unwrap(), identity);
    }

    #[test]
    fn a_line_of_something_else_is_refused() {
        for text in ["", "0000:000011", "0000:zz0011:abcdef:fe80000000000000000000000000002a"] {
            let mut line = [0; LINE];
            line[..text.len()].copy_from_slice(text.as_bytes());
            assert!(Identity::parse(&line).is_err(), "{text}");
        }
    }

    #[test]
    fn messages_differ_and_pass_the_tools_own_check() {
        let (one, other) = (message(9000, 1), message(9000, 2));
        let same = one.iter().zip(&other).filter(|(a, b)| a == b).count();
        assert!(same < 200, "{same} of 9000 bytes are the same in two rounds");
        assert_eq!([one[0], one[4096], one[8192]], [0; 3]);
    }
}
