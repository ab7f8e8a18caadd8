//! Answers that are still good, ready for the wire.
//!
//! The key holds what makes two answers differ: name, type, DO, CD, and the resolvers with
//! the form in which they are asked, so that an answer of one is never given for another.
//! Shards of the driver share it: each part has its own lock, held for one lookup and one
//! copy. A full part drops what was not asked for since the hand last passed (CLOCK), in
//! constant time on average. Past its TTL an answer stays for a day, for the case that
//! its servers fail (RFC 8767).

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use smallvec::SmallVec;

use crate::ask::ResolverId;
use crate::message::Query;
use crate::query::Kind;
use crate::ready::{Age, Ready, STALE_TTL};
use crate::split::{Form, Rule};

/// How long an answer may be given past its TTL (RFC 8767 section 5: one to three days).
const LONGEST_STALE: Duration = Duration::from_secs(86_400);

/// After a failed refresh, a stale answer is given for so long before the next (RFC 8767
/// section 5, failure recheck).
const RECHECK: Duration = Duration::from_secs(STALE_TTL as u64);

/// Bytes that an entry may take on average; the memory bound is this times the entries.
const BYTES_PER_ENTRY: usize = 1_400;

/// At most so many parts, and at least so many entries in each.
const PARTS: usize = 16;
const ENTRIES_PER_PART: usize = 64;

/// An answer with less TTL than this is not worth a prefetch, in seconds.
const SHORTEST_PREFETCHED: u32 = 10;

/// So many askers make a name popular enough to be asked again before its TTL ends.
const POPULAR: u32 = 2;

const _: () = assert!(10_000 * BYTES_PER_ENTRY < 16 << 20, "10,000 names in 16 MiB");

/// What tells answers apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key(SmallVec<[u8; 128]>);

impl Key {
    /// The question under a rule.
    pub(crate) fn new(query: &Query<'_>, rule: &Rule) -> Self {
        let [high, low] = u16::from(query.kind()).to_be_bytes();
        let flags = u8::from(query.dnssec_ok())
            | u8::from(query.checking_disabled()) << 1
            | u8::from(rule.private || rule.specific) << 2;
        let form = match rule.form {
            Form::And => 0,
            Form::Else => 1,
            Form::None => 2,
            Form::One => 3,
            Form::Or => 4,
        };
        let count = u8::try_from(rule.resolvers.len()).unwrap_or(u8::MAX);
        let mut key = SmallVec::from_slice(&[high, low, flags, form, count]);
        key.extend(rule.resolvers.iter().map(|resolver| resolver.0));
        key.extend_from_slice(query.name().as_bytes());
        Self(key)
    }
}

/// The resolvers in a key's bytes.
fn resolvers(key: &[u8]) -> &[u8] {
    let count = key.get(4).map_or(0, |count| usize::from(*count));
    key.get(5..5 + count).unwrap_or_default()
}

/// What the cache has.
#[derive(Debug)]
pub(crate) enum Found {
    /// Within its TTL. `refresh`: the caller is the one to ask again before it ends.
    Fresh { ready: Arc<Ready>, gone: u32, refresh: bool },
    /// Nothing.
    Miss,
    /// Past its TTL; the servers failed a moment ago, so it is to be given at once.
    Revived(Arc<Ready>),
    /// Past its TTL: to be given if the servers fail.
    Stale(Arc<Ready>),
}

/// The cache.
#[derive(Debug)]
pub(crate) struct Cache {
    parts: [Mutex<Part>; PARTS],
    /// How many of them are used. It changes while all are locked.
    used: AtomicUsize,
    hasher: RandomState,
}

/// What a cache holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Held {
    pub(crate) entries: usize,
    pub(crate) bytes: usize,
    /// Answers given by [`Cache::give`].
    pub(crate) given: u64,
}

#[derive(Debug, Default)]
struct Part {
    /// Key's hash to a place in `slots`.
    table: HashTable<u32>,
    slots: Vec<Option<Slot>>,
    free: Vec<u32>,
    hand: usize,
    bytes: usize,
    most_entries: usize,
    most_bytes: usize,
    given: u64,
}

#[derive(Debug)]
struct Slot {
    hash: u64,
    key: Box<[u8]>,
    ready: Arc<Ready>,
    stored: Instant,
    expires: Instant,
    /// When it may not even be given stale.
    dies: Instant,
    revived: bool,
    refreshing: bool,
    /// Asked for since the hand last passed.
    referenced: bool,
    hits: u32,
}

impl Slot {
    fn gone(&self, now: Instant) -> u32 {
        let gone = now.saturating_duration_since(self.stored).as_secs();
        u32::try_from(gone).unwrap_or(u32::MAX)
    }

    /// In the last tenth of its TTL, popular, and nobody asks already.
    fn is_due(&self, now: Instant) -> bool {
        let ttl = self.ready.ttl;
        !self.revived
            && !self.refreshing
            && self.hits >= POPULAR
            && ttl >= SHORTEST_PREFETCHED
            && self.expires.saturating_duration_since(now) <= Duration::from_secs(ttl.into()) / 10
    }

