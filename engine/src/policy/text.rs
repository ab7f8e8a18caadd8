//! Characters into words: the only file that knows comments, quotes, commas and
//! joined lines.
//!
//! A logical line is read at a time. A fault makes a broken token, which has been
//! reported already; the parser steps over it without a second complaint.

use std::borrow::Cow;

use super::diagnostic::{Findings, Site, SourceId, Span, code, quoted};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenKind {
    Word,
    /// In double quotes, which the span includes.
    Quoted,
    Comma,
    Equals,
    /// A fault that was reported.
    Broken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: TokenKind,
    pub(super) span: Span,
}

/// One logical line. The buffers are used again for the next.
#[derive(Debug, Default)]
pub(super) struct TokenLine {
    /// The number of its first physical line, from 1.
    pub(super) number: u32,
    pub(super) tokens: Vec<Token>,
    /// Where a backslash joined lines: how many tokens stood before it.
    pub(super) joins: Vec<usize>,
    /// From the `#`, without white space at the end.
    pub(super) comment: Option<Span>,
    /// Where the line ends, for faults about what is missing.
    pub(super) end: usize,
}

#[derive(Debug)]
pub(super) struct Lexer<'t> {
    text: &'t str,
    source: SourceId,
    at: usize,
    line: u32,
}

impl<'t> Lexer<'t> {
    pub(super) fn new(text: &'t str, source: SourceId) -> Self {
        let at = if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
        Self { text, source, at, line: 1 }
    }

    /// Fills `line` with the next logical line; `false` at the end of the text.
    pub(super) fn next_line(&mut self, line: &mut TokenLine, findings: &mut Findings) -> bool {
        line.tokens.clear();
        line.joins.clear();
        line.comment = None;
        line.number = self.line;
        if self.at >= self.text.len() {
            return false;
        }
        loop {
            let start = self.at;
            let Some(byte) = self.byte(0) else { break };
            let kind = match byte {
                b'\n' => break,
                byte if is_space(byte) => {
                    self.at += 1;
                    continue;
                }
                b'#' => {
                    self.at += self.rest().find('\n').unwrap_or_else(|| self.rest().len());
                    let comment = self.text[start..self.at].trim_end();
                    line.comment = Some(Span::new(start, start + comment.len()));
                    continue;
                }
                b'\\' if self.join() => {
                    line.joins.push(line.tokens.len());
                    continue;
                }
                b',' => self.single(TokenKind::Comma),
                b'=' => self.single(TokenKind::Equals),
                b'"' => self.quoted(findings),
                _ => self.word(findings),
            };
            line.tokens.push(Token { kind, span: Span::new(start, self.at) });
        }
        line.end = line.tokens.last().map_or(self.at, |token| token.span.end as usize);
        if self.at < self.text.len() {
            self.at += 1;
            self.line += 1;
        }
        true
    }

    fn single(&mut self, kind: TokenKind) -> TokenKind {
        self.at += 1;
        kind
    }

    /// Takes a backslash at the end of a line together with the line break.
    fn join(&mut self) -> bool {
        let length = match (self.byte(1), self.byte(2)) {
            (Some(b'\n'), _) => 2,
            (Some(b'\r'), Some(b'\n')) => 3,
            _ => return false,
        };
        self.at += length;
        self.line += 1;
        true
    }

    fn word(&mut self, findings: &mut Findings) -> TokenKind {
        let rest = self.rest();
        let ends = |byte: u8| is_space(byte) || matches!(byte, b'\n' | b'#' | b',' | b'=' | b'"');
        let mut length = rest.bytes().position(ends).unwrap_or(rest.len());
        // A backslash right before the line break joins; one further inside is a fault.
        let line_ends = rest[length..].starts_with('\n') || rest[length..].starts_with("\r\n");
        if line_ends && rest[..length].ends_with('\\') {
            length -= 1;
        }
        let word = &rest[..length];
        let site = self.site(self.at, self.at + length);
        self.at += length;
        if let Some(bad) = word.chars().find(|c| !is_bare(*c)) {
            let shown = quoted(bad.encode_utf8(&mut [0; 4]));
            let finding = findings.error(
                code::BAD_CHARACTER,
                site,
                format!("{shown} cannot stand outside double quotes"),
            );
            if bad == '\\' {
                finding.help("a backslash at the very end of a line joins the next one");
            } else if bad.is_control() {
                finding.help("a policy is plain text");
            } else if !bad.is_ascii() && word.contains('.') {
                finding.help("a domain is written as its A-label, as in `xn--bcher-kva.example`");
            } else if word.len() <= 64 {
                finding.help(format!("write \"{word}\", if this is one item"));
            }
            return TokenKind::Broken;
        }
        if self.byte(0) == Some(b'"') {
            let site = self.site(self.at, self.at + 1);
            findings.error(code::BAD_QUOTE, site, "white space is missing before the quote");
        }
        TokenKind::Word
    }

    fn quoted(&mut self, findings: &mut Findings) -> TokenKind {
        let start = self.at;
        self.at += 1;
        let mut kind = TokenKind::Quoted;
        while let Some(c) = self.rest().chars().next() {
            match c {
                '"' => {
                    self.at += 1;
                    return self.after_quote(kind, findings);
                }
                '\n' => break,
                '\\' => {
                    let escape = self.byte(1);
                    if !matches!(escape, Some(b'"' | b'\\')) {
                        let site = self.site(self.at, self.at + 1);
                        findings
                            .error(code::BAD_QUOTE, site, "this is no escape")
                            .help("the only escapes are `\\\"` and `\\\\`");
                        kind = TokenKind::Broken;
                        self.at += 1;
                    } else {
                        self.at += 2;
                    }
                }
                c => {
                    if c.is_control() && kind != TokenKind::Broken {
                        let site = self.site(self.at, self.at + c.len_utf8());
                        findings
                            .error(
                                code::BAD_CHARACTER,
                                site,
                                format!("control character {} in quotes", quoted(&c.to_string())),
                            )
                            .help("an item is printable text");
                        kind = TokenKind::Broken;
                    }
                    self.at += c.len_utf8();
                }
            }
        }
        findings
            .error(code::BAD_QUOTE, self.site(start, start + 1), "this quote is not closed")
            .help("a quoted item ends on its own line; write \\\" for a quote inside it");
        TokenKind::Broken
    }

