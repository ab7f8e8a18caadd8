//! How flows through a tunnel end: by resets, by silence, by a reload, with their tunnel.

use super::*;

#[test]
fn resets_end_a_connection() {
    let mut bench = linked("route via wg0");
    bench.packet(&tcp(false, SYN, 1000, 0, b""));
    bench.arrives(tcp_reply(false, RST | ACK, 0, 1001, b"")).expect("for the app");
    assert_eq!((bench.reasons(), bench.ports()), (vec![(Stage::Closed, Some(Reason::Refused))], 0));
    let mut bench = linked("route via wg0");
    open_linked(&mut bench, false);
    bench.arrives(tcp_reply(false, RST, 900_000, 0, b"")).expect("the app judges for itself");
    assert_eq!(bench.engine.live(), 1, "nobody in the window");
    bench.arrives(tcp_reply(false, RST, 5001, 0, b"")).expect("for the app");
    assert_eq!((bench.last_reason(), bench.ports()), (Some(Reason::FarReset), 0));
    let mut bench = linked("route via wg0");
    open_linked(&mut bench, false);
    assert_eq!(bench.packet(&tcp(false, RST, 1001, 0, b"")), Outcome::ToLink);
    assert_eq!(Segment::parse(&bench.only_sent()).flags, RST);
    assert_eq!((bench.last_reason(), bench.ports()), (Some(Reason::AppReset), 0));
}

#[test]
fn what_did_not_leave_has_not_happened() {
    let full = Outcome::Dropped(Dropped::EgressFull);
    let mut bench = linked("route via wg0");
    open_linked(&mut bench, false);
    bench.wire.refuse_link = Some(Unsent::Full);
    assert_eq!(bench.packet(&tcp(false, FIN | ACK, 1001, 5001, b"")), full);
    bench.wire.refuse_link = None;
    bench.arrives(tcp_reply(false, FIN | ACK, 5001, 1002, b"")).expect("for the app");
    assert_eq!(bench.packet(&tcp(false, ACK, 1001, 5002, b"")), Outcome::ToLink);
    bench.wait(Duration::from_secs(15));
    assert_eq!((bench.engine.live(), bench.ports()), (1, 1), "its end is still to come");
    assert_eq!(bench.packet(&tcp(false, FIN | ACK, 1001, 5002, b"")), Outcome::ToLink);
    bench.arrives(tcp_reply(false, ACK, 5002, 1002, b"")).expect("for the app");
    bench.wait(Duration::from_secs(15));
    assert_eq!((bench.engine.flows(), bench.ports()), (0, 0));
    // A reset is told once.
    let mut bench = linked("route via wg0");
    open_linked(&mut bench, false);
    bench.wire.refuse_link = Some(Unsent::Failed(Failure::NetUnreachable));
    assert_eq!(bench.packet(&tcp(false, RST, 1001, 0, b"")), full);
    assert_eq!((bench.last_reason(), bench.ports()), (Some(Reason::AppReset), 0));
    assert!(bench.wire.to_app.is_empty(), "and never answered");
}

#[test]
fn silence_ends_a_flow() {
    for (name, packet, silence, reason) in [
        ("a SYN", tcp(false, SYN, 1000, 0, b""), 130, Reason::TimedOut),
        ("a datagram", udp(false, b"x"), 30, Reason::Idle),
        ("echo", echo(false, 1, 1), 60, Reason::Idle),
    ] {
        let mut bench = linked("route via wg0");
        bench.packet(&packet);
        bench.wait(Duration::from_secs(silence - 1));
        assert_eq!(bench.engine.flows(), 1, "{name}");
        bench.wait(Duration::from_secs(2));
        assert_eq!((bench.engine.flows(), bench.ports()), (0, 0), "{name}");
        assert_eq!(bench.last_reason(), Some(reason), "{name}");
        assert!(bench.wire.to_app.is_empty(), "its own timer tells the app");
    }
    let mut bench = linked("route via wg0");
    open_linked(&mut bench, false);
    bench.wait(Duration::from_secs(7000));
    assert_eq!(bench.engine.flows(), 1);
    bench.wait(Duration::from_secs(7000));
    assert_eq!(bench.last_reason(), Some(Reason::Idle));
    assert_resets(&mut bench);
}

/// Both sides were reset with the numbers that they expect.
fn assert_resets(bench: &mut Bench) {
    let far = Segment::parse(&bench.only_sent());
    assert_eq!((far.flags, far.sequence, far.acknowledgement), (RST | ACK, 1001, 5001));
    let [app] = bench.take_app().try_into().expect("one reset");
    assert_eq!((app.flags, app.sequence, app.acknowledgement), (RST | ACK, 5001, 1001));
    assert_eq!(bench.ports(), 0);
}

