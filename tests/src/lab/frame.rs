//! The few facts of a captured Ethernet frame that a test asks for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

const NEIGHBOUR_SOLICITATION: u8 = 135;

/// What a frame is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Frame {
    /// ARP: who asks or tells, and the address that it is about.
    Arp {
        /// The sender's protocol address.
        sender: Ipv4Addr,
        /// The address asked for.
        target: Ipv4Addr,
    },
    /// A neighbour solicitation for `target` (RFC 4861 section 4.3).
    Solicitation {
        /// The sender's address.
        source: Ipv6Addr,
        /// The address asked for.
        target: Ipv6Addr,
    },
    /// Any other IP packet.
    Ip {
        /// Source address.
        source: IpAddr,
        /// Destination address.
        destination: IpAddr,
        /// Protocol number.
        protocol: u8,
        /// Ports of a first TCP or UDP fragment.
        ports: Option<(u16, u16)>,
        /// TCP flags.
        flags: Option<u8>,
    },
    /// Anything else, and what is too short to be what it says.
    Other,
}

impl Frame {
    /// Reads a frame, Ethernet header included.
    pub fn parse(bytes: &[u8]) -> Self {
        Self::read(bytes).unwrap_or(Self::Other)
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let payload = bytes.get(14..)?;
        match u16::from_be_bytes([bytes[12], bytes[13]]) {
            ETHERTYPE_ARP => Some(Self::Arp {
                sender: ipv4(payload.get(14..18)?)?,
                target: ipv4(payload.get(24..28)?)?,
            }),
            ETHERTYPE_IPV4 => {
                let header = usize::from(payload.first()? & 0xf) * 4;
                let first = u16::from_be_bytes([*payload.get(6)?, *payload.get(7)?]) & 0x1fff == 0;
                let transport = if first { payload.get(header..)? } else { &[] };
                Some(Self::transport(
                    ipv4(payload.get(12..16)?)?.into(),
                    ipv4(payload.get(16..20)?)?.into(),
                    *payload.get(9)?,
                    transport,
                ))
            }
            ETHERTYPE_IPV6 => {
                let source = ipv6(payload.get(8..24)?)?;
                let destination = ipv6(payload.get(24..40)?)?;
                let (protocol, transport) = (*payload.get(6)?, payload.get(40..)?);
                if protocol == ICMPV6 && transport.first() == Some(&NEIGHBOUR_SOLICITATION) {
                    let target = ipv6(transport.get(8..24)?)?;
                    return Some(Self::Solicitation { source, target });
                }
                Some(Self::transport(source.into(), destination.into(), protocol, transport))
            }
            _ => None,
        }
    }

    fn transport(source: IpAddr, destination: IpAddr, protocol: u8, transport: &[u8]) -> Self {
        let ports = match (protocol, transport) {
            (TCP | UDP, [a, b, c, d, ..]) => {
                Some((u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])))
            }
            _ => None,
        };
        let flags = (protocol == TCP).then(|| transport.get(13).copied()).flatten();
        Self::Ip { source, destination, protocol, ports, flags }
    }

    /// Whether the frame exists because something wants to reach `address`: a
    /// packet to it, or the question where it is.
    pub fn seeks(&self, address: IpAddr) -> bool {
        match *self {
            Self::Arp { target, .. } => address == target,
            Self::Solicitation { target, .. } => address == target,
            Self::Ip { destination, .. } => address == destination,
            Self::Other => false,
        }
    }

    /// Whether it is a TCP SYN (not a SYN-ACK) to this address and port.
    pub fn is_syn_to(&self, address: IpAddr, port: u16) -> bool {
        const SYN: u8 = 0x02;
        const ACK: u8 = 0x10;
        matches!(*self, Self::Ip { destination, ports: Some((_, to)), flags: Some(flags), .. }
            if destination == address && to == port && flags & (SYN | ACK) == SYN)
    }
}

fn ipv4(bytes: &[u8]) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?))
}

fn ipv6(bytes: &[u8]) -> Option<Ipv6Addr> {
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_frames_are_about() {
        let mut arp = vec![0xff; 12];
        arp.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        arp.extend([2, 0, 0, 0, 0, 1, 192, 0, 2, 1]);
        arp.extend([0, 0, 0, 0, 0, 0, 192, 0, 2, 2]);
        assert!(Frame::parse(&arp).seeks("192.0.2.2".parse().unwrap()));
        assert!(!Frame::parse(&arp).seeks("192.0.2.1".parse().unwrap()));

        let mut syn = vec![0; 12];
        syn.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
        syn.extend([192, 0, 2, 1, 203, 0, 113, 1]);
        syn.extend([0x9c, 0x40, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0]);
        let to = "203.0.113.1".parse().unwrap();
        assert!(Frame::parse(&syn).is_syn_to(to, 80));
        assert!(!Frame::parse(&syn).is_syn_to(to, 81));
        syn[14 + 20 + 13] = 0x12;
        assert!(!Frame::parse(&syn).is_syn_to(to, 80), "a SYN-ACK is none");

        let target: Ipv6Addr = "2001:db8:1::2".parse().unwrap();
        let mut question = vec![0; 12];
        question.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255]);
        question.extend("2001:db8:1::1".parse::<Ipv6Addr>().unwrap().octets());
        question.extend("ff02::1:ff00:2".parse::<Ipv6Addr>().unwrap().octets());
        question.extend([135, 0, 0, 0, 0, 0, 0, 0]);
        question.extend(target.octets());
        assert!(Frame::parse(&question).seeks(target.into()));
        for length in 0..question.len() {
            Frame::parse(&question[..length]);
        }
    }
}
