//! SOCKS version 5: RFC 1928, with a user's name and password by RFC 1929.

use std::net::{IpAddr, SocketAddr};

use engine::Failure;

use super::{Fault, Login, Refusal, Taken, Target};

/// What the proxy is to do.
#[derive(Debug, Clone)]
pub(super) enum Errand {
    /// Connect there.
    Connect(Target),
    /// Carry datagrams, which come over IPv4, or not.
    Associate {
        /// It does.
        v4: bool,
    },
}

/// RFC 1928 3
const VERSION: u8 = 5;
const NO_LOGIN: u8 = 0;
const PASSWORD: u8 = 2;
/// RFC 1929 2
const PASSWORD_VERSION: u8 = 1;
/// RFC 1928 4
const CONNECT: u8 = 1;
const ASSOCIATE: u8 = 3;
/// RFC 1928 5
pub(super) const IPV4: u8 = 1;
pub(super) const NAME: u8 = 3;
pub(super) const IPV6: u8 = 4;

/// Where the talk is, and what is still to be said.
#[derive(Debug)]
pub(super) enum Talk {
    /// The proxy chooses how we log in.
    Method(Option<Login>, Errand),
    /// It looks at the login.
    Login(Errand),
    /// It connects, or makes room for datagrams.
    Request {
        /// The latter.
        associates: bool,
    },
    /// It takes datagrams there.
    Associated(SocketAddr),
}

impl Talk {
    pub(super) fn new(login: Option<Login>, errand: Errand, out: &mut Vec<u8>) -> Self {
        // Who has a login may be let in without: some proxies choose by the address.
        match login {
            Some(_) => out.extend([VERSION, 2, NO_LOGIN, PASSWORD]),
            None => out.extend([VERSION, 1, NO_LOGIN]),
        }
        Self::Method(login, errand)
    }

    pub(super) fn has_asked(&self) -> bool {
        matches!(self, Self::Request { .. } | Self::Associated(_))
    }

    /// Where the proxy takes datagrams, as it said.
    pub(super) fn associated(&self) -> Option<SocketAddr> {
        match self {
            Self::Associated(relay) => Some(*relay),
            Self::Method(..) | Self::Login(_) | Self::Request { .. } => None,
        }
    }

    pub(super) fn receive(&mut self, arrived: &[u8], out: &mut Vec<u8>) -> Result<Taken, Refusal> {
        match self {
            Self::Method(login, errand) => {
                let Some(&[version, method]) = arrived.first_chunk() else {
                    return begins_with(arrived, VERSION);
                };
                let next = match (version, method, login.take()) {
                    (VERSION, NO_LOGIN, _) => request(errand, out),
                    (VERSION, PASSWORD, Some(login)) => {
                        log_in(&login, out);
                        Self::Login(errand.clone())
                    }
                    // RFC 1928 3: 0xff is "none of them".
                    (VERSION, _, _) => return Err(Refusal::Proxy(Fault::Login)),
                    (_, _, _) => return Err(Refusal::Proxy(Fault::Garbled)),
                };
                *self = next;
                Ok(Taken { bytes: 2, connected: false })
            }
            Self::Login(errand) => {
                let Some(&[version, status]) = arrived.first_chunk() else {
                    return begins_with(arrived, PASSWORD_VERSION);
                };
                if version != PASSWORD_VERSION {
                    return Err(Refusal::Proxy(Fault::Garbled));
                }
                if status != 0 {
                    return Err(Refusal::Proxy(Fault::Login));
                }
                *self = request(errand, out);
                Ok(Taken { bytes: 2, connected: false })
            }
            &mut Self::Request { associates } => {
                let Some(&[version, reply]) = arrived.first_chunk() else {
                    return begins_with(arrived, VERSION);
                };
                if version != VERSION {
                    return Err(Refusal::Proxy(Fault::Garbled));
                }
                // What comes behind a refusal says no more.
                refused(reply)?;
                let Some(&[_, _, _, kind, first]) = arrived.first_chunk() else {
                    return Ok(Taken { bytes: 0, connected: false });
                };
                // The address it connects from, which is of no use to us, and the port.
                let bytes = match kind {
                    IPV4 => 4 + 4 + 2,
                    IPV6 => 4 + 16 + 2,
                    NAME => 4 + 1 + usize::from(first) + 2,
                    _ => return Err(Refusal::Proxy(Fault::Garbled)),
                };
                let Some(address) = arrived.get(3..bytes) else {
                    return Ok(Taken { bytes: 0, connected: false });
                };
                if associates {
                    *self = Self::Associated(relay(address)?);
                }
                Ok(Taken { bytes, connected: true })
            }
            // There is nothing more to say.
            Self::Associated(_) => Err(Refusal::Proxy(Fault::Garbled)),
        }
    }
}

