//! Statements into the rows and lists that the index is built of.
//!
//! What a single file cannot know is checked here: names across files, users, the
//! files of sets, and everything that the language has and this version lacks, which
//! is refused at its place and never ignored.

use std::ops::Range;
use std::rc::Rc;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::diagnostic::{Findings, Site, SourceId, Sources, Span, code, nearest, quoted};
use super::index::{DIMENSIONS, Dimension, Index, Mask, Row, Term};
use super::parse::{self, File};
use super::rule::{
    Action, AddressItem, CgroupItem, Clause, Domain, EgressItem, Line, List, Name, Set, SetBody,
    SetItem, Spanned, Statement, UserItem,
};
use super::set::{self, Members, ResolvedSet};
use super::{Environment, Policy, Source, Summary, Verdict, expect, item, shadow};
use crate::{DeviceName, Protocol};

/// The only way out of this version.
pub(super) const DIRECT: &str = "direct";

type Map<K, V> = HashMap<K, V, FixedState>;

/// Rules in order and the index over them.
#[derive(Debug, Default)]
pub(super) struct Ruleset {
    pub(super) index: Index,
    pub(super) rules: Vec<RuleEntry>,
    pub(super) clauses: Vec<ClauseEntry>,
}

#[derive(Debug)]
pub(super) struct RuleEntry {
    /// Of a route: `Allow`, and without meaning.
    pub(super) verdict: Verdict,
    /// The rule's id or `FILE:LINE`.
    pub(super) name: Name,
    pub(super) site: Site,
    pub(super) line: u32,
    /// Its part of [`Ruleset::clauses`].
    pub(super) clauses: Range<u32>,
}

/// A clause as `explain` needs it.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClauseEntry {
    pub(super) span: Span,
    pub(super) test: Test,
}

/// When a clause holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Test {
    /// `to any`, and `via direct` while there is no other way out.
    Always,
    Protocol(Protocol),
    /// A list over these dimensions; plain: one of them holds, with `not`: all do.
    Lists {
        dimensions: Mask,
        not: bool,
    },
}

/// Reads and compiles everything; `None` where nothing useful came of it.
pub(super) fn load(
    given: &[Source],
    environment: &dyn Environment,
    sources: &mut Sources,
    findings: &mut Findings,
) -> Option<Policy> {
    let files = parse_all(given, sources, findings);
    let complete = files.iter().all(|file| file.understood);
    let mut compiler = Compiler {
        environment,
        findings,
        sources,
        sets: Vec::new(),
        set_names: Map::default(),
        all_sets_known: complete && !files.iter().any(|file| file.nameless_set),
        users: Map::default(),
        ids: Map::default(),
        names: Names::default(),
    };
    compiler.read_sets(&files);
    compiler.names.collect_cgroups(&files);
    let default = compiler.default(&files, complete);
    let mut rules = Lowered::default();
    let mut routes = Lowered::default();
    for (source, file) in (0..).map(SourceId).zip(&files) {
        compiler.lower_file(source, file, &mut rules, &mut routes);
    }
    let Compiler {
        names,
        sets,
        set_names,
        ..
    } = compiler;
    let expects = expect::read(&files, environment, findings);
    // What half a policy decides, shadows and leaves unused says nothing.
    if findings.has_errors() {
        return None;
    }
    warn_of_unused(&set_names, &sets, findings);
    let rules = finish(rules, &names, "rule", findings)?;
    let routes = finish(routes, &names, "route", findings)?;
    let mut policy = Policy {
        rules,
        routes,
        default: default?,
        sources: Vec::new(),
        summary: Summary {
            files: given.len(),
            sets: sets.len(),
            ..Summary::default()
        },
    };
    policy.summary.rules = policy.rules.rules.len();
    policy.summary.routes = policy.routes.rules.len();
    policy.summary.expects = expects.len();
    expect::run(&policy, &expects, findings);
    Some(policy)
}

/// The grammar alone.
pub(super) fn parse_all(
    given: &[Source],
    sources: &mut Sources,
    findings: &mut Findings,
) -> Vec<File> {
    let parse = |source: &Source| {
        // Spans are 32 bits wide.
        if u32::try_from(source.text.len()).is_err() {
            let id = sources.add(&source.name, "".into());
            let site = Site {
                source: id,
                span: Span::default(),
            };
            findings.error(code::TOO_LARGE, site, "a policy file has at most 4 GiB");
            return File::default();
        }
        let id = sources.add(&source.name, source.text.as_str().into());
        parse::parse(&source.text, id, findings)
    };
    given.iter().map(parse).collect()
}

