//! Which name leads to an address, as answers to the apps told.
//!
//! The name of an address is the one that was asked last and whose answer held the address
//! within its TTL and ten minutes: apps keep addresses somewhat longer than they may. Each
//! answer is kept on its own, so it counts as long as it should whatever came after it.
//! Bounded: what was learned longest ago goes first.

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::FixedState;
use hashbrown::HashTable;
use slab::Slab;
use smallvec::SmallVec;

use crate::{Instant, Name, ResolverSet};

/// How much longer than its TTL an answer counts.
pub const GRACE: Duration = Duration::from_secs(600);

/// Addresses that are remembered. One costs about 110 bytes with its one answer, beside the
/// name's text.
const ADDRESSES: usize = 65_536;
/// Answers of all addresses together: one that holds 16 names in turn is no reason to forget.
const ANSWERS: usize = 2 * ADDRESSES;
/// Answers of one address: another name of it, or the same from other resolvers.
const ANSWERS_OF_ONE: usize = 8;

/// An answer that an app gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Learned {
    /// The name asked, never a CNAME's target: lower-case A-labels without the last dot.
    pub name: Arc<str>,
    /// The addresses in the answer, and which resolvers gave each of them.
    pub addresses: Vec<(IpAddr, ResolverSet)>,
    /// How long the answer may be kept. It counts for [`GRACE`] longer.
    pub ttl: Duration,
}

/// The answers that the addresses of one shard were learned from.
#[derive(Debug)]
pub(crate) struct Names {
    entries: Slab<Entry>,
    /// The places of the entries by their addresses.
    index: HashTable<u32>,
    hasher: FixedState,
    /// Entries in the order in which something was learned about them. One that was learned
    /// about again stands here twice, and the first time says nothing any more.
    order: VecDeque<(u32, u32)>,
    /// Counts what was learned; wraps.
    serial: u32,
    answers: usize,
}

#[derive(Debug)]
struct Entry {
    address: IpAddr,
    /// When something was learned about it last.
    serial: u32,
    /// In the order in which they were asked.
    answers: SmallVec<[Answer; 1]>,
}

#[derive(Debug)]
struct Answer {
    name: Arc<Name>,
    resolvers: ResolverSet,
    until: Instant,
}