/// An answer that has not come whole: of another protocol is what begins otherwise.
fn begins_with(arrived: &[u8], version: u8) -> Result<Taken, Refusal> {
    match arrived.first() {
        Some(&first) if first != version => Err(Refusal::Proxy(Fault::Garbled)),
        Some(_) | None => Ok(Taken { bytes: 0, connected: false }),
    }
}

/// RFC 1929 2. The lengths fit: [`Login::new`].
fn log_in(login: &Login, out: &mut Vec<u8>) {
    out.push(PASSWORD_VERSION);
    for text in [&login.user, &login.password] {
        out.push(text.len() as u8);
        out.extend_from_slice(text.as_bytes());
    }
}

/// RFC 1928 4
fn request(errand: &Errand, out: &mut Vec<u8>) -> Talk {
    match errand {
        Errand::Connect(target) => {
            out.extend([VERSION, CONNECT, 0]);
            destination(target, out);
            Talk::Request { associates: false }
        }
        // Which port our datagrams come from for the proxy nobody knows who is behind a
        // translator of addresses: all zeroes is "not known yet".
        &Errand::Associate { v4 } => {
            out.extend([VERSION, ASSOCIATE, 0, if v4 { IPV4 } else { IPV6 }]);
            out.extend(std::iter::repeat_n(0, if v4 { 4 } else { 16 } + 2));
            Talk::Request { associates: true }
        }
    }
}

/// RFC 1928 5: a name where there is one, and the port.
pub(super) fn destination(target: &Target, out: &mut Vec<u8>) {
    match (target.name(), target.address.ip()) {
        (Some(name), _) => {
            out.extend([NAME, name.len() as u8]);
            out.extend_from_slice(name.as_bytes());
        }
        (None, IpAddr::V4(v4)) => {
            out.push(IPV4);
            out.extend(v4.octets());
        }
        (None, IpAddr::V6(v6)) => {
            out.push(IPV6);
            out.extend(v6.octets());
        }
    }
    out.extend(target.address.port().to_be_bytes());
}

/// Where datagrams are to go, of a whole answer from its kind of address on. A name would have
/// to be asked for, by whom and of whom it does not say.
fn relay(address: &[u8]) -> Result<SocketAddr, Refusal> {
    let found = match address {
        [IPV4, a, b, c, d, port @ ..] => Some((IpAddr::from([*a, *b, *c, *d]), port)),
        [IPV6, rest @ ..] => rest
            .split_first_chunk::<16>()
            .map(|(v6, port)| (IpAddr::from(*v6).to_canonical(), port)),
        _ => None,
    };
    match found {
        Some((ip, &[high, low])) if !ip.is_multicast() && (high, low) != (0, 0) => {
            Ok(SocketAddr::new(ip, u16::from_be_bytes([high, low])))
        }
        Some(_) | None => Err(Refusal::Proxy(Fault::Relay)),
    }
}

/// RFC 1928 6: the replies.
fn refused(reply: u8) -> Result<(), Refusal> {
    Err(match reply {
        0 => return Ok(()),
        2 => Refusal::Proxy(Fault::Forbidden),
        3 => Refusal::Far(Failure::NetUnreachable),
        // "TTL expired" as ICMP's time exceeded, whose errno is the same.
        4 | 6 => Refusal::Far(Failure::HostUnreachable),
        5 => Refusal::Far(Failure::Refused),
        // Not that command, not that kind of address.
        7 | 8 => Refusal::Proxy(Fault::Incapable),
        // "General failure", and what has no meaning.
        _ => Refusal::Proxy(Fault::Failed),
    })
}
