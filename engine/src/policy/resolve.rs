//! Who answers a name: the first `resolve` rule that has it.
//!
//! A name is looked up once, whatever the number of rules and domains: what is listed above
//! it has already handed down the lowest rule. A reverse name (`in-addr.arpa`, `ip6.arpa`)
//! also stands for the addresses whose names it leads to, and a set with all of them has it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;

use ipnet::{IpNet, Ipv4Net};
use smallvec::SmallVec;

use super::compile::Resolving;
use super::diagnostic::{Findings, code, quoted};
use super::domains::{Domains, Labels, NameHasher, NameMap, Pair};
use super::set::{self, Interval, Key, Members};
use super::{Form, Resolution};
use crate::ResolverId;

/// No rule.
const NONE: u32 = u32::MAX;

/// Items of a rule of which each is asked whether an earlier rule has it.
const ITEMS: usize = 65_536;

/// The `resolve` rules of a policy.
#[derive(Debug)]
pub(super) struct Resolutions {
    rules: Vec<Rule>,
    names: NameMap,
    /// The first rule with `*`.
    all: u32,
    v4: Addresses<u32>,
    v6: Addresses<u128>,
}

impl Default for Resolutions {
    fn default() -> Self {
        let (v4, v6) = (Addresses::default(), Addresses::default());
        Self { rules: Vec::new(), names: NameMap::default(), all: NONE, v4, v6 }
    }
}

#[derive(Debug)]
struct Rule {
    /// `FILE:LINE`.
    name: Box<str>,
    form: Form,
    resolvers: SmallVec<[ResolverId; 4]>,
    private: bool,
    specific: bool,
}

impl Resolutions {
    pub(super) fn build(
        given: Vec<Resolving>,
        hasher: &NameHasher,
        findings: &mut Findings,
    ) -> Self {
        if given.is_empty() {
            return Self::default();
        }
        let all = (0..).zip(&given).find_map(|(at, rule)| rule.all.then_some(at)).unwrap_or(NONE);
        // The lists of all rules, and the rule of each.
        let mut lists: Vec<&Domains> = Vec::new();
        let mut owners: Vec<u32> = Vec::new();
        for (at, rule) in (0..).zip(&given) {
            let sets = rule.sets.iter().filter_map(|set| set.domains.as_deref());
            for list in sets.chain([&rule.domains]).filter(|list| !list.is_empty()) {
                lists.push(list);
                owners.push(at);
            }
        }
        let mut below = vec![NONE; lists.iter().map(|list| list.len()).sum()];
        let names = NameMap::build(&lists, hasher, |node| {
            let inherited = node.parent.map_or(NONE, |parent| below[parent]);
            let mut pair = Pair { exact: inherited, below: inherited };
            for (list, all_below) in node.lists() {
                let rule = owners[list as usize];
                pair.exact = pair.exact.min(rule);
                pair.below = if all_below { pair.below.min(rule) } else { pair.below };
            }
            below[node.place] = pair.below;
            Ok::<Pair, std::convert::Infallible>(pair)
        });
        let Ok(names) = names;
        let v4 = Addresses::build(&given, |set| &set.narrow);
        let v6 = Addresses::build(&given, |set| &set.wide);
        let mut built = Self { rules: Vec::new(), names, all, v4, v6 };
        for (at, rule) in (0..).zip(&given) {
            built.warn(at, rule, &given, findings);
        }
        built.rules = given
            .into_iter()
            .map(|rule| Rule {
                name: rule.name,
                form: rule.form,
                resolvers: rule.resolvers,
                private: rule.private,
                specific: !rule.all,
            })
            .collect();
        built
    }

    pub(super) fn len(&self) -> usize {
        self.rules.len()
    }

