//! ICMP errors that quote the packet they answer, and the table that gives the app's
//! socket the errno that the far side or the local network gave.

use std::net::IpAddr;

use super::checksum::{finish, pseudo, sum};
use super::{ICMP, ICMPV6, UDP, ip_header, write_ip};
use crate::{Failure, Protocol};

/// The longest error written: an IPv6 header, the ICMPv6 header and the quote.
pub(crate) const LENGTH: usize = 40 + 8 + QUOTE;
/// How much of the packet an error quotes: all of a saved SYN, and both IP's minimum
/// (RFC 792: header and 8 bytes; RFC 4443 2.4 c: as much as fits 1,280 bytes).
pub(crate) const QUOTE: usize = 128;

/// One ICMP error of either family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Error {
    pub(crate) kind: u8,
    pub(crate) code: u8,
    /// The four bytes after the checksum: an MTU or zero.
    pub(crate) rest: u32,
}

/// What the app is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The far side or the local network failed.
    Failed(Failure),
    /// The policy's verdict is `block`.
    Blocked,
    /// This build carries no flow of that kind.
    Unsupported,
}

/// How the app is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// A TCP reset.
    Reset,
    /// An ICMP error.
    Icmp(Error),
    /// Nothing: its own timer tells.
    Silence,
}

/// The answer that makes the kernel give the app's socket the right errno. The codes are
/// not always the ones a router would choose: a plain UDP socket sees ICMP 3/9 and 3/13
/// but neither 3/0 nor 3/1 (Linux `icmp_err_convert` and `udp_err`: only fatal codes are
/// reported without `IP_RECVERR`).
pub(crate) fn answer(cause: Cause, protocol: Protocol, v4: bool) -> Answer {
    let icmp = |kind, code| Answer::Icmp(Error { kind, code, rest: 0 });
    let unreachable = |code4, code6| if v4 { icmp(3, code4) } else { icmp(1, code6) };
    let tcp = protocol == Protocol::Tcp;
    let udp = protocol == Protocol::Udp;
    match cause {
        Cause::Blocked | Cause::Unsupported if tcp => Answer::Reset,
        Cause::Blocked | Cause::Unsupported => unreachable(13, 1),
        Cause::Failed(failure) => match failure {
            Failure::Refused | Failure::Reset | Failure::Exhausted if tcp => Answer::Reset,
            Failure::Refused | Failure::Reset => unreachable(3, 4),
            Failure::NetUnreachable if udp => unreachable(9, 0),
            Failure::NetUnreachable => unreachable(0, 0),
            Failure::HostUnreachable if udp => unreachable(13, 3),
            Failure::HostUnreachable => unreachable(1, 3),
            Failure::Prohibited | Failure::Exhausted => unreachable(13, 1),
            Failure::TimedOut => Answer::Silence,
            Failure::TooBig { mtu } => {
                let (kind, code) = if v4 { (3, 4) } else { (2, 0) };
                Answer::Icmp(Error { kind, code, rest: u32::from(mtu) })
            }
        },
    }
}

/// "Protocol unreachable" for `protocol` numbers that no flow exists for; over IPv6 the
/// pointer names the next-header field (RFC 4443 3.4).
pub(crate) fn protocol_unreachable(v4: bool) -> Error {
    if v4 { Error { kind: 3, code: 2, rest: 0 } } else { Error { kind: 4, code: 1, rest: 6 } }
}

/// The hop limit of a packet is used up (RFC 792, RFC 4443 3.3).
pub(crate) fn time_exceeded(v4: bool) -> Error {
    Error { kind: if v4 { 11 } else { 3 }, code: 0, rest: 0 }
}

/// A packet is longer than `mtu` and may not be cut (RFC 1191 4, RFC 4443 3.2).
pub(crate) fn too_big(v4: bool, mtu: u16) -> Error {
    let (kind, code) = if v4 { (3, 4) } else { (2, 0) };
    Error { kind, code, rest: u32::from(mtu) }
}

