//! WireGuard interfaces as the configuration says them: keys, addresses, peers.
//!
//! They come from a file of wg-quick(8) ([`conf`]) or from the configuration's own keys. Both
//! read values by the same functions ([`value`]), into the same [`Draft`], which knows what
//! must not stand together. Nothing here prints a key, or a line that may hold one.
//!
//! While a tunnel is open, `wg` shows and changes it: [`uapi`] reads and writes what is said,
//! [`uapi_server`] has the socket.

pub(crate) mod conf;
mod draft;
pub(crate) mod file;
mod key;
pub mod uapi;
pub mod uapi_server;
pub(crate) mod value;

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use tunnel::link::wireguard::{PresharedKey, PrivateKey, PublicKey};

pub(crate) use self::draft::{Draft, DraftPeer};
pub(crate) use self::key::encode;

/// An interface, with wg-quick's meaning of each of its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) key: PrivateKey,
    /// Its own, at least one, each once. A flow leaves with the one whose prefix its destination
    /// is in, else with the first of its IP version.
    pub(crate) addresses: Vec<IpNet>,
    /// The UDP port; `None`: one of the kernel's choice.
    pub(crate) listen_port: Option<u16>,
    /// The mark of its own packets, as the user wants it.
    pub(crate) fwmark: Option<u32>,
    /// Bytes of the longest inner packet; `None`: what the path to the peers leaves.
    pub(crate) mtu: Option<u16>,
    /// The servers that answer names behind it: a resolver of the tunnel's name.
    pub(crate) dns: Vec<IpAddr>,
    /// The domains for names without a dot that its `DNS` gives.
    pub(crate) search: Vec<String>,
    pub(crate) peers: Vec<Peer>,
}

/// A peer of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) key: PublicKey,
    pub(crate) preshared: Option<PresharedKey>,
    pub(crate) endpoint: Option<Endpoint>,
    /// What is behind it.
    pub(crate) allowed: Vec<IpNet>,
    /// Seconds of silence after which it gets an empty packet.
    pub(crate) keepalive: Option<u16>,
}

/// Where a peer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Address(SocketAddr),
    /// A host's name and a port; `upstream` is asked for its addresses.
    Name(String, u16),
}
