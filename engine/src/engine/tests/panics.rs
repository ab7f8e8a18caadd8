//! A failure inside this program costs one flow.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;

/// A wire that fails for one client port, so many times.
struct Faulty<'a> {
    wire: &'a mut Wire,
    port: u16,
    times: usize,
}

impl Faulty<'_> {
    fn fail(&mut self, port: u16) {
        if port == self.port && self.times > 0 {
            self.times -= 1;
            panic!("injected");
        }
    }
}

impl Sink for Faulty<'_> {
    fn to_app(&mut self, max: usize, meta: Meta, write: impl FnOnce(&mut [u8]) -> usize) {
        self.wire.to_app(max, meta, write);
        // The client's port; an error names it in its quote.
        if let Some(packet) = self.wire.to_app.last() {
            self.fail(be16(packet, if packet[9] == ICMP { 48 } else { 22 }));
        }
    }

    fn to_far(&mut self, way: Way, datagram: Datagram<'_>) -> Result<(), Unsent> {
        self.fail(u16::from(datagram.payload[0]));
        self.wire.to_far(way, datagram)
    }

    fn to_link(
        &mut self,
        link: LinkId,
        headers: &[u8],
        payload: &[u8],
        meta: Meta,
    ) -> Result<(), Unsent> {
        self.wire.to_link(link, headers, payload, meta)
    }
}

#[test]
fn a_panic_ends_the_flow_that_was_carried_and_no_other() {
    const BAD: u16 = 40;
    const GOOD: u16 = 41;
    const TO: [u8; 4] = [203, 0, 113, 9];
    // The first byte of a datagram names its flow, for what goes out.
    let datagram = |port: u16| aimed(udp(false, &[port as u8]), port, TO);
    let syn = |port| aimed(tcp(false, SYN, 1000, 0, b""), port, TO);
    type Step = fn(&mut Engine, &mut Faulty<'_>, FlowId, Instant);
    let data: Step = |engine, sink, id, now| {
        engine.carry(Some(id));
        engine.with_room(id, now, |room| {
            room[0] = 1;
            (1, ())
        });
        engine.settle(id, now, sink);
    };
    let packet: Step = |engine, sink, _, now| {
        let packet = aimed(udp(false, &[BAD as u8]), BAD, [203, 0, 113, 9]);
        engine.handle_packet(&packet, Received::default(), now, sink);
    };
    let reply: Step = |engine, sink, _, now| {
        // Both flows have one egress but two client ports, so two mappings.
        let from = address("203.0.113.9:80");
        engine.handle_datagram(MappingId::from_slot(0), from, b"r", None, now, sink);
    };
    let timer: Step = |engine, sink, _, now| {
        engine.handle_timeout(now + Duration::from_secs(3 * 3600), sink);
    };
    let cut: Step = |engine, sink, _, now| {
        engine.reload(Arc::new(policy("block to 203.0.113.9")), 2);
        engine.rejudge(&mut crate::Walk::default(), &mut Vec::new(), now, sink);
    };
    for (name, tcp, step, times) in [
        ("TCP, a segment to the app", true, data, 1),
        ("TCP, and again when it is reset", true, data, 2),
        ("TCP, a timer", true, timer, 1),
        ("TCP, judged again", true, cut, 1),
        ("TCP, judged again, and again when it is reset", true, cut, 2),
        ("UDP, a datagram out", false, packet, 1),
        ("UDP, a reply", false, reply, 1),
        ("UDP, judged again", false, cut, 1),
    ] {
        let mut bench = Bench::new(config());
        for port in [BAD, GOOD] {
            if tcp {
                bench.packet(&syn(port));
                let id = bench.connect_asked();
                bench.input(Input::Connected(id, 1, rings(u32::from(port))));
                let syn_ack = bench.take_app().pop().expect("a SYN-ACK");
                let next = syn_ack.sequence.wrapping_add(1);
                bench.packet(&aimed(super::tcp(false, ACK, 1001, next, b""), port, TO));
            } else {
                bench.packet(&datagram(port));
            }
        }
        let bad = bench.engine.table.from(0).expect("the first flow");
        let mut sink = Faulty { wire: &mut bench.wire, port: BAD, times };
        let (engine, now) = (&mut bench.engine, bench.now);
        engine.carry(None);
        let failed = catch_unwind(AssertUnwindSafe(|| step(engine, &mut sink, bad, now)));
        assert!(failed.is_err(), "{name}");
        assert_eq!(engine.carried(), Some(bad), "{name}");
        let ended = catch_unwind(AssertUnwindSafe(|| {
            engine.handle(Input::Broken(bad), now, &mut sink);
        }));
        assert_eq!(ended.is_err(), times > 1, "{name}");
        if times > 1 {
            engine.forget(bad);
        }
        bench.run();
        let live: Vec<u16> = bench.list().iter().map(|r| r.client.port()).collect();
        assert_eq!(live, [GOOD], "{name}");
        let given_back = bench.outputs.iter().any(|output| match output {
            Output::Release(rings, _) => *rings == RingId(u32::from(BAD)),
            Output::Unbind(mapping) => mapping.slot() == 0,
            _ => false,
        });
        assert!(given_back, "{name}: {:?}", bench.outputs);
        // The other flow is carried on.
        if tcp {
            let good = bench.engine.table.from(0).expect("the other flow");
            bench.wire.to_app.clear();
            write(&mut bench, good, b"still here");
            assert_eq!(bench.take_app()[0].payload, b"still here", "{name}");
        } else {
            assert_eq!(bench.packet(&datagram(GOOD)), Outcome::ToEgress, "{name}");
        }
        bench.input(Input::Shutdown);
        assert_eq!((bench.engine.flows(), bench.engine.live()), (0, 0), "{name}");
    }
}
