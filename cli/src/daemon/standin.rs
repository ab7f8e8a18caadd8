//! A shard for tests: it has flows and a policy and carries nothing.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::SystemTime;

use engine::policy::{Judgement, Policy, RuleId, Verdict};
use engine::{Counters, Fact, Facts, Reason, Report, ResolverId, Stage};
use tunnel::driver::Unasked;
use tunnel::driver::request::{Changed, Hits, Killed, Reload, Request, Status};

use super::{Access, Daemon, Events, Parts, Shard};
use crate::config::Config;
use crate::names::{Network, Waiting};
use crate::report::{Clock, tests::example};

/// What the rest of the daemon holds of it.
pub(crate) struct StandIn {
    requests: SyncSender<Request>,
    manner: Manner,
}

impl Shard for StandIn {
    fn ask(&self, request: Request) -> Result<(), Unasked> {
        if self.manner == Manner::Full && !matches!(request, Request::Reload(_)) {
            return Err(Unasked::Busy);
        }
        self.requests.send(request).map_err(|_| Unasked::Gone)
    }
}

/// What it does with what it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// What a shard does.
    Answers,
    /// It hears nothing.
    Silent,
    /// It ends at the first question.
    Ends,
    /// It takes a reload and nothing else.
    Full,
    /// It takes a reload and never gets to it.
    Hangs,
}

struct Carried {
    policy: Arc<Policy>,
    generation: u64,
    flows: Vec<Report>,
    hits: u64,
}

impl StandIn {
    pub(crate) fn start(policy: Arc<Policy>, flows: Vec<Report>, manner: Manner) -> Self {
        let (requests, received) = sync_channel(64);
        let carried = Carried { policy, generation: 1, flows, hits: 0 };
        std::thread::spawn(move || carried.run(&received, manner));
        Self { requests, manner }
    }
}

impl Carried {
    fn run(mut self, requests: &Receiver<Request>, manner: Manner) {
        let mut unanswered = Vec::new();
        while let Ok(request) = requests.recv() {
            match manner {
                Manner::Silent => unanswered.push(request),
                Manner::Hangs if matches!(request, Request::Reload(_)) => unanswered.push(request),
                Manner::Answers | Manner::Full | Manner::Hangs => self.answer(request),
                Manner::Ends => return,
            }
        }
    }

    fn answer(&mut self, request: Request) {
        match request {
            Request::Reload(Reload { policy, generation, answer, .. }) => {
                assert!(generation > self.generation, "a generation that was taken before");
                let (cut, kept) = std::mem::take(&mut self.flows)
                    .into_iter()
                    .partition(|flow| judged(&policy, flow).0 != Verdict::Allow);
                (self.policy, self.generation, self.flows) = (policy, generation, kept);
                let cut: Vec<Report> = cut;
                let ended = cut.into_iter().map(|flow| {
                    let (verdict, rule) = judged(&self.policy, &flow);
                    let (verdict, rule) = (Some(verdict), Some(rule));
                    let reason = Some(Reason::Policy);
                    let flow =
                        Report { stage: Stage::Closed, verdict, rule, reason, generation, ..flow };
                    engine::Cut { flow, moved: None }
                });
                answer(ended.collect());
            }
            Request::Compare { policy, answer, .. } => {
                let changed = self.flows.iter().filter_map(|flow| {
                    let (verdict, rule) = judged(&policy, flow);
                    let flow = flow.clone();
                    (verdict != Verdict::Allow).then_some(Changed {
                        flow,
                        verdict,
                        rule,
                        moved: None,
                    })
                });
                answer(changed.collect());
            }
            Request::Own(_) | Request::Link(_) | Request::Probe { .. } => {}
            Request::Ways { answer, .. } => answer(()),
            Request::Learn { answer, .. } => answer(()),
            Request::Flows { answer } => answer(self.flows.clone()),
            Request::Kill { number, of, answer } => {
                let at = self.flows.iter().position(|flow| flow.number == number);
                let owner = at.and_then(|at| self.flows[at].owner.as_ref()).map(|owner| owner.uid);
                answer(match at {
                    None => Killed::NoSuchFlow,
                    Some(_) if of.is_some() && of != owner => Killed::NotYours,
                    Some(at) => {
                        self.flows.remove(at);
                        Killed::Done
                    }
                });
            }
            Request::Hits { answer } => {
                self.hits += 1;
                let names = self.policy.rule_texts().map(|rule| rule.name.to_owned());
                let names = names.chain([self.policy.rule_name(RuleId::DEFAULT).to_owned()]);
                let hits = (0..).map(|at| if at == 0 { 0 } else { at + self.hits });
                answer(Hits { generation: self.generation, rules: names.zip(hits).collect() });
            }
            Request::Names { address, answer } => {
                let named = self.flows.iter().filter(|flow| flow.destination.ip() == address);
                let names = named.filter_map(|flow| Some(flow.name.clone()?.text)).take(1);
                answer((names.collect(), ResolverId::UPSTREAM.into()));
            }
            Request::Status { answer } => answer(self.status()),
        }
    }
}

