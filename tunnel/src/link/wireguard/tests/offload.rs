//! Cutting super-packets and joining packets: one undoes the other.

use engine::Meta;
use proptest::prelude::*;

use super::packet::{Spec, echo};
use crate::link::wireguard::coalesce::{Coalesce, coalesce};
use crate::link::wireguard::header::{ACK, CWR, FIN, Layout, PSH, fold};
use crate::link::wireguard::split::{SCRATCH, split};

const BOTH: Coalesce = Coalesce { tcp: true, udp: true };

/// Packets as they come out of [`coalesce`]: headers, payload, segment.
type Delivered = Vec<(Vec<u8>, Vec<u8>, Option<u16>)>;

fn join(packets: &[Vec<u8>], what: Coalesce) -> Delivered {
    let mut buffer = Vec::new();
    let mut ranges = Vec::new();
    for packet in packets {
        let start = buffer.len();
        buffer.extend(packet);
        ranges.push(start..buffer.len());
        buffer.extend([0; 16]); // where the tag was
    }
    let mut delivered = Vec::new();
    coalesce(&mut buffer, &ranges, what, &mut |inner| {
        assert_eq!(inner.meta.segment.is_some(), inner.meta.partial_checksum);
        assert_eq!(inner.meta.segment.is_some(), !inner.payload.is_empty());
        delivered.push((inner.headers.to_vec(), inner.payload.concat(), inner.meta.segment));
    });
    delivered
}

fn cut(headers: &[u8], payload: &[u8], segment: Option<u16>) -> Vec<Vec<u8>> {
    let mut scratch = vec![0xaa; SCRATCH];
    let mut packets = Vec::new();
    let meta = Meta { segment, partial_checksum: true };
    split(headers, payload, meta, 65_535, &mut scratch, |padded| {
        // The receiver goes by the length in the header.
        let said = u16::from_be_bytes(if padded[0] >> 4 == 4 {
            [padded[2], padded[3]]
        } else {
            [padded[4], padded[5]]
        });
        let length = usize::from(said) + if padded[0] >> 4 == 4 { 0 } else { 40 };
        assert!(padded[length..].iter().all(|&byte| byte == 0));
        assert!(padded.len() - length < 16);
        packets.push(padded[..length].to_vec());
    })
    .unwrap();
    packets
}

/// What a network card would make of it, packet by packet and summed by the plain algorithm.
fn reference(spec: &Spec, payload: &[u8], segment: usize) -> Vec<Vec<u8>> {
    let count = payload.len().div_ceil(segment).max(1);
    let pieces = if payload.is_empty() { vec![payload] } else { payload.chunks(segment).collect() };
    let one = |(at, piece): (usize, &[u8])| {
        let mut spec = spec.clone();
        spec.identification = spec.identification.wrapping_add(at as u16);
        spec.sequence = spec.sequence.wrapping_add((at * segment) as u32);
        if at > 0 {
            spec.flags &= !CWR;
        }
        if at + 1 < count {
            spec.flags &= !(FIN | PSH);
        }
        spec.with(piece)
    };
    pieces.into_iter().enumerate().map(one).collect()
}

