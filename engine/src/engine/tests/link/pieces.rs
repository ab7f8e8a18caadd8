//! What is longer than a tunnel takes, and what comes in pieces.

use super::*;

#[test]
fn what_is_too_long_is_told_or_cut() {
    for v6 in [false, true] {
        let mut bench = linked("route via wg0");
        let long = vec![7; usize::from(MTU)];
        let mut whole = udp(v6, &long);
        assert_eq!(bench.packet(&whole), Outcome::Held);
        assert!(bench.wire.to_link.is_empty(), "it may not be cut");
        let answer = bench.wire.to_app.remove(0);
        let start = ip_header(our(v6));
        let told = if v6 { be32(&answer, start + 4) } else { u32::from(be16(&answer, start + 6)) };
        let kind = if v6 { (2, 0) } else { (3, 4) };
        assert_eq!((answer[start], answer[start + 1], told), (kind.0, kind.1, u32::from(MTU)));
        // In pieces from the app, or without the bit: cut for the link.
        let pieces = if v6 {
            fragments(&whole, 1000)
        } else {
            whole[6] = 0;
            whole[10..12].fill(0);
            let checksum = finish(sum(&whole[..20]));
            whole[10..12].copy_from_slice(&checksum.to_be_bytes());
            vec![whole]
        };
        for piece in &pieces {
            bench.packet(piece);
        }
        let sent: Vec<_> = bench.wire.to_link.drain(..).collect();
        assert_eq!(sent.len(), 2);
        let mut reassembler = crate::packet::fragment::Reassembler::default();
        let mut got = None;
        for sent in &sent {
            assert_eq!(sent.meta, Meta::default(), "its checksum is whole");
            let packet = sent.packet();
            assert!(packet.len() <= usize::from(MTU));
            let packet = parse(&packet, Checksum::Unknown).expect("a piece");
            let Transport::Fragment(fragment) = &packet.transport else { panic!("a piece") };
            got = reassembler.add(&packet, fragment, bench.now).expect("no overlap");
        }
        // A router may say that a piece is too long for it.
        let quote = &sent[0].packet()[..ip_header(our(v6)) + 16 + usize::from(v6) * 8];
        bench.arrives(error(kind.0, kind.1, 1300, quote));
        assert_eq!(bench.wire.to_app.drain(..).count(), 1, "the first piece is known");
        bench.arrives(error(kind.0, kind.1, 1300, &sent[1].packet()));
        assert!(bench.wire.to_app.is_empty(), "the second one tells nothing");
        let got = got.expect("both pieces");
        assert_eq!(&got[8..], &long[..]);
        let covered = pseudo(our(v6), server(v6).ip(), UDP, got.len());
        assert_eq!(fold(sum(&got) + covered), 0xffff);
        // And back.
        let reply = udp_reply(v6, client(v6).port(), &vec![8; 3000]);
        for piece in fragments(&reply, 1400) {
            assert_eq!(bench.arrives(piece), None, "what the app gets goes to it at once");
        }
        let got = bench.wire.to_app.pop().expect("one datagram");
        let packet = parse(&got, Checksum::Unknown).expect("its sums are right");
        assert_eq!(packet.destination, client(v6).ip());
        let Transport::Udp(udp) = packet.transport else { panic!("a datagram") };
        assert_eq!(udp.payload, vec![8; 3000]);
        assert!(bench.wire.to_app.is_empty());
    }
}

#[test]
fn pieces_of_one_tunnel_have_no_part_in_anothers() {
    let mut bench = linked("route via wg0");
    // Both tunnels have one address here.
    let mut ways = ways([true; 3]);
    ways.set(way(2), WayOut { usable: true, leads: Leads::Link(link(1)) });
    bench.engine.set_ways(Arc::new(ways));
    let payload: Vec<u8> = (0..3000_u32).map(|at| (at / 8) as u8).collect();
    bench.packet(&udp(false, b"question"));
    bench.wire.to_link.clear();
    let reply = udp_reply(false, 40_000, &payload);
    let pieces = fragments(&reply, 1400);
    let from = |bench: &mut Bench, link: LinkId, mut piece: Vec<u8>| {
        let (now, wire) = (bench.now, &mut bench.wire);
        bench.engine.handle_link_packet(link, &mut piece, &[], Meta::default(), now, wire);
    };
    // Out of the other one come the same pieces, and as many as there is room for.
    from(&mut bench, wg(2), pieces[1].clone());
    from(&mut bench, wg(1), pieces[0].clone());
    from(&mut bench, wg(1), pieces[1].clone());
    for ident in 0..200_u16 {
        let mut flood = pieces[0].clone();
        flood[4..6].copy_from_slice(&ident.to_be_bytes());
        seal_header(&mut flood);
        from(&mut bench, wg(2), flood);
    }
    assert_eq!(bench.wire.to_app.len(), 0);
    from(&mut bench, wg(1), pieces[2].clone());
    assert_eq!(bench.wire.to_app.len(), 1, "{:?}", bench.engine.counters().replies_dropped);
    assert_eq!(bench.wire.to_app[0][28..], payload);
    // And of what is not for us nothing is kept.
    let before = bench.unsolicited();
    let mut other = pieces[0].clone();
    other[16..20].copy_from_slice(&[10, 9, 9, 9]);
    seal_header(&mut other);
    from(&mut bench, wg(1), other);
    assert_eq!(bench.unsolicited(), before + 1);
    assert_eq!(bench.engine.link_pieces[&wg(1)].poll_timeout(), None);
    // What waited goes with its tunnel.
    bench.engine.set_ways(Arc::default());
    assert!(bench.engine.link_pieces.is_empty());
}

fn seal_header(packet: &mut [u8]) {
    packet[10..12].fill(0);
    let sum = !fold(sum(&packet[..20]));
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// A packet in pieces of at most `mtu` bytes.
fn fragments(packet: &[u8], mtu: usize) -> Vec<Vec<u8>> {
    let v6 = packet[0] >> 4 == 6;
    let start = if v6 { 40 } else { 20 };
    let room = (mtu - start - 8) & !7;
    let upper = &packet[start..];
    let mut pieces = Vec::new();
    for (at, piece) in (0..).step_by(room).zip(upper.chunks(room)) {
        let more = at + piece.len() < upper.len();
        let mut bytes = packet[..start].to_vec();
        if v6 {
            bytes[4..6].copy_from_slice(&((8 + piece.len()) as u16).to_be_bytes());
            let next = std::mem::replace(&mut bytes[6], 44);
            bytes.extend([next, 0]);
            bytes.extend((at as u16 | u16::from(more)).to_be_bytes());
            bytes.extend(9u32.to_be_bytes());
        } else {
            bytes[2..4].copy_from_slice(&((20 + piece.len()) as u16).to_be_bytes());
            bytes[4..6].copy_from_slice(&9u16.to_be_bytes());
            let field = (at / 8) as u16 | if more { 0x2000 } else { 0 };
            bytes[6..8].copy_from_slice(&field.to_be_bytes());
            bytes[10..12].fill(0);
            let checksum = finish(sum(&bytes));
            bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        bytes.extend(piece);
        pieces.push(bytes);
    }
    pieces
}
