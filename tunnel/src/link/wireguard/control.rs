//! Control messages beside a datagram (cmsg(3)): written and read as bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Room for the control messages of one datagram.
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy)]
pub(super) struct Control {
    bytes: [u8; Self::CAPACITY],
    length: usize,
}

impl Control {
    pub(super) const CAPACITY: usize = 128;

    pub(super) const EMPTY: Self = Self { bytes: [0; Self::CAPACITY], length: 0 };

    /// The messages for a datagram to send, to IPv6 or IPv4.
    pub(super) fn of(v6: bool, source: Option<IpAddr>, tos: u8, segment: Option<u16>) -> Self {
        let mut control = Self::EMPTY;
        if let Some(segment) = segment {
            control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
        }
        match source {
            Some(IpAddr::V4(source)) => {
                let mut info = [0; 12]; // struct in_pktinfo: device, source, unused
                info[4..8].copy_from_slice(&source.octets());
                control.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            Some(IpAddr::V6(source)) => {
                let mut info = [0; 20]; // struct in6_pktinfo: source, device
                info[..16].copy_from_slice(&source.octets());
                control.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
            None => {}
        }
        if tos != 0 {
            let (level, name) = if v6 {
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS)
            } else {
                (libc::IPPROTO_IP, libc::IP_TOS)
            };
            control.push(level, name, &i32::from(tos).to_ne_bytes());
        }
        control
    }

    /// Our address, the type of service and the segment size of a datagram that came.
    pub(super) fn read(&self) -> (Option<IpAddr>, u8, Option<usize>) {
        let (mut to, mut tos, mut segment) = (None, 0, None);
        let mut rest = &self.bytes[..self.length];
        while let Some((kind, value, next)) = first(rest) {
            if kind == (libc::IPPROTO_IP, libc::IP_PKTINFO) {
                // struct in_pktinfo: device, our address, the header's destination
                let address = value.get(4..).and_then(<[u8]>::first_chunk::<4>);
                to = address.map(|&octets| IpAddr::from(Ipv4Addr::from(octets)));
            } else if kind == (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) {
                let address = value.first_chunk::<16>().map(|&octets| Ipv6Addr::from(octets));
                // Without its device a link-local address says nothing; the route does.
                to = address.filter(|a| !a.is_unicast_link_local()).map(IpAddr::from);
            } else if kind == (libc::IPPROTO_IP, libc::IP_TOS) {
                tos = value.first().copied().unwrap_or(0);
            } else if kind == (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) {
                tos = number(value).unwrap_or(0) as u8; // an octet in an int
            } else if kind == (libc::SOL_UDP, libc::UDP_GRO) {
                segment = number(value).and_then(|size| usize::try_from(size).ok());
            }
            rest = next;
        }
        (to.filter(|to: &IpAddr| !to.is_unspecified() && !to.is_multicast()), tos, segment)
    }

    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// The kernel has written that many bytes.
    pub(super) fn set_length(&mut self, length: usize) {
        self.length = length.min(Self::CAPACITY);
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.bytes.as_mut_ptr()
    }

    fn push(&mut self, level: i32, name: i32, value: &[u8]) {
        let start = self.length;
        let end = start + HEADER + value.len();
        // The four kinds above take 24 + 40 + 24 bytes at most.
        debug_assert!(end <= Self::CAPACITY, "no room for a control message");
        self.bytes[start..start + WORD].copy_from_slice(&(end - start).to_ne_bytes());
        self.bytes[start + WORD..start + WORD + 4].copy_from_slice(&level.to_ne_bytes());
        self.bytes[start + WORD + 4..start + HEADER].copy_from_slice(&name.to_ne_bytes());
        self.bytes[start + HEADER..end].copy_from_slice(value);
        self.length = end.next_multiple_of(WORD);
    }
}

/// Level and type.
type Kind = (i32, i32);

/// Level and type, the value, and what is behind the first control message of `bytes`.
fn first(bytes: &[u8]) -> Option<(Kind, &[u8], &[u8])> {
    let length = usize::from_ne_bytes(*bytes.first_chunk::<WORD>()?);
    let level = i32::from_ne_bytes(*bytes.get(WORD..)?.first_chunk::<4>()?);
    let name = i32::from_ne_bytes(*bytes.get(WORD + 4..)?.first_chunk::<4>()?);
    let value = bytes.get(HEADER..length)?;
    let next = bytes.get(length.next_multiple_of(WORD)..).unwrap_or(&[]);
    Some(((level, name), value, next))
}

fn number(value: &[u8]) -> Option<i32> {
    value.first_chunk::<4>().map(|&bytes| i32::from_ne_bytes(bytes))
}

/// `struct cmsghdr`: a length of the machine's word, level and type. Messages are aligned to words.
const WORD: usize = size_of::<usize>();
const HEADER: usize = WORD + 8;
const _: () = assert!(HEADER == size_of::<libc::cmsghdr>());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for (source, tos) in [("192.0.2.1", 0x88), ("2001:db8::1", 2)] {
            let source: IpAddr = source.parse().unwrap();
            let control = Control::of(source.is_ipv6(), Some(source), tos, Some(1452));
            assert_eq!(control.read(), (Some(source), tos, None), "UDP_SEGMENT is for sending");
            let mut cut = control;
            for length in 0..control.length() {
                cut.set_length(length);
                cut.read();
            }
        }
        let mut control = Control::EMPTY;
        control.push(libc::SOL_UDP, libc::UDP_GRO, &1452_i32.to_ne_bytes());
        assert_eq!(control.read(), (None, 0, Some(1452)));
        control.bytes.fill(0);
        assert_eq!(control.read(), (None, 0, None), "a length of nothing ends it");
        control.bytes.fill(0xff);
        assert_eq!(control.read(), (None, 0, None));
    }
}
