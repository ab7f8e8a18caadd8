//! Any sequence of packets both ways, of reloads, and of links that come and go: a port is
//! taken as long as its flow lives and no longer, nothing leaves that the policy does not
//! allow to leave so, and a reply reaches the client that asked.

use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::packet::checksum::Update;
use crate::packet::rewrite::{End, readdress};

#[derive(Debug, Clone)]
enum Step {
    /// The `n`th client sends a packet of that kind.
    Packet(u8, Kind),
    /// The far side answers the `n`th packet that left.
    Answer(usize),
    /// A router answers it with an error.
    Error(usize),
    Reload(usize),
    Ways([bool; 3], bool),
    Kill(usize),
    Wait(u16),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Syn,
    Reset,
    Datagram,
    Echo,
}

const POLICIES: [&str; 5] = [
    "route via wg0",
    "route udp via wg0, wg1\nroute tcp via wg1",
    "route via wg1, wg0\nblock via wg1 udp",
    "block tcp\nroute via wg0",
    "drop icmp\nallow via wg0\nroute tcp via wg0\ndefault block",
];

fn step() -> impl Strategy<Value = Step> {
    let kind = select(vec![Kind::Syn, Kind::Datagram, Kind::Echo, Kind::Reset]);
    prop_oneof![
        8 => (0..6_u8, kind).prop_map(|(client, kind)| Step::Packet(client, kind)),
        6 => (0..64_usize).prop_map(Step::Answer),
        2 => (0..64_usize).prop_map(Step::Error),
        2 => (0..POLICIES.len()).prop_map(Step::Reload),
        2 => (any::<[bool; 3]>(), any::<bool>()).prop_map(|(usable, there)| Step::Ways(usable, there)),
        1 => (0..8_usize).prop_map(Step::Kill),
        2 => select(vec![1, 5, 40, 140, 8000]).prop_map(Step::Wait),
    ]
}

fn packet(number: u8, kind: Kind) -> Vec<u8> {
    let (mut packet, protocol) = match kind {
        Kind::Syn => (tcp(false, SYN, 1000, 0, b""), TCP),
        Kind::Reset => (tcp(false, RST, 1001, 0, b""), TCP),
        Kind::Datagram => (udp(false, b"question"), UDP),
        Kind::Echo => (echo(false, 40_000, 1), ICMP),
    };
    // All of one port: only the first keeps it.
    let from = (IpAddr::from([198, 18, 0, number + 1]), 40_000);
    readdress(&mut packet, 20, protocol, End::Source, from, false, Update::default());
    packet
}

/// What the far side says to a packet.
fn answer(sent: &[u8]) -> Vec<u8> {
    let parsed = parse(sent, Checksum::Unknown).expect("right");
    let mut upper = sent[20..].to_vec();
    if parsed.source == parsed.destination {
        return sent.to_vec();
    }
    match sent[9] {
        TCP => {
            upper.truncate(20);
            upper[12] = 5 << 4;
            upper[13] = SYN | ACK;
            upper.copy_within(0..2, 18);
            let ports = [upper[2], upper[3], upper[0], upper[1]];
            let acknowledges = be32(sent, 24).wrapping_add(1).to_be_bytes();
            upper[..4].copy_from_slice(&ports);
            upper[8..12].copy_from_slice(&acknowledges);
            upper[18..20].fill(0);
        }
        UDP => {
            let ports = [upper[2], upper[3], upper[0], upper[1]];
            upper[..4].copy_from_slice(&ports);
        }
        _ => upper[0] = 0,
    }
    reply(false, sent[9], &mut upper, parsed.source)
}

fn ways_now(usable: [bool; 3], there: bool) -> Ways {
    let mut all = ways(usable);
    if !there {
        let mut without = Ways::default();
        without.set(way(2), all.way(way(2)).expect("there").clone());
        all = without;
    }
    all
}

struct Model {
    bench: Bench,
    ways: Ways,
    /// What left, by which link, and whose it was.
    left: Vec<(LinkId, Vec<u8>, IpAddr)>,
}

