//! One rule into rows.

use std::fmt::Write;

use smallvec::SmallVec;

use super::super::Verdict;
use super::super::diagnostic::{Site, SourceId, code, nearest, quoted};
use super::super::domains::Domains;
use super::super::index::{Dimension, Row, Term};
use super::super::rule::{
    AddressItem, Clause, Domain, EgressItem, Line, List, Name, Spanned, UserItem,
};
use super::super::set::{Members, UnitKey};
use super::super::{item, parse};
use super::units::own;
use super::{ClauseEntry, Compiler, Lowered, RuleEntry, Test, not_yet, unknown_user, way_out};
use crate::{ResolverId, WayId};

/// Lists over two dimensions of which one has to hold.
type Either = SmallVec<[[Term; 2]; 2]>;

/// Adds a clause that has a list in one or two dimensions.
fn add(terms: SmallVec<[Term; 2]>, row: &mut Row, either: &mut Either) -> Test {
    let dimensions = terms.iter().fold(0, |mask, term| mask | term.dimension.mask());
    let not = terms.iter().any(|term| term.not);
    match <[Term; 2]>::try_from(&terms[..]) {
        Ok(both) if !not => either.push(both),
        Ok(_) | Err(_) => terms.into_iter().for_each(|term| row.add(term)),
    }
    Test::Lists { dimensions, not }
}

