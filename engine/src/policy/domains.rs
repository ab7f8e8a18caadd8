//! Lists of domains, up to millions of them, and the way from a name to what lists it.
//!
//! A name is found by the hash of each of its suffixes that ends at a label: 8 bytes a listed
//! domain and no text. The hash is keyed with a secret of the load: nobody can choose a name
//! that is taken for a listed one, and by chance one name in 10^13 is, beside a million
//! listed ones.

use std::hash::{DefaultHasher, Hash, Hasher};

use hashbrown::HashSet;
use smallvec::SmallVec;

/// Hashes names, right to left, so that one pass gives the hashes of all suffixes.
#[derive(Debug, Clone, Default)]
pub(super) struct NameHasher {
    /// SipHash (what the standard library promises: a hash that is safe against chosen
    /// input), with the secret as the first thing hashed.
    secret: DefaultHasher,
}

/// The hashes of a name's suffixes, shortest first; the last one is the name's own.
pub(super) type Suffixes = SmallVec<[u64; 8]>;

impl NameHasher {
    pub(super) fn new(secret: u128) -> Self {
        let mut hasher = DefaultHasher::new();
        hasher.write_u128(secret);
        Self { secret: hasher }
    }

    /// The hashes of the suffixes of at most `most` labels, shortest first, and whether the
    /// last one is the whole name.
    pub(super) fn suffixes(&self, name: &str, most: usize) -> (Suffixes, bool) {
        let mut hasher = self.secret.clone();
        let mut hashes = Suffixes::new();
        let mut labels = Labels::of(name);
        for label in labels.by_ref().take(most) {
            hasher.write(label.as_bytes());
            hasher.write_u8(b'.');
            hashes.push(hasher.finish());
        }
        (hashes, labels.next().is_none())
    }

    fn whole(&self, name: &str) -> u64 {
        let (hashes, _) = self.suffixes(name, usize::MAX);
        hashes.last().copied().unwrap_or_default()
    }
}

/// The labels of a name, right to left. A dot or a backslash within a label stands behind a
/// backslash (RFC 1035 section 5.1): that one ends no label.
pub(super) struct Labels<'n>(Option<&'n str>);

impl<'n> Labels<'n> {
    pub(super) fn of(name: &'n str) -> Self {
        Self(Some(name))
    }
}

impl<'n> Iterator for Labels<'n> {
    type Item = &'n str;

    fn next(&mut self) -> Option<&'n str> {
        let name = self.0.take()?;
        let mut end = name.len();
        while let Some(dot) = name.as_bytes()[..end].iter().rposition(|byte| *byte == b'.') {
            let before = name.as_bytes()[..dot].iter().rev();
            if before.take_while(|byte| **byte == b'\\').count() % 2 == 0 {
                self.0 = Some(&name[..dot]);
                return Some(&name[dot + 1..]);
            }
            end = dot;
        }
        Some(name)
    }
}

/// A list of domains.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Domains {
    /// The names, one behind the other.
    text: String,
    /// By hash once the list is normalised.
    items: Vec<Item>,
}

/// A domain in the text of its list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Item {
    hash: u64,
    /// The domain stands for all names below it, too.
    below: bool,
    labels: u8,
    length: u8,
    start: u32,
}

impl Domains {
    /// Adds a valid name, in lower case or not. A list of more than 4 GiB is cut there; no
    /// file is that large.
    pub(super) fn push(&mut self, below: bool, name: &str, hasher: &NameHasher) {
        let (Ok(start), Ok(length)) = (u32::try_from(self.text.len()), u8::try_from(name.len()))
        else {
            return;
        };
        self.text.push_str(name);
        let written = &mut self.text[start as usize..];
        written.make_ascii_lowercase();
        let labels = written.bytes().filter(|byte| *byte == b'.').count() + 1;
        let labels = u8::try_from(labels).unwrap_or(u8::MAX);
        let hash = hasher.whole(written);
        self.items.push(Item { hash, below, labels, length, start });
    }

