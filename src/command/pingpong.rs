//! `holdfast pingpong`: messages back and forth between two endpoints, every payload verified.

use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use holdfast::{SendFlags, Source};
use serde::Serialize;

use super::endpoints::{End, EndpointOptions, LARGEST_MESSAGE, Session, Shape, wait_for};
use super::histogram::{human_bytes, human_ns};
use super::patience::Patience;
use super::{EXIT_FAILED, Usage, interrupt, parse, print};

/// Receives that each end keeps posted.
const DEPTH: u32 = 8;

const EXAMPLES: &str = "\
Examples:
  holdfast pingpong                             1000 messages of 4 KiB each way, emulated NICs
  holdfast pingpong --size 1M --iters 100
  holdfast pingpong --region /data/scratch:0+1M the answering end's buffers are part of a file,
                                                which is overwritten

Two processes, on two NICs of one 'holdfast nic':
  holdfast pingpong --device vfio-user:/tmp/a.sock --server 127.0.0.1:18515
  holdfast pingpong --device vfio-user:/tmp/b.sock --connect 127.0.0.1:18515";

/// Arguments of `holdfast pingpong`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct PingpongOptions {
    #[command(flatten)]
    endpoints: EndpointOptions,

    /// Bytes of each message, K and M allowed
    #[arg(long, default_value = "4K", value_parser = parse::size)]
    size: usize,

    /// Messages each way
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    iters: u64,

    /// Memory of the answering end, which is overwritten: memfd, hugetlb, anon or [fsdax:]FILE[:OFFSET+LEN]
    #[arg(long, default_value = "memfd", value_name = "SOURCE")]
    region: Source,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Outcome {
    op: &'static str,
    size: usize,
    iters: u64,
    device: String,
    /// Messages that arrived with a wrong byte or a wrong length.
    errors: u64,
    seconds: f64,
    round_trip_ns: f64,
}

/// Runs the exchange.
pub fn run(options: &PingpongOptions) -> anyhow::Result<ExitCode> {
    options.endpoints.check()?;
    if options.size > LARGEST_MESSAGE {
        return Err(Usage::error(format!(
            "--size {}: a buffer to send from and one to receive into share a memory region of at \
             most 1 GiB; give at most 512M",
            options.size
        )));
    }
    let placement = options.endpoints.device.placement();
    let shape = Shape {
        purpose: format!("pingpong size {} iters {}", options.size, options.iters),
        bytes: 2 * stride(options.size),
        region: options.region.clone(),
        qps: 1,
        send_depth: DEPTH,
        recv_depth: DEPTH,
        inline: 0,
        one_sided: None,
        guard: None,
    };
    let mut session = Session::start(&options.endpoints, placement, &shape)?;
    let mut watch = session.watch();
    for end in session.active.iter_mut().chain(&mut session.passive) {
        for _ in 0..DEPTH {
            receive(end, options.size)?;
        }
    }
    session.line_up("ready", std::time::Duration::ZERO)?;

    let (mut errors, mut bytes) = (0, vec![0; options.size]);
    let started = Instant::now();
    for round in 0..options.iters {
        interrupt::check()?;
        if let Some(active) = &mut session.active {
            send(active, 2 * round, &mut bytes, &mut watch)?;
        }
        if let Some(passive) = &mut session.passive {
            errors += u64::from(!arrives(passive, 2 * round, &mut bytes, &mut watch)?);
            send(passive, 2 * round + 1, &mut bytes, &mut watch)?;
        }
        if let Some(active) = &mut session.active {
            errors += u64::from(!arrives(active, 2 * round + 1, &mut bytes, &mut watch)?);
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    session.line_up("done", std::time::Duration::ZERO)?;
    drop(session);
    let outcome = Outcome {
        op: "pingpong",
        size: options.size,
        iters: options.iters,
        device: options.endpoints.device.name(),
        errors,
        seconds,
        round_trip_ns: seconds * 1e9 / options.iters as f64,
    };
    if options.json {
        print(format_args!("{}\n", serde_json::to_string_pretty(&outcome)?))?;
    } else {
        print(format_args!(
            "{} messages of {} each way on {}: {} wrong; {} for a round trip, verified\n",
            outcome.iters,
            human_bytes(outcome.size as u64),
            outcome.device,
            outcome.errors,
            human_ns(outcome.round_trip_ns)
        ))?;
    }
    Ok(if errors == 0 { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAILED) })
}

/// Bytes of one buffer: the sending one comes first, then the receiving one.
fn stride(size: usize) -> usize {
    size.next_multiple_of(64).max(64)
}

fn receive(end: &mut End, size: usize) -> anyhow::Result<()> {
    let End { qps, region, .. } = end;
    qps[0].receive(0, &[region.slice(stride(size), size)?])?;
    qps[0].ring_receives();
    Ok(())
}

fn send(end: &mut End, message: u64, bytes: &mut [u8], watch: &mut Patience) -> anyhow::Result<()> {
    fill(message, bytes);
    let End { qps, region, send_cq, .. } = end;
    region.memory().write_at(0, bytes)?;
    qps[0].send(message, &[region.slice(0, bytes.len())?], SendFlags::SIGNALED)?;
    qps[0].ring_sends();
    wait_for(send_cq, watch, "the completion of a send")?;
    Ok(())
}

/// Waits for a message and says whether it came out right.
fn arrives(
    end: &mut End,
    message: u64,
    bytes: &mut [u8],
    watch: &mut Patience,
) -> anyhow::Result<bool> {
    let completion = wait_for(&mut end.recv_cq, watch, "a message")?;
    let size = bytes.len();
    end.region.memory().read_at(stride(size), bytes)?;
    let right = completion.byte_len as usize == size && is(message, bytes);
    // Wiped, so that a message that never arrives cannot pass for the one before.
    end.region.memory().fill(stride(size), size, 0)?;
    receive(end, size)?;
    Ok(right)
}

/// The payload of a message: words of a generator that starts with its number (splitmix64).
fn words(message: u64) -> impl Iterator<Item = [u8; 8]> {
    let mut state = message.wrapping_mul(0xd134_2543_de82_ef95);
    std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31).to_le_bytes()
    })
}

pub(super) fn fill(message: u64, bytes: &mut [u8]) {
    for (chunk, word) in bytes.chunks_mut(8).zip(words(message)) {
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
}

pub(super) fn is(message: u64, bytes: &[u8]) -> bool {
    bytes.chunks(8).zip(words(message)).all(|(chunk, word)| chunk == &word[..chunk.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_recognised_and_no_other() {
        for size in [0, 1, 7, 8, 9, 4097] {
            let mut bytes = vec![0; size];
            fill(5, &mut bytes);
            assert!(is(5, &bytes), "{size}");
            assert_eq!(is(6, &bytes), size == 0, "{size}");
            if let Some(last) = bytes.last_mut() {
                *last ^= 1;
                assert!(!is(5, &bytes), "{size}");
            }
        }
    }
}
