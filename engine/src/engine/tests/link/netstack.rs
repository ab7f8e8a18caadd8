//! Ports of our own at a link's address: what comes for them, and what doesn't.

use super::*;
use crate::packet::Head;
use crate::packet::rewrite::Headers;
use crate::{Protocol, fragment_udp, write_udp};

fn own(v6: bool, protocol: Protocol, port: u16) -> LinkPort {
    LinkPort { link: wg(1), protocol, port, far: server(v6) }
}

fn reserved(ports: &[LinkPort]) -> Bench {
    let mut bench = linked("route via wg0");
    for port in ports {
        assert!(bench.engine.reserve(port) && !bench.engine.reserve(port), "once");
    }
    bench
}

impl Bench {
    fn came(&mut self) -> Vec<(LinkPort, Arrived)> {
        std::mem::take(&mut self.wire.to_netstack)
    }

    fn dropped(&self, cause: Dropped) -> u64 {
        self.engine.counters().replies_dropped[cause as usize]
    }
}

#[test]
fn what_comes_for_a_port_of_ours_is_handed_on() {
    for v6 in [false, true] {
        let port = own(v6, Protocol::Udp, 7000);
        let tcp = own(v6, Protocol::Tcp, client(v6).port());
        let mut bench = reserved(&[port, tcp]);
        assert_eq!(bench.arrives(udp_reply(v6, 7000, b"answer")), None);
        assert_eq!(bench.came(), [(port, Arrived::Datagram(b"answer".to_vec()))]);
        bench.arrives(udp_reply(v6, 7000, b""));
        assert_eq!(bench.came(), [(port, Arrived::Datagram(Vec::new()))]);
        let segment = tcp_reply(v6, SYN | ACK, 1, 2, b"");
        bench.arrives(segment.clone());
        let came = bench.came();
        let [(to, Arrived::Segment(whole))] = &came[..] else { panic!("{came:?}") };
        let start = ip_header(our(v6));
        assert_eq!((*to, &whole[start..]), (tcp, &segment[start..]));
        parse(whole, Checksum::Unknown).expect("its sums are right");
        assert_eq!(bench.unsolicited(), 0);
        // Of the other protocol, for another port, and when it was given back: nobody's.
        bench.arrives(udp_reply(v6, client(v6).port(), b"x"));
        bench.arrives(udp_reply(v6, 7001, b"x"));
        bench.engine.release(&port);
        bench.arrives(udp_reply(v6, 7000, b"late"));
        assert_eq!((bench.unsolicited(), bench.came()), (3, vec![]));
        // Damaged on the way.
        let mut damaged = tcp_reply(v6, ACK, 1, 2, b"data");
        *damaged.last_mut().expect("bytes") ^= 1;
        bench.arrives(damaged);
        assert_eq!((bench.dropped(Dropped::Checksum), bench.came()), (1, vec![]));
    }
}

#[test]
fn a_run_is_taken_apart_and_pieces_are_put_together() {
    for v6 in [false, true] {
        let port = own(v6, Protocol::Udp, 7000);
        let mut bench = reserved(&[port]);
        let mut run = udp_reply(v6, 7000, &[7; 25]);
        let start = ip_header(our(v6)) + 8;
        let (headers, payload) = run.split_at_mut(start);
        let pieces: Vec<&[u8]> = payload.chunks(10).collect();
        let meta = Meta { segment: Some(10), partial_checksum: true };
        let (now, wire) = (bench.now, &mut bench.wire);
        let taken = bench.engine.handle_link_packet(wg(1), headers, &pieces, meta, now, wire);
        assert_eq!(taken, None);
        let sizes: Vec<_> = bench
            .came()
            .into_iter()
            .map(|(to, arrived)| match arrived {
                Arrived::Datagram(datagram) => (to, datagram.len()),
                Arrived::Segment(_) | Arrived::Error { .. } => panic!("{arrived:?}"),
            })
            .collect();
        assert_eq!(sizes, [(port, 10), (port, 10), (port, 5)]);

        let payload: Vec<u8> = (0..3000_u16).map(|n| n as u8).collect();
        let (from, to) = ((server(v6).ip(), server(v6).port()), (our(v6), 7000));
        let mut headers = Headers::udp(from, to, &Head { hops: 9, ..Head::default() }, 3000);
        headers.complete(UDP, &payload);
        let mut pieces = Vec::new();
        headers.fragment(&payload, 1400, 5, |headers, body| {
            pieces.push([headers, body].concat());
            true
        });
        assert!(pieces.len() > 2);
        pieces.reverse();
        for piece in pieces {
            bench.arrives(piece);
        }
        assert_eq!(bench.came(), [(port, Arrived::Datagram(payload))]);
    }
}

