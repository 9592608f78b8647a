//! The games of perftest, from our side of the table (perftest 24.10: `run_iter_lat_write`,
//! `run_iter_lat_send`, `run_iter_lat`, `run_iter_bw` and `run_iter_bw_server` in
//! perftest_resources.c).

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{Tool, payload};
use crate::end::{Address, Done, End, Operation, RECEIVED, Request};

/// Bytes of our memory.
pub const MEMORY: usize = 1 << 20;
/// Where messages come from, in our memory.
const SOURCE: usize = 0;
/// Where the peer's messages land, what it reads and what it counts in.
pub const TARGET: usize = MEMORY / 2;
/// The largest message.
pub const LARGEST: usize = 64 << 10;
/// The page and the cache line that are agreed with the tool.
pub const PAGE: usize = 4096;
pub const CACHE_LINE: usize = 64;
/// Bytes looked at on either side of a target, and what lies there.
const GUARD: usize = 64;
const UNTOUCHED: u8 = 0xa5;
/// Requests under way, and receives posted, where there are many.
const WINDOW: u32 = 32;
/// Where counting starts when the tool counts in our memory.
const START: u64 = 0x1111_2222_3333_4444;
/// How long to wait for a message.
const PATIENCE: Duration = Duration::from_secs(20);

/// A test under way.
pub struct Game<'a> {
    pub end: &'a mut dyn End,
    pub theirs: Address,
    pub size: usize,
    pub iters: u32,
    /// Whether we are the client.
    pub first: bool,
}

