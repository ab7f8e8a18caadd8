//! Clauses of rules and routes.

use std::ops::Range;

use super::super::diagnostic::{code, nearest, quoted};
use super::super::item;
use super::super::rule::{
    AddressItem, AppItem, CgroupItem, Clause, EgressItem, List, Name, Ports, Spanned, UserItem,
};
use super::super::text::{Token, TokenKind};
use super::{CLAUSES, Context, Parser, Seen, ends_list, one_of, protocol};
use crate::Protocol;

impl Parser<'_, '_> {
    /// Clauses up to the end of the line or to what ends them in this context; `seen`
    /// holds their words, since each may stand once.
    pub(super) fn clauses(&mut self, context: Context, seen: &mut Seen) -> Range<usize> {
        let first = self.file.clauses.len();
        while let Some(token) = self.peek() {
            let word = self.bare().unwrap_or_default();
            let done = match context {
                Context::Route => word == "via",
                Context::Ask => matches!(word, "within" | "else"),
                Context::Allow | Context::Block => false,
            };
            if done {
                break;
            }
            let Some(nth) = CLAUSES.iter().position(|clause| *clause == word) else {
                self.unknown_clause(token, context);
                continue;
            };
            let known = CLAUSES[nth];
            self.at += 1;
            // One protocol is as good as another.
            let bit = if protocol(known).is_some() { 1 } else { 1 << nth };
            if seen.0 & bit != 0 {
                self.repeated(token, word);
            }
            seen.0 |= bit;
            self.allowed(token, known, context);
            if let Some(value) = self.clause(known) {
                let last = self.tokens[self.at - 1].span;
                self.file.clauses.push(Spanned { value, span: token.span.to(last) });
            }
        }
        let clauses = first..self.file.clauses.len();
        self.ports_need_a_transport(clauses.clone());
        clauses
    }

    pub(super) fn clause(&mut self, word: &'static str) -> Option<Clause> {
        Some(match word {
            "tcp" => Clause::Protocol(Protocol::Tcp),
            "udp" => Clause::Protocol(Protocol::Udp),
            "icmp" => Clause::Protocol(Protocol::Icmp),
            "from" => Clause::From(self.addresses(word)),
            "client" => Clause::Client(self.addresses(word)),
            "to" => Clause::To(self.addresses(word)),
            "egress" => {
                let list = self.list(word, Self::egress_item);
                self.not_any(&list, |item| matches!(item, EgressItem::Any));
                Clause::Egress(list)
            }
            "port" => Clause::Port(self.list(word, Self::ports)),
            "via" => Clause::Via(self.name("a way out", true)?),
            "resolver" => Clause::Resolver(self.list(word, Self::list_name)),
            "user" => Clause::User(self.list(word, Self::user)),
            "app" => Clause::App(self.list(word, Self::app)),
            "cgroup" => Clause::Cgroup(self.list(word, Self::cgroup)),
            "protected" => Clause::Protected,
            _ => Clause::Id(self.rule_name()?),
        })
    }

    pub(super) fn allowed(&mut self, token: Token, word: &str, context: Context) {
        let site = self.site(token.span);
        if context == Context::Route && matches!(word, "from" | "egress") {
            self.findings
                .error(
                    code::CLAUSE_NOT_ALLOWED,
                    site,
                    format!("a route cannot use `{word}`, since the route decides it"),
                )
                .help("`client` is the source address as the app or the client sent it");
        }
        if context != Context::Allow && word == "protected" {
            self.findings
                .error(code::CLAUSE_NOT_ALLOWED, site, "only `allow` can be `protected`")
                .help("it keeps an allowed flow over path changes and reloads");
        }
    }

    pub(super) fn ports_need_a_transport(&mut self, clauses: Range<usize>) {
        let clauses = &self.file.clauses[clauses];
        let icmp = |c: &&Spanned<Clause>| c.value == Clause::Protocol(Protocol::Icmp);
        let port = |c: &&Spanned<Clause>| matches!(c.value, Clause::Port(_));
        let (Some(icmp), Some(port)) = (clauses.iter().find(icmp), clauses.iter().find(port))
        else {
            return;
        };
        let site = self.site(port.span);
        let other = self.site(icmp.span);
        self.findings
            .error(code::CLAUSE_NOT_ALLOWED, site, "icmp has no ports")
            .help("`port` goes with `tcp`, with `udp` or with neither, which is both")
            .related(other, "the protocol of this rule");
    }

