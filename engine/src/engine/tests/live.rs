//! Walks over live flows, orders to end one, own addresses, limits that change.

use super::*;
use crate::engine::Walk;
use crate::{Protocol, Report};

const A: [u8; 4] = [203, 0, 113, 9];

#[test]
fn a_flow_that_lives_during_the_whole_walk_is_met_once() {
    let mut bench = Bench::new(Config { flows: 2000, half_open: 2000, ..config() });
    for port in 0..700 {
        bench.packet(&aimed(udp(false, b"x"), 1000 + port, A));
    }
    let (mut walk, mut flows): (_, Vec<Report>) = (Walk::default(), Vec::new());
    let mut pieces = 0;
    while !walk.is_over() {
        bench.engine.list(&mut walk, bench.now, &mut flows);
        pieces += 1;
        // Meanwhile some end, before and behind the walk, and others take their places.
        for slot in [pieces * 7, 690 - pieces] {
            let id = bench.engine.table.from(slot).expect("a flow");
            bench.engine.kill(id, bench.now, &mut bench.wire);
            bench.packet(&aimed(udp(false, b"x"), 5000 + slot as u16, A));
        }
    }
    assert_eq!(pieces, 3);
    let lived: Vec<u64> = bench.list().iter().map(|r| r.number).filter(|n| *n <= 700).collect();
    for number in &lived {
        assert_eq!(flows.iter().filter(|r| r.number == *number).count(), 1, "flow {number}");
    }
    let mut numbers: Vec<u64> = flows.iter().map(|r| r.number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), flows.len(), "nobody is met twice");
}

#[test]
fn every_stage_is_listed_and_what_is_over_is_not() {
    let mut bench = Bench::with(config(), policy("block udp port 81"));
    let stages = |bench: &Bench| bench.list().iter().map(|r| r.stage).collect::<Vec<_>>();
    let syn = tcp(false, SYN, 1000, 0, b"");
    bench.engine.handle_packet(&syn, Received::default(), bench.now, &mut bench.wire);
    assert_eq!(stages(&bench), [Stage::Held]);
    bench.run();
    assert_eq!(stages(&bench), [Stage::Connecting]);
    let id = bench.connect_asked();
    bench.input(Input::Connected(id, 5000, rings(1)));
    let [flow] = bench.list().try_into().expect("one flow");
    assert_eq!((flow.stage, flow.egress_port, flow.closed), (Stage::Open, Some(5000), None));
    let mut blocked = udp(false, b"x");
    blocked[22..24].copy_from_slice(&81u16.to_be_bytes());
    bench.packet(&aimed(blocked, 3000, A));
    assert_eq!((bench.engine.flows(), bench.engine.live()), (2, 1));
    assert_eq!(stages(&bench), [Stage::Open]);
}

#[test]
fn an_order_ends_one_flow_and_tells_its_app() {
    let whose = |client: SocketAddr| {
        let uid = u32::from(client.port());
        Some(Owner { uid, cgroup: None, of_proxy: false })
    };
    let mut bench = Bench::new(config());
    bench.owner = whose;
    open(&mut bench, false);
    bench.packet(&aimed(udp(false, b"x"), 3000, A));
    bench.packet(&aimed(echo(false, 0, 1), 4000, A));
    bench.packet(&aimed(tcp(false, SYN, 1000, 0, b""), 5000, A));
    bench.wire.to_app.clear();
    for (flow, uid, protocol) in [(1, 40_000, TCP), (2, 3000, UDP), (3, 4000, ICMP), (4, 5000, TCP)]
    {
        bench.outputs.clear();
        let id = bench.engine.seek(flow, &mut Walk::default()).expect("it lives");
        assert!(bench.engine.is_of(id, uid) && !bench.engine.is_of(id, uid + 1), "flow {flow}");
        bench.engine.kill(id, bench.now, &mut bench.wire);
        bench.run();
        assert_eq!(bench.reasons(), [(Stage::Closed, Some(Reason::Killed))], "flow {flow}");
        let told = bench.wire.to_app.pop().expect("the app is told");
        if protocol == TCP {
            assert_eq!(Segment::parse(&told).flags & RST, RST, "flow {flow}");
        } else {
            assert_eq!((told[9], told[20], told[21]), (ICMP, 3, 13), "flow {flow}");
        }
        let socket = bench.outputs.iter().any(|output| {
            matches!(output, Output::Reset(_) | Output::Close(_) | Output::Unbind(_))
        });
        assert!(socket, "flow {flow}: its socket goes");
        assert!(bench.engine.seek(flow, &mut Walk::default()).is_none());
    }
    assert_eq!(bench.engine.live(), 0);
}