impl Game<'_> {
    /// What must be there before the peer may start.
    pub fn set_up(&mut self, tool: Tool) -> Result<()> {
        match tool {
            Tool::SendLat => self.receive(1),
            Tool::SendBw if !self.first => self.receive(WINDOW.min(self.iters)),
            Tool::AtomicLat if !self.first => self.end.write_memory(TARGET, &START.to_ne_bytes()),
            Tool::WriteLat | Tool::WriteBw => {
                self.end.write_memory(TARGET - GUARD, &vec![UNTOUCHED; LARGEST + 2 * GUARD])?;
                if tool == Tool::WriteLat {
                    // The tool counts from 1 in the last byte of each message.
                    self.end.write_memory(TARGET + self.size - 1, &[0])?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Plays it.
    pub fn play(&mut self, tool: Tool) -> Result<()> {
        match (tool, self.first) {
            (Tool::WriteLat, _) => self.write_lat(),
            (Tool::SendLat, _) => self.send_lat(),
            (Tool::AtomicLat, true) => self.atomics(),
            (Tool::ReadLat, true) => self.reads(1),
            (Tool::ReadBw, true) => self.reads(WINDOW),
            (Tool::WriteBw, true) => self.stream(Operation::Write),
            (Tool::SendBw, true) => self.stream(Operation::Send),
            (Tool::SendBw, false) => self.receive_all(),
            // The peer does it all.
            (Tool::AtomicLat | Tool::ReadLat | Tool::ReadBw | Tool::WriteBw, false) => Ok(()),
        }
    }

    /// What the peer did to our memory, now that it says that it is done.
    pub fn look_back(&mut self, tool: Tool) -> Result<()> {
        match tool {
            Tool::AtomicLat if !self.first => {
                let mut word = [0; 8];
                self.end.read_memory(TARGET, &mut word)?;
                let counted = u64::from_ne_bytes(word).wrapping_sub(START);
                let iters = self.iters;
                ensure!(counted == u64::from(iters), "{counted} added by {iters} fetch-and-adds");
                Ok(())
            }
            Tool::WriteBw if !self.first && self.size > PAGE / 2 => {
                self.landed(&payload(self.size))
            }
            Tool::WriteBw if !self.first => self.landed_in_turn(),
            _ => Ok(()),
        }
    }

    fn request(&self, operation: Operation, local: usize) -> Request {
        let Address { addr, rkey, .. } = self.theirs;
        Request { operation, local, len: self.size, addr, rkey }
    }

    fn receive(&mut self, count: u32) -> Result<()> {
        (0..count).try_for_each(|_| self.end.receive(TARGET, self.size))
    }

    /// The peer's message must be there, and nothing beside it.
    fn landed(&self, message: &[u8]) -> Result<()> {
        let mut found = vec![0; message.len() + 2 * GUARD];
        self.end.read_memory(TARGET - GUARD, &mut found)?;
        let (before, rest) = found.split_at(GUARD);
        let (inside, after) = rest.split_at(message.len());
        let wrong = inside.iter().zip(message).position(|(a, b)| a != b);
        ensure!(wrong.is_none(), "byte {wrong:?} of {} is not what was sent", message.len());
        let clean = before.iter().chain(after).all(|&byte| byte == UNTOUCHED);
        ensure!(clean, "bytes beside a message of {} were written", message.len());
        Ok(())
    }

    /// Small messages go round in a page, a cache line or more apart: each place has the whole
    /// message or nothing, the first has it, and there is nothing between them.
    fn landed_in_turn(&self) -> Result<()> {
        let mut page = vec![0; PAGE];
        self.end.read_memory(TARGET, &mut page)?;
        let untouched = |bytes: &[u8]| bytes.iter().all(|&byte| byte == UNTOUCHED);
        let message = payload(self.size);
        for (number, place) in page.chunks(self.size.next_multiple_of(CACHE_LINE)).enumerate() {
            let (inside, after) = place.split_at(self.size.min(place.len()));
            let there = inside == message || (number > 0 && untouched(inside));
            ensure!(there, "message {number} is not what was sent");
            ensure!(untouched(after), "bytes after message {number} were written");
        }
        Ok(())
    }

    /// Messages of zeros with a count in the last byte, in turns; the server's is the first.
    fn write_lat(&mut self) -> Result<()> {
        let message = |count: u32, size: usize| {
            let mut bytes = vec![0; size];
            bytes[size - 1] = count as u8;
            bytes
        };
        for count in 1..=self.iters {
            for ours in [!self.first, self.first] {
                if ours {
                    self.end.write_memory(SOURCE, &message(count, self.size))?;
                    self.end.post(&self.request(Operation::Write, SOURCE))?;
                    self.end.wait_success()?;
                } else {
                    self.arrives(count)?;
                    self.landed(&message(count, self.size))?;
                }
            }
        }
        Ok(())
    }

    /// Waits for a count in the last byte.
    fn arrives(&self, count: u32) -> Result<()> {
        let start = Instant::now();
        let mut last = [0];
        loop {
            self.end.read_memory(TARGET + self.size - 1, &mut last)?;
            if last[0] == count as u8 {
                return Ok(());
            }
            ensure!(start.elapsed() < PATIENCE, "waited in vain for WRITE {count}");
            std::thread::yield_now();
        }
    }

    /// Messages in turns; the client's is the first.
    fn send_lat(&mut self) -> Result<()> {
        self.end.write_memory(SOURCE, &payload(self.size))?;
        let (mut sent, mut received) = (0, 0);
        for round in 1..=self.iters {
            for ours in [self.first, !self.first] {
                if ours {
                    self.end.post(&self.request(Operation::Send, SOURCE))?;
                    sent += 1;
                    continue;
                }
                while received < round {
                    let done = self.end.wait_success()?;
                    if done.opcode == RECEIVED {
                        self.is_payload(&done)?;
                        received += 1;
                        self.receive(u32::from(round < self.iters))?;
                    } else {
                        sent -= 1;
                    }
                }
            }
        }
        (0..sent).try_for_each(|_: u32| self.end.wait_success().map(drop))
    }

    /// A message with the tool's payload was received; wipes it out.
    fn is_payload(&mut self, done: &Done) -> Result<()> {
        ensure!(done.len as usize == self.size, "{} bytes were received", done.len);
        let mut found = vec![0; self.size];
        self.end.read_memory(TARGET, &mut found)?;
        ensure!(found == payload(self.size), "other bytes than the tool's payload were received");
        self.end.write_memory(TARGET, &vec![UNTOUCHED; self.size])
    }

    /// Receives everything. Messages land upon one another, so all but the last are only counted.
    fn receive_all(&mut self) -> Result<()> {
        for count in 1..=self.iters {
            let done = self.end.wait_success()?;
            ensure!(done.len as usize == self.size, "{} bytes were received", done.len);
            self.receive(u32::from(count + WINDOW.min(self.iters) <= self.iters))?;
            if count == self.iters {
                self.is_payload(&done)?;
            }
        }
        Ok(())
    }

    /// WRITEs or SENDs, many under way.
    fn stream(&mut self, operation: Operation) -> Result<()> {
        self.end.write_memory(SOURCE, &payload(self.size))?;
        for number in 0..self.iters + WINDOW {
            if number >= WINDOW {
                self.end.wait_success()?;
            }
            if number < self.iters {
                self.end.post(&self.request(operation, SOURCE))?;
            }
        }
        Ok(())
    }

    /// READs of what the tool has, so many under way; each must bring the tool's payload.
    fn reads(&mut self, window: u32) -> Result<()> {
        let expected = payload(self.size);
        let mut left = self.iters;
        while left > 0 {
            let count = window.min(left);
            self.end.write_memory(TARGET - GUARD, &vec![UNTOUCHED; self.size + 2 * GUARD])?;
            for _ in 0..count {
                self.end.post(&self.request(Operation::Read, TARGET))?;
            }
            (0..count).try_for_each(|_| self.end.wait_success().map(drop))?;
            self.landed(&expected)?;
            left -= count;
        }
        Ok(())
    }

    /// Counts in the tool's memory, by fetch-and-add and by compare-and-swap in turns, and sees
    /// each time what the one before left there.
    fn atomics(&mut self) -> Result<()> {
        let mut word = [0; 8];
        word.copy_from_slice(&payload(8));
        let mut expected = u64::from_ne_bytes(word);
        for count in 0..self.iters {
            let after = expected.wrapping_add(1 + u64::from(count));
            let operation = match count % 3 {
                0 => Operation::FetchAdd { add: 1 + u64::from(count) },
                1 => Operation::CompareSwap { compare: expected, swap: after },
                // Does not compare equal, so it changes nothing.
                _ => Operation::CompareSwap { compare: !expected, swap: after },
            };
            self.end.write_memory(SOURCE, &[UNTOUCHED; 8])?;
            self.end.post(&self.request(operation, SOURCE))?;
            self.end.wait_success()?;
            self.end.read_memory(SOURCE, &mut word)?;
            let found = u64::from_ne_bytes(word);
            ensure!(found == expected, "atomic {count} found {found:#x}, not {expected:#x}");
            if count % 3 != 2 {
                expected = after;
            }
        }
        Ok(())
    }
}
