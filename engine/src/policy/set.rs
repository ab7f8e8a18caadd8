//! Sets of addresses as sorted disjoint intervals, and the files they come from.
//!
//! Intervals are the form in which everything else works: a union is a sort, a test
//! for membership is a binary search, and one sweep over the ends of all lists of a
//! dimension gives its lookup table (`index`).

use std::net::IpAddr;
use std::rc::Rc;

use ipnet::IpNet;
use smallvec::SmallVec;

use super::diagnostic::{Findings, Site, SourceId, Span, code, quoted};
use super::domains::{Domains, NameHasher};
use super::item;

/// What an interval's ends can be.
pub(super) trait Key: Copy + Ord {
    const MIN: Self;
    /// The next key, where there is one.
    fn next(self) -> Option<Self>;
    /// The key shifted right, as an index; the shift leaves at most 16 bits.
    fn top(self, shift: u32) -> usize;
    const BITS: u32;
}

impl Key for u32 {
    const MIN: Self = Self::MIN;
    const BITS: Self = Self::BITS;
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
    fn top(self, shift: u32) -> usize {
        self.checked_shr(shift).unwrap_or(0) as usize
    }
}

impl Key for u128 {
    const MIN: Self = Self::MIN;
    const BITS: u32 = Self::BITS;
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
    fn top(self, shift: u32) -> usize {
        self.checked_shr(shift).unwrap_or(0) as usize
    }
}

/// Both ends belong to an interval.
pub(super) type Interval<K> = (K, K);

/// Sorts, and joins what overlaps or touches; gives how many are left, which stand first.
pub(super) fn joined<K: Key>(intervals: &mut [Interval<K>]) -> usize {
    intervals.sort_unstable();
    let mut kept = 0;
    for at in 0..intervals.len() {
        let (first, last) = intervals[at];
        let joins = kept > 0 && {
            let (_, before): Interval<K> = intervals[kept - 1];
            before.next().is_none_or(|next| first <= next)
        };
        if joins {
            let before = &mut intervals[kept - 1].1;
            *before = last.max(*before);
        } else {
            intervals[kept] = (first, last);
            kept += 1;
        }
    }
    kept
}

/// Whether every key of `inner` is in `outer`; both normalised.
pub(super) fn contains<K: Key>(outer: &[Interval<K>], inner: &[Interval<K>]) -> bool {
    inner.iter().all(|(first, last)| {
        let at = outer.partition_point(|(start, _)| start <= first);
        at > 0 && *last <= outer[at - 1].1
    })
}

/// Whether the two have no key in common; both normalised.
pub(super) fn disjoint<K: Key>(a: &[Interval<K>], b: &[Interval<K>]) -> bool {
    let (few, many) = if a.len() <= b.len() { (a, b) } else { (b, a) };
    few.iter().all(|(first, last)| {
        let at = many.partition_point(|(_, end)| end < first);
        many.get(at).is_none_or(|(start, _)| start > last)
    })
}

/// A key that no interval covers; `intervals` are normalised.
pub(super) fn gap<K: Key>(intervals: &[Interval<K>]) -> Option<K> {
    match intervals.first() {
        Some((first, last)) if *first == K::MIN => last.next(),
        Some(_) | None => Some(K::MIN),
    }
}

/// What a list stands for: IPv4 addresses, ports, uids, resolvers or the numbers that a
/// compile gave to names (`narrow`), IPv6 addresses (`wide`), domains, and whether it holds
/// for what is unknown. A set has addresses and domains, of which a dimension sees one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Members {
    /// Most lists are one address or port, which stands in the list itself.
    pub(super) narrow: SmallVec<[Interval<u32>; 1]>,
    pub(super) wide: Vec<Interval<u128>>,
    pub(super) domains: Option<Rc<Domains>>,
    pub(super) unknown: bool,
}

impl Members {
    /// Every address of both families.
    pub(super) fn all_addresses() -> Self {
        Self { narrow: [(0, u32::MAX)].into(), wide: vec![(0, u128::MAX)], ..Self::default() }
    }

    pub(super) fn add_prefix(&mut self, prefix: IpNet) {
        match prefix {
            IpNet::V4(net) => self.narrow.push((net.network().into(), net.broadcast().into())),
            IpNet::V6(net) => self.wide.push((net.network().into(), net.broadcast().into())),
        }
    }

