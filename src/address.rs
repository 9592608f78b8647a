//! How devices are named: `emulated`, `vfio-user:PATH`, or a PCI address.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use holdfast_vfio::pci;

/// Which device to open.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceAddress {
    /// An emulated NIC made for this handle alone, in this process.
    Emulated,
    /// A vfio-user server's socket.
    VfioUser(PathBuf),
    /// A PCI function that belongs to vfio-pci.
    Pci(pci::Address),
}

/// A text that names no device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' names no device: write 'emulated', 'vfio-user:PATH' (the socket of 'holdfast nic'), or \
     a PCI address such as 0000:03:00.1"
)]
pub struct AddressError(String);

impl FromStr for DeviceAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text == "emulated" {
            return Ok(Self::Emulated);
        }
        if let Some(path) = text.strip_prefix("vfio-user:").filter(|path| !path.is_empty()) {
            return Ok(Self::VfioUser(path.into()));
        }
        text.parse().map(Self::Pci).map_err(|_| AddressError(text.to_owned()))
    }
}

impl fmt::Display for DeviceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Emulated => f.write_str("emulated"),
            Self::VfioUser(path) => write!(f, "vfio-user:{}", path.display()),
            Self::Pci(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_in_three_ways() {
        for (text, printed) in [
            ("emulated", "emulated"),
            ("vfio-user:/tmp/a.sock", "vfio-user:/tmp/a.sock"),
            ("vfio-user:relative:odd", "vfio-user:relative:odd"),
            ("0000:03:00.1", "0000:03:00.1"),
            ("03:00.1", "0000:03:00.1"),
        ] {
            assert_eq!(text.parse::<DeviceAddress>().unwrap().to_string(), printed);
        }
    }

    #[test]
    fn anything_else_is_refused_with_the_three_ways() {
        for text in ["", "vfio-user:", "emulate", "/tmp/a.sock", "03:00", "mlx5_0"] {
            let error = text.parse::<DeviceAddress>().unwrap_err().to_string();
            assert!(error.contains("vfio-user:PATH") && error.contains("0000:03:00.1"), "{error}");
        }
    }
}
