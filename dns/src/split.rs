//! The plan: which resolvers a name is asked of, and which names are nobody's.
//!
//! The policy's `resolve` rules choose the resolvers ([`Plan`]). Before them stand the
//! special names ([`Special`]): what this host answers itself, and what must not reach the
//! servers of a network, or of any resolver, unless a rule that names more than `*` says
//! so. The list follows RFC 6761, 6762, 6303, 7686, 7793, 9462, 9476 and systemd-resolved.

use std::sync::Arc;

use hickory_proto::rr::RecordType;
use smallvec::SmallVec;

use crate::ask::ResolverId;
use crate::name::is_within;

/// How the resolvers of a rule are asked (POLICY: `using …`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// `A and B`: all at once, merged.
    And,
    /// `A else B`: the next when one fails.
    Else,
    /// `none`: NXDOMAIN.
    None,
    /// `A` alone.
    One,
    /// `A or B`: all at once, the first positive answer.
    Or,
}

/// The resolvers of a rule in written order.
pub type Resolvers = SmallVec<[ResolverId; 8]>;

/// What a rule says about a name. A name that no rule matches gets [`Rule::default`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// How they are asked.
    pub form: Form,
    /// Who is asked; at most 64, none twice, empty with [`Form::None`] alone.
    pub resolvers: Resolvers,
    /// Private addresses in answers pass.
    pub private: bool,
    /// The rule names more than `*`.
    pub specific: bool,
}

impl Default for Rule {
    fn default() -> Self {
        Self {
            form: Form::One,
            resolvers: SmallVec::from_slice(&[ResolverId::UPSTREAM]),
            private: false,
            specific: false,
        }
    }
}

/// The `resolve` rules. Called for every question on the shard's thread: well below 1 µs.
pub trait Plan: Send + Sync {
    /// The first rule for `name`: lower case, no last dot, `\` escapes as in [`crate::name`].
    fn rule(&self, name: &str) -> Rule;
}

/// A name that is answered here, whatever the servers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// 127.0.0.1, `::1`, no other data (RFC 6761 section 6.3).
    Localhost,
    /// The reverse of 127.0.0.1 or `::1`: `localhost`.
    LocalhostReverse,
    /// A name of a zone that holds no data: NODATA.
    NoData {
        /// How many of the name's last labels are the zone's.
        zone: u8,
    },
    /// A name below the apex of an empty zone: NXDOMAIN.
    NoName {
        /// How many of the name's last labels are the zone's.
        zone: u8,
    },
    /// No server is configured for it: REFUSED, as systemd-resolved answers.
    Refused,
}

/// Zones that are empty here unless a rule names them. RFC 6303 section 4 (reverse zones
/// of private, loopback, link-local, documentation and broadcast addresses), RFC 7793
/// (100.64.0.0/10, in [`reverse`] with 172.16.0.0/12), fc00::/8 beside fd00::/8, RFC 6761 (`invalid`, `test`),
/// RFC 7686 (`onion`), RFC 9476 (`alt`).
const EMPTY: [&str; 22] = [
    "0.in-addr.arpa",
    "10.in-addr.arpa",
    "127.in-addr.arpa",
    "254.169.in-addr.arpa",
    "168.192.in-addr.arpa",
    "2.0.192.in-addr.arpa",
    "100.51.198.in-addr.arpa",
    "113.0.203.in-addr.arpa",
    "255.255.255.255.in-addr.arpa",
    "0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa",
    "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa",
    "8.b.d.0.1.0.0.2.ip6.arpa",
    "c.f.ip6.arpa",
    "d.f.ip6.arpa",
    "8.e.f.ip6.arpa",
    "9.e.f.ip6.arpa",
    "a.e.f.ip6.arpa",
    "b.e.f.ip6.arpa",
    "alt",
    "invalid",
    "onion",
    "test",
];

/// Which servers a question goes to, if any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// To these.
    Ask(Rule),
    /// To none: answered here.
    Here(Special),
}

/// A search domain, and the resolver whose servers know it.
pub type SearchDomain = (String, ResolverId);

/// The plan in force and the search domains.
#[derive(Clone)]
pub struct Split {
    plan: Arc<dyn Plan>,
    search: Arc<[SearchDomain]>,
}

impl std::fmt::Debug for Split {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Split").field("search", &self.search).finish_non_exhaustive()
    }
}