    pub(super) fn unknown_clause(&mut self, token: Token, context: Context) {
        if token.kind != TokenKind::Broken {
            let word = token.span.of(self.text);
            let site = self.site(token.span);
            let message = match word {
                "," => "a comma stands between two clauses".to_owned(),
                "not" => "`not` stands after the word of its clause".to_owned(),
                _ => format!("{} begins no clause", quoted(word)),
            };
            let finding = self.findings.error(code::UNKNOWN_CLAUSE, site, message);
            match (word, nearest(word, CLAUSES)) {
                (",", _) => finding.help("clauses are separated by white space"),
                ("not", _) => finding.help("as in `to not 10.0.0.0/8`"),
                (_, Some(near)) => finding.help(format!("did you mean `{near}`?")),
                (_, None) if item::looks_like_address(word) || word.starts_with('@') => {
                    finding.help(format!("write `to {word}` or `from {word}`"))
                }
                (_, None) => finding.help(format!("here may stand {}", clause_words(context))),
            };
        }
        // The items of a mistyped clause are no news: go on at the next clause.
        self.at += 1;
        if token.kind == TokenKind::Comma || self.bare_at(self.at - 1) == Some("not") {
            return;
        }
        while self.peek().is_some() && !self.bare().is_some_and(|w| ends_list(w) && w != "not") {
            self.at += 1;
        }
    }

    pub(super) fn addresses(&mut self, word: &'static str) -> List<AddressItem> {
        let list = self.list(word, |parser, token| parser.address_item(word, token));
        self.not_any(&list, |item| matches!(item, AddressItem::Any));
        list
    }

    pub(super) fn address_item(&mut self, clause: &str, token: Token) -> Option<AddressItem> {
        if token.kind == TokenKind::Word {
            let special = match token.span.of(self.text) {
                "any" => return Some(AddressItem::Any),
                "multicast" => Some(AddressItem::Multicast),
                "broadcast" => Some(AddressItem::Broadcast),
                "unknown-name" => Some(AddressItem::UnknownName),
                _ => None,
            };
            if let Some(special) = special {
                if clause == "to" {
                    return Some(special);
                }
                let site = self.site(token.span);
                let word = quoted(token.span.of(self.text));
                self.findings
                    .error(code::BAD_ITEM, site, format!("{word} is only for `to`"))
                    .help(format!("`{clause}` takes addresses, prefixes, sets and `any`"));
                return None;
            }
        }
        let word = self.literal(token)?;
        if let Some(name) = word.strip_prefix('@') {
            return self.set_name(token, name).map(AddressItem::Set);
        }
        if item::looks_like_address(&word) {
            return self.prefix(token, &word).map(AddressItem::Prefix);
        }
        self.domain(token, &word).map(AddressItem::Domain)
    }

    pub(super) fn egress_item(&mut self, token: Token) -> Option<EgressItem> {
        if token.kind == TokenKind::Word && token.span.of(self.text) == "any" {
            return Some(EgressItem::Any);
        }
        let word = self.literal(token)?;
        if let Some(name) = word.strip_prefix('@') {
            return self.set_name(token, name).map(EgressItem::Set);
        }
        if item::looks_like_address(&word) {
            return self.prefix(token, &word).map(EgressItem::Prefix);
        }
        self.checked(token, item::device(&word)).map(EgressItem::Device)
    }

    pub(super) fn ports(&mut self, token: Token) -> Option<Ports> {
        let word = self.literal(token)?;
        self.checked(token, item::ports(&word))
    }

    pub(super) fn user(&mut self, token: Token) -> Option<UserItem> {
        if token.kind == TokenKind::Word && token.span.of(self.text) == "unknown" {
            return Some(UserItem::Unknown);
        }
        let word = self.literal(token)?;
        if !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit()) {
            // uid 4294967295 means "no user" to the kernel.
            return match word.parse().ok().filter(|uid| *uid != u32::MAX) {
                Some(uid) => Some(UserItem::Uid(uid)),
                None => {
                    let site = self.site(token.span);
                    self.findings
                        .error(code::BAD_ITEM, site, format!("{} is not a uid", quoted(&word)))
                        .help("a uid is at most 4294967294");
                    None
                }
            };
        }
        self.checked(token, item::user_name(&word)).map(|name| UserItem::Name(name.into()))
    }

    pub(super) fn app(&mut self, token: Token) -> Option<AppItem> {
        if token.kind == TokenKind::Word && token.span.of(self.text) == "unknown" {
            return Some(AppItem::Unknown);
        }
        let word = self.literal(token)?;
        self.checked(token, item::app(&word))
    }

    pub(super) fn cgroup(&mut self, token: Token) -> Option<CgroupItem> {
        if token.kind == TokenKind::Word && token.span.of(self.text) == "unknown" {
            return Some(CgroupItem::Unknown);
        }
        let word = self.literal(token)?;
        self.checked(token, item::cgroup(&word))
    }

    pub(super) fn rule_name(&mut self) -> Option<Spanned<Name>> {
        let name = self.name("the rule", true)?;
        if &*name.value == "default" {
            let site = self.site(name.span);
            self.findings
                .error(code::BAD_NAME, site, "`default` is the name of the default verdict")
                .help("give the rule another name");
            return None;
        }
        Some(name)
    }
}

fn clause_words(context: Context) -> String {
    let words: Vec<&str> = CLAUSES
        .into_iter()
        .filter(|word| match context {
            Context::Allow => true,
            Context::Block | Context::Ask => *word != "protected",
            Context::Route => !matches!(*word, "from" | "egress" | "protected"),
        })
        .collect();
    one_of(&words)
}
