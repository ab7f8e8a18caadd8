//! Datagrams by way of a SOCKS5 proxy: RFC 1928 7, the header in front of each.
//!
//! What the kernel has cut into datagrams of one size (`UDP_GRO`) is taken apart in place:
//! [`take`] gives a run of datagrams that have one and the same header, whose payloads then lie
//! one behind the other.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use engine::Dropped;

use super::Target;
use super::socks5::{IPV4, IPV6, NAME, destination};

/// Bytes of the longest header with an address.
const LONGEST: usize = 3 + 1 + 16 + 2;

/// The header of a datagram to an address.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    bytes: [u8; LONGEST],
    length: usize,
}

impl Header {
    /// Of a datagram to that address.
    pub(crate) fn to(far: SocketAddr) -> Self {
        let mut bytes = [0; LONGEST];
        let (kind, length) = match far.ip() {
            IpAddr::V4(v4) => {
                bytes[4..8].copy_from_slice(&v4.octets());
                (IPV4, 3 + 1 + 4 + 2)
            }
            IpAddr::V6(v6) => {
                bytes[4..20].copy_from_slice(&v6.octets());
                (IPV6, LONGEST)
            }
        };
        bytes[3] = kind;
        bytes[length - 2..length].copy_from_slice(&far.port().to_be_bytes());
        Self { bytes, length }
    }

    /// Its bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// The header of a datagram to a destination that may have a name.
pub(crate) fn header(target: &Target) -> Box<[u8]> {
    let mut bytes = vec![0; 3];
    destination(target, &mut bytes);
    bytes.into_boxed_slice()
}

/// Who a datagram is from, as the proxy says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin<'a> {
    Address(SocketAddr),
    Name(&'a [u8], u16),
}

/// A run of datagrams from one origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    /// Bytes from the start that are done with.
    pub(crate) taken: usize,
    /// Bytes of the header in front.
    pub(crate) header: usize,
    /// Where the payload lies.
    pub(crate) payload: Range<usize>,
    /// It is of several datagrams of this size, the last one of what is left.
    pub(crate) segment: Option<u16>,
}

/// Takes the first run off what has arrived: datagrams of `step` bytes each, the last one of
/// what is left. What can't be taken is one datagram with so many bytes.
pub(crate) fn take(arrived: &mut [u8], step: usize) -> Result<Run, (Dropped, usize)> {
    let first = step.min(arrived.len());
    let header = parse(&arrived[..first]).map_err(|cause| (cause, first))?.1;
    let (mut taken, mut end) = (first, first);
    // An empty datagram is nothing among others.
    while first > header && taken < arrived.len() {
        let next = taken + step.min(arrived.len() - taken);
        let goes_along =
            next - taken > header && arrived[taken..taken + header] == arrived[..header];
        if !goes_along {
            break;
        }
        arrived.copy_within(taken + header..next, end);
        end += next - taken - header;
        taken = next;
    }
    let segment = (taken > first).then(|| u16::try_from(first - header).ok()).flatten();
    Ok(Run { taken, header, payload: header..end, segment })
}