    fn bytes(&self) -> usize {
        // Its places in `slots` and `table`, and the counters of the Arc.
        size_of::<Option<Self>>() + 32 + self.key.len() + self.ready.size()
    }
}

impl Cache {
    /// At most `entries` answers, and 1,400 bytes for each on average. 0: nothing is kept.
    pub(crate) fn new(entries: usize) -> Self {
        let cache = Self {
            parts: Default::default(),
            used: AtomicUsize::new(used_for(entries)),
            hasher: RandomState::default(),
        };
        for part in &cache.parts {
            lock(part).allow(entries.div_ceil(used_for(entries)));
        }
        cache
    }

    /// Another number of answers from now on. What is there stays, as far as it fits; what was
    /// asked for stays before what was not. No lock is held for more than its part's share of
    /// what goes, and for a thousand entries.
    pub(crate) fn resize(&self, entries: usize, now: Instant) {
        let (before, after) = (self.used.load(Ordering::Acquire), used_for(entries));
        // Where there will be fewer, most go before all parts are locked.
        for part in &self.parts {
            let mut part = lock(part);
            let fewer = part.most_entries.min(entries.div_ceil(before));
            part.shrink(fewer, now);
        }
        if before == after {
            for part in &self.parts {
                lock(part).allow(entries.div_ceil(after));
            }
            return;
        }
        // Every entry's part is another. Nobody else locks more than one.
        let mut parts: Vec<MutexGuard<'_, Part>> = self.parts.iter().map(lock).collect();
        let mut slots: Vec<Slot> = parts.iter_mut().flat_map(|part| part.drain()).collect();
        // The hand has cleared marks on its way: hits are what is left to tell them apart.
        slots.sort_by_key(|slot| std::cmp::Reverse(slot.hits));
        self.used.store(after, Ordering::Release);
        for part in &mut parts {
            part.allow(entries.div_ceil(after));
        }
        for slot in slots {
            let part = &mut parts[place_of(slot.hash, after)];
            if part.has_room(slot.bytes()) {
                part.push(slot, now);
            }
        }
    }

    fn part(&self, hash: u64) -> MutexGuard<'_, Part> {
        loop {
            let used = self.used.load(Ordering::Acquire);
            let part = lock(&self.parts[place_of(hash, used)]);
            // While a part is locked their number stays.
            if used == self.used.load(Ordering::Acquire) {
                return part;
            }
        }
    }

    /// The hit path: calls `write` with an answer that can be given at once. None, and the
    /// slow path is to be taken: nothing there, past its TTL, or due for a refresh.
    pub(crate) fn give<R>(
        &self,
        key: &Key,
        now: Instant,
        write: impl FnOnce(&Ready, Age) -> R,
    ) -> Option<R> {
        let hash = self.hasher.hash_one(&*key.0);
        let mut part = self.part(hash);
        let slot = part.find(hash, key)?;
        if now >= slot.expires || slot.is_due(now) {
            return None;
        }
        slot.referenced = true;
        slot.hits = slot.hits.saturating_add(1);
        let age = if slot.revived { Age::Stale } else { Age::Fresh(slot.gone(now)) };
        let written = write(&slot.ready, age);
        part.given += 1;
        Some(written)
    }

    /// What is there. An answer due for a refresh is given as such to one caller.
    pub(crate) fn look(&self, key: &Key, now: Instant) -> Found {
        let hash = self.hasher.hash_one(&*key.0);
        let mut part = self.part(hash);
        let Some(slot) = part.find(hash, key) else { return Found::Miss };
        slot.referenced = true;
        let ready = Arc::clone(&slot.ready);
        if now < slot.expires {
            if slot.revived {
                return Found::Revived(ready);
            }
            let refresh = slot.is_due(now);
            slot.refreshing |= refresh;
            slot.hits = slot.hits.saturating_add(1);
            return Found::Fresh { ready, gone: slot.gone(now), refresh };
        }
        if now < slot.dies { Found::Stale(ready) } else { Found::Miss }
    }

    /// Keeps what was answered at `now`. A failure replaces nothing that can still be given:
    /// it gives a stale answer another half minute.
    pub(crate) fn insert(&self, key: &Key, ready: &Arc<Ready>, now: Instant) {
        let hash = self.hasher.hash_one(&*key.0);
        let mut part = self.part(hash);
        if ready.kind == Kind::Failed
            && let Some(slot) = part.find(hash, key)
            && slot.ready.kind != Kind::Failed
            && now < slot.dies
        {
            if now >= slot.expires {
                slot.revived = true;
                slot.expires = now + RECHECK;
            }
            return;
        }
        part.remove(hash, key);
        if ready.ttl == 0 || part.most_entries == 0 {
            return;
        }
        let expires = now + Duration::from_secs(ready.ttl.into());
        let stale = if ready.kind == Kind::Failed { Duration::ZERO } else { LONGEST_STALE };
        let slot = Slot {
            hash,
            key: key.0.to_vec().into_boxed_slice(),
            ready: Arc::clone(ready),
            stored: now,
            expires,
            dies: expires + stale,
            revived: false,
            refreshing: false,
            referenced: false,
            hits: 0,
        };
        part.push(slot, now);
    }

    /// Drops what this resolver had a part in, or everything.
    pub(crate) fn flush(&self, resolver: Option<ResolverId>) {
        for part in &self.parts {
            let mut part = lock(part);
            for place in 0..part.slots.len() {
                let of_resolver = part.slots[place].as_ref().is_some_and(|slot| {
                    resolver.is_none_or(|resolver| resolvers(&slot.key).contains(&resolver.0))
                });
                if of_resolver {
                    part.evict(place);
                }
            }
        }
    }

    /// What is held now.
    pub(crate) fn held(&self) -> Held {
        let mut held = Held::default();
        for part in &self.parts {
            let part = lock(part);
            held.entries += part.table.len();
            held.bytes += part.bytes;
            held.given += part.given;
        }
        held
    }
}