impl Carried {
    /// With figures that differ from each other and add up.
    fn status(&self) -> Status {
        let mut counters = Counters { to_app: 11, to_egress: 700, held: 3, ..Counters::default() };
        for (at, (dropped, reply)) in
            (1..).zip(counters.dropped.iter_mut().zip(&mut counters.replies_dropped))
        {
            (*dropped, *reply) = (at, 100 + at);
        }
        counters.packets_in = 714 + counters.dropped.iter().sum::<u64>();
        Status {
            generation: self.generation,
            flows: self.flows.len(),
            flows_opened: 1042,
            memory: 3 << 20,
            counters,
            panics: 5,
            reports_lost: 6,
            older: 7,
        }
    }
}

fn judged(policy: &Policy, flow: &Report) -> (Verdict, String) {
    let mut facts = Facts::new(flow.protocol, flow.client, flow.destination, flow.local);
    facts.owner = Fact::answered(flow.owner.clone());
    facts.egress = Fact::answered(flow.egress);
    match policy.judge(&facts) {
        Judgement::Decided(decision) => {
            (decision.verdict, policy.rule_name(decision.rule).to_owned())
        }
        Judgement::Needs(_) => panic!("all facts are known"),
    }
}

/// An open flow of user 1000 to a port of 203.0.113.9.
pub(crate) fn flow(number: u64, port: u16) -> Report {
    let destination = SocketAddr::from(([203, 0, 113, 9], port));
    let (stage, closed, reason) = (Stage::Open, None, None);
    Report { number, destination, stage, closed, reason, ..example() }
}

/// A directory with configuration and policy, gone at the end.
pub(crate) struct Disk(pub(crate) PathBuf);

impl Disk {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tunneld-{name}-{}", std::process::id()));
        let disk = Self(path);
        std::fs::create_dir_all(disk.0.join("policy.d")).expect("a directory");
        disk.write("tunneld.toml", CONFIG);
        disk.write("policy.d/a.policy", OPEN);
        disk
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.join(name), text).expect("a file");
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) const CONFIG: &str = "[policy]\ndirectory = \"policy.d\"\n[guard]\nmode = \"open\"\n";
/// A policy that allows the flows of the tests.
pub(crate) const OPEN: &str = "policy 1\nblock tcp port 25\nallow tcp\ndefault block\n";
/// One that ends those to port 80.
pub(crate) const NO_80: &str = "policy 1\nblock tcp port 80 id no-80\nallow tcp\ndefault block\n";

/// The policy on the disk, with the names of its configuration.
fn loaded(disk: &Disk, config: &Config) -> Arc<Policy> {
    let named = config.named().expect("good names");
    let path = disk.path("policy.d");
    Arc::new(crate::policy_files::load(&[path], named, 1).expect("a good policy"))
}

/// A daemon of two shards with two flows each, to ports 80 and 443.
pub(crate) fn daemon(disk: &Disk, access: Access, manner: Manner) -> Daemon {
    crowded(disk, access, manner, 2)
}

/// The same with as many flows a shard, by turns to ports 80 and 443.
pub(crate) fn crowded(disk: &Disk, access: Access, manner: Manner, flows: u64) -> Daemon {
    let file = disk.path("tunneld.toml");
    let text = std::fs::read_to_string(&file).expect("a file");
    let config: Config = crate::config::parse(Path::new(&file), &text).expect("a good one");
    let policy = loaded(disk, &config);
    let clock = Clock { epoch: SystemTime::now() };
    let shard = |manner| -> Box<dyn Shard> {
        let port = |number| if number % 2 == 1 { 80 } else { 443 };
        let flows = (1..=flows).map(|number| flow(number, port(number))).collect();
        Box::new(StandIn::start(Arc::clone(&policy), flows, manner))
    };
    let events = Arc::<Events>::default();
    let waiting = Waiting::new(&config, &policy, None).expect("good resolvers");
    let names = waiting.names().clone();
    // One that isn't there: what is asked is what the configuration names.
    let network = Network::File(disk.path("resolv.conf"));
    waiting.start(Vec::new(), network, Some(Arc::clone(&events)), ()).expect("a thread");
    Daemon::new(Parts {
        shards: vec![(shard(Manner::Answers), clock), (shard(manner), clock)],
        policy: Arc::clone(&policy),
        generation: 1,
        config_file: Some(file),
        config,
        access,
        events,
        names: Some(names),
        ways: None,
        mark: None,
        tracking: Arc::default(),
        on_host: None,
    })
}

/// For those who have no daemon to ask for them.
pub(crate) fn events(daemon: &Daemon) -> Arc<Events> {
    Arc::clone(daemon.events())
}
