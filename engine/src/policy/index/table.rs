//! From a value of one dimension to its class.

use std::net::IpAddr;

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

use super::super::domains::{Domains, NameHasher, NameMap, Pair};
use super::super::set::{Interval, Key, Members, Unit};
use super::bits::{Bits, ClassId, EMPTY};
use super::{Dimension, Row, TooLarge};

/// The places of the rows that each list of a dimension stands in, one list's behind
/// the other's, in their order.
#[derive(Debug)]
pub(super) struct UnitRows {
    places: Vec<u32>,
    /// Where the part of each list ends.
    ends: Vec<u32>,
}

impl UnitRows {
    /// `places` are the numbers of rows and their places.
    pub(super) fn new(
        dimension: Dimension,
        units: usize,
        rows: &[Row],
        places: &[(usize, u32)],
    ) -> Self {
        // Counted one list further on, summed up to where each begins, and moved on to
        // where it ends by filling it.
        let mut ends = vec![0; units + 1];
        for term in rows.iter().filter_map(|row| row.term(dimension)) {
            ends[term.unit as usize + 1] += 1;
        }
        for unit in 0..units {
            ends[unit + 1] += ends[unit];
        }
        let mut sorted = vec![0; ends[units] as usize];
        for (row, place) in places {
            if let Some(term) = rows[*row].term(dimension) {
                let next = &mut ends[term.unit as usize];
                sorted[*next as usize] = *place;
                *next += 1;
            }
        }
        Self { places: sorted, ends }
    }

    fn of(&self, unit: u32) -> &[u32] {
        let start = unit.checked_sub(1).map_or(0, |before| self.ends[before as usize]);
        &self.places[start as usize..self.ends[unit as usize] as usize]
    }
}

/// For each list the class of its lowest value, and whether that is one row's alone.
type Lowest = Vec<(ClassId, bool)>;

/// A dimension: from a value to a class.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) bits: Bits,
    pub(super) narrow: Map<u32>,
    pub(super) wide: Map<u128>,
    /// The class of the unknown.
    pub(super) unknown: ClassId,
    /// Every row that some value of the family satisfies.
    pub(super) possible_narrow: ClassId,
    pub(super) possible_wide: ClassId,
}

impl Table {
    /// With the class of the lowest value of each list, and whether it is one row's alone.
    pub(super) fn build(units: &[Unit], rows: &UnitRows) -> Result<(Self, Lowest), TooLarge> {
        let mut table = Self::default();
        let mut seen =
            Seen { classes: HashMap::default(), lowest: vec![(EMPTY, false); units.len()] };
        seen.classes.reserve(units.len());
        seen.classes.insert(0, EMPTY);
        table.narrow = table.sweep(&mut seen, units, rows, |members| &members.narrow)?;
        table.wide = table.sweep(&mut seen, units, rows, |members| &members.wide)?;
        table.unknown = table.union(units, rows, |members| members.unknown)?;
        table.possible_narrow =
            table.union(units, rows, |members| !members.narrow.is_empty() || members.unknown)?;
        table.possible_wide = table.union(units, rows, |members| !members.wide.is_empty())?;
        Ok((table, seen.lowest))
    }