impl Split {
    /// A plan, and search domains with whose they are: a name within one of them is no longer
    /// nobody's, single-label or `.local` or not, where its rule asks that resolver.
    pub fn new(plan: Arc<dyn Plan>, search: &[SearchDomain]) -> Self {
        let search = search
            .iter()
            .map(|(domain, of)| (domain.trim_end_matches('.').to_ascii_lowercase(), *of))
            .filter(|(domain, _)| !domain.is_empty())
            .collect();
        Self { plan, search }
    }

    /// The same search domains with another plan.
    #[must_use]
    pub fn with_plan(&self, plan: Arc<dyn Plan>) -> Self {
        Self { plan, search: Arc::clone(&self.search) }
    }

    /// The same plan with other search domains.
    #[must_use]
    pub fn with_search(&self, search: &[SearchDomain]) -> Self {
        Self::new(Arc::clone(&self.plan), search)
    }

    /// Where a question goes. `name` as [`Plan::rule`] wants it.
    pub fn choose(&self, name: &str, kind: RecordType) -> Choice {
        let special = special(name, kind);
        // RFC 6761 section 6.3: localhost is this host, whatever a rule says.
        if let Some(special @ (Special::Localhost | Special::LocalhostReverse)) = special {
            return Choice::Here(special);
        }
        let rule = self.plan.rule(name);
        match special {
            Some(special) if !rule.specific && rule.form != Form::None => {
                let searched = special == Special::Refused
                    && self
                        .search
                        .iter()
                        .any(|(domain, of)| is_within(name, domain) && rule.resolvers.contains(of));
                if searched { Choice::Ask(rule) } else { Choice::Here(special) }
            }
            Some(_) | None => Choice::Ask(rule),
        }
    }
}

/// What a name is when no rule names it; None for all but a few.
fn special(name: &str, kind: RecordType) -> Option<Special> {
    let (rest, last) = name.rsplit_once('.').unwrap_or(("", name));
    match last {
        "localhost" => return Some(Special::Localhost),
        "localdomain" if rest == "localhost" || rest.ends_with(".localhost") => {
            return Some(Special::Localhost);
        }
        // RFC 6762 section 22.1: mDNS, not DNS.
        "local" => return Some(Special::Refused),
        "arpa" => return reverse(name),
        "alt" | "invalid" | "onion" | "test" => {}
        // ResolveUnicastSingleLabel=no: addresses of single-label names only; what a
        // validator asks about a top-level domain passes.
        last if rest.is_empty() && !last.is_empty() => {
            let addresses = matches!(kind, RecordType::A | RecordType::AAAA | RecordType::HTTPS);
            return addresses.then_some(Special::Refused);
        }
        _ => return None,
    }
    Some(empty(name, 1))
}

/// A name in `arpa`.
fn reverse(name: &str) -> Option<Special> {
    // RFC 9462 section 6.4: were this name answered by a server that we ask, the app would
    // go to that server past us.
    if is_within(name, "resolver.arpa") {
        return Some(Special::NoData { zone: 2 });
    }
    const LOOPBACK6: &str =
        "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa";
    if name == "1.0.0.127.in-addr.arpa" || name == LOOPBACK6 {
        return Some(Special::LocalhostReverse);
    }
    if let Some(zone) = EMPTY.iter().find(|zone| is_within(name, zone)) {
        return Some(empty(name, labels(zone)));
    }
    let mut octets = name.strip_suffix(".in-addr.arpa")?.rsplit('.');
    let first = octets.next()?;
    let second: u8 = octets.next()?.parse().ok()?;
    matches!((first, second), ("172", 16..=31) | ("100", 64..=127)).then(|| empty(name, 4))
}

fn empty(name: &str, zone: u8) -> Special {
    if labels(name) == zone { Special::NoData { zone } } else { Special::NoName { zone } }
}