    /// Adds what is no domain.
    pub(super) fn add(&mut self, other: &Self) {
        self.narrow.extend_from_slice(&other.narrow);
        self.wide.extend_from_slice(&other.wide);
        self.unknown |= other.unknown;
    }

    /// Gives it these domains, in place of others.
    pub(super) fn put_domains(&mut self, mut domains: Domains) {
        domains.normalise();
        self.domains = (!domains.is_empty()).then(|| Rc::new(domains));
    }

    /// Adds the domains alone.
    pub(super) fn add_domains(&mut self, other: &Self) {
        let Some(more) = &other.domains else { return };
        match &mut self.domains {
            None => self.domains = Some(Rc::clone(more)),
            Some(domains) => {
                let domains = Rc::make_mut(domains);
                domains.add(more);
                domains.normalise();
            }
        }
    }

    pub(super) fn normalise(&mut self) {
        let kept = joined(&mut self.narrow);
        self.narrow.truncate(kept);
        self.narrow.shrink_to_fit();
        let kept = joined(&mut self.wide);
        self.wide.truncate(kept);
        self.wide.shrink_to_fit();
    }

    /// Whether all of `inner` but its domains is in this one.
    pub(super) fn contains(&self, inner: &Self) -> bool {
        (self.unknown || !inner.unknown)
            && contains(&self.narrow, &inner.narrow)
            && contains(&self.wide, &inner.wide)
    }

    pub(super) fn disjoint(&self, other: &Self) -> bool {
        disjoint(&self.narrow, &other.narrow) && disjoint(&self.wide, &other.wide)
    }

    pub(super) fn len(&self) -> usize {
        self.narrow.len() + self.wide.len()
    }

    pub(super) fn domain_count(&self) -> usize {
        self.domains.as_ref().map_or(0, |domains| domains.len())
    }

    /// Whether every domain of `inner` is one of these or below one.
    pub(super) fn contains_domains(&self, inner: &Self, hasher: &NameHasher) -> bool {
        (self.unknown || !inner.unknown)
            && match (&self.domains, &inner.domains) {
                (_, None) => true,
                (None, Some(inner)) => inner.is_empty(),
                (Some(outer), Some(inner)) => outer.contains(inner, hasher),
            }
    }

    pub(super) fn disjoint_domains(&self, other: &Self, hasher: &NameHasher) -> bool {
        match (&self.domains, &other.domains) {
            (Some(a), Some(b)) => a.disjoint(b, hasher),
            (None, _) | (_, None) => true,
        }
    }
}

/// A list of a rule by what it was written with, so that large sets are not compared.
#[derive(Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct UnitKey {
    /// Numbers of sets.
    pub(super) sets: SmallVec<[u32; 4]>,
    pub(super) own: Members,
}

impl UnitKey {
    pub(super) fn normalise(&mut self) {
        self.own.normalise();
        self.sets.sort_unstable();
        self.sets.dedup();
    }
}

/// A list of a rule.
#[derive(Debug)]
pub(super) struct Unit {
    pub(super) key: UnitKey,
    /// What it stands for, where it is more than its own members.
    pub(super) sets: Option<Rc<Members>>,
}

impl Unit {
    pub(super) fn members(&self) -> &Members {
        self.sets.as_deref().unwrap_or(&self.key.own)
    }
}

/// A set whose items are read.
#[derive(Debug)]
pub(super) struct ResolvedSet {
    /// Where its name was given.
    pub(super) site: Site,
    pub(super) members: Rc<Members>,
    pub(super) used: bool,
}

impl ResolvedSet {
    /// Nothing but domains.
    pub(super) fn is_only_domains(&self) -> bool {
        self.members.domain_count() > 0 && self.members.len() == 0
    }
}