    pub(super) fn add(&mut self, other: &Self) {
        let Ok(moved) = u32::try_from(self.text.len()) else { return };
        self.text.push_str(&other.text);
        let item = |item: &Item| {
            let start = item.start.checked_add(moved)?;
            Some(Item { start, ..*item })
        };
        self.items.extend(other.items.iter().filter_map(item));
    }

    pub(super) fn normalise(&mut self) {
        self.items.sort_unstable_by_key(|item| (item.hash, item.below));
        self.items.dedup_by_key(|item| (item.hash, item.below));
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Every domain, and whether it stands for all below it.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, bool)> {
        self.items.iter().map(|item| (self.name(item), item.below))
    }

    fn name(&self, item: &Item) -> &str {
        let start = item.start as usize;
        self.text.get(start..start + usize::from(item.length)).unwrap_or_default()
    }

    /// Whether a domain is listed as it stands; the list is normalised.
    fn lists(&self, hash: u64, below: bool) -> bool {
        self.items.binary_search_by_key(&(hash, below), |item| (item.hash, item.below)).is_ok()
    }

    /// Whether every name of `inner` is one of these; both are normalised.
    pub(super) fn contains(&self, inner: &Self, hasher: &NameHasher) -> bool {
        inner.iter().all(|(name, below)| {
            let (suffixes, _) = hasher.suffixes(name, usize::MAX);
            let whole = suffixes.last().copied().unwrap_or_default();
            suffixes.iter().any(|hash| self.lists(*hash, true))
                || (!below && self.lists(whole, false))
        })
    }

    /// Whether the two have no name in common; both are normalised.
    pub(super) fn disjoint(&self, other: &Self, hasher: &NameHasher) -> bool {
        // Two domains share names where one is the other, or one that stands for all below
        // it is above the other.
        let apart = |list: &Self, listed: &Self| {
            list.iter().all(|(name, _)| {
                let (suffixes, _) = hasher.suffixes(name, usize::MAX);
                let whole = suffixes.last().copied().unwrap_or_default();
                !suffixes.iter().any(|hash| listed.lists(*hash, true))
                    && !listed.lists(whole, false)
            })
        };
        apart(self, other) && apart(other, self)
    }
}

/// From a name to a value of the longest listed domain that it is or is below. Each domain has
/// two: for the name itself, and for those below it.
#[derive(Debug, Default)]
pub(super) struct NameMap {
    hasher: NameHasher,
    /// Of the listed domains, sorted.
    hashes: Vec<u64>,
    /// Which of the pairs each has.
    values: Vec<u32>,
    pairs: Vec<Pair>,
    /// For the upper bits of a hash: how many hashes lie below them.
    top: Vec<u32>,
    shift: u32,
    /// The labels of the longest listed domain.
    deepest: usize,
}

/// What a listed domain says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Pair {
    pub(super) exact: u32,
    pub(super) below: u32,
}

impl NameMap {
    /// `None`: neither the name nor a domain above it is listed.
    pub(super) fn find(&self, name: &str) -> Option<u32> {
        let (suffixes, is_whole) = self.hasher.suffixes(name, self.deepest);
        for (at, hash) in suffixes.iter().enumerate().rev() {
            if let Some(found) = self.place(*hash) {
                let Pair { exact, below } = self.pairs[self.values[found] as usize];
                let whole = is_whole && at + 1 == suffixes.len();
                return Some(if whole { exact } else { below });
            }
        }
        None
    }

    /// The same for the names below this one.
    pub(super) fn find_below(&self, name: &str) -> Option<u32> {
        let (suffixes, _) = self.hasher.suffixes(name, self.deepest);
        let found = suffixes.iter().rev().find_map(|hash| self.place(*hash))?;
        Some(self.pairs[self.values[found] as usize].below)
    }