    fn after_quote(&self, kind: TokenKind, findings: &mut Findings) -> TokenKind {
        let parted = |byte: u8| is_space(byte) || matches!(byte, b'\n' | b',' | b'#' | b'\\');
        if self.byte(0).is_none_or(parted) {
            return kind;
        }
        let site = self.site(self.at - 1, self.at);
        findings.error(code::BAD_QUOTE, site, "white space is missing after the quote");
        TokenKind::Broken
    }

    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    fn byte(&self, ahead: usize) -> Option<u8> {
        self.text.as_bytes().get(self.at + ahead).copied()
    }

    fn site(&self, start: usize, end: usize) -> Site {
        Site { source: self.source, span: Span::new(start, end) }
    }
}

/// The text of a word or of what stands between two quotes.
pub(super) fn value<'t>(text: &'t str, token: Token) -> Cow<'t, str> {
    let raw = token.span.of(text);
    if token.kind != TokenKind::Quoted {
        return Cow::Borrowed(raw);
    }
    let inner = raw.strip_prefix('"').and_then(|raw| raw.strip_suffix('"')).unwrap_or(raw);
    if !inner.contains('\\') {
        return Cow::Borrowed(inner);
    }
    let mut plain = String::with_capacity(inner.len());
    let mut escaped = false;
    for c in inner.chars() {
        if c == '\\' && !escaped {
            escaped = true;
        } else {
            escaped = false;
            plain.push(c);
        }
    }
    Cow::Owned(plain)
}

/// White space within a line; CR is among it for the sake of CRLF files.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | 0x0b | 0x0c)
}

fn is_bare(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | ':' | '/' | '*' | '@' | '+' | '-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lex(text: &str) -> (Vec<Vec<String>>, usize) {
        let mut findings = Findings::new();
        let mut lexer = Lexer::new(text, SourceId(0));
        let mut line = TokenLine::default();
        let mut lines = Vec::new();
        while lexer.next_line(&mut line, &mut findings) {
            lines.push(line.tokens.iter().map(|t| value(text, *t).into_owned()).collect());
        }
        let errors = findings.into_diagnostics(&super::super::diagnostic::Sources::default());
        (lines, errors.len())
    }

    #[test]
    fn words() {
        for (name, text, want, errors) in [
            ("empty", "", vec![], 0),
            ("one line", "a b", vec![vec!["a", "b"]], 0),
            ("blank lines count", "a\n\nb\n", vec![vec!["a"], vec![], vec!["b"]], 0),
            ("comma and equals", "a=b,c", vec![vec!["a", "=", "b", ",", "c"]], 0),
            ("comment", "a # b\nc", vec![vec!["a"], vec!["c"]], 0),
            ("comment without space", "a#b", vec![vec!["a"]], 0),
            ("join", "a \\\nb", vec![vec!["a", "b"]], 0),
            ("join parts words", "a\\\nb", vec![vec!["a", "b"]], 0),
            ("join with CRLF", "a \\\r\nb\r\n", vec![vec!["a", "b"]], 0),
            ("no join in a comment", "a # \\\nb", vec![vec!["a"], vec!["b"]], 0),
            ("join at the end of text", "a \\", vec![vec!["a", "\\"]], 1),
            ("backslash and space", "a \\ \nb", vec![vec!["a", "\\"], vec!["b"]], 1),
            ("quotes", "\"a b\" c", vec![vec!["a b", "c"]], 0),
            ("escapes", r#""a\"b\\""#, vec![vec![r#"a"b\"#]], 0),
            ("other escape", r#""a\n""#, vec![vec![r#""a\n""#]], 1),
            ("open quote", "\"a\nb", vec![vec!["\"a"], vec!["b"]], 1),
            ("hash in quotes", "\"a#b\"", vec![vec!["a#b"]], 0),
            ("glued quote", "\"a\"b", vec![vec!["\"a\"", "b"]], 1),
            ("glued word", "a\"b\"", vec![vec!["a", "b"]], 1),
            ("byte order mark", "\u{feff}a", vec![vec!["a"]], 0),
            ("NUL", "a\0b", vec![vec!["a\0b"]], 1),
            ("NUL in quotes", "\"a\0b\"", vec![vec!["\"a\0b\""]], 1),
            ("not ASCII", "bücher.example", vec![vec!["bücher.example"]], 1),
            ("no-break space", "a\u{a0}b", vec![vec!["a\u{a0}b"]], 1),
        ] {
            let want: Vec<Vec<String>> =
                want.into_iter().map(|l| l.into_iter().map(str::to_owned).collect()).collect();
            assert_eq!(lex(text), (want, errors), "{name}");
        }
    }

    #[test]
    fn lines_are_numbered_by_their_first() {
        let text = "a \\\nb\nc # x\n\nd";
        let mut findings = Findings::new();
        let mut lexer = Lexer::new(text, SourceId(0));
        let mut line = TokenLine::default();
        let mut numbers = Vec::new();
        while lexer.next_line(&mut line, &mut findings) {
            numbers.push(line.number);
        }
        assert_eq!(numbers, [1, 3, 4, 5]);
    }
}
