//! A flow that somebody made up, for `expect` and `explain`.
//!
//! No kernel and no network is asked: what is not given is unknown, and the source
//! may be left open. An open source is decided exactly: the verdict is asked for every
//! address that the policy tells apart. A destination may be a name alone: then its
//! address is unknown, and so is the IP version, of which both must give the same.

use std::cell::OnceCell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::index::{Answers, Index, Question};
use super::{Decision, Policy};
use crate::{Egress, Fact, Protocol, ResolverSet, WayId};

/// The resolved source of a made-up flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AssumedSource {
    /// Any address: the verdict must not depend on it.
    Any,
    /// This address.
    Address(IpAddr),
    /// Nothing leaves: there is no egress, and no source but a client.
    Nothing,
}

/// A made-up flow. It is this host's own unless a client is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hypothesis {
    /// The transport.
    pub protocol: Protocol,
    /// Who the flow belongs to: a local flow's egress address, a forwarded flow's
    /// client.
    pub source: AssumedSource,
    /// Where it goes; `None`: only the name is known.
    pub destination: Option<IpAddr>,
    /// The name that the app asked for the destination with: lower-case A-labels without the
    /// last dot.
    pub name: Option<Arc<str>>,
    /// Other names that lead to the destination now. Beside no name: its first bytes are to tell
    /// which of these it is for.
    pub others: Vec<Arc<str>>,
    /// The resolvers that the destination was learned from.
    pub resolvers: ResolverSet,
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

/// What the routes say of a made-up flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Supposed<'p> {
    /// The ways out, in the order of preference.
    pub ways: &'p [WayId],
    /// The route's place in the order of the text; `None`: none matches, so it is `direct`.
    pub rule: Option<u32>,
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
            AssumedSource::Any | AssumedSource::Nothing => None,
            AssumedSource::Address(address) => Some(address),
        };
        let addresses = [source, self.client, self.destination];
        let mut addresses = addresses.into_iter().flatten();
        if let Some(first) = addresses.next()
            && let Some(other) = addresses.find(|other| other.is_ipv4() != first.is_ipv4())
        {
            return Err(HypothesisError::Families(first, other));
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

    /// The IP versions that it may be of: whether each is 6.
    pub(super) fn versions(&self) -> &'static [bool] {
        let source = match self.source {
            AssumedSource::Any => self.egress.map(|egress| egress.address),
            AssumedSource::Address(address) => Some(address),
            AssumedSource::Nothing => None,
        };
        match self.destination.or(self.client).or(source) {
            Some(IpAddr::V4(_)) => &[false],
            Some(IpAddr::V6(_)) => &[true],
            None => &[false, true],
        }
    }

    /// The same while nobody knows which of its names it is for.
    #[must_use]
    pub fn unnamed(mut self) -> Self {
        self.others.extend(self.name.take());
        self
    }

    /// As it is asked about with this way out.
    pub(super) fn question(&self, v6: bool, via: Option<WayId>) -> Question<'_> {
        let given = |address: Option<IpAddr>| address.map_or(Fact::Unknown, Fact::Known);
        let asked = given(self.egress.map(|egress| egress.address));
        let (source, egress_address) = match (self.client, self.source, asked) {
            (None, AssumedSource::Nothing, _) => (Fact::Unknown, Fact::Unknown),
            (Some(client), AssumedSource::Nothing, _) => (Fact::Known(client), Fact::Unknown),
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
            destination: given(self.destination),
            v6,
            name: self.name.as_deref().map_or(Fact::Unknown, Fact::Known),
            resolvers: if self.resolvers.is_empty() {
                Fact::Unknown
            } else {
                Fact::Known(self.resolvers)
            },
            port: self.port.map_or(Fact::Unknown, Fact::Known),
            uid: self.uid.map_or(Fact::Unknown, Fact::Known),
            cgroup: Fact::Unknown,
            via: match via {
                Some(via) if self.source != AssumedSource::Nothing => Fact::Known(via),
                Some(_) | None => Fact::Unknown,
            },
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
    /// The ways out that the routes give a made-up flow.
    pub fn supposed_route(&self, flow: &Hypothesis) -> Supposed<'_> {
        // Routes ask for nothing that differs between IP versions where no address is given.
        let answers = self.routes.index.answers(&flow.question(flow.versions()[0], None));
        let rule = self.routes.index.lowest(&answers).map(|lowest| lowest.rule);
        Supposed { ways: self.ways_of(rule), rule }
    }

    /// What is decided for a made-up flow.
    ///
    /// # Errors
    /// Its source is left open and the verdict depends on it.
    pub fn suppose(&self, flow: &Hypothesis) -> Result<Decision, Dependence> {
        self.suppose_with(flow, &SourceClasses::default()).map(|(decision, _)| decision)
    }

    /// With the answers of the index that the decision came from. Every way out is usable.
    pub(super) fn suppose_with(
        &self,
        flow: &Hypothesis,
        classes: &SourceClasses,
    ) -> Result<(Decision, Answers), Dependence> {
        let via = self.supposed_route(flow).ways.first().copied();
        self.suppose_via(flow, via, classes)
    }

    /// By that way out.
    pub(super) fn suppose_via(
        &self,
        flow: &Hypothesis,
        via: Option<WayId>,
        classes: &SourceClasses,
    ) -> Result<(Decision, Answers), Dependence> {
        let mut first: Option<(IpAddr, Decision, Answers)> = None;
        for v6 in flow.versions() {
            self.suppose_version(flow, *v6, via, classes, &mut first)?;
        }
        // There is a version, and each gives a decision.
        Ok(first.map_or_else(
            || (self.decision(None), self.rules.index.answers(&flow.question(false, via))),
            |(_, decision, answers)| (decision, answers),
        ))
    }

    /// What is decided for a flow of one IP version; `first` is the first decision of all.
    fn suppose_version(
        &self,
        flow: &Hypothesis,
        v6: bool,
        via: Option<WayId>,
        classes: &SourceClasses,
        first: &mut Option<(IpAddr, Decision, Answers)>,
    ) -> Result<(), Dependence> {
        let index = &self.rules.index;
        let answers = index.answers(&flow.question(v6, via));
        let decide =
            |answers: &Answers| self.decision(index.lowest(answers).map(|lowest| lowest.rule));
        let mut same = |address: IpAddr, answers: Answers| {
            let decision = decide(&answers);
            match &*first {
                None => *first = Some((address, decision, answers)),
                Some((other, before, _)) if before.verdict != decision.verdict => {
                    return Err(Dependence { one: (*other, *before), other: (address, decision) });
                }
                Some(_) => {}
            }
            Ok(())
        };
        if index.lowest(&answers).is_none_or(|lowest| lowest.waits_for == 0) {
            let any: IpAddr =
                if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
            return same(any, answers);
        }
        for (address, classes) in classes.of(index, v6) {
            same(*address, Index::with_source(&answers, *classes))?;
        }
        Ok(())
    }
}
