//! A sequence of ICMP echo requests to one destination.
//!
//! # Theory of operation
//!
//! Where the host lets the user (`net.ipv4.ping_group_range`), a ping socket does it: the kernel
//! chooses the identifier, sums, and delivers only the answers to it. Elsewhere a raw socket
//! does (CAP_NET_RAW), which sees every echo reply of the destination and filters for an
//! identifier of ours. Where neither may be opened, echo is not supported.
//!
//! Either socket is connected to the one destination of its flow, so errors and answers are
//! that flow's; a ping socket takes answers from anywhere, so the sender is compared. Errors
//! come through the error queue (`message`), with the sequence number that the quoted
//! request had.

use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};

use engine::Failure;
use rustix::io::Errno;
use socket2::{Protocol, Type};

pub use super::message::SendError;

use super::error::{Call, EgressError, IcmpError};
use super::message::{MessageSocket, set_filter};
use super::pin::{Pin, at};

/// The far side of one echo flow.
#[derive(Debug)]
pub struct Echo {
    socket: MessageSocket,
    destination: IpAddr,
    /// The identifier on the wire, where it is ours to choose.
    raw: Option<u16>,
}

/// What the network said about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EchoError {
    /// Which request, where the error quoted enough to tell.
    pub sequence: Option<u16>,
    /// What the app is to see.
    pub failure: Failure,
    /// The message, as it came.
    pub icmp: IcmpError,
}

impl Echo {
    /// Opens a socket for requests to `destination`.
    pub fn open(destination: IpAddr, pin: &Pin) -> Result<Self, EgressError> {
        let protocol = match destination {
            IpAddr::V4(_) => Protocol::ICMPV4,
            IpAddr::V6(_) => Protocol::ICMPV6,
        };
        let (socket, raw) = match MessageSocket::open(destination, Type::DGRAM, protocol, pin) {
            Ok(socket) => (socket, None),
            Err(error) if forbidden(&error) => {
                let socket = MessageSocket::open(destination, Type::RAW, protocol, pin).map_err(
                    |error| {
                        if forbidden(&error) { EgressError::EchoUnsupported } else { error }
                    },
                )?;
                set_filter(socket.socket(), echo_reply(destination)).map_err(at(Call::Option))?;
                (socket, Some(identifier()))
            }
            Err(error) => return Err(error),
        };
        if pin.source.is_some() {
            pin.bind(socket.socket(), destination)?;
        }
        pin.connect(socket.socket(), SocketAddr::new(destination, 0))?;
        Ok(Self { socket, destination, raw })
    }

