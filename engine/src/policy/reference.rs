//! The language's meaning, read off the statements one by one.
//!
//! Slow and plain: the tests hold the index against it.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Verdict;
use super::parse::File;
use super::rule::{
    Action, AddressItem, CgroupItem, Clause, EgressItem, List, SetBody, SetItem, Statement,
    UserItem,
};
use crate::{Fact, Facts, Protocol};

/// The verdict and the number of the rule that gave it, `None` for the default.
pub(super) fn judge(file: &File, facts: &Facts) -> (Verdict, Option<usize>) {
    let rules = file.statements.iter().filter_map(|statement| {
        let Statement::Rule(rule) = statement else {
            return None;
        };
        Some(rule)
    });
    for (at, rule) in rules.enumerate() {
        let clauses = &file.clauses[rule.clauses.clone()];
        if clauses.iter().all(|clause| holds(file, &clause.value, facts)) {
            let Action::Verdict(verdict) = rule.action.value else { panic!("ask") };
            return (verdict, Some(at));
        }
    }
    let default = file.statements.iter().find_map(|statement| {
        let Statement::Default(verdict) = statement else {
            return None;
        };
        Some(verdict.value)
    });
    (default.expect("a default"), None)
}

fn holds(file: &File, clause: &Clause, facts: &Facts) -> bool {
    match clause {
        Clause::Protocol(protocol) => *protocol == facts.protocol,
        Clause::From(list) => addresses(file, list, facts.source().known().copied()),
        Clause::Client(list) => addresses(file, list, Some(facts.client().ip())),
        Clause::To(list) => addresses(file, list, Some(facts.destination().ip())),
        Clause::Egress(list) => {
            let Some(egress) = facts.egress.known() else {
                return false;
            };
            let one = |item: &EgressItem| match item {
                EgressItem::Any => true,
                EgressItem::Prefix(prefix) => prefix.contains(&egress.address),
                EgressItem::Set(name) => in_set(file, name, egress.address),
                EgressItem::Device(device) => *device == egress.device,
            };
            list.items.iter().any(|item| one(&item.value)) != list.not
        }
        Clause::Port(list) => {
            let port = facts.destination().port();
            facts.protocol != Protocol::Icmp
                && list
                    .items
                    .iter()
                    .any(|item| (item.value.first..=item.value.last).contains(&port))
                    != list.not
        }
        Clause::User(list) => {
            let unknown = list.items.iter().any(|item| item.value == UserItem::Unknown);
            match facts.owner.known() {
                Some(owner) => {
                    let uid = UserItem::Uid(owner.uid);
                    list.items.iter().any(|item| item.value == uid) != list.not
                }
                None => unknown && !list.not,
            }
        }
        Clause::Cgroup(list) => {
            let unknown = list.items.iter().any(|item| item.value == CgroupItem::Unknown);
            match facts.owner.known().and_then(|owner| owner.cgroup.as_deref()) {
                Some(path) => {
                    let path = path.trim_end_matches('/');
                    let one = |item: &CgroupItem| match item {
                        CgroupItem::Path(above) => {
                            path == &**above || path.starts_with(&format!("{above}/"))
                        }
                        CgroupItem::Unknown => false,
                    };
                    list.items.iter().any(|item| one(&item.value)) != list.not
                }
                None => unknown && !list.not,
            }
        }
        Clause::Via(name) => &*name.value == "direct",
        Clause::Id(_) => true,
        Clause::Resolver(_) | Clause::App(_) | Clause::Protected => panic!("refused"),
    }
}

fn addresses(file: &File, list: &List<AddressItem>, address: Option<IpAddr>) -> bool {
    let Some(address) = address else { return false };
    let within = |prefix: &str| {
        let prefix: IpNet = prefix.parse().expect("prefix");
        prefix.contains(&address)
    };
    let one = |item: &AddressItem| match item {
        AddressItem::Any => true,
        AddressItem::Multicast => within("224.0.0.0/4") || within("ff00::/8"),
        AddressItem::Broadcast => within("255.255.255.255/32"),
        AddressItem::Prefix(prefix) => prefix.contains(&address),
        AddressItem::Set(name) => in_set(file, name, address),
        AddressItem::Domain(_) | AddressItem::UnknownName => false,
    };
    list.items.iter().any(|item| one(&item.value)) != list.not
}

fn in_set(file: &File, name: &str, address: IpAddr) -> bool {
    file.statements.iter().any(|statement| {
        let Statement::Set(set) = statement else {
            return false;
        };
        let SetBody::Items(items) = &set.body else { panic!("files are not for the reference") };
        &*set.name.value == name
            && items.iter().any(|item| match &item.value {
                SetItem::Prefix(prefix) => prefix.contains(&address),
                SetItem::Domain(_) => false,
            })
    })
}

/// Facts as they are once everything was asked for.
pub(super) fn unasked(facts: &Facts) -> Facts {
    let mut facts = facts.clone();
    facts.owner = Fact::Unasked;
    facts.egress = Fact::Unasked;
    facts
}