fn specs() -> impl Strategy<Value = Spec> {
    let shape = (any::<bool>(), any::<bool>(), any::<bool>(), 0_usize..=10);
    let values = (any::<u16>(), any::<u32>(), any::<u8>(), any::<(u16, u16)>(), any::<u8>());
    (shape, values).prop_map(|((v6, tcp, dont_fragment, words), values)| {
        let (identification, sequence, tos, ports, flags) = values;
        let (source, destination) =
            if v6 { ("fd00::1", "2001:db8::99") } else { ("10.0.0.1", "203.0.113.9") };
        Spec {
            ports,
            identification,
            dont_fragment,
            tos,
            sequence,
            flags: ACK | (flags & (CWR | FIN | PSH)),
            options: (0..words * 4).map(|at| at as u8 ^ flags).collect(),
            ..Spec::new(source, destination, tcp)
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_split_is_that_of_a_network_card(
        spec in specs(),
        segment in 1_u16..1500,
        length in 0_usize..20_000,
        seed in any::<u8>(),
    ) {
        let length = length.min(usize::from(segment) * 64);
        let payload: Vec<u8> = (0..length).map(|at| (at as u8).wrapping_mul(seed)).collect();
        // The partial sum that the kernel leaves in the header is not looked at.
        let mut whole = spec.with(&payload);
        let headers = spec.header();
        let sum = headers - if spec.tcp { 4 + spec.options.len() } else { 2 };
        whole[sum..sum + 2].fill(0x5a);
        let packets = cut(&whole[..headers], &payload, Some(segment));
        prop_assert_eq!(packets, reference(&spec, &payload, segment.into()));
    }

    #[test]
    fn what_was_cut_is_joined_again(
        spec in specs(),
        segment in 8_u16..1500,
        length in 1_usize..60_000,
        seed in any::<u8>(),
    ) {
        let mut spec = spec;
        spec.flags &= ACK | PSH;
        let length = length.min(usize::from(segment) * 64);
        let payload: Vec<u8> = (0..length).map(|at| (at as u8).wrapping_mul(seed) ^ 1).collect();
        let whole = spec.with(&payload);
        let (headers, _) = whole.split_at(spec.header());
        let packets = cut(headers, &payload, Some(segment));
        let delivered = join(&packets, BOTH);
        prop_assert_eq!(delivered.len(), 1);
        let (joined, carried, size) = &delivered[0];
        if packets.len() == 1 {
            prop_assert_eq!(joined, &whole);
            return Ok(());
        }
        prop_assert_eq!(carried, &payload);
        prop_assert_eq!(*size, Some(segment));
        // All but the checksum, which holds the pseudo-header's sum.
        let layout = Layout::of(joined).unwrap();
        let at = layout.checksum_at();
        let pseudo = fold(layout.pseudo(joined, whole.len() - layout.ip)).to_ne_bytes();
        prop_assert_eq!(&joined[at..at + 2], &pseudo);
        let mut expected = headers.to_vec();
        expected[at..at + 2].copy_from_slice(&pseudo);
        prop_assert_eq!(joined, &expected);
        prop_assert_eq!(cut(joined, carried, *size), packets);
    }

    #[test]
    fn any_bytes_can_be_joined(packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..120), 0..20)) {
        let delivered: usize = join(&packets, BOTH).iter().map(|(h, p, _)| h.len() + p.len()).sum();
        let given: usize = packets.iter().map(Vec::len).sum();
        prop_assert!(delivered <= given);
    }

    #[test]
    fn any_bytes_can_be_cut(
        headers in prop::collection::vec(any::<u8>(), 0..120),
        length in 0_usize..5000,
        segment in prop::option::of(any::<u16>()),
        partial_checksum in any::<bool>(),
    ) {
        let mut scratch = vec![0; SCRATCH];
        let meta = Meta { segment, partial_checksum };
        let payload = vec![1; length];
        let _ = split(&headers, &payload, meta, 1420, &mut scratch, |packet| {
            assert!(packet.len() <= 1420);
        });
    }
}

/// Segments of 100 bytes, four in a row.
fn four(change: impl Fn(usize, &mut Spec)) -> Vec<Vec<u8>> {
    let segment = |at: usize| {
        let mut spec = Spec::new("10.0.0.2", "10.0.0.1", true);
        spec.identification += at as u16;
        spec.sequence += 100 * at as u32;
        change(at, &mut spec);
        spec.with(&[at as u8; 100])
    };
    (0..4).map(segment).collect()
}

#[test]
fn what_differs_is_not_joined() {
    let sizes = |packets: &[Vec<u8>]| -> Vec<usize> {
        let payload =
            |(headers, payload, _): &(Vec<u8>, Vec<u8>, _)| headers.len() + payload.len() - 40;
        join(packets, BOTH).iter().map(payload).collect()
    };
    type Case = (&'static str, Vec<Vec<u8>>, &'static [usize]);
    #[rustfmt::skip]
    let cases: [Case; 11] = [
        ("alike", four(|_, _| ()), &[400]),
        ("one identification, unfragmentable", four(|_, spec| spec.identification = 5), &[400]),
        ("one identification", four(|_, spec| { spec.identification = 5; spec.dont_fragment = false }), &[100, 100, 100, 100]),
        ("a gap", four(|at, spec| spec.sequence += u32::from(at > 1)), &[200, 200]),
        ("PSH ends a run", four(|at, spec| spec.flags |= if at == 1 { PSH } else { 0 }), &[200, 200]),
        ("FIN stands alone", four(|at, spec| spec.flags |= if at == 3 { FIN } else { 0 }), &[300, 100]),
        ("CWR stands alone", four(|at, spec| spec.flags |= if at == 0 { CWR } else { 0 }), &[100, 300]),
        ("another class", four(|at, spec| spec.tos = if at > 1 { 8 } else { 0 }), &[200, 200]),
        ("congestion met", four(|at, spec| spec.tos = if at == 2 { 3 } else { 2 }), &[200, 100, 100]),
        ("other options", four(|at, spec| spec.options = vec![1, 1, 1, at as u8 / 2]), &[204, 204]),
        ("another port between", four(|at, spec| if at == 1 { spec.ports.0 = 9 }), &[100, 100, 200]),
    ];
    for (name, packets, want) in cases {
        assert_eq!(sizes(&packets), want, "{name}");
    }
}

#[test]
fn a_wrong_checksum_is_not_laundered() {
    for bad in 0..4 {
        let mut packets = four(|_, _| ());
        packets[bad][60] ^= 1;
        for (headers, payload, segment) in join(&packets, BOTH) {
            let runs_clean = payload.chunks(100).all(|piece| piece.iter().all(|b| *b == piece[0]));
            assert!(segment.is_none() || runs_clean, "{bad}");
            assert!(headers.len() == 40 || headers.len() == 140);
        }
        let alone = join(&packets, BOTH).iter().any(|(headers, ..)| *headers == packets[bad]);
        assert!(alone, "{bad}: as it came");
    }
}

#[test]
fn order_within_a_flow_is_kept_and_flows_take_turns() {
    let a = Spec::new("10.0.0.2", "10.0.0.1", true);
    let b = Spec { ports: (9, 9), ..a.clone() };
    let mut packets = Vec::new();
    for at in 0..6_u32 {
        for spec in [&a, &b] {
            let spec = Spec {
                sequence: 1000 + at * 50,
                identification: at as u16,
                flags: if at == 3 { ACK | FIN } else { ACK },
                ..spec.clone()
            };
            packets.push(spec.with(&[at as u8; 50]));
        }
    }
    packets.push(echo("10.0.0.2", "10.0.0.1", b"x"));
    let delivered = join(&packets, BOTH);
    assert_eq!(delivered.len(), 7);
    for port in [40_000_u16, 9] {
        let mut bytes: Vec<u8> = Vec::new();
        for (headers, payload, _) in &delivered {
            if headers[9] == 6 && headers[20..22] == port.to_be_bytes() {
                bytes.extend(&headers[40..]);
                bytes.extend(payload);
            }
        }
        assert!(bytes.is_sorted(), "{port}");
        assert_eq!(bytes.len(), 300);
    }
    // A device that takes none gets none.
    assert_eq!(join(&packets, Coalesce::default()).len(), packets.len());
}
