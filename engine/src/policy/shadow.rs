//! Rules that can never match.
//!
//! A rule is shadowed when an earlier one holds for every flow that it holds for. To
//! find the earlier one without comparing all pairs, the index is asked which rules
//! hold for one flow of the later rule: any rule that shadows it is among them. Each
//! of those is then compared list by list.
//!
//! The check never warns wrongly. It misses a rule that only several earlier ones
//! together cover, and gives up where it would become slow: see the limits below.

use hashbrown::HashMap;
use smallvec::SmallVec;

use super::compile::Ruleset;
use super::diagnostic::{Findings, code, quoted};
use super::domains::NameHasher;
use super::index::{Answers, DIMENSIONS, Dimension, Row, Sample, Samples, Term};
use super::set::{Members, Unit, gap};

/// Earlier rules that are compared with one rule. In a policy where more hold for one
/// flow, the first ones in the index's order are looked at.
const CANDIDATES: usize = 64;

/// Intervals of two lists that are compared one by one. A larger list covers another
/// only if it is the same list.
const INTERVALS: usize = 65_536;

type Units = [Vec<Unit>; DIMENSIONS];

/// What rules were compiled to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lists<'c> {
    pub(super) rows: &'c [Row],
    pub(super) units: &'c Units,
    pub(super) samples: &'c Samples,
    pub(super) hasher: &'c NameHasher,
}

/// Warns of every rule that can never match.
pub(super) fn warn(ruleset: &Ruleset, lists: Lists<'_>, what: &str, findings: &mut Findings) {
    let rows = lists.rows;
    let rules = &ruleset.rules;
    let mut first_row = vec![0; rules.len() + 1];
    for row in rows {
        first_row[row.rule as usize + 1] += 1;
    }
    for rule in 0..rules.len() {
        first_row[rule + 1] += first_row[rule];
    }
    let mut check =
        Check { ruleset, lists, first_row, candidates: Vec::new(), covered: HashMap::default() };
    for (at, rule) in rules.iter().enumerate() {
        match check.rule(at) {
            Found::Nothing => {}
            Found::Empty => {
                findings
                    .warning(
                        code::SHADOWED,
                        rule.site,
                        format!("this {what} can never match: a list of it is empty"),
                    )
                    .help(format!("remove the {what}, or fill the set that it uses"));
            }
            Found::Shadow(earlier) => {
                let earlier = &rules[earlier];
                let first = quoted(ruleset.name(earlier));
                findings
                    .warning(
                        code::SHADOWED,
                        rule.site,
                        format!("this {what} can never match: {first} stands before it"),
                    )
                    .related(earlier.site, "it holds for every flow that the later one holds for")
                    .help(format!("remove this {what}, or move it up"));
            }
        }
    }
}

enum Found {
    Nothing,
    /// No flow has the values that the rule asks for.
    Empty,
    Shadow(usize),
}

struct Check<'c> {
    ruleset: &'c Ruleset,
    lists: Lists<'c>,
    first_row: Vec<usize>,
    /// Of one rule; used again for the next.
    candidates: Vec<usize>,
    /// Comparisons of large lists that were made: the lists are often the same few.
    covered: HashMap<(Dimension, u32, u32), bool, foldhash::fast::FixedState>,
}

impl<'c> Check<'c> {
    fn rule(&mut self, rule: usize) -> Found {
        // A row that holds for nothing needs no other that covers it.
        let mut answers = None;
        let mut rows: SmallVec<[&Row; 4]> = SmallVec::new();
        for row in self.rows_of(rule) {
            if let Some(sampled) = self.sample(row) {
                answers.get_or_insert(sampled);
                rows.push(row);
            }
        }
        let Some(answers) = answers else {
            return Found::Empty;
        };
        let mut candidates = std::mem::take(&mut self.candidates);
        candidates.clear();
        let limit = u32::try_from(rule).unwrap_or(u32::MAX);
        self.ruleset.index.matching(&answers, limit, |candidate| {
            candidates.push(candidate as usize);
            candidates.len() < CANDIDATES
        });
        candidates.sort_unstable();
        candidates.dedup();
        let covered = |earlier: &usize| {
            let earlier = self.rows_of(*earlier);
            rows.iter().all(|row| earlier.iter().any(|earlier| self.covers(earlier, row)))
        };
        let found = candidates.iter().copied().find(covered);
        self.candidates = candidates;
        found.map_or(Found::Nothing, Found::Shadow)
    }

