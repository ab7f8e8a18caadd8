//! Words into statements.
//!
//! One pass, one statement a logical line. A fault never stops the reading: the
//! parser reports it, goes on at the next item, clause or line, and so finds all
//! faults of a file at once. What can be understood lands in the result even so,
//! which keeps later checks (an unknown set, a missing default) from blaming
//! something that is there but mistyped.

mod clause;
mod words;

use super::diagnostic::{Findings, Site, SourceId, Span, code, nearest, quoted};
use super::item;
use super::rule::{
    Action, Clause, Expect, ExpectDestination, Line, Name, Operator, Resolve, ResolveItem, Route,
    Rule, Set, SetBody, SetItem, Spanned, Statement, Using,
};
use super::text::{self, Lexer, Token, TokenKind, TokenLine};
use super::{AssumedSource, Verdict};
use crate::Protocol;

/// The format that this parser reads.
const FORMAT: &str = "1";

/// Words that begin a statement.
pub(super) const STATEMENTS: [&str; 10] =
    ["policy", "set", "route", "resolve", "allow", "block", "drop", "ask", "default", "expect"];

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
    begins_as_words_do(word)
        && (word == NONE
            || STATEMENTS.contains(&word)
            || CLAUSES.contains(&word)
            || OTHERS.contains(&word))
}

/// Whether the first letter could be that of a word of the language; an address's is not.
fn begins_as_words_do(word: &str) -> bool {
    word.starts_with(|first: char| first.is_ascii_lowercase())
}

/// A word that ends a list, because something else begins with it.
fn ends_list(word: &str) -> bool {
    begins_as_words_do(word)
        && (CLAUSES.contains(&word)
            || matches!(word, "within" | "else" | "using" | "and" | "or" | "private" | "not"))
}

/// What one file says.
#[derive(Debug, Default)]
pub(super) struct File {
    pub(super) statements: Vec<Statement>,
    /// The clauses of all rules and routes, one statement's behind the other's.
    pub(super) clauses: Vec<Spanned<Clause>>,
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
    let mut file = File { understood: true, ..File::default() };
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
            line: Line { number: line.number, span },
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
            .error(code::FORMAT, Site { source, span: end }, "this file is empty")
            .help(format!("a policy begins with `policy {FORMAT}`"));
        file.understood = false;
    }
    file
}

