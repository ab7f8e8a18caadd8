//! Which rule decides a flow, found without walking rules or sets.
//!
//! This is the bit vector scheme of Lakshman and Stiliadis with aggregated blocks.
//! Each dimension of a flow (client, source, destination, port, way out…) maps its
//! value to a *class*: the bit vector of the rows whose list holds that value. One
//! lookup a dimension, an AND over the classes, and the lowest common bit is the
//! rule. Three things keep this small and quick at 100,000 rules and a million
//! prefixes:
//!
//! - A bit vector is a list of *chunks* of 64 words; an empty chunk is not stored, a
//!   word that is zero is not stored, and a summary word says which are there. The
//!   AND reads summaries first. Two classes that differ in one rule share all other
//!   chunks, and equal classes are one: a million intervals of one set are two.
//! - Rows are numbered by *group*: the dimensions that they constrain, and how. So a
//!   class holds only the rows that ask about its dimension, never those that do not
//!   care, and no AND runs over rows that match for lack of a clause.
//! - A negated list has the same class as the plain one and is subtracted.
//! - A name's class is that of the longest listed domain that it is or is below; classes of
//!   the domains above are in it already (`domains`).
//!
//! A fact that nobody asked yet counts as one that could be anything: when the lowest
//! rule that could match does not ask about it, the answer stands without the fact.

mod bits;
mod table;

use std::net::IpAddr;
use std::ops::Range;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::domains::{NameHasher, NameMap};
use super::set::Unit;
use crate::{DeviceName, Fact, Facts, Protocol, ResolverSet, WayId};
use bits::{CHUNK_ROWS, ClassId, EMPTY, Heads, set_bits};
use table::{Table, UnitRows, pairs};

/// What a flow is looked up by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(usize)]
pub(super) enum Dimension {
    Client,
    Source,
    EgressAddress,
    EgressDevice,
    Destination,
    Name,
    Resolver,
    Port,
    Uid,
    Cgroup,
    Via,
}

impl Dimension {
    pub(super) const ALL: [Self; DIMENSIONS] = [
        Self::Client,
        Self::Source,
        Self::EgressAddress,
        Self::EgressDevice,
        Self::Destination,
        Self::Name,
        Self::Resolver,
        Self::Port,
        Self::Uid,
        Self::Cgroup,
        Self::Via,
    ];

    pub(super) const fn mask(self) -> Mask {
        1 << self as usize
    }
}

pub(super) const DIMENSIONS: usize = 11;

/// A set of dimensions.
pub(super) type Mask = u16;

/// What the flow's name tells.
pub(super) const NAME: Mask = Dimension::Name.mask();

/// What the owner's answer tells.
pub(super) const OWNER: Mask = Dimension::Uid.mask() | Dimension::Cgroup.mask();

/// A flow as the index sees it: every fact may be unknown or not asked.
#[derive(Debug, Clone)]
pub(super) struct Question<'f> {
    pub(super) protocol: Protocol,
    pub(super) client: Fact<IpAddr>,
    pub(super) source: Fact<IpAddr>,
    pub(super) egress_address: Fact<IpAddr>,
    pub(super) egress_device: Fact<DeviceName>,
    pub(super) destination: Fact<IpAddr>,
    /// The IP version, which is known even where no address is.
    pub(super) v6: bool,
    pub(super) name: Fact<&'f str>,
    pub(super) resolvers: Fact<ResolverSet>,
    pub(super) port: Fact<u16>,
    pub(super) uid: Fact<u32>,
    pub(super) cgroup: Fact<&'f str>,
    pub(super) via: Fact<WayId>,
}

