//! The peer of an unmodified perftest: `ib_write_lat`, `ib_write_bw`, `ib_read_lat`, `ib_read_bw`,
//! `ib_atomic_lat`, `ib_send_lat` or `ib_send_bw`, as its server or as its client.
//!
//! The tools meet over TCP ([`handshake`]) and then play their game on the queue pair ([`play`]).
//! Given `--payload_file_path` with what `lab-peer perftest-payload` prints, they fill their
//! buffers with bytes that we know ([`payload`]), so what comes from them is compared, byte for
//! byte. What goes to them they do not look at, except for the byte that `ib_write_lat` waits for;
//! `ib_read_*` as our reader sees our bytes and says nothing of them.

mod handshake;
mod play;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use holdfast::DeviceAddress;

use crate::end::End;
use crate::holdfast_end::HoldfastEnd;
use handshake::Talk;
use play::Game;

/// What to play.
#[derive(Debug, Args)]
pub struct Options {
    /// Which tool the peer runs
    #[arg(value_enum)]
    tool: Tool,
    /// The NIC that Holdfast drives
    #[arg(long)]
    device: DeviceAddress,
    /// Be the server of a tool that connects to this address
    #[arg(long, value_name = "HOST:PORT", required_unless_present = "connect")]
    listen: Option<String>,
    /// Be the client of a tool that waits there
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "listen")]
    connect: Option<String>,
    /// Bytes of a message, as the tool's -s; 8 for atomics
    #[arg(long, default_value_t = 8)]
    size: usize,
    /// Messages, as the tool's -n
    #[arg(long, default_value_t = 200)]
    iters: u32,
}

/// The tools that can be met, by their names without `ib_`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Tool {
    WriteLat,
    WriteBw,
    ReadLat,
    ReadBw,
    AtomicLat,
    SendLat,
    SendBw,
}

/// How the tools of a test meet and part, in exchanges of addresses.
struct Manners {
    /// Before the queue pairs are connected.
    before: u32,
    /// After that.
    after: u32,
    /// At the end, when all is done.
    end: u32,
    /// Whether the reports on bandwidth are exchanged after the first of those.
    reports: bool,
}

impl Tool {
    fn manners(self) -> Manners {
        let (before, after, end, reports) = match self {
            Tool::WriteLat => (2, 2, 0, false),
            Tool::ReadLat | Tool::AtomicLat => (2, 2, 1, false),
            Tool::WriteBw | Tool::ReadBw => (1, 2, 2, true),
            Tool::SendLat | Tool::SendBw => (1, 3, 1, false),
        };
        Manners { before, after, end, reports }
    }
}

/// Plays the peer to the end.
pub fn run(options: &Options) -> Result<()> {
    let mut end = HoldfastEnd::open(&options.device, play::MEMORY)?;
    let talk = match (&options.connect, &options.listen) {
        (Some(address), _) => Talk::connect(address)?,
        (None, Some(address)) => Talk::listen(address)?,
        (None, None) => unreachable!("clap asks for one of them"),
    };
    meet(&mut end, talk, options.tool, options.size, options.iters)?;
    let (tool, iters, size) = (options.tool, options.iters, options.size);
    println!("{tool:?}: {iters} messages of {size} bytes");
    Ok(())
}

fn meet(end: &mut dyn End, mut talk: Talk, tool: Tool, size: usize, iters: u32) -> Result<()> {
    ensure!(size > 0 && size <= play::LARGEST, "messages of 1 to {} bytes", play::LARGEST);
    ensure!(tool != Tool::AtomicLat || size == 8, "atomics are 8 bytes");
    talk.introduce()?;
    let mut ours = end.address();
    ours.addr += play::TARGET as u64;
    let manners = tool.manners();
    let mut theirs = talk.address(&ours)?;
    for _ in 1..manners.before {
        theirs = talk.address(&ours)?;
    }
    let mut game = Game { end, theirs, size, iters, first: talk.is_client() };
    game.set_up(tool)?;
    game.end.connect(&theirs)?;
    for _ in 0..manners.after {
        talk.address(&ours)?;
    }
    game.play(tool)?;
    for number in 0..manners.end {
        talk.address(&ours)?;
        if number == 0 && manners.reports {
            talk.reports()?;
        }
    }
    game.look_back(tool)?;
    // Our memory and queue pair stay until the tool has left.
    talk.until_closed()
}

/// The bytes with which the tool fills its buffers for messages of this size.
fn payload(size: usize) -> Vec<u8> {
    (0..size.div_ceil(4)).flat_map(|index| word(index).to_le_bytes()).take(size).collect()
}

/// A word of it, different from its neighbours and from those a page away.
fn word(index: usize) -> u32 {
    (index as u32 + 1).wrapping_mul(0x9e37_79b1)
}

/// The file for `--payload_file_path`: hexadecimal words, as many as the largest message has.
pub fn payload_file() -> String {
    let words = (0..play::LARGEST / 4).map(|index| format!("{:#010x}", word(index)));
    words.collect::<Vec<_>>().join(",") + "\n"
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use holdfast::{Device, EmulatedNic, EmulatedOptions};

    use super::*;

    #[test]
    fn the_payload_file_says_the_payload_as_the_tools_read_it() {
        let file = payload_file();
        assert!(file.starts_with("0x9e3779b1,0x3c6ef362,"), "{}", &file[..40]);
        assert_eq!(file.trim_end().split(',').count() * 4, play::LARGEST);
        assert!(file.trim_end().split(',').all(|word| word.len() == 10));
        assert_eq!(payload(6), [0xb1, 0x79, 0x37, 0x9e, 0x62, 0xf3]);
    }

    /// Our server and our client, each in the place of the tool, with the tool's payload in their
    /// memory. (Our own servers of atomics start to count elsewhere.)
    #[test]
    fn our_server_and_our_client_play_with_each_other() {
        let options = EmulatedOptions { nics: 2, ..Default::default() };
        let nics = EmulatedNic::start(options).unwrap();
        let end = |device: Device| {
            HoldfastEnd::new(&device, &device.protection_domain().unwrap(), play::MEMORY).unwrap()
        };
        for tool in Tool::value_variants().iter().copied().filter(|&t| t != Tool::AtomicLat) {
            let (mut a, mut b) = (end(nics.open(0).unwrap()), end(nics.open(1).unwrap()));
            for end in [&a, &b] {
                end.write_memory(play::TARGET, &payload(8)).unwrap();
            }
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap().to_string();
            std::thread::scope(|scope| {
                let server = scope.spawn(move || {
                    let talk = Talk::accept(&listener).unwrap();
                    meet(&mut a, talk, tool, 8, 300)
                });
                let talk = Talk::connect(&address).unwrap();
                let client = meet(&mut b, talk, tool, 8, 300);
                client.and(server.join().unwrap()).unwrap_or_else(|e| panic!("{tool:?}: {e:#}"));
            });
        }
    }
}
