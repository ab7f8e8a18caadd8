//! Rules that can never match.
//!
//! A rule is shadowed when an earlier one holds for every flow that it holds for. To
//! find the earlier one without comparing all pairs, the index is asked which rules
//! hold for one flow of the later rule: any rule that shadows it is among them. Each
//! of those is then compared list by list.
//!
//! The check never warns wrongly. It misses a rule that only several earlier ones
//! together cover, and gives up where it would become slow: see the limits below.

use std::rc::Rc;

use hashbrown::HashMap;

use super::compile::RuleEntry;
use super::diagnostic::{Findings, code, quoted};
use super::index::{DIMENSIONS, Dimension, Index, Row, Sample, Term};
use super::set::{Members, gap};

/// Earlier rules that are compared with one rule. In a policy where more hold for one
/// flow, the first ones in the index's order are looked at.
const CANDIDATES: usize = 64;

/// Intervals of two lists that are compared one by one. A larger list covers another
/// only if it is the same list.
const INTERVALS: usize = 65_536;

type Units = [Vec<Rc<Members>>; DIMENSIONS];

/// Warns of every rule that can never match.
pub(super) fn warn(
    index: &Index,
    rules: &[RuleEntry],
    rows: &[Row],
    units: &Units,
    what: &str,
    findings: &mut Findings,
) {
    let mut first_row = vec![0; rules.len() + 1];
    for row in rows {
        first_row[row.rule as usize + 1] += 1;
    }
    for rule in 0..rules.len() {
        first_row[rule + 1] += first_row[rule];
    }
    let mut check = Check { index, rows, units, first_row, covered: HashMap::default() };
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
                let first = quoted(&earlier.name);
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
    index: &'c Index,
    rows: &'c [Row],
    units: &'c Units,
    first_row: Vec<usize>,
    /// Comparisons of large lists that were made: the lists are often the same few.
    covered: HashMap<(Dimension, u32, u32), bool, foldhash::fast::FixedState>,
}

impl<'c> Check<'c> {
    fn rule(&mut self, rule: usize) -> Found {
        let rows = self.rows_of(rule);
        let mut samples = Vec::new();
        for row in rows {
            let Some(sample) = self.sample(row) else {
                return Found::Empty;
            };
            samples.push((row, sample));
        }
        let Some((row, sample)) = samples.first() else {
            return Found::Nothing;
        };
        let answers = self.index.sample(row.protocol, sample);
        let mut candidates = Vec::new();
        let limit = u32::try_from(rule).unwrap_or(u32::MAX);
        self.index.matching(&answers, limit, |candidate| {
            candidates.push(candidate as usize);
            candidates.len() < CANDIDATES
        });
        candidates.sort_unstable();
        candidates.dedup();
        for candidate in candidates {
            let earlier = self.rows_of(candidate);
            if rows.iter().all(|row| earlier.iter().any(|earlier| self.covers(earlier, row))) {
                return Found::Shadow(candidate);
            }
        }
        Found::Nothing
    }

    fn rows_of(&self, rule: usize) -> &'c [Row] {
        &self.rows[self.first_row[rule]..self.first_row[rule + 1]]
    }

    /// A value for each list of a row; `None` where a list holds for nothing.
    fn sample(&self, row: &Row) -> Option<Vec<(Dimension, Sample)>> {
        let value = |term: &Term| {
            let members = self.members(term);
            let value = if term.not {
                gap(&members.narrow)
                    .map(Sample::Narrow)
                    .or_else(|| gap(&members.wide).map(Sample::Wide))?
            } else if let Some((first, _)) = members.narrow.first() {
                Sample::Narrow(*first)
            } else if let Some((first, _)) = members.wide.first() {
                Sample::Wide(*first)
            } else if members.unknown {
                Sample::Unknown
            } else {
                return None;
            };
            Some((term.dimension, value))
        };
        row.terms.iter().map(value).collect()
    }

    /// Whether `earlier` holds for every flow that `later` holds for.
    fn covers(&mut self, earlier: &Row, later: &Row) -> bool {
        if earlier.protocol.is_some() && earlier.protocol != later.protocol {
            return false;
        }
        earlier.terms.iter().all(|wide| {
            let narrow = later.terms.iter().find(|term| term.dimension == wide.dimension);
            narrow.is_some_and(|narrow| self.term_covers(*wide, *narrow))
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
            (true, false) => {
                !inner.unknown && outer.len().min(inner.len()) <= INTERVALS && outer.disjoint(inner)
            }
            // What is outside one list is never all inside another that a person wrote.
            (false, true) => false,
        }
    }

    fn contains(&mut self, dimension: Dimension, outer: u32, inner: u32) -> bool {
        let units = &self.units[dimension as usize];
        let (wide, narrow) = (&units[outer as usize], &units[inner as usize]);
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
        &self.units[term.dimension as usize][term.unit as usize]
    }
}
