//! Headers of a packet that passes into a tunnel or comes out of one.
//!
//! What goes in has its headers written anew, without IP options and extension headers, and
//! its transport checksum is left to whoever cuts and seals it: the field holds the
//! pseudo-header's sum. What comes out keeps its own checksum, changed by what was changed
//! (RFC 1624): an error of the path stays visible.

use std::net::IpAddr;

use super::checksum::{Update, finish, fold, pseudo, sum};
use super::{
    ECHO_HEADER, Head, ICMP, ICMPV6, IPV6_HEADER, TCP, Tcp, UDP, UDP_HEADER, be16, ip_header,
    write_ip,
};

/// The longest headers: IPv6 and a TCP header with all of its options.
const LONGEST: usize = IPV6_HEADER + 60;

/// Headers on their way into a tunnel.
#[derive(Debug)]
pub(crate) struct Headers {
    bytes: [u8; LONGEST],
    /// Of the IP header.
    pub(crate) start: usize,
    length: usize,
}

/// One side of a flow's packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Source,
    Destination,
}

impl Headers {
    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// `payload` bytes follow these headers.
    fn new(
        (from, to): (IpAddr, IpAddr),
        head: &Head,
        protocol: u8,
        transport: &[u8],
        payload: usize,
    ) -> Self {
        let start = ip_header(from);
        let mut headers = Self { bytes: [0; LONGEST], start, length: start + transport.len() };
        headers.bytes[start..start + transport.len()].copy_from_slice(transport);
        head.write_whole(&mut headers.bytes, from, to, protocol, transport.len() + payload);
        headers
    }

    /// Of a TCP segment with another source. The checksum field holds the pseudo-header's sum;
    /// a SYN offers to take segments of at most `mss` bytes.
    pub(crate) fn tcp(
        from: (IpAddr, u16),
        to: (IpAddr, u16),
        head: &Head,
        tcp: &Tcp<'_>,
        mss: u16,
    ) -> Self {
        let mut headers = Self::new((from.0, to.0), head, TCP, tcp.header, tcp.payload);
        let start = headers.start;
        let header = &mut headers.bytes[start..headers.length];
        header[..2].copy_from_slice(&from.1.to_be_bytes());
        if tcp.syn() {
            clamp_mss(header, mss);
        }
        let length = header.len() + tcp.payload;
        let partial = fold(pseudo(from.0, to.0, TCP, length));
        header[16..18].copy_from_slice(&partial.to_be_bytes());
        headers
    }

    /// Of a datagram. The checksum field holds the pseudo-header's sum.
    pub(crate) fn udp(from: (IpAddr, u16), to: (IpAddr, u16), head: &Head, payload: usize) -> Self {
        let length = UDP_HEADER + payload;
        let mut udp = [0; UDP_HEADER];
        udp[..2].copy_from_slice(&from.1.to_be_bytes());
        udp[2..4].copy_from_slice(&to.1.to_be_bytes());
        // A super-datagram may exceed what the field can say; each of its pieces gets its own.
        udp[4..6].copy_from_slice(&u16::try_from(length).unwrap_or(0).to_be_bytes());
        let partial = fold(pseudo(from.0, to.0, UDP, length));
        udp[6..8].copy_from_slice(&partial.to_be_bytes());
        Self::new((from.0, to.0), head, UDP, &udp, payload)
    }

    /// Of an echo request, with its checksum.
    pub(crate) fn echo(
        from: (IpAddr, u16),
        to: IpAddr,
        head: &Head,
        sequence: u16,
        payload: &[u8],
    ) -> Self {
        let v4 = to.is_ipv4();
        let (protocol, kind) = if v4 { (ICMP, 8) } else { (ICMPV6, 128) };
        let mut echo = [0; ECHO_HEADER];
        echo[0] = kind;
        echo[4..6].copy_from_slice(&from.1.to_be_bytes());
        echo[6..8].copy_from_slice(&sequence.to_be_bytes());
        let length = ECHO_HEADER + payload.len();
        let covered = if v4 { 0 } else { pseudo(from.0, to, protocol, length) };
        let checksum = finish(sum(&echo) + sum(payload) + covered);
        echo[2..4].copy_from_slice(&checksum.to_be_bytes());
        Self::new((from.0, to), head, protocol, &echo, payload.len())
    }