    /// The first rule for a name; without one `upstream` answers.
    pub(super) fn of(&self, name: &str) -> Resolution<'_> {
        const UPSTREAM: &[ResolverId] = &[ResolverId::UPSTREAM];
        let mut first = self.all.min(self.names.find(name).unwrap_or(NONE));
        if !(self.v4.is_empty() && self.v6.is_empty())
            && let Some(prefix) = reverse(name)
        {
            first = first.min(match prefix {
                IpNet::V4(net) => self.v4.holding((net.network().into(), net.broadcast().into())),
                IpNet::V6(net) => self.v6.holding((net.network().into(), net.broadcast().into())),
            });
        }
        match self.rules.get(first as usize) {
            Some(rule) => Resolution {
                form: rule.form,
                resolvers: &rule.resolvers,
                private: rule.private,
                specific: rule.specific,
                rule: &rule.name,
            },
            None => Resolution {
                form: Form::One,
                resolvers: UPSTREAM,
                private: false,
                specific: false,
                rule: "",
            },
        }
    }

    /// Warns where earlier rules have all that this one has.
    fn warn(&self, at: u32, rule: &Resolving, given: &[Resolving], findings: &mut Findings) {
        let found = match self.shadow(at, rule) {
            Shadow::None => return,
            Shadow::Empty => {
                findings
                    .warning(
                        code::SHADOWED,
                        rule.site,
                        "this `resolve` can never match: its list is empty",
                    )
                    .help("remove it, or fill the set that it uses");
                return;
            }
            Shadow::By(rule) => &given[rule as usize],
        };
        let message =
            format!("this `resolve` can never match: {} stands before it", quoted(&found.name));
        findings
            .warning(code::SHADOWED, rule.site, message)
            .related(found.site, "names of the later one are its own")
            .help("remove this `resolve`, or move it up");
    }

    fn shadow(&self, at: u32, rule: &Resolving) -> Shadow {
        let lists = || {
            let sets = rule.sets.iter().filter_map(|set| set.domains.as_deref());
            sets.chain([&rule.domains])
        };
        let count = rule.sets.iter().map(|set| set.len()).sum::<usize>()
            + lists().map(Domains::len).sum::<usize>();
        if !rule.all && count == 0 {
            return Shadow::Empty;
        }
        if self.all < at {
            return Shadow::By(self.all);
        }
        if rule.all || count > ITEMS {
            return Shadow::None;
        }
        let names = lists().flat_map(Domains::iter).map(|(name, below)| {
            let found = if below { self.names.find_below(name) } else { self.names.find(name) };
            found.unwrap_or(NONE)
        });
        let sets = rule.sets.iter();
        let v4 = sets.clone().flat_map(|set| &set.narrow).map(|range| self.v4.holding(*range));
        let v6 = sets.flat_map(|set| &set.wide).map(|range| self.v6.holding(*range));
        let mut earlier = names.chain(v4).chain(v6);
        let Some(first) = earlier.next() else { return Shadow::None };
        if first < at && earlier.all(|rule| rule < at) { Shadow::By(first) } else { Shadow::None }
    }
}

/// Whether a rule can match.
enum Shadow {
    None,
    /// There is nothing in its lists.
    Empty,
    /// This rule, and perhaps others, stands before it.
    By(u32),
}

/// The addresses of one family in the sets of rules.
#[derive(Debug)]
struct Addresses<K> {
    /// Where the first rule becomes another, and which it is.
    steps: Vec<(K, u32)>,
    /// The rules that have addresses, in order.
    rules: Vec<(u32, Box<[Interval<K>]>)>,
}

impl<K> Default for Addresses<K> {
    fn default() -> Self {
        Self { steps: Vec::new(), rules: Vec::new() }
    }
}

impl<K: Key> Addresses<K> {
    fn build(given: &[Resolving], intervals: impl Fn(&Members) -> &[Interval<K>]) -> Self {
        let mut rules = Vec::new();
        for (at, rule) in (0..).zip(given) {
            let sets = rule.sets.iter().map(Rc::as_ref);
            let mut all: Vec<_> = sets.flat_map(&intervals).copied().collect();
            let kept = set::joined(&mut all);
            all.truncate(kept);
            if !all.is_empty() {
                rules.push((at, all.into_boxed_slice()));
            }
        }
        let mut ends: Vec<(K, u32)> = Vec::new();
        for (at, intervals) in &rules {
            for (first, last) in intervals {
                ends.push((*first, *at));
                // What reaches the last key never ends.
                ends.extend(last.next().map(|end| (end, *at)));
            }
        }
        ends.sort();
        let mut holding = BTreeSet::new();
        let mut steps = Vec::with_capacity(ends.len());
        for ends in ends.chunk_by(|a, b| a.0 == b.0) {
            for (_, rule) in ends {
                if !holding.remove(rule) {
                    holding.insert(*rule);
                }
            }
            steps.push((ends[0].0, holding.first().copied().unwrap_or(NONE)));
        }
        Self { steps, rules }
    }

    fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The first rule that has all of these addresses.
    fn holding(&self, range: Interval<K>) -> u32 {
        let step = |key: K| self.steps.partition_point(|(start, _)| *start <= key);
        let (first, last) = (step(range.0), step(range.1));
        if first == last {
            return first.checked_sub(1).map_or(NONE, |at| self.steps[at].1);
        }
        let holds = |intervals: &[Interval<K>]| set::contains(intervals, &[range]);
        self.rules.iter().find(|(_, intervals)| holds(intervals)).map_or(NONE, |(rule, _)| *rule)
    }
}

/// The prefix whose names a reverse name leads to (RFC 1035 3.5, RFC 3596 2.5): of whole
/// octets or nibbles. A name below such a name is of the same prefix, as those of RFC 2317 and
/// of RFC 6763 11 are.
fn reverse(name: &str) -> Option<IpNet> {
    let mut labels = Labels::of(name);
    let (Some("arpa"), Some(zone)) = (labels.next(), labels.next()) else { return None };
    if zone == "in-addr" {
        let mut octets = [0; 4];
        let mut length = 0;
        for (octet, label) in octets.iter_mut().zip(labels) {
            let Some(number) = octet_of(label) else { break };
            *octet = number;
            length += 8;
        }
        return Ipv4Net::new(Ipv4Addr::from(octets), length).ok().map(IpNet::V4);
    }
    let mut bits: u128 = 0;
    let mut length: u8 = 0;
    if zone != "ip6" {
        return None;
    }
    for label in labels.take(32) {
        let nibble = (label.len() == 1).then(|| u128::from_str_radix(label, 16).ok()).flatten();
        let Some(nibble) = nibble else { break };
        length += 4;
        bits |= nibble << (128 - u32::from(length));
    }
    let address = Ipv6Addr::from(bits);
    // An IPv4-mapped address is read as IPv4.
    match (address.to_ipv4_mapped(), length.checked_sub(96)) {
        (Some(v4), Some(length)) => Ipv4Net::new(v4, length).ok().map(IpNet::V4),
        (Some(_) | None, _) => IpNet::new(IpAddr::V6(address), length).ok(),
    }
}

/// A decimal number without zeros before it.
fn octet_of(label: &str) -> Option<u8> {
    let plain =
        label.bytes().all(|b| b.is_ascii_digit()) && (label.len() == 1 || !label.starts_with('0'));
    if plain { label.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reverse_names() {
        let full = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa";
        let mapped = "1.0.2.0.0.0.0.c.f.f.f.f.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa";
        for (name, want) in [
            ("4.3.2.1.in-addr.arpa", Some("1.2.3.4/32")),
            ("2.1.in-addr.arpa", Some("1.2.0.0/16")),
            ("in-addr.arpa", Some("0.0.0.0/0")),
            ("b._dns-sd._udp.0.2.0.192.in-addr.arpa", Some("192.0.2.0/32")),
            ("5.0-127.2.0.192.in-addr.arpa", Some("192.0.2.0/24")),
            ("256.in-addr.arpa", Some("0.0.0.0/0")),
            ("01.in-addr.arpa", Some("0.0.0.0/0")),
            ("0.10.in-addr.arpa", Some("10.0.0.0/16")),
            ("5.4.3.2.1.in-addr.arpa", Some("1.2.3.4/32")),
            ("xin-addr.arpa", None),
            ("in-addr.arpa.example", None),
            ("1\\.10.in-addr.arpa", Some("0.0.0.0/0")),
            ("1.x\\.in-addr.arpa", None),
            (full, Some("2001:db8::1/128")),
            ("8.b.d.0.1.0.0.2.ip6.arpa", Some("2001:db8::/32")),
            ("b.d.0.1.0.0.2.ip6.arpa", Some("2001:db0::/28")),
            ("ip6.arpa", Some("::/0")),
            ("x.d.0.1.0.0.2.ip6.arpa", Some("2001:d00::/24")),
            ("10.ip6.arpa", Some("::/0")),
            (mapped, Some("192.0.2.1/32")),
            ("arpa", None),
            ("", None),
        ] {
            assert_eq!(reverse(name).map(|net| net.to_string()).as_deref(), want, "{name}");
        }
    }
}