impl Model {
    fn step(&mut self, step: &Step) {
        match *step {
            Step::Packet(number, kind) => {
                self.bench.packet(&packet(number, kind));
                self.take(IpAddr::from([198, 18, 0, number + 1]));
            }
            Step::Answer(at) | Step::Error(at) => {
                if self.left.is_empty() {
                    return;
                }
                let (link, sent, asked) = self.left[at % self.left.len()].clone();
                // Its port may be another's by now, or nobody's.
                let owner = self.owner(link, &sent);
                let mut bytes = match step {
                    Step::Answer(_) => answer(&sent),
                    _ => {
                        let mut bytes = error(3, 1, 0, &sent);
                        let own = address(link.way().number(), false);
                        let none = Update::default();
                        // The outer address alone; its checksum covers no address.
                        let port = be16(&bytes, 24);
                        let to = (own, port);
                        readdress(&mut bytes, 20, ICMP, End::Destination, to, false, none);
                        bytes
                    }
                };
                let (now, wire) = (self.bench.now, &mut self.bench.wire);
                let meta = Meta::default();
                let taken =
                    self.bench.engine.handle_link_packet(link, &mut bytes, &[], meta, now, wire);
                self.bench.run();
                let got = taken.map(|_| bytes).or_else(|| self.bench.wire.to_app.pop());
                if let Some(got) = got {
                    let parsed = parse(&got, Checksum::Unknown).expect("right for the app");
                    assert_eq!(Some(parsed.destination), owner, "asked by {asked}");
                }
            }
            Step::Reload(at) => {
                let generation = self.bench.engine.generation() + 1;
                self.bench.engine.reload(Arc::new(routed(POLICIES[at])), generation);
                let (now, wire) = (self.bench.now, &mut self.bench.wire);
                self.bench.engine.rejudge(&mut Walk::default(), &mut Vec::new(), now, wire);
            }
            Step::Ways(usable, there) => {
                self.ways = ways_now(usable, there);
                self.bench.engine.set_ways(Arc::new(self.ways.clone()));
                let (now, wire) = (self.bench.now, &mut self.bench.wire);
                self.bench.engine.leave_links(&mut Walk::default(), now, wire);
            }
            Step::Kill(at) => {
                let live = self.bench.list();
                let Some(report) = live.get(at) else { return };
                let id = self.bench.engine.seek(report.number, &mut Walk::default());
                let (now, wire) = (self.bench.now, &mut self.bench.wire);
                self.bench.engine.kill(id.expect("it lives"), now, wire);
            }
            Step::Wait(seconds) => self.bench.wait(Duration::from_secs(seconds.into())),
        }
        self.bench.run();
        // Resets of flows that ended; they belong to what was allowed before.
        self.bench.wire.to_link.clear();
        self.bench.wire.to_app.clear();
        self.bench.outputs.clear();
        let linked = self.bench.list().iter().filter(|r| r.via.name().starts_with("wg")).count();
        assert_eq!(self.bench.ports(), linked, "a port a flow");
    }

    /// The flow whose port a packet that left has now.
    fn flow(&self, link: LinkId, packet: &[u8]) -> Option<&crate::flow::Flow> {
        let echo = packet[9] == ICMP;
        let id = self.bench.engine.nat.find(&crate::nat::NatKey {
            link,
            protocol: packet[9],
            far: crate::flow::octets(server(false).ip()),
            far_port: if echo { 0 } else { be16(packet, 22) },
            port: be16(packet, if echo { 24 } else { 20 }),
        });
        self.bench.engine.table.get(id?)
    }

    fn owner(&self, link: LinkId, packet: &[u8]) -> Option<IpAddr> {
        self.flow(link, packet).map(|flow| flow.opening.facts.client().ip())
    }

    /// Takes what left after a packet of that client.
    fn take(&mut self, client: IpAddr) {
        for sent in std::mem::take(&mut self.bench.wire.to_link) {
            let packet = sent.packet();
            let parsed = parse(&packet, Checksum::Unknown).expect("right");
            let link = self.ways.link(sent.link).expect("the link is there");
            assert_eq!(Some(parsed.source), link.address(parsed.destination));
            let flow = self.flow(sent.link, &packet);
            // A RST has ended its own.
            if let Some(flow) = flow {
                let facts = &flow.opening.facts;
                assert_eq!(facts.client().ip(), client);
                assert_eq!(facts.via, Some(sent.link.way()));
                let policy = &flow.opening.edition.policy;
                let crate::policy::Judgement::Decided(decision) = policy.judge(facts) else {
                    panic!("facts are missing")
                };
                assert_eq!(decision.verdict, crate::policy::Verdict::Allow);
            }
            self.left.push((sent.link, packet, client));
        }
        let excess = self.left.len().saturating_sub(64);
        self.left.drain(..excess);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn ports_live_as_long_as_their_flows(steps in prop::collection::vec(step(), 1..100)) {
        let bench = linked_with(Config { flows: 8, half_open: 4, ..config() }, POLICIES[0]);
        let mut model = Model { bench, ways: ways([true; 3]), left: Vec::new() };
        for step in &steps {
            model.step(step);
        }
        model.bench.input(Input::Shutdown);
        prop_assert_eq!(model.bench.ports(), 0);
        prop_assert_eq!(model.bench.engine.flows(), 0);
    }
}