impl<'f> Question<'f> {
    pub(super) fn of(facts: &'f Facts) -> Self {
        let destination = facts.destination();
        let (egress_address, egress_device) = match &facts.egress {
            Fact::Unasked => (Fact::Unasked, Fact::Unasked),
            Fact::Unknown => (Fact::Unknown, Fact::Unknown),
            Fact::Known(egress) => (Fact::Known(egress.address), Fact::Known(egress.device)),
        };
        let (uid, cgroup) = match &facts.owner {
            Fact::Unasked => (Fact::Unasked, Fact::Unasked),
            Fact::Unknown => (Fact::Unknown, Fact::Unknown),
            Fact::Known(owner) => {
                (Fact::Known(owner.uid), owner.cgroup.as_deref().map_or(Fact::Unknown, Fact::Known))
            }
        };
        let port = match facts.protocol {
            Protocol::Icmp => Fact::Unknown,
            Protocol::Tcp | Protocol::Udp => Fact::Known(destination.port()),
        };
        let name = match &facts.name {
            Fact::Unasked => Fact::Unasked,
            Fact::Unknown => Fact::Unknown,
            Fact::Known(name) => Fact::Known(&*name.text),
        };
        let resolvers =
            if facts.resolvers.is_empty() { Fact::Unknown } else { Fact::Known(facts.resolvers) };
        Self {
            protocol: facts.protocol,
            client: Fact::Known(facts.client().ip()),
            source: facts.source(),
            egress_address,
            egress_device,
            destination: Fact::Known(destination.ip()),
            v6: destination.is_ipv6(),
            name,
            resolvers,
            port,
            uid,
            cgroup,
            via: facts.via.map_or(Fact::Unknown, Fact::Known),
        }
    }
}

/// A rule as a product of lists. A rule with a list over two dimensions (`egress`, or `to`
/// with addresses and domains) has two rows; with two such lists four.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub(super) rule: u32,
    pub(super) protocol: Option<Protocol>,
    /// The dimensions in which a list must hold, and in which it must not.
    positive: Mask,
    negative: Mask,
    /// The list of each of these.
    units: [u32; DIMENSIONS],
}

impl Row {
    /// A row that holds for every flow.
    pub(super) fn new(rule: u32) -> Self {
        Self { rule, protocol: None, positive: 0, negative: 0, units: [0; DIMENSIONS] }
    }

    /// Adds a list; one dimension has at most one.
    pub(super) fn add(&mut self, term: Term) {
        *(if term.not { &mut self.negative } else { &mut self.positive }) |= term.dimension.mask();
        self.units[term.dimension as usize] = term.unit;
    }

    pub(super) fn term(&self, dimension: Dimension) -> Option<Term> {
        let not = self.negative & dimension.mask() != 0;
        let any = not || self.positive & dimension.mask() != 0;
        any.then(|| Term { dimension, not, unit: self.units[dimension as usize] })
    }

    pub(super) fn terms(&self) -> impl Iterator<Item = Term> {
        dimensions(self.positive | self.negative).filter_map(|d| self.term(Dimension::ALL[d]))
    }
}

/// One list of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Term {
    pub(super) dimension: Dimension,
    pub(super) not: bool,
    /// Which list of the dimension.
    pub(super) unit: u32,
}

/// For each list of each dimension the class of the lowest value in it, and whether
/// only one row holds for that value.
pub(super) type Samples = [Vec<(ClassId, bool)>; DIMENSIONS];

/// A value of a dimension, out of a list over it or out of what the list leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sample {
    /// With whether only the list's own row holds for it.
    Class(ClassId, bool),
    Narrow(u32),
    Wide(u128),
    /// In no list.
    Unlisted,
    Unknown,
}

/// The index would take more memory than a policy may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooLarge;

/// The rows of a policy, and for each dimension the way from a value to them.
#[derive(Debug, Default)]
pub(super) struct Index {
    groups: Vec<Group>,
    /// The first entry of a chunk's rows in `rules`, and one more at the end.
    chunks: Vec<u32>,
    /// The rule of each row.
    rules: Vec<u32>,
    /// The dimensions that any row asks about.
    used: Mask,
    tables: [Table; DIMENSIONS],
    names: NameMap,
    devices: HashMap<DeviceName, u32, FixedState>,
    cgroups: HashMap<Box<str>, u32, FixedState>,
}

