//! What sets one PVRDMA device apart from another.
//!
//! Three kinds of device speak this interface: ESXi's, QEMU 7.2's model, and this project's
//! emulated NIC with its extension. They are told apart here, once, by what they report; the rest
//! of the driver asks for a property, never for a name. The documentation of each property says
//! which device has it; `docs/deployment.md` says what QEMU's mean to users.

use holdfast_wire::dsr::Caps;
use holdfast_wire::{pdir, regs};

/// Properties of a device that change what the driver does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quirks {
    /// Doorbell pages are memory that the device polls: an ARM must be confirmed by reading its
    /// word until it is zero. (Extension.)
    pub memory_doorbells: bool,
    /// The device may sleep and says so in the doorbell page. (Extension.)
    pub wake_word: bool,
    /// Sends may carry their payload in the ring. (Extension; no other model takes inline data.)
    pub inline_sends: bool,
    /// Every command is answered, destroying ones too, so that the driver can wait for all.
    /// Linux's driver does not wait for DESTROY_*, BIND and MODIFY_SRQ, and ESXi may not answer.
    pub answers_everything: bool,
    /// Only SEND and RECV are carried out; remote keys mean nothing. (QEMU.)
    pub sends_only: bool,
    /// Immediate data is dropped. (QEMU.)
    pub drops_immediate: bool,
    /// RESET stalls the machine for seconds and frees nothing: never written. (QEMU.)
    pub reset_unusable: bool,
    /// A device that is active stays so, and another ACTIVATE stalls the machine for seconds: not
    /// written when ERR and CTL say that the last driver left it active. (QEMU.)
    pub stays_active: bool,
    /// Moving a queue pair to ERR or RESET does nothing, and nothing is flushed. (QEMU.)
    pub never_flushes: bool,
    /// QUERY_QP answers in another layout than the interface's, of which only the state, the MTU,
    /// the keys, the sequence numbers, the peer's number and the access rights are at the same
    /// places. (QEMU.)
    pub queries_few_attributes: bool,
    /// Objects of a driver that died live on in the device; sweep them before use. (QEMU.)
    pub keeps_stale_objects: bool,
    /// Opcodes of MODIFY_SRQ and QUERY_SRQ are swapped. (QEMU.)
    pub srq_opcodes_swapped: bool,
    /// Error completions of shared receives name queue pair 0. (QEMU.)
    pub srq_errors_name_qp_zero: bool,
    /// An ARM doorbell works only with both arm bits. (QEMU.)
    pub arm_needs_both_bits: bool,
    /// The notification ring is written for every completion, armed or not, and must be drained
    /// even by a poller. (QEMU.)
    pub notifies_always: bool,
    /// The pages of a region are translated when it is registered and never again: the device goes
    /// on reaching what the IOMMU has unmapped or remapped, until the region is destroyed. (QEMU.)
    pub translates_once: bool,
    /// Regions must start on a page boundary. (QEMU.)
    pub aligned_regions_only: bool,
    /// The port's largest message is not to be believed. (QEMU says 1024 and takes more.)
    pub message_limit_unreliable: bool,
    /// A POLL doorbell that meets an interrupt hangs the machine: the processor that rings holds a
    /// lock that raising the interrupt needs. With interrupts on, POLL is never rung. (QEMU.)
    pub poll_excludes_interrupts: bool,
    /// Most pages of all regions together: the device maps each by itself, and beyond its
    /// process's limit on mappings (65,530) it maps wrong ones and says nothing. (QEMU.)
    pub max_registered_pages: u32,
    /// Most pages of one ring.
    pub max_ring_pages: u32,
    /// `max_uar` counts bytes. (QEMU.)
    pub uar_limit_in_bytes: bool,
    /// After how many empty polls the POLL doorbell is rung, while completions come; up to 16 times
    /// as many while none do. `u32::MAX` for never.
    pub poll_doorbell_interval: u32,
}

/// What a device reports about itself before the driver has asked it to do anything.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The VERSION register.
    pub version: u32,
    /// Capabilities in the shared region.
    pub caps: &'a Caps,
    /// Feature bits of the vendor extension, where it is there.
    pub extension: Option<u32>,
}

