//! Flows by handle and by key, and which of them was idle longest.
//!
//! Lists order the flows: those that are not open yet, the open ones, and apart from these
//! what asks the service by datagrams, of which each question may be a new flow. A flow moves
//! to the young end of its list when it was last moved more than a second ago, so that
//! ordering costs nothing per packet.

use std::hash::BuildHasher;
use std::time::Duration;

use foldhash::fast::FixedState;
use hashbrown::HashTable;
use slab::Slab;

use crate::Instant;
use crate::flow::{First, Flow, FlowId, Held, Key, State};

const NIL: u32 = u32::MAX;
/// The order of the idle lists is as coarse as this.
const TOUCH: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Table {
    slots: Slab<Slot>,
    index: HashTable<u32>,
    hasher: FixedState,
    next_serial: u32,
    lists: [List; LISTS],
}

#[derive(Debug)]
struct Slot {
    flow: Flow,
    serial: u32,
    list: Which,
    older: u32,
    younger: u32,
    touched: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// Held, connecting or answered.
    HalfOpen,
    /// Bytes move.
    Open,
    /// Datagrams to the service, of which some answer is owed.
    Asking,
    /// The same, all answered.
    Served,
}

const LISTS: usize = 4;

#[derive(Debug, Clone, Copy)]
struct List {
    oldest: u32,
    youngest: u32,
    length: usize,
}

impl Table {
    pub(crate) fn new(seed: u64) -> Self {
        let empty = List { oldest: NIL, youngest: NIL, length: 0 };
        Self {
            slots: Slab::new(),
            index: HashTable::new(),
            hasher: FixedState::with_seed(seed),
            next_serial: 1,
            lists: [empty; LISTS],
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// How many flows are in that list.
    pub(crate) fn count(&self, list: Which) -> usize {
        self.lists[list as usize].length
    }

    pub(crate) fn find(&self, key: &Key) -> Option<FlowId> {
        let hash = self.hasher.hash_one(key);
        let slot = *self.index.find(hash, |&slot| self.slots[slot as usize].flow.key == *key)?;
        Some(FlowId { slot, serial: self.slots[slot as usize].serial })
    }

    pub(crate) fn get(&self, id: FlowId) -> Option<&Flow> {
        let slot = self.slots.get(id.slot())?;
        (slot.serial == id.serial).then_some(&slot.flow)
    }

    pub(crate) fn get_mut(&mut self, id: FlowId) -> Option<&mut Flow> {
        let slot = self.slots.get_mut(id.slot())?;
        (slot.serial == id.serial).then_some(&mut slot.flow)
    }

    /// Adds a flow whose key is not in the table.
    pub(crate) fn insert(&mut self, flow: Flow) -> FlowId {
        let hash = self.hasher.hash_one(flow.key);
        let serial = self.next_serial;
        // Two bits fewer than the field holds: an event tag needs them.
        self.next_serial = (self.next_serial + 1) & (u32::MAX >> 2);
        let touched = flow.opening.opened;
        let slot = self.slots.insert(Slot {
            flow,
            serial,
            list: Which::HalfOpen,
            older: NIL,
            younger: NIL,
            touched,
        }) as u32;
        let (slots, hasher) = (&self.slots, &self.hasher);
        self.index.insert_unique(hash, slot, |&s| hasher.hash_one(slots[s as usize].flow.key));
        self.push(slot, Which::HalfOpen);
        FlowId { slot, serial }
    }

    pub(crate) fn remove(&mut self, id: FlowId) -> Option<Flow> {
        self.get(id)?;
        self.unlink(id.slot);
        let slot = self.slots.remove(id.slot());
        let hash = self.hasher.hash_one(slot.flow.key);
        if let Ok(entry) = self.index.find_entry(hash, |&s| s == id.slot) {
            entry.remove();
        }
        Some(slot.flow)
    }

    /// Notes activity, for the order of the idle lists.
    pub(crate) fn touch(&mut self, id: FlowId, now: Instant) {
        let Some(slot) = self.slots.get_mut(id.slot()) else { return };
        slot.flow.active = now;
        let list = match &slot.flow.state {
            State::Held(_) | State::Answered(_) => Which::HalfOpen,
            State::Link(crossing) if crossing.is_opening() => Which::HalfOpen,
            State::Stream(_) | State::Datagrams(_) | State::Link(_) | State::Echo { .. } => {
                Which::Open
            }
            State::Questions { awaited: 0 } => Which::Served,
            State::Questions { .. } => Which::Asking,
        };
        if slot.list == list && now.since(slot.touched) < TOUCH {
            return;
        }
        slot.touched = now;
        self.unlink(id.slot);
        self.push(id.slot, list);
    }

    /// The flow of that list that was idle longest.
    pub(crate) fn oldest(&self, list: Which) -> Option<FlowId> {
        let slot = self.lists[list as usize].oldest;
        (slot != NIL).then(|| FlowId { slot, serial: self.slots[slot as usize].serial })
    }

    /// The TCP flow with rings that was idle longest: an open one, else one that is held.
    pub(crate) fn oldest_stream(&self) -> Option<FlowId> {
        let has_rings = |flow: &Flow| {
            let peeked = |held: &Held| matches!(held.first, First::Peeked(_));
            match &flow.state {
                State::Stream(_) => true,
                State::Held(held) => peeked(held),
                State::Datagrams(_)
                | State::Link(_)
                | State::Echo { .. }
                | State::Questions { .. }
                | State::Answered(_) => false,
            }
        };
        [Which::Open, Which::HalfOpen].into_iter().find_map(|list| {
            let mut next = self.oldest(list);
            while let Some(id) = next {
                let slot = &self.slots[id.slot()];
                if has_rings(&slot.flow) {
                    break;
                }
                let slot = slot.younger;
                let serial = |slot: u32| self.slots[slot as usize].serial;
                next = (slot != NIL).then(|| FlowId { slot, serial: serial(slot) });
            }
            next
        })
    }

    /// The first flow at that place or behind it. A flow never changes its place.
    pub(crate) fn from(&self, slot: usize) -> Option<FlowId> {
        (slot..self.slots.capacity()).find_map(|slot| {
            let serial = self.slots.get(slot)?.serial;
            Some(FlowId { slot: slot as u32, serial })
        })
    }

    /// Every flow, in no order that means anything.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Flow> {
        self.slots.iter().map(|(_, slot)| &slot.flow)
    }

    /// Every flow's handle, in no order that means anything.
    pub(crate) fn ids(&self) -> Vec<FlowId> {
        self.slots.iter().map(|(slot, s)| FlowId { slot: slot as u32, serial: s.serial }).collect()
    }

    fn push(&mut self, slot: u32, which: Which) {
        let list = &mut self.lists[which as usize];
        let older = std::mem::replace(&mut list.youngest, slot);
        if list.oldest == NIL {
            list.oldest = slot;
        }
        list.length += 1;
        if older != NIL {
            self.slots[older as usize].younger = slot;
        }
        let this = &mut self.slots[slot as usize];
        this.list = which;
        this.older = older;
        this.younger = NIL;
    }

    fn unlink(&mut self, slot: u32) {
        let this = &self.slots[slot as usize];
        let (list, older, younger) = (this.list as usize, this.older, this.younger);
        if older == NIL {
            self.lists[list].oldest = younger;
        } else {
            self.slots[older as usize].younger = younger;
        }
        if younger == NIL {
            self.lists[list].youngest = older;
        } else {
            self.slots[younger as usize].older = older;
        }
        self.lists[list].length -= 1;
    }
}
