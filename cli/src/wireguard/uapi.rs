//! WireGuard's cross-platform interface as text: `get` and `set`, as `wg` speaks it.
//!
//! ```text
//! get=1 ⏎ ⏎                      set=1 ⏎ key=value ⏎ … ⏎ ⏎
//! key=value ⏎ … errno=0 ⏎ ⏎      errno=0 ⏎ ⏎
//! ```
//!
//! A `set` is read as a whole before anything of it is done: where it has a fault, nothing is
//! changed. Lines up to the first `public_key` are about the interface, all after one about that
//! peer. Keys are hexadecimal, 64 zeroes say "none".

use std::net::SocketAddr;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use rustix::io::Errno;
use tunnel::link::wireguard::{
    Change, PeerChange, PeerState, PresharedKey, PrivateKey, PublicKey, State,
};
use zeroize::Zeroizing;

/// What is asked.
#[derive(Debug, Clone)]
pub enum Operation {
    /// What is the interface like?
    Get,
    /// Make it different.
    Set(Box<Change>),
}

/// Why a request is not honoured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// No operation of that name, or none at all.
    #[error("neither get=1 nor set=1")]
    Operation,
    /// No line `key=value`.
    #[error("line {0}: not KEY=VALUE")]
    Line(usize),
    /// A key that there is not, or not there.
    #[error("line {0}: no such key here")]
    Key(usize),
    /// A value that the key can't have.
    #[error("line {0}: no value for that key")]
    Value(usize),
    /// An interface without a private key: not in this version.
    #[error("line {0}: an interface without private key: not in this version")]
    Keyless(usize),
}

impl Fault {
    /// What the asker is told.
    pub fn errno(self) -> Errno {
        match self {
            Self::Operation | Self::Line(_) | Self::Key(_) | Self::Value(_) => Errno::INVAL,
            Self::Keyless(_) => Errno::OPNOTSUPP,
        }
    }
}

/// Reads a request without the empty line at its end.
///
/// # Errors
/// Any text that is none.
pub fn parse(text: &str) -> Result<Operation, Fault> {
    let mut lines = (1..).zip(text.lines());
    match lines.next() {
        // Some send more with it; it means nothing.
        Some((_, "get=1")) => Ok(Operation::Get),
        Some((_, "set=1")) => parse_set(lines).map(|change| Operation::Set(Box::new(change))),
        Some(_) | None => Err(Fault::Operation),
    }
}

fn parse_set<'t>(lines: impl Iterator<Item = (usize, &'t str)>) -> Result<Change, Fault> {
    let mut change = Change::default();
    for (line, text) in lines {
        let (key, value) = text.split_once('=').ok_or(Fault::Line(line))?;
        if key == "public_key" {
            let key = PublicKey::from_hex(value).ok_or(Fault::Value(line))?;
            change.peers.push(PeerChange::new(key));
        } else if let Some(peer) = change.peers.last_mut() {
            set_of_peer(peer, key, value, line)?;
        } else {
            set_of_interface(&mut change, key, value, line)?;
        }
    }
    Ok(change)
}

fn set_of_interface(change: &mut Change, key: &str, value: &str, line: usize) -> Result<(), Fault> {
    match key {
        "private_key" => {
            // All zeroes take the key away.
            if PresharedKey::from_hex(value) == Some(None) {
                return Err(Fault::Keyless(line));
            }
            change.key = Some(PrivateKey::from_hex(value).ok_or(Fault::Value(line))?);
        }
        "listen_port" => change.listen_port = Some(number(value, line)?),
        "fwmark" => change.fwmark = Some(Some(number(value, line)?).filter(|&mark| mark != 0)),
        "replace_peers" => change.replace_peers = truth(value, line)?,
        _ => return Err(Fault::Key(line)),
    }
    Ok(())
}