fn warn_of_unused(names: &Map<Name, usize>, sets: &[ResolvedSet], findings: &mut Findings) {
    for (name, at) in names {
        if !sets[*at].used {
            findings
                .warning(
                    code::UNUSED_SET,
                    sets[*at].site,
                    format!("the set {} is never used", quoted(name)),
                )
                .help(format!("a rule uses it as `@{name}`"));
        }
    }
}

struct Compiler<'c> {
    environment: &'c dyn Environment,
    findings: &'c mut Findings,
    sources: &'c mut Sources,
    sets: Vec<ResolvedSet>,
    set_names: Map<Name, usize>,
    /// `false` where a set may have been missed for another fault.
    all_sets_known: bool,
    users: Map<Name, Option<u32>>,
    ids: Map<Name, Site>,
    names: Names,
}

/// Numbers for devices and cgroups, so that lists of them are intervals too.
#[derive(Debug, Default)]
struct Names {
    devices: Map<DeviceName, u32>,
    cgroups: Map<Name, u32>,
    /// For each cgroup's number the last number that lies below it.
    cgroup_ends: Vec<u32>,
}

/// Rules on their way to the index.
#[derive(Debug, Default)]
pub(super) struct Lowered {
    pub(super) rules: Vec<RuleEntry>,
    clauses: Vec<ClauseEntry>,
    pub(super) rows: Vec<Row>,
    pub(super) units: [Units; DIMENSIONS],
}

/// The lists of a dimension, equal ones once.
#[derive(Debug, Default)]
pub(super) struct Units {
    pub(super) members: Vec<Rc<Members>>,
    known: Map<UnitKey, u32>,
}

/// A list by what it was written with, so that large sets are not compared.
#[derive(Debug, Default, PartialEq, Eq, Hash)]
struct UnitKey {
    sets: Vec<usize>,
    own: Members,
}