/// Firmware version that QEMU 7.2's model reports.
const QEMU_FW_VERSION: u64 = 14;
/// `max_uar` that QEMU 7.2's model reports, in bytes.
const QEMU_MAX_UAR: u32 = 0x20_0000;
/// Pages that QEMU 7.2's model accepts in a ring.
const QEMU_MAX_RING_PAGES: u32 = 128;
/// Pages that QEMU 7.2's process can map one by one, with room for its own mappings.
const QEMU_MAX_REGISTERED_PAGES: u32 = 60_000;

impl Quirks {
    /// A device that follows the interface as VMware wrote it, and of which no more is known.
    pub const fn stock() -> Self {
        Self {
            memory_doorbells: false,
            wake_word: false,
            inline_sends: false,
            answers_everything: false,
            sends_only: false,
            drops_immediate: false,
            reset_unusable: false,
            stays_active: false,
            never_flushes: false,
            queries_few_attributes: false,
            keeps_stale_objects: false,
            srq_opcodes_swapped: false,
            srq_errors_name_qp_zero: false,
            arm_needs_both_bits: false,
            notifies_always: false,
            translates_once: false,
            aligned_regions_only: false,
            message_limit_unreliable: false,
            poll_excludes_interrupts: false,
            max_registered_pages: u32::MAX,
            max_ring_pages: pdir::ENTRIES as u32,
            uar_limit_in_bytes: false,
            poll_doorbell_interval: 64,
        }
    }

    /// This project's emulated NIC, with these extension features.
    const fn extended(features: u32) -> Self {
        Self {
            memory_doorbells: features & regs::EXT_FEATURE_MEMORY_DOORBELLS != 0,
            wake_word: features & regs::EXT_FEATURE_WAKE != 0,
            inline_sends: true,
            answers_everything: true,
            // Completions appear in memory by themselves.
            poll_doorbell_interval: u32::MAX,
            ..Self::stock()
        }
    }

    /// QEMU 7.2's model.
    const fn qemu() -> Self {
        Self {
            answers_everything: true,
            sends_only: true,
            drops_immediate: true,
            reset_unusable: true,
            stays_active: true,
            never_flushes: true,
            queries_few_attributes: true,
            keeps_stale_objects: true,
            srq_opcodes_swapped: true,
            srq_errors_name_qp_zero: true,
            arm_needs_both_bits: true,
            notifies_always: true,
            translates_once: true,
            aligned_regions_only: true,
            message_limit_unreliable: true,
            poll_excludes_interrupts: true,
            max_registered_pages: QEMU_MAX_REGISTERED_PAGES,
            max_ring_pages: QEMU_MAX_RING_PAGES,
            uar_limit_in_bytes: true,
            // Each POLL is an exit from the virtual machine; its own thread polls as well.
            poll_doorbell_interval: 256,
            ..Self::stock()
        }
    }

    /// Decides from what the device reports. This is the only place that knows models.
    pub fn detect(facts: Facts<'_>) -> Self {
        if let Some(features) = facts.extension {
            return Self::extended(features);
        }
        let qemu = facts.version == regs::VERSION_MIN
            && facts.caps.fw_ver == QEMU_FW_VERSION
            && facts.caps.max_uar == QEMU_MAX_UAR;
        if qemu { Self::qemu() } else { Self::stock() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(version: u32, fw_ver: u64, max_uar: u32, extension: Option<u32>) -> Quirks {
        let caps = Caps { fw_ver, max_uar, ..Caps::default() };
        Quirks::detect(Facts { version, caps: &caps, extension })
    }

    #[test]
    fn models_are_told_apart_by_what_they_report() {
        let all = regs::EXT_FEATURE_MEMORY_DOORBELLS | regs::EXT_FEATURE_WAKE;
        let cases = [
            ("qemu", facts(17, 14, 0x20_0000, None), Quirks::qemu()),
            ("other firmware", facts(17, 13, 0x20_0000, None), Quirks::stock()),
            ("page count", facts(17, 14, 512, None), Quirks::stock()),
            ("newer", facts(19, 14, 0x20_0000, None), Quirks::stock()),
            ("extension", facts(20, 1, 2048, Some(all)), Quirks::extended(all)),
            ("extension first", facts(17, 14, 0x20_0000, Some(0)), Quirks::extended(0)),
        ];
        for (name, found, expected) in cases {
            assert_eq!(found, expected, "{name}");
        }
        assert!(Quirks::extended(all).memory_doorbells && Quirks::extended(all).wake_word);
        assert!(!Quirks::extended(0).memory_doorbells && !Quirks::extended(0).wake_word);
    }
}