    /// Completes a partial checksum over the payload, for a datagram that is cut in pieces
    /// whose receiver cannot tell.
    pub(crate) fn complete(&mut self, protocol: u8, payload: &[u8]) {
        let at = match protocol {
            TCP => 16,
            UDP => 6,
            _ => return,
        };
        let header = &mut self.bytes[self.start..self.length];
        let checksum = match (finish(sum(header) + sum(payload)), protocol) {
            // RFC 768: a sum of zero is sent as ones.
            (0, UDP) => 0xffff,
            (checksum, _) => checksum,
        };
        header[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    }

    /// Cuts a packet into pieces of at most `mtu` bytes (RFC 791 3.2, RFC 8200 4.5) and gives
    /// the headers and the payload of each to `emit`, until it returns `false`. Its transport
    /// checksum is complete, and `mtu` holds the headers and more.
    pub(crate) fn fragment(
        &self,
        payload: &[u8],
        mtu: usize,
        ident: u32,
        mut emit: impl FnMut(&[u8], &[u8]) -> bool,
    ) {
        const FRAGMENT_HEADER: usize = 8;
        let v4 = self.start == 20;
        let ip = if v4 { 20 } else { IPV6_HEADER + FRAGMENT_HEADER };
        let transport = &self.bytes[self.start..self.length];
        let room = mtu.saturating_sub(ip) & !7;
        if room <= transport.len() {
            return;
        }
        let mut bytes = [0; LONGEST + FRAGMENT_HEADER];
        bytes[..self.start].copy_from_slice(&self.bytes[..self.start]);
        let total = transport.len() + payload.len();
        let (mut at, mut taken) = (0, 0);
        while at < total {
            let first = if at == 0 { transport } else { &[] };
            let piece = room.min(total - at);
            let more = at + piece < total;
            let body = &payload[taken..taken + piece - first.len()];
            taken += body.len();
            if v4 {
                bytes[2..4].copy_from_slice(&((20 + piece) as u16).to_be_bytes());
                bytes[4..6].copy_from_slice(&(ident as u16).to_be_bytes());
                let field = (at / 8) as u16 | if more { 0x2000 } else { 0 };
                bytes[6..8].copy_from_slice(&field.to_be_bytes());
                bytes[10..12].fill(0);
                let checksum = finish(sum(&bytes[..20]));
                bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
            } else {
                let length = FRAGMENT_HEADER + piece;
                bytes[4..6].copy_from_slice(&(length as u16).to_be_bytes());
                bytes[6] = 44;
                bytes[40] = self.bytes[6];
                bytes[41] = 0;
                let field = at as u16 | u16::from(more);
                bytes[42..44].copy_from_slice(&field.to_be_bytes());
                bytes[44..48].copy_from_slice(&ident.to_be_bytes());
            }
            bytes[ip..ip + first.len()].copy_from_slice(first);
            if !emit(&bytes[..ip + first.len()], body) {
                return;
            }
            at += piece;
        }
    }
}

/// A reset in the name of `from`, all of it headers, with its checksum.
pub(crate) fn reset(
    from: (IpAddr, u16),
    to: (IpAddr, u16),
    (sequence, acknowledgement): (u32, u32),
) -> ([u8; IPV6_HEADER + 20], usize) {
    let mut bytes = [0; IPV6_HEADER + 20];
    let start = write_ip(&mut bytes, from.0, to.0, TCP, 20);
    let header = &mut bytes[start..start + 20];
    header[..2].copy_from_slice(&from.1.to_be_bytes());
    header[2..4].copy_from_slice(&to.1.to_be_bytes());
    header[4..8].copy_from_slice(&sequence.to_be_bytes());
    header[8..12].copy_from_slice(&acknowledgement.to_be_bytes());
    header[12] = 5 << 4;
    header[13] = 0x14;
    let checksum = finish(sum(header) + pseudo(from.0, to.0, TCP, 20));
    header[16..18].copy_from_slice(&checksum.to_be_bytes());
    (bytes, start + 20)
}

/// Lowers the MSS option of a TCP header to `mss`; the update of the checksum that follows.
pub(crate) fn clamp_mss(header: &mut [u8], mss: u16) -> Update {
    let mut update = Update::default();
    let mut at = 20;
    while at < header.len() {
        match header[at] {
            0 => break,
            1 => at += 1,
            kind => {
                let Some(&length) = header.get(at + 1) else { break };
                let length = usize::from(length);
                if length < 2 || at + length > header.len() {
                    break;
                }
                if kind == 2 && length == 4 {
                    let before = be16(header, at + 2);
                    if before > mss {
                        header[at + 2..at + 4].copy_from_slice(&mss.to_be_bytes());
                        update.word(at + 2, before, mss);
                    }
                }
                at += length;
            }
        }
    }
    update
}

/// Gives one end of a packet another address and port (or identifier), in place, with the
/// checksums that cover them. `packet` begins with the IP header and may be cut short behind
/// the first 8 bytes of the transport header, as in an ICMP error's quote; `start` is where
/// that header begins. `partial`: the transport checksum is the pseudo-header's sum alone.
pub(crate) fn readdress(
    packet: &mut [u8],
    start: usize,
    protocol: u8,
    end: End,
    (address, port): (IpAddr, u16),
    partial: bool,
    further: Update,
) {
    let mut addresses = Update::default();
    let at = match (address, end) {
        (IpAddr::V4(_), End::Source) => 12,
        (IpAddr::V4(_), End::Destination) => 16,
        (IpAddr::V6(_), End::Source) => 8,
        (IpAddr::V6(_), End::Destination) => 24,
    };
    match address {
        IpAddr::V4(v4) => {
            addresses.replace(&mut packet[at..at + 4], &v4.octets());
            let header = &mut packet[10..12];
            addresses.apply(header);
        }
        IpAddr::V6(v6) => addresses.replace(&mut packet[at..at + 16], &v6.octets()),
    }
    let v4 = address.is_ipv4();
    let transport = &mut packet[start..];
    let (port_at, checksum_at) = match (protocol, end) {
        (TCP, End::Source) => (0, 16),
        (TCP, End::Destination) => (2, 16),
        (UDP, End::Source) => (0, 6),
        (UDP, End::Destination) => (2, 6),
        // The identifier of an echo, whichever way it goes.
        _ => (4, 2),
    };
    let mut ports = further;
    ports.replace(&mut transport[port_at..port_at + 2], &port.to_be_bytes());
    // An ICMPv4 checksum covers no pseudo-header.
    let covers_addresses = protocol != ICMP && !(v4 && protocol == ICMPV6);
    let Some(field) = transport.get_mut(checksum_at..checksum_at + 2) else { return };
    if protocol == UDP && !partial && field == [0, 0] {
        // RFC 768: there is none.
        return;
    }
    if partial {
        if covers_addresses {
            addresses.apply_partial(field);
        }
        return;
    }
    if covers_addresses {
        ports.add(addresses);
    }
    ports.apply(field);
    if protocol == UDP && field == [0, 0] {
        field.copy_from_slice(&[0xff, 0xff]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::{Checksum, Transport, parse};

    fn addresses(v6: bool) -> [IpAddr; 4] {
        let all = if v6 {
            ["2001:db8::1", "fd00::2", "2001:db8:9::9", "fd00:ffff::1"]
        } else {
            ["198.18.0.1", "10.0.0.2", "203.0.113.9", "255.254.0.1"]
        };
        all.map(|text| text.parse().expect("an address"))
    }

    /// A whole packet out of headers and payload, its partial checksum completed.
    fn whole(mut headers: Headers, protocol: u8, payload: &[u8]) -> Vec<u8> {
        headers.complete(protocol, payload);
        [headers.as_slice(), payload].concat()
    }

    fn packet(v6: bool, kind: u8, ports: (u16, u16), payload: &[u8]) -> (Vec<u8>, u8) {
        let [from, _, to, _] = addresses(v6);
        let head = Head { class: 3, label: 5, ident: 77, hops: 9, dont_fragment: true };
        match kind {
            0 => {
                let mut header = vec![0u8; 24];
                header[2..4].copy_from_slice(&ports.1.to_be_bytes());
                header[12] = 6 << 4;
                header[13] = 2;
                header[20..24].copy_from_slice(&[2, 4, 5, 0xb4]);
                let tcp = Tcp::of(&header, payload);
                let headers = Headers::tcp((from, ports.0), (to, ports.1), &head, &tcp, 1360);
                (whole(headers, TCP, payload), TCP)
            }
            1 => {
                let headers = Headers::udp((from, ports.0), (to, ports.1), &head, payload.len());
                (whole(headers, UDP, payload), UDP)
            }
            _ => {
                let headers = Headers::echo((from, ports.0), to, &head, 7, payload);
                (whole(headers, 0, payload), if v6 { ICMPV6 } else { ICMP })
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_written_is_right_and_translation_back_is_the_identity(
            v6 in any::<bool>(),
            kind in 0..3_u8,
            ports in (1..=u16::MAX, 1..=u16::MAX),
            other in 1..=u16::MAX,
            payload in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let (original, protocol) = packet(v6, kind, ports, &payload);
            let parsed = parse(&original, Checksum::Unknown).expect("its checksums are right");
            prop_assert_eq!(parsed.head.hops, 9);
            prop_assert_eq!(parsed.head.class, 3);
            let [from, middle, to, _] = addresses(v6);
            prop_assert_eq!((parsed.source, parsed.destination), (from, to));
            let start = ip_header(from);
            let mut changed = original.clone();
            let none = Update::default();
            readdress(&mut changed, start, protocol, End::Source, (middle, other), false, none);
            let parsed = parse(&changed, Checksum::Unknown).expect("its checksums are right");
            prop_assert_eq!((parsed.source, parsed.destination), (middle, to));
            match parsed.transport {
                Transport::Tcp(tcp) => {
                    prop_assert_eq!((tcp.source_port(), tcp.destination_port()), (other, ports.1));
                    prop_assert_eq!(tcp.mss(), Some(1360));
                }
                Transport::Udp(udp) => {
                    prop_assert_eq!((udp.source_port, udp.destination_port), (other, ports.1));
                }
                Transport::EchoRequest(echo) => prop_assert_eq!(echo.ident, other),
                Transport::Icmp | Transport::Other | Transport::Fragment(_) => unreachable!(),
            }
            let back = (from, ports.0);
            readdress(&mut changed, start, protocol, End::Source, back, false, none);
            prop_assert_eq!(changed, original);
        }

        #[test]
        fn a_partial_sum_follows(v6 in any::<bool>(), ports in (1..=u16::MAX, 1..=u16::MAX), length in 0..2000_usize) {
            let [from, middle, to, _] = addresses(v6);
            let head = Head { hops: 64, ..Head::default() };
            let mut headers = Headers::udp((from, ports.0), (to, ports.1), &head, length);
            let (start, none) = (headers.start, Update::default());
            let want = Headers::udp((middle, 4), (to, ports.1), &head, length);
            let bytes = &mut headers.bytes[..];
            readdress(bytes, start, UDP, End::Source, (middle, 4), true, none);
            prop_assert_eq!(headers.as_slice(), want.as_slice());
        }

        #[test]
        fn pieces_make_the_packet(
            v6 in any::<bool>(),
            payload in prop::collection::vec(any::<u8>(), 0..5000),
            mtu in 100..1500_usize,
        ) {
            let [from, _, to, _] = addresses(v6);
            let head = Head { hops: 64, ..Head::default() };
            let mut headers = Headers::udp((from, 7), (to, 9), &head, payload.len());
            headers.complete(UDP, &payload);
            let mut reassembler = crate::packet::fragment::Reassembler::default();
            let mut last = None;
            headers.fragment(&payload, mtu, 0x1234_5678, |headers, body| {
                let piece = [headers, body].concat();
                assert!(piece.len() <= mtu);
                let packet = parse(&piece, Checksum::Unknown).expect("a piece");
                match packet.transport {
                    Transport::Fragment(fragment) => {
                        last = reassembler
                            .add(&packet, &fragment, crate::Instant::ZERO)
                            .expect("no overlap");
                    }
                    // All of it fitted.
                    Transport::Udp(udp) => {
                        last = Some([&headers[headers.len() - 8..], udp.payload].concat().into());
                    }
                    Transport::Tcp(_)
                    | Transport::EchoRequest(_)
                    | Transport::Icmp
                    | Transport::Other => panic!("a piece"),
                }
                true
            });
            let whole = [&headers.as_slice()[headers.start..], &payload].concat();
            prop_assert_eq!(last.as_deref(), Some(&whole[..]));
        }
    }

    #[test]
    fn an_odd_mss_option_and_its_checksum() {
        // A no-operation in front moves the option to an odd place.
        let mut header = vec![0u8; 28];
        header[12] = 7 << 4;
        header[13] = 2;
        header[20..28].copy_from_slice(&[1, 2, 4, 5, 0xb4, 1, 1, 0]);
        let [from, _, to, _] = addresses(false);
        let covered = pseudo(from, to, TCP, 28);
        let checksum = finish(sum(&header) + covered);
        header[16..18].copy_from_slice(&checksum.to_be_bytes());
        let update = clamp_mss(&mut header, 1340);
        update.apply(&mut header[16..18]);
        assert_eq!(be16(&header, 23), 1340);
        assert_eq!(fold(sum(&header) + covered), 0xffff);
        let same = header.clone();
        clamp_mss(&mut header, 9000).apply(&mut header[16..18]);
        assert_eq!(header, same, "never raised");
        for options in [&[2, 4][..], &[2, 0, 0, 0], &[9, 40, 1, 1], &[2, 3, 9, 0]] {
            let mut short = [&[0u8; 20][..], options].concat();
            let before = short.clone();
            clamp_mss(&mut short, 1);
            assert_eq!(short, before, "{options:?}");
        }
    }
}
