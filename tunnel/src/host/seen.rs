//! What of the host matters to a plan.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use engine::DeviceName;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoPortKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rustix::io::Errno;

use super::accepted::accepted;
use super::error::HostError;
use super::sysctl;
use crate::rtnetlink::Rtnetlink;

/// A look at the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Every device.
    pub devices: Vec<SeenDevice>,
    /// Settings by their path below `/proc/sys/net/`.
    pub settings: BTreeMap<String, String>,
    /// Whether there is IPv6.
    pub ipv6: Ipv6,
    /// TCP connections from outside: this host's end, the other end.
    pub accepted: Vec<(SocketAddr, SocketAddr)>,
}

/// A device of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeenDevice {
    /// Its name.
    pub name: DeviceName,
    /// Its index.
    pub index: u32,
    /// Whether it is one of a bridge's or bond's: packets leave by that one, never by it.
    pub port: bool,
    /// Whether it is up.
    pub up: bool,
    /// Its MTU.
    pub mtu: u32,
}

/// Whether a host has IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ipv6 {
    /// The kernel has none.
    Absent,
    /// New devices get none.
    Disabled,
    /// They do.
    Usable,
}

/// How sources are checked against the routes, `rp_filter`'s value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ReversePath {
    /// They aren't.
    Off,
    /// The way back leads to the same device.
    Strict,
    /// There is a way back.
    Loose,
}

impl Seen {
    /// Looks at the network namespace that this thread is in.
    pub fn look() -> Result<Self, HostError> {
        let accepted = accepted().map_err(HostError::Look)?;
        Ok(Self { accepted, ..Self::look_at_links()? })
    }

    /// The same without the connections, which are the many.
    pub(super) fn look_at_links() -> Result<Self, HostError> {
        Self::try_look().map_err(HostError::Look)
    }

    fn try_look() -> Result<Self, Errno> {
        let devices = devices(&mut Rtnetlink::open()?)?;
        let mut settings = BTreeMap::new();
        let mut see = |key: String| -> Result<(), Errno> {
            if let Some(value) = sysctl::read(&key)? {
                settings.insert(key, value);
            }
            Ok(())
        };
        for key in ["ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect", "ipv6/fwmark_reflect"] {
            see(key.to_owned())?;
        }
        see("ipv4/conf/all/src_valid_mark".to_owned())?;
        let names = devices.iter().map(|device| device.name.as_str());
        for name in ["all", "default"].into_iter().chain(names) {
            see(format!("ipv4/conf/{name}/rp_filter"))?;
        }
        let ipv6 = match sysctl::read("ipv6/conf/default/disable_ipv6")?.as_deref() {
            None => Ipv6::Absent,
            Some("0") => Ipv6::Usable,
            Some(_) => Ipv6::Disabled,
        };
        Ok(Self { devices, settings, ipv6, accepted: Vec::new() })
    }

    /// The index of a device.
    pub(super) fn index(&self, name: DeviceName) -> Option<u32> {
        self.devices.iter().find(|device| device.name == name).map(|device| device.index)
    }

    /// The name that a device has.
    pub(super) fn name(&self, index: u32) -> Option<DeviceName> {
        self.devices.iter().find(|device| device.index == index).map(|device| device.name)
    }

    /// What the kernel checks on a device (`default`: on one that appears later). The stricter
    /// *number* of the device's and all's counts.
    pub(super) fn reverse_path(&self, name: &str) -> ReversePath {
        let value = |name: &str| {
            let value = self.settings.get(&format!("ipv4/conf/{name}/rp_filter"));
            match value.map(String::as_str) {
                Some("1") => ReversePath::Strict,
                Some("2") => ReversePath::Loose,
                Some(_) | None => ReversePath::Off,
            }
        };
        value("all").max(value(name))
    }
}

/// Every device there is.
pub(super) fn devices(netlink: &mut Rtnetlink) -> Result<Vec<SeenDevice>, Errno> {
    let links = netlink.list(&RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    Ok(links.iter().filter_map(device).collect())
}

fn device(message: &RouteNetlinkMessage) -> Option<SeenDevice> {
    let RouteNetlinkMessage::NewLink(link) = message else { return None };
    let (mut name, mut port, mut mtu) = (None, false, 0);
    for attribute in &link.attributes {
        if let LinkAttribute::IfName(text) = attribute {
            name = DeviceName::new(text);
        } else if let LinkAttribute::Mtu(bytes) = attribute {
            mtu = *bytes;
        } else if let LinkAttribute::LinkInfo(infos) = attribute {
            // What belongs to a VRF sends its packets itself.
            port = infos
                .iter()
                .any(|info| matches!(info, LinkInfo::PortKind(kind) if *kind != InfoPortKind::Vrf));
        }
    }
    let up = link.header.flags.contains(LinkFlags::Up);
    Some(SeenDevice { name: name?, index: link.header.index, port, up, mtu })
}
