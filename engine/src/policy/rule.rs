//! The policy as it was written: statements, clauses and items, each with its span.
//!
//! Everything of the language has a type here, also what this version refuses,
//! so that a refusal points at its place and `fmt` works on any valid text.

use std::net::IpAddr;
use std::ops::Range;

use ipnet::IpNet;
use smallvec::SmallVec;

use super::diagnostic::Span;
use super::{AssumedSource, Verdict};
use crate::Protocol;

/// A value and where it was written. Two are equal when their values are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spanned<T> {
    pub(super) value: T,
    pub(super) span: Span,
}

impl<T: PartialEq> PartialEq for Spanned<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

/// Items of a clause; `not` negates the whole list.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct List<T> {
    pub(super) not: bool,
    pub(super) items: Items<T>,
}

/// Most lists have one item, which stands in the list itself.
pub(super) type Items<T> = SmallVec<[Spanned<T>; 1]>;

pub(super) type Name = Box<str>;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Statement {
    Set(Set),
    Route(Route),
    Resolve(Resolve),
    Rule(Rule),
    Default(Spanned<Verdict>),
    Expect(Box<Expect>),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Set {
    pub(super) name: Spanned<Name>,
    pub(super) body: SetBody,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum SetBody {
    Items(Vec<Spanned<SetItem>>),
    /// A path below the policy directory.
    File(Spanned<Name>),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum SetItem {
    Prefix(IpNet),
    Domain(Domain),
}

/// A name, or with `*.` in front the name and all below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Domain {
    pub(super) below: bool,
    pub(super) name: Name,
}

/// `allow`, `block`, `drop` and `ask` with their clauses.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rule {
    pub(super) action: Spanned<Action>,
    /// Its part of the file's clauses.
    pub(super) clauses: Range<usize>,
    pub(super) line: Line,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Route {
    pub(super) word: Spanned<()>,
    /// Its part of the file's clauses.
    pub(super) clauses: Range<usize>,
    pub(super) via: Vec<Spanned<Name>>,
    pub(super) line: Line,
}

/// The line that a statement begins on, and its whole span. No part of its meaning.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line {
    pub(super) number: u32,
    pub(super) span: Span,
}

impl PartialEq for Line {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Verdict(Verdict),
    Ask { within_ms: u64, otherwise: Verdict },
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Clause {
    Protocol(Protocol),
    From(List<AddressItem>),
    Client(List<AddressItem>),
    To(List<AddressItem>),
    Egress(List<EgressItem>),
    Port(List<Ports>),
    Via(Spanned<Name>),
    Resolver(List<Name>),
    User(List<UserItem>),
    App(List<AppItem>),
    Cgroup(List<CgroupItem>),
    Protected,
    Id(Spanned<Name>),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum AddressItem {
    Any,
    Multicast,
    Broadcast,
    UnknownName,
    Prefix(IpNet),
    Set(Name),
    Domain(Domain),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum EgressItem {
    Any,
    Prefix(IpNet),
    Set(Name),
    Device(crate::DeviceName),
}

/// A range of ports, both ends in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ports {
    pub(super) first: u16,
    pub(super) last: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum UserItem {
    Uid(u32),
    Name(Name),
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum AppItem {
    /// With `*` at the end: every path that begins so.
    Path {
        path: Name,
        prefix: bool,
    },
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CgroupItem {
    /// From the root, without a slash at the end; the root itself is empty.
    Path(Name),
    Unknown,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Resolve {
    pub(super) names: Vec<Spanned<ResolveItem>>,
    pub(super) using: Using,
    pub(super) private: bool,
    pub(super) line: Line,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ResolveItem {
    /// `*`: every name.
    All,
    Domain(Domain),
    Set(Name),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Using {
    None,
    Resolvers { operator: Option<Operator>, names: Vec<Spanned<Name>> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Else,
    Or,
    And,
}

/// A test that stands in the policy.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Expect {
    pub(super) verdict: Spanned<Verdict>,
    pub(super) protocol: Protocol,
    pub(super) source: Spanned<AssumedSource>,
    pub(super) destination: Spanned<ExpectDestination>,
    pub(super) port: Option<Spanned<u16>>,
    pub(super) client: Option<Spanned<IpAddr>>,
    pub(super) user: Option<Spanned<UserItem>>,
    pub(super) app: Option<Spanned<AppItem>>,
    pub(super) via: Option<Spanned<Name>>,
    pub(super) line: Line,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ExpectDestination {
    Address(IpAddr),
    /// That name, at whatever address.
    Name(Name),
}
