//! Words into statements.
//!
//! One pass, one statement a logical line. A fault never stops the reading: the
//! parser reports it, goes on at the next item, clause or line, and so finds all
//! faults of a file at once. What can be understood lands in the result even so,
//! which keeps later checks (an unknown set, a missing default) from blaming
//! something that is there but mistyped.

use std::borrow::Cow;
use std::net::IpAddr;

use super::diagnostic::{Findings, Site, SourceId, Span, code, nearest, quoted};
use super::item::{self, ItemError};
use super::rule::{
    Action, AddressItem, AppItem, CgroupItem, Clause, EgressItem, Expect, ExpectDestination, Line,
    List, Name, Operator, Ports, Resolve, ResolveItem, Route, Rule, Set, SetBody, SetItem, Spanned,
    Statement, UserItem, Using,
};
use super::text::{self, Lexer, Token, TokenKind, TokenLine};
use super::{AssumedSource, Verdict};
use crate::Protocol;

/// The format that this parser reads.
const FORMAT: &str = "1";

/// Words that begin a statement.
pub(super) const STATEMENTS: [&str; 10] = [
    "policy", "set", "route", "resolve", "allow", "block", "drop", "ask", "default", "expect",
];

/// Words that begin a clause of a rule.
pub(super) const CLAUSES: [&str; 15] = [
    "tcp",
    "udp",
    "icmp",
    "from",
    "client",
    "egress",
    "to",
    "port",
    "via",
    "resolver",
    "user",
    "app",
    "cgroup",
    "protected",
    "id",
];

/// The other words of the language: as items they stand in quotes.
pub(super) const OTHERS: [&str; 13] = [
    "not",
    "any",
    "multicast",
    "broadcast",
    "unknown",
    "unknown-name",
    "file",
    "within",
    "else",
    "using",
    "and",
    "or",
    "private",
];

const NONE: &str = "none";

fn is_reserved(word: &str) -> bool {
    word == NONE || STATEMENTS.contains(&word) || CLAUSES.contains(&word) || OTHERS.contains(&word)
}

/// A word that ends a list, because something else begins with it.
fn ends_list(word: &str) -> bool {
    CLAUSES.contains(&word)
        || matches!(
            word,
            "within" | "else" | "using" | "and" | "or" | "private" | "not"
        )
}

/// What one file says.
#[derive(Debug, Default)]
pub(super) struct File {
    pub(super) statements: Vec<Statement>,
    /// Whether the file is in a format that was read at all.
    pub(super) understood: bool,
    /// A `default` was there, right or wrong.
    pub(super) mentions_default: bool,
    /// A `set` was there whose name could not be read.
    pub(super) nameless_set: bool,
    /// Words whose canonical form is another, for `fmt`; in the order of the text.
    pub(super) respelled: Vec<(Span, String)>,
    /// Commas that canonical form keeps.
    pub(super) kept_commas: Vec<Span>,
}