#[test]
fn the_source_is_looked_up_for_the_address_that_an_app_has_chosen() {
    let (device, host) = (IpAddr::from([198, 18, 0, 1]), IpAddr::from([192, 0, 2, 1]));
    let own = |device: &[IpAddr], host: &[IpAddr]| Own::Addresses {
        device: device.to_vec(),
        host: host.to_vec(),
    };
    // The client of these packets is 198.18.0.1.
    for (name, own, local, bound) in [
        ("every flow is own", Own::Every, true, None),
        ("the device's", own(&[device], &[host]), true, None),
        ("the device's, also listed with the host's", own(&[device], &[device, host]), true, None),
        ("another of the host's", own(&[], &[host, device]), true, Some(device)),
        ("a stranger's", own(&[host], &[]), false, None),
    ] {
        for packet in [tcp(false, SYN, 1000, 0, b""), udp(false, b"x"), echo(false, 1, 1)] {
            let mut bench = Bench::new(Config { own: own.clone(), ..config() });
            bench.engine.handle_packet(&packet, Received::default(), bench.now, &mut bench.wire);
            let mut seen = Vec::new();
            while let Some(output) = bench.engine.poll_output() {
                let answer = match output {
                    Output::Owner(id, ..) => Input::Owner(id, None),
                    Output::Source(id, _, _, bound) => {
                        seen.push(bound);
                        Input::Source(id, Ok(egress()))
                    }
                    Output::Connect(_, _, _, bound)
                    | Output::Bind(_, _, _, _, bound)
                    | Output::OpenEcho(_, _, _, bound) => {
                        seen.push(bound);
                        continue;
                    }
                    other => panic!("{other:?}"),
                };
                bench.engine.handle(answer, bench.now, &mut bench.wire);
            }
            assert_eq!(seen, [bound, bound], "{name}");
            assert_eq!(bench.list()[0].local, local, "{name}");
        }
    }
    let mut bench = Bench::new(Config { own: own(&[], &[]), ..config() });
    bench.packet(&aimed(udp(false, b"x"), 1, A));
    bench.engine.set_host_addresses(vec![device]);
    bench.packet(&aimed(udp(false, b"x"), 2, A));
    let local: Vec<bool> = bench.list().iter().map(|r| r.local).collect();
    assert_eq!(local, [false, true], "flows stay whose they were");
}

#[test]
fn a_lower_limit_is_reached_as_flows_come() {
    let mut bench = Bench::new(config());
    for port in 0..40 {
        bench.packet(&aimed(udp(false, b"x"), 1000 + port, A));
    }
    bench.engine.set_limit(32);
    for (port, flows) in [(1, 39), (2, 38), (3, 37)] {
        bench.packet(&aimed(udp(false, b"x"), 2000 + port, A));
        assert_eq!(bench.engine.flows(), flows);
    }
    for port in 10..20 {
        bench.packet(&aimed(udp(false, b"x"), 2000 + port, A));
    }
    assert_eq!(bench.engine.flows(), 32);
    bench.engine.set_limit(100);
    bench.packet(&aimed(udp(false, b"x"), 3000, A));
    assert_eq!(bench.engine.flows(), 33);
}

#[test]
fn segments_of_older_connections_are_counted_apart() {
    let mut bench = Bench::new(config());
    let (_, next) = open(&mut bench, false);
    for (name, packet, older) in [
        ("of a flow", tcp(false, ACK, 1001, next, b"x"), 0),
        ("no flow's", aimed(tcp(false, ACK, 1001, 5, b"x"), 1, A), 1),
        ("no flow's end", aimed(tcp(false, ACK | FIN, 1001, 5, b""), 1, A), 2),
        ("no flow's reset", aimed(tcp(false, RST, 1001, 0, b""), 1, A), 2),
        ("a SYN-ACK", aimed(tcp(false, SYN | ACK, 1001, 5, b""), 1, A), 2),
        ("a SYN", aimed(tcp(false, SYN, 1001, 0, b""), 1, A), 2),
    ] {
        bench.packet(&packet);
        let counters = bench.engine.counters();
        assert_eq!(counters.older, older, "{name}");
        assert!(counters.older <= counters.to_app && total(counters) == counters.packets_in);
    }
    assert_eq!(bench.list()[0].protocol, Protocol::Tcp);
}
