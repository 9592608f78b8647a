//! Where a PCI function sits: domain, bus, device, function.

use std::fmt;
use std::str::FromStr;

use crate::Error;

/// A PCI address, as `0000:03:00.1`; parsed with or without the domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        parse(text).ok_or_else(|| Error::BadAddress { text: text.to_owned() })
    }
}

fn parse(text: &str) -> Option<Address> {
    let (rest, function) = text.rsplit_once('.')?;
    let (rest, device) = rest.rsplit_once(':')?;
    let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0000", rest));
    // from_str_radix takes a sign; an address has none.
    let hex = |digits: &str, min: usize, max: usize| {
        let plain = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        let fits = (min..=max).contains(&digits.len());
        (plain && fits).then(|| u32::from_str_radix(digits, 16).ok())?
    };
    let (device, function) = (hex(device, 2, 2)?, hex(function, 1, 1)?);
    (device < 32 && function < 8).then_some(())?;
    Some(Address {
        domain: hex(domain, 4, 8)?,
        bus: u8::try_from(hex(bus, 2, 2)?).ok()?,
        device: u8::try_from(device).ok()?,
        function: u8::try_from(function).ok()?,
    })
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}