fn set_of_peer(peer: &mut PeerChange, key: &str, value: &str, line: usize) -> Result<(), Fault> {
    match key {
        "remove" => peer.remove = truth(value, line)?,
        "update_only" => peer.update_only = truth(value, line)?,
        "preshared_key" => {
            peer.preshared = Some(PresharedKey::from_hex(value).ok_or(Fault::Value(line))?);
        }
        "endpoint" => {
            let endpoint: SocketAddr = value.parse().map_err(|_| Fault::Value(line))?;
            // `sendto` would refuse both.
            if endpoint.port() == 0 || endpoint.ip().is_unspecified() {
                return Err(Fault::Value(line));
            }
            peer.endpoint = Some(endpoint);
        }
        "persistent_keepalive_interval" => {
            peer.keepalive = Some(Some(number(value, line)?).filter(|&seconds| seconds != 0));
        }
        "replace_allowed_ips" => {
            peer.replace_allowed = truth(value, line)?;
            // What was named before is among what is replaced.
            peer.allowed.clear();
        }
        "allowed_ip" => {
            let (list, value) = match value.strip_prefix('-') {
                Some(value) => (&mut peer.disallowed, value),
                None => (&mut peer.allowed, value),
            };
            list.push(IpNet::from_str(value).map_err(|_| Fault::Value(line))?.trunc());
        }
        "protocol_version" if value == "1" => {}
        "protocol_version" => return Err(Fault::Value(line)),
        _ => return Err(Fault::Key(line)),
    }
    Ok(())
}

/// A decimal number, without a sign.
fn number<T: FromStr>(value: &str, line: usize) -> Result<T, Fault> {
    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
    value.parse().ok().filter(|_| digits).ok_or(Fault::Value(line))
}

/// What can be said is `true` alone.
fn truth(value: &str, line: usize) -> Result<bool, Fault> {
    (value == "true").then_some(true).ok_or(Fault::Value(line))
}

/// The answer to `get`. It has the keys in it, and is wiped with them.
pub fn answer(state: &State) -> Zeroizing<String> {
    // Never moved, so that no copy stays behind.
    let nets: usize = state.peers.iter().map(|peer| peer.allowed.len()).sum();
    let room = ENDS + state.peers.len() * PEER + nets * NET;
    let mut text = Zeroizing::new(String::with_capacity(room));
    line(&mut text, "private_key", state.key.to_hex().as_str());
    line(&mut text, "listen_port", state.listen_port);
    if let Some(mark) = state.fwmark {
        line(&mut text, "fwmark", mark);
    }
    state.peers.iter().for_each(|peer| answer_of_peer(&mut text, peer));
    text.push_str("errno=0\n\n");
    debug_assert!(text.len() <= room, "{} bytes in {room}", text.len());
    text
}

fn answer_of_peer(text: &mut String, peer: &PeerState) {
    line(text, "public_key", peer.key.to_hex());
    if let Some(key) = &peer.preshared {
        line(text, "preshared_key", key.to_hex().as_str());
    }
    line(text, "protocol_version", 1);
    if let Some(endpoint) = peer.endpoint {
        line(text, "endpoint", endpoint);
    }
    let since = peer.last_handshake.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    // Zero: never.
    let since = since.unwrap_or(Duration::ZERO);
    line(text, "last_handshake_time_sec", since.as_secs());
    line(text, "last_handshake_time_nsec", since.subsec_nanos());
    line(text, "tx_bytes", peer.sent);
    line(text, "rx_bytes", peer.received);
    line(text, "persistent_keepalive_interval", peer.keepalive.unwrap_or(0));
    peer.allowed.iter().for_each(|net| line(text, "allowed_ip", net));
}

/// The answer to a `set`, and to a `get` that can't be answered: nothing went wrong, or this.
///
/// Of a `set` all speakers of the protocol send and expect the negative number, of a `get` the
/// positive one.
pub fn outcome(operation: Option<&Operation>, errno: Option<Errno>) -> String {
    let number = errno.map_or(0, Errno::raw_os_error);
    match operation {
        Some(Operation::Get) => format!("errno={number}\n\n"),
        Some(Operation::Set(_)) | None => format!("errno={}\n\n", -number),
    }
}

fn line(text: &mut String, key: &str, value: impl std::fmt::Display) {
    use std::fmt::Write as _;
    // A string takes everything.
    let _ = writeln!(text, "{key}={value}");
}

