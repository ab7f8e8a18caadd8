//! The network's own servers, each with where it was learned, while they change.
//!
//! # Theory of operation
//!
//! Several parts of a host know servers: services on the D-Bus system bus (systemd-resolved,
//! NetworkManager), what those and others leave below `/run` and `/var/lib`, router
//! advertisements as the kernel passes them on, and `/etc/resolv.conf` as it was before us. All
//! are asked at once, and what they say is judged by [`belief`] (pure), in this order:
//!
//! 1. systemd-resolved, each link's and the global ones
//! 2. NetworkManager
//! 3. `/run/systemd/resolve/resolv.conf`, then `/run/NetworkManager/no-stub-resolv.conf`
//! 4. records of resolvconf and openresolv
//! 5. leases of systemd-networkd, then of dhclient
//! 6. router advertisements (RFC 8106)
//! 7. `/etc/resolv.conf`
//!
//! For each link the first that names a server wins; one that names servers for no link speaks
//! for all. Never among them are our own addresses, the stubs of systemd-resolved, and whatever
//! is said of our TUN's link.
//!
//! [`watch()`] asks again when something moved: the bus tells of services and properties, inotify
//! of files, netlink of advertisements. Events within [`DEBOUNCE`] count as one. A bus that isn't
//! there is tried again at the next event, and each minute.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use tokio::sync::watch as channel;

mod advert;
mod belief;
mod dhclient;
mod files;
#[cfg(test)]
mod junk;
mod links;
mod network_manager;
mod networkd;
mod resolv_conf;
mod resolved;
mod server;
#[cfg(test)]
pub(crate) mod tests;
mod watch;

pub use resolv_conf::{ResolvConf, follow};
pub use watch::{DEBOUNCE, once, watch};

/// What discovery is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Addresses that are never anybody's server: the TUN's, and those that we answer at.
    pub own: OwnAddresses,
    /// The TUN's name. What is said of its link is our own doing.
    pub tun: Option<String>,
    /// What `/etc`, `/run` and `/var` are below of: `/`, but in tests.
    pub root: PathBuf,
    /// The D-Bus address of the system bus; `None`: where it is by default.
    pub bus: Option<String>,
}

impl Settings {
    /// Those of this host.
    pub fn of_this_host(own: impl Into<OwnAddresses>, tun: Option<String>) -> Self {
        Self { own: own.into(), tun, root: PathBuf::from("/"), bus: None }
    }
}

/// Addresses of our own, which may change meanwhile: then all is looked at again.
#[derive(Debug, Clone)]
pub struct OwnAddresses(channel::Receiver<Vec<IpAddr>>);

impl OwnAddresses {
    fn contains(&self, ip: &IpAddr) -> bool {
        self.0.borrow().contains(ip)
    }

    fn now(&self) -> Vec<IpAddr> {
        self.0.borrow().clone()
    }

    /// Waits until they are others.
    async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

impl From<channel::Receiver<Vec<IpAddr>>> for OwnAddresses {
    fn from(addresses: channel::Receiver<Vec<IpAddr>>) -> Self {
        Self(addresses)
    }
}

impl From<Vec<IpAddr>> for OwnAddresses {
    fn from(addresses: Vec<IpAddr>) -> Self {
        Self(channel::channel(addresses).1)
    }
}

/// The network's own servers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// The servers in the order in which their source names them; none twice over the same link,
    /// at most [`Found::MOST`].
    pub servers: Vec<FoundServer>,
    /// Domains that a name of one label is tried in, in order: lower case, without the last dot.
    pub search: Vec<String>,
}

impl Found {
    /// The most servers.
    pub const MOST: usize = 64;

    /// Those that the configuration names instead.
    pub fn configured(servers: impl IntoIterator<Item = SocketAddr>) -> Self {
        let servers = servers.into_iter().map(|address| FoundServer {
            address,
            link: None,
            tls: false,
            name: None,
            from: Provenance::Configured,
            domains: Vec::new(),
            default_route: true,
        });
        Self { servers: servers.collect(), search: Vec::new() }
    }
}

/// One server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundServer {
    /// Where it is asked. A link-local IPv6 address has its link as scope.
    pub address: SocketAddr,
    /// The index of the link that it belongs to.
    pub link: Option<u32>,
    /// Whether it is to be asked over TLS only.
    pub tls: bool,
    /// The name that its certificate should have, where one is known.
    pub name: Option<String>,
    /// Who has said so.
    pub from: Provenance,
    /// The domains that its link is for.
    pub domains: Vec<Domain>,
    /// Whether names of no link's domains may be asked here.
    pub default_route: bool,
}

/// A domain that a link's servers know.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Domain {
    /// Lower case, without the last dot; the root is empty.
    pub name: String,
    /// Whether it only leads names to the link (`~example.com`), and completes none.
    pub route_only: bool,
}

/// Where a server was learned.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Provenance {
    /// systemd-resolved, over D-Bus; link 0: its global servers.
    Resolved {
        /// The link's index.
        link: u32,
    },
    /// NetworkManager, over D-Bus.
    NetworkManager {
        /// The device; `None`: the global servers.
        interface: Option<String>,
    },
    /// `/run/systemd/resolve/resolv.conf`
    ResolvedFile,
    /// `/run/NetworkManager/no-stub-resolv.conf`
    NetworkManagerFile,
    /// A record of resolvconf or openresolv.
    Resolvconf {
        /// Its name: `eth0.dhclient`.
        name: String,
    },
    /// What systemd-networkd knows of a link.
    NetworkdLease {
        /// The link's index.
        link: u32,
    },
    /// A lease of dhclient.
    DhclientLease {
        /// The file.
        path: PathBuf,
    },
    /// A router advertisement (RFC 8106).
    RouterAdvertisement {
        /// The link's index.
        link: u32,
    },
    /// A resolv.conf(5).
    ResolvConf {
        /// The file.
        path: PathBuf,
    },
    /// The configuration.
    Configured,
}

impl fmt::Display for Provenance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resolved { link: 0 } => f.write_str("systemd-resolved"),
            Self::Resolved { link } => write!(f, "systemd-resolved (link {link})"),
            Self::NetworkManager { interface: None } => f.write_str("NetworkManager"),
            Self::NetworkManager { interface: Some(interface) } => {
                write!(f, "NetworkManager ({interface})")
            }
            Self::ResolvedFile => f.write_str("/run/systemd/resolve/resolv.conf"),
            Self::NetworkManagerFile => f.write_str("/run/NetworkManager/no-stub-resolv.conf"),
            Self::Resolvconf { name } => write!(f, "resolvconf ({name})"),
            Self::NetworkdLease { link } => write!(f, "systemd-networkd (link {link})"),
            Self::DhclientLease { path } => write!(f, "dhclient ({})", path.display()),
            Self::RouterAdvertisement { link } => write!(f, "router advertisement (link {link})"),
            Self::ResolvConf { path } => write!(f, "{}", path.display()),
            Self::Configured => f.write_str("configuration"),
        }
    }
}
