//! The tests that stand in a policy.

use std::net::IpAddr;
use std::sync::Arc;

use super::compile::{not_yet, unknown_user, way_out};
use super::diagnostic::{Finding, Findings, Site, SourceId, code, quoted};
use super::hypothesis::SourceClasses;
use super::parse::File;
use super::rule::{Expect, ExpectDestination, Statement, UserItem};
use super::{Decision, Environment, Hypothesis, HypothesisError, Policy, RuleId, Verdict};
use crate::{ResolverSet, WayId, WayNames};

/// A test that can be run.
#[derive(Debug)]
pub(super) struct Test {
    expected: Verdict,
    /// Its way out is to be this.
    via: Option<WayId>,
    flow: Hypothesis,
    site: Site,
}

/// Every `expect` of the files, checked but not run.
pub(super) fn read(
    files: &[File],
    environment: &dyn Environment,
    ways: &WayNames,
    findings: &mut Findings,
) -> Vec<Test> {
    let mut tests = Vec::new();
    for (source, file) in (0..).map(SourceId).zip(files) {
        for statement in &file.statements {
            let Statement::Expect(expect) = statement else {
                continue;
            };
            let via = expect
                .via
                .as_ref()
                .map(|via| way_out(findings, ways, Site { source, span: via.span }, &via.value));
            let flow = hypothesis(expect, source, environment, findings);
            tests.extend(flow.map(|flow| Test {
                expected: expect.verdict.value,
                via: via.flatten(),
                flow,
                site: Site { source, span: expect.line.span },
            }));
        }
    }
    tests
}

/// Reports every test that does not hold.
pub(super) fn run(policy: &Policy, tests: &[Test], findings: &mut Findings) {
    let classes = SourceClasses::default();
    for test in tests {
        test.run(policy, &classes, findings);
    }
}

/// The flow of a test; `None` where it cannot be and is reported.
fn hypothesis(
    expect: &Expect,
    source: SourceId,
    environment: &dyn Environment,
    findings: &mut Findings,
) -> Option<Hypothesis> {
    let site = |span| Site { source, span };
    let mut sound = true;
    let (destination, name): (Option<IpAddr>, Option<Arc<str>>) = match &expect.destination.value {
        ExpectDestination::Address(address) => (Some(*address), None),
        ExpectDestination::Name(name) => (None, Some((**name).into())),
    };
    if let Some(app) = &expect.app {
        not_yet(findings, site(app.span), "`app`", "`user` tells owners apart");
        sound = false;
    }
    let mut uid = None;
    if let Some(user) = &expect.user {
        match &user.value {
            UserItem::Unknown => {}
            UserItem::Uid(given) => uid = Some(*given),
            UserItem::Name(name) => {
                uid = environment.uid(name);
                if uid.is_none() {
                    unknown_user(findings, site(user.span), name);
                    sound = false;
                }
            }
        }
    }
    if !sound {
        return None;
    }
    let flow = Hypothesis {
        protocol: expect.protocol,
        source: expect.source.value,
        destination,
        name,
        others: Vec::new(),
        resolvers: ResolverSet::EMPTY,
        port: expect.port.map(|port| port.value),
        client: expect.client.map(|client| client.value),
        uid,
        egress: None,
    };
    if let Err(error) = flow.check() {
        let help = match error {
            HypothesisError::Families(..) => "a flow has addresses of one family",
            HypothesisError::NotTheClient(_) => "write the client or `any` as the source",
            HypothesisError::IcmpPort => "leave the port out",
        };
        let place = site(expect.source.span);
        findings.error(code::EXPECT_FAILED, place, error.to_string()).help(help);
        return None;
    }
    Some(flow)
}

impl Test {
    fn run(&self, policy: &Policy, classes: &SourceClasses, findings: &mut Findings) {
        let (expected, site) = (self.expected, self.site);
        let supposed = policy.supposed_route(&self.flow);
        if let Some(via) = self.via
            && supposed.ways.first() != Some(&via)
        {
            let takes = supposed.ways.first().map_or("", |way| policy.way_name(*way));
            let message = format!(
                "expected `via {}`, but it goes `via {takes}`: {}",
                policy.way_name(via),
                supposed.rule.map_or_else(
                    || "no route matches".to_owned(),
                    |rule| format!("the route {} says so", quoted(policy.route_name(rule))),
                ),
            );
            let finding = findings.error(code::EXPECT_FAILED, site, message);
            if let Some(route) = supposed.rule.and_then(|at| policy.routes.rules.get(at as usize)) {
                finding.related(route.site, "the route");
            }
            return;
        }
        match policy.suppose_with(&self.flow, classes) {
            Ok((decision, _)) if decision.verdict == expected => {}
            Ok((decision, _)) => {
                let said = said(policy, decision);
                let finding = findings.error(
                    code::EXPECT_FAILED,
                    site,
                    format!("expected `{expected}`, but {said}"),
                );
                name_rule(policy, decision, finding);
            }
            Err(dependence) => {
                let (first, second) = (dependence.one, dependence.other);
                // The one that contradicts the test is the news.
                let (wrong, right) =
                    if first.1.verdict == expected { (second, first) } else { (first, second) };
                let message = format!(
                    "the verdict depends on the source: from {} {}",
                    wrong.0,
                    said(policy, wrong.1)
                );
                let help = format!("from {} {}", right.0, said(policy, right.1));
                let finding = findings.error(code::EXPECT_DEPENDS, site, message).help(help);
                name_rule(policy, wrong.1, finding);
            }
        }
    }
}

fn said(policy: &Policy, decision: Decision) -> String {
    let Decision { verdict, rule } = decision;
    let does = match verdict {
        Verdict::Allow => "allows it",
        Verdict::Block => "blocks it",
        Verdict::Drop => "drops it",
    };
    if rule == RuleId::DEFAULT {
        return format!("`default` {does}");
    }
    format!("the rule {} {does}", quoted(policy.rule_name(rule)))
}

fn name_rule(policy: &Policy, decision: Decision, finding: &mut Finding) {
    if let Some(rule) = policy.rules.rules.get(decision.rule.0 as usize) {
        finding.related(rule.site, "the rule");
    }
}
