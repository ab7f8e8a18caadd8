//! Reloads against a model: any sequence of packets, connects and reloads between random
//! policies, with walks in pieces.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::engine::{Cut, Walk};
use crate::policy::{Decision, Judgement, Verdict};
use crate::{Fact, Facts, Learned, Report, ResolverId};

const HOSTS: [[u8; 4]; 4] = [[203, 0, 113, 9], [203, 0, 113, 10], [198, 51, 100, 7], [8, 8, 8, 8]];
const NAMES: [&str; 3] = ["a.example", "b.example", "other"];
/// Flows that may exist: a client port each.
const FLOWS: u16 = 24;

#[derive(Debug, Clone)]
enum Step {
    /// The next packet of a flow, or its first.
    Packet(u16),
    /// The far side accepts the connection of the `n`th flow that waits for it.
    Connected(usize),
    /// ... or refuses it.
    Refused(usize),
    /// Somebody ends the `n`th live flow.
    Kill(usize),
    /// A policy comes. A walk that is under way gives way to a new one.
    Reload(usize),
    /// An answer tells a name of the `n`th host.
    Learn(usize, &'static str),
    /// So many flows are judged again.
    Judge(usize),
    /// So many flows are listed.
    List(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let at = 0..64usize;
    prop_oneof![
        8 => (0..FLOWS).prop_map(Step::Packet),
        4 => at.clone().prop_map(Step::Connected),
        1 => at.clone().prop_map(Step::Refused),
        1 => at.prop_map(Step::Kill),
        2 => (0..4usize).prop_map(Step::Reload),
        3 => (0..HOSTS.len(), select(NAMES.to_vec())).prop_map(|(at, name)| Step::Learn(at, name)),
        4 => (1..9usize).prop_map(Step::Judge),
        2 => (1..9usize).prop_map(Step::List),
    ]
}

fn rule() -> impl Strategy<Value = String> {
    let verdict = select(vec!["allow", "allow", "block", "drop"]);
    let protocol = select(vec!["", "tcp", "udp", "icmp"]);
    let rest = select(vec![
        "",
        "to 203.0.113.0/24",
        "to not 203.0.113.9",
        "to 8.8.8.8",
        "from 192.0.2.1",
        "egress eth1",
        "user 1000",
        "user not 1000",
        "user unknown",
        "to a.example",
        "to not *.example",
        "to unknown-name 8.8.8.8",
        "to not other 203.0.113.9",
        "resolver upstream",
        "resolver not upstream",
    ]);
    (verdict, protocol, rest).prop_map(|(verdict, protocol, rest)| {
        let clauses = format!("{verdict} {protocol} {rest}");
        clauses.split_whitespace().collect::<Vec<_>>().join(" ")
    })
}

fn policies() -> impl Strategy<Value = Vec<String>> {
    let rules = prop::collection::vec(rule(), 0..5);
    let one = (rules, select(vec!["allow", "block", "drop"])).prop_map(|(rules, default)| {
        let named = rules.iter().enumerate().map(|(at, rule)| format!("{rule} id r{at}\n"));
        format!("{}default {default}", named.collect::<String>())
    });
    prop::collection::vec(one, 4)
}

fn owner(client: SocketAddr) -> Option<Owner> {
    client.port().is_multiple_of(2).then_some(Owner { uid: 1000, cgroup: None, of_proxy: false })
}

fn packet(flow: u16) -> Vec<u8> {
    let bytes = match flow % 3 {
        0 => tcp(false, SYN, 1000, 0, b""),
        1 => udp(false, b"x"),
        _ => echo(false, 1, 1),
    };
    aimed(bytes, port(flow), HOSTS[usize::from(flow / 3) % HOSTS.len()])
}

fn port(flow: u16) -> u16 {
    2000 + flow
}

/// The name in the first bytes of a flow.
fn said(flow: u16) -> Option<&'static str> {
    NAMES.get(usize::from(flow / 3) % 4).copied()
}

/// What a plain judgement says of a flow whose every fact was asked for.
fn judged(policy: &Policy, report: &Report) -> Decision {
    let mut facts = Facts::new(report.protocol, report.client, report.destination, true);
    facts.egress = Fact::answered(Some(egress()));
    facts.owner = Fact::answered(owner(report.client));
    facts.name = Fact::answered(report.name.clone());
    facts.resolvers = report.resolvers.iter().map(|_| ResolverId::UPSTREAM).collect();
    match policy.judge(&facts) {
        Judgement::Decided(decision) => decision,
        Judgement::Needs(need) => panic!("{need:?}"),
    }
}

struct Model {
    bench: Bench,
    policies: Vec<Arc<Policy>>,
    /// The policy of each generation, from 1.
    generations: Vec<Arc<Policy>>,
    /// Live flows by number.
    live: BTreeMap<u64, Report>,
    /// Flows that wait for the far side.
    connecting: Vec<FlowId>,
    /// Ports whose next packet may get the answer of a verdict that was given before, and by
    /// which generation.
    answered: BTreeMap<u16, u64>,
    walk: Option<Walk>,
    list: Option<(Walk, Vec<Report>, Vec<u64>)>,
    rings: u32,
    /// What was asked last for each host.
    names: BTreeMap<IpAddr, &'static str>,
}

impl Model {
    fn new(texts: &[String]) -> Self {
        let policies: Vec<_> = texts.iter().map(|text| Arc::new(policy(text))).collect();
        let mut bench = Bench::new(Config { flows: 1000, half_open: 1000, ..config() });
        bench.owner = owner;
        bench.engine.reload(Arc::clone(&policies[0]), 2);
        let generations = vec![Arc::new(Policy::allow_all()), Arc::clone(&policies[0])];
        Self {
            bench,
            policies,
            generations,
            live: BTreeMap::new(),
            connecting: Vec::new(),
            answered: BTreeMap::new(),
            walk: None,
            list: None,
            rings: 0,
            names: BTreeMap::new(),
        }
    }

