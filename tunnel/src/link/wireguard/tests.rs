//! Interfaces that speak to each other: without sockets where what is on the wire matters,
//! over loopback where sockets do.

mod by_the_clock;
mod cost;
mod hostile;
mod offload;
mod packet;
mod peers;
mod protocol;
mod sockets;

use std::net::SocketAddr;
use std::time::Duration;

use engine::Instant;
use ipnet::IpNet;

use super::core::Core;
use super::settings::{Change, PeerChange};
use super::socket::Arrival;
use super::{PrivateKey, PublicKey};

/// An interface without sockets, and where it is.
struct Side {
    core: Core,
    key: PrivateKey,
    at: SocketAddr,
}

impl Side {
    fn new(last: u8) -> Self {
        let key = PrivateKey::generate().unwrap();
        let at = ([192, 0, 2, last], 51_820).into();
        Self { core: Core::new(key.clone(), 1420), key, at }
    }

    fn public(&self) -> PublicKey {
        self.key.public()
    }

    /// Makes a change that must succeed.
    fn change(&mut self, peers: Vec<PeerChange>, now: Instant) {
        self.core.change(Change { peers, ..Change::default() }, now).unwrap();
    }

    /// Everything that it would send.
    fn messages(&mut self) -> Vec<Vec<u8>> {
        let outbox = &self.core.outbox;
        let cut = |run: &super::outbox::Run| {
            let bytes = &outbox.bytes()[run.bytes.clone()];
            let messages: Vec<Vec<u8>> = bytes.chunks(run.size).map(<[u8]>::to_vec).collect();
            assert_eq!(messages.len(), run.count);
            messages
        };
        let messages = outbox.runs().iter().flat_map(cut).collect();
        self.core.outbox.clear();
        messages
    }

    /// Takes a datagram and gives the inner packets that came out.
    fn take(&mut self, datagram: &[u8], from: SocketAddr, now: Instant) -> Vec<Vec<u8>> {
        let arrival = Arrival {
            bytes: 0..datagram.len(),
            segment: datagram.len(),
            from,
            to: Some(self.at.ip()),
            tos: 0,
        };
        self.core.open(datagram, &arrival, now);
        let opened = &mut self.core.opened;
        let packets = opened.packets.iter().map(|at| opened.buffer[at.clone()].to_vec()).collect();
        opened.clear();
        packets
    }

    fn send(&mut self, packet: &[u8], now: Instant) {
        self.core.send(packet, &[], engine::Meta::default(), now).unwrap();
    }
}

fn allowed(nets: &[&str]) -> Vec<IpNet> {
    nets.iter().map(|net| net.parse().unwrap()).collect()
}

/// The peer `other`, at its place and with its addresses.
fn peer(other: &Side, nets: &[&str]) -> PeerChange {
    PeerChange {
        endpoint: Some(other.at),
        allowed: allowed(nets),
        ..PeerChange::new(other.public())
    }
}

/// Two that know each other: 10.0.0.1 and fd00::1, 10.0.0.2 and fd00::2.
fn two() -> (Side, Side) {
    let (mut a, mut b) = (Side::new(1), Side::new(2));
    let (to_b, to_a) =
        (peer(&b, &["10.0.0.2/32", "fd00::2/128"]), peer(&a, &["10.0.0.1/32", "fd00::1/128"]));
    a.change(vec![to_b], now());
    b.change(vec![to_a], now());
    (a, b)
}

/// Carries messages between the two until both are silent; what came out at each.
fn settle(a: &mut Side, b: &mut Side, now: Instant) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let (mut at_a, mut at_b) = (Vec::new(), Vec::new());
    for _ in 0..100 {
        let (from_a, from_b) = (a.messages(), b.messages());
        if from_a.is_empty() && from_b.is_empty() {
            return (at_a, at_b);
        }
        for message in from_a {
            at_b.extend(b.take(&message, a.at, now));
        }
        for message in from_b {
            at_a.extend(a.take(&message, b.at, now));
        }
    }
    panic!("they never fall silent");
}

/// The machine's clock: `Tunn` reads it too.
fn now() -> Instant {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let micros = now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000;
    Instant::from_micros(micros)
}

const SECOND: Duration = Duration::from_secs(1);