    /// The dimension of names.
    pub(super) fn of_names(
        units: &[Unit],
        rows: &UnitRows,
        hasher: &NameHasher,
    ) -> Result<(Self, NameMap, Lowest), TooLarge> {
        let mut table = Self::default();
        let none = Domains::default();
        let lists: Vec<&Domains> =
            units.iter().map(|unit| unit.members().domains.as_deref().unwrap_or(&none)).collect();
        let mut lowest = vec![(EMPTY, false); units.len()];
        let mut classes: HashMap<u128, ClassId, FixedState> = HashMap::default();
        classes.insert(0, EMPTY);
        // Of each class, the sum of the keys of the lists that hold, and their number.
        let mut sums: HashMap<ClassId, (u128, usize), FixedState> = HashMap::default();
        sums.insert(EMPTY, (0, 0));
        // Of each domain, the class of the names below it.
        let mut below = vec![EMPTY; lists.iter().map(|list| list.len()).sum()];
        let mut toggled: Vec<u32> = Vec::new();
        let names = NameMap::build(&lists, hasher, |node| {
            let mut class = node.parent.map_or(EMPTY, |parent| below[parent]);
            let (mut sum, mut holding) = sums.get(&class).copied().unwrap_or_default();
            let mut with = |all: bool| -> Result<ClassId, TooLarge> {
                toggled.clear();
                for (unit, _) in node.lists().filter(|(_, below)| *below == all) {
                    sum = sum.wrapping_add(unit_key(unit));
                    holding += 1;
                    toggled.extend_from_slice(rows.of(unit));
                }
                class = match classes.entry(sum) {
                    Entry::Occupied(class) => *class.get(),
                    Entry::Vacant(place) => {
                        let class = table.bits.toggled(class, &mut toggled)?;
                        sums.insert(class, (sum, holding));
                        *place.insert(class)
                    }
                };
                Ok(class)
            };
            below[node.place] = with(true)?;
            let pair = Pair { below: below[node.place], exact: with(false)? };
            for (unit, _) in node.lists() {
                if lowest[unit as usize].0 == EMPTY {
                    let alone = holding == 1 && rows.of(unit).len() == 1;
                    lowest[unit as usize] = (pair.exact, alone);
                }
            }
            Ok(pair)
        })?;
        table.unknown = table.union(units, rows, |members| members.unknown)?;
        // What has no domain and does not say `unknown-name` is not a list of names.
        table.possible_narrow = table.union(units, rows, |members| {
            members.unknown || members.domains.as_deref().is_some_and(|list| !list.is_empty())
        })?;
        Ok((table, names, lowest))
    }

    /// Walks the ends of all lists in order and notes where the class changes. A class
    /// is known by the sum of the keys of the lists that hold, so a set of a million
    /// intervals costs two classes and no comparison of bit vectors.
    pub(super) fn sweep<K: Key>(
        &mut self,
        seen: &mut Seen,
        units: &[Unit],
        rows: &UnitRows,
        intervals: impl Fn(&Members) -> &[Interval<K>],
    ) -> Result<Map<K>, TooLarge> {
        let count = units.iter().map(|unit| intervals(unit.members()).len()).sum::<usize>();
        let mut ends: Vec<(K, u32)> = Vec::with_capacity(2 * count);
        for (number, unit) in (0..).zip(units) {
            for (first, last) in intervals(unit.members()) {
                ends.push((*first, number));
                // What reaches the last key never ends.
                ends.extend(last.next().map(|end| (end, number)));
            }
        }
        // Each list is sorted already, which a merging sort makes use of.
        ends.sort();
        let mut held = vec![false; units.len()];
        let mut holding: usize = 0;
        let mut sum: u128 = 0;
        let mut class = EMPTY;
        let mut toggled: Vec<u32> = Vec::new();
        let mut map = Map::with_capacity(ends.len());
        for ends in ends.chunk_by(|a, b| a.0 == b.0) {
            for (_, unit) in ends {
                let held = &mut held[*unit as usize];
                *held = !*held;
                let key = unit_key(*unit);
                if *held {
                    holding += 1;
                    sum = sum.wrapping_add(key);
                } else {
                    holding -= 1;
                    sum = sum.wrapping_sub(key);
                }
            }
            class = match seen.classes.entry(sum) {
                Entry::Occupied(class) => *class.get(),
                Entry::Vacant(place) => {
                    toggled.clear();
                    for (_, unit) in ends {
                        toggled.extend_from_slice(rows.of(*unit));
                    }
                    *place.insert(self.bits.toggled(class, &mut toggled)?)
                }
            };
            for (_, unit) in ends {
                let lowest = &mut seen.lowest[*unit as usize];
                if lowest.0 == EMPTY {
                    *lowest = (class, holding == 1 && rows.of(*unit).len() == 1);
                }
            }
            map.push(ends[0].0, class);
        }
        map.finish();
        Ok(map)
    }