#[test]
fn a_reload_cuts_what_goes_another_way() {
    let reload = |bench: &mut Bench, text: &str| {
        let generation = bench.engine.generation() + 1;
        bench.engine.reload(Arc::new(routed(text)), generation);
        let mut compared = Vec::new();
        let policy = Arc::clone(bench.engine.policy());
        bench.engine.compare(
            &policy,
            None,
            None,
            &mut Walk::default(),
            bench.now,
            |flow, decision, moved| {
                compared.push((flow.number, decision.verdict, moved));
            },
        );
        let mut cut = Vec::new();
        let (now, wire) = (bench.now, &mut bench.wire);
        bench.engine.rejudge(&mut Walk::default(), &mut cut, now, wire);
        bench.run();
        let compared_moved = compared.iter().map(|(number, _, moved)| (*number, *moved));
        assert_eq!(
            compared_moved.collect::<Vec<_>>(),
            cut.iter().map(|cut| (cut.flow.number, cut.moved)).collect::<Vec<_>>(),
        );
        compared.first().map(|(_, verdict, moved)| (*verdict, moved.map(WayId::number)))
    };
    use crate::policy::Verdict::{Allow, Block};
    for (name, before, after, usable, want) in [
        ("the same", "route via wg0, wg1", "route via wg0, wg1", [true; 3], None),
        ("no other way", "route via wg0", "route to any via wg0, wg1", [true; 3], None),
        ("another", "route via wg0", "route via wg1", [true; 3], Some((Allow, Some(2)))),
        ("none", "route via wg0", "allow tcp", [true; 3], Some((Allow, Some(0)))),
        ("one before", "route via wg0", "route via wg1, wg0", [true; 3], Some((Allow, Some(2)))),
        (
            "one before that is not usable",
            "route via wg0",
            "route via wg1, wg0",
            [true, false, true],
            None,
        ),
        ("its own is not usable", "route via wg0, wg1", "route via wg0, wg1", [false; 3], None),
        (
            "blocked",
            "route via wg0",
            "route via wg0\nblock via wg0",
            [true; 3],
            Some((Block, None)),
        ),
        ("blocked elsewhere", "route via wg0", "route via wg0\nblock via wg1", [true; 3], None),
    ] {
        let mut bench = linked(before);
        open_linked(&mut bench, false);
        bench.outputs.clear();
        bench.engine.set_ways(Arc::new(ways(usable)));
        assert_eq!(reload(&mut bench, after), want, "{name}");
        if want.is_some() {
            assert_eq!(bench.last_reason(), Some(Reason::PolicyChanged), "{name}");
            assert_resets(&mut bench);
        } else {
            assert_eq!(bench.engine.live(), 1, "{name}");
            assert_eq!(bench.packet(&tcp(false, ACK, 1001, 5001, b"x")), Outcome::ToLink);
        }
    }
    // Failover back moves nothing: the flow of the second way stays there.
    let mut bench = linked("route via wg0, wg1");
    bench.engine.set_ways(Arc::new(ways([false, true, true])));
    bench.packet(&udp(false, b"x"));
    assert_eq!(bench.wire.to_link[0].link, wg(2));
    bench.engine.set_ways(Arc::new(ways([true; 3])));
    assert_eq!(reload(&mut bench, "route via wg0, wg1"), None);
    bench.packet(&udp(false, b"x"));
    assert_eq!(bench.wire.to_link[1].link, wg(2));
    // A direct flow that is to go through the tunnel now.
    let mut bench = linked("allow tcp");
    open(&mut bench, false);
    assert_eq!(reload(&mut bench, "route via wg0"), Some((Allow, Some(1))));
    assert!(bench.outputs.iter().any(|output| matches!(output, Output::Reset(_))));
}

#[test]
fn a_held_flow_goes_the_way_of_the_newest_policy() {
    let mut bench = linked("allow tcp");
    let (now, wire) = (bench.now, &mut bench.wire);
    let syn = tcp(false, SYN, 1000, 0, b"");
    bench.engine.handle_packet(&syn, Received::default(), now, wire);
    let asked = std::iter::from_fn(|| bench.engine.poll_output()).find_map(|output| match output {
        Output::Source(id, ..) => Some(id),
        Output::Owner(id, ..) => Some(id),
        _ => None,
    });
    let id = asked.expect("something is asked");
    bench.engine.reload(Arc::new(routed("route via wg0")), 2);
    bench.input(Input::Owner(id, None));
    bench.input(Input::Source(id, Ok(egress())));
    assert_eq!(bench.sent().len(), 1, "into the tunnel");
    assert!(!bench.outputs.iter().any(|output| matches!(output, Output::Connect(..))));
}