/// Few entries are not divided: a part that is full by chance would drop what others have room
/// for.
fn used_for(entries: usize) -> usize {
    (entries / ENTRIES_PER_PART).clamp(1, PARTS)
}

fn place_of(hash: u64, used: usize) -> usize {
    // Bits that the table in the part uses neither for its place nor for its tag.
    usize::from((hash >> 32) as u16) % used
}

fn lock(part: &Mutex<Part>) -> MutexGuard<'_, Part> {
    part.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Part {
    /// What it may hold from now on; it must not hold more.
    fn allow(&mut self, entries: usize) {
        self.most_entries = entries;
        self.most_bytes = entries * BYTES_PER_ENTRY;
    }

    /// Drops what is more than that, and gives its memory back.
    fn shrink(&mut self, entries: usize, now: Instant) {
        if entries >= self.most_entries {
            return;
        }
        self.allow(entries);
        while self.table.len() > self.most_entries || self.bytes > self.most_bytes {
            self.make_room(now);
        }
        for slot in self.drain() {
            self.push(slot, now);
        }
    }

    /// Takes all entries out.
    fn drain(&mut self) -> Vec<Slot> {
        (self.table, self.free, self.hand, self.bytes) = (HashTable::new(), Vec::new(), 0, 0);
        std::mem::take(&mut self.slots).into_iter().flatten().collect()
    }

    fn find(&mut self, hash: u64, key: &Key) -> Option<&mut Slot> {
        let place = self.place(hash, key)?;
        self.slots.get_mut(place)?.as_mut()
    }

    fn place(&self, hash: u64, key: &Key) -> Option<usize> {
        let is_it = |place: &u32| {
            let slot = self.slots.get(*place as usize).and_then(Option::as_ref);
            slot.is_some_and(|slot| slot.hash == hash && *slot.key == *key.0)
        };
        self.table.find(hash, is_it).map(|place| *place as usize)
    }

    fn remove(&mut self, hash: u64, key: &Key) {
        if let Some(place) = self.place(hash, key) {
            self.evict(place);
        }
    }

    fn evict(&mut self, place: usize) {
        let Some(slot) = self.slots.get_mut(place).and_then(Option::take) else { return };
        self.bytes -= slot.bytes();
        if let Ok(entry) = self.table.find_entry(slot.hash, |other| *other as usize == place) {
            self.free.push(*entry.get());
            entry.remove();
        }
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.table.len() < self.most_entries && self.bytes + bytes <= self.most_bytes
    }

    fn push(&mut self, slot: Slot, now: Instant) {
        let bytes = slot.bytes();
        if bytes > self.most_bytes {
            return;
        }
        while !self.has_room(bytes) {
            self.make_room(now);
        }
        let hash = slot.hash;
        let place = match self.free.pop() {
            Some(place) => place,
            None => {
                self.slots.push(None);
                u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
            }
        };
        let Some(empty) = self.slots.get_mut(place as usize) else { return };
        *empty = Some(slot);
        self.bytes += bytes;
        let slots = &self.slots;
        self.table.insert_unique(hash, place, |place| {
            slots.get(*place as usize).and_then(Option::as_ref).map_or(0, |slot| slot.hash)
        });
    }

    /// Drops one entry: the first under the hand that is dead or was not asked for.
    fn make_room(&mut self, now: Instant) {
        // Two rounds: the first clears every mark.
        for _ in 0..2 * self.slots.len() {
            self.hand = (self.hand + 1) % self.slots.len();
            let Some(slot) = &mut self.slots[self.hand] else { continue };
            if now < slot.dies && std::mem::take(&mut slot.referenced) {
                continue;
            }
            self.evict(self.hand);
            return;
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