#[test]
fn a_datagram_of_ours_in_pieces_is_whole_again() {
    for v6 in [false, true] {
        let port = own(v6, Protocol::Udp, 7000);
        let mut bench = reserved(&[port]);
        let payload: Vec<u8> = (0..4000_u32).map(|n| n as u8).collect();
        let (from, to) = (server(v6), SocketAddr::new(our(v6), 7000));
        let mut pieces = Vec::new();
        fragment_udp(from, to, &payload, (1420, 7), |piece| {
            pieces.push(piece.to_vec());
            true
        });
        assert!(pieces.len() == 3 && pieces.iter().all(|piece| piece.len() <= 1420));
        for piece in pieces {
            bench.arrives(piece);
        }
        assert_eq!(bench.came(), [(port, Arrived::Datagram(payload))]);
        let mut count = 0;
        fragment_udp(from, to, &[0; 4000], (1420, 7), |_| {
            count += 1;
            false
        });
        assert_eq!(count, 1, "nobody takes more");
    }
}

#[test]
fn an_error_counts_where_it_quotes_what_we_sent() {
    for v6 in [false, true] {
        let port = own(v6, Protocol::Udp, 7000);
        let mut bench = reserved(&[port]);
        let (kind, code) = if v6 { (1, 4) } else { (3, 3) };
        let quote = |from, to| {
            let mut packet = Vec::new();
            assert!(write_udp(&mut packet, from, to, b"query"));
            parse(&packet, Checksum::Unknown).expect("its sums are right");
            packet
        };
        let ours = SocketAddr::new(our(v6), 7000);
        bench.arrives(error(kind, code, 0, &quote(ours, server(v6))));
        let arrived = Arrived::Error { kind, code, rest: 0, sequence: 0 };
        assert_eq!(bench.came(), [(port, arrived)]);
        let elsewhere = SocketAddr::new(server(v6).ip(), 1);
        for (from, to) in [
            (ours, elsewhere),
            (SocketAddr::new(our(v6), 7001), server(v6)),
            (SocketAddr::new(client(v6).ip(), 7000), server(v6)),
        ] {
            bench.arrives(error(kind, code, 0, &quote(from, to)));
        }
        assert_eq!((bench.unsolicited(), bench.came()), (3, vec![]));
        let mut packet = Vec::new();
        assert!(!write_udp(&mut packet, ours, server(!v6), b"x"), "of two IP versions");
        assert!(!write_udp(&mut packet, ours, server(v6), &[0; 65_535]), "too long");
    }
}

#[test]
fn a_flow_that_wants_our_port_gets_another() {
    let port = own(false, Protocol::Udp, client(false).port());
    let mut bench = reserved(&[port]);
    bench.packet(&udp(false, b"question"));
    let sent = bench.only_sent();
    let given = be16(&sent, 20);
    assert_ne!(given, port.port);
    bench.arrives(udp_reply(false, port.port, b"ours"));
    assert_eq!(bench.came().len(), 1);
    assert!(bench.arrives(udp_reply(false, given, b"the flow's")).is_some());
    let taken = own(false, Protocol::Udp, given);
    assert!(!bench.engine.reserve(&taken), "a flow's port is not ours");
    // Without the tunnel's address there is nobody.
    bench.engine.set_ways(Arc::default());
    bench.arrives(udp_reply(false, port.port, b"late"));
    assert_eq!((bench.unsolicited(), bench.came()), (1, vec![]));
}