/// Rows that ask about the same dimensions in the same way.
#[derive(Debug)]
struct Group {
    first_rule: u32,
    protocol: Option<Protocol>,
    positive: Mask,
    negative: Mask,
    chunks: Range<u32>,
}

/// The class of a flow in each dimension.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answers {
    protocol: Protocol,
    classes: [ClassId; DIMENSIONS],
    /// Resolvers beside the one in `classes`: a flow may have several.
    more: ResolverSet,
    unknown: Mask,
    unasked: Mask,
    /// Where no row but the sampled one has a list that holds.
    alone: Mask,
}

impl Answers {
    pub(super) fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Whether nobody asked for one of these facts.
    pub(super) fn unasked(&self, mask: Mask) -> bool {
        mask & self.unasked != 0
    }

    /// Whether one of these facts is unknown.
    pub(super) fn unknown(&self, mask: Mask) -> bool {
        mask & self.unknown != 0
    }
}

/// The rule that decides, or would if the facts that it waits for were such.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lowest {
    pub(super) rule: u32,
    /// The facts that it asks about and nobody asked for.
    pub(super) waits_for: Mask,
}

impl Index {
    /// Rows in the order of their rules; for each dimension its lists.
    pub(super) fn build(
        rows: &[Row],
        units: &[Vec<Unit>; DIMENSIONS],
        hasher: &NameHasher,
        devices: HashMap<DeviceName, u32, FixedState>,
        cgroups: HashMap<Box<str>, u32, FixedState>,
    ) -> Result<(Self, Samples), TooLarge> {
        let mut index = Self { devices, cgroups, ..Self::default() };
        let mut samples = Samples::default();
        let places = index.number(rows)?;
        for dimension in Dimension::ALL {
            let units = &units[dimension as usize];
            if !units.is_empty() {
                index.used |= dimension.mask();
                let rows = UnitRows::new(dimension, units.len(), rows, &places);
                let (table, lowest) = if dimension == Dimension::Name {
                    let (table, names, lowest) = Table::of_names(units, &rows, hasher)?;
                    index.names = names;
                    (table, lowest)
                } else {
                    Table::build(units, &rows)?
                };
                index.tables[dimension as usize] = table;
                samples[dimension as usize] = lowest;
            }
        }
        Ok((index, samples))
    }

    /// Gives each row its place: group by group, each group at the start of a chunk.
    /// Returns which row is at which place, in the order of the places.
    fn number(&mut self, rows: &[Row]) -> Result<Vec<(usize, u32)>, TooLarge> {
        type Signature = (Option<Protocol>, Mask, Mask);
        let mut known: HashMap<Signature, usize, FixedState> = HashMap::default();
        let mut groups: Vec<(Signature, Vec<usize>)> = Vec::new();
        for (at, row) in rows.iter().enumerate() {
            let signature = (row.protocol, row.positive, row.negative);
            let group = *known.entry(signature).or_insert_with(|| {
                groups.push((signature, Vec::new()));
                groups.len() - 1
            });
            groups[group].1.push(at);
        }
        let mut places = Vec::with_capacity(rows.len());
        for ((protocol, positive, negative), members) in groups {
            let first_chunk = u32::try_from(self.chunks.len()).map_err(|_| TooLarge)?;
            let first_rule = members.first().map_or(0, |at| rows[*at].rule);
            for (nth, at) in members.iter().enumerate() {
                let offset = nth % CHUNK_ROWS;
                if offset == 0 {
                    self.chunks.push(u32::try_from(self.rules.len()).map_err(|_| TooLarge)?);
                }
                let chunk = u32::try_from(self.chunks.len() - 1).map_err(|_| TooLarge)?;
                let place = chunk.checked_mul(CHUNK_ROWS as u32).ok_or(TooLarge)? + offset as u32;
                self.rules.push(rows[*at].rule);
                places.push((*at, place));
            }
            let last_chunk = u32::try_from(self.chunks.len()).map_err(|_| TooLarge)?;
            let chunks = first_chunk..last_chunk;
            self.groups.push(Group { first_rule, protocol, positive, negative, chunks });
        }
        self.chunks.push(u32::try_from(self.rules.len()).map_err(|_| TooLarge)?);
        Ok(places)
    }