/// Reads one file.
pub(super) fn parse(text: &str, source: SourceId, findings: &mut Findings) -> File {
    let mut file = File {
        understood: true,
        ..File::default()
    };
    let mut lexer = Lexer::new(text, source);
    let mut line = TokenLine::default();
    let mut begun = false;
    while lexer.next_line(&mut line, findings) {
        let (Some(first), Some(last)) = (line.tokens.first(), line.tokens.last()) else {
            continue;
        };
        let span = first.span.to(last.span);
        let end = Span::new(line.end, line.end);
        let mut parser = Parser {
            text,
            source,
            tokens: &line.tokens,
            at: 0,
            end,
            line: Line {
                number: line.number,
                span,
            },
            file: &mut file,
            findings,
        };
        if begun {
            parser.statement();
        } else {
            begun = true;
            if !parser.format() {
                file.understood = false;
                return file;
            }
        }
    }
    if !begun {
        let end = Span::new(text.len(), text.len());
        findings
            .error(
                code::FORMAT,
                Site { source, span: end },
                "this file is empty",
            )
            .help(format!("a policy begins with `policy {FORMAT}`"));
        file.understood = false;
    }
    file
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Context {
    Allow,
    Block,
    Ask,
    Route,
}

struct Parser<'t, 'p> {
    text: &'t str,
    source: SourceId,
    tokens: &'p [Token],
    at: usize,
    end: Span,
    line: Line,
    file: &'p mut File,
    findings: &'p mut Findings,
}

impl<'t> Parser<'t, '_> {
    /// The first statement of a file. `false` where the file is in another format.
    fn format(&mut self) -> bool {
        let start = self.tokens[0].span;
        if self.bare() != Some("policy") {
            self.findings
                .error(code::FORMAT, self.site(start), "the format is not named")
                .help(format!(
                    "the first statement of each file is `policy {FORMAT}`"
                ));
            self.statement();
            return true;
        }
        self.at += 1;
        let Some(token) = self.peek() else {
            self.missing("a format number", format!("write `policy {FORMAT}`"));
            return true;
        };
        let version = token.span.of(self.text);
        if version != FORMAT {
            let newer = version.parse::<u32>().is_ok_and(|version| version > 1);
            let site = self.site(token.span);
            let message = if newer {
                format!("this file is in format {version}, this version reads format {FORMAT}")
            } else {
                format!("{} is not a policy format", quoted(version))
            };
            self.findings
                .error(code::FORMAT, site, message)
                .help(if newer {
                    "the rest of the file was not read; a newer tunneld reads it".to_owned()
                } else {
                    format!("write `policy {FORMAT}`")
                });
            return !newer;
        }
        self.at += 1;
        self.finish("`policy 1` stands alone on its line");
        true
    }

    fn statement(&mut self) {
        let token = self.tokens[self.at];
        let word = self.bare();
        self.at += 1;
        match word {
            Some("set") => self.set(),
            Some("route") => self.route(token),
            Some("resolve") => self.resolve(token),
            Some("allow") => self.rule(token, Verdict::Allow, Context::Allow),
            Some("block") => self.rule(token, Verdict::Block, Context::Block),
            Some("drop") => self.rule(token, Verdict::Drop, Context::Block),
            Some("ask") => self.ask(token),
            Some("default") => self.default_statement(),
            Some("expect") => self.expect(),
            Some("policy") => {
                self.findings
                    .error(
                        code::REPEATED,
                        self.site(token.span),
                        "`policy` stands here again",
                    )
                    .help("it is the first statement of a file and stands once");
            }
            Some(other) => self.unknown_statement(token, other),
            None if token.kind == TokenKind::Broken => {}
            None => self.unknown_statement(token, token.span.of(self.text)),
        }
    }

    fn unknown_statement(&mut self, token: Token, word: &str) {
        let site = self.site(token.span);
        let finding = self.findings.error(
            code::UNKNOWN_STATEMENT,
            site,
            format!("{} begins no statement", quoted(word)),
        );
        match nearest(word, STATEMENTS) {
            Some(near) => finding.help(format!("did you mean `{near}`?")),
            None => finding.help(format!("a line begins with {}", one_of(&STATEMENTS[1..]))),
        };
    }

    fn set(&mut self) {
        let name = self.name("a set", false);
        let named = match self.peek() {
            Some(token) if token.kind == TokenKind::Equals => {
                self.at += 1;
                true
            }
            Some(token) => {
                let site = self.site(token.span);
                self.findings
                    .error(
                        code::UNEXPECTED,
                        site,
                        "`=` is missing after the name of the set",
                    )
                    .help("as in `set lan = 10.0.0.0/8 192.168.0.0/16`");
                false
            }
            None => {
                self.missing(
                    "`=` and items",
                    "as in `set lan = 10.0.0.0/8 192.168.0.0/16`",
                );
                false
            }
        };
        let body = if self.bare() == Some("file") {
            self.at += 1;
            self.set_file()
        } else if named {
            SetBody::Items(self.list("a set", Self::set_item).items)
        } else {
            SetBody::Items(Vec::new())
        };
        if matches!(body, SetBody::File(_)) {
            self.finish("a set is items or one file, not both");
        } else if named {
            self.finish("a set is a list of addresses, prefixes and domains");
        }
        match name {
            Some(name) => self
                .file
                .statements
                .push(Statement::Set(Set { name, body })),
            None => self.file.nameless_set = true,
        }
    }

    fn set_file(&mut self) -> SetBody {
        let Some(token) = self.peek() else {
            self.missing("the path of the file", "as in `file \"lists/ads.txt\"`");
            return SetBody::Items(Vec::new());
        };
        self.at += 1;
        match token.kind {
            TokenKind::Quoted => {}
            TokenKind::Broken => return SetBody::Items(Vec::new()),
            TokenKind::Word | TokenKind::Comma | TokenKind::Equals => {
                let word = token.span.of(self.text);
                let site = self.site(token.span);
                self.findings
                    .error(code::BAD_PATH, site, "the path of a file stands in quotes")
                    .help(format!("write `file \"{word}\"`"));
                return SetBody::Items(Vec::new());
            }
        }
        let path = text::value(self.text, token);
        match self.checked(token, item::set_file(&path)) {
            Some(path) => SetBody::File(Spanned {
                value: path.into(),
                span: token.span,
            }),
            None => SetBody::Items(Vec::new()),
        }
    }

    fn set_item(&mut self, token: Token) -> Option<SetItem> {
        let word = self.literal(token)?;
        if let Some(name) = word.strip_prefix('@') {
            let site = self.site(token.span);
            self.findings
                .error(code::BAD_ITEM, site, "a set cannot hold another set")
                .help(format!("name both where they are used: `to @{name} @…`"));
            return None;
        }
        if item::looks_like_address(&word) {
            return self.prefix(token, &word).map(SetItem::Prefix);
        }
        self.domain(token, &word).map(SetItem::Domain)
    }

    fn rule(&mut self, token: Token, verdict: Verdict, context: Context) {
        let clauses = self.clauses(context, &mut Vec::new());
        let action = Spanned {
            value: Action::Verdict(verdict),
            span: token.span,
        };
        let line = self.line;
        self.finish("a rule is a verdict and clauses");
        self.file.statements.push(Statement::Rule(Rule {
            action,
            clauses,
            line,
        }));
    }

    fn ask(&mut self, token: Token) {
        const FORM: &str = "as in `ask to 192.0.2.1 within 2s else block`";
        let clauses = self.clauses(Context::Ask, &mut Vec::new());
        let mut within_ms = 0;
        let mut otherwise = Verdict::Block;
        if self.take("within") {
            if let Some(token) = self.item("a time", FORM) {
                let word = token.span.of(self.text);
                within_ms = self.checked(token, item::duration_ms(word)).unwrap_or(0);
            }
        } else {
            self.missing("`within` and a time", FORM);
        }
        if self.take("else") {
            otherwise = self
                .verdict(FORM)
                .map_or(otherwise, |verdict| verdict.value);
        } else if self.at >= self.tokens.len() {
            self.missing("`else` and a verdict", FORM);
        }
        self.finish(FORM);
        let value = Action::Ask {
            within_ms,
            otherwise,
        };
        let action = Spanned {
            value,
            span: token.span,
        };
        let line = self.line;
        self.file.statements.push(Statement::Rule(Rule {
            action,
            clauses,
            line,
        }));
    }

    fn route(&mut self, token: Token) {
        const FORM: &str = "as in `route to 10.0.0.0/8 via direct`";
        let mut seen = Vec::new();
        let mut clauses = self.clauses(Context::Route, &mut seen);
        let mut via: Option<Vec<_>> = None;
        while let Some(token) = self.peek() {
            if !self.take("via") {
                break;
            }
            if via.is_some() {
                self.repeated(token, "via");
            }
            let before = self.at;
            via = Some(self.list("via", Self::list_name).items);
            let commas = self.tokens[before..self.at].iter();
            let commas = commas.filter(|token| token.kind == TokenKind::Comma);
            self.file.kept_commas.extend(commas.map(|token| token.span));
            clauses.extend(self.clauses(Context::Route, &mut seen));
        }
        if via.is_none() {
            self.missing("`via` and a way out", FORM);
        }
        let via = via.unwrap_or_default();
        let word = Spanned {
            value: (),
            span: token.span,
        };
        let line = self.line;
        self.file.statements.push(Statement::Route(Route {
            word,
            clauses,
            via,
            line,
        }));
    }

    fn resolve(&mut self, token: Token) {
        const FORM: &str = "as in `resolve *.corp.example using corp else upstream`";
        let names = self.list("resolve", Self::resolve_item).items;
        let mut using = Using::Resolvers {
            operator: None,
            names: Vec::new(),
        };
        if self.take("using") {
            using = self.using(FORM);
        } else if self.at >= self.tokens.len() {
            self.missing("`using` and resolvers", FORM);
        }
        let private = self.take("private");
        self.finish("`using`, resolvers and `private` are the end of a resolve statement");
        let word = Spanned {
            value: (),
            span: token.span,
        };
        let resolve = Resolve {
            word,
            names,
            using,
            private,
        };
        self.file.statements.push(Statement::Resolve(resolve));
    }

    fn using(&mut self, form: &str) -> Using {
        if self.take(NONE) {
            return Using::None;
        }
        let mut operator = None;
        let mut names = Vec::new();
        loop {
            let Some(token) = self.item("a resolver", form) else {
                break;
            };
            if let Some(name) = self.list_name(token) {
                names.push(Spanned {
                    value: name,
                    span: token.span,
                });
            }
            let Some(token) = self.peek() else { break };
            let next = match self.bare() {
                Some("else") => Operator::Else,
                Some("or") => Operator::Or,
                Some("and") => Operator::And,
                _ => break,
            };
            self.at += 1;
            if operator.is_some_and(|operator| operator != next) {
                let site = self.site(token.span);
                self.findings
                    .error(code::UNEXPECTED, site, "two operators in one statement")
                    .help("join all resolvers with `else`, with `or` or with `and`");
            }
            operator = Some(next);
        }
        Using::Resolvers { operator, names }
    }

    fn resolve_item(&mut self, token: Token) -> Option<ResolveItem> {
        let word = self.literal(token)?;
        if word == "*" {
            return Some(ResolveItem::All);
        }
        if let Some(name) = word.strip_prefix('@') {
            return self.set_name(token, name).map(ResolveItem::Set);
        }
        if item::looks_like_address(&word) {
            let site = self.site(token.span);
            self.findings
                .error(code::BAD_ITEM, site, "`resolve` takes names, not addresses")
                .help("`*.2.0.192.in-addr.arpa` are the names of 192.0.2.0/24");
            return None;
        }
        self.domain(token, &word).map(ResolveItem::Domain)
    }

    fn default_statement(&mut self) {
        self.file.mentions_default = true;
        if let Some(verdict) = self.verdict("`default allow`, `default block` or `default drop`") {
            self.file.statements.push(Statement::Default(verdict));
            self.finish("`default` takes one verdict and no clauses");
        }
    }

    fn expect(&mut self) {
        const FORM: &str = "as in `expect allow tcp any to 192.0.2.1 port 443`";
        let Some(verdict) = self.verdict(FORM) else {
            return;
        };
        let Some(token) = self.item("a protocol", FORM) else {
            return;
        };
        let word = token.span.of(self.text);
        let Some(protocol) = protocol(word) else {
            if token.kind != TokenKind::Broken {
                let site = self.site(token.span);
                self.findings
                    .error(
                        code::UNEXPECTED,
                        site,
                        format!("{} is no protocol", quoted(word)),
                    )
                    .help("`tcp`, `udp` or `icmp`");
            }
            return;
        };
        let Some(token) = self.item("the resolved source", FORM) else {
            return;
        };
        let source = if token.kind == TokenKind::Word && token.span.of(self.text) == "any" {
            AssumedSource::Any
        } else {
            let Some(address) = self.address(token) else {
                return;
            };
            AssumedSource::Address(address)
        };
        let source = Spanned {
            value: source,
            span: token.span,
        };
        if !self.take("to") {
            match self.peek() {
                Some(token) => self.unexpected(token, FORM),
                None => self.missing("`to` and a destination", FORM),
            }
            return;
        }
        let Some(token) = self.item("a destination", FORM) else {
            return;
        };
        let Some(destination) = self.expect_destination(token) else {
            return;
        };
        let mut expect = Expect {
            verdict,
            protocol,
            source,
            destination: Spanned {
                value: destination,
                span: token.span,
            },
            port: None,
            client: None,
            user: None,
            app: None,
            via: None,
            line: self.line,
        };
        if self.expect_options(&mut expect).is_some() {
            self.file
                .statements
                .push(Statement::Expect(Box::new(expect)));
        }
    }

    fn expect_destination(&mut self, token: Token) -> Option<ExpectDestination> {
        let word = self.literal(token)?;
        if item::looks_like_address(&word) {
            return self.address(token).map(ExpectDestination::Address);
        }
        self.domain(token, &word).map(ExpectDestination::Domain)
    }

    /// `None` where something was wrong and is reported.
    fn expect_options(&mut self, expect: &mut Expect) -> Option<()> {
        const FORM: &str =
            "after the destination: `port N`, `client A`, `user U`, `app P`, `via OUT`";
        while let Some(token) = self.peek() {
            let word = self.bare().unwrap_or_default();
            if !matches!(word, "port" | "client" | "user" | "app" | "via") {
                self.unexpected(token, FORM);
                return None;
            }
            self.at += 1;
            let value = self.item(&format!("a value for `{word}`"), FORM)?;
            let again = match word {
                "port" => {
                    let ports = self.ports(value)?;
                    if ports.first != ports.last {
                        let site = self.site(value.span);
                        self.findings
                            .error(code::BAD_PORT, site, "a flow has one port")
                            .help("write one `expect` for each port");
                        return None;
                    }
                    put(&mut expect.port, ports.first, value.span)
                }
                "client" => put(&mut expect.client, self.address(value)?, value.span),
                "user" => put(&mut expect.user, self.user(value)?, value.span),
                "app" => put(&mut expect.app, self.app(value)?, value.span),
                _ => put(&mut expect.via, self.list_name(value)?, value.span),
            };
            if again {
                self.repeated(token, word);
                return None;
            }
        }
        if let Some(port) = expect.port.filter(|_| expect.protocol == Protocol::Icmp) {
            let site = self.site(port.span);
            self.findings
                .error(code::CLAUSE_NOT_ALLOWED, site, "icmp has no ports");
            return None;
        }
        Some(())
    }

    // Clauses.

    /// Clauses up to the end of the line or to what ends them in this context; `seen`
    /// holds their words, since each may stand once.
    fn clauses(&mut self, context: Context, seen: &mut Vec<&'static str>) -> Vec<Spanned<Clause>> {
        let mut clauses: Vec<Spanned<Clause>> = Vec::new();
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
            let Some(known) = CLAUSES.into_iter().find(|clause| *clause == word) else {
                self.unknown_clause(token, context);
                continue;
            };
            self.at += 1;
            let key = if protocol(known).is_some() {
                "tcp"
            } else {
                known
            };
            if seen.contains(&key) {
                self.repeated(token, word);
            }
            seen.push(key);
            self.allowed(token, known, context);
            if let Some(value) = self.clause(known) {
                let last = self.tokens[self.at - 1].span;
                clauses.push(Spanned {
                    value,
                    span: token.span.to(last),
                });
            }
        }
        self.ports_need_a_transport(&clauses);
        clauses
    }

    fn clause(&mut self, word: &'static str) -> Option<Clause> {
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

    fn allowed(&mut self, token: Token, word: &str, context: Context) {
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
                .error(
                    code::CLAUSE_NOT_ALLOWED,
                    site,
                    "only `allow` can be `protected`",
                )
                .help("it keeps an allowed flow over path changes and reloads");
        }
    }

    fn ports_need_a_transport(&mut self, clauses: &[Spanned<Clause>]) {
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

    fn unknown_clause(&mut self, token: Token, context: Context) {
        if token.kind != TokenKind::Broken {
            let word = token.span.of(self.text);
            let site = self.site(token.span);
            let message = match token.kind {
                TokenKind::Comma => "a comma stands between two clauses".to_owned(),
                TokenKind::Word if word == "not" => {
                    "`not` stands after the word of its clause".to_owned()
                }
                _ => format!("{} begins no clause", quoted(word)),
            };
            let finding = self.findings.error(code::UNKNOWN_CLAUSE, site, message);
            match (token.kind, nearest(word, CLAUSES)) {
                (TokenKind::Comma, _) => finding.help("clauses are separated by white space"),
                (TokenKind::Word, _) if word == "not" => finding.help("as in `to not 10.0.0.0/8`"),
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

    fn addresses(&mut self, word: &'static str) -> List<AddressItem> {
        let list = self.list(word, |parser, token| parser.address_item(word, token));
        self.not_any(&list, |item| matches!(item, AddressItem::Any));
        list
    }

    fn address_item(&mut self, clause: &str, token: Token) -> Option<AddressItem> {
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
                    .help(format!(
                        "`{clause}` takes addresses, prefixes, sets and `any`"
                    ));
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

    fn egress_item(&mut self, token: Token) -> Option<EgressItem> {
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
        self.checked(token, item::device(&word))
            .map(EgressItem::Device)
    }

    fn ports(&mut self, token: Token) -> Option<Ports> {
        let word = self.literal(token)?;
        self.checked(token, item::ports(&word))
    }

    fn user(&mut self, token: Token) -> Option<UserItem> {
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
                        .error(
                            code::BAD_ITEM,
                            site,
                            format!("{} is not a uid", quoted(&word)),
                        )
                        .help("a uid is at most 4294967294");
                    None
                }
            };
        }
        self.checked(token, item::user_name(&word))
            .map(|name| UserItem::Name(name.into()))
    }

    fn app(&mut self, token: Token) -> Option<AppItem> {
        if token.kind == TokenKind::Word && token.span.of(self.text) == "unknown" {
            return Some(AppItem::Unknown);
        }
        let word = self.literal(token)?;
        self.checked(token, item::app(&word))
    }

    fn cgroup(&mut self, token: Token) -> Option<CgroupItem> {
        if token.kind == TokenKind::Word && token.span.of(self.text) == "unknown" {
            return Some(CgroupItem::Unknown);
        }
        let word = self.literal(token)?;
        self.checked(token, item::cgroup(&word))
    }

    fn rule_name(&mut self) -> Option<Spanned<Name>> {
        let name = self.name("the rule", true)?;
        if &*name.value == "default" {
            let site = self.site(name.span);
            self.findings
                .error(
                    code::BAD_NAME,
                    site,
                    "`default` is the name of the default verdict",
                )
                .help("give the rule another name");
            return None;
        }
        Some(name)
    }

    // Lists and words.

    /// Items up to the next clause. White space or one comma parts them.
    fn list<T>(
        &mut self,
        clause: &str,
        mut item: impl FnMut(&mut Self, Token) -> Option<T>,
    ) -> List<T> {
        let not = self.take("not");
        let mut items = Vec::new();
        let mut any = false;
        let mut comma: Option<Token> = None;
        while let Some(token) = self.peek() {
            match token.kind {
                TokenKind::Comma => {
                    if !any || comma.is_some() {
                        let site = self.site(token.span);
                        self.findings
                            .error(code::UNEXPECTED, site, "no item stands before this comma")
                            .help("one comma, or only white space, parts two items");
                    }
                    comma = Some(token);
                    self.at += 1;
                }
                TokenKind::Equals => {
                    self.unexpected(token, "`=` stands only after the name of a set");
                    comma = None;
                }
                TokenKind::Word if self.bare().is_some_and(ends_list) => break,
                TokenKind::Word | TokenKind::Quoted | TokenKind::Broken => {
                    any = true;
                    comma = None;
                    self.at += 1;
                    if let Some(value) = item(self, token) {
                        items.push(Spanned {
                            value,
                            span: token.span,
                        });
                    }
                }
            }
        }
        if let Some(comma) = comma.filter(|_| any) {
            let site = self.site(comma.span);
            self.findings
                .error(
                    code::TRAILING_COMMA,
                    site,
                    "no item stands after this comma",
                )
                .help("remove the comma");
        }
        if !any && comma.is_none() {
            let what = if clause == "a set" {
                clause.to_owned()
            } else {
                format!("`{clause}`")
            };
            self.empty(&format!("{what} needs at least one item"));
        }
        List { not, items }
    }

    fn empty(&mut self, message: &str) {
        let (span, next) = match self.peek() {
            Some(token) => (token.span, self.bare()),
            None => (self.end, None),
        };
        let site = self.site(span);
        let finding = self.findings.error(code::MISSING, site, message);
        if let Some(word) = next {
            finding.help(format!(
                "`{word}` is a word of the language: as an item, quote it"
            ));
        }
    }

    fn not_any<T>(&mut self, list: &List<T>, is_any: impl Fn(&T) -> bool) {
        if !list.not {
            return;
        }
        if let Some(any) = list.items.iter().find(|item| is_any(&item.value)) {
            let site = self.site(any.span);
            self.findings
                .error(code::NOT_ANY, site, "`not any` can never hold")
                .help("remove the rule, or name what it shall not match");
        }
    }

    /// The text of an item; a reserved word without quotes is none.
    fn literal(&mut self, token: Token) -> Option<Cow<'t, str>> {
        match token.kind {
            TokenKind::Word => {
                let word = token.span.of(self.text);
                if is_reserved(word) {
                    let site = self.site(token.span);
                    self.findings
                        .error(
                            code::RESERVED_WORD,
                            site,
                            format!("{} is a word of the language", quoted(word)),
                        )
                        .help(format!("as an item it stands in quotes: \"{word}\""));
                    return None;
                }
                Some(Cow::Borrowed(word))
            }
            TokenKind::Quoted => Some(text::value(self.text, token)),
            TokenKind::Comma | TokenKind::Equals => {
                self.unexpected_here(token, "an item stands here");
                None
            }
            TokenKind::Broken => None,
        }
    }

    fn prefix(&mut self, token: Token, word: &str) -> Option<ipnet::IpNet> {
        let prefix = self.checked(token, item::prefix(word))?;
        // Lower-case hex and short zeros, without a second parse for the common IPv4.
        if word.contains(':') {
            self.respell(token, word, item::canonical_prefix(word));
        }
        Some(prefix)
    }

    fn address(&mut self, token: Token) -> Option<IpAddr> {
        let word = self.literal(token)?;
        let address = self.checked(token, item::address(&word))?;
        if word.contains(':') {
            self.respell(token, &word, Some(address.to_string()));
        }
        Some(address)
    }

    fn domain(&mut self, token: Token, word: &str) -> Option<super::rule::Domain> {
        let domain = self.checked(token, item::domain(word))?;
        if word.ends_with('.') || word.bytes().any(|b| b.is_ascii_uppercase()) {
            self.respell(token, word, Some(item::canonical_domain(&domain)));
        }
        Some(domain)
    }

    fn respell(&mut self, token: Token, word: &str, canonical: Option<String>) {
        let Some(canonical) = canonical.filter(|canonical| canonical != word) else {
            return;
        };
        // Quotes stay: without them the item might read as a word of the language.
        let spelled = match token.kind {
            TokenKind::Quoted => format!("\"{canonical}\""),
            TokenKind::Word | TokenKind::Comma | TokenKind::Equals | TokenKind::Broken => canonical,
        };
        self.file.respelled.push((token.span, spelled));
    }

    fn set_name(&mut self, token: Token, name: &str) -> Option<Name> {
        self.checked(token, item::name(name)).map(Name::from)
    }

    fn list_name(&mut self, token: Token) -> Option<Name> {
        let word = self.literal(token)?;
        self.checked(token, item::name(&word)).map(Name::from)
    }

    /// A name that stands alone. Where `mistakable`, a word that begins a clause needs
    /// quotes: the name before it was probably forgotten.
    fn name(&mut self, what: &str, mistakable: bool) -> Option<Spanned<Name>> {
        let Some(token) = self.peek().filter(|token| token.kind != TokenKind::Equals) else {
            self.missing(
                &format!("the name of {what}"),
                "it stands right after the word",
            );
            return None;
        };
        self.at += 1;
        let plain = self
            .bare_at(self.at - 1)
            .filter(|word| !mistakable || !ends_list(word));
        let value = match plain {
            Some(word) => self.checked(token, item::name(word)).map(Name::from),
            None => self.list_name(token),
        }?;
        Some(Spanned {
            value,
            span: token.span,
        })
    }

    fn verdict(&mut self, form: &str) -> Option<Spanned<Verdict>> {
        let token = self.item("a verdict", form)?;
        let word = token.span.of(self.text);
        let value = match word {
            "allow" => Verdict::Allow,
            "block" => Verdict::Block,
            "drop" => Verdict::Drop,
            _ if token.kind == TokenKind::Broken => return None,
            _ => {
                let site = self.site(token.span);
                let near = nearest(word, ["allow", "block", "drop"]);
                self.findings
                    .error(
                        code::UNEXPECTED,
                        site,
                        format!("{} is no verdict", quoted(word)),
                    )
                    .help(match near {
                        Some(near) => format!("did you mean `{near}`?"),
                        None => "`allow`, `block` or `drop`".to_owned(),
                    });
                return None;
            }
        };
        Some(Spanned {
            value,
            span: token.span,
        })
    }

    /// The next token, whatever it is, or a fault that it is missing.
    fn item(&mut self, what: &str, form: &str) -> Option<Token> {
        let token = self.peek();
        match token {
            Some(_) => self.at += 1,
            None => self.missing(what, form),
        }
        token
    }

    fn checked<T>(&mut self, token: Token, result: Result<T, ItemError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                let site = self.site(token.span);
                self.findings
                    .error(error.code, site, error.message)
                    .maybe_help(error.help);
                None
            }
        }
    }

    fn finish(&mut self, form: &str) {
        if let Some(token) = self.peek() {
            self.unexpected(token, form);
            self.at = self.tokens.len();
        }
    }

    fn unexpected(&mut self, token: Token, form: &str) {
        self.unexpected_here(token, form);
        self.at += 1;
    }

    fn unexpected_here(&mut self, token: Token, form: &str) {
        if token.kind == TokenKind::Broken {
            return;
        }
        let word = quoted(token.span.of(self.text));
        let site = self.site(token.span);
        self.findings
            .error(
                code::UNEXPECTED,
                site,
                format!("{word} is not expected here"),
            )
            .help(form);
    }

    fn missing(&mut self, what: &str, help: impl Into<String>) {
        let site = self.site(self.peek().map_or(self.end, |token| token.span));
        self.findings
            .error(code::MISSING, site, format!("{what} is missing here"))
            .help(help);
    }

    fn repeated(&mut self, token: Token, word: &str) {
        let site = self.site(token.span);
        let protocol = protocol(word).is_some();
        self.findings
            .error(
                code::REPEATED,
                site,
                if protocol {
                    "a second protocol in one statement".to_owned()
                } else {
                    format!("a second `{word}` in one statement")
                },
            )
            .help(if protocol {
                "without a protocol a rule covers all; else write one rule for each"
            } else {
                "a clause stands once; a list holds several items"
            });
    }

    fn take(&mut self, word: &str) -> bool {
        let found = self.bare() == Some(word);
        self.at += usize::from(found);
        found
    }

    fn peek(&self) -> Option<Token> {
        self.tokens.get(self.at).copied()
    }

    /// The current token, if it is a word without quotes.
    fn bare(&self) -> Option<&'t str> {
        self.bare_at(self.at)
    }

    fn bare_at(&self, at: usize) -> Option<&'t str> {
        let token = self
            .tokens
            .get(at)
            .filter(|token| token.kind == TokenKind::Word)?;
        Some(token.span.of(self.text))
    }

    fn site(&self, span: Span) -> Site {
        Site {
            source: self.source,
            span,
        }
    }
}

/// Whether there was a value before.
fn put<T>(place: &mut Option<Spanned<T>>, value: T, span: Span) -> bool {
    place.replace(Spanned { value, span }).is_some()
}

/// The protocol that a word names.
fn protocol(word: &str) -> Option<Protocol> {
    match word {
        "tcp" => Some(Protocol::Tcp),
        "udp" => Some(Protocol::Udp),
        "icmp" => Some(Protocol::Icmp),
        _ => None,
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

fn one_of(words: &[&str]) -> String {
    words
        .iter()
        .map(|word| format!("`{word}`"))
        .collect::<Vec<_>>()
        .join(", ")
}