    fn place(&self, hash: u64) -> Option<usize> {
        if self.hashes.is_empty() {
            return None;
        }
        let bucket = hash.checked_shr(self.shift).unwrap_or(0) as usize;
        let (low, high) = (self.top[bucket] as usize, self.top[bucket + 1] as usize);
        self.hashes[low..high].binary_search(&hash).ok().map(|at| low + at)
    }

    fn index(&mut self) {
        let bits = (self.hashes.len() + 1).ilog2().min(16);
        self.shift = u64::BITS - bits;
        let mut at = 0;
        self.top = Vec::with_capacity((1 << bits) + 1);
        for bucket in 0..=1_u64 << bits {
            let before = |hash: &u64| hash.checked_shr(self.shift).unwrap_or(0) < bucket;
            while self.hashes.get(at).is_some_and(before) {
                at += 1;
            }
            self.top.push(u32::try_from(at).unwrap_or(u32::MAX));
        }
    }

    #[cfg(test)]
    pub(super) fn heap_bytes(&self) -> usize {
        self.hashes.len() * 12 + self.pairs.len() * size_of::<Pair>() + self.top.len() * 4
    }
}

/// A domain of the lists that a map is built of, and which lists have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Listed {
    hash: u64,
    list: u32,
    /// In that list.
    item: u32,
    below: bool,
}

/// The lists that have one domain, on the way to its [`Pair`].
#[derive(Debug)]
pub(super) struct Node<'b> {
    lists: &'b [Listed],
    builder: &'b Builder<'b>,
    /// The domain above it that is listed with all below it, if there is one.
    pub(super) parent: Option<usize>,
    pub(super) place: usize,
}

#[derive(Debug)]
struct Builder<'b> {
    listed: Vec<Listed>,
    /// Where the part of each domain ends in `listed`.
    ends: Vec<u32>,
    /// Of each domain; `u32::MAX`: there is none.
    parents: Vec<u32>,
    lists: &'b [&'b Domains],
}

const NONE: u32 = u32::MAX;

impl Builder<'_> {
    fn part(&self, place: usize) -> &[Listed] {
        let start = place.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        &self.listed[start..self.ends[place] as usize]
    }

    fn item(&self, listed: &Listed) -> &Item {
        &self.lists[listed.list as usize].items[listed.item as usize]
    }

    fn parent(&self, place: usize) -> Option<usize> {
        Some(self.parents[place]).filter(|parent| *parent != NONE).map(|parent| parent as usize)
    }
}

impl Node<'_> {
    /// Each list that has the domain and none above it, once, with whether it stands for all
    /// below it there.
    pub(super) fn lists(&self) -> impl Iterator<Item = (u32, bool)> {
        let parts = self.lists.chunk_by(|a, b| a.list == b.list);
        parts.filter_map(|part| {
            let list = part[0].list;
            let below = part.iter().any(|listed| listed.below);
            (!self.is_above(list)).then_some((list, below))
        })
    }

    /// Whether the list has a domain above with all below it.
    fn is_above(&self, list: u32) -> bool {
        let mut above = self.parent;
        while let Some(place) = above {
            let part = self.builder.part(place);
            let first = part.partition_point(|listed| listed.list < list);
            let mut of_list = part[first..].iter().take_while(|listed| listed.list == list);
            if of_list.any(|listed| listed.below) {
                return true;
            }
            above = self.builder.parent(place);
        }
        false
    }
}