impl Compiler<'_> {
    pub(super) fn lower(
        &mut self,
        source: SourceId,
        line: Line,
        verdict: Verdict,
        clauses: &[Spanned<Clause>],
        lowered: &mut Lowered,
    ) {
        let rule = u32::try_from(lowered.rules.len()).unwrap_or(u32::MAX);
        let position = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        let first_clause = position(lowered.clauses.len());
        let mut id: Option<&str> = None;
        let mut row = Row::new(rule);
        let mut protected = false;
        // Lists over two dimensions that are not negated: a row for each.
        let mut either = Either::new();
        for clause in clauses {
            let test = match &clause.value {
                Clause::Id(name) => {
                    let new = self.id(Site { source, span: name.span }, &name.value);
                    id = new.then_some(&name.value);
                    continue;
                }
                Clause::Protocol(protocol) => {
                    row.protocol = Some(*protocol);
                    Test::Protocol(*protocol)
                }
                Clause::Protected => {
                    protected = true;
                    Test::Always
                }
                Clause::To(list) if list.items.iter().any(|i| i.value == AddressItem::Any) => {
                    // The destination is always known. What else stands in the list is
                    // checked all the same.
                    self.addresses(source, "to", list);
                    Test::Always
                }
                Clause::To(list) => {
                    let terms = self.destination(source, list, lowered);
                    add(terms, &mut row, &mut either)
                }
                Clause::Egress(list) => {
                    let terms = self.egress(source, list, lowered);
                    add(terms, &mut row, &mut either)
                }
                Clause::From(_)
                | Clause::Client(_)
                | Clause::Port(_)
                | Clause::Via(_)
                | Clause::Resolver(_)
                | Clause::User(_)
                | Clause::App(_)
                | Clause::Cgroup(_) => match self.list(source, clause, lowered) {
                    Some(term) => {
                        row.add(term);
                        Test::Lists { dimensions: term.dimension.mask(), not: term.not }
                    }
                    None => Test::Always,
                },
            };
            lowered.clauses.push(ClauseEntry { span: clause.span, test });
        }
        let first_row = lowered.rows.len();
        lowered.rows.push(row);
        for [one, other] in either {
            for at in first_row..lowered.rows.len() {
                let mut row = lowered.rows[at];
                row.add(other);
                lowered.rows[at].add(one);
                lowered.rows.push(row);
            }
        }
        let name = lowered.names.len();
        match id {
            Some(id) => lowered.names.push_str(id),
            // A string takes all that is written.
            None => {
                let _ = write!(lowered.names, "{}:{}", self.sources.name(source), line.number);
            }
        }
        lowered.rules.push(RuleEntry {
            verdict,
            protected,
            name: name..lowered.names.len(),
            site: Site { source, span: line.span },
            line: line.number,
            clauses: first_clause..position(lowered.clauses.len()),
            ways: position(lowered.ways.len())..position(lowered.ways.len()),
        });
    }

    /// A clause over one dimension; `None` where it was refused.
    pub(super) fn list(
        &mut self,
        source: SourceId,
        clause: &Spanned<Clause>,
        lowered: &mut Lowered,
    ) -> Option<Term> {
        let site = Site { source, span: clause.span };
        let (dimension, not, key) = match &clause.value {
            Clause::From(list) => {
                (Dimension::Source, list.not, self.addresses(source, "from", list))
            }
            Clause::Client(list) => {
                (Dimension::Client, list.not, self.addresses(source, "client", list))
            }
            Clause::Resolver(list) => {
                (Dimension::Resolver, list.not, self.resolver_list(source, list))
            }
            Clause::Port(list) => {
                let ports = list.items.iter().map(|item| item.value);
                let narrow = ports.map(|p| (u32::from(p.first), u32::from(p.last))).collect();
                (Dimension::Port, list.not, own(Members { narrow, ..Members::default() }))
            }
            Clause::Via(via) => {
                let way = self.way_out(Site { source, span: via.span }, &via.value)?;
                let number = u32::from(way.number());
                let narrow = [(number, number)].into();
                (Dimension::Via, false, own(Members { narrow, ..Members::default() }))
            }
            Clause::User(list) => (Dimension::Uid, list.not, self.users(source, list)),
            Clause::Cgroup(list) => (Dimension::Cgroup, list.not, self.names.cgroup_list(list)),
            Clause::App(_) => {
                self.not_yet(site, "`app`", "`user` and `cgroup` tell programs apart");
                return None;
            }
            Clause::Protocol(_)
            | Clause::To(_)
            | Clause::Egress(_)
            | Clause::Protected
            | Clause::Id(_) => return None,
        };
        Some(Term { dimension, not, unit: lowered.unit(dimension, key, &self.sets) })
    }

    /// A list over addresses and names: what of both it has, a term each.
    pub(super) fn destination(
        &mut self,
        source: SourceId,
        list: &List<AddressItem>,
        lowered: &mut Lowered,
    ) -> SmallVec<[Term; 2]> {
        let mut addresses = self.addresses(source, "to", list);
        let mut names = UnitKey::default();
        names.sets.extend(
            addresses.sets.iter().copied().filter(|at| self.set_at(*at).domain_count() > 0),
        );
        // A set of nothing is an empty list of addresses.
        let is_of_names = |at: u32| {
            let set = self.set_at(at);
            set.len() == 0 && set.domain_count() > 0
        };
        addresses.sets.retain(|at| !is_of_names(*at));
        let mut domains = Domains::default();
        for item in &list.items {
            match &item.value {
                AddressItem::Domain(domain) => {
                    domains.push(domain.below, &domain.name, &self.hasher);
                }
                AddressItem::UnknownName => names.own.unknown = true,
                AddressItem::Any
                | AddressItem::Multicast
                | AddressItem::Broadcast
                | AddressItem::Prefix(_)
                | AddressItem::Set(_) => {}
            }
        }
        names.own.put_domains(domains);
        names.normalise();
        let by_name = names != UnitKey::default();
        let by_address = addresses != UnitKey::default();
        let mut terms = SmallVec::new();
        for (is_in, dimension, key) in [
            (by_address || !by_name, Dimension::Destination, addresses),
            (by_name, Dimension::Name, names),
        ] {
            if is_in {
                let unit = lowered.unit(dimension, key, &self.sets);
                terms.push(Term { dimension, not: list.not, unit });
            }
        }
        terms
    }

    fn set_at(&self, at: u32) -> &Members {
        &self.sets[at as usize].members
    }

    fn resolver_list(&mut self, source: SourceId, list: &List<Name>) -> UnitKey {
        let mut members = Members::default();
        for item in &list.items {
            let id = self.resolver(Site { source, span: item.span }, &item.value);
            members.narrow.extend(id.map(|id| (u32::from(id.number()), u32::from(id.number()))));
        }
        own(members)
    }

    /// The resolver of this name.
    pub(super) fn resolver(&mut self, site: Site, name: &Name) -> Option<ResolverId> {
        let id = self.resolvers.id(name);
        if id.is_none() {
            let message = format!("the configuration has no resolver {}", quoted(name));
            let help = match nearest(name, self.resolvers.names()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("`[[resolver]]` with `name = \"{name}\"` in tunneld.toml makes it"),
            };
            self.findings.error(code::UNKNOWN_RESOLVER, site, message).help(help);
        }
        id
    }

    pub(super) fn egress(
        &mut self,
        source: SourceId,
        list: &List<EgressItem>,
        lowered: &mut Lowered,
    ) -> SmallVec<[Term; 2]> {
        let mut addresses = UnitKey::default();
        let mut devices = Members::default();
        for item in &list.items {
            match &item.value {
                EgressItem::Any => addresses.own.add(&Members::all_addresses()),
                EgressItem::Prefix(prefix) => addresses.own.add_prefix(*prefix),
                EgressItem::Set(name) => {
                    let site = Site { source, span: item.span };
                    addresses.sets.extend(self.set("egress", site, name));
                }
                EgressItem::Device(device) => {
                    let number = self.names.device(*device);
                    devices.narrow.push((number, number));
                }
            }
        }
        addresses.normalise();
        let not = list.not;
        let mut terms = SmallVec::new();
        let by_address = !addresses.sets.is_empty() || addresses.own != Members::default();
        if by_address || devices.narrow.is_empty() {
            let dimension = Dimension::EgressAddress;
            let unit = lowered.unit(dimension, addresses, &self.sets);
            terms.push(Term { dimension, not, unit });
        }
        if !devices.narrow.is_empty() {
            let dimension = Dimension::EgressDevice;
            let unit = lowered.unit(dimension, own(devices), &self.sets);
            terms.push(Term { dimension, not, unit });
        }
        terms
    }

    pub(super) fn addresses(
        &mut self,
        source: SourceId,
        clause: &str,
        list: &List<AddressItem>,
    ) -> UnitKey {
        let mut key = UnitKey::default();
        let only_domains = !list.items.is_empty()
            && list.items.iter().all(|item| matches!(item.value, AddressItem::Domain(_)));
        for item in &list.items {
            let site = Site { source, span: item.span };
            match &item.value {
                AddressItem::Any => key.own.add(&Members::all_addresses()),
                AddressItem::Multicast => {
                    item::multicast().into_iter().for_each(|prefix| key.own.add_prefix(prefix));
                }
                AddressItem::Broadcast => key.own.narrow.push((u32::MAX, u32::MAX)),
                AddressItem::Prefix(prefix) => key.own.add_prefix(*prefix),
                AddressItem::Set(name) => key.sets.extend(self.set(clause, site, name)),
                // Of `to` alone, which looks at both by itself.
                AddressItem::UnknownName => {}
                AddressItem::Domain(domain) if clause == "to" => self.plain_domain(site, domain),
                AddressItem::Domain(_) => {
                    let message = format!("a domain matches nothing in `{clause}`");
                    let finding = if only_domains {
                        self.findings.error(code::DOMAIN_HERE, site, message)
                    } else {
                        self.findings.warning(code::DOMAIN_HERE, site, message)
                    };
                    finding.help("addresses, prefixes and sets of them stand here");
                }
            }
        }
        key.normalise();
        key
    }

    /// Warns of a domain that is probably none: the name of a set without `@`, or a clause's
    /// word with a letter wrong.
    pub(super) fn plain_domain(&mut self, site: Site, domain: &Domain) {
        if domain.below || domain.name.contains('.') {
            return;
        }
        let help = if self.set_names.contains_key(&domain.name) {
            format!("did you mean the set `@{}`?", domain.name)
        } else if let Some(clause) = nearest(&domain.name, parse::CLAUSES) {
            format!("did you mean the clause `{clause}`?")
        } else {
            return;
        };
        let message = format!("{} is a domain here", quoted(&domain.name));
        self.findings.warning(code::PLAIN_DOMAIN, site, message).help(help);
    }

    /// The set of this name, used in `clause`.
    pub(super) fn set(&mut self, clause: &str, site: Site, name: &str) -> Option<u32> {
        let Some(at) = self.set_names.get(name).copied() else {
            if self.all_sets_known {
                let near = nearest(name, self.set_names.keys().map(|name| &**name));
                let help = match near {
                    Some(near) => format!("did you mean `@{near}`?"),
                    None => format!("`set {name} = …` makes it, in any file"),
                };
                self.findings
                    .error(code::UNKNOWN_SET, site, format!("no set {}", quoted(name)))
                    .help(help);
            }
            return None;
        };
        let set = &mut self.sets[at as usize];
        set.used = true;
        if !matches!(clause, "to" | "resolve") && set.is_only_domains() {
            self.findings
                .error(
                    code::DOMAIN_HERE,
                    site,
                    format!("a set of nothing but domains matches nothing in `{clause}`"),
                )
                .related(set.site, "the set");
        }
        Some(at)
    }

    pub(super) fn users(&mut self, source: SourceId, list: &List<UserItem>) -> UnitKey {
        let mut members = Members::default();
        for item in &list.items {
            match &item.value {
                UserItem::Uid(uid) => members.narrow.push((*uid, *uid)),
                UserItem::Unknown => members.unknown = true,
                UserItem::Name(name) => {
                    let site = Site { source, span: item.span };
                    let uid = self.uid(site, name);
                    members.narrow.extend(uid.map(|uid| (uid, uid)));
                }
            }
        }
        own(members)
    }

    pub(super) fn uid(&mut self, site: Site, name: &Name) -> Option<u32> {
        let uid = match self.users.get(name) {
            Some(uid) => *uid,
            None => *self.users.entry(name.clone()).or_insert(self.environment.uid(name)),
        };
        if uid.is_none() {
            unknown_user(self.findings, site, name);
        }
        uid
    }

    /// Whether no rule before has this id.
    pub(super) fn id(&mut self, site: Site, id: &Name) -> bool {
        if let Some(first) = self.ids.get(id) {
            self.findings
                .error(code::DUPLICATE_ID, site, format!("a second `id` {}", quoted(id)))
                .related(*first, "the first one")
                .help("an id names one rule over all files");
            return false;
        }
        self.ids.insert(id.clone(), site);
        true
    }

    pub(super) fn way_out(&mut self, site: Site, name: &str) -> Option<WayId> {
        way_out(self.findings, &self.ways, site, name)
    }

    pub(super) fn not_yet(&mut self, site: Site, what: &str, help: &str) {
        not_yet(self.findings, site, what, help);
    }
}