/// Whether an ICMP type is that of an error which quotes a packet. Source quench is none any
/// more (RFC 6633).
pub(crate) fn is_error(v4: bool, kind: u8) -> bool {
    if v4 { matches!(kind, 3 | 11 | 12) } else { matches!(kind, 1..=4) }
}

/// Whether an error says that a destination can't be reached, for good or not.
pub(crate) fn is_unreachable(v4: bool, error: &Error) -> bool {
    if v4 { error.kind == 3 && error.code != 4 } else { error.kind == 1 }
}

/// What of the four bytes behind an error's checksum has a meaning: an MTU or a pointer.
/// `head` is the error's first eight bytes.
pub(crate) fn rest(v4: bool, head: &[u8]) -> u32 {
    let rest = super::be32(head, 4);
    match (v4, head[0], head[1]) {
        (true, 3, 4) => rest & 0xffff,
        (true, 12, _) => rest & 0xff00_0000,
        (false, 2 | 4, _) => rest,
        (true | false, _, _) => 0,
    }
}

/// What an error quotes of a packet that went into a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quoted {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// [`ICMP`] for echo of both IP versions.
    pub(crate) protocol: u8,
    /// The source port, or an echo's identifier.
    pub(crate) port: u16,
    /// 0 for echo.
    pub(crate) far_port: u16,
    /// Of a TCP segment.
    pub(crate) sequence: u32,
    /// Where the transport header begins.
    pub(crate) transport: usize,
}

impl Quoted {
    /// Parses the start of a packet, which may be cut short behind the first 8 bytes of its
    /// transport header. `None`: it is none that we would have sent.
    pub(crate) fn parse(quote: &[u8]) -> Option<Self> {
        let v4 = quote.first()? >> 4 == 4;
        let start = ip_header(if v4 {
            IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)
        } else {
            IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED)
        });
        // What we send has no options, and an extension header only where it is in pieces. Of
        // these the first one alone tells whose it is.
        let header = quote.get(..start)?;
        let pieces = !v4 && header[6] == 44;
        let fragment = if pieces { quote.get(start..start + 8) } else { None };
        let first = match fragment {
            Some(fragment) => super::be16(fragment, 2) & 0xfff8 == 0,
            None => !v4 || header[0] == 0x45 && super::be16(header, 6) & 0x1fff == 0,
        };
        let start = if pieces { start + 8 } else { start };
        let transport = quote.get(start..start + 8).filter(|_| first)?;
        let (source, destination): (IpAddr, IpAddr) = if v4 {
            let address = |at: usize| <[u8; 4]>::try_from(&quote[at..at + 4]).ok();
            (address(12)?.into(), address(16)?.into())
        } else {
            let address = |at: usize| <[u8; 16]>::try_from(&quote[at..at + 16]).ok();
            (address(8)?.into(), address(24)?.into())
        };
        let protocol = fragment.map_or(quote[if v4 { 9 } else { 6 }], |fragment| fragment[0]);
        let ports = (super::be16(transport, 0), super::be16(transport, 2));
        let (protocol, (port, far_port), sequence) = match (protocol, transport[0], v4) {
            (super::TCP, ..) => (super::TCP, ports, super::be32(transport, 4)),
            (UDP, ..) => (UDP, ports, 0),
            (ICMP, 8, true) | (ICMPV6, 128, false) => (ICMP, (super::be16(transport, 4), 0), 0),
            _ => return None,
        };
        Some(Self { source, destination, protocol, port, far_port, sequence, transport: start })
    }
}

/// Writes `error` about `quote` (a packet from its IP header on) and gives its size.
/// It comes from `from`, the address the app was talking to.
pub(crate) fn write(
    buffer: &mut [u8],
    from: IpAddr,
    to: IpAddr,
    error: Error,
    quote: &[u8],
) -> usize {
    write_long(buffer, from, to, error, &quote[..quote.len().min(QUOTE)])
}

