//! Lists, names and single words, and what is said where one is missing or does not
//! belong.

use std::borrow::Cow;
use std::net::IpAddr;

use super::super::Verdict;
use super::super::diagnostic::{Site, Span, code, nearest, quoted};
use super::super::item::{self, ItemError};
use super::super::rule::{Domain, Items, List, Name, Spanned};
use super::super::text::{self, Token, TokenKind};
use super::{Parser, ends_list, is_reserved, protocol};

impl<'t> Parser<'t, '_> {
    /// Items up to the next clause. White space or one comma parts them.
    pub(super) fn list<T>(
        &mut self,
        clause: &str,
        mut item: impl FnMut(&mut Self, Token) -> Option<T>,
    ) -> List<T> {
        let not = self.take("not");
        let mut items = Items::new();
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
                        items.push(Spanned { value, span: token.span });
                    }
                }
            }
        }
        if let Some(comma) = comma.filter(|_| any) {
            let site = self.site(comma.span);
            self.findings
                .error(code::TRAILING_COMMA, site, "no item stands after this comma")
                .help("remove the comma");
        }
        if !any && comma.is_none() {
            let what = if clause == "a set" { clause.to_owned() } else { format!("`{clause}`") };
            self.empty(&format!("{what} needs at least one item"));
        }
        List { not, items }
    }

    /// Items that no `not` can stand before.
    pub(super) fn plain_list<T>(
        &mut self,
        clause: &str,
        item: impl FnMut(&mut Self, Token) -> Option<T>,
    ) -> Vec<Spanned<T>> {
        let first = self.peek();
        let list = self.list(clause, item);
        if let Some(word) = first.filter(|_| list.not) {
            let site = self.site(word.span);
            self.findings
                .error(code::UNEXPECTED, site, "`not` does not stand here")
                .help("it negates the list of a clause, as in `to not @lan`");
        }
        list.items.into_vec()
    }

    pub(super) fn empty(&mut self, message: &str) {
        let (span, next) = match self.peek() {
            Some(token) => (token.span, self.bare()),
            None => (self.end, None),
        };
        let site = self.site(span);
        let finding = self.findings.error(code::MISSING, site, message);
        if let Some(word) = next {
            finding.help(format!("`{word}` is a word of the language: as an item, quote it"));
        }
    }

    pub(super) fn not_any<T>(&mut self, list: &List<T>, is_any: impl Fn(&T) -> bool) {
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
    pub(super) fn literal(&mut self, token: Token) -> Option<Cow<'t, str>> {
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

    pub(super) fn prefix(&mut self, token: Token, word: &str) -> Option<ipnet::IpNet> {
        let prefix = self.checked(token, item::prefix(word))?;
        // Lower-case hex and short zeros, without a second parse for the common IPv4.
        if word.contains(':') {
            self.respell(token, word, item::canonical_prefix(word));
        }
        Some(prefix)
    }

    pub(super) fn address(&mut self, token: Token) -> Option<IpAddr> {
        let word = self.literal(token)?;
        let address = self.checked(token, item::address(&word))?;
        if word.contains(':') {
            self.respell(token, &word, Some(address.to_string()));
        }
        Some(address)
    }

    pub(super) fn domain(&mut self, token: Token, word: &str) -> Option<Domain> {
        let domain = self.checked(token, item::domain(word))?;
        if word.ends_with('.') || word.bytes().any(|b| b.is_ascii_uppercase()) {
            self.respell(token, word, Some(item::canonical_domain(&domain)));
        }
        Some(domain)
    }

    pub(super) fn respell(&mut self, token: Token, word: &str, canonical: Option<String>) {
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

    pub(super) fn set_name(&mut self, token: Token, name: &str) -> Option<Name> {
        self.checked(token, item::name(name)).map(Name::from)
    }

    pub(super) fn list_name(&mut self, token: Token) -> Option<Name> {
        let word = self.literal(token)?;
        self.checked(token, item::name(&word)).map(Name::from)
    }

    /// A name that stands alone. Where `mistakable`, a word that begins a clause needs
    /// quotes: the name before it was probably forgotten.
    pub(super) fn name(&mut self, what: &str, mistakable: bool) -> Option<Spanned<Name>> {
        let Some(token) = self.peek().filter(|token| token.kind != TokenKind::Equals) else {
            self.missing(&format!("the name of {what}"), "it stands right after the word");
            return None;
        };
        self.at += 1;
        let plain = self.bare_at(self.at - 1).filter(|word| !mistakable || !ends_list(word));
        let value = match plain {
            Some(word) => self.checked(token, item::name(word)).map(Name::from),
            None => self.list_name(token),
        }?;
        Some(Spanned { value, span: token.span })
    }

    pub(super) fn verdict(&mut self, form: &str) -> Option<Spanned<Verdict>> {
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
                    .error(code::UNEXPECTED, site, format!("{} is no verdict", quoted(word)))
                    .help(match near {
                        Some(near) => format!("did you mean `{near}`?"),
                        None => "`allow`, `block` or `drop`".to_owned(),
                    });
                return None;
            }
        };
        Some(Spanned { value, span: token.span })
    }

    /// The next token, whatever it is, or a fault that it is missing.
    pub(super) fn item(&mut self, what: &str, form: &str) -> Option<Token> {
        let token = self.peek();
        match token {
            Some(_) => self.at += 1,
            None => self.missing(what, form),
        }
        token
    }

    pub(super) fn checked<T>(&mut self, token: Token, result: Result<T, ItemError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                let site = self.site(token.span);
                self.findings.error(error.code, site, error.message).maybe_help(error.help);
                None
            }
        }
    }

    pub(super) fn finish(&mut self, form: &str) {
        if let Some(token) = self.peek() {
            self.unexpected(token, form);
            self.at = self.tokens.len();
        }
    }

    pub(super) fn unexpected(&mut self, token: Token, form: &str) {
        self.unexpected_here(token, form);
        self.at += 1;
    }

    pub(super) fn unexpected_here(&mut self, token: Token, form: &str) {
        if token.kind == TokenKind::Broken {
            return;
        }
        let word = quoted(token.span.of(self.text));
        let site = self.site(token.span);
        self.findings
            .error(code::UNEXPECTED, site, format!("{word} is not expected here"))
            .help(form);
    }

    pub(super) fn missing(&mut self, what: &str, help: impl Into<String>) {
        let site = self.site(self.peek().map_or(self.end, |token| token.span));
        self.findings.error(code::MISSING, site, format!("{what} is missing here")).help(help);
    }

    pub(super) fn repeated(&mut self, token: Token, word: &str) {
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

    pub(super) fn take(&mut self, word: &str) -> bool {
        let found = self.bare() == Some(word);
        self.at += usize::from(found);
        found
    }

    pub(super) fn peek(&self) -> Option<Token> {
        self.tokens.get(self.at).copied()
    }

    /// The current token, if it is a word without quotes.
    pub(super) fn bare(&self) -> Option<&'t str> {
        self.bare_at(self.at)
    }

    pub(super) fn bare_at(&self, at: usize) -> Option<&'t str> {
        let token = self.tokens.get(at).filter(|token| token.kind == TokenKind::Word)?;
        Some(token.span.of(self.text))
    }

    pub(super) fn site(&self, span: Span) -> Site {
        Site { source: self.source, span }
    }
}
