//! Super-packets into the packets that they stand for, as a network card would.
//!
//! Every segment gets its own lengths and checksums. Over IPv4 the identification counts up
//! (RFC 6864 allows any for unfragmentable packets, and kernels do this). TCP: the sequence
//! moves on, FIN and PSH stay with the last segment, CWR with the first (RFC 3168 6.1.2).

use engine::Meta;

use super::dropped::LinkDropped;
use super::header::{CWR, FIN, Layout, PSH, be16, be32, set_be16, set_be32};

/// The messages of WireGuard are padded to this many bytes inside.
const PADDING: usize = 16;

/// Room that [`split`] needs: the longest packet, and its padding.
pub(super) const SCRATCH: usize = 40 + 65_535 + PADDING;

/// Hands `emit` every packet that `headers` and `payload` stand for, whole, summed and padded,
/// out of `scratch`. On an error nothing was emitted.
pub(super) fn split(
    headers: &[u8],
    payload: &[u8],
    meta: Meta,
    mtu: usize,
    scratch: &mut [u8],
    mut emit: impl FnMut(&[u8]),
) -> Result<(), LinkDropped> {
    let segment = match meta.segment.map(usize::from) {
        Some(0) => return Err(LinkDropped::Unparsable),
        Some(size) if payload.len() > size => size,
        Some(_) | None => payload.len(),
    };
    let first = headers.len() + segment;
    if first > mtu {
        return Err(LinkDropped::TooLong);
    }
    if segment == payload.len() {
        let packet = &mut scratch[..first];
        packet[..headers.len()].copy_from_slice(headers);
        packet[headers.len()..].copy_from_slice(payload);
        if meta.partial_checksum {
            let layout = Layout::of(packet).ok_or(LinkDropped::Unparsable)?;
            layout.complete(packet);
        }
        emit(pad(scratch, first, mtu));
        return Ok(());
    }

    let layout = Layout::of(headers)
        .filter(|layout| layout.header == headers.len())
        .ok_or(LinkDropped::Unparsable)?;
    let identification = if layout.v4 { be16(headers, 4) } else { 0 };
    let mut sequence = if layout.tcp { be32(headers, layout.ip + 4) } else { 0 };
    let count = payload.len().div_ceil(segment);
    for (at, piece) in payload.chunks(segment).enumerate() {
        let total = headers.len() + piece.len();
        let packet = &mut scratch[..total];
        packet[..headers.len()].copy_from_slice(headers);
        packet[headers.len()..].copy_from_slice(piece);
        if layout.v4 {
            set_be16(packet, 4, identification.wrapping_add(at as u16));
        }
        if layout.tcp {
            set_be32(packet, layout.ip + 4, sequence);
            sequence = sequence.wrapping_add(piece.len() as u32);
            let flags = &mut packet[layout.ip + 13];
            if at > 0 {
                *flags &= !CWR;
            }
            if at + 1 < count {
                *flags &= !(FIN | PSH);
            }
        }
        layout.set_lengths(packet, total);
        layout.complete(packet);
        emit(pad(scratch, total, mtu));
    }
    Ok(())
}

/// The packet with zeroes behind it, to the next multiple of 16 but not over the MTU.
fn pad(scratch: &mut [u8], length: usize, mtu: usize) -> &[u8] {
    let padded = length.next_multiple_of(PADDING).min(mtu.max(length));
    scratch[length..padded].fill(0);
    &scratch[..padded]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn emitted(headers: &[u8], payload: &[u8], meta: Meta, mtu: usize) -> Vec<Vec<u8>> {
        let mut scratch = vec![0xff; SCRATCH];
        let mut packets = Vec::new();
        split(headers, payload, meta, mtu, &mut scratch, |packet| packets.push(packet.to_vec()))
            .unwrap();
        packets
    }

    #[test]
    fn padding_fills_sixteen_but_not_over_the_mtu() {
        for (length, mtu, padded) in [
            (20, 1420, 32),
            (32, 1420, 32),
            (1405, 1420, 1408),
            (1409, 1420, 1420),
            (1420, 1420, 1420),
        ] {
            let mut packet = vec![1; length];
            packet[0] = 0x45;
            let out = emitted(&packet, &[], Meta::default(), mtu);
            assert_eq!(out[0].len(), padded, "{length}");
            assert_eq!(out[0][..length], packet);
            assert!(out[0][length..].iter().all(|&byte| byte == 0));
        }
    }

    #[test]
    fn refusals() {
        let mut scratch = vec![0; SCRATCH];
        let tcp = {
            let mut headers = vec![0; 40];
            headers[0] = 0x45;
            headers[9] = 6;
            headers[32] = 0x50;
            headers
        };
        let meta = |segment| Meta { segment, partial_checksum: true };
        #[rustfmt::skip]
        let cases = [
            ("segments of nothing", tcp.clone(), 100, meta(Some(0)), LinkDropped::Unparsable),
            ("longer than the MTU", tcp.clone(), 2000, meta(None), LinkDropped::TooLong),
            ("segments longer than the MTU", tcp.clone(), 3000, meta(Some(1400)), LinkDropped::TooLong),
            ("cut TCP header", tcp[..30].to_vec(), 3000, meta(Some(1000)), LinkDropped::Unparsable),
            ("payload in the headers", [&tcp[..], &[0; 9]].concat(), 3000, meta(Some(1000)), LinkDropped::Unparsable),
            ("no IP", vec![0; 40], 3000, meta(Some(1000)), LinkDropped::Unparsable),
            ("partial checksum of nothing known", vec![0x45; 10], 0, meta(None), LinkDropped::Unparsable),
        ];
        for (name, headers, length, meta, want) in cases {
            let payload = vec![0; length];
            let result = split(&headers, &payload, meta, 1420, &mut scratch, |_| panic!("{name}"));
            assert_eq!(result, Err(want), "{name}");
        }
    }
}
