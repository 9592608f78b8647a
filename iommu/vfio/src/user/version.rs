//! The capabilities that the two sides tell each other in VERSION, as JSON.
//!
//! All of them are optional and an unknown one is passed over. A limit is about its *sender*: the
//! other side keeps below it. Migration and twin sockets are never offered here.

use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, IntoBytes};

use super::wire::Version;

/// What one side can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Descriptors that this side accepts in one message.
    #[serde(default = "default_fds")]
    pub max_msg_fds: u32,
    /// Data bytes that this side accepts in one region or DMA access.
    #[serde(default = "default_transfer")]
    pub max_data_xfer_size: u32,
    /// Page sizes that this side accepts in DMA_MAP, or'ed together.
    #[serde(default = "default_pages")]
    pub pgsizes: u64,
    /// DMA mappings that this side accepts at a time.
    #[serde(default = "default_maps")]
    pub max_dma_maps: u32,
    /// REGION_WRITE_MULTI is understood.
    #[serde(default, skip_serializing_if = "is_false")]
    pub write_multiple: bool,
}

fn default_fds() -> u32 {
    1
}

fn default_transfer() -> u32 {
    1 << 20
}

fn default_pages() -> u64 {
    4096
}

fn default_maps() -> u32 {
    65535
}

fn is_false(value: &bool) -> bool {
    !value
}

/// What the specification has a side assume of another that says nothing.
impl Default for Capabilities {
    fn default() -> Self {
        Self {
            max_msg_fds: default_fds(),
            max_data_xfer_size: default_transfer(),
            pgsizes: default_pages(),
            max_dma_maps: default_maps(),
            write_multiple: false,
        }
    }
}

#[derive(Default, Serialize, Deserialize)]
struct VersionData {
    #[serde(default)]
    capabilities: Capabilities,
}

/// Why a VERSION payload could not be understood.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    /// Less than the two version numbers.
    #[error("a VERSION message of {0} bytes has no room for the version")]
    Short(usize),
    /// The JSON does not end with a NUL byte.
    #[error("the capabilities are not terminated by a NUL byte")]
    Unterminated,
    /// The JSON is not what it should be.
    #[error("the capabilities cannot be read: {0}")]
    Json(#[from] serde_json::Error),
}

/// The payload of a VERSION message.
pub fn encode(version: Version, capabilities: &Capabilities) -> Vec<u8> {
    let data = VersionData { capabilities: *capabilities };
    let mut payload = version.as_bytes().to_vec();
    serde_json::to_writer(&mut payload, &data).expect("numbers can be written to memory");
    payload.push(0);
    payload
}

/// Takes a VERSION payload apart; what the sender did not say has its default.
pub fn decode(payload: &[u8]) -> Result<(Version, Capabilities), VersionError> {
    let (version, json) =
        Version::read_from_prefix(payload).map_err(|_| VersionError::Short(payload.len()))?;
    let capabilities = match json {
        [] => Capabilities::default(),
        [json @ .., 0] => serde_json::from_slice::<VersionData>(json)?.capabilities,
        _ => return Err(VersionError::Unterminated),
    };
    Ok((version, capabilities))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &[u8] = &[0, 0, 1, 0];

    fn parse(json: &str) -> Result<Capabilities, VersionError> {
        decode(&[HEAD, json.as_bytes(), &[0]].concat()).map(|(_, capabilities)| capabilities)
    }

    #[test]
    fn what_was_encoded_is_decoded() {
        let version = Version { major: 0, minor: 1 };
        let told = Capabilities { max_msg_fds: 16, write_multiple: true, ..Default::default() };
        assert_eq!(decode(&encode(version, &told)).unwrap(), (version, told));
    }

    #[test]
    fn what_is_not_said_has_its_default() {
        assert_eq!(decode(HEAD).unwrap().1, Capabilities::default());
        assert_eq!(parse("{}").unwrap(), Capabilities::default());
        let some = parse(r#"{"capabilities":{"max_msg_fds":8,"migration":{"pgsize":4096}}}"#);
        assert_eq!(some.unwrap(), Capabilities { max_msg_fds: 8, ..Default::default() });
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(matches!(decode(&[0, 0]), Err(VersionError::Short(2))));
        assert!(matches!(decode(b"\0\0\0\0{}"), Err(VersionError::Unterminated)));
        for json in ["", "[", "7", r#"{"capabilities":{"max_msg_fds":-1}}"#] {
            assert!(matches!(parse(json), Err(VersionError::Json(_))), "{json}");
        }
    }
}