/// At most 127 (RFC 1035 section 3.1). An escaped dot counts as one more, which no zone of
/// the list has.
fn labels(name: &str) -> u8 {
    name.bytes().filter(|byte| *byte == b'.').count().saturating_add(1).try_into().unwrap_or(255)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names below `named` have a rule of their own.
    struct Named(&'static str);

    impl Plan for Named {
        fn rule(&self, name: &str) -> Rule {
            let specific = !self.0.is_empty() && is_within(name, self.0);
            let resolver = if specific { ResolverId(3) } else { ResolverId::UPSTREAM };
            Rule { resolvers: SmallVec::from_slice(&[resolver]), specific, ..Rule::default() }
        }
    }

    #[test]
    fn special_names_go_nowhere() {
        use RecordType as T;
        for (name, kind, expected) in [
            ("example.com", T::A, None),
            ("", T::NS, None),
            ("localhost", T::A, Some(Special::Localhost)),
            ("x.localhost", T::MX, Some(Special::Localhost)),
            ("localhost.localdomain", T::A, Some(Special::Localhost)),
            ("x.localdomain", T::A, None),
            ("printer", T::A, Some(Special::Refused)),
            ("printer", T::HTTPS, Some(Special::Refused)),
            ("com", T::DS, None),
            ("printer.local", T::AAAA, Some(Special::Refused)),
            ("x.invalid", T::A, Some(Special::NoName { zone: 1 })),
            ("invalid", T::A, Some(Special::NoData { zone: 1 })),
            ("a.b.test", T::A, Some(Special::NoName { zone: 1 })),
            ("x.onion", T::TXT, Some(Special::NoName { zone: 1 })),
            ("x.alt", T::A, Some(Special::NoName { zone: 1 })),
            ("home.arpa", T::A, None),
            ("_dns.resolver.arpa", T::SVCB, Some(Special::NoData { zone: 2 })),
            ("1.0.0.127.in-addr.arpa", T::PTR, Some(Special::LocalhostReverse)),
            ("2.0.0.127.in-addr.arpa", T::PTR, Some(Special::NoName { zone: 3 })),
            ("1.1.168.192.in-addr.arpa", T::PTR, Some(Special::NoName { zone: 4 })),
            ("168.192.in-addr.arpa", T::SOA, Some(Special::NoData { zone: 4 })),
            ("1.1.16.172.in-addr.arpa", T::PTR, Some(Special::NoName { zone: 4 })),
            ("31.172.in-addr.arpa", T::PTR, Some(Special::NoData { zone: 4 })),
            ("1.1.32.172.in-addr.arpa", T::PTR, None),
            ("1.1.15.172.in-addr.arpa", T::PTR, None),
            ("172.in-addr.arpa", T::PTR, None),
            ("1.1.64.100.in-addr.arpa", T::PTR, Some(Special::NoName { zone: 4 })),
            ("1.1.128.100.in-addr.arpa", T::PTR, None),
            ("8.8.8.8.in-addr.arpa", T::PTR, None),
            ("1.d.f.ip6.arpa", T::PTR, Some(Special::NoName { zone: 4 })),
            ("8.e.f.ip6.arpa", T::PTR, Some(Special::NoData { zone: 5 })),
            ("1.0.8.b.d.0.1.0.0.2.ip6.arpa", T::PTR, Some(Special::NoName { zone: 10 })),
            ("1.0.0.2.ip6.arpa", T::PTR, None),
        ] {
            assert_eq!(special(name, kind), expected, "{name} {kind}");
        }
    }

    #[test]
    fn a_rule_or_a_search_domain_opens_a_special_name() {
        let asked = |named: &'static str, search: &[(&str, u8)], name: &str| {
            let search = search.iter().map(|(domain, of)| ((*domain).to_owned(), ResolverId(*of)));
            let search: Vec<SearchDomain> = search.collect();
            match Split::new(Arc::new(Named(named)), &search).choose(name, RecordType::A) {
                Choice::Ask(rule) => Some(rule.resolvers[0].0),
                Choice::Here(_) => None,
            }
        };
        for (case, named, search, name, expected) in [
            ("no rule", "", &[][..], "www.example", Some(0)),
            ("single label", "", &[], "printer", None),
            ("single label, a rule", "printer", &[], "printer", Some(3)),
            ("local, a search domain", "", &[("lan.local.", 0)], "nas.lan.local", Some(0)),
            ("local, another's", "", &[("lan.local", 0)], "nas.home.local", None),
            (
                "local, a search domain of whom nobody asks",
                "",
                &[("lan.local", 3)],
                "nas.lan.local",
                None,
            ),
            ("local, one of each", "", &[("lan.local", 3), ("local", 0)], "nas.lan.local", Some(0)),
            ("single label, a search domain", "", &[("CORP", 0)], "corp", Some(0)),
            ("reverse, a rule", "10.in-addr.arpa", &[], "1.2.3.10.in-addr.arpa", Some(3)),
            ("reverse, a search domain", "", &[("in-addr.arpa", 0)], "1.0.0.10.in-addr.arpa", None),
            ("localhost, a rule", "localhost", &[], "localhost", None),
            ("test, a rule", "lab.test", &[], "a.lab.test", Some(3)),
        ] {
            assert_eq!(asked(named, search, name), expected, "{case}");
        }
    }
}
