//! Statements into the rows and lists that the index is built of.
//!
//! What a single file cannot know is checked here: names across files, users, the
//! files of sets, and everything that the language has and this version lacks, which
//! is refused at its place and never ignored.

mod lower;
mod resolving;
mod units;

use std::ops::Range;
use std::rc::Rc;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::diagnostic::{Findings, Site, SourceId, Sources, Span, code, nearest, quoted};
use super::domains::{Domains, NameHasher};
use super::index::{DIMENSIONS, Index, Mask, Row};
use super::parse::{self, File};
use super::resolve::Resolutions;
use super::rule::{Action, Name, Route, Set, SetBody, SetItem, Spanned, Statement};
use super::set::{self, Members, ResolvedSet};
use super::{Environment, Policy, Source, Summary, Verdict, expect, shadow};
use crate::{Protocol, Resolvers, WayId, WayKind, WayNames};

pub(super) use resolving::Resolving;

use units::{Names, Units};

type Map<K, V> = HashMap<K, V, FixedState>;

/// Rules in order and the index over them.
#[derive(Debug, Default)]
pub(super) struct Ruleset {
    pub(super) index: Index,
    pub(super) rules: Vec<RuleEntry>,
    pub(super) clauses: Vec<ClauseEntry>,
    /// The ways out of all routes.
    pub(super) ways: Vec<WayId>,
    /// The names of all rules, one behind the other.
    names: String,
}

impl Ruleset {
    /// The rule's id or `FILE:LINE`.
    pub(super) fn name(&self, rule: &RuleEntry) -> &str {
        self.names.get(rule.name.clone()).unwrap_or_default()
    }

    /// The ways out of a route, in the order of preference.
    pub(super) fn ways(&self, route: &RuleEntry) -> &[WayId] {
        self.ways.get(route.ways.start as usize..route.ways.end as usize).unwrap_or_default()
    }
}

#[derive(Debug)]
pub(super) struct RuleEntry {
    /// Of a route: `Allow`, and without meaning.
    pub(super) verdict: Verdict,
    /// No change resets what it allows.
    pub(super) protected: bool,
    /// Its part of [`Ruleset::names`].
    name: Range<usize>,
    pub(super) site: Site,
    pub(super) line: u32,
    /// Its part of [`Ruleset::clauses`].
    pub(super) clauses: Range<u32>,
    /// Its part of [`Ruleset::ways`]; a rule has none.
    pub(super) ways: Range<u32>,
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
    /// `to any`.
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
        hasher: NameHasher::new(environment.secret()),
        resolvers: environment.resolvers(),
        ways: environment.ways(),
        resolves: Vec::new(),
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
    let mut rules = Lowered::for_files(&files);
    let mut routes = Lowered::default();
    for (source, file) in (0..).map(SourceId).zip(&files) {
        compiler.lower_file(source, file, &mut rules, &mut routes);
    }
    let Compiler { names, sets, set_names, hasher, resolvers, ways, resolves, .. } = compiler;
    let expects = expect::read(&files, environment, &ways, findings);
    // What half a policy decides, shadows and leaves unused says nothing.
    if findings.has_errors() {
        return None;
    }
    warn_of_unused(&set_names, &sets, findings);
    warn_of_ways(&ways, &routes.ways, sources, findings);
    let rules = finish(rules, &names, &hasher, "rule", findings)?;
    let routes = finish(routes, &names, &hasher, "route", findings)?;
    let resolutions = Resolutions::build(resolves, &hasher, findings);
    let mut policy = Policy {
        rules,
        routes,
        resolutions,
        resolvers,
        ways,
        default: default?,
        sources: Vec::new(),
        summary: Summary { files: given.len(), sets: sets.len(), ..Summary::default() },
    };
    policy.summary.rules = policy.rules.rules.len();
    policy.summary.routes = policy.routes.rules.len();
    policy.summary.resolves = policy.resolutions.len();
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
            let site = Site { source: id, span: Span::default() };
            findings.error(code::TOO_LARGE, site, "a policy file has at most 4 GiB");
            return File::default();
        }
        let id = sources.add(&source.name, source.text.as_str().into());
        parse::parse(&source.text, id, findings)
    };
    given.iter().map(parse).collect()
}

