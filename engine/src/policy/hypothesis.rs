//! A flow that somebody made up, for `expect` and `explain`.
//!
//! No kernel and no network is asked: what is not given is unknown, and the source
//! may be left open. An open source is decided exactly: the verdict is asked for every
//! address that the policy tells apart.

use std::cell::OnceCell;
use std::net::IpAddr;

use super::index::{Answers, Index, Question};
use super::{Decision, Policy};
use crate::{Egress, Fact, Protocol};

/// The resolved source of a made-up flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AssumedSource {
    /// Any address: the verdict must not depend on it.
    Any,
    /// This address.
    Address(IpAddr),
}

/// A made-up flow. It is this host's own unless a client is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hypothesis {
    /// The transport.
    pub protocol: Protocol,
    /// Who the flow belongs to: a local flow's egress address, a forwarded flow's
    /// client.
    pub source: AssumedSource,
    /// Where it goes.
    pub destination: IpAddr,
    /// The destination's port; without one, no clause about ports holds.
    pub port: Option<u16>,
    /// The client, which makes it a forwarded flow.
    pub client: Option<IpAddr>,
    /// The owner.
    pub uid: Option<u32>,
    /// What it would leave with, where the kernel was asked.
    pub egress: Option<Egress>,
}

/// Why no flow can be as it was made up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HypothesisError {
    /// Source and destination, or client and destination.
    #[error("{0} and {1} are not of one address family")]
    Families(IpAddr, IpAddr),
    /// A forwarded flow with another source than its client.
    #[error("the source of a forwarded flow is its client, {0}")]
    NotTheClient(IpAddr),
    /// Echo with a port.
    #[error("icmp has no ports")]
    IcmpPort,
}

/// A verdict that depends on the source, shown by two sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dependence {
    /// A source and what is decided for it.
    pub one: (IpAddr, Decision),
    /// Another source with another verdict.
    pub other: (IpAddr, Decision),
}

impl Hypothesis {
    /// Whether there can be such a flow.
    ///
    /// # Errors
    /// What contradicts what.
    pub fn check(&self) -> Result<(), HypothesisError> {
        let source = match self.source {
            AssumedSource::Any => None,
            AssumedSource::Address(address) => Some(address),
        };
        for address in source.into_iter().chain(self.client) {
            if address.is_ipv4() != self.destination.is_ipv4() {
                return Err(HypothesisError::Families(address, self.destination));
            }
        }
        if let (Some(source), Some(client)) = (source, self.client)
            && source != client
        {
            return Err(HypothesisError::NotTheClient(client));
        }
        if self.protocol == Protocol::Icmp && self.port.is_some() {
            return Err(HypothesisError::IcmpPort);
        }
        Ok(())
    }

    pub(super) fn question(&self) -> Question<'static> {
        let given = |address: Option<IpAddr>| address.map_or(Fact::Unknown, Fact::Known);
        let asked = given(self.egress.map(|egress| egress.address));
        let (source, egress_address) = match (self.client, self.source, asked) {
            (Some(client), _, asked) => (Fact::Known(client), asked),
            (None, AssumedSource::Address(source), _) => (Fact::Known(source), Fact::Known(source)),
            (None, AssumedSource::Any, Fact::Known(asked)) => {
                (Fact::Known(asked), Fact::Known(asked))
            }
            (None, AssumedSource::Any, Fact::Unasked | Fact::Unknown) => {
                (Fact::Unasked, Fact::Unasked)
            }
        };
        Question {
            protocol: self.protocol,
            client: given(self.client),
            source,
            egress_address,
            egress_device: self.egress.map_or(Fact::Unknown, |egress| Fact::Known(egress.device)),
            destination: self.destination,
            port: self.port.map_or(Fact::Unknown, Fact::Known),
            uid: self.uid.map_or(Fact::Unknown, Fact::Known),
            cgroup: Fact::Unknown,
        }
    }
}

/// The sources that a policy tells apart; found when first needed, for each family.
#[derive(Debug, Default)]
pub(super) struct SourceClasses {
    v4: OnceCell<Vec<(IpAddr, (u32, u32))>>,
    v6: OnceCell<Vec<(IpAddr, (u32, u32))>>,
}

impl SourceClasses {
    fn of(&self, index: &Index, v6: bool) -> &[(IpAddr, (u32, u32))] {
        let cell = if v6 { &self.v6 } else { &self.v4 };
        cell.get_or_init(|| index.source_classes(v6))
    }
}

impl Policy {
    /// What is decided for a made-up flow.
    ///
    /// # Errors
    /// Its source is left open and the verdict depends on it.
    pub fn suppose(&self, flow: &Hypothesis) -> Result<Decision, Dependence> {
        self.suppose_with(flow, &SourceClasses::default()).map(|(decision, _)| decision)
    }

    /// With the answers of the index that the decision came from.
    pub(super) fn suppose_with(
        &self,
        flow: &Hypothesis,
        classes: &SourceClasses,
    ) -> Result<(Decision, Answers), Dependence> {
        let index = &self.rules.index;
        let answers = index.answers(&flow.question());
        let decide =
            |answers: &Answers| self.decision(index.lowest(answers).map(|lowest| lowest.rule));
        let lowest = index.lowest(&answers);
        if lowest.is_none_or(|lowest| lowest.waits_for == 0) {
            return Ok((decide(&answers), answers));
        }
        let mut first: Option<(IpAddr, Decision, Answers)> = None;
        for (address, classes) in classes.of(index, flow.destination.is_ipv6()) {
            let answers = Index::with_source(&answers, *classes);
            let decision = decide(&answers);
            match &first {
                None => first = Some((*address, decision, answers)),
                Some((other, before, _)) if before.verdict != decision.verdict => {
                    return Err(Dependence { one: (*other, *before), other: (*address, decision) });
                }
                Some(_) => {}
            }
        }
        Ok(first.map_or_else(|| (decide(&answers), answers), |(_, decision, a)| (decision, a)))
    }
}