impl Compiler<'_> {
    // Sets.

    fn read_sets(&mut self, files: &[File]) {
        for (source, file) in (0..).map(SourceId).zip(files) {
            for statement in &file.statements {
                if let Statement::Set(set) = statement {
                    self.read_set(source, set);
                }
            }
        }
    }

    fn read_set(&mut self, source: SourceId, set: &Set) {
        let site = Site {
            source,
            span: set.name.span,
        };
        if let Some(first) = self.set_names.get(&set.name.value) {
            let first = self.sets[*first].site;
            self.findings
                .error(
                    code::DUPLICATE_SET,
                    site,
                    format!("a second set {}", quoted(&set.name.value)),
                )
                .related(first, "the first one")
                .help("a name stands for one set over all files");
            return;
        }
        let mut resolved = ResolvedSet {
            site,
            members: Rc::default(),
            domains: 0,
            first_domain: None,
            used: false,
        };
        match &set.body {
            SetBody::Items(items) => {
                let mut members = Members::default();
                for item in items {
                    match &item.value {
                        SetItem::Prefix(prefix) => members.add_prefix(*prefix),
                        SetItem::Domain(_) => {
                            resolved.domains += 1;
                            let site = Site {
                                source,
                                span: item.span,
                            };
                            resolved.first_domain.get_or_insert(site);
                        }
                    }
                }
                members.normalise();
                resolved.members = Rc::new(members);
            }
            SetBody::File(path) => self.read_set_file(source, path, &mut resolved),
        }
        self.set_names
            .insert(set.name.value.clone(), self.sets.len());
        self.sets.push(resolved);
    }

    fn read_set_file(&mut self, source: SourceId, path: &Spanned<Name>, set: &mut ResolvedSet) {
        let site = Site {
            source,
            span: path.span,
        };
        let text = match self
            .environment
            .read(self.sources.name(source), &path.value)
        {
            Ok(text) => text,
            Err(error) => {
                let message = format!("the file {}: {error}", quoted(&path.value));
                self.findings
                    .error(code::SET_FILE, site, message)
                    .help("the path is below the directory of this policy file");
                return;
            }
        };
        if u32::try_from(text.len()).is_err() {
            self.findings
                .error(code::TOO_LARGE, site, "a set's file has at most 4 GiB");
            return;
        }
        let id = self.sources.add(&path.value, text.into());
        let items = set::read_list(self.sources.text(id), id, self.findings);
        set.members = Rc::new(items.members);
        set.domains = items.domains;
        set.first_domain = items.first_domain.map(|span| Site { source: id, span });
    }

    // Statements.

    fn default(&mut self, files: &[File], complete: bool) -> Option<Verdict> {
        let mut first: Option<(Site, Verdict)> = None;
        for (source, file) in (0..).map(SourceId).zip(files) {
            for statement in &file.statements {
                let Statement::Default(verdict) = statement else {
                    continue;
                };
                let site = Site {
                    source,
                    span: verdict.span,
                };
                match first {
                    None => first = Some((site, verdict.value)),
                    Some((first, _)) => {
                        self.findings
                            .error(code::DUPLICATE_DEFAULT, site, "a second `default`")
                            .related(first, "the first one")
                            .help("exactly one stands over all files");
                    }
                }
            }
        }
        if first.is_none() && complete && !files.iter().any(|file| file.mentions_default) {
            let last = SourceId(u32::try_from(files.len().saturating_sub(1)).unwrap_or(0));
            let end = self.sources.text(last).trim_end().len();
            let site = Site {
                source: last,
                span: Span::new(end, end),
            };
            self.findings
                .error(code::MISSING_DEFAULT, site, "no `default` in any file")
                .help("write `default block`, or `allow` or `drop`, once over all files");
        }
        first.map(|(_, verdict)| verdict)
    }

    fn lower_file(
        &mut self,
        source: SourceId,
        file: &File,
        rules: &mut Lowered,
        routes: &mut Lowered,
    ) {
        for statement in &file.statements {
            match statement {
                Statement::Rule(rule) => {
                    let verdict = match rule.action.value {
                        Action::Verdict(verdict) => verdict,
                        Action::Ask { otherwise, .. } => {
                            let site = Site {
                                source,
                                span: rule.action.span,
                            };
                            self.not_yet(site, "`ask`", "decide here: `allow`, `block` or `drop`");
                            otherwise
                        }
                    };
                    self.lower(source, rule.line, verdict, &rule.clauses, rules);
                }
                Statement::Route(route) => {
                    for via in &route.via {
                        self.way_out(
                            Site {
                                source,
                                span: via.span,
                            },
                            &via.value,
                        );
                    }
                    self.lower(source, route.line, Verdict::Allow, &route.clauses, routes);
                }
                Statement::Resolve(resolve) => {
                    let site = Site {
                        source,
                        span: resolve.word.span,
                    };
                    self.not_yet(
                        site,
                        "`resolve`",
                        "names are resolved by the host as before",
                    );
                }
                Statement::Set(_) | Statement::Default(_) | Statement::Expect(_) => {}
            }
        }
    }

    fn lower(
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
        let mut name = None;
        let mut row = Row {
            rule,
            protocol: None,
            terms: Vec::with_capacity(clauses.len()),
        };
        // The list over two dimensions, if it is not negated: one row for each.
        let mut either: Option<[Term; 2]> = None;
        for clause in clauses {
            let test = match &clause.value {
                Clause::Id(id) => {
                    name = self.id(
                        Site {
                            source,
                            span: id.span,
                        },
                        &id.value,
                    );
                    continue;
                }
                Clause::Protocol(protocol) => {
                    row.protocol = Some(*protocol);
                    Test::Protocol(*protocol)
                }
                Clause::To(list) if list.items.iter().any(|i| i.value == AddressItem::Any) => {
                    // The destination is always known. What else stands in the list is
                    // checked all the same.
                    self.addresses(source, "to", list);
                    Test::Always
                }
                Clause::Via(via) => {
                    self.way_out(
                        Site {
                            source,
                            span: via.span,
                        },
                        &via.value,
                    );
                    Test::Always
                }
                Clause::Egress(list) => {
                    let terms = self.egress(source, list, lowered);
                    let dimensions = terms.iter().fold(0, |mask, t| mask | t.dimension.mask());
                    match <[Term; 2]>::try_from(terms) {
                        Ok(both) if !list.not => either = Some(both),
                        Ok(both) => row.terms.extend(both),
                        Err(one) => row.terms.extend(one),
                    }
                    Test::Lists {
                        dimensions,
                        not: list.not,
                    }
                }
                Clause::From(_)
                | Clause::Client(_)
                | Clause::To(_)
                | Clause::Port(_)
                | Clause::Resolver(_)
                | Clause::User(_)
                | Clause::App(_)
                | Clause::Cgroup(_)
                | Clause::Protected => match self.list(source, clause, lowered) {
                    Some(term) => {
                        row.terms.push(term);
                        Test::Lists {
                            dimensions: term.dimension.mask(),
                            not: term.not,
                        }
                    }
                    None => Test::Always,
                },
            };
            lowered.clauses.push(ClauseEntry {
                span: clause.span,
                test,
            });
        }
        match either {
            Some(both) => {
                for term in both {
                    let mut terms = row.terms.clone();
                    terms.push(term);
                    lowered.rows.push(Row {
                        rule,
                        protocol: row.protocol,
                        terms,
                    });
                }
            }
            None => lowered.rows.push(row),
        }
        let name = name.unwrap_or_else(|| {
            format!("{}:{}", self.sources.name(source), line.number).into_boxed_str()
        });
        lowered.rules.push(RuleEntry {
            verdict,
            name,
            site: Site {
                source,
                span: line.span,
            },
            line: line.number,
            clauses: first_clause..position(lowered.clauses.len()),
        });
    }

    /// A clause over one dimension; `None` where it was refused.
    fn list(
        &mut self,
        source: SourceId,
        clause: &Spanned<Clause>,
        lowered: &mut Lowered,
    ) -> Option<Term> {
        let site = Site {
            source,
            span: clause.span,
        };
        let (dimension, not, key) = match &clause.value {
            Clause::From(list) => (
                Dimension::Source,
                list.not,
                self.addresses(source, "from", list),
            ),
            Clause::Client(list) => (
                Dimension::Client,
                list.not,
                self.addresses(source, "client", list),
            ),
            Clause::To(list) => (
                Dimension::Destination,
                list.not,
                self.addresses(source, "to", list),
            ),
            Clause::Port(list) => {
                let ports = list.items.iter().map(|item| item.value);
                let narrow = ports
                    .map(|p| (u32::from(p.first), u32::from(p.last)))
                    .collect();
                (
                    Dimension::Port,
                    list.not,
                    own(Members {
                        narrow,
                        ..Members::default()
                    }),
                )
            }
            Clause::User(list) => (Dimension::Uid, list.not, self.users(source, list)),
            Clause::Cgroup(list) => (Dimension::Cgroup, list.not, self.names.cgroup_list(list)),
            Clause::Resolver(_) => {
                self.not_yet(site, "`resolver`", "name the addresses with `to`");
                return None;
            }
            Clause::App(_) => {
                self.not_yet(site, "`app`", "`user` and `cgroup` tell programs apart");
                return None;
            }
            Clause::Protected => {
                self.not_yet(site, "`protected`", "without it the rule allows the same");
                return None;
            }
            Clause::Protocol(_) | Clause::Egress(_) | Clause::Via(_) | Clause::Id(_) => {
                return None;
            }
        };
        Some(Term {
            dimension,
            not,
            unit: lowered.unit(dimension, key, &self.sets),
        })
    }

    fn egress(
        &mut self,
        source: SourceId,
        list: &List<EgressItem>,
        lowered: &mut Lowered,
    ) -> Vec<Term> {
        let mut addresses = UnitKey::default();
        let mut devices = Members::default();
        for item in &list.items {
            match &item.value {
                EgressItem::Any => addresses.own.add(&Members::all_addresses()),
                EgressItem::Prefix(prefix) => addresses.own.add_prefix(*prefix),
                EgressItem::Set(name) => {
                    let site = Site {
                        source,
                        span: item.span,
                    };
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
        let mut terms = Vec::new();
        let by_address = !addresses.sets.is_empty() || addresses.own != Members::default();
        if by_address || devices.narrow.is_empty() {
            let dimension = Dimension::EgressAddress;
            let unit = lowered.unit(dimension, addresses, &self.sets);
            terms.push(Term {
                dimension,
                not,
                unit,
            });
        }
        if !devices.narrow.is_empty() {
            let dimension = Dimension::EgressDevice;
            let unit = lowered.unit(dimension, own(devices), &self.sets);
            terms.push(Term {
                dimension,
                not,
                unit,
            });
        }
        terms
    }

    fn addresses(&mut self, source: SourceId, clause: &str, list: &List<AddressItem>) -> UnitKey {
        let mut key = UnitKey::default();
        let only_domains = !list.items.is_empty()
            && list
                .items
                .iter()
                .all(|item| matches!(item.value, AddressItem::Domain(_)));
        for item in &list.items {
            let site = Site {
                source,
                span: item.span,
            };
            match &item.value {
                AddressItem::Any => key.own.add(&Members::all_addresses()),
                AddressItem::Multicast => {
                    item::multicast()
                        .into_iter()
                        .for_each(|prefix| key.own.add_prefix(prefix));
                }
                AddressItem::Broadcast => key.own.narrow.push((u32::MAX, u32::MAX)),
                AddressItem::Prefix(prefix) => key.own.add_prefix(*prefix),
                AddressItem::Set(name) => key.sets.extend(self.set(clause, site, name)),
                AddressItem::UnknownName => self.not_yet(
                    site,
                    "`unknown-name`",
                    "no flow has a name here: leave the clause out",
                ),
                AddressItem::Domain(domain) if clause == "to" => {
                    let help = self.domain_help(domain);
                    self.not_yet(site, "a domain in `to`", &help);
                }
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

    /// What was probably meant by a domain that is none.
    fn domain_help(&self, domain: &Domain) -> String {
        let plain = !domain.below && !domain.name.contains('.');
        if plain && self.set_names.contains_key(&domain.name) {
            return format!("did you mean the set `@{}`?", domain.name);
        }
        match nearest(&domain.name, parse::CLAUSES).filter(|_| plain) {
            Some(clause) => format!("did you mean the clause `{clause}`?"),
            None => "write its addresses or prefixes".to_owned(),
        }
    }

    /// The set of this name, used in `clause`.
    fn set(&mut self, clause: &str, site: Site, name: &str) -> Option<usize> {
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
        let set = &mut self.sets[at];
        set.used = true;
        if clause != "to" {
            if set.is_only_domains() {
                self.findings
                    .error(
                        code::DOMAIN_HERE,
                        site,
                        format!("a set of nothing but domains matches nothing in `{clause}`"),
                    )
                    .related(set.site, "the set");
            }
        } else if let Some(domain) = set.first_domain.take() {
            let more = set.domains - 1;
            let message = match more {
                0 => "a domain in a set for `to` is not in this version".to_owned(),
                _ => format!("domains in a set for `to` ({more} more) are not in this version"),
            };
            self.findings
                .error(code::NOT_IN_THIS_VERSION, domain, message)
                .related(site, "used here")
                .help("the set may hold addresses and prefixes");
        }
        Some(at)
    }

    fn users(&mut self, source: SourceId, list: &List<UserItem>) -> UnitKey {
        let mut members = Members::default();
        for item in &list.items {
            match &item.value {
                UserItem::Uid(uid) => members.narrow.push((*uid, *uid)),
                UserItem::Unknown => members.unknown = true,
                UserItem::Name(name) => {
                    let site = Site {
                        source,
                        span: item.span,
                    };
                    let uid = self.uid(site, name);
                    members.narrow.extend(uid.map(|uid| (uid, uid)));
                }
            }
        }
        own(members)
    }

    fn uid(&mut self, site: Site, name: &Name) -> Option<u32> {
        let uid = match self.users.get(name) {
            Some(uid) => *uid,
            None => *self
                .users
                .entry(name.clone())
                .or_insert(self.environment.uid(name)),
        };
        if uid.is_none() {
            unknown_user(self.findings, site, name);
        }
        uid
    }

    fn id(&mut self, site: Site, id: &Name) -> Option<Name> {
        if let Some(first) = self.ids.get(id) {
            self.findings
                .error(
                    code::DUPLICATE_ID,
                    site,
                    format!("a second `id` {}", quoted(id)),
                )
                .related(*first, "the first one")
                .help("an id names one rule over all files");
            return None;
        }
        self.ids.insert(id.clone(), site);
        Some(id.clone())
    }

    fn way_out(&mut self, site: Site, name: &str) {
        way_out(self.findings, site, name);
    }

    fn not_yet(&mut self, site: Site, what: &str, help: &str) {
        not_yet(self.findings, site, what, help);
    }
}

pub(super) fn unknown_user(findings: &mut Findings, site: Site, name: &str) {
    findings
        .error(
            code::UNKNOWN_USER,
            site,
            format!("this host has no user {}", quoted(name)),
        )
        .help("a user's name, a uid, or `unknown`");
}

pub(super) fn way_out(findings: &mut Findings, site: Site, name: &str) {
    if name == DIRECT {
        return;
    }
    let help = match nearest(name, [DIRECT]) {
        Some(near) => format!("did you mean `{near}`?"),
        None => "`direct` is the only way out".to_owned(),
    };
    not_yet(
        findings,
        site,
        &format!("the way out {}", quoted(name)),
        &help,
    );
}

/// Refuses what the language has and this version lacks.
pub(super) fn not_yet(findings: &mut Findings, site: Site, what: &str, help: &str) {
    findings
        .error(
            code::NOT_IN_THIS_VERSION,
            site,
            format!("{what} is not in this version"),
        )
        .help(help);
}

impl Names {
    fn device(&mut self, device: DeviceName) -> u32 {
        let next = u32::try_from(self.devices.len()).unwrap_or(u32::MAX);
        *self.devices.entry(device).or_insert(next)
    }

    /// Numbers all paths so that what lies below a path is an interval.
    fn collect_cgroups(&mut self, files: &[File]) {
        let statements = files.iter().flat_map(|file| &file.statements);
        let clauses = statements.flat_map(|statement| match statement {
            Statement::Rule(rule) => &rule.clauses[..],
            Statement::Route(route) => &route.clauses[..],
            Statement::Set(_)
            | Statement::Resolve(_)
            | Statement::Default(_)
            | Statement::Expect(_) => &[],
        });
        let mut paths: Vec<&Name> = Vec::new();
        for clause in clauses {
            let Clause::Cgroup(list) = &clause.value else {
                continue;
            };
            for item in &list.items {
                match &item.value {
                    CgroupItem::Path(path) => paths.push(path),
                    CgroupItem::Unknown => {}
                }
            }
        }
        paths.sort_unstable_by(|a, b| a.split('/').cmp(b.split('/')));
        paths.dedup();
        let mut open: Vec<usize> = Vec::new();
        self.cgroup_ends = vec![0; paths.len()];
        for (at, path) in paths.iter().enumerate() {
            while open
                .last()
                .is_some_and(|above| !is_below(paths[*above], path))
            {
                open.pop();
            }
            open.push(at);
            for above in &open {
                self.cgroup_ends[*above] = u32::try_from(at).unwrap_or(u32::MAX);
            }
        }
        self.cgroups = paths.into_iter().cloned().zip(0..).collect();
    }

    fn cgroup_list(&self, list: &List<CgroupItem>) -> UnitKey {
        let mut members = Members::default();
        for item in &list.items {
            match &item.value {
                CgroupItem::Unknown => members.unknown = true,
                CgroupItem::Path(path) => {
                    if let Some(number) = self.cgroups.get(path) {
                        members
                            .narrow
                            .push((*number, self.cgroup_ends[*number as usize]));
                    }
                }
            }
        }
        own(members)
    }
}

/// Whether `path` is `above` or lies below it.
fn is_below(above: &str, path: &str) -> bool {
    path.strip_prefix(above)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl UnitKey {
    fn normalise(&mut self) {
        self.own.normalise();
        self.sets.sort_unstable();
        self.sets.dedup();
    }
}

/// A list without sets.
fn own(members: Members) -> UnitKey {
    let mut key = UnitKey {
        sets: Vec::new(),
        own: members,
    };
    key.normalise();
    key
}

impl Lowered {
    /// The number of a list, the same for equal lists.
    fn unit(&mut self, dimension: Dimension, key: UnitKey, sets: &[ResolvedSet]) -> u32 {
        let units = &mut self.units[dimension as usize];
        if let Some(unit) = units.known.get(&key) {
            return *unit;
        }
        let members = match &key.sets[..] {
            [] => Rc::new(key.own.clone()),
            [one] if key.own == Members::default() => Rc::clone(&sets[*one].members),
            several => {
                let mut members = key.own.clone();
                several
                    .iter()
                    .for_each(|set| members.add(&sets[*set].members));
                members.normalise();
                Rc::new(members)
            }
        };
        let unit = u32::try_from(units.members.len()).unwrap_or(u32::MAX);
        units.members.push(members);
        units.known.insert(key, unit);
        unit
    }
}

fn finish(lowered: Lowered, names: &Names, what: &str, findings: &mut Findings) -> Option<Ruleset> {
    let Lowered {
        rules,
        clauses,
        rows,
        units,
    } = lowered;
    let units = units.map(|units| units.members);
    let index = Index::build(&rows, &units, names.devices.clone(), names.cgroups.clone());
    let Ok(index) = index else {
        let site = rules.first().map_or(
            Site {
                source: SourceId(0),
                span: Span::default(),
            },
            |rule| rule.site,
        );
        findings
            .error(
                code::TOO_LARGE,
                site,
                format!("the {what}s overlap in too many ways"),
            )
            .help("lists that overlap in millions of different ways need too much memory");
        return None;
    };
    shadow::warn(&index, &rules, &rows, &units, what, findings);
    Some(Ruleset {
        index,
        rules,
        clauses,
    })
}