fn warn_of_unused(names: &Map<Name, u32>, sets: &[ResolvedSet], findings: &mut Findings) {
    for (name, at) in names {
        let set = &sets[*at as usize];
        if !set.used {
            findings
                .warning(
                    code::UNUSED_SET,
                    set.site,
                    format!("the set {} is never used", quoted(name)),
                )
                .help(format!("a rule uses it as `@{name}`"));
        }
    }
}

fn warn_of_ways(ways: &WayNames, routed: &[WayId], sources: &Sources, findings: &mut Findings) {
    // The way out stands in the configuration; here the first file's first word is its place.
    let site =
        Site { source: SourceId(0), span: Span::new(0, first_word(sources.text(SourceId(0)))) };
    for (id, name, kind) in ways.iter() {
        if kind != WayKind::Direct && !routed.contains(&id) {
            findings
                .warning(
                    code::UNUSED_WAY,
                    site,
                    format!("no route names the way out {}", quoted(name)),
                )
                .help(format!("`route to … via {name}` in any file uses it"));
        }
    }
}

/// Where the first word of a text ends.
fn first_word(text: &str) -> usize {
    text.find(char::is_whitespace).unwrap_or(text.len())
}

struct Compiler<'c> {
    environment: &'c dyn Environment,
    findings: &'c mut Findings,
    sources: &'c mut Sources,
    hasher: NameHasher,
    resolvers: Resolvers,
    ways: WayNames,
    resolves: Vec<Resolving>,
    sets: Vec<ResolvedSet>,
    set_names: Map<Name, u32>,
    /// `false` where a set may have been missed for another fault.
    all_sets_known: bool,
    users: Map<Name, Option<u32>>,
    ids: Map<Name, Site>,
    names: Names,
}

/// Rules on their way to the index.
#[derive(Debug, Default)]
struct Lowered {
    rules: Vec<RuleEntry>,
    clauses: Vec<ClauseEntry>,
    ways: Vec<WayId>,
    names: String,
    rows: Vec<Row>,
    units: [Units; DIMENSIONS],
}

impl Lowered {
    /// With room for the rules of these files.
    fn for_files(files: &[File]) -> Self {
        let rules = files.iter().map(|file| file.statements.len()).sum();
        let clauses = files.iter().map(|file| file.clauses.len()).sum();
        Self {
            rules: Vec::with_capacity(rules),
            clauses: Vec::with_capacity(clauses),
            rows: Vec::with_capacity(rules),
            ..Self::default()
        }
    }
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
        let site = Site { source, span: set.name.span };
        if let Some(first) = self.set_names.get(&set.name.value) {
            let first = self.sets[*first as usize].site;
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
        let members = match &set.body {
            SetBody::Items(items) => {
                let mut members = Members::default();
                let mut domains = Domains::default();
                for item in items {
                    match &item.value {
                        SetItem::Prefix(prefix) => members.add_prefix(*prefix),
                        SetItem::Domain(domain) => {
                            domains.push(domain.below, &domain.name, &self.hasher);
                        }
                    }
                }
                members.normalise();
                members.put_domains(domains);
                members
            }
            SetBody::File(path) => self.read_set_file(source, path),
        };
        let number = u32::try_from(self.sets.len()).unwrap_or(u32::MAX);
        self.set_names.insert(set.name.value.clone(), number);
        self.sets.push(ResolvedSet { site, members: Rc::new(members), used: false });
    }

    fn read_set_file(&mut self, source: SourceId, path: &Spanned<Name>) -> Members {
        let site = Site { source, span: path.span };
        let text = match self.environment.read(self.sources.name(source), &path.value) {
            Ok(text) => text,
            Err(error) => {
                let message = format!("the file {}: {error}", quoted(&path.value));
                self.findings
                    .error(code::SET_FILE, site, message)
                    .help("the path is below the directory of this policy file");
                return Members::default();
            }
        };
        if u32::try_from(text.len()).is_err() {
            self.findings.error(code::TOO_LARGE, site, "a set's file has at most 4 GiB");
            return Members::default();
        }
        let id = self.sources.add(&path.value, text.into());
        set::read_list(self.sources.text(id), id, &self.hasher, self.findings)
    }

    // Statements.

