//! Sockets of whole messages whose errors come through the error queue: UDP and echo.
//!
//! # Theory of operation
//!
//! With `IP_RECVERR` a datagram socket learns of every ICMP error for what it sent, connected
//! or not. The kernel then tells of it three times: a record in the error queue (`EPOLLERR`),
//! which alone says *which* destination and what ICMP; and once as the errno of the next
//! receive and of the next send, which may concern another peer altogether. So a record is
//! the only thing believed: an errno of a receive is skipped, and a failed send is tried once
//! more, since the kernel forgets a pending error by telling it. What fails twice is this
//! send's own failure. Records of local origin repeat what a send returned, and are skipped.
//!
//! **Fragments.** What the app forbade to fragment is sent with `IP_PMTUDISC_DO`: too long for
//! the path as far as it is known, it fails with `EMSGSIZE`, and the app is told the MTU. All
//! else is sent with `IP_PMTUDISC_DONT`, without DF, and fragmented here or by a router. The
//! option belongs to the socket, so it is set anew when a message differs from the last one.
//! IPv6 is treated alike: a whole packet from the app is not to be fragmented, one that came
//! in fragments may be.

#![allow(unsafe_code)]

use std::io::IoSlice;
use std::mem::offset_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use engine::Failure;
use rustix::io::Errno;
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};
use socket2::{Protocol, Socket, Type};

use super::error::{Call, EgressError, IcmpError, Origin, failure};
use super::pin::{Pin, at, set_flag};

/// Why a message did not leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The socket's buffer or the device's queue is full. The message is lost, as messages
    /// may be; of a super-datagram a part may have left, so it is not to be sent again.
    #[error("no room to send")]
    WouldBlock,
    /// What the local network said.
    #[error("not sent: {0}")]
    Failed(Failure),
}

/// A message that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Bytes in the buffer.
    pub len: usize,
    /// Who sent them.
    pub from: SocketAddr,
    /// They are many datagrams of this size each, the last one of what is left.
    pub segment: Option<u16>,
}

/// An ICMP error for a message that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reported {
    /// Whom the message was for.
    pub(crate) destination: SocketAddr,
    pub(crate) failure: Failure,
    pub(super) icmp: IcmpError,
    /// Bytes of the message that the error quotes, in the caller's buffer.
    pub(super) quoted: usize,
}

/// A non-blocking datagram socket with the error queue on.
#[derive(Debug)]
pub(super) struct MessageSocket {
    socket: Socket,
    pin: Pin,
    v6: bool,
    /// What the socket is set to; `None`: the kernel's default.
    dont_fragment: Option<bool>,
}

impl MessageSocket {
    /// A pinned socket of `destination`'s IP version, neither bound to the source nor connected.
    pub(super) fn open(
        destination: IpAddr,
        kind: Type,
        protocol: Protocol,
        pin: &Pin,
    ) -> Result<Self, EgressError> {
        let socket = pin.socket(destination, kind, protocol)?;
        let (level, name) = match destination {
            IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_RECVERR),
            IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
        };
        set_flag(&socket, level, name).map_err(at(Call::Option))?;
        Ok(Self { socket, pin: *pin, v6: destination.is_ipv6(), dont_fragment: None })
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Has the kernel take messages of that peer alone.
    pub(super) fn connect(&self, peer: SocketAddr) -> Result<(), EgressError> {
        self.pin.connect(&self.socket, peer)
    }