/// Reads a header; with it, how long it is.
pub(crate) fn parse(datagram: &[u8]) -> Result<(Origin<'_>, usize), Dropped> {
    let (start, rest) = datagram.split_first_chunk::<4>().ok_or(Dropped::Malformed)?;
    let kind = match *start {
        [0, 0, 0, kind] => kind,
        // RFC 1928 7: who puts no fragments together drops them.
        [0, 0, _, _] => return Err(Dropped::Fragment),
        [..] => return Err(Dropped::Malformed),
    };
    let port = |at: usize| {
        let bytes = rest.get(at..)?.first_chunk()?;
        Some(u16::from_be_bytes(*bytes))
    };
    let address = |ip: IpAddr, length: usize| {
        let address = SocketAddr::new(ip.to_canonical(), port(length)?);
        Some((Origin::Address(address), 4 + length + 2))
    };
    let origin = match kind {
        IPV4 => rest.first_chunk::<4>().and_then(|v4| address(IpAddr::from(*v4), 4)),
        IPV6 => rest.first_chunk::<16>().and_then(|v6| address(IpAddr::from(*v6), 16)),
        NAME => rest.split_first().and_then(|(&length, rest)| {
            let length = usize::from(length);
            let name = rest.get(..length).filter(|name| !name.is_empty())?;
            Some((Origin::Name(name, port(1 + length)?), 4 + 1 + length + 2))
        }),
        _ => None,
    };
    origin.ok_or(Dropped::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const V4: &str = "203.0.113.9:443";
    const V6: &str = "[2001:db8::9]:80";

    #[test]
    fn headers() {
        #[rustfmt::skip]
        let cases: [(&str, Option<&str>, &[u8]); 4] = [
            (V4, None, b"\0\0\0\x01\xcb\x00\x71\x09\x01\xbb"),
            (V6, None, b"\0\0\0\x04\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x09\0\x50"),
            (V6, Some("a.example"), b"\0\0\0\x03\x09a.example\0\x50"),
            (V4, Some("no name"), b"\0\0\0\x01\xcb\x00\x71\x09\x01\xbb"),
        ];
        for (address, name, expected) in cases {
            let address = address.parse().unwrap();
            let target = Target { address, name: name.map(Into::into) };
            assert_eq!(*header(&target), *expected, "{address} {name:?}");
            let origin = match name {
                None => {
                    assert_eq!(Header::to(address).bytes(), expected, "{address}");
                    Origin::Address(address)
                }
                Some("no name") => Origin::Address(address),
                Some(name) => Origin::Name(name.as_bytes(), address.port()),
            };
            let datagram = [expected, b"payload"].concat();
            assert_eq!(parse(&datagram), Ok((origin, expected.len())), "{address} {name:?}");
        }
    }

    #[test]
    fn what_is_no_datagram_of_a_proxy() {
        let mapped = b"\0\0\0\x04\0\0\0\0\0\0\0\0\0\0\xff\xff\xcb\x00\x71\x09\x01\xbb";
        assert_eq!(parse(mapped), Ok((Origin::Address(V4.parse().unwrap()), 22)));
        #[rustfmt::skip]
        let cases: [(&str, &[u8], Dropped); 10] = [
            ("nothing", b"", Dropped::Malformed),
            ("half a header", b"\0\0\0", Dropped::Malformed),
            ("a fragment", b"\0\0\x01\x01\xcb\x00\x71\x09\x01\xbbx", Dropped::Fragment),
            ("a last fragment", b"\0\0\x81\x01\xcb\x00\x71\x09\x01\xbbx", Dropped::Fragment),
            ("reserved", b"\0\x01\0\x01\xcb\x00\x71\x09\x01\xbbx", Dropped::Malformed),
            ("no such kind", b"\0\0\0\x02\xcb\x00\x71\x09\x01\xbbx", Dropped::Malformed),
            ("IPv4 cut off", b"\0\0\0\x01\xcb\x00\x71\x09\x01", Dropped::Malformed),
            ("IPv6 cut off", b"\0\0\0\x04\xcb\x00\x71\x09\x01\xbb", Dropped::Malformed),
            ("a name cut off", b"\0\0\0\x03\x09a.example\0", Dropped::Malformed),
            ("no name", b"\0\0\0\x03\x00\0\x50", Dropped::Malformed),
        ];
        for (name, datagram, expected) in cases {
            assert_eq!(parse(datagram).map(|_| ()), Err(expected), "{name}");
        }
    }

    #[test]
    fn runs_of_one_header() {
        let [a, b] = [V4, "203.0.113.9:444"].map(|far| Header::to(far.parse().unwrap()));
        let of = |header: &Header, payload: &[u8]| [header.bytes(), payload].concat();
        let run = |taken, payload, segment| Ok(Run { taken, header: 10, payload, segment });
        #[rustfmt::skip]
        let cases = [
            ("one", vec![of(&a, b"abc")], vec![(run(13, 10..13, None), "abc")]),
            ("three", vec![of(&a, b"abc"), of(&a, b"def"), of(&a, b"g")],
             vec![(run(37, 10..17, Some(3)), "abcdefg")]),
            ("two of each", vec![of(&a, b"ab"), of(&a, b"cd"), of(&b, b"ef"), of(&b, b"g")],
             vec![(run(24, 10..14, Some(2)), "abcd"), (run(23, 10..13, Some(2)), "efg")]),
            ("an empty one at the end", vec![of(&a, b"ab"), of(&a, b"")],
             vec![(run(12, 10..12, None), "ab"), (run(10, 10..10, None), "")]),
            ("empty ones", vec![of(&a, b""), of(&a, b"")],
             vec![(run(10, 10..10, None), ""), (run(10, 10..10, None), "")]),
            ("garbage between", vec![of(&a, b"ab"), vec![9; 12], of(&a, b"cd")],
             vec![(run(12, 10..12, None), "ab"), (Err((Dropped::Malformed, 12)), ""),
                  (run(12, 10..12, None), "cd")]),
            ("a stub at the end", vec![of(&a, b"ab"), vec![0; 3]],
             vec![(run(12, 10..12, None), "ab"), (Err((Dropped::Malformed, 3)), "")]),
        ];
        for (name, datagrams, expected) in cases {
            let step = datagrams[0].len();
            let mut arrived = datagrams.concat();
            let mut rest = &mut arrived[..];
            for (expected, payload) in expected {
                let got = take(rest, step);
                assert_eq!(got, expected, "{name}");
                let taken = match got {
                    Ok(run) => {
                        assert_eq!(rest[run.payload], *payload.as_bytes(), "{name}");
                        run.taken
                    }
                    Err((_, taken)) => taken,
                };
                rest = &mut rest[taken..];
            }
            assert!(rest.is_empty(), "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_to_the_end(
            mut arrived in prop::collection::vec(prop_oneof![4 => 0u8..5, 1 => any::<u8>()], 1..300),
            step in 1usize..80,
        ) {
            let mut rest = &mut arrived[..];
            while !rest.is_empty() {
                let taken = match take(rest, step) {
                    Ok(run) => {
                        prop_assert!(run.payload.start == run.header);
                        prop_assert!(run.payload.end <= run.taken);
                        run.taken
                    }
                    Err((_, taken)) => taken,
                };
                prop_assert!(taken > 0 && taken <= rest.len());
                rest = &mut rest[taken..];
            }
        }
    }
}