    /// Whether any rule asks about one of these dimensions.
    pub(super) fn uses(&self, mask: Mask) -> bool {
        self.used & mask != 0
    }

    /// One lookup a dimension.
    pub(super) fn answers(&self, question: &Question<'_>) -> Answers {
        let mut answers = Answers {
            protocol: question.protocol,
            classes: [EMPTY; DIMENSIONS],
            more: ResolverSet::EMPTY,
            unknown: 0,
            unasked: 0,
            alone: 0,
        };
        let v6 = question.v6;
        let known = |dimension, address: IpAddr| self.address(dimension, address);
        for (dimension, fact) in [
            (Dimension::Client, &question.client),
            (Dimension::Source, &question.source),
            (Dimension::EgressAddress, &question.egress_address),
            (Dimension::Destination, &question.destination),
        ] {
            self.answer(&mut answers, dimension, fact, v6, |a| known(dimension, *a));
        }
        let dimension = Dimension::Name;
        self.answer(&mut answers, dimension, &question.name, v6, |name| {
            self.names.find(name).unwrap_or(EMPTY)
        });
        let number = |dimension: Dimension, n| self.tables[dimension as usize].narrow.class(n);
        let dimension = Dimension::EgressDevice;
        self.answer(&mut answers, dimension, &question.egress_device, v6, |device| {
            self.devices.get(device).map_or(EMPTY, |n| number(dimension, *n))
        });
        let dimension = Dimension::Port;
        self.answer(&mut answers, dimension, &question.port, v6, |port| {
            number(dimension, u32::from(*port))
        });
        let dimension = Dimension::Resolver;
        let mut more = ResolverSet::EMPTY;
        self.answer(&mut answers, dimension, &question.resolvers, v6, |resolvers| {
            let Some(first) = resolvers.iter().next() else { return EMPTY };
            more = ResolverSet::from_bits(resolvers.bits() & (resolvers.bits() - 1));
            number(dimension, u32::from(first.number()))
        });
        answers.more = more;
        let dimension = Dimension::Uid;
        self.answer(&mut answers, dimension, &question.uid, v6, |n| number(dimension, *n));
        let dimension = Dimension::Cgroup;
        self.answer(&mut answers, dimension, &question.cgroup, v6, |path| {
            self.cgroup(path).map_or(EMPTY, |n| number(dimension, n))
        });
        let dimension = Dimension::Via;
        self.answer(&mut answers, dimension, &question.via, v6, |way| {
            number(dimension, u32::from(way.number()))
        });
        answers
    }

    #[inline]
    fn answer<T>(
        &self,
        answers: &mut Answers,
        dimension: Dimension,
        fact: &Fact<T>,
        v6: bool,
        class: impl FnOnce(&T) -> ClassId,
    ) {
        if self.used & dimension.mask() == 0 {
            return;
        }
        let table = &self.tables[dimension as usize];
        answers.classes[dimension as usize] = match fact {
            Fact::Known(value) => class(value),
            Fact::Unknown => {
                answers.unknown |= dimension.mask();
                table.unknown
            }
            Fact::Unasked => {
                answers.unasked |= dimension.mask();
                // A flow's own addresses are of its destination's family.
                let by_address = matches!(dimension, Dimension::Source | Dimension::EgressAddress);
                if by_address && v6 { table.possible_wide } else { table.possible_narrow }
            }
        };
    }

