//! Flows whose destination has a name.

use super::*;
use crate::engine::Walk;
use crate::policy::Verdict;
use crate::{Learned, Report, ResolverId, ResolverSet};

const A: [u8; 4] = [203, 0, 113, 9];
const B: [u8; 4] = [198, 51, 100, 7];
const MINUTE: Duration = Duration::from_secs(60);

impl Bench {
    fn learn(&mut self, name: &str, to: [u8; 4], ttl: Duration) {
        let addresses = vec![(IpAddr::from(to), ResolverId::UPSTREAM.into())];
        let learned = Learned { name: name.into(), addresses, ttl };
        self.engine.learn(&[learned], self.now);
    }

    /// The report of a UDP flow that opens, or that is refused.
    fn udp_to(&mut self, port: u16, to: [u8; 4]) -> Report {
        self.outputs.clear();
        self.packet(&aimed(udp(false, b"x"), port, to));
        let report = |output: Output| match output {
            Output::Report(report) => Some(*report),
            _ => None,
        };
        self.outputs.drain(..).find_map(report).expect("a report")
    }
}

fn brief(report: &Report) -> (Option<&str>, Vec<&str>, &str) {
    let resolvers = report.resolvers.iter().map(|name| &**name).collect();
    (report.name.as_ref().map(|name| &*name.text), resolvers, report.rule.as_deref().unwrap_or(""))
}

#[test]
fn the_name_that_was_asked_last_is_judged() {
    let text = "block to *.ads.example id ads\nallow to unknown-name id nameless\n\
                allow resolver upstream id told\ndefault drop";
    let mut bench = Bench::with(config(), policy(text));
    assert_eq!(brief(&bench.udp_to(1, A)), (None, vec![], "nameless"));
    bench.learn("www.example", A, MINUTE);
    let upstream = || vec!["upstream"];
    assert_eq!(brief(&bench.udp_to(2, A)), (Some("www.example"), upstream(), "told"));
    bench.learn("x.ads.example", A, MINUTE);
    assert_eq!(brief(&bench.udp_to(3, A)), (Some("x.ads.example"), upstream(), "ads"));
    assert_eq!(brief(&bench.udp_to(4, B)), (None, vec![], "nameless"));
    // As a mapped address the answer tells of the same host.
    let mapped = IpAddr::from([0, 0, 0, 0, 0, 0xffff, 0xcb00, 0x7109]);
    let addresses = [(mapped, ResolverSet::from(ResolverId::UPSTREAM))];
    assert!(bench.engine.is_newest("x.ads.example", &addresses, bench.now));
    assert!(!bench.engine.is_newest("www.example", &addresses, bench.now));
    bench.wait(12 * MINUTE);
    assert_eq!(bench.engine.names_of(A.into(), bench.now), (Vec::new(), ResolverSet::EMPTY));
    assert_eq!(brief(&bench.udp_to(5, A)), (None, vec![], "nameless"));
}

/// A name belongs to the opening of a flow: what comes later changes nothing, and what has
/// gone since is still there.
#[test]
fn a_reload_judges_by_the_name_of_the_opening() {
    let mut bench = Bench::new(config());
    bench.learn("old.example", A, MINUTE);
    assert_eq!(brief(&bench.udp_to(1, A)).0, Some("old.example"));
    assert_eq!(bench.udp_to(2, B).name, None);
    bench.learn("new.example", A, MINUTE);
    bench.learn("new.example", B, MINUTE);
    assert_eq!(bench.reload("block to new.example"), []);
    let (mut walk, mut changed) = (Walk::default(), Vec::new());
    let other = policy("block to unknown-name");
    bench.engine.compare(&other, None, None, &mut walk, bench.now, |flow, decision, _| {
        changed.push((flow.client.port(), decision.verdict));
    });
    assert_eq!(changed, [(2, Verdict::Block)]);
    // Past what the answers count, before the sessions are idle.
    for _ in 0..12 {
        bench.wait(MINUTE / 4);
        bench.packet(&aimed(udp(false, b"x"), 1, A));
    }
    let cut = bench.reload("block to old.example");
    let names: Vec<_> = cut.iter().map(|report| brief(report).0).collect();
    assert_eq!(names, [Some("old.example")]);
}