#[test]
fn flows_of_a_link_that_is_gone_end() {
    for gone in [true, false] {
        let mut bench = linked("route via wg0");
        open_linked(&mut bench, false);
        let mut changed = Ways::default();
        if !gone {
            let other = IpAddr::from([10, 9, 1, 3]);
            let leads = Leads::Link(Link { addresses: [other.into()].into(), ..link(1) });
            changed.set(way(1), WayOut { usable: true, leads });
        }
        bench.engine.set_ways(Arc::new(changed));
        let (now, wire) = (bench.now, &mut bench.wire);
        bench.engine.leave_links(&mut Walk::default(), now, wire);
        bench.run();
        assert_eq!((bench.last_reason(), bench.ports()), (Some(Reason::PathChanged), 0));
        assert_eq!(bench.take_app().len(), 1, "the app is reset");
        assert_eq!(bench.wire.to_link.len(), usize::from(!gone));
    }
    // With a reload that changes nothing else: the walk over all flows is that of the reload.
    let mut bench = linked("route via wg0");
    open_linked(&mut bench, false);
    let policy = Arc::new(routed("route via wg0"));
    let (gone, mut compared) = (Ways::default(), 0);
    for (ways, count) in [(None, 0), (Some(&gone), 1)] {
        let walk = &mut Walk::default();
        bench.engine.compare(&policy, None, ways, walk, bench.now, |_, _, _| compared += 1);
        assert_eq!(compared, count);
    }
    bench.engine.reload(policy, 2);
    bench.engine.set_ways(Arc::new(gone));
    let (now, wire, mut cut) = (bench.now, &mut bench.wire, Vec::new());
    bench.engine.rejudge(&mut Walk::default(), &mut cut, now, wire);
    bench.run();
    assert_eq!((cut.len(), cut[0].flow.reason), (1, Some(Reason::PathChanged)));
    assert_eq!((bench.last_reason(), bench.ports()), (Some(Reason::PathChanged), 0));
    // Before the walk has come to it.
    let mut bench = linked("route via wg0");
    open_linked(&mut bench, false);
    bench.engine.set_ways(Arc::default());
    assert_eq!(bench.packet(&tcp(false, ACK, 1001, 5001, b"x")), Outcome::ToApp);
    assert_eq!((bench.last_reason(), bench.ports()), (Some(Reason::PathChanged), 0));
    assert!(bench.wire.to_link.is_empty());
}

#[test]
fn a_protected_flow_ends_with_its_tunnel_alone() {
    let other = IpAddr::from([10, 9, 1, 3]);
    let moved = Leads::Link(Link { addresses: [other.into()].into(), ..link(1) });
    let of = |leads: Option<Leads>| {
        let mut ways = Ways::default();
        if let Some(leads) = leads {
            ways.set(way(1), WayOut { usable: true, leads });
        }
        ways
    };
    let links = [
        ("as it was", Some(Leads::Link(link(1))), true),
        ("another address", Some(moved), true),
        ("gone", None, false),
    ];
    for (name, leads, stays) in links {
        for text in ["route via wg0", "route via wg1", "default block", "drop tcp"] {
            let mut bench = linked("route via wg0\nallow protected id call");
            open_linked(&mut bench, false);
            let after = of(leads.clone());
            let (policy, walk, mut would) = (routed(text), &mut Walk::default(), 0);
            bench.engine.compare(&policy, None, Some(&after), walk, bench.now, |_, _, _| {
                would += 1;
            });
            assert_eq!(would, i32::from(!stays), "{name}: {text}");
            bench.engine.reload(Arc::new(policy), 2);
            bench.engine.set_ways(Arc::new(after));
            let (now, wire, mut cut) = (bench.now, &mut bench.wire, Vec::new());
            bench.engine.rejudge(&mut Walk::default(), &mut cut, now, wire);
            bench.engine.leave_links(&mut Walk::default(), now, wire);
            bench.run();
            assert_eq!(cut.len(), usize::from(!stays), "{name}: {text}");
            assert_eq!(bench.engine.live(), usize::from(stays), "{name}: {text}");
            if !stays {
                assert_eq!(bench.last_reason(), Some(Reason::PathChanged), "{text}");
                continue;
            }
            assert_eq!(bench.packet(&tcp(false, ACK, 1001, 5001, b"x")), Outcome::ToLink);
            let sent = bench.only_sent();
            assert_eq!(sent[12..16], [10, 9, 1, 2], "{name}: with the address that it has");
            bench.arrives(tcp_reply(false, ACK, 5001, 1002, b"y")).expect("for the app");
        }
    }
    // And one over a proxy not even with that: its connection is there.
    let mut bench = linked("route via office\nallow protected id call");
    bench.packet(&tcp(false, SYN, 1000, 0, b""));
    let asked = bench.outputs.iter().find_map(|output| match output {
        Output::ConnectVia(id, ..) => Some(*id),
        _ => None,
    });
    bench.input(Input::Connected(asked.expect("the proxy is asked"), 7, rings(1)));
    bench.engine.reload(Arc::new(routed("default block")), 2);
    bench.engine.set_ways(Arc::default());
    let (now, wire, mut cut) = (bench.now, &mut bench.wire, Vec::new());
    bench.engine.rejudge(&mut Walk::default(), &mut cut, now, wire);
    assert_eq!((cut.len(), bench.engine.live()), (0, 1));
    let listed = &bench.list()[0];
    assert_eq!((listed.rule.as_deref(), listed.generation), (Some("call"), 1));
}