    fn rows_of(&self, rule: usize) -> &'c [Row] {
        &self.lists.rows[self.first_row[rule]..self.first_row[rule + 1]]
    }

    /// What holds for one flow of a row; `None` where a list holds for nothing.
    fn sample(&self, row: &Row) -> Option<Answers> {
        let mut empty = false;
        let values = row.terms().filter_map(|term| {
            let value = self.value(&term);
            empty |= value.is_none();
            Some((term.dimension, value?))
        });
        let answers = self.ruleset.index.sample(row.protocol, values);
        (!empty).then_some(answers)
    }

    /// A value that a list holds for.
    fn value(&self, term: &Term) -> Option<Sample> {
        let members = self.members(term);
        let sampled = || {
            let (class, alone) = self.lists.samples[term.dimension as usize][term.unit as usize];
            Some(Sample::Class(class, alone))
        };
        if term.dimension == Dimension::Name {
            return match (term.not, members.domain_count()) {
                (true, _) => Some(Sample::Unlisted),
                (false, 0) => members.unknown.then_some(Sample::Unknown),
                (false, _) => sampled(),
            };
        }
        if term.not {
            let narrow = gap(&members.narrow).map(Sample::Narrow);
            narrow.or_else(|| gap(&members.wide).map(Sample::Wide))
        } else if members.len() > 0 {
            sampled()
        } else {
            members.unknown.then_some(Sample::Unknown)
        }
    }

    /// Whether `earlier` holds for every flow that `later` holds for.
    fn covers(&mut self, earlier: &Row, later: &Row) -> bool {
        if earlier.protocol.is_some() && earlier.protocol != later.protocol {
            return false;
        }
        earlier.terms().all(|wide| {
            later.term(wide.dimension).is_some_and(|narrow| self.term_covers(wide, narrow))
        })
    }

    fn term_covers(&mut self, wide: Term, narrow: Term) -> bool {
        if wide.unit == narrow.unit {
            return wide.not == narrow.not;
        }
        let (outer, inner) = (self.members(&wide), self.members(&narrow));
        match (wide.not, narrow.not) {
            (false, false) => self.contains(wide.dimension, wide.unit, narrow.unit),
            (true, true) => self.contains(wide.dimension, narrow.unit, wide.unit),
            // A flow may have several resolvers, one in each list.
            (true, false) if wide.dimension == Dimension::Resolver => false,
            (true, false) if wide.dimension == Dimension::Name => {
                let few = outer.domain_count().max(inner.domain_count()) <= INTERVALS;
                !inner.unknown && few && outer.disjoint_domains(inner, self.lists.hasher)
            }
            (true, false) => {
                !inner.unknown && outer.len().min(inner.len()) <= INTERVALS && outer.disjoint(inner)
            }
            // What is outside one list is never all inside another that a person wrote.
            (false, true) => false,
        }
    }

    fn contains(&mut self, dimension: Dimension, outer: u32, inner: u32) -> bool {
        let units = &self.lists.units[dimension as usize];
        let (wide, narrow) = (units[outer as usize].members(), units[inner as usize].members());
        if dimension == Dimension::Name {
            let few = narrow.domain_count() <= INTERVALS;
            let covered = || wide.contains_domains(narrow, self.lists.hasher);
            let key = (dimension, outer, inner);
            return few && *self.covered.entry(key).or_insert_with(covered);
        }
        if narrow.len() > INTERVALS {
            return false;
        }
        if narrow.len() < 16 {
            return wide.contains(narrow);
        }
        let key = (dimension, outer, inner);
        *self.covered.entry(key).or_insert_with(|| wide.contains(narrow))
    }

    fn members(&self, term: &Term) -> &'c Members {
        self.lists.units[term.dimension as usize][term.unit as usize].members()
    }
}