impl NameMap {
    /// A map of normalised lists. `value` is asked for each domain once, after those above it.
    pub(super) fn build<E>(
        lists: &[&Domains],
        hasher: &NameHasher,
        mut value: impl FnMut(&Node<'_>) -> Result<Pair, E>,
    ) -> Result<Self, E> {
        let count = lists.iter().map(|list| list.len()).sum();
        let mut listed = Vec::with_capacity(count);
        for (list, domains) in (0..).zip(lists) {
            listed.extend((0..).zip(&domains.items).map(|(item, domain)| Listed {
                hash: domain.hash,
                list,
                item,
                below: domain.below,
            }));
        }
        // Each list is sorted already, which a merging sort makes use of.
        listed.sort();
        let parts = listed.chunk_by(|a, b| a.hash == b.hash);
        let ends: Vec<u32> = parts
            .scan(0, |end, part| {
                *end += u32::try_from(part.len()).unwrap_or(u32::MAX);
                Some(*end)
            })
            .collect();
        let parents = vec![NONE; ends.len()];
        let mut builder = Builder { listed, ends, parents, lists };
        let count = builder.ends.len();
        let mut map = Self { hasher: hasher.clone(), ..Self::default() };
        map.hashes = (0..count).map(|place| builder.part(place)[0].hash).collect();
        map.index();
        map.values = vec![0; count];
        builder.find_parents(&map);
        let mut known: hashbrown::HashMap<Pair, u32, foldhash::fast::FixedState> =
            hashbrown::HashMap::default();
        for place in builder.by_depth(&mut map.deepest) {
            let place = place as usize;
            let (lists, parent) = (builder.part(place), builder.parent(place));
            let pair = value(&Node { lists, builder: &builder, parent, place })?;
            let next = u32::try_from(map.pairs.len()).unwrap_or(u32::MAX);
            map.values[place] = *known.entry(pair).or_insert(next);
            if map.values[place] == next {
                map.pairs.push(pair);
            }
        }
        Ok(map)
    }
}

impl Builder<'_> {
    /// Finds for each domain the nearest one above that is listed with all below it.
    fn find_parents(&mut self, map: &NameMap) {
        let above: HashSet<u64, foldhash::fast::FixedState> =
            self.listed.iter().filter(|listed| listed.below).map(|listed| listed.hash).collect();
        if above.is_empty() {
            return;
        }
        for place in 0..self.ends.len() {
            let first = self.part(place)[0];
            let name = self.lists[first.list as usize].name(self.item(&first));
            let (suffixes, _) = map.hasher.suffixes(name, usize::MAX);
            let parent = suffixes.iter().rev().skip(1).find(|hash| above.contains(*hash));
            if let Some(parent) = parent.and_then(|hash| map.place(*hash)) {
                self.parents[place] = u32::try_from(parent).unwrap_or(NONE);
            }
        }
    }

