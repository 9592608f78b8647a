//! The operations of a send queue, and which of them a queue may post, up to what length.

use holdfast_wire::completion::CqeOpcode;
use holdfast_wire::wqe::Opcode;

/// An operation as a caller sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Write,
    WriteImm,
    Read,
    CompareSwap,
    FetchAdd,
    Send,
    SendImm,
    Datagram,
    DatagramImm,
}

impl Operation {
    /// How many there are.
    const COUNT: usize = 9;

    /// What stands in the request.
    #[inline(always)]
    pub(crate) const fn opcode(self) -> Opcode {
        match self {
            Self::Write => Opcode::RdmaWrite,
            Self::WriteImm => Opcode::RdmaWriteImm,
            Self::Read => Opcode::RdmaRead,
            Self::CompareSwap => Opcode::CompareSwap,
            Self::FetchAdd => Opcode::FetchAdd,
            Self::Send | Self::Datagram => Opcode::Send,
            Self::SendImm | Self::DatagramImm => Opcode::SendImm,
        }
    }

    /// What its completion is reported as.
    #[inline(always)]
    pub(crate) const fn completes_as(self) -> CqeOpcode {
        match self {
            Self::Write | Self::WriteImm => CqeOpcode::RdmaWrite,
            Self::Read => CqeOpcode::RdmaRead,
            Self::CompareSwap => CqeOpcode::CompareSwap,
            Self::FetchAdd => CqeOpcode::FetchAdd,
            Self::Send | Self::SendImm | Self::Datagram | Self::DatagramImm => CqeOpcode::Send,
        }
    }

    /// Whether it carries immediate data.
    #[inline(always)]
    pub(crate) const fn has_immediate(self) -> bool {
        matches!(self, Self::WriteImm | Self::SendImm | Self::DatagramImm)
    }
}

/// Longest message that may be posted, by operation. One comparison says whether an operation is
/// there and its message not too long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Shortest length that is refused; 0 where the operation is not there at all.
    refused_from: [u32; Operation::COUNT],
    longest: u32,
}

impl Bounds {
    /// No operation at all, messages of at most `longest` bytes.
    pub(crate) fn new(longest: u32) -> Self {
        Self { refused_from: [0; Operation::COUNT], longest: longest.min(u32::MAX - 1) }
    }

    /// Adds an operation, if `there`.
    pub(crate) fn with(mut self, op: Operation, there: bool) -> Self {
        self.refused_from[op as usize] = if there { self.longest + 1 } else { 0 };
        self
    }

    /// Whether the operation is there and takes a message of `length` bytes.
    #[inline(always)]
    pub(crate) fn allow(&self, op: Operation, length: u32) -> bool {
        length < self.refused_from[op as usize]
    }

    /// Whether the operation is there.
    pub(crate) fn has(&self, op: Operation) -> bool {
        self.allow(op, 0)
    }

    /// Most bytes of a message.
    pub(crate) fn longest(&self) -> u32 {
        self.longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_that_is_not_there_takes_not_even_an_empty_message() {
        let bounds = Bounds::new(100).with(Operation::Send, true).with(Operation::Read, false);
        assert!(bounds.has(Operation::Send) && bounds.allow(Operation::Send, 100));
        assert!(!bounds.allow(Operation::Send, 101));
        assert!(!bounds.has(Operation::Read) && !bounds.has(Operation::DatagramImm));
    }

    #[test]
    fn a_limit_of_all_ones_does_not_wrap_to_none() {
        let bounds = Bounds::new(u32::MAX).with(Operation::Send, true);
        assert!(bounds.allow(Operation::Send, u32::MAX - 1));
        assert!(!bounds.allow(Operation::Send, u32::MAX));
    }
}