    fn address(&self, dimension: Dimension, address: IpAddr) -> ClassId {
        let table = &self.tables[dimension as usize];
        match address {
            IpAddr::V4(v4) => table.narrow.class(v4.into()),
            IpAddr::V6(v6) => table.wide.class(v6.into()),
        }
    }

    /// The deepest path of the policy that `path` is or lies below.
    fn cgroup(&self, path: &str) -> Option<u32> {
        let mut path = path.strip_suffix('/').unwrap_or(path);
        loop {
            if let Some(number) = self.cgroups.get(path) {
                return Some(*number);
            }
            path = &path[..path.rfind('/')?];
        }
    }

    /// The lowest rule that matches, facts that nobody asked taken as fitting.
    pub(super) fn lowest(&self, answers: &Answers) -> Option<Lowest> {
        let mut best: Option<Lowest> = None;
        for group in &self.groups {
            let limit = best.map_or(u32::MAX, |best| best.rule);
            if group.first_rule >= limit {
                break;
            }
            if !group.may_match(answers) {
                continue;
            }
            if let Some(rule) = self.lowest_in(group, answers, limit) {
                let waits_for = group.waits_for(answers);
                best = Some(Lowest { rule, waits_for });
            }
        }
        best
    }

    /// The lowest rule that matches whatever the facts are that nobody asked for.
    pub(super) fn lowest_sure(&self, answers: &Answers) -> Option<u32> {
        let mut best = None;
        for group in &self.groups {
            let limit = best.unwrap_or(u32::MAX);
            if group.first_rule >= limit {
                break;
            }
            if group.waits_for(answers) == 0 && group.may_match(answers) {
                best = self.lowest_in(group, answers, limit).or(best);
            }
        }
        best
    }

    /// Whether `each` is true of every rule below `limit` that may match, by what facts that
    /// nobody asked for will turn out to be.
    pub(super) fn all_waiting(
        &self,
        answers: &Answers,
        limit: u32,
        mut each: impl FnMut(u32) -> bool,
    ) -> bool {
        let mut all = true;
        for group in &self.groups {
            if group.first_rule >= limit || !all {
                break;
            }
            if group.waits_for(answers) == 0 || !group.may_match(answers) {
                continue;
            }
            let mut check = |answers: &Answers| {
                self.walk(group, answers, limit, |rule| {
                    all &= each(rule);
                    all
                });
            };
            check(answers);
            if group.positive & Dimension::Resolver.mask() != 0 {
                for class in self.more(answers) {
                    let mut other = *answers;
                    other.classes[Dimension::Resolver as usize] = class;
                    check(&other);
                }
            }
        }
        all
    }

    /// The answers with the name unknown.
    pub(super) fn without_name(&self, answers: &Answers) -> Answers {
        let mut answers = *answers;
        if self.uses(NAME) {
            let table = &self.tables[Dimension::Name as usize];
            answers.classes[Dimension::Name as usize] = table.unknown;
            answers.unasked &= !NAME;
            answers.unknown |= NAME;
        }
        answers
    }

    /// The lowest rule of a group below `limit`.
    fn lowest_in(&self, group: &Group, answers: &Answers, limit: u32) -> Option<u32> {
        let mut found = self.first_in(group, answers, limit);
        if group.positive & Dimension::Resolver.mask() != 0 {
            // One that holds is enough, so each is as good as a flow of its own.
            for class in self.more(answers) {
                let mut other = *answers;
                other.classes[Dimension::Resolver as usize] = class;
                found = self.first_in(group, &other, found.unwrap_or(limit)).or(found);
            }
        }
        found
    }

    /// The classes of the resolvers beside the first.
    fn more(&self, answers: &Answers) -> impl Iterator<Item = ClassId> {
        let table = &self.tables[Dimension::Resolver as usize];
        answers.more.iter().map(|id| table.narrow.class(u32::from(id.number())))
    }