/// Bytes that the interface's own lines have at most.
const ENDS: usize = 256;
/// ... and those of a peer without its addresses.
const PEER: usize = 640;
/// ... and each of these: 39 digits and colons, and a prefix length.
const NET: usize = "allowed_ip=/128\n".len() + 39;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "c53201039adba14be71f886da1d8dbe9eebded08cb111b75340078999aa9f038";
    const OTHER: &str = "0000000000000000000000000000000000000000000000000000000000000001";
    const NONE: &str = "0000000000000000000000000000000000000000000000000000000000000000";

    fn set(text: &str) -> Result<Change, Fault> {
        match parse(&format!("set=1\n{text}"))? {
            Operation::Set(change) => Ok(*change),
            Operation::Get => panic!("set"),
        }
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn what_wg_sends() {
        let change = set(&format!(
            "private_key={KEY}\nlisten_port=51820\nfwmark=0\nreplace_peers=true\n\
             public_key={KEY}\nremove=true\n\
             public_key={OTHER}\nupdate_only=true\npreshared_key={KEY}\n\
             endpoint=[2001:db8::1]:51820\npersistent_keepalive_interval=25\n\
             replace_allowed_ips=true\nallowed_ip=10.0.0.7/24\nallowed_ip=-fd00::/64\n\
             protocol_version=1\n\
             public_key={OTHER}\npreshared_key={NONE}\npersistent_keepalive_interval=0\n"
        ))
        .unwrap();
        assert!(change.key.is_some() && change.replace_peers);
        assert_eq!((change.listen_port, change.fwmark), (Some(51_820), Some(None)));
        let [gone, peer, again] = &change.peers[..] else { panic!("three") };
        assert!(gone.remove && !gone.update_only);
        assert!(peer.update_only && peer.replace_allowed && !peer.remove);
        assert_eq!(peer.endpoint, Some("[2001:db8::1]:51820".parse().unwrap()));
        assert_eq!(peer.keepalive, Some(Some(25)));
        assert_eq!(
            (&peer.allowed[..], &peer.disallowed[..]),
            (&[net("10.0.0.0/24")][..], &[net("fd00::/64")][..])
        );
        assert!(matches!(peer.preshared, Some(Some(_))));
        assert_eq!((&again.preshared, again.keepalive), (&Some(None), Some(None)));
        assert!(matches!(parse("get=1"), Ok(Operation::Get)));
        assert!(set("").is_ok(), "nothing is to be changed");
    }

    #[test]
    fn what_is_refused() {
        let peer = format!("public_key={KEY}");
        for (text, fault) in [
            ("private_key=00", Fault::Value(2)),
            (&format!("private_key={NONE}"), Fault::Keyless(2)),
            (&format!("private_key={KEY}x"), Fault::Value(2)),
            ("listen_port=65536", Fault::Value(2)),
            ("listen_port=+1", Fault::Value(2)),
            ("listen_port=", Fault::Value(2)),
            ("fwmark=0x1", Fault::Value(2)),
            ("fwmark=4294967296", Fault::Value(2)),
            ("replace_peers=false", Fault::Value(2)),
            ("nonsense=1", Fault::Key(2)),
            ("endpoint=192.0.2.1:1", Fault::Key(2)),
            ("nonsense", Fault::Line(2)),
            ("listen_port=1\n\nlisten_port=2", Fault::Line(3)),
            (&format!("{peer}\nlisten_port=1"), Fault::Key(3)),
            (&format!("{peer}\nendpoint=192.0.2.1"), Fault::Value(3)),
            (&format!("{peer}\nendpoint=192.0.2.1:0"), Fault::Value(3)),
            (&format!("{peer}\nendpoint=0.0.0.0:1"), Fault::Value(3)),
            (&format!("{peer}\nendpoint=name.example:1"), Fault::Value(3)),
            (&format!("{peer}\npersistent_keepalive_interval=65536"), Fault::Value(3)),
            (&format!("{peer}\nallowed_ip=10.0.0.0/33"), Fault::Value(3)),
            (&format!("{peer}\nallowed_ip=10.0.0.0"), Fault::Value(3)),
            (&format!("{peer}\nallowed_ip=--10.0.0.0/8"), Fault::Value(3)),
            (&format!("{peer}\nprotocol_version=2"), Fault::Value(3)),
            (&format!("{peer}\npreshared_key=1"), Fault::Value(3)),
            (&format!("{peer}\nremove=1"), Fault::Value(3)),
            ("public_key=1", Fault::Value(2)),
        ] {
            assert_eq!(set(text).err(), Some(fault), "{text}");
        }
        for text in ["", "\n", "get=2", "set=2", "set", "get=1=1", "sets=1", "\u{0}"] {
            assert_eq!(parse(text).err(), Some(Fault::Operation), "{text:?}");
        }
        assert_eq!(outcome(None, Some(Fault::Operation.errno())), "errno=-22\n\n");
        assert_eq!(outcome(Some(&Operation::Get), Some(Errno::NODEV)), "errno=19\n\n");
        assert_eq!(outcome(None, None), "errno=0\n\n");
    }

    fn state(peers: Vec<PeerState>) -> State {
        let key = PrivateKey::from_hex(KEY).unwrap();
        State { key, listen_port: 51_820, fwmark: Some(7), peers }
    }

    fn peer() -> PeerState {
        PeerState {
            key: PublicKey::from_hex(OTHER).unwrap(),
            preshared: PresharedKey::from_hex(KEY).unwrap(),
            endpoint: Some("[2001:db8::1]:51820".parse().unwrap()),
            allowed: vec![net("10.0.0.0/24"), net("fd00::/64")],
            keepalive: Some(25),
            last_handshake: Some(SystemTime::UNIX_EPOCH + Duration::new(9, 8)),
            received: 1,
            sent: 2,
        }
    }

    #[test]
    fn what_wg_is_told() {
        let key = PrivateKey::from_hex(KEY).unwrap().to_hex();
        let want = format!(
            "private_key={}\nlisten_port=51820\nfwmark=7\npublic_key={OTHER}\n\
             preshared_key={KEY}\nprotocol_version=1\nendpoint=[2001:db8::1]:51820\n\
             last_handshake_time_sec=9\nlast_handshake_time_nsec=8\ntx_bytes=2\nrx_bytes=1\n\
             persistent_keepalive_interval=25\nallowed_ip=10.0.0.0/24\nallowed_ip=fd00::/64\n\
             errno=0\n\n",
            key.as_str()
        );
        assert_eq!(answer(&state(vec![peer()])).as_str(), want);
    }

    #[test]
    fn the_longest_answer_is_not_moved() {
        let net = net("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128");
        let longest = PeerState {
            endpoint: Some(
                "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff%4294967295]:65535".parse().unwrap(),
            ),
            allowed: vec![net; 100],
            keepalive: Some(u16::MAX),
            received: u64::MAX,
            sent: u64::MAX,
            ..peer()
        };
        let text = answer(&State { fwmark: Some(u32::MAX), ..state(vec![longest; 50]) });
        assert!(text.len() <= text.capacity() && text.ends_with("errno=0\n\n"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn any_text_is_an_operation_or_a_fault(
            text in ".{0,300}",
            lines in prop::collection::vec(
                (
                    prop::sample::select(vec![
                        "private_key", "listen_port", "fwmark", "replace_peers", "public_key",
                        "remove", "update_only", "preshared_key", "endpoint", "allowed_ip",
                        "persistent_keepalive_interval", "replace_allowed_ips", "protocol_version",
                        "", "x",
                    ]),
                    prop_oneof![
                        Just("true".to_owned()), Just(KEY.to_owned()), Just(NONE.to_owned()),
                        Just("10.0.0.0/8".to_owned()), "[0-9]{0,12}", ".{0,40}",
                        "[0-9a-f:.]{1,20}/[0-9]{1,3}",
                    ],
                ),
                0..12,
            ),
        ) {
            let _ = parse(&text);
            let _ = set(&text);
            let text: String = lines.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
            if let Ok(change) = set(&text) {
                let peers = lines.iter().filter(|(key, _)| *key == "public_key").count();
                prop_assert_eq!(change.peers.len(), peers);
            }
        }

        #[test]
        fn what_get_tells_set_takes(
            port in any::<u16>(),
            nets in prop::collection::vec((any::<[u8; 16]>(), 0_u8..=128), 0..8),
            keepalive in any::<u16>(),
        ) {
            let nets = nets.into_iter().map(|(octets, bits)| {
                IpNet::new(octets.into(), bits).unwrap().trunc()
            });
            let peer = PeerState {
                allowed: nets.collect(),
                keepalive: Some(keepalive).filter(|&seconds| seconds > 0),
                ..peer()
            };
            let state = State { listen_port: port, ..state(vec![peer.clone()]) };
            let told = answer(&state);
            let given: String = told
                .lines()
                .filter(|line| {
                    !["last_", "tx_", "rx_", "errno"].iter().any(|key| line.starts_with(key))
                        && !line.is_empty()
                })
                .map(|line| format!("{line}\n"))
                .collect();
            let change = set(&given).unwrap();
            prop_assert_eq!(change.listen_port, Some(port));
            prop_assert!(change.key == Some(state.key));
            prop_assert_eq!(&change.peers[0].allowed, &peer.allowed);
            prop_assert_eq!(change.peers[0].keepalive, Some(peer.keepalive));
            prop_assert!(change.peers[0].preshared == Some(peer.preshared));
            prop_assert_eq!(change.peers[0].endpoint, peer.endpoint);
        }
    }
}