    /// Sends one message made of `parts`, or with `segment` as many as it takes.
    pub(super) fn send(
        &mut self,
        to: SocketAddr,
        parts: &[IoSlice<'_>],
        segment: Option<u16>,
        dont_fragment: bool,
    ) -> Result<(), Errno> {
        self.set_dont_fragment(dont_fragment)?;
        let mut address = Address::from(self.pin.scoped(to));
        let mut told = false;
        loop {
            match send_message(self.socket.as_fd(), &mut address, parts, segment) {
                Ok(()) => return Ok(()),
                Err(Errno::INTR) => {}
                // A pending error of an earlier message, perhaps: telling it has cleared it.
                Err(errno) if !told && errno != Errno::AGAIN && errno != Errno::NOBUFS => {
                    told = true;
                }
                Err(errno) => return Err(errno),
            }
        }
    }

    /// What the app is to see of a failed send to `to`.
    pub(super) fn send_error(&self, errno: Errno, to: SocketAddr) -> SendError {
        match errno {
            Errno::AGAIN | Errno::NOBUFS => SendError::WouldBlock,
            Errno::MSGSIZE => SendError::Failed(Failure::TooBig { mtu: self.path_mtu(to) }),
            other => SendError::Failed(failure(other, 0)),
        }
    }

    /// Receives one message. Only `AGAIN` says that there is none. `MSGSIZE`: one was too long for
    /// `buf` and is lost; any other errno: there are more pending errors than one call skips.
    pub(super) fn receive(&self, buf: &mut [u8]) -> Result<Received, Errno> {
        let mut pending = Errno::AGAIN;
        for _ in 0..PENDING {
            let mut segment = None;
            let arrived = receive_message(self.socket.as_fd(), buf, 0, |level, kind, value| {
                if (level, kind) == (libc::SOL_UDP, libc::UDP_GRO)
                    && let Some(size) = value.first_chunk()
                {
                    segment = u16::try_from(i32::from_ne_bytes(*size)).ok();
                }
            });
            match arrived {
                Ok(Arrived { cut: true, .. }) => return Err(Errno::MSGSIZE),
                Ok(Arrived { len, from, .. }) => {
                    let from = from.ok_or(Errno::AFNOSUPPORT)?;
                    let segment = segment.filter(|&size| size != 0 && usize::from(size) < len);
                    return Ok(Received { len, from, segment });
                }
                Err(Errno::AGAIN) => return Err(Errno::AGAIN),
                // The error queue has it.
                Err(errno) => pending = errno,
            }
        }
        Err(pending)
    }

    /// Takes the oldest ICMP error, until `None`.
    pub(super) fn reported(&self, quoted: &mut [u8]) -> Option<Reported> {
        reported(self.socket.as_fd(), quoted)
    }

    fn set_dont_fragment(&mut self, dont_fragment: bool) -> Result<(), Errno> {
        if self.dont_fragment == Some(dont_fragment) {
            return Ok(());
        }
        match (self.v6, dont_fragment) {
            (false, true) => sockopt::set_ip_mtu_discover(&self.socket, Ipv4PathMtuDiscovery::DO),
            (false, false) => {
                sockopt::set_ip_mtu_discover(&self.socket, Ipv4PathMtuDiscovery::DONT)
            }
            (true, true) => sockopt::set_ipv6_mtu_discover(&self.socket, Ipv6PathMtuDiscovery::DO),
            (true, false) => {
                sockopt::set_ipv6_mtu_discover(&self.socket, Ipv6PathMtuDiscovery::DONT)
            }
        }?;
        self.dont_fragment = Some(dont_fragment);
        Ok(())
    }

    /// The MTU of the path to `to` as far as this host knows. Only a connected socket tells,
    /// so one is made for the question; it sends nothing.
    fn path_mtu(&self, to: SocketAddr) -> u16 {
        let ask = || {
            let pin = &self.pin;
            let probe = pin.socket(to.ip(), Type::DGRAM, Protocol::UDP).ok()?;
            pin.bind(&probe, to.ip()).ok()?;
            let port = if to.port() == 0 { 9 } else { to.port() };
            pin.connect(&probe, SocketAddr::new(to.ip(), port)).ok()?;
            let mtu = match to {
                SocketAddr::V4(_) => sockopt::ip_mtu(&probe),
                SocketAddr::V6(_) => sockopt::ipv6_mtu(&probe),
            };
            Some(u16::try_from(mtu.ok()?).unwrap_or(u16::MAX))
        };
        // RFC 791 and RFC 8200 5: what every path carries.
        ask().unwrap_or(if self.v6 { 1280 } else { 576 })
    }
}

/// Takes the oldest ICMP error out of a socket's error queue, until `None`.
pub(crate) fn reported(socket: BorrowedFd<'_>, quoted: &mut [u8]) -> Option<Reported> {
    loop {
        let mut record = None;
        let flags = libc::MSG_ERRQUEUE;
        let arrived = receive_message(socket, quoted, flags, |level, kind, value| {
            if matches!(
                (level, kind),
                (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
            ) {
                record = Record::parse(value);
            }
        });
        let arrived = match arrived {
            Ok(arrived) => arrived,
            Err(Errno::INTR) => continue,
            Err(_) => return None,
        };
        let (Some(record), Some(destination)) = (record, arrived.from) else {
            continue;
        };
        let Origin::Icmp(icmp) = record.origin else {
            continue;
        };
        let Some(failure) = icmp.failure(record.info) else {
            continue;
        };
        return Some(Reported { destination, failure, icmp, quoted: arrived.len });
    }
}

impl AsFd for MessageSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// `struct sock_extended_err`, as far as it matters.
#[derive(Debug, Clone, Copy)]
struct Record {
    origin: Origin,
    info: u32,
}

impl Record {
    fn parse(value: &[u8]) -> Option<Self> {
        // ee_errno u32, ee_origin, ee_type, ee_code, ee_pad, ee_info u32, ee_data u32
        let value: &[u8; 16] = value.first_chunk()?;
        Some(Self {
            origin: Origin::new(value[4], value[5], value[6]),
            info: u32::from_ne_bytes([value[8], value[9], value[10], value[11]]),
        })
    }
}

/// What one `recvmsg()` brought.
struct Arrived {
    len: usize,
    from: Option<SocketAddr>,
    /// The buffer was too short.
    cut: bool,
}

/// `recvmsg()` that never waits; `control` sees level, type and bytes of each control message.
fn receive_message(
    fd: BorrowedFd<'_>,
    buf: &mut [u8],
    flags: libc::c_int,
    mut control: impl FnMut(libc::c_int, libc::c_int, &[u8]),
) -> Result<Arrived, Errno> {
    let mut address = Address::EMPTY;
    let mut space = Control([0; 16]);
    let mut slice = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    // SAFETY: all zeroes is a valid msghdr: null pointers with lengths of zero.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = (&raw mut address).cast();
    header.msg_namelen = size_of::<Address>() as libc::socklen_t;
    header.msg_iov = &raw mut slice;
    header.msg_iovlen = 1;
    header.msg_control = (&raw mut space).cast();
    header.msg_controllen = size_of::<Control>() as _;
    // SAFETY: every pointer in `header` is to a live local or to `buf`, writable for the length
    // beside it.
    let received =
        unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, flags | libc::MSG_DONTWAIT) };
    let Ok(received) = usize::try_from(received) else {
        return Err(last_errno());
    };
    // SAFETY: the kernel left in `header` the length of the control messages that it wrote to
    // `space`, which is aligned for them; CMSG_FIRSTHDR and CMSG_NXTHDR stay inside.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(&raw const header);
        while let Some(head) = message.as_ref() {
            let length = head.cmsg_len.saturating_sub(libc::CMSG_LEN(0) as usize);
            let value = std::slice::from_raw_parts(libc::CMSG_DATA(message), length);
            control(head.cmsg_level, head.cmsg_type, value);
            message = libc::CMSG_NXTHDR(&raw const header, message);
        }
    }
    Ok(Arrived {
        len: received.min(buf.len()),
        from: address.read(header.msg_namelen as usize),
        cut: header.msg_flags & libc::MSG_TRUNC != 0,
    })
}