impl Names {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            entries: Slab::new(),
            index: HashTable::new(),
            hasher: FixedState::with_seed(seed),
            order: VecDeque::new(),
            serial: 0,
            answers: 0,
        }
    }

    pub(crate) fn learn(&mut self, learned: &Learned, now: Instant) {
        let until = now + learned.ttl + GRACE;
        let name = Arc::new(Name::asked(Arc::clone(&learned.name)));
        for (address, resolvers) in &learned.addresses {
            self.learn_one(&name, address.to_canonical(), *resolvers, until, now);
        }
        // Two for one: what is over goes sooner than new answers come.
        for _ in 0..2 * learned.addresses.len() {
            let over = |entry: &Entry| entry.answers.iter().all(|answer| answer.until <= now);
            if !self.oldest().is_some_and(|at| over(&self.entries[at as usize])) {
                break;
            }
            self.forget_oldest();
        }
        while self.answers > ANSWERS {
            self.forget_oldest();
        }
    }

    fn learn_one(
        &mut self,
        name: &Arc<Name>,
        address: IpAddr,
        resolvers: ResolverSet,
        until: Instant,
        now: Instant,
    ) {
        self.serial = self.serial.wrapping_add(1);
        let at = self.place(address);
        let Some(entry) = self.entries.get_mut(at as usize) else { return };
        self.answers -= entry.answers.len();
        entry.answers.retain(|known| {
            // The same again makes the one before superfluous, unless that counts longer.
            let same = known.resolvers == resolvers && known.name.text == name.text;
            known.until > if same { until } else { now }
        });
        if entry.answers.len() == ANSWERS_OF_ONE {
            entry.answers.remove(0);
        }
        entry.answers.push(Answer { name: Arc::clone(name), resolvers, until });
        entry.serial = self.serial;
        self.answers += entry.answers.len();
        if self.order.len() >= 2 * self.entries.len().max(64) {
            let entries = &self.entries;
            self.order.retain(|(at, serial)| is_current(entries, *at, *serial));
        }
        self.order.push_back((at, self.serial));
    }

    /// The place of an address's entry, made where there is none.
    fn place(&mut self, address: IpAddr) -> u32 {
        if let Some(at) = self.find(address) {
            return at;
        }
        if self.entries.len() == ADDRESSES {
            self.forget_oldest();
        }
        let entry = Entry { address, serial: self.serial, answers: SmallVec::new() };
        let at = u32::try_from(self.entries.insert(entry)).unwrap_or(u32::MAX);
        let (entries, hasher) = (&self.entries, &self.hasher);
        let hash = |at: &u32| hasher.hash_one(entries[*at as usize].address);
        self.index.insert_unique(hasher.hash_one(address), at, hash);
        at
    }

    fn find(&self, address: IpAddr) -> Option<u32> {
        let same = |at: &u32| self.entries[*at as usize].address == address;
        self.index.find(self.hasher.hash_one(address), same).copied()
    }

    /// The entry about which nothing was learned for the longest time.
    fn oldest(&mut self) -> Option<u32> {
        while let Some((at, serial)) = self.order.front().copied() {
            if is_current(&self.entries, at, serial) {
                return Some(at);
            }
            self.order.pop_front();
        }
        None
    }

    fn forget_oldest(&mut self) {
        let Some(at) = self.oldest() else { return };
        self.order.pop_front();
        let entry = self.entries.remove(at as usize);
        self.answers -= entry.answers.len();
        let hash = self.hasher.hash_one(entry.address);
        if let Ok(place) = self.index.find_entry(hash, |other| *other == at) {
            place.remove();
        }
    }

    fn answers_of(
        &self,
        address: IpAddr,
        now: Instant,
    ) -> impl DoubleEndedIterator<Item = &Answer> {
        let entry = self.find(address).map(|at| &self.entries[at as usize]);
        let answers = entry.map_or(&[][..], |entry| &entry.answers);
        answers.iter().filter(move |answer| answer.until > now)
    }

    /// The name that leads to an address now, and the resolvers that gave it to that name or
    /// to others.
    pub(crate) fn of(&self, address: IpAddr, now: Instant) -> Option<(Arc<Name>, ResolverSet)> {
        let mut answers = self.answers_of(address, now).rev();
        let last = answers.next()?;
        let resolvers = answers.fold(last.resolvers, |set, a| set.union(a.resolvers));
        Some((Arc::clone(&last.name), resolvers))
    }

    /// The other names that lead to an address now.
    pub(crate) fn others(&self, address: IpAddr, last: &Name, now: Instant) -> Vec<Arc<Name>> {
        let mut others: Vec<Arc<Name>> = Vec::new();
        for answer in self.answers_of(address, now) {
            if *answer.name != *last && !others.contains(&answer.name) {
                others.push(Arc::clone(&answer.name));
            }
        }
        others
    }

    pub(crate) fn is_newest(
        &self,
        name: &str,
        addresses: &[(IpAddr, ResolverSet)],
        now: Instant,
    ) -> bool {
        addresses.iter().all(|(address, resolvers)| {
            let last = self.answers_of(address.to_canonical(), now).next_back();
            last.is_some_and(|last| last.resolvers == *resolvers && &*last.name.text == name)
        })
    }
}

