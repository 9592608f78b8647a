//! The settings in the environment.

use std::net::Ipv6Addr;
use std::path::PathBuf;

use crate::abi::Gid;
use crate::error::Error;

/// Most devices.
const MAX_DEVICES: usize = 64;
/// Most GIDs of a device, without the first entry.
pub(crate) const MAX_GIDS: usize = 255;
/// Most bytes of a device's name.
const MAX_NAME: usize = 63;

/// A device to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceConfig {
    pub(crate) name: String,
    /// Its GID table from index 1 on.
    pub(crate) gids: Vec<Gid>,
}

/// A socket to another process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LinkConfig {
    Connect(PathBuf),
    Listen(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) devices: Vec<DeviceConfig>,
    pub(crate) links: Vec<LinkConfig>,
    pub(crate) log: bool,
}

/// The parts of a list, without empty ones.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty())
}

/// The GID of a device that was given none.
fn default_gid(index: usize) -> Gid {
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0x48, 0x46ff, 0xfe00, index as u16 + 1).octets()
}

impl Config {
    /// Reads them; `var` gives a variable's value.
    pub(crate) fn read(var: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let get = |name| var(name).unwrap_or_default();
        let names = match get("HOLDFAST_VERBS_DEVICES") {
            unset if unset.is_empty() => "hf0,hf1".to_owned(),
            names => names,
        };
        let mut devices = devices(&names)?;
        gids(&get("HOLDFAST_VERBS_GIDS"), &mut devices)?;
        let links = parts(&get("HOLDFAST_VERBS_LINKS")).map(link).collect::<Result<_, _>>()?;
        Ok(Self { devices, links, log: !get("HOLDFAST_VERBS_LOG").is_empty() })
    }
}

fn devices(names: &str) -> Result<Vec<DeviceConfig>, Error> {
    let bad = |why: String| Err(Error::Settings(format!("HOLDFAST_VERBS_DEVICES: {why}")));
    let mut devices = Vec::<DeviceConfig>::new();
    for name in parts(names) {
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
        if !plain || name.len() > MAX_NAME {
            return bad(format!("{name:?} is not 1 to {MAX_NAME} letters, digits, _ - or ."));
        }
        if devices.iter().any(|d| d.name == name) {
            return bad(format!("{name} stands there twice"));
        }
        devices.push(DeviceConfig { name: name.to_owned(), gids: Vec::new() });
    }
    match devices.len() {
        1..=MAX_DEVICES => Ok(devices),
        count => bad(format!("there must be 1 to {MAX_DEVICES} devices, not {count}")),
    }
}

/// Gives devices their GIDs.
fn gids(text: &str, devices: &mut [DeviceConfig]) -> Result<(), Error> {
    let bad = |why: String| Err(Error::Settings(format!("HOLDFAST_VERBS_GIDS: {why}")));
    for part in parts(text) {
        let Some((name, address)) = part.split_once('=') else {
            return bad(format!("{part:?} is not of the form DEVICE=ADDRESS"));
        };
        let gid = match address.parse::<Ipv6Addr>() {
            Ok(address) if !address.is_unspecified() => address.octets(),
            _ => return bad(format!("{address:?} is not an IPv6 address, such as fe80::1")),
        };
        if devices.iter().any(|d| d.gids.contains(&gid)) {
            return bad(format!("{address} stands there twice"));
        }
        match devices.iter_mut().find(|d| d.name == name) {
            Some(device) if device.gids.len() < MAX_GIDS => device.gids.push(gid),
            Some(_) => return bad(format!("{name} has more than {MAX_GIDS} GIDs")),
            None => return bad(format!("{name:?} is not among HOLDFAST_VERBS_DEVICES")),
        }
    }
    for index in 0..devices.len() {
        if !devices[index].gids.is_empty() {
            continue;
        }
        let gid = default_gid(index);
        if devices.iter().any(|d| d.gids.contains(&gid)) {
            let name = &devices[index].name;
            return bad(format!("{name} needs an entry: its default is another device's"));
        }
        devices[index].gids.push(gid);
    }
    Ok(())
}

fn link(part: &str) -> Result<LinkConfig, Error> {
    match part.split_once(':') {
        Some(("connect", path)) if !path.is_empty() => Ok(LinkConfig::Connect(path.into())),
        Some(("listen", path)) if !path.is_empty() => Ok(LinkConfig::Listen(path.into())),
        _ => Err(Error::Settings(format!(
            "HOLDFAST_VERBS_LINKS: {part:?} is neither connect:PATH nor listen:PATH"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Config, Error> {
        Config::read(|name| {
            let name = name.strip_prefix("HOLDFAST_VERBS_")?;
            pairs.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn without_settings_there_are_two_devices_with_a_gid_each() {
        let config = read(&[]).expect("the defaults");
        let names: Vec<_> = config.devices.iter().map(|d| d.name.as_str()).collect();
        assert_eq!(names, ["hf0", "hf1"]);
        let first: Ipv6Addr = "fe80::48:46ff:fe00:1".parse().expect("an address");
        assert_eq!(config.devices[0].gids, [first.octets()]);
        assert_ne!(config.devices[1].gids, config.devices[0].gids);
    }

    #[test]
    fn gids_go_to_the_devices_they_name_in_order() {
        let config = read(&[
            ("DEVICES", "a, b"),
            ("GIDS", "b=fe80::1,b=::ffff:10.0.0.1,"),
            ("LINKS", "connect:/tmp/a,listen:/tmp/b"),
        ])
        .expect("good settings");
        assert_eq!(config.devices[0].gids.len(), 1);
        let second: Ipv6Addr = "::ffff:10.0.0.1".parse().expect("an address");
        assert_eq!(config.devices[1].gids[1], second.octets());
        assert_eq!(config.links[1], LinkConfig::Listen("/tmp/b".into()));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let long = "x".repeat(64);
        let cases: &[&[(&str, &str)]] = &[
            &[("DEVICES", ",")],
            &[("DEVICES", "a,a")],
            &[("DEVICES", "a b")],
            &[("DEVICES", &long)],
            &[("GIDS", "hf0")],
            &[("GIDS", "hf0=10.0.0.1")],
            &[("GIDS", "hf0=::")],
            &[("GIDS", "hf2=fe80::1")],
            &[("GIDS", "hf0=fe80::1,hf1=fe80::1")],
            &[("GIDS", "hf1=fe80::48:46ff:fe00:1")],
            &[("LINKS", "/tmp/a")],
            &[("LINKS", "connect:")],
        ];
        for case in cases {
            assert!(matches!(read(case), Err(Error::Settings(_))), "{case:?}");
        }
    }
}