    /// The domains, those with fewer labels first.
    fn by_depth(&self, deepest: &mut usize) -> Vec<u32> {
        let labels = |place: usize| usize::from(self.item(&self.part(place)[0]).labels);
        // Counted one depth further on, and summed up to where each depth begins.
        let mut starts = [0_u32; 258];
        for place in 0..self.ends.len() {
            starts[labels(place) + 1] += 1;
            *deepest = labels(place).max(*deepest);
        }
        for depth in 1..starts.len() {
            starts[depth] += starts[depth - 1];
        }
        let mut order = vec![0; self.ends.len()];
        for place in 0..self.ends.len() {
            let next = &mut starts[labels(place)];
            order[*next as usize] = u32::try_from(place).unwrap_or(u32::MAX);
            *next += 1;
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hasher() -> NameHasher {
        NameHasher::new(7)
    }

    fn domains(words: &str) -> Domains {
        let mut domains = Domains::default();
        for word in words.split(' ').filter(|word| !word.is_empty()) {
            match word.strip_prefix("*.") {
                Some(name) => domains.push(true, name, &hasher()),
                None => domains.push(false, word, &hasher()),
            }
        }
        domains.normalise();
        domains
    }

    /// Which of the lists have a name, by the map and by reading them.
    fn holding(lists: &[Domains], name: &str) -> (u32, u32) {
        let lists: Vec<&Domains> = lists.iter().collect();
        let mut below = vec![0_u32; 64];
        let map = NameMap::build(&lists, &hasher(), |node| {
            let inherited = node.parent.map_or(0, |parent| below[parent]);
            let mut pair = Pair { exact: inherited, below: inherited };
            for (list, all) in node.lists() {
                assert_eq!(pair.exact >> list & 1, 0, "a list counts once");
                pair.exact |= 1 << list;
                pair.below |= u32::from(all) << list;
            }
            below[node.place] = pair.below;
            Ok::<Pair, std::convert::Infallible>(pair)
        });
        let Ok(map) = map;
        let mut read = 0;
        for (at, list) in lists.iter().enumerate() {
            let holds = list.iter().any(|(domain, below)| {
                name == domain
                    || below && name.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
            });
            read |= u32::from(holds) << at;
        }
        (map.find(name).unwrap_or(0), read)
    }

    #[test]
    fn a_dot_within_a_label_ends_none() {
        let lists = [domains("*.corp.example"), domains("*.example")];
        for (name, held) in [
            ("x.corp.example", 0b11),
            ("x\\.corp.example", 0b10),
            ("x\\\\.corp.example", 0b11),
            ("x\\\\\\.corp.example", 0b10),
            ("\\.corp.example", 0b10),
            ("corp\\.example", 0),
            ("corp.example\\.", 0),
        ] {
            let map = NameMap::build(&[&lists[0], &lists[1]], &hasher(), |node| {
                let held = node.lists().fold(0, |held, (list, _)| held | 1 << list);
                let above = if node.parent.is_some() { 0b10 } else { 0 };
                Ok::<Pair, std::convert::Infallible>(Pair {
                    exact: held | above,
                    below: held | above,
                })
            });
            let Ok(map) = map;
            assert_eq!(map.find(name).unwrap_or(0), held, "{name}");
        }
        let labels: Vec<&str> = Labels::of("a\\.b.c\\\\.d\\046.").collect();
        assert_eq!(labels, ["", "d\\046", "c\\\\", "a\\.b"]);
    }

    #[test]
    fn the_map_says_what_the_lists_say() {
        let lists = [
            domains("example *.corp.example a.b.c.corp.example"),
            domains("*.example b.corp.example *.b.corp.example"),
            domains("corp.example"),
            domains(""),
            domains("*.c.corp.example a.b.c.corp.example A.Example"),
            domains("*.example *.example c.corp.example"),
        ];
        for name in [
            "example",
            "a.example",
            "corp.example",
            "b.corp.example",
            "x.b.corp.example",
            "c.corp.example",
            "b.c.corp.example",
            "a.b.c.corp.example",
            "z.a.b.c.corp.example",
            "xexample",
            "com",
            "corp.example.com",
            "",
            ".",
            "..example",
        ] {
            let (found, read) = holding(&lists, name);
            assert_eq!(found, read, "{name}");
        }
        let (found, _) = holding(&lists, &format!("{}example", "a.".repeat(120)));
        assert_eq!(found, 0b10_0010);
    }

    #[test]
    fn lists_in_lists() {
        for (outer, inner, within, apart) in [
            ("a.example", "a.example", true, false),
            ("a.example", "*.a.example", false, false),
            ("*.a.example", "a.example *.a.example b.a.example *.c.a.example", true, false),
            ("*.a.example", "example", false, true),
            ("*.a.example", "xa.example", false, true),
            ("*.example", "", true, true),
            ("", "example", false, true),
            ("a.example b.example", "*.example", false, false),
            ("a.example", "b.example", false, true),
        ] {
            let (outer_list, inner_list) = (domains(outer), domains(inner));
            let got = outer_list.contains(&inner_list, &hasher());
            assert_eq!(got, within, "{inner} in {outer}");
            for (one, other) in [(&outer_list, &inner_list), (&inner_list, &outer_list)] {
                assert_eq!(one.disjoint(other, &hasher()), apart, "{inner} and {outer}");
            }
        }
    }

    #[test]
    fn another_secret_is_another_hash() {
        let hash = |secret, name| NameHasher::new(secret).whole(name);
        assert_ne!(hash(1, "a.example"), hash(2, "a.example"));
        assert_ne!(hash(1, "a.bc"), hash(1, "ab.c"));
        assert_ne!(hash(1, "a.example"), hash(1, "a.example."));
    }
}
