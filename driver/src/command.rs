//! The command channel: one request at a time, polled, with a deadline.
//!
//! A synchronous device has answered when the store to REQUEST retires; an asynchronous one
//! answers later. The same code serves both: zero the response slot, write the request, store
//! REQUEST, read ERR (non-zero: refused, and the slot is stale), then poll the acknowledgement
//! word. Each request carries a key of its own, which the device echoes, so that the late answer
//! to a request whose waiter gave up is not taken for the answer to the next one.
//!
//! Stock devices need not answer requests that destroy something, bind a GID or modify an SRQ
//! (Linux does not wait for those); [`Quirks::answers_everything`] says that this one does.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use holdfast_wire::cmd::{self, Command, RequestHeader, ResponseHeader};
use holdfast_wire::regs;
use nix::errno::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::barrier;
use crate::dma::DmaBuffer;
use crate::error::{Error, Result};
use crate::quirks::Quirks;
use crate::registers::Registers;

/// A request structure, its opcode and its answer.
pub(crate) trait Request: IntoBytes + Immutable {
    /// The opcode.
    const COMMAND: Command;
    /// Whether every device answers it.
    const ANSWERED: bool;
    /// What the answer looks like.
    type Response: FromBytes;
    /// The header, which the channel fills in.
    fn header(&mut self) -> &mut RequestHeader;
}

macro_rules! requests {
    ($($name:ident -> $response:ident, $answered:expr;)*) => {$(
        impl Request for cmd::$name {
            const COMMAND: Command = Command::$name;
            const ANSWERED: bool = $answered;
            type Response = cmd::$response;
            fn header(&mut self) -> &mut RequestHeader { &mut self.hdr }
        }
    )*};
}

requests! {
    QueryPort -> QueryPortResp, true;
    QueryPkey -> QueryPkeyResp, true;
    CreatePd -> CreatePdResp, true;
    DestroyPd -> ResponseHeader, false;
    CreateMr -> CreateMrResp, true;
    DestroyMr -> ResponseHeader, false;
    CreateCq -> CreateCqResp, true;
    DestroyCq -> ResponseHeader, false;
    ModifyQp -> ResponseHeader, true;
    QueryQp -> QueryQpResp, true;
    DestroyQp -> DestroyQpResp, false;
    CreateUc -> CreateUcResp, true;
    DestroyUc -> ResponseHeader, false;
    CreateBind -> ResponseHeader, false;
    DestroyBind -> ResponseHeader, false;
    CreateSrq -> CreateSrqResp, true;
    ModifySrq -> ResponseHeader, false;
    QuerySrq -> QuerySrqResp, true;
    DestroySrq -> ResponseHeader, false;
}

/// CREATE_QP, answered in the layout of versions below 20.
#[derive(IntoBytes, Immutable)]
#[repr(transparent)]
pub(crate) struct CreateQpV1(pub(crate) cmd::CreateQp);
/// CREATE_QP, answered in the layout of version 20.
#[derive(IntoBytes, Immutable)]
#[repr(transparent)]
pub(crate) struct CreateQpV2(pub(crate) cmd::CreateQp);

impl Request for CreateQpV1 {
    const COMMAND: Command = Command::CreateQp;
    const ANSWERED: bool = true;
    type Response = cmd::CreateQpResp;
    fn header(&mut self) -> &mut RequestHeader {
        &mut self.0.hdr
    }
}

impl Request for CreateQpV2 {
    const COMMAND: Command = Command::CreateQp;
    const ANSWERED: bool = true;
    type Response = cmd::CreateQpRespV2;
    fn header(&mut self) -> &mut RequestHeader {
        &mut self.0.hdr
    }
}

/// The slots, and whose turn it is.
pub(crate) struct CommandChannel {
    registers: Registers,
    request: Arc<DmaBuffer>,
    response: Arc<DmaBuffer>,
    answers_everything: bool,
    srq_opcodes_swapped: bool,
    deadline: Duration,
    state: Mutex<State>,
}

struct State {
    next_key: u64,
    // The last command was not answered; do not wait as long for the next one.
    unanswered: bool,
    // The device was found missing: whatever sits there later is not the one that was opened.
    gone: bool,
}

impl CommandChannel {
    pub(crate) fn new(
        registers: Registers,
        request: Arc<DmaBuffer>,
        response: Arc<DmaBuffer>,
        quirks: &Quirks,
        deadline: Duration,
    ) -> Self {
        Self {
            registers,
            request,
            response,
            answers_everything: quirks.answers_everything,
            srq_opcodes_swapped: quirks.srq_opcodes_swapped,
            deadline,
            state: Mutex::new(State { next_key: 1, unanswered: false, gone: false }),
        }
    }