    /// Sends one request. `dont_fragment` as the app's packet had it.
    pub fn send(
        &mut self,
        sequence: u16,
        payload: &[u8],
        dont_fragment: bool,
    ) -> Result<(), SendError> {
        let mut header = [0; HEADER];
        header[0] = echo_request(self.destination);
        header[4..6].copy_from_slice(&self.raw.unwrap_or(0).to_be_bytes());
        header[6..8].copy_from_slice(&sequence.to_be_bytes());
        if self.raw.is_some() && self.destination.is_ipv4() {
            // Over IPv6 the kernel sums: the addresses are in the sum.
            let sum = checksum(&header, payload);
            header[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        let to = SocketAddr::new(self.destination, 0);
        let parts = [IoSlice::new(&header), IoSlice::new(payload)];
        self.socket
            .send(to, &parts, None, dont_fragment)
            .map_err(|errno| self.socket.send_error(errno, to))
    }

    /// Receives one answer: the sequence number, and where in `buf` the payload is. `AGAIN`
    /// ends the turn. Every other error is one message that is gone: `MSGSIZE` was too long for
    /// `buf` (which should hold 65,535 bytes), `NOMSG` was no answer of this flow's.
    pub fn recv(&self, buf: &mut [u8]) -> Result<(u16, Range<usize>), Errno> {
        let received = self.socket.receive(buf)?;
        // Only a raw IPv4 socket delivers the IP header.
        let start = match (self.raw, self.destination) {
            (Some(_), IpAddr::V4(_)) => usize::from(buf.first().copied().unwrap_or(0) & 0x0f) * 4,
            _ => 0,
        };
        let end = received.len;
        let (kind, identifier, sequence) =
            buf.get(start..end).and_then(header).ok_or(Errno::NOMSG)?;
        let ours = kind == echo_reply(self.destination)
            && self.raw.is_none_or(|raw| raw == identifier)
            && received.from.ip() == self.destination;
        if ours { Ok((sequence, start + HEADER..end)) } else { Err(Errno::NOMSG) }
    }

    /// Takes the oldest error that the network reported. To be called until `None` when the
    /// socket shows `EPOLLERR`.
    pub fn error(&self) -> Option<EchoError> {
        loop {
            let mut quoted = [0; 64];
            let reported = self.socket.reported(&mut quoted)?;
            let request = header(&quoted[..reported.quoted]);
            // A raw socket hears of other sockets' requests to this destination.
            if let (Some(raw), Some((_, identifier, _))) = (self.raw, request)
                && raw != identifier
            {
                continue;
            }
            return Some(EchoError {
                sequence: request.map(|(_, _, sequence)| sequence),
                failure: reported.failure,
                icmp: reported.icmp,
            });
        }
    }

    /// Whether it took a raw socket.
    pub fn is_raw(&self) -> bool {
        self.raw.is_some()
    }
}

impl AsFd for Echo {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Whether a socket may not be opened by this user. `EPROTONOSUPPORT`: IPv6 is off, or the
/// kernel has no ping sockets.
fn forbidden(error: &EgressError) -> bool {
    matches!(
        error,
        EgressError::Call {
            call: Call::Socket,
            errno: Errno::ACCESS | Errno::PERM | Errno::PROTONOSUPPORT,
        }
    )
}

/// Type, identifier and sequence number of an ICMP echo message.
fn header(message: &[u8]) -> Option<(u8, u16, u16)> {
    let header: &[u8; HEADER] = message.first_chunk()?;
    Some((
        header[0],
        u16::from_be_bytes([header[4], header[5]]),
        u16::from_be_bytes([header[6], header[7]]),
    ))
}

/// An identifier for a raw socket: the next after a random first, so that neither another
/// program's nor the last run's are likely to be met.
fn identifier() -> u16 {
    use std::hash::{BuildHasher, RandomState};
    static NEXT: LazyLock<AtomicU16> =
        LazyLock::new(|| AtomicU16::new(RandomState::new().hash_one(0) as u16));
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The Internet checksum (RFC 1071) of an even number of bytes and what follows them.
fn checksum(header: &[u8; HEADER], payload: &[u8]) -> u16 {
    let sum: u64 = header
        .chunks(2)
        .chain(payload.chunks(2))
        .map(|pair| u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    let mut folded = sum;
    while folded > 0xffff {
        folded = (folded >> 16) + (folded & 0xffff);
    }
    !(folded as u16)
}

const fn echo_request(destination: IpAddr) -> u8 {
    if destination.is_ipv4() { 8 } else { 128 }
}

const fn echo_reply(destination: IpAddr) -> u8 {
    if destination.is_ipv4() { 0 } else { 129 }
}

/// An echo message before its payload.
const HEADER: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Device, MAX_PACKET, Tun, TxOffload, open_tun};
    use crate::namespace;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn wait(fd: BorrowedFd<'_>) {
        wait_for(fd, PollFlags::IN);
    }

    fn wait_for(fd: BorrowedFd<'_>, flags: PollFlags) {
        let timeout = Timespec { tv_sec: 5, tv_nsec: 0 };
        let mut fds = [PollFd::from_borrowed_fd(fd, flags)];
        assert_eq!(poll(&mut fds, Some(&timeout)).unwrap(), 1, "nothing within 5 s");
    }

    fn answers(raw: bool) {
        let mut buf = vec![0; 65_535];
        for address in ["127.0.0.1", "::1"] {
            let destination: IpAddr = address.parse().unwrap();
            let pin = Pin { source: Some(destination), device: Some(1), mark: None };
            let mut echo = Echo::open(destination, &pin).unwrap();
            let mut other = Echo::open(destination, &pin).unwrap();
            assert_eq!(echo.is_raw(), raw, "{address}");
            for (sequence, payload) in [(1, &b""[..]), (2, b"odd"), (65_535, &[7; 9000])] {
                other.send(sequence, b"another flow's", true).unwrap();
                echo.send(sequence, payload, true).unwrap();
                wait(echo.as_fd());
                let (answered, came_back) = loop {
                    match echo.recv(&mut buf) {
                        Ok(reply) => break reply,
                        Err(Errno::AGAIN) => wait(echo.as_fd()),
                        // Another flow's.
                        Err(Errno::NOMSG) => assert!(raw, "{address}"),
                        Err(errno) => panic!("{address}: {errno}"),
                    }
                };
                assert_eq!(answered, sequence, "{address}");
                assert_eq!(&buf[came_back], payload, "{address}");
            }
            let rest = echo.recv(&mut buf).unwrap_err();
            assert!(matches!(rest, Errno::AGAIN | Errno::NOMSG), "{address}");
        }
    }

    #[test]
    fn by_ping_socket() {
        namespace::within("ip link set lo up", || {
            std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0").unwrap();
            answers(false);
        });
    }

    #[test]
    fn by_raw_socket() {
        namespace::within("ip link set lo up", || {
            // A new namespace lets nobody open ping sockets.
            answers(true);
        });
    }

    #[test]
    fn errors_tell_the_request() {
        namespace::within("ip link set lo up", || {
            let fd = match open_tun("t0", false, false) {
                Ok(fd) => fd,
                Err(error) => return eprintln!("skipped: {error}"),
            };
            let mut tun = Tun::adopt(fd).unwrap();
            for line in [
                "ip addr add 192.0.2.1/24 dev t0",
                "ip addr add 2001:db8::1/64 dev t0 nodad",
                "ip link set t0 mtu 1400",
                "ip link set t0 up",
            ] {
                namespace::run(line);
            }
            namespace::await_local("2001:db8::1");
            errors(&mut tun);
            std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0").unwrap();
            errors(&mut tun);
        });
    }

    fn errors(tun: &mut Tun) {
        #[rustfmt::skip]
        let cases = [
            ("192.0.2.9", 3, 1, Failure::HostUnreachable),
            ("192.0.2.9", 3, 13, Failure::Prohibited),
            ("192.0.2.8", 11, 0, Failure::HostUnreachable),
            ("192.0.2.7", 3, 4, Failure::TooBig { mtu: 1300 }),
            ("2001:db8::9", 1, 3, Failure::HostUnreachable),
            ("2001:db8::8", 1, 1, Failure::Prohibited),
            ("2001:db8::7", 2, 0, Failure::TooBig { mtu: 1300 }),
        ];
        for (number, (destination, kind, code, expected)) in cases.into_iter().enumerate() {
            let destination: IpAddr = destination.parse().unwrap();
            let mut echo = Echo::open(destination, &Pin::default()).unwrap();
            let other = Echo::open(destination, &Pin::default()).unwrap();
            let sequence = 700 + number as u16;
            echo.send(sequence, b"anyone?", true).unwrap();
            let packet = request(tun);
            tun.write(&namespace::icmp_error(&packet, kind, code, 1300), TxOffload::default())
                .unwrap();
            let name = format!("{destination} {kind}/{code} raw {}", echo.is_raw());
            // Usually there by now, but the kernel may leave it to another thread.
            wait_for(echo.as_fd(), PollFlags::ERR);
            let error = echo.error().unwrap_or_else(|| panic!("{name}: no record"));
            assert_eq!(error.sequence, Some(sequence), "{name}");
            assert_eq!(error.failure, expected, "{name}");
            assert_eq!(echo.error(), None, "{name}");
            assert_eq!(other.error(), None, "{name}: another flow's");
            if !matches!(expected, Failure::TooBig { .. }) {
                let size = if destination.is_ipv4() { 1372 } else { 1352 };
                assert_eq!(echo.send(1, &vec![0; size], true), Ok(()), "{name}");
                let too_big = SendError::Failed(Failure::TooBig { mtu: 1400 });
                assert_eq!(echo.send(1, &vec![0; size + 1], true), Err(too_big), "{name}");
                assert_eq!(echo.send(1, &vec![0; size + 1], false), Ok(()), "{name}");
            }
            drain(tun);
        }
    }

    /// The next echo request that leaves.
    fn request(tun: &mut Tun) -> Vec<u8> {
        let mut packet = vec![0; MAX_PACKET];
        loop {
            wait(tun.as_fd());
            let (len, _) = tun.read(&mut packet).unwrap();
            let is_request = match packet[0] >> 4 {
                4 => packet[9] == 1 && packet[20] == 8,
                _ => packet[6] == 58 && packet[40] == 128,
            };
            if is_request {
                return packet[..len].to_vec();
            }
        }
    }

    fn drain(tun: &mut Tun) {
        let mut packet = vec![0; MAX_PACKET];
        while tun.read(&mut packet).is_ok() {}
    }

    #[test]
    fn sums() {
        let cases: [(&[u8], u16); 4] =
            [(&[], 0xf7ff), (&[0, 1], 0xf7fe), (&[1], 0xf6ff), (&[0xff, 0xff, 0xff, 0xff], 0xf7ff)];
        for (payload, expected) in cases {
            assert_eq!(checksum(&[8, 0, 0, 0, 0, 0, 0, 0], payload), expected, "{payload:?}");
        }
    }
}
