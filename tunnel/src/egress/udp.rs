//! A UDP mapping: one socket for all peers of one client port.
//!
//! # Theory of operation
//!
//! The socket is bound to the egress address and device and never connected, so a client
//! port keeps one outside port whoever it talks to (endpoint-independent mapping, RFC 4787 4.1:
//! STUN and games need it). Which peers may answer is the engine's business. Errors come
//! through the error queue (`message`), each with its peer.
//!
//! Super-datagrams pass unsplit: what the app sent as one (`gso_type` 5) is one `sendmsg()` with
//! `UDP_SEGMENT`, and what `UDP_GRO` joined is one write to the device. A kernel or device
//! that refuses the former gets single datagrams.
//!
//! Multicast leaves by the pinned device, with the kernel's own TTL (1) and loop. Broadcast is
//! allowed: the verdict was the place to forbid it.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

use engine::Failure;
use rustix::io::Errno;
use socket2::{Protocol, Type};

pub use super::message::{Received, SendError};

use super::error::{Call, EgressError, IcmpError};
use super::message::MessageSocket;
use super::pin::{Pin, at, ip_of, set_option};

/// A socket for datagrams to any peer of one IP version.
#[derive(Debug)]
pub struct Mapping {
    socket: MessageSocket,
}

/// What the network said about a datagram that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpError {
    /// Whom the datagram was for.
    pub destination: SocketAddr,
    /// What the app is to see.
    pub failure: Failure,
    /// The message, as it came.
    pub icmp: IcmpError,
}

impl Mapping {
    /// Opens a socket for peers of `peer`'s IP version and binds it to the pin and a port of
    /// the kernel's choice.
    pub fn open(peer: IpAddr, pin: &Pin) -> Result<Self, EgressError> {
        let socket = MessageSocket::open(peer, Type::DGRAM, Protocol::UDP, pin)?;
        socket.socket().set_broadcast(true).map_err(at(Call::Option))?;
        // Kernels before 5.0 have no GRO for sockets and need none.
        let _ = set_option(socket.socket(), libc::SOL_UDP, libc::UDP_GRO, 1);
        pin.bind(socket.socket(), peer)?;
        Ok(Self { socket })
    }

    /// The address and port the far side sees, before any translation on the way.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        ip_of(&self.socket.socket().local_addr()?).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Sends `payload` to `to`: as one datagram, or with `segment` as datagrams of that size
    /// and a last one of what is left. `dont_fragment` as the app's packet had it.
    pub fn send(
        &mut self,
        to: SocketAddr,
        payload: &[u8],
        segment: Option<u16>,
        dont_fragment: bool,
    ) -> Result<(), SendError> {
        self.send_behind(&[], to, payload, segment, dont_fragment)
    }

    /// The same, with `header` in front of each datagram.
    pub(crate) fn send_behind(
        &mut self,
        header: &[u8],
        to: SocketAddr,
        payload: &[u8],
        segment: Option<u16>,
        dont_fragment: bool,
    ) -> Result<(), SendError> {
        let sent = match segment.map(usize::from) {
            Some(size) if size > 0 && payload.len() > size => {
                self.send_segments(header, to, payload, size, dont_fragment)
            }
            _ => self.send_one(header, to, payload, dont_fragment),
        };
        sent.map_err(|errno| self.socket.send_error(errno, to))
    }

    /// Takes datagrams and errors of that peer alone from now on; what others sent before may
    /// still be there.
    pub(crate) fn only(&self, peer: SocketAddr) -> Result<(), EgressError> {
        self.socket.connect(peer)
    }

    /// Receives a datagram, or many of one size from one peer. `buf` should hold 65,535 bytes.
    /// `AGAIN` ends the turn; after any other error there may be more (`MSGSIZE`: one was too
    /// long for `buf` and is lost).
    pub fn recv(&self, buf: &mut [u8]) -> Result<Received, Errno> {
        self.socket.receive(buf)
    }

