//! Whatever comes: nothing of it disturbs a flow, and all of it is counted.

use proptest::prelude::*;

use super::*;

/// A packet that is nearly right: some bytes changed, cut or grown.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let base = (any::<bool>(), 0..6usize).prop_map(|(v6, kind)| match kind {
        0 => tcp(v6, SYN, 1000, 0, b""),
        1 => tcp(v6, ACK, 1001, 5, b"data"),
        2 => tcp(v6, ACK | FIN, 1001, 5, b""),
        3 => tcp(v6, RST, 1001, 0, b""),
        4 => udp(v6, b"datagram"),
        _ => echo(v6, 1, 1),
    });
    let edits = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    (base, edits, any::<Option<prop::sample::Index>>()).prop_map(|(mut packet, edits, cut)| {
        for (at, byte) in edits {
            let at = at.index(packet.len());
            packet[at] = byte;
        }
        if let Some(cut) = cut {
            packet.truncate(cut.index(packet.len() + 1));
        }
        packet
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any bytes end in one counted outcome, and an open flow does not notice.
    #[test]
    fn end_in_one_counted_outcome(
        packets in prop::collection::vec(
            prop_oneof![mutated(), prop::collection::vec(any::<u8>(), 0..200)], 1..40,
        ),
        trusted in any::<bool>(),
    ) {
        let mut bench = Bench::new(config());
        let checksum = if trusted { crate::Checksum::Trusted } else { crate::Checksum::Unknown };
        for packet in &packets {
            let received = Received { checksum, segment: None };
            bench.engine.handle_packet(packet, received, bench.now, &mut bench.wire);
            bench.run();
            if let Some(at) = bench.outputs.iter().position(|o| matches!(o, Output::Connect(..)))
                && let Output::Connect(id, ..) = bench.outputs.remove(at)
            {
                bench.input(Input::Connected(id, 1, rings(3)));
            }
            bench.now = bench.now + Duration::from_millis(50);
            bench.engine.handle_timeout(bench.now, &mut bench.wire);
            bench.run();
        }
        let counters = bench.engine.counters();
        prop_assert_eq!(counters.packets_in, packets.len() as u64);
        prop_assert_eq!(total(counters), counters.packets_in);
        bench.input(Input::Shutdown);
        prop_assert_eq!(bench.engine.flows(), 0);
        prop_assert_eq!(bench.engine.poll_timeout().filter(|(_, name)| *name == "flow"), None);
    }
}
