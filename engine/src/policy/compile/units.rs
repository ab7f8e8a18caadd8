//! The lists of a policy: each different one once, and numbers for names.

use std::rc::Rc;

use super::super::index::Dimension;
use super::super::parse::File;
use super::super::rule::{CgroupItem, Clause, List, Name, Statement};
use super::super::set::{Members, ResolvedSet};
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
    pub(super) members: Vec<Rc<Members>>,
    pub(super) known: Map<UnitKey, u32>,
}

/// A list by what it was written with, so that large sets are not compared.
#[derive(Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct UnitKey {
    pub(super) sets: Vec<usize>,
    pub(super) own: Members,
}

impl Names {
    pub(super) fn device(&mut self, device: DeviceName) -> u32 {
        let next = u32::try_from(self.devices.len()).unwrap_or(u32::MAX);
        *self.devices.entry(device).or_insert(next)
    }

    /// Numbers all paths so that what lies below a path is an interval.
    pub(super) fn collect_cgroups(&mut self, files: &[File]) {
        let statements = files.iter().flat_map(|file| &file.statements);
        let clauses = statements.flat_map(|statement| match statement {
            Statement::Rule(rule) => &rule.clauses[..],
            Statement::Route(route) => &route.clauses[..],
            Statement::Set(_)
            | Statement::Resolve(_)
            | Statement::Default(_)
            | Statement::Expect(_) => &[],
        });
        let mut paths: Vec<&Name> = Vec::new();
        for clause in clauses {
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

impl UnitKey {
    pub(super) fn normalise(&mut self) {
        self.own.normalise();
        self.sets.sort_unstable();
        self.sets.dedup();
    }
}

/// A list without sets.
pub(super) fn own(members: Members) -> UnitKey {
    let mut key = UnitKey { sets: Vec::new(), own: members };
    key.normalise();
    key
}

impl Lowered {
    /// The number of a list, the same for equal lists.
    pub(super) fn unit(&mut self, dimension: Dimension, key: UnitKey, sets: &[ResolvedSet]) -> u32 {
        let units = &mut self.units[dimension as usize];
        if let Some(unit) = units.known.get(&key) {
            return *unit;
        }
        let members = match &key.sets[..] {
            [] => Rc::new(key.own.clone()),
            [one] if key.own == Members::default() => Rc::clone(&sets[*one].members),
            several => {
                let mut members = key.own.clone();
                several.iter().for_each(|set| members.add(&sets[*set].members));
                members.normalise();
                Rc::new(members)
            }
        };
        let unit = u32::try_from(units.members.len()).unwrap_or(u32::MAX);
        units.members.push(members);
        units.known.insert(key, unit);
        unit
    }
}
