//! The control socket: what the NICs counted, as JSON; and a way to take a NIC away.
//!
//! A client sends a line and gets one JSON object on a line of its own; `nc -U PATH` will do.
//!
//! | line | answer |
//! |---|---|
//! | `counters` | everything the engine and the fronts counted, per NIC |
//! | `state` | clients, queue pairs and mappings per NIC, and how the processor fares |
//! | `unplug N` | NIC N is as a card that was pulled, for good: it forgets everything, and all reads give ones |
//!
//! Anything else is answered with an object that has an `error`. Each client has a thread, at most
//! [`MAX_CLIENTS`] at a time; one that is silent for a minute is dropped.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::processor::Report;
use crate::server::{Listener, ServerError, Shutdown};

/// Most clients at a time; further ones are turned away.
pub const MAX_CLIENTS: usize = 16;
/// Longest request line in bytes.
const MAX_LINE: u64 = 256;
/// How long a client may be silent.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks the processor; `None` when it has ended.
pub(crate) type Ask = Arc<dyn Fn() -> Option<Report> + Send + Sync>;

/// Pulls a NIC; `None` when there is no such NIC.
pub(crate) type Unplug = Arc<dyn Fn(usize) -> Option<()> + Send + Sync>;

/// What the control socket reaches.
#[derive(Clone)]
pub(crate) struct Subject {
    pub ask: Ask,
    pub unplug: Unplug,
}

/// Serves control clients until `shutdown` is triggered.
pub(crate) fn serve(
    listener: &Listener,
    subject: &Subject,
    shutdown: &Shutdown,
) -> Result<(), ServerError> {
    let clients = Arc::new(AtomicUsize::new(0));
    while let Some(stream) = listener.accept(shutdown)? {
        if clients.fetch_add(1, Ordering::Relaxed) >= MAX_CLIENTS {
            clients.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (subject, count) = (subject.clone(), clients.clone());
        // Detached: it holds nothing but its socket, and ends with it or with its patience.
        let started =
            std::thread::Builder::new().name("nic-control-client".into()).spawn(move || {
                if let Err(error) = converse(&stream, &subject) {
                    tracing::debug!(%error, "a control client left");
                }
                count.fetch_sub(1, Ordering::Relaxed);
            });
        if started.is_err() {
            clients.fetch_sub(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

fn converse(stream: &UnixStream, subject: &Subject) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut input = BufReader::new(stream);
    let mut output = stream;
    let mut line = String::new();
    loop {
        line.clear();
        if input.by_ref().take(MAX_LINE).read_line(&mut line)? == 0 {
            return Ok(());
        }
        if !line.ends_with('\n') && line.len() as u64 == MAX_LINE {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        let mut answer = answer(line.trim(), subject).to_string();
        answer.push('\n');
        output.write_all(answer.as_bytes())?;
    }
}

fn answer(request: &str, subject: &Subject) -> Value {
    if let Some(number) = request.strip_prefix("unplug ") {
        return match number.parse().ok().and_then(|nic| (subject.unplug)(nic)) {
            Some(()) => json!({ "unplugged": number }),
            None => json!({ "error": format!("no NIC {number}") }),
        };
    }
    match request {
        "counters" | "state" => match (subject.ask)() {
            None => json!({ "error": "the NIC's processor has ended" }),
            Some(report) if request == "counters" => json!(report),
            Some(report) => state(&report),
        },
        _ => json!({ "error": "unknown request", "requests": ["counters", "state", "unplug N"] }),
    }
}

fn state(report: &Report) -> Value {
    let nics: Vec<Value> = report
        .nics
        .iter()
        .map(|nic| {
            json!({
                "connected": nic.connected,
                "queue_pairs": nic.queue_pairs,
                "mappings": nic.mappings,
                "mapped_bytes": nic.mapped_bytes,
            })
        })
        .collect();
    json!({ "nics": nics, "turns": report.turns, "sleeps": report.sleeps })
}