/// The same with all of the quote, which `buffer` must hold.
pub(crate) fn write_long(
    buffer: &mut [u8],
    from: IpAddr,
    to: IpAddr,
    error: Error,
    quote: &[u8],
) -> usize {
    let start = ip_header(from);
    let length = 8 + quote.len();
    let protocol = if from.is_ipv4() { ICMP } else { ICMPV6 };
    write_ip(buffer, from, to, protocol, length);
    let message = &mut buffer[start..start + length];
    message[0] = error.kind;
    message[1] = error.code;
    message[2..4].fill(0);
    message[4..8].copy_from_slice(&error.rest.to_be_bytes());
    message[8..].copy_from_slice(quote);
    let pseudo = if from.is_ipv4() { 0 } else { pseudo(from, to, protocol, length) };
    let checksum = finish(sum(message) + pseudo);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    start + length
}

/// Bytes of the longest header that [`quote_udp`] and [`quote_echo`] write.
pub(crate) const QUOTED: usize = 48;

/// The start of a datagram as the app sent it, for errors that come after it is gone.
pub(crate) fn quote_udp(
    buffer: &mut [u8; QUOTED],
    client: (IpAddr, u16),
    destination: (IpAddr, u16),
) -> usize {
    let start = write_ip(buffer, client.0, destination.0, UDP, 8);
    buffer[start..start + 2].copy_from_slice(&client.1.to_be_bytes());
    buffer[start + 2..start + 4].copy_from_slice(&destination.1.to_be_bytes());
    buffer[start + 4..start + 6].copy_from_slice(&8u16.to_be_bytes());
    buffer[start + 6..start + 8].fill(0);
    start + 8
}

/// The same for an echo request.
pub(crate) fn quote_echo(
    buffer: &mut [u8; QUOTED],
    client: IpAddr,
    destination: IpAddr,
    ident: u16,
    sequence: u16,
) -> usize {
    let (protocol, kind) = if client.is_ipv4() { (ICMP, 8) } else { (ICMPV6, 128) };
    let start = write_ip(buffer, client, destination, protocol, 8);
    buffer[start..start + 8].fill(0);
    buffer[start] = kind;
    buffer[start + 4..start + 6].copy_from_slice(&ident.to_be_bytes());
    buffer[start + 6..start + 8].copy_from_slice(&sequence.to_be_bytes());
    start + 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_answers() {
        let icmp = |kind, code| Answer::Icmp(Error { kind, code, rest: 0 });
        let failed = Cause::Failed;
        use Failure::*;
        for (name, cause, protocol, v4, v6) in [
            ("tcp refused", failed(Refused), Protocol::Tcp, Answer::Reset, Answer::Reset),
            ("tcp net", failed(NetUnreachable), Protocol::Tcp, icmp(3, 0), icmp(1, 0)),
            ("tcp host", failed(HostUnreachable), Protocol::Tcp, icmp(3, 1), icmp(1, 3)),
            ("tcp timeout", failed(TimedOut), Protocol::Tcp, Answer::Silence, Answer::Silence),
            ("tcp blocked", Cause::Blocked, Protocol::Tcp, Answer::Reset, Answer::Reset),
            ("udp refused", failed(Refused), Protocol::Udp, icmp(3, 3), icmp(1, 4)),
            ("udp net", failed(NetUnreachable), Protocol::Udp, icmp(3, 9), icmp(1, 0)),
            ("udp host", failed(HostUnreachable), Protocol::Udp, icmp(3, 13), icmp(1, 3)),
            ("udp blocked", Cause::Blocked, Protocol::Udp, icmp(3, 13), icmp(1, 1)),
            ("echo unsupported", Cause::Unsupported, Protocol::Icmp, icmp(3, 13), icmp(1, 1)),
        ] {
            assert_eq!(answer(cause, protocol, true), v4, "{name}, IPv4");
            assert_eq!(answer(cause, protocol, false), v6, "{name}, IPv6");
        }
        let too_big = failed(TooBig { mtu: 1400 });
        let error = |kind, code| Answer::Icmp(Error { kind, code, rest: 1400 });
        assert_eq!(answer(too_big, Protocol::Udp, true), error(3, 4));
        assert_eq!(answer(too_big, Protocol::Udp, false), error(2, 0));
    }
}
