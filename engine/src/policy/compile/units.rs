//! The lists of a policy: each different one once, and numbers for names.

use std::hash::BuildHasher;
use std::rc::Rc;

use foldhash::fast::FixedState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::super::index::Dimension;
use super::super::parse::File;
use super::super::rule::{CgroupItem, Clause, List, Name};
use super::super::set::{Members, ResolvedSet, Unit, UnitKey};
use super::{Lowered, Map};
use crate::DeviceName;

/// Numbers for devices and cgroups, so that lists of them are intervals too.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) devices: Map<DeviceName, u32>,
    pub(super) cgroups: Map<Name, u32>,
    /// For each cgroup's number the last number that lies below it.
    pub(super) cgroup_ends: Vec<u32>,
}

/// The lists of a dimension, equal ones once.
#[derive(Debug, Default)]
pub(super) struct Units {
    pub(super) list: Vec<Unit>,
    /// The hash of each list's key, and where the list is.
    known: HashTable<(u64, u32)>,
}

impl Names {
    pub(super) fn device(&mut self, device: DeviceName) -> u32 {
        let next = u32::try_from(self.devices.len()).unwrap_or(u32::MAX);
        *self.devices.entry(device).or_insert(next)
    }

    /// Numbers all paths so that what lies below a path is an interval.
    pub(super) fn collect_cgroups(&mut self, files: &[File]) {
        let mut paths: Vec<&Name> = Vec::new();
        for clause in files.iter().flat_map(|file| &file.clauses) {
            let Clause::Cgroup(list) = &clause.value else {
                continue;
            };
            for item in &list.items {
                match &item.value {
                    CgroupItem::Path(path) => paths.push(path),
                    CgroupItem::Unknown => {}
                }
            }
        }
        paths.sort_unstable_by(|a, b| a.split('/').cmp(b.split('/')));
        paths.dedup();
        let mut open: Vec<usize> = Vec::new();
        self.cgroup_ends = vec![0; paths.len()];
        for (at, path) in paths.iter().enumerate() {
            while open.last().is_some_and(|above| !is_below(paths[*above], path)) {
                open.pop();
            }
            open.push(at);
            for above in &open {
                self.cgroup_ends[*above] = u32::try_from(at).unwrap_or(u32::MAX);
            }
        }
        self.cgroups = paths.into_iter().cloned().zip(0..).collect();
    }

    pub(super) fn cgroup_list(&self, list: &List<CgroupItem>) -> UnitKey {
        let mut members = Members::default();
        for item in &list.items {
            match &item.value {
                CgroupItem::Unknown => members.unknown = true,
                CgroupItem::Path(path) => {
                    if let Some(number) = self.cgroups.get(path) {
                        members.narrow.push((*number, self.cgroup_ends[*number as usize]));
                    }
                }
            }
        }
        own(members)
    }
}

/// Whether `path` is `above` or lies below it.
fn is_below(above: &str, path: &str) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A list without sets.
pub(super) fn own(members: Members) -> UnitKey {
    let mut key = UnitKey { own: members, ..UnitKey::default() };
    key.normalise();
    key
}

impl Lowered {
    /// The number of a list, the same for equal lists.
    pub(super) fn unit(&mut self, dimension: Dimension, key: UnitKey, sets: &[ResolvedSet]) -> u32 {
        let Units { list, known } = &mut self.units[dimension as usize];
        let hash = FixedState::default().hash_one(&key);
        let same = |known: &(u64, u32)| known.0 == hash && list[known.1 as usize].key == key;
        match known.entry(hash, same, |known| known.0) {
            Entry::Occupied(known) => known.get().1,
            Entry::Vacant(place) => {
                let unit = u32::try_from(list.len()).unwrap_or(u32::MAX);
                place.insert((hash, unit));
                list.push(Unit { sets: union(dimension, &key, sets), key });
                unit
            }
        }
    }
}

/// What a list over one dimension stands for, where sets are in it.
fn union(dimension: Dimension, key: &UnitKey, sets: &[ResolvedSet]) -> Option<Rc<Members>> {
    match &key.sets[..] {
        [] => None,
        [one] if key.own == Members::default() => Some(Rc::clone(&sets[*one as usize].members)),
        several => {
            let mut members = key.own.clone();
            for set in several {
                let set = &sets[*set as usize].members;
                if dimension == Dimension::Name {
                    members.add_domains(set);
                } else {
                    members.add(set);
                }
            }
            members.normalise();
            Some(Rc::new(members))
        }
    }
}
