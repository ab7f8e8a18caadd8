//! What the daemon wants of the host.

use std::time::Duration;

use engine::DeviceName;
use ipnet::IpNet;

/// A desired state of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The TUN. It is opened by the caller, and not persistent.
    pub device: DeviceName,
    /// Its own addresses.
    pub addresses: Vec<IpNet>,
    /// Its MTU.
    pub mtu: u16,
    /// What tells our own packets, and those of connections from outside, from the rest.
    pub mark: Mark,
    /// The routing table that captured packets are looked up in.
    pub table: u32,
    /// The priority of the rule that leads to it. The ones before and after it are ours too.
    pub priority: u32,
    /// What is captured.
    pub capture: Capture,
    /// Whether packets that this host forwards are captured like its own.
    pub forward: bool,
    /// Patterns (`docker0`, `br-*`) of devices that are no uplinks.
    pub local: Vec<String>,
    /// Whether connections are tracked: [`tracking::needed`](super::tracking::needed) on this host.
    pub tracks: bool,
    /// Between two looks at what nobody tells of.
    pub untold: Duration,
}

/// Bits of a packet's mark that are ours, and their value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The value, within the mask.
    pub value: u32,
    /// Which bits count.
    pub mask: u32,
}

/// Which destinations lead into the TUN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Capture {
    /// All, but those that live on one link only: IPv6 link-local addresses, multicast, and
    /// the limited broadcast.
    All,
    /// These.
    Prefixes(Vec<IpNet>),
    /// None.
    Nothing,
}

impl Mark {
    /// Not more and not less than the high byte: `0x74` is `t`.
    pub const DEFAULT: Self = Self { value: 0x7400_0000, mask: 0xff00_0000 };

    /// Another value within the mask, for packets that are forwarded into the TUN. `None`: a mask
    /// of one bit has none.
    pub(super) fn forwarded(self) -> Option<u32> {
        (0..32)
            .map(|bit| 1 << bit)
            .filter(|bit| self.mask & bit != 0)
            .map(|bit| self.value ^ bit)
            .find(|&other| other != 0)
    }
}

impl Plan {
    /// The table that nobody else is likely to use.
    pub const TABLE: u32 = 29_806;
    /// Before the rule for the table `main` (32766), and before wg-quick's.
    pub const PRIORITY: u32 = 100;
    /// A look costs some milliseconds.
    pub const UNTOLD: Duration = Duration::from_secs(60);

    /// A plan with this host's defaults that captures nothing.
    pub fn new(device: DeviceName) -> Self {
        Self {
            device,
            addresses: Vec::new(),
            mtu: 1500,
            mark: Mark::DEFAULT,
            table: Self::TABLE,
            priority: Self::PRIORITY,
            capture: Capture::Nothing,
            forward: true,
            local: Vec::new(),
            tracks: true,
            untold: Self::UNTOLD,
        }
    }

    /// What is captured of IPv4 or of IPv6, smallest prefixes last.
    pub(super) fn captured(&self, v4: bool) -> Vec<IpNet> {
        let everything = if v4 { ANY_V4 } else { ANY_V6 };
        match &self.capture {
            Capture::All => vec![everything],
            Capture::Prefixes(prefixes) => {
                let mut prefixes: Vec<IpNet> = prefixes
                    .iter()
                    .map(IpNet::trunc)
                    .filter(|prefix| prefix.addr().is_ipv4() == v4)
                    .collect();
                prefixes.sort();
                prefixes.dedup();
                prefixes
            }
            Capture::Nothing => Vec::new(),
        }
    }
}

const ANY_V4: IpNet = IpNet::V4(ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::UNSPECIFIED, 0));
const ANY_V6: IpNet = IpNet::V6(ipnet::Ipv6Net::new_assert(std::net::Ipv6Addr::UNSPECIFIED, 0));
