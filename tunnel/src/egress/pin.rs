//! A socket that can leave only one way.
//!
//! # Theory of operation
//!
//! A verdict was given on a source address and a device, so the socket is bound to both
//! before it may send: whatever happens to routes between verdict and `connect()`, no packet
//! leaves otherwise. The device is bound by index, which a rename does not move. A bound
//! device makes the kernel ignore that there may be no route (it then asks for the
//! destination on the link), hence the route is to be looked up right before.

#![allow(unsafe_code)]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::os::fd::AsRawFd;

use rustix::io::Errno;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::error::{Call, EgressError, is_mapped};

/// What a socket is bound to before it sends anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Pin {
    /// The local address.
    pub source: Option<IpAddr>,
    /// The index of the device.
    pub device: Option<u32>,
    /// The mark of our own traffic, so that it is not routed into the tunnel again.
    pub mark: Option<u32>,
}

impl Pin {
    /// A non-blocking socket of `destination`'s IP version, marked and bound to the device,
    /// not yet to the source.
    pub(super) fn socket(
        &self,
        destination: IpAddr,
        kind: Type,
        protocol: Protocol,
    ) -> Result<Socket, EgressError> {
        if is_mapped(destination) || self.source.is_some_and(is_mapped) {
            return Err(EgressError::Mapped);
        }
        if self.source.is_some_and(|source| source.is_ipv4() != destination.is_ipv4()) {
            return Err(EgressError::Versions);
        }
        let domain = match destination {
            IpAddr::V4(_) => Domain::IPV4,
            IpAddr::V6(_) => Domain::IPV6,
        };
        let socket = Socket::new_raw(domain, kind.nonblocking().cloexec(), Some(protocol))
            .map_err(at(Call::Socket))?;
        // A raw socket has one IP version, and refuses the option.
        if destination.is_ipv6() && kind != Type::RAW {
            socket.set_only_v6(true).map_err(at(Call::Option))?;
        }
        if let Some(mark) = self.mark {
            socket.set_mark(mark).map_err(at(Call::Mark))?;
        }
        if let Some(device) = self.device.and_then(NonZeroU32::new) {
            // One option for both IP versions.
            socket.bind_device_by_index_v4(Some(device)).map_err(at(Call::Device))?;
        }
        Ok(socket)
    }

    /// Binds to the source and a port of the kernel's choice, at once.
    pub(super) fn bind(&self, socket: &Socket, destination: IpAddr) -> Result<(), EgressError> {
        let any = match destination {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let source = self.source.unwrap_or(any);
        socket.bind(&self.scoped(SocketAddr::new(source, 0)).into()).map_err(at(Call::Bind))
    }

    /// Binds to the source alone and leaves the port to `connect()`, which then may use a
    /// port that another connection to another destination has: 28,000 flows in all else.
    pub(super) fn bind_late(
        &self,
        socket: &Socket,
        destination: IpAddr,
    ) -> Result<(), EgressError> {
        if self.source.is_none() {
            return Ok(());
        }
        set_flag(socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT)
            .map_err(at(Call::Option))?;
        self.bind(socket, destination)
    }

    /// `connect()`, where `EINPROGRESS` is success.
    pub(super) fn connect(
        &self,
        socket: &Socket,
        destination: SocketAddr,
    ) -> Result<(), EgressError> {
        match socket.connect(&self.scoped(destination).into()) {
            Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
            other => other.map_err(at(Call::Connect)),
        }
    }

    /// A link-local address means the one on the pinned device.
    pub(super) fn scoped(&self, address: SocketAddr) -> SocketAddr {
        match (address, self.device) {
            (SocketAddr::V6(mut v6), Some(device)) if v6.scope_id() == 0 && is_scoped(*v6.ip()) => {
                v6.set_scope_id(device);
                v6.into()
            }
            _ => address,
        }
    }
}

/// Whether an IPv6 address means something on one link only.
pub(crate) fn is_scoped(address: Ipv6Addr) -> bool {
    let [first, ..] = address.segments();
    // fe80::/10, and multicast of interface and link scope
    first & 0xffc0 == 0xfe80 || matches!(first & 0xff0f, 0xff01 | 0xff02)
}

/// Sets an integer socket option to 1.
pub(super) fn set_flag(socket: &Socket, level: libc::c_int, name: libc::c_int) -> io::Result<()> {
    set_option(socket, level, name, 1)
}

/// Sets an integer socket option that neither socket2 nor rustix has.
pub(crate) fn set_option(
    socket: &Socket,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the pointer and length are those of a live c_int.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Wraps the error of one step.
pub(super) fn at(call: Call) -> impl Fn(io::Error) -> EgressError {
    move |error| EgressError::Call {
        call,
        errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
    }
}

/// The IP address and port of a socket address, `None` for another family.
pub(super) fn ip_of(address: &SockAddr) -> Option<SocketAddr> {
    address.as_socket()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scoped_table() {
        #[rustfmt::skip]
        let cases = [
            ("fe80::1", true),
            ("febf::1", true),
            ("fec0::1", false),
            ("ff02::fb", true),
            ("ff12::fb", true),
            ("ff01::1", true),
            ("ff05::2", false),
            ("ff0e::1", false),
            ("2001:db8::1", false),
            ("::1", false),
        ];
        for (address, expected) in cases {
            assert_eq!(is_scoped(address.parse().unwrap()), expected, "{address}");
        }
        let pin = Pin { device: Some(7), ..Pin::default() };
        #[rustfmt::skip]
        let cases = [
            ("[fe80::1]:80", "[fe80::1%7]:80"),
            ("[fe80::1%3]:80", "[fe80::1%3]:80"),
            ("[2001:db8::1]:80", "[2001:db8::1]:80"),
            ("192.0.2.1:80", "192.0.2.1:80"),
        ];
        for (address, expected) in cases {
            assert_eq!(
                pin.scoped(address.parse().unwrap()),
                expected.parse().unwrap(),
                "{address}"
            );
        }
    }
}
