//! vfio-user messages made of arbitrary bytes: well framed and well begun, so that a fuzzer gets
//! past the first message.

#![allow(dead_code, reason = "each target uses one of the two")]

use holdfast_vfio::user::wire::{self, Command, Header};
use holdfast_vfio::user::{Capabilities, version};
use zerocopy::{Immutable, IntoBytes};

/// What a client sends: VERSION, then commands whose kind and payload the bytes say.
pub fn from_client(data: &[u8]) -> Vec<u8> {
    let mut messages = Messages::new(data, wire::TYPE_COMMAND);
    messages.version();
    messages.rest();
    messages.out
}

/// What a server answers while a client connects, with numbers of the bytes' choice, and whatever
/// they say after that.
pub fn from_server(data: &[u8]) -> Vec<u8> {
    let mut messages = Messages::new(data, wire::TYPE_REPLY);
    messages.version();
    let (regions, irqs) = (messages.byte() % 12, messages.byte() % 6);
    let flags = wire::DEVICE_IS_PCI | wire::DEVICE_RESET_WORKS;
    let info = wire::DeviceInfo { argsz: 16, flags, regions: regions.into(), irqs: irqs.into() };
    messages.structure(Command::DEVICE_GET_INFO, &info, &[]);
    for index in 0..regions.into() {
        let (flags, cap_offset) = (messages.byte().into(), messages.byte().into());
        let (size, offset) = (messages.number(), messages.number());
        let len = messages.byte();
        let caps = messages.take(len.into());
        let argsz = 32 + caps.len() as u32;
        let info = wire::RegionInfo { argsz, flags, index, cap_offset, size, offset };
        messages.structure(Command::DEVICE_GET_REGION_INFO, &info, caps);
    }
    for index in 0..irqs.into() {
        let info = wire::IrqInfo { argsz: 16, flags: 1, index, count: messages.byte().into() };
        messages.structure(Command::DEVICE_GET_IRQ_INFO, &info, &[]);
    }
    messages.rest();
    messages.out
}

struct Messages<'a> {
    data: &'a [u8],
    kind: u32,
    id: u16,
    out: Vec<u8>,
}

impl<'a> Messages<'a> {
    fn new(data: &'a [u8], kind: u32) -> Self {
        Self { data, kind, id: 0, out: Vec::new() }
    }

    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.data.split_at(len.min(self.data.len()));
        self.data = rest;
        taken
    }

    /// Zero when the bytes are used up.
    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// Pages, mostly; sometimes anything.
    fn number(&mut self) -> u64 {
        match self.byte() {
            255 => self.take(8).iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
            pages => u64::from(pages) << 12,
        }
    }

    fn push(&mut self, command: Command, flags: u32, payload: &[u8]) {
        let header = Header::command(self.id, command, payload.len());
        let header = Header { flags: self.kind | flags, ..header };
        self.out.extend_from_slice(header.as_bytes());
        self.out.extend_from_slice(payload);
        self.id = self.id.wrapping_add(1);
    }

    fn structure<T: IntoBytes + Immutable>(&mut self, command: Command, value: &T, tail: &[u8]) {
        self.push(command, 0, &[value.as_bytes(), tail].concat());
    }

    fn version(&mut self) {
        let version = wire::Version { major: wire::MAJOR, minor: wire::MINOR };
        let capabilities = Capabilities { write_multiple: true, ..Capabilities::default() };
        self.push(Command::VERSION, 0, &version::encode(version, &capabilities));
    }

    /// Everything left: a command, flags, a length and so many bytes, again and again.
    fn rest(&mut self) {
        while !self.data.is_empty() {
            let (command, flags, len) = (self.byte(), self.byte(), self.byte());
            let payload = self.take(len.into());
            self.push(Command((command % 20).into()), u32::from(flags) & 0x30, payload);
        }
    }
}