    pub(super) fn union(
        &mut self,
        units: &[Unit],
        rows: &UnitRows,
        of: impl Fn(&Members) -> bool,
    ) -> Result<ClassId, TooLarge> {
        let mut all: Vec<u32> = Vec::new();
        for (number, _) in (0..).zip(units).filter(|(_, unit)| of(unit.members())) {
            all.extend_from_slice(rows.of(number));
        }
        if all.is_empty() { Ok(EMPTY) } else { self.bits.toggled(EMPTY, &mut all) }
    }
}

/// What a sweep knows.
#[derive(Debug)]
pub(super) struct Seen {
    /// The classes by the sum of the keys of their lists.
    classes: HashMap<u128, ClassId, FixedState>,
    /// For each list the class of its lowest value, and whether it is one row's alone.
    lowest: Vec<(ClassId, bool)>,
}

/// A 128-bit key of a list; that two sets of lists have the same sum of keys does not
/// happen by chance (two rounds of splitmix64).
fn unit_key(unit: u32) -> u128 {
    let mix = |seed: u64| {
        let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let low = mix(u64::from(unit) + 1);
    u128::from(mix(low ^ 0x5851_f42d_4c95_7f2d)) << 64 | u128::from(low)
}

/// From a key to the class of the interval it lies in.
#[derive(Debug)]
pub(super) struct Map<K> {
    /// Where a class begins; before the first nothing holds.
    pub(super) starts: Vec<K>,
    pub(super) classes: Vec<ClassId>,
    /// For the upper bits of a key: how many starts lie below them. As long as the
    /// map, up to 2^16, so that a search is left with a handful.
    pub(super) top: Vec<u32>,
    pub(super) shift: u32,
}

impl<K> Default for Map<K> {
    fn default() -> Self {
        Self { starts: Vec::new(), classes: Vec::new(), top: Vec::new(), shift: 0 }
    }
}

impl<K: Key> Map<K> {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self {
            starts: Vec::with_capacity(capacity),
            classes: Vec::with_capacity(capacity),
            ..Self::default()
        }
    }

    pub(super) fn push(&mut self, start: K, class: ClassId) {
        if self.classes.last().copied().unwrap_or(EMPTY) != class {
            self.starts.push(start);
            self.classes.push(class);
        }
    }

    pub(super) fn finish(&mut self) {
        self.starts.shrink_to_fit();
        self.classes.shrink_to_fit();
        let bits = (self.starts.len() + 1).ilog2().min(16);
        self.shift = K::BITS - bits;
        let mut at = 0;
        self.top = Vec::with_capacity((1 << bits) + 1);
        for bucket in 0..=1_usize << bits {
            while self.starts.get(at).is_some_and(|start| start.top(self.shift) < bucket) {
                at += 1;
            }
            self.top.push(u32::try_from(at).unwrap_or(u32::MAX));
        }
    }

    #[inline]
    pub(super) fn class(&self, key: K) -> ClassId {
        if self.starts.is_empty() {
            return EMPTY;
        }
        let bucket = key.top(self.shift);
        let (low, high) = (self.top[bucket] as usize, self.top[bucket + 1] as usize);
        let at = low + self.starts[low..high].partition_point(|start| *start <= key);
        if at == 0 { EMPTY } else { self.classes[at - 1] }
    }
}

pub(super) fn pairs<K: Key>(
    a: &Map<K>,
    b: &Map<K>,
    address: impl Fn(K) -> IpAddr,
) -> Vec<(IpAddr, (ClassId, ClassId))> {
    let mut seen: HashMap<(ClassId, ClassId), (), FixedState> = HashMap::default();
    let mut pairs = Vec::new();
    let mut keys = vec![K::MIN];
    keys.extend_from_slice(&a.starts);
    keys.extend_from_slice(&b.starts);
    keys.sort_unstable();
    keys.dedup();
    for key in keys {
        let pair = (a.class(key), b.class(key));
        if seen.insert(pair, ()).is_none() {
            pairs.push((address(key), pair));
        }
    }
    pairs
}