    /// Takes the oldest error that the network reported. To be called until `None` when the
    /// socket shows `EPOLLERR`.
    pub fn error(&self) -> Option<UdpError> {
        let reported = self.socket.reported(&mut [])?;
        Some(UdpError {
            destination: reported.destination,
            failure: reported.failure,
            icmp: reported.icmp,
        })
    }

    fn send_one(
        &mut self,
        header: &[u8],
        to: SocketAddr,
        payload: &[u8],
        dont_fragment: bool,
    ) -> Result<(), Errno> {
        let parts = [IoSlice::new(header), IoSlice::new(payload)];
        let parts = if header.is_empty() { &parts[1..] } else { &parts[..] };
        self.socket.send(to, parts, None, dont_fragment)
    }

    fn send_segments(
        &mut self,
        header: &[u8],
        to: SocketAddr,
        payload: &[u8],
        size: usize,
        dont_fragment: bool,
    ) -> Result<(), Errno> {
        let whole = header.len() + size;
        let most = (MAX_BYTES / whole).clamp(1, MAX_SEGMENTS);
        for datagrams in payload.chunks(size * most) {
            let segment = u16::try_from(whole).ok().filter(|_| datagrams.len() > size);
            let sent = if header.is_empty() {
                self.socket.send(to, &[IoSlice::new(datagrams)], segment, dont_fragment)
            } else {
                let mut parts = [IoSlice::new(&[]); 2 * MAX_SEGMENTS];
                let mut filled = 0;
                for (pair, datagram) in parts.chunks_exact_mut(2).zip(datagrams.chunks(size)) {
                    pair.copy_from_slice(&[IoSlice::new(header), IoSlice::new(datagram)]);
                    filled += 2;
                }
                self.socket.send(to, &parts[..filled], segment, dont_fragment)
            };
            match sent {
                Ok(()) => {}
                // No segmentation here, or not for this: one by one, which also tells the
                // real error.
                Err(Errno::INVAL | Errno::IO | Errno::OPNOTSUPP | Errno::MSGSIZE) => {
                    let mut failed = Ok(());
                    for datagram in datagrams.chunks(size) {
                        match self.send_one(header, to, datagram, dont_fragment) {
                            Ok(()) => {}
                            Err(errno @ (Errno::AGAIN | Errno::NOBUFS)) => return Err(errno),
                            // A shorter one may fit.
                            Err(errno) => failed = Err(errno),
                        }
                    }
                    failed?;
                }
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }
}

impl AsFd for Mapping {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// `UDP_MAX_SEGMENTS` of every kernel since 4.18 (128 since 6.9).
pub(super) const MAX_SEGMENTS: usize = 64;
/// The longest payload of IPv4.
pub(super) const MAX_BYTES: usize = 65_507;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Device, MAX_PACKET, Tun, TxOffload, open_tun};
    use crate::namespace;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::net::UdpSocket;

    fn ready(mapping: &Mapping) -> bool {
        let timeout = Timespec { tv_sec: 5, tv_nsec: 0 };
        poll(&mut [PollFd::new(mapping, PollFlags::IN)], Some(&timeout)).unwrap() == 1
    }

    fn open(address: &str) -> Mapping {
        let source: IpAddr = address.parse().unwrap();
        let pin = Pin {
            source: Some(source),
            device: Some(1), // lo, in every namespace
            mark: None,
        };
        Mapping::open(source, &pin).unwrap()
    }

    #[test]
    fn datagrams_pass_both_ways_and_peers_share_the_port() {
        for address in ["127.0.0.1", "::1"] {
            let mut mapping = open(address);
            let mut ports = Vec::new();
            for payload in [&b"first"[..], b"", b"third"] {
                let far = UdpSocket::bind((address, 0)).unwrap();
                mapping.send(far.local_addr().unwrap(), payload, None, true).unwrap();
                let mut buf = [0; 64];
                let (len, from) = far.recv_from(&mut buf).unwrap();
                assert_eq!(&buf[..len], payload);
                assert_eq!(from, mapping.local_addr().unwrap());
                ports.push(from.port());
                far.send_to(b"answer", from).unwrap();
                assert!(ready(&mapping));
                let received = mapping.recv(&mut buf).unwrap();
                let from = far.local_addr().unwrap();
                assert_eq!(received, Received { len: 6, from, segment: None });
                assert_eq!(mapping.recv(&mut buf), Err(Errno::AGAIN));
            }
            ports.dedup();
            assert_eq!(ports.len(), 1, "{address}");
        }
    }

    #[test]
    fn super_datagrams_pass_whole() {
        for address in ["127.0.0.1", "::1"] {
            let (mut near, mut far) = (open(address), open(address));
            let to = far.local_addr().unwrap();
            let from = near.local_addr().unwrap();
            let payload: Vec<u8> = (0..30_500_u32).map(|n| (n % 251) as u8).collect();
            near.send(to, &payload, Some(1000), true).unwrap();
            let mut buf = vec![0; 65_535];
            assert!(ready(&far));
            let received = far.recv(&mut buf).unwrap();
            assert_eq!(received, Received { len: 30_500, from, segment: Some(1000) });
            assert_eq!(buf[..30_500], payload);

            // More than 64 segments, and sizes that are no super-datagram at all.
            for (len, size) in [(6_500, 100), (500, 1000), (1000, 1000), (1001, 1000)] {
                far.send(from, &payload[..len], Some(size), false).unwrap();
                let mut got = 0;
                while got < len {
                    assert!(ready(&near), "{len} by {size}");
                    got += near.recv(&mut buf).unwrap().len;
                }
                assert_eq!(near.recv(&mut buf), Err(Errno::AGAIN), "{len} by {size}");
            }
        }
    }

    #[test]
    fn refusals_name_their_peer_and_disturb_no_other() {
        namespace::alone(|| {
            for address in ["127.0.0.1", "::1"] {
                let mut mapping = open(address);
                let far = UdpSocket::bind((address, 0)).unwrap();
                let gone = || UdpSocket::bind((address, 0)).unwrap().local_addr().unwrap();
                let closed = [gone(), gone()];
                for peer in closed {
                    mapping.send(peer, b"anyone?", None, true).unwrap();
                    // The pending error is not this peer's.
                    mapping.send(far.local_addr().unwrap(), b"hello", None, true).unwrap();
                    assert_eq!(far.recv(&mut [0; 16]).unwrap(), 5);
                }
                far.send_to(b"hello", mapping.local_addr().unwrap()).unwrap();
                let mut buf = [0; 64];
                assert_eq!(mapping.recv(&mut buf).unwrap().len, 5);
                for peer in closed {
                    let error = mapping.error().expect("a record");
                    assert_eq!(error.destination, peer);
                    assert_eq!(error.failure, Failure::Refused);
                }
                assert_eq!(mapping.error(), None);
                assert_eq!(mapping.recv(&mut buf), Err(Errno::AGAIN));
            }
        });
    }

    #[test]
    fn too_long_for_the_buffer() {
        let mut near = open("127.0.0.1");
        let far = open("127.0.0.1");
        near.send(far.local_addr().unwrap(), &[0; 100], None, false).unwrap();
        assert!(ready(&far));
        assert_eq!(far.recv(&mut [0; 50]), Err(Errno::MSGSIZE));
    }

    const SETUP: &str = "
        ip link set lo up
        ip link add up0 type veth peer name far0
        ip link set up0 mtu 1400
        ip link set far0 up
        ip link set up0 up
        ip addr add 192.0.2.2/24 dev up0
        ip addr add 2001:db8::2/64 dev up0 nodad
        ip neigh add 192.0.2.9 dev up0 lladdr 02:00:00:00:00:09
        ip neigh add 2001:db8::9 dev up0 lladdr 02:00:00:00:00:09
        ip route add 192.0.2.128/25 dev up0 mtu 1300
        ip route add prohibit 198.51.100.0/24
    ";

    #[test]
    fn local_failures() {
        namespace::within(SETUP, || {
            namespace::await_local("2001:db8::2");
            let up0 = rustix::net::netdevice::name_to_index(
                UdpSocket::bind("127.0.0.1:0").unwrap(),
                "up0",
            );
            let device = up0.ok();
            let too_big = |mtu| Err(SendError::Failed(Failure::TooBig { mtu }));
            let refused = |failure| Err(SendError::Failed(failure));
            #[rustfmt::skip]
            let cases = [
                ("fits", "192.0.2.9", device, 1372, None, true, Ok(())),
                ("one byte over", "192.0.2.9", device, 1373, None, true, too_big(1400)),
                ("fragmented", "192.0.2.9", device, 1373, None, false, Ok(())),
                ("over the route's MTU", "192.0.2.200", device, 1300, None, true, too_big(1300)),
                ("segments fit", "192.0.2.9", device, 5000, Some(1372), true, Ok(())),
                ("segments don't", "192.0.2.9", device, 5000, Some(1373), true, too_big(1400)),
                ("segments fragmented", "192.0.2.9", device, 5000, Some(1373), false, Ok(())),
                ("v6 fits", "2001:db8::9", device, 1352, None, true, Ok(())),
                ("v6 one byte over", "2001:db8::9", device, 1353, None, true, too_big(1400)),
                ("v6 fragmented", "2001:db8::9", device, 1353, None, false, Ok(())),
                ("v6 segments don't", "2001:db8::9", device, 5000, Some(1353), true, too_big(1400)),
                ("broadcast", "192.0.2.255", device, 10, None, true, Ok(())),
                ("group, by the device alone", "224.0.0.251", device, 10, None, true, Ok(())),
                ("v6 group", "ff02::fb", device, 10, None, true, Ok(())),
                ("no route", "203.0.113.1", None, 10, None, true, refused(Failure::NetUnreachable)),
                ("prohibited", "198.51.100.1", None, 10, None, true, refused(Failure::Prohibited)),
            ];
            for (name, to, device, len, segment, dont_fragment, expected) in cases {
                let to: IpAddr = to.parse().unwrap();
                let source: IpAddr = match to {
                    IpAddr::V4(_) => "192.0.2.2".parse().unwrap(),
                    IpAddr::V6(_) => "2001:db8::2".parse().unwrap(),
                };
                let pin = Pin { source: Some(source), device, mark: None };
                let mut mapping = Mapping::open(to, &pin).unwrap();
                let to = SocketAddr::new(to, 7);
                let sent = mapping.send(to, &vec![0; len], segment, dont_fragment);
                assert_eq!(sent, expected, "{name}");
                assert_eq!(mapping.error(), None, "{name}: told by the send");
            }
        });
    }

    /// The network is a TUN device that answers every datagram with one ICMP error.
    #[test]
    fn every_icmp_error_arrives() {
        namespace::within("ip link set lo up", || {
            let fd = match open_tun("t0", false, false) {
                Ok(fd) => fd,
                Err(error) => return eprintln!("skipped: {error}"),
            };
            let mut tun = Tun::adopt(fd).unwrap();
            for line in [
                "ip addr add 192.0.2.1/24 dev t0",
                "ip addr add 2001:db8::1/64 dev t0 nodad",
                "ip link set t0 up",
            ] {
                namespace::run(line);
            }
            namespace::await_local("2001:db8::1");
            let v4 = [
                (3, 0, Failure::NetUnreachable),
                (3, 1, Failure::HostUnreachable),
                (3, 2, Failure::Refused),
                (3, 3, Failure::Refused),
                (3, 4, Failure::TooBig { mtu: 1300 }),
                (3, 9, Failure::NetUnreachable),
                (3, 10, Failure::Prohibited),
                (3, 13, Failure::Prohibited),
                (11, 0, Failure::HostUnreachable),
            ];
            let v6 = [
                (1, 0, Failure::NetUnreachable),
                (1, 1, Failure::Prohibited),
                (1, 3, Failure::HostUnreachable),
                (1, 4, Failure::Refused),
                (1, 5, Failure::Prohibited),
                (2, 0, Failure::TooBig { mtu: 1300 }),
                (3, 0, Failure::HostUnreachable),
            ];
            for (peers, cases) in [("192.0.2.", &v4[..]), ("2001:db8::", &v6[..])] {
                let mut mapping =
                    Mapping::open(format!("{peers}1").parse().unwrap(), &Pin::default()).unwrap();
                for (number, &(kind, code, expected)) in cases.iter().enumerate() {
                    let peer: IpAddr = format!("{peers}{}", 10 + number).parse().unwrap();
                    let peer = SocketAddr::new(peer, 7000);
                    mapping.send(peer, b"anyone?", None, true).unwrap();
                    answer_with_error(&mapping, &mut tun, kind, code);
                    let error =
                        mapping.error().unwrap_or_else(|| panic!("{kind}/{code}: no record"));
                    assert_eq!(error.destination, peer, "{kind}/{code}");
                    assert_eq!(error.failure, expected, "{kind}/{code}");
                    assert_eq!((error.icmp.kind, error.icmp.code), (kind, code));
                    assert_eq!(error.icmp.v6, peer.is_ipv6());
                    assert_eq!(mapping.error(), None, "{kind}/{code}");
                }
            }
        });
    }

    /// Reads packets until one to port 7000 and writes an error that quotes it.
    fn answer_with_error(mapping: &Mapping, tun: &mut Tun, kind: u8, code: u8) {
        let mut packet = vec![0; MAX_PACKET];
        let len = loop {
            let timeout = Timespec { tv_sec: 5, tv_nsec: 0 };
            let mut fds = [PollFd::from_borrowed_fd(tun.as_fd(), PollFlags::IN)];
            assert_eq!(poll(&mut fds, Some(&timeout)).unwrap(), 1, "no datagram within 5 s");
            let (len, _) = tun.read(&mut packet).unwrap();
            let header = if packet[0] >> 4 == 4 { 20 } else { 40 };
            if packet[header + 2..header + 4] == 7000_u16.to_be_bytes() {
                break len;
            }
        };
        let error = namespace::icmp_error(&packet[..len], kind, code, 1300);
        tun.write(&error, TxOffload::default()).unwrap();
        // Usually there by now, but the kernel may leave it to another thread.
        let mut fds = [PollFd::new(mapping, PollFlags::ERR)];
        let timeout = Timespec { tv_sec: 5, tv_nsec: 0 };
        assert_eq!(poll(&mut fds, Some(&timeout)).unwrap(), 1, "no error within 5 s");
    }

    #[test]
    #[ignore = "a measurement"]
    fn cost_of_a_datagram() {
        let (mut near, far) = (open("127.0.0.1"), open("127.0.0.1"));
        let to = far.local_addr().unwrap();
        let mut buf = vec![0; 65_535];
        for (len, segment) in [(64, None), (1400, None), (64 * 1000, Some(1000))] {
            let (mut sends, mut receives) = (std::time::Duration::ZERO, std::time::Duration::ZERO);
            for _ in 0..2_000 {
                let batch = if segment.is_some() { 1 } else { 50 };
                let start = std::time::Instant::now();
                for _ in 0..batch {
                    near.send(to, &buf[..len], segment, true).unwrap();
                }
                sends += start.elapsed() / batch;
                let start = std::time::Instant::now();
                let mut count = 0;
                while far.recv(&mut buf).is_ok() {
                    count += 1;
                }
                receives += start.elapsed() / count;
            }
            println!("{len}: send {:?}, recv {:?}", sends / 2_000, receives / 2_000);
        }
    }
}