fn is_current(entries: &Slab<Entry>, at: u32, serial: u32) -> bool {
    entries.get(at as usize).is_some_and(|entry| entry.serial == serial)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::cpu_time::cpu_time;

    const UPSTREAM: ResolverSet = ResolverSet::from_bits(1);
    const CORP: ResolverSet = ResolverSet::from_bits(2);
    const MINUTE: Duration = Duration::from_secs(60);

    fn address(n: u32) -> IpAddr {
        Ipv4Addr::from(0x0a00_0000 + n).into()
    }

    fn learned(name: &str, addresses: &[(u32, ResolverSet)], ttl: Duration) -> Learned {
        let addresses = addresses.iter().map(|(n, set)| (address(*n), *set)).collect();
        Learned { name: name.into(), addresses, ttl }
    }

    fn known(names: &Names, n: u32, now: Instant) -> Option<(String, u64)> {
        names.of(address(n), now).map(|(name, set)| (name.text.to_string(), set.bits()))
    }

    #[test]
    fn the_name_asked_last_counts_while_its_answer_does() {
        let mut names = Names::new(1);
        let start = Instant::ZERO;
        let after = |minutes: u32| start + minutes * MINUTE;
        names.learn(&learned("a.example", &[(1, CORP), (2, CORP)], 60 * MINUTE), start);
        names.learn(&learned("b.example", &[(1, UPSTREAM)], 5 * MINUTE), after(1));
        for (name, n, at, want) in [
            ("the last", 1, 1, Some(("b.example", 3))),
            ("within the grace", 1, 15, Some(("b.example", 3))),
            ("the one before lives on", 1, 17, Some(("a.example", 2))),
            ("the other address", 2, 1, Some(("a.example", 2))),
            ("all is over", 1, 70, None),
            ("never asked", 3, 1, None),
        ] {
            let want = want.map(|(name, bits): (&str, u64)| (name.to_owned(), bits));
            assert_eq!(known(&names, n, after(at)), want, "{name}");
        }
        // Asked again, and by a mapped address.
        let mapped = "::ffff:10.0.0.1".parse().expect("address");
        let again = Learned {
            name: "a.example".into(),
            addresses: vec![(mapped, CORP)],
            ttl: Duration::ZERO,
        };
        names.learn(&again, after(2));
        assert_eq!(known(&names, 1, after(3)), Some(("a.example".to_owned(), 3)));
        // The earlier answer held longer.
        assert_eq!(known(&names, 1, after(69)), Some(("a.example".to_owned(), 2)));
    }

    #[test]
    fn an_answer_from_a_cache_is_news_only_where_another_came_between() {
        let mut names = Names::new(1);
        let (now, later) = (Instant::ZERO, Instant::ZERO + 20 * MINUTE);
        names.learn(&learned("a.example", &[(1, CORP), (2, CORP)], 5 * MINUTE), now);
        let both = [(address(1), CORP), (address(2), CORP)];
        assert!(names.is_newest("a.example", &both, now));
        assert!(names.is_newest("a.example", &[], now));
        assert!(!names.is_newest("b.example", &both, now));
        assert!(!names.is_newest("a.example", &[(address(1), UPSTREAM)], now), "another resolver");
        assert!(!names.is_newest("a.example", &[(address(1), CORP), (address(3), CORP)], now));
        assert!(!names.is_newest("a.example", &both, later), "it is over");
        names.learn(&learned("b.example", &[(2, CORP)], MINUTE), now);
        assert!(!names.is_newest("a.example", &both, now));
        assert!(names.is_newest("a.example", &both[..1], now));
    }

    #[test]
    fn what_was_learned_longest_ago_is_forgotten_first() {
        let mut names = Names::new(1);
        let now = Instant::ZERO;
        let most = ADDRESSES as u32;
        let day = 24 * 60 * MINUTE;
        for n in 0..most {
            names.learn(&learned("a.example", &[(n, CORP)], day), now);
        }
        names.learn(&learned("b.example", &[(0, CORP)], day), now);
        for n in most..most + 1000 {
            names.learn(&learned("c.example", &[(n, CORP)], day), now);
        }
        assert_eq!(names.entries.len(), ADDRESSES);
        assert_eq!(names.index.len(), ADDRESSES);
        assert!(known(&names, 0, now).is_some(), "learned about again");
        assert_eq!(known(&names, 1, now), None);
        assert_eq!(known(&names, 1000, now), None);
        assert!(known(&names, 1001, now).is_some());
        // Over and over the same is no growth.
        for _ in 0..4 * most {
            names.learn(&learned("d.example", &[(5000, CORP)], day), now);
        }
        assert!(names.order.len() <= 2 * ADDRESSES, "{}", names.order.len());
        // Many names of every address: addresses go before the answers are too many.
        for round in 0..ANSWERS_OF_ONE {
            for n in 0..most {
                let name = format!("{round}.example");
                names.learn(&learned(&name, &[(n, CORP)], day), now);
            }
        }
        assert!(names.answers <= ANSWERS);
        let counted: usize = names.entries.iter().map(|(_, entry)| entry.answers.len()).sum();
        assert_eq!(counted, names.answers);
        // All of it is over once time has passed and others are asked.
        for n in 0..most {
            names.learn(&learned("e.example", &[(n % 16, CORP)], MINUTE), now + 2 * day);
        }
        assert_eq!((names.entries.len(), names.answers), (16, 16));
    }

    #[derive(Debug, Clone)]
    struct Told {
        name: u8,
        address: u32,
        set: u64,
        ttl: u32,
        /// How long after the one before.
        wait: u32,
    }

    fn told() -> impl Strategy<Value = Told> {
        (0..4_u8, 0..6_u32, 1..8_u64, 0..40_u32, 0..5_u32)
            .prop_map(|(name, address, set, ttl, wait)| Told { name, address, set, ttl, wait })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Against all answers, read one by one.
        #[test]
        fn as_the_answers_say(told in prop::collection::vec(told(), 0..60)) {
            let mut names = Names::new(3);
            let mut now = Instant::ZERO;
            let mut all: Vec<(Told, Instant)> = Vec::new();
            for told in told {
                now = now + told.wait * MINUTE;
                let set = ResolverSet::from_bits(told.set);
                let name = format!("n{}", told.name);
                names.learn(&learned(&name, &[(told.address, set)], told.ttl * MINUTE), now);
                let until = now + told.ttl * MINUTE + GRACE;
                all.push((told, until));
                for address in 0..6 {
                    let of_it = || all.iter().filter(|(told, _)| told.address == address);
                    let live = of_it().filter(|(_, until)| *until > now);
                    let got = known(&names, address, now);
                    let last = live.clone().next_back().map(|(told, _)| format!("n{}", told.name));
                    let bounded = of_it().count() > ANSWERS_OF_ONE;
                    let newest = of_it().next_back().is_some_and(|(_, until)| *until > now);
                    if newest || !bounded {
                        prop_assert_eq!(got.as_ref().map(|(name, _)| name.clone()), last);
                    }
                    if !bounded {
                        let union = live.fold(0, |all, (told, _)| all | told.set);
                        prop_assert_eq!(got.map_or(0, |(_, set)| set), union);
                    }
                }
            }
        }
    }

    /// `cargo test --profile ci -p engine -- --ignored --nocapture names::tests::figures`
    #[test]
    #[ignore = "a measurement, not a test"]
    fn figures() {
        let mut names = Names::new(1);
        let now = Instant::ZERO;
        let all: Vec<Learned> = (0..ADDRESSES as u32)
            .map(|n| {
                let addresses = [(2 * n, CORP), (2 * n + 1, CORP)];
                learned(&format!("host-{n}.corp.example"), &addresses, 60 * MINUTE)
            })
            .collect();
        let before = cpu_time();
        all.iter().for_each(|learned| names.learn(learned, now));
        let learn = (cpu_time() - before) / ADDRESSES as u32;
        let before = cpu_time();
        let found = (0..100_000_u32)
            .filter(|n| names.of(address(n.wrapping_mul(2_654_435_761) % 131_072), now).is_some());
        let found = found.count();
        let of = (cpu_time() - before) / 100_000;
        let before = cpu_time();
        let newest = all.iter().filter(|l| names.is_newest(&l.name, &l.addresses, now)).count();
        let is_newest = (cpu_time() - before) / ADDRESSES as u32;
        let bytes = names.entries.capacity() * size_of::<(usize, Entry)>()
            + names.index.capacity() * 8 / 7 * 5
            + names.order.capacity() * 8;
        println!(
            "learn 2 addresses {learn:?}, of {of:?} ({found} found), is_newest of 2 {is_newest:?} \
             ({newest} are), {bytes} bytes beside the names, {} an answer",
            size_of::<Answer>()
        );
    }
}