/// Which of [`CLAUSES`] a statement had already, a bit each.
#[derive(Debug, Default)]
struct Seen(u16);

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
                .help(format!("the first statement of each file is `policy {FORMAT}`"));
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
            self.findings.error(code::FORMAT, site, message).help(if newer {
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
            Some("resolve") => self.resolve(),
            Some("allow") => self.rule(token, Verdict::Allow, Context::Allow),
            Some("block") => self.rule(token, Verdict::Block, Context::Block),
            Some("drop") => self.rule(token, Verdict::Drop, Context::Block),
            Some("ask") => self.ask(token),
            Some("default") => self.default_statement(),
            Some("expect") => self.expect(),
            Some("policy") => {
                self.findings
                    .error(code::REPEATED, self.site(token.span), "`policy` stands here again")
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
                    .error(code::UNEXPECTED, site, "`=` is missing after the name of the set")
                    .help("as in `set lan = 10.0.0.0/8 192.168.0.0/16`");
                false
            }
            None => {
                self.missing("`=` and items", "as in `set lan = 10.0.0.0/8 192.168.0.0/16`");
                false
            }
        };
        let body = if self.bare() == Some("file") {
            self.at += 1;
            self.set_file()
        } else if named {
            SetBody::Items(self.plain_list("a set", Self::set_item))
        } else {
            SetBody::Items(Vec::new())
        };
        if matches!(body, SetBody::File(_)) {
            self.finish("a set is items or one file, not both");
        } else if named {
            self.finish("a set is a list of addresses, prefixes and domains");
        }
        match name {
            Some(name) => self.file.statements.push(Statement::Set(Set { name, body })),
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
            Some(path) => SetBody::File(Spanned { value: path.into(), span: token.span }),
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
        let clauses = self.clauses(context, &mut Seen::default());
        let action = Spanned { value: Action::Verdict(verdict), span: token.span };
        let line = self.line;
        self.finish("a rule is a verdict and clauses");
        self.file.statements.push(Statement::Rule(Rule { action, clauses, line }));
    }

    fn ask(&mut self, token: Token) {
        const FORM: &str = "as in `ask to 192.0.2.1 within 2s else block`";
        let clauses = self.clauses(Context::Ask, &mut Seen::default());
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
            otherwise = self.verdict(FORM).map_or(otherwise, |verdict| verdict.value);
        } else if self.at >= self.tokens.len() {
            self.missing("`else` and a verdict", FORM);
        }
        self.finish(FORM);
        let value = Action::Ask { within_ms, otherwise };
        let action = Spanned { value, span: token.span };
        let line = self.line;
        self.file.statements.push(Statement::Rule(Rule { action, clauses, line }));
    }

    fn route(&mut self, token: Token) {
        const FORM: &str = "as in `route to 10.0.0.0/8 via direct`";
        let mut seen = Seen::default();
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
            via = Some(self.plain_list("via", Self::list_name));
            let commas = self.tokens[before..self.at].iter();
            let commas = commas.filter(|token| token.kind == TokenKind::Comma);
            self.file.kept_commas.extend(commas.map(|token| token.span));
            clauses.end = self.clauses(Context::Route, &mut seen).end;
        }
        if via.is_none() {
            self.missing("`via` and a way out", FORM);
        }
        let via = via.unwrap_or_default();
        let word = Spanned { value: (), span: token.span };
        let line = self.line;
        self.file.statements.push(Statement::Route(Route { word, clauses, via, line }));
    }

    fn resolve(&mut self) {
        const FORM: &str = "as in `resolve *.corp.example using corp else upstream`";
        let names = self.plain_list("resolve", Self::resolve_item);
        let mut using = Using::Resolvers { operator: None, names: Vec::new() };
        if self.take("using") {
            using = self.using(FORM);
        } else if self.at >= self.tokens.len() {
            self.missing("`using` and resolvers", FORM);
        }
        let word = self.peek();
        let private = self.take("private");
        if let Some(word) = word.filter(|_| private && using == Using::None) {
            let site = self.site(word.span);
            self.findings
                .error(code::UNEXPECTED, site, "`private` says nothing about `using none`")
                .help("it lets private addresses pass in answers, and here is none");
        }
        self.finish("`using`, resolvers and `private` are the end of a resolve statement");
        let resolve = Resolve { names, using, private, line: self.line };
        self.file.statements.push(Statement::Resolve(resolve));
    }

    fn using(&mut self, form: &str) -> Using {
        if self.take(NONE) {
            return Using::None;
        }
        let mut operator = None;
        let mut names: Vec<Spanned<Name>> = Vec::new();
        while let Some(token) = self.item("a resolver", form) {
            if let Some(name) = self.list_name(token) {
                if let Some(first) = names.iter().find(|known| known.value == name) {
                    let (site, first) = (self.site(token.span), self.site(first.span));
                    self.findings
                        .error(code::REPEATED, site, format!("{} stands here again", quoted(&name)))
                        .related(first, "the first time")
                        .help("a rule asks each of its resolvers once");
                }
                names.push(Spanned { value: name, span: token.span });
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
                    .error(code::UNEXPECTED, site, format!("{} is no protocol", quoted(word)))
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
        let source = Spanned { value: source, span: token.span };
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
            destination: Spanned { value: destination, span: token.span },
            port: None,
            client: None,
            user: None,
            app: None,
            via: None,
            line: self.line,
        };
        if self.expect_options(&mut expect).is_some() {
            self.file.statements.push(Statement::Expect(Box::new(expect)));
        }
    }

    fn expect_destination(&mut self, token: Token) -> Option<ExpectDestination> {
        let word = self.literal(token)?;
        if item::looks_like_address(&word) {
            return self.address(token).map(ExpectDestination::Address);
        }
        let domain = self.domain(token, &word)?;
        if domain.below {
            let site = self.site(token.span);
            self.findings
                .error(code::BAD_ITEM, site, "a flow has one name")
                .help(format!("write `{}`, or one `expect` for each name", domain.name));
            return None;
        }
        Some(ExpectDestination::Name(domain.name))
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
            self.findings.error(code::CLAUSE_NOT_ALLOWED, site, "icmp has no ports");
            return None;
        }
        Some(())
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

fn one_of(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}