    /// Whether a list over `dimension` in the row at this place has the flow's value, or one
    /// of them.
    fn bits(&self, dimension: Dimension, answers: &Answers, chunk: u32, word: u32) -> u64 {
        let bits = &self.tables[dimension as usize].bits;
        let first = bits.word(answers.classes[dimension as usize], chunk, word);
        if dimension != Dimension::Resolver {
            return first;
        }
        self.more(answers).fold(first, |all, class| all | bits.word(class, chunk, word))
    }

    fn first_in(&self, group: &Group, answers: &Answers, limit: u32) -> Option<u32> {
        let mut found = None;
        self.walk(group, answers, limit, |rule| {
            found = Some(rule);
            false
        });
        found
    }

    /// Every rule below `limit` that matches, in the order of the groups, until
    /// `each` returns `false`; of a sample, every other rule than its own.
    pub(super) fn matching(
        &self,
        answers: &Answers,
        limit: u32,
        mut each: impl FnMut(u32) -> bool,
    ) {
        for group in &self.groups {
            if group.first_rule >= limit {
                break;
            }
            let mut go_on = true;
            if group.positive & answers.alone == 0 && group.may_match(answers) {
                self.walk(group, answers, limit, |rule| {
                    go_on = each(rule);
                    go_on
                });
            }
            if !go_on {
                break;
            }
        }
    }

    /// Gives the rules of one group to `each`, lowest first, until it returns `false`.
    #[inline]
    fn walk(
        &self,
        group: &Group,
        answers: &Answers,
        limit: u32,
        mut each: impl FnMut(u32) -> bool,
    ) {
        let mut heads = Heads { lists: [&[]; DIMENSIONS], words: [&[]; DIMENSIONS], len: 0 };
        for dimension in dimensions(group.positive) {
            let bits = &self.tables[dimension].bits;
            let list = bits.entries(answers.classes[dimension]);
            let list = &list[list.partition_point(|entry| entry.chunk < group.chunks.start)..];
            if list.is_empty() {
                return;
            }
            heads.lists[heads.len] = list;
            heads.words[heads.len] = &bits.words;
            heads.len += 1;
        }
        let excluding = group.negative & !answers.unasked;
        let mut next = group.chunks.start;
        while let Some(chunk) = heads.common(next, group.chunks.end) {
            next = chunk + 1;
            let rows = self.rows(chunk);
            if rows.first().is_none_or(|rule| *rule >= limit) {
                return;
            }
            let mut summary = heads.summary(rows.len());
            while summary != 0 {
                let word = summary.trailing_zeros();
                summary &= summary - 1;
                let mut common = heads.word(word, rows.len());
                for dimension in dimensions(excluding) {
                    common &= !self.bits(Dimension::ALL[dimension], answers, chunk, word);
                }
                while common != 0 {
                    let rule = rows[(word * 64 + common.trailing_zeros()) as usize];
                    common &= common - 1;
                    if rule >= limit || !each(rule) {
                        return;
                    }
                }
            }
        }
    }

    fn rows(&self, chunk: u32) -> &[u32] {
        let start = self.chunks[chunk as usize] as usize;
        let end = self.chunks[chunk as usize + 1] as usize;
        &self.rules[start..end]
    }

    /// Where each rule's rows are: `(rule, place)`, sorted.
    pub(super) fn places(&self) -> Vec<(u32, u32)> {
        let mut places = Vec::with_capacity(self.rules.len());
        for chunk in 0..self.chunks.len().saturating_sub(1) as u32 {
            let first = chunk * CHUNK_ROWS as u32;
            places.extend(self.rows(chunk).iter().zip(first..).map(|(rule, at)| (*rule, at)));
        }
        places.sort_unstable();
        places
    }