    fn policy_of(&self, report: &Report) -> &Policy {
        &self.generations[report.generation as usize - 1]
    }

    fn check(&self, report: &Report) {
        let policy = self.policy_of(report);
        let decision = judged(policy, report);
        assert_eq!(report.rule.as_deref(), Some(policy.rule_name(decision.rule)), "{report:?}");
        assert_eq!(report.verdict, Some(decision.verdict), "{report:?}");
    }

    /// The first bytes of a connection that is peeked at: for some a request, which names the
    /// host.
    fn speak(&mut self, flow: u16) {
        let asked = |output: &Output| matches!(output, Output::Rings(_));
        let Some(at) = self.bench.outputs.iter().position(asked) else { return };
        let Output::Rings(id) = self.bench.outputs.remove(at) else { return };
        self.rings += 1;
        self.bench.wire.to_app.clear();
        self.bench.input(Input::Lent(id, Some(rings(self.rings))));
        let syn_ack = self.bench.take_app().pop().expect("a SYN-ACK");
        let bytes = match said(flow) {
            Some(name) => format!("GET / HTTP/1.1\r\nHost: {name}\r\n\r\n"),
            None => "\0".to_owned(),
        };
        let next = syn_ack.sequence.wrapping_add(1);
        let to = HOSTS[usize::from(flow / 3) % HOSTS.len()];
        let segment = aimed(tcp(false, ACK, 1001, next, bytes.as_bytes()), port(flow), to);
        self.bench.packet(&segment);
    }

    /// A flow that opens now has the name that it says, or the one asked last.
    fn named(&self, report: &Report) {
        let asked = self.names.get(&report.destination.ip()).copied();
        let name = if report.peeked { said(report.client.port() - port(0)) } else { asked };
        assert_eq!(report.name.as_ref().map(|name| &*name.text), name, "{report:?}");
        assert_eq!(report.resolvers.len(), usize::from(asked.is_some()), "{report:?}");
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Packet(flow) => self.packet(flow),
            Step::Connected(at) | Step::Refused(at) => {
                if self.connecting.is_empty() {
                    return;
                }
                let id = self.connecting.remove(at % self.connecting.len());
                self.rings += 1;
                let input = match step {
                    Step::Connected(_) => Input::Connected(id, 1, rings(self.rings)),
                    _ => Input::Failed(id, Failure::Refused),
                };
                if let Some(flow) = self.bench.engine.table.get(id)
                    && matches!(step, Step::Refused(_))
                {
                    self.live.remove(&flow.opening.number);
                }
                self.bench.input(input);
            }
            Step::Kill(at) => {
                let number = self.live.keys().nth(at % self.live.len().max(1)).copied();
                let Some(number) = number else { return };
                let id = self.bench.engine.seek(number, &mut Walk::default()).expect("it lives");
                let now = self.bench.now;
                self.bench.engine.kill(id, now, &mut self.bench.wire);
                self.bench.run();
                self.connecting.retain(|other| *other != id);
                self.live.remove(&number);
            }
            Step::Reload(at) => {
                let policy = &self.policies[at];
                self.generations.push(Arc::clone(policy));
                self.bench.engine.reload(Arc::clone(policy), self.generations.len() as u64);
                self.walk = Some(Walk::default());
            }
            Step::Learn(host, name) => {
                let address = IpAddr::from(HOSTS[host]);
                let ttl = Duration::from_secs(60);
                let addresses = vec![(address, ResolverId::UPSTREAM.into())];
                let learned = Learned { name: name.into(), addresses, ttl };
                self.bench.engine.learn(&[learned], self.bench.now);
                self.names.insert(address, name);
            }
            Step::Judge(most) => self.judge(most),
            Step::List(most) => self.list(most),
        }
        self.bench.run();
        self.agree();
    }

