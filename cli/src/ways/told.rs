//! What is told of a way out: for `status`, for whoever watches, and for metrics. Never a secret.

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use tunnel::link::wireguard::{LinkDropped, LinkTotals, PeerState, PublicKey, State};

use super::wireguard::Tunnel;
use crate::report::timestamp;

/// A tunnel at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) name: String,
    pub(crate) usable: bool,
    pub(crate) totals: LinkTotals,
    /// Bytes of all peers.
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// Seconds since the newest handshake.
    pub(crate) handshake_age: Option<u64>,
    /// The object of `docs/json.md`, without `event`.
    pub(crate) object: Value,
}

impl Told {
    pub(super) fn of(tunnel: &Tunnel, state: &State, totals: LinkTotals, now: SystemTime) -> Self {
        let age = |peer: &PeerState| {
            let since = peer.last_handshake?;
            Some(now.duration_since(since).unwrap_or_default().as_secs())
        };
        let peers = state.peers.iter().map(|peer| {
            let usable = tunnel.health.iter().find(|health| health.key == peer.key);
            json!({
                "public_key": public_key(&peer.key),
                "endpoint": peer.endpoint.map(|endpoint| endpoint.to_string()),
                "name": tunnel.endpoints.get(&peer.key).map(super::endpoint::Endpoint::name),
                "usable": usable.is_some_and(tunnel::link::wireguard::PeerHealth::usable),
                "allowed": peer.allowed.len(),
                "handshake_age": age(peer),
                "sent": peer.sent,
                "received": peer.received,
            })
        });
        let dropped: Map<String, Value> = LinkDropped::ALL
            .into_iter()
            .map(|cause| (cause.name().to_owned(), totals.dropped(cause).into()))
            .collect();
        let (sent, received) = (
            state.peers.iter().map(|peer| peer.sent).sum(),
            state.peers.iter().map(|peer| peer.received).sum(),
        );
        let addresses = tunnel.interface.addresses.iter().map(|net| net.addr().to_string());
        let object = json!({
            "name": tunnel.device.as_str(),
            "kind": "wireguard",
            "usable": tunnel.usable,
            "addresses": addresses.collect::<Vec<_>>(),
            "mtu": tunnel.mtu(),
            "underlay": tunnel.underlay().map(|device| device.as_str().to_owned()),
            "public_key": public_key(&state.key.public()),
            "listen_port": state.listen_port,
            "sent": sent,
            "received": received,
            "packets_sent": totals.packets_out,
            "packets_received": totals.packets_in,
            "handshakes": totals.handshakes,
            "dropped": dropped,
            "peers": peers.collect::<Value>(),
        });
        let name = tunnel.device.as_str().to_owned();
        let handshake_age = state.peers.iter().filter_map(age).min();
        Self { name, usable: tunnel.usable, totals, sent, received, handshake_age, object }
    }
}

/// The line of an event about a way out of that kind.
pub(super) fn event(kind: &str, what: &str, told: &Value, now: SystemTime) -> String {
    let mut object = json!({ "event": kind, "time": timestamp(now), "what": what });
    if let (Some(object), Some(told)) = (object.as_object_mut(), told.as_object()) {
        object.extend(told.clone());
    }
    format!("{object}\n")
}

fn public_key(key: &PublicKey) -> String {
    STANDARD.encode(key.as_bytes())
}