/// `sendmsg()` that never waits.
fn send_message(
    fd: BorrowedFd<'_>,
    to: &mut Address,
    parts: &[IoSlice<'_>],
    segment: Option<u16>,
) -> Result<(), Errno> {
    let mut space = Control([0; 16]);
    // SAFETY: all zeroes is a valid msghdr: null pointers with lengths of zero.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = (&raw mut *to).cast();
    header.msg_namelen = to.length();
    // An `IoSlice` has the layout of an iovec, and sendmsg() only reads what they point to.
    header.msg_iov = parts.as_ptr().cast_mut().cast();
    header.msg_iovlen = parts.len() as _;
    if let Some(size) = segment {
        header.msg_control = (&raw mut space).cast();
        // SAFETY: `space` is aligned and larger than one control message of two bytes, which
        // CMSG_FIRSTHDR therefore finds room for.
        unsafe {
            header.msg_controllen = libc::CMSG_SPACE(size_of::<u16>() as u32) as _;
            let message = libc::CMSG_FIRSTHDR(&raw const header);
            (*message).cmsg_level = libc::SOL_UDP;
            (*message).cmsg_type = libc::UDP_SEGMENT;
            (*message).cmsg_len = libc::CMSG_LEN(size_of::<u16>() as u32) as _;
            libc::CMSG_DATA(message).cast::<u16>().write_unaligned(size);
        }
    }
    // SAFETY: every pointer in `header` is to something live, readable for the length beside it.
    let sent = unsafe {
        libc::sendmsg(fd.as_raw_fd(), &raw const header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
    };
    if sent < 0 { Err(last_errno()) } else { Ok(()) }
}

/// Lets a raw ICMP socket receive messages of one type alone.
pub(super) fn set_filter(socket: &Socket, kind: u8) -> std::io::Result<()> {
    // Both filters are sets of types to drop: 32 of ICMP, 256 of ICMPv6.
    let mut dropped = [u32::MAX; 8];
    dropped[usize::from(kind / 32)] ^= 1 << (kind % 32);
    let v6 = kind >= 128; // where ICMPv6 has its echo, and ICMP has nothing
    let (level, name, words) = if v6 {
        (libc::IPPROTO_ICMPV6, ICMPV6_FILTER, dropped.len())
    } else {
        (SOL_RAW, ICMP_FILTER, 1)
    };
    // SAFETY: the pointer is to `words` live words, and the length says so.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            dropped.as_ptr().cast(),
            (words * size_of::<u32>()) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Room for control messages: an IPv6 error with its offender takes 64 bytes.
#[repr(C, align(8))]
struct Control([u64; 16]);

/// An IPv4 or IPv6 socket address.
#[repr(C)]
#[derive(Clone, Copy)]
union Address {
    family: libc::sa_family_t,
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl Address {
    const EMPTY: Self = Self {
        v6: libc::sockaddr_in6 {
            sin6_family: libc::AF_UNSPEC as libc::sa_family_t,
            sin6_port: 0,
            sin6_flowinfo: 0,
            sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
            sin6_scope_id: 0,
        },
    };

    /// The address that the kernel wrote `length` bytes of.
    fn read(&self, length: usize) -> Option<SocketAddr> {
        if length < offset_of!(libc::sockaddr_in, sin_zero) {
            return None;
        }
        // SAFETY: the whole union was initialised, and each member is valid for any bytes.
        unsafe {
            match libc::c_int::from(self.family) {
                libc::AF_INET => {
                    let address = Ipv4Addr::from(self.v4.sin_addr.s_addr.to_ne_bytes());
                    let port = u16::from_be(self.v4.sin_port);
                    Some(SocketAddrV4::new(address, port).into())
                }
                libc::AF_INET6 if length >= size_of::<libc::sockaddr_in6>() => {
                    let address = Ipv6Addr::from(self.v6.sin6_addr.s6_addr);
                    let port = u16::from_be(self.v6.sin6_port);
                    Some(SocketAddrV6::new(address, port, 0, self.v6.sin6_scope_id).into())
                }
                _ => None,
            }
        }
    }

    fn length(&self) -> libc::socklen_t {
        // SAFETY: every member begins with the family.
        let length = match libc::c_int::from(unsafe { self.family }) {
            libc::AF_INET => size_of::<libc::sockaddr_in>(),
            libc::AF_INET6 => size_of::<libc::sockaddr_in6>(),
            _ => 0,
        };
        length as libc::socklen_t
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(v4) => {
                let mut empty = Self::EMPTY;
                empty.v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                    sin_zero: [0; 8],
                };
                empty
            }
            SocketAddr::V6(v6) => Self {
                v6: libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                    sin6_scope_id: v6.scope_id(),
                },
            },
        }
    }
}

/// `<linux/icmp.h>`, `<linux/icmpv6.h>`
const SOL_RAW: libc::c_int = 255;
const ICMP_FILTER: libc::c_int = 1;
const ICMPV6_FILTER: libc::c_int = 1;

/// Pending errors that a receive skips.
const PENDING: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive() {
        for text in ["192.0.2.1:53", "[2001:db8::1]:443", "[fe80::1%3]:5353"] {
            let address: SocketAddr = text.parse().unwrap();
            let raw = Address::from(address);
            assert_eq!(raw.read(raw.length() as usize), Some(address), "{text}");
        }
        assert_eq!(Address::EMPTY.read(28), None);
        assert_eq!(Address::from("192.0.2.1:53".parse::<SocketAddr>().unwrap()).read(7), None);
    }

    #[test]
    fn records() {
        let mut value = [0; 16 + 28];
        value[..4].copy_from_slice(&libc::ECONNREFUSED.to_ne_bytes());
        value[4..7].copy_from_slice(&[2, 3, 4]);
        value[8..12].copy_from_slice(&1300_u32.to_ne_bytes());
        let record = Record::parse(&value).unwrap();
        assert_eq!(record.origin, Origin::new(2, 3, 4));
        assert_eq!(record.info, 1300);
        assert!(Record::parse(&value[..15]).is_none());
    }
}