    /// Whether the list of a row in one dimension holds; `None` where the row has none.
    pub(super) fn holds(
        &self,
        place: u32,
        dimension: Dimension,
        answers: &Answers,
    ) -> Option<bool> {
        let chunk = place / CHUNK_ROWS as u32;
        let group = self.groups.iter().find(|group| group.chunks.contains(&chunk))?;
        let positive = group.positive & dimension.mask() != 0;
        if !positive && group.negative & dimension.mask() == 0 {
            return None;
        }
        if !positive && answers.unknown & dimension.mask() != 0 {
            return Some(false);
        }
        let (word, bit) = (place % CHUNK_ROWS as u32 / 64, place % 64);
        let word = self.bits(dimension, answers, chunk, word);
        Some((word >> bit & 1 == 1) == positive)
    }

    /// The answers of a flow of which only these values are known, taken from one row.
    pub(super) fn sample(
        &self,
        protocol: Option<Protocol>,
        values: impl IntoIterator<Item = (Dimension, Sample)>,
    ) -> Answers {
        let mut answers = Answers {
            // A row without a protocol is covered only by rows without one.
            protocol: protocol.unwrap_or(Protocol::Tcp),
            classes: [EMPTY; DIMENSIONS],
            more: ResolverSet::EMPTY,
            unknown: Mask::MAX,
            unasked: 0,
            alone: 0,
        };
        for (dimension, value) in values {
            let table = &self.tables[dimension as usize];
            answers.classes[dimension as usize] = match value {
                Sample::Class(class, alone) => {
                    answers.alone |= if alone { dimension.mask() } else { 0 };
                    class
                }
                Sample::Narrow(key) => table.narrow.class(key),
                Sample::Wide(key) => table.wide.class(key),
                Sample::Unlisted => EMPTY,
                Sample::Unknown => table.unknown,
            };
            if value != Sample::Unknown {
                answers.unknown &= !dimension.mask();
            }
        }
        answers
    }

    /// The answers with another source and egress address, given as classes.
    pub(super) fn with_source(answers: &Answers, (source, egress): (ClassId, ClassId)) -> Answers {
        let mut answers = *answers;
        let both = Dimension::Source.mask() | Dimension::EgressAddress.mask();
        answers.classes[Dimension::Source as usize] = source;
        answers.classes[Dimension::EgressAddress as usize] = egress;
        answers.unasked &= !both;
        answers.unknown &= !both;
        answers
    }

    /// Every pair of classes that one address can have as source and as egress
    /// address, with the lowest address that has it.
    pub(super) fn source_classes(&self, v6: bool) -> Vec<(IpAddr, (ClassId, ClassId))> {
        let source = &self.tables[Dimension::Source as usize];
        let egress = &self.tables[Dimension::EgressAddress as usize];
        if v6 {
            pairs(&source.wide, &egress.wide, |key: u128| IpAddr::V6(key.into()))
        } else {
            pairs(&source.narrow, &egress.narrow, |key: u32| IpAddr::V4(key.into()))
        }
    }

    /// Bytes of heap that lookups touch.
    #[cfg(test)]
    pub(super) fn heap_bytes(&self) -> usize {
        let tables = self.tables.iter().map(|table| {
            table.bits.heap_bytes()
                + table.narrow.starts.len() * 8
                + table.wide.starts.len() * 20
                + (table.narrow.top.len() + table.wide.top.len()) * 4
        });
        tables.sum::<usize>() + self.names.heap_bytes() + self.rules.len() * 4
    }
}

impl Group {
    /// The facts that its rules ask about and nobody asked for.
    fn waits_for(&self, answers: &Answers) -> Mask {
        (self.positive | self.negative) & answers.unasked
    }

    fn may_match(&self, answers: &Answers) -> bool {
        self.protocol.is_none_or(|protocol| protocol == answers.protocol)
            && self.negative & answers.unknown == 0
    }
}

fn dimensions(mask: Mask) -> impl Iterator<Item = usize> {
    set_bits(mask.into())
}
