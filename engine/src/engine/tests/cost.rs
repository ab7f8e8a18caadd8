//! What a packet costs.

use super::*;

/// `cargo test --release -p engine -- --ignored --nocapture a_packet_costs`
#[test]
#[ignore = "a measurement"]
#[allow(clippy::disallowed_methods, reason = "it reads the clock to measure")]
fn what_a_packet_costs_by_the_number_of_flows() {
    let trusted = Received { checksum: crate::Checksum::Trusted, segment: None };
    let of = |flow: usize, mut packet: Vec<u8>| {
        packet[14..16].copy_from_slice(&(flow as u16).to_be_bytes());
        packet[10..12].fill(0);
        let checksum = finish(sum(&packet[..20]));
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        packet
    };
    for (flows, size) in
        [1, 1_000, 10_000].into_iter().flat_map(|flows| [(flows, 100), (flows, 1_400)])
    {
        let mut bench = Bench::new(Config {
            flows: 20_000,
            half_open: 20_000,
            reports: false,
            offload: true,
            ..config()
        });
        let mut next = Vec::new();
        for flow in 0..flows {
            let syn = of(flow, tcp(false, SYN, 1000, 0, b""));
            bench.engine.handle_packet(&syn, trusted, bench.now, &mut bench.wire);
            bench.run();
            let id = bench.connect_asked();
            bench.input(Input::Connected(id, 1, rings(flow as u32)));
            let syn_ack = bench.take_app().pop().expect("a SYN-ACK");
            next.push((id, 1001u32, syn_ack.sequence.wrapping_add(1)));
        }
        let payload = vec![7u8; size];
        let mut random = 1u64;
        let mut packets: Vec<_> = (0..200_000)
            .map(|_| {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let flow = (random >> 33) as usize % flows;
                let (id, sequence, acknowledgement) = &mut next[flow];
                let at = *sequence;
                *sequence = sequence.wrapping_add(size as u32);
                (*id, flow, at, *acknowledgement)
            })
            .collect();
        let mut packet = of(0, tcp(false, ACK, 0, 0, &payload));
        let began = std::time::Instant::now();
        for (id, flow, sequence, acknowledgement) in packets.drain(..) {
            packet[24..28].copy_from_slice(&sequence.to_be_bytes());
            packet[28..32].copy_from_slice(&acknowledgement.to_be_bytes());
            packet = of(flow, packet);
            bench.engine.handle_packet(&packet, trusted, bench.now, &mut bench.wire);
            while let Some(()) = bench.engine.with_app_data(id, bench.now, |data| (data.len(), ()))
            {
            }
            bench.engine.settle(id, bench.now, &mut bench.wire);
            while bench.engine.next_dirty().is_some() {}
            bench.wire.to_app.clear();
        }
        let nanos = began.elapsed().as_nanos() as f64 / 200_000.0;
        println!("{flows} flows: {nanos:.0} ns for {size} bytes in, read and acknowledged");
    }
}