    fn packet(&mut self, flow: u16) {
        let is_live = self.live.values().any(|report| report.client.port() == port(flow));
        let opened = self.bench.engine.flows_opened();
        let outcome = self.bench.packet(&packet(flow));
        self.speak(flow);
        let outputs = std::mem::take(&mut self.bench.outputs);
        for output in &outputs {
            if let Output::Connect(id, ..) = output {
                self.connecting.push(*id);
            }
        }
        let newest = self.generations.last().expect("a policy");
        let reports = outputs.into_iter().filter_map(|output| match output {
            Output::Report(report) => Some(*report),
            _ => None,
        });
        for report in reports {
            assert_eq!(report.generation as usize, self.generations.len(), "judged by the newest");
            self.check(&report);
            self.named(&report);
        }
        let generation = self.generations.len() as u64;
        if self.bench.engine.flows_opened() == opened {
            let remembered = self.answered.get(&port(flow));
            let may = remembered.is_some_and(|by| *by == generation || self.walk.is_some());
            assert!(is_live || may, "judged anew after a reload");
            return;
        }
        self.answered.insert(port(flow), generation);
        assert!(!is_live, "a live flow has no second");
        let number = opened + 1;
        let listed = self.bench.list().into_iter().find(|report| report.number == number);
        if let Some(report) = listed {
            assert_eq!(judged(newest, &report).verdict, Verdict::Allow);
            self.named(&report);
            assert_eq!(outcome, Outcome::Held);
            self.answered.remove(&port(flow));
            self.live.insert(number, report);
        }
    }

    fn judge(&mut self, most: usize) {
        let Some(walk) = &mut self.walk else { return };
        let mut cut = Vec::new();
        let now = self.bench.now;
        self.bench.engine.rejudge_some(most, walk, &mut cut, now, &mut self.bench.wire);
        let over = walk.is_over();
        self.bench.run();
        let told: Vec<u64> = self.closed().map(|report| report.number).collect();
        assert_eq!(
            told,
            cut.iter().map(|cut| cut.flow.number).collect::<Vec<_>>(),
            "each is told once"
        );
        self.bench.outputs.clear();
        for Cut { flow: report, .. } in &cut {
            self.check(report);
            let before = self.live.remove(&report.number).expect("only what lives is cut");
            if before.stage == Stage::Connecting {
                self.answered.insert(report.client.port(), report.generation);
            }
            assert_eq!(judged(self.policy_of(&before), &before).verdict, Verdict::Allow);
            assert_eq!(report.generation as usize, self.generations.len());
            assert_ne!(report.verdict, Some(Verdict::Allow), "the verdict is another");
            assert_eq!(report.reason, Some(Reason::PolicyChanged), "{report:?}");
        }
        if over {
            self.walk = None;
            let newest = self.generations.last().expect("a policy");
            for report in self.bench.list() {
                assert_eq!(judged(newest, &report).verdict, Verdict::Allow, "{report:?}");
                assert_eq!(report.generation as usize, self.generations.len());
            }
        }
    }

    fn closed(&self) -> impl Iterator<Item = &Report> {
        self.bench.outputs.iter().filter_map(|output| match output {
            Output::Report(report) if report.stage == Stage::Closed => Some(&**report),
            _ => None,
        })
    }

    fn list(&mut self, most: usize) {
        let (mut walk, mut flows, mut since) = self
            .list
            .take()
            .unwrap_or_else(|| (Walk::default(), Vec::new(), self.live.keys().copied().collect()));
        self.bench.engine.list_some(most, &mut walk, self.bench.now, &mut flows);
        if !walk.is_over() {
            self.list = Some((walk, flows, since));
            return;
        }
        since.retain(|number| self.live.contains_key(number));
        for number in since {
            let met = flows.iter().filter(|report| report.number == number).count();
            assert_eq!(met, 1, "flow {number} lived during the whole walk");
        }
    }

    /// What the engine says lives is what the model says.
    fn agree(&mut self) {
        let listed = self.bench.list();
        let numbers: Vec<u64> = {
            let mut all: Vec<u64> = listed.iter().map(|report| report.number).collect();
            all.sort_unstable();
            all
        };
        assert_eq!(numbers, self.live.keys().copied().collect::<Vec<_>>());
        assert_eq!(numbers.len(), self.bench.engine.live());
        for report in listed {
            self.check(&report);
            let before = self.live.get(&report.number).and_then(|before| before.name.as_ref());
            assert_eq!(before, report.name.as_ref(), "a flow keeps its name");
            self.live.insert(report.number, report);
        }
        self.bench.outputs.clear();
        self.bench.wire.to_app.clear();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 384, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_reload_cuts_what_it_changes_and_nothing_else(
        texts in policies(),
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut model = Model::new(&texts);
        for step in &steps {
            model.step(step);
        }
        while model.walk.is_some() {
            model.step(&Step::Judge(3));
        }
        model.bench.input(Input::Shutdown);
        prop_assert_eq!(model.bench.engine.flows(), 0);
        prop_assert_eq!(model.bench.engine.live(), 0);
    }
}