    fn default(&mut self, files: &[File], complete: bool) -> Option<Verdict> {
        let mut first: Option<(Site, Verdict)> = None;
        for (source, file) in (0..).map(SourceId).zip(files) {
            for statement in &file.statements {
                let Statement::Default(verdict) = statement else {
                    continue;
                };
                let site = Site { source, span: verdict.span };
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
            let site = Site { source: last, span: Span::new(end, end) };
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
                            let site = Site { source, span: rule.action.span };
                            self.not_yet(site, "`ask`", "decide here: `allow`, `block` or `drop`");
                            otherwise
                        }
                    };
                    let clauses = &file.clauses[rule.clauses.clone()];
                    self.lower(source, rule.line, verdict, clauses, rules);
                }
                Statement::Route(route) => {
                    let ways = self.ways_of(source, route);
                    let clauses = &file.clauses[route.clauses.clone()];
                    self.lower(source, route.line, Verdict::Allow, clauses, routes);
                    routes.ways.extend(ways);
                    if let Some(entry) = routes.rules.last_mut() {
                        entry.ways.end = u32::try_from(routes.ways.len()).unwrap_or(u32::MAX);
                    }
                }
                Statement::Resolve(resolve) => self.resolve(source, resolve),
                Statement::Set(_) | Statement::Default(_) | Statement::Expect(_) => {}
            }
        }
    }
}

impl Compiler<'_> {
    /// The ways out of a route, each once.
    fn ways_of(&mut self, source: SourceId, route: &Route) -> Vec<WayId> {
        let mut ways = Vec::new();
        for (at, via) in route.via.iter().enumerate() {
            let site = Site { source, span: via.span };
            if let Some(first) = route.via[..at].iter().find(|first| *first == via) {
                self.findings
                    .error(
                        code::REPEATED,
                        site,
                        format!("{} stands here again", quoted(&via.value)),
                    )
                    .related(Site { source, span: first.span }, "the first time")
                    .help("the first way out that is usable is taken");
                continue;
            }
            ways.extend(self.way_out(site, &via.value));
        }
        ways
    }
}

pub(super) fn unknown_user(findings: &mut Findings, site: Site, name: &str) {
    findings
        .error(code::UNKNOWN_USER, site, format!("this host has no user {}", quoted(name)))
        .help("a user's name, a uid, or `unknown`");
}

/// The way out of this name.
pub(super) fn way_out(
    findings: &mut Findings,
    ways: &WayNames,
    site: Site,
    name: &str,
) -> Option<WayId> {
    let id = ways.id(name);
    if id.is_none() {
        let message = format!("the configuration has no way out {}", quoted(name));
        let help = match nearest(name, ways.iter().map(|(_, name, _)| name)) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "`[[wireguard]]` or `[[proxy]]` in the configuration makes one".to_owned(),
        };
        findings.error(code::UNKNOWN_WAY, site, message).help(help);
    }
    id
}

/// Refuses what the language has and this version lacks.
pub(super) fn not_yet(findings: &mut Findings, site: Site, what: &str, help: &str) {
    findings
        .error(code::NOT_IN_THIS_VERSION, site, format!("{what} is not in this version"))
        .help(help);
}

fn finish(
    lowered: Lowered,
    names: &Names,
    hasher: &NameHasher,
    what: &str,
    findings: &mut Findings,
) -> Option<Ruleset> {
    let Lowered { rules, clauses, ways, names: rule_names, rows, units } = lowered;
    let units = units.map(|units| units.list);
    let (devices, cgroups) = (names.devices.clone(), names.cgroups.clone());
    let index = Index::build(&rows, &units, hasher, devices, cgroups);
    let Ok((index, samples)) = index else {
        let start = Site { source: SourceId(0), span: Span::default() };
        let site = rules.first().map_or(start, |rule| rule.site);
        findings
            .error(code::TOO_LARGE, site, format!("the {what}s overlap in too many ways"))
            .help("lists that overlap in millions of different ways need too much memory");
        return None;
    };
    let ruleset = Ruleset { index, rules, clauses, ways, names: rule_names };
    let lists = shadow::Lists { rows: &rows, units: &units, samples: &samples, hasher };
    shadow::warn(&ruleset, lists, what, findings);
    Some(ruleset)
}