/// Reads a list: one address, prefix or domain a line, or lines of hosts(5), whose
/// names count and whose addresses only say that the line is one.
pub(super) fn read_list(
    text: &str,
    source: SourceId,
    hasher: &NameHasher,
    findings: &mut Findings,
) -> Members {
    let mut members = Members::default();
    let mut domains = Domains::default();
    let mut start = if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    for line in text[start..].split('\n') {
        let line_start = start;
        start += line.len() + 1;
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_ascii_whitespace();
        let Some(first) = words.next() else { continue };
        let span = |word: &str| {
            let at = line_start + (word.as_ptr() as usize - line.as_ptr() as usize);
            Span::new(at, at + word.len())
        };
        let mut fault = |word: &str, error: item::ItemError| {
            let site = Site { source, span: span(word) };
            findings.error(error.code, site, error.message).maybe_help(error.help);
        };
        let Some(second) = words.next() else {
            if item::looks_like_address(first) {
                match item::prefix(first) {
                    Ok(prefix) => members.add_prefix(prefix),
                    Err(error) => fault(first, error),
                }
            } else {
                match item::domain_parts(first) {
                    Ok((below, name)) => domains.push(below, name, hasher),
                    Err(error) => fault(first, error),
                }
            }
            continue;
        };
        if first.parse::<IpAddr>().is_err() {
            findings
                .error(
                    code::UNEXPECTED,
                    Site { source, span: span(second) },
                    format!("{} is a second item on this line", quoted(second)),
                )
                .help("one item a line, or an address and its names as in a hosts file");
            continue;
        }
        for name in std::iter::once(second).chain(words) {
            // Large hosts files have `0.0.0.0 0.0.0.0` in them: an address that is called
            // by itself has no name.
            if name == first {
                continue;
            }
            match item::domain_parts(name) {
                Ok((below, name)) => domains.push(below, name, hasher),
                Err(error) => fault(name, error),
            }
        }
    }
    members.normalise();
    members.put_domains(domains);
    members
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::diagnostic::Sources;

    #[test]
    fn intervals() {
        for (name, given, want) in [
            ("empty", vec![], vec![]),
            ("overlap", vec![(5, 9), (1, 6)], vec![(1, 9)]),
            ("touch", vec![(1, 2), (3, 4)], vec![(1, 4)]),
            ("apart", vec![(1, 2), (4, 5)], vec![(1, 2), (4, 5)]),
            ("inside", vec![(1, 9), (2, 3), (12, 12)], vec![(1, 9), (12, 12)]),
            ("to the end", vec![(9, u32::MAX), (u32::MAX, u32::MAX)], vec![(9, u32::MAX)]),
        ] {
            let mut intervals: Vec<Interval<u32>> = given;
            let kept = joined(&mut intervals);
            intervals.truncate(kept);
            assert_eq!(intervals, want, "{name}");
        }
        let outer: [Interval<u32>; 2] = [(1, 5), (10, 20)];
        for (inner, within, apart) in [
            (vec![], true, true),
            (vec![(1, 5)], true, false),
            (vec![(2, 3), (10, 20)], true, false),
            (vec![(4, 6)], false, false),
            (vec![(6, 9)], false, true),
            (vec![(0, 0), (30, 40)], false, true),
            (vec![(0, 30)], false, false),
        ] {
            assert_eq!(contains(&outer, &inner), within, "{inner:?}");
            assert_eq!(disjoint(&outer, &inner), apart, "{inner:?}");
        }
    }

    #[test]
    fn lists() {
        let long = format!("{}\n10.0.0.1", "x".repeat(1_000_000));
        for (name, text, addresses, domains, errors) in [
            ("empty", "", 0, 0, 0),
            ("addresses", "10.0.0.0/8\n# c\n\n192.0.2.1 # c\r\nfd00::/8\n", 3, 0, 0),
            ("domains", "ads.example\n*.tracker.example\n", 0, 2, 0),
            ("hosts", "0.0.0.0 a.example b.example\n::1 localhost\n", 0, 3, 0),
            ("hosts by themselves", "0.0.0.0 0.0.0.0 a.example\n0.0.0.0 10.0.0.1\n", 0, 1, 1),
            ("domains twice", "a.example\nA.Example.\n*.a.example\n", 0, 2, 0),
            ("two items", "a.example b.example\n", 0, 0, 1),
            ("host bits", "10.0.0.1/8\n10.0.0.300\n", 0, 0, 2),
            ("byte order mark", "\u{feff}10.0.0.1", 1, 0, 0),
            ("NUL", "\0\n10.0.0.1", 1, 0, 1),
            ("megabyte word", &long, 1, 0, 1),
        ] {
            let mut findings = Findings::new();
            let items = read_list(text, SourceId(0), &NameHasher::new(1), &mut findings);
            let got = (items.len(), items.domain_count());
            assert_eq!(got, (addresses, domains), "{name}");
            let found = findings.into_diagnostics(&Sources::default()).len();
            assert_eq!(found, errors, "{name}");
        }
    }
}
