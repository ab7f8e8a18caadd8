//! The language's meaning, read off the statements one by one.
//!
//! Slow and plain: the tests hold the index against it.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Verdict;
use super::parse::File;
use super::rule::{
    Action, AddressItem, CgroupItem, Clause, Domain, EgressItem, List, Name, ResolveItem, SetBody,
    SetItem, Statement, UserItem,
};
use crate::{Fact, Facts, Protocol, ResolverId, WayId};

/// The ways out of the tests.
pub(super) const WAYS: [&str; 3] = ["direct", "wg0", "office"];
/// The resolvers of the tests.
pub(super) const RESOLVERS: [&str; 3] = ["upstream", "corp", "lab"];

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
        Clause::To(list) => destination(file, list, facts),
        Clause::Resolver(list) => {
            // What `RESOLVERS` of the tests says, from 1.
            let number = |name: &str| RESOLVERS.iter().position(|known| *known == name);
            let one = |item: &Name| {
                let id = ResolverId::new(number(item).expect("known") as u8).expect("few");
                facts.resolvers.contains(id)
            };
            !facts.resolvers.is_empty()
                && list.items.iter().any(|item| one(&item.value)) != list.not
        }
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
        Clause::Via(name) => facts.via == way(&name.value),
        Clause::Id(_) => true,
        Clause::App(_) | Clause::Protected => panic!("refused"),
    }
}

/// What `WAYS` of the tests says.
fn way(name: &str) -> Option<WayId> {
    let number = WAYS.iter().position(|known| *known == name).expect("known");
    WayId::new(number as u8)
}

/// The ways out of the first route that matches.
pub(super) fn route(file: &File, facts: &Facts) -> Vec<WayId> {
    let routes = file.statements.iter().filter_map(|statement| match statement {
        Statement::Route(route) => Some(route),
        Statement::Set(_)
        | Statement::Resolve(_)
        | Statement::Rule(_)
        | Statement::Default(_)
        | Statement::Expect(_) => None,
    });
    let mut matching = routes.filter(|route| {
        let clauses = &file.clauses[route.clauses.clone()];
        clauses.iter().all(|clause| holds(file, &clause.value, facts))
    });
    match matching.next() {
        Some(route) => route.via.iter().filter_map(|via| way(&via.value)).collect(),
        None => vec![WayId::DIRECT],
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

fn destination(file: &File, list: &List<AddressItem>, facts: &Facts) -> bool {
    let address = facts.destination().ip();
    let name = facts.name.known().map(|name| &*name.text);
    let plain = List { not: false, items: list.items.clone() };
    let by_address = addresses(file, &plain, Some(address));
    let domains: Vec<Domain> =
        list.items.iter().flat_map(|item| domains(file, &item.value)).collect();
    let unknown = list.items.iter().any(|item| item.value == AddressItem::UnknownName);
    let asks_for_name = unknown || !domains.is_empty();
    let by_name = match name {
        Some(name) => domains.iter().any(|domain| has(domain, name)),
        None => unknown,
    };
    if list.not {
        !by_address && !by_name && (name.is_some() || !asks_for_name)
    } else {
        by_address || by_name
    }
}

fn domains(file: &File, item: &AddressItem) -> Vec<Domain> {
    match item {
        AddressItem::Domain(domain) => vec![domain.clone()],
        AddressItem::Set(name) => set_items(file, name)
            .filter_map(|item| match item {
                SetItem::Domain(domain) => Some(domain.clone()),
                SetItem::Prefix(_) => None,
            })
            .collect(),
        AddressItem::Any
        | AddressItem::Multicast
        | AddressItem::Broadcast
        | AddressItem::UnknownName
        | AddressItem::Prefix(_) => Vec::new(),
    }
}

fn has(domain: &Domain, name: &str) -> bool {
    name == &*domain.name || domain.below && name.ends_with(&format!(".{}", domain.name))
}

/// The number of the first `resolve` statement that has a name.
pub(super) fn resolution(file: &File, name: &str) -> Option<usize> {
    let resolves = file.statements.iter().filter_map(|statement| match statement {
        Statement::Resolve(resolve) => Some(resolve),
        Statement::Set(_)
        | Statement::Route(_)
        | Statement::Rule(_)
        | Statement::Default(_)
        | Statement::Expect(_) => None,
    });
    let prefix = prefix_of(name);
    let one = |item: &ResolveItem| match item {
        ResolveItem::All => true,
        ResolveItem::Domain(domain) => has(domain, name),
        ResolveItem::Set(set) => set_items(file, set).any(|item| match item {
            SetItem::Domain(domain) => has(domain, name),
            SetItem::Prefix(listed) => prefix.is_some_and(|prefix| listed.contains(&prefix)),
        }),
    };
    let mut resolves = resolves.map(|resolve| resolve.names.iter().any(|item| one(&item.value)));
    resolves.position(|has| has)
}

/// What a reverse name of IPv4 stands for; the tests have no others.
fn prefix_of(name: &str) -> Option<IpNet> {
    let labels = name.strip_suffix(".in-addr.arpa")?.rsplit('.');
    let octets: Vec<&str> =
        labels.take(4).take_while(|label| label.parse::<u8>().is_ok()).collect();
    let zeros = [".0", ".0.0", ".0.0.0"];
    let rest = 4_usize.checked_sub(octets.len() + 1).map_or("", |_| zeros[3 - octets.len()]);
    format!("{}{rest}/{}", octets.join("."), octets.len() * 8).parse().ok()
}

fn set_items<'f>(file: &'f File, name: &'f str) -> impl Iterator<Item = &'f SetItem> {
    let items = file.statements.iter().filter_map(move |statement| match statement {
        Statement::Set(set) if &*set.name.value == name => match &set.body {
            SetBody::Items(items) => Some(items),
            SetBody::File(_) => panic!("files are not for the reference"),
        },
        Statement::Set(_)
        | Statement::Resolve(_)
        | Statement::Route(_)
        | Statement::Rule(_)
        | Statement::Default(_)
        | Statement::Expect(_) => None,
    });
    items.flatten().map(|item| &item.value)
}

fn in_set(file: &File, name: &str, address: IpAddr) -> bool {
    set_items(file, name).any(|item| match item {
        SetItem::Prefix(prefix) => prefix.contains(&address),
        SetItem::Domain(_) => false,
    })
}

/// Facts as they are once everything was asked for.
pub(super) fn unasked(facts: &Facts) -> Facts {
    let mut facts = facts.clone();
    facts.owner = Fact::Unasked;
    facts.egress = Fact::Unasked;
    facts
}