    /// Carries out one command; blocks up to the deadline (a tenth of it while the device has
    /// not answered the command before). For a request that the device need not answer, an
    /// all-zero response is returned when there is none.
    pub(crate) fn execute<R: Request>(&self, mut request: R) -> Result<R::Response> {
        const { assert!(size_of::<R>() <= cmd::MAX_REQUEST) };
        const { assert!(size_of::<R::Response>() <= cmd::MAX_RESPONSE) };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.gone {
            return Err(Error::Gone);
        }
        let key = state.next_key;
        state.next_key += 1;

        *request.header() =
            RequestHeader { response: key, cmd: self.wire_opcode(R::COMMAND), reserved: 0 };
        self.request.write(0, &[0u8; cmd::MAX_REQUEST]);
        self.request.write(0, &request);
        self.response.write(0, &[0u8; cmd::MAX_RESPONSE]);
        barrier::before_command();
        self.registers.request()?;
        let error = self.registers.error()?;
        if error != 0 {
            // A refusal with EPERM looks like an absent device; the version does not.
            self.check_present(&mut state)?;
            return Err(refusal(R::COMMAND, error));
        }
        barrier::from_device();

        let deadline = if state.unanswered { self.deadline / 10 } else { self.deadline };
        let must_wait = R::ANSWERED || self.answers_everything;
        let answered = self.wait(R::COMMAND, key, must_wait, deadline);
        state.unanswered = matches!(answered, Err(Error::Timeout { .. }));
        if state.unanswered {
            self.check_present(&mut state)?;
        }
        if answered? {
            let header: ResponseHeader = self.response.read(0);
            if header.err != 0 {
                let errno = Errno::from_raw(i32::from(header.err));
                return Err(Error::Refused { command: R::COMMAND, errno });
            }
        }
        Ok(self.response.read(0))
    }

    fn check_present(&self, state: &mut State) -> Result<()> {
        let present = self.registers.check_present();
        state.gone |= matches!(present, Err(Error::Gone));
        present
    }

    /// Whether the answer is there; waits for it if it has to come.
    fn wait(&self, command: Command, key: u64, must: bool, deadline: Duration) -> Result<bool> {
        let acknowledgement = self.response.atomic_u32(std::mem::offset_of!(ResponseHeader, ack));
        let started = Instant::now();
        let mut polls = 0u32;
        loop {
            let ack = barrier::observe(acknowledgement);
            if ack != 0 {
                let header: ResponseHeader = self.response.read(0);
                // Devices that do not echo keys leave zero.
                let keyed = header.response == key;
                if (keyed || header.response == 0) && self.acknowledges(command, ack) {
                    return Ok(true);
                }
                if keyed {
                    return Err(Error::nonsense("command acknowledgement", u64::from(ack)));
                }
                // The late answer to an older command; ours is still to come.
            }
            if !must {
                return Ok(false);
            }
            let waited = started.elapsed();
            if waited >= deadline {
                return Err(Error::Timeout { command, waited });
            }
            polls += 1;
            match polls {
                0..1000 => std::hint::spin_loop(),
                1000..2000 => std::thread::yield_now(),
                _ => std::thread::sleep(Duration::from_micros(50)),
            }
        }
    }

    fn acknowledges(&self, command: Command, ack: u32) -> bool {
        ack == cmd::ack(command.wire()) || ack == cmd::ack(self.wire_opcode(command))
    }

    fn wire_opcode(&self, command: Command) -> u32 {
        match command {
            Command::ModifySrq if self.srq_opcodes_swapped => Command::QuerySrq.wire(),
            Command::QuerySrq if self.srq_opcodes_swapped => Command::ModifySrq.wire(),
            other => other.wire(),
        }
    }
}

/// The error for a non-zero ERR register: a negative errno, or "no shared region".
fn refusal(command: Command, error: u32) -> Error {
    if error == regs::ERR_NO_DSR {
        return Error::NotReady { command };
    }
    let errno = match (error as i32).checked_neg() {
        Some(errno @ 1..=4095) => errno,
        // Some devices report it positive.
        _ if error <= 4095 => error as i32,
        _ => return Error::nonsense("error register", u64::from(error)),
    };
    Error::Refused { command, errno: Errno::from_raw(errno) }
}
