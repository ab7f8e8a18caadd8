//! The canonical form of a policy.
//!
//! Words are set anew, nothing is rewritten: the order of statements and clauses, the
//! comments, the blank lines and the author's line breaks stay. One space parts words,
//! commas go where white space says the same, addresses and domains are in their
//! canonical spelling.

use super::diagnostic::{Diagnostic, Findings, Sources};
use super::text::{Lexer, Token, TokenKind, TokenLine};
use super::{Source, parse};

/// What a line that continues another begins with.
const INDENT: &str = "    ";

/// The canonical form of one policy file.
///
/// # Errors
/// The text is no policy; only its grammar is looked at.
pub fn format(source: &Source) -> Result<String, Vec<Diagnostic>> {
    let mut sources = Sources::default();
    let text: &str = &source.text;
    let id = sources.add(&source.name, text.into());
    let mut findings = Findings::new();
    let file = parse::parse(text, id, &mut findings);
    if findings.has_errors() {
        return Err(findings.into_diagnostics(&sources));
    }
    let mut formatter = Formatter { text, file: &file, respelled: 0, kept: 0 };
    let mut out = String::with_capacity(text.len() + 1);
    let mut lexer = Lexer::new(text, id);
    let mut line = TokenLine::default();
    while lexer.next_line(&mut line, &mut findings) {
        formatter.line(&line, &mut out);
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    Ok(out.trim_start_matches('\n').to_owned())
}

struct Formatter<'t> {
    text: &'t str,
    file: &'t parse::File,
    /// How many of the file's respelled words and kept commas are behind us.
    respelled: usize,
    kept: usize,
}

impl Formatter<'_> {
    fn line(&mut self, line: &TokenLine, out: &mut String) {
        let mut begun = false;
        let mut joins = line.joins.iter().peekable();
        for (at, token) in line.tokens.iter().enumerate() {
            let mut broken = false;
            while joins.next_if(|join| **join <= at).is_some() {
                broken = begun;
            }
            let keeps = self.keeps_comma(token);
            if token.kind == TokenKind::Comma && !keeps {
                // The break before a comma moves behind it.
                if broken {
                    out.push_str(" \\\n");
                    out.push_str(INDENT);
                    begun = false;
                }
                continue;
            }
            if broken {
                out.push_str(" \\\n");
                out.push_str(INDENT);
            } else if begun && token.kind != TokenKind::Comma {
                out.push(' ');
            }
            begun = true;
            self.token(token, out);
        }
        if let Some(comment) = line.comment {
            if begun {
                out.push(' ');
            }
            out.push_str(comment.of(self.text));
        }
        out.push('\n');
    }

    fn token(&mut self, token: &Token, out: &mut String) {
        let next = self.file.respelled.get(self.respelled);
        match next.filter(|(span, _)| *span == token.span) {
            Some((_, canonical)) => {
                self.respelled += 1;
                out.push_str(canonical);
            }
            None => out.push_str(token.span.of(self.text)),
        }
    }

    fn keeps_comma(&mut self, token: &Token) -> bool {
        let keeps = self.file.kept_commas.get(self.kept) == Some(&token.span);
        self.kept += usize::from(keeps);
        keeps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_form() {
        for (name, text, want) in [
            ("spaces", "policy  1\nallow\tto   any\n", "policy 1\nallow to any\n"),
            ("indentation", "  policy 1\n    allow to any", "policy 1\nallow to any\n"),
            (
                "commas",
                "policy 1\nallow to 192.0.2.1,192.0.2.2 , 192.0.2.3",
                "policy 1\nallow to 192.0.2.1 192.0.2.2 192.0.2.3\n",
            ),
            (
                "ways out keep their commas",
                "policy 1\nroute to any via wg0 ,direct",
                "policy 1\nroute to any via wg0, direct\n",
            ),
            (
                "resolvers",
                "policy 1\nresolve *,A.Example.  *.b.example,@c using corp  else upstream private",
                "policy 1\nresolve * a.example *.b.example @c using corp else upstream private\n",
            ),
            ("equals", "policy 1\nset a=10.0.0.0/8", "policy 1\nset a = 10.0.0.0/8\n"),
            (
                "addresses and domains",
                "policy 1\nset a = FD00:0:0::/8 ::ffff:10.0.0.1 Ads.Example. \"B.example\"",
                "policy 1\nset a = fd00::/8 10.0.0.1 ads.example \"b.example\"\n",
            ),
            (
                "names keep their case",
                "policy 1\nallow user Alice id No-Ads egress Eth0",
                "policy 1\nallow user Alice id No-Ads egress Eth0\n",
            ),
            (
                "comments and blank lines",
                "# head\n\npolicy 1   # one\n\n\n#two  \nallow to any#three\n\n",
                "# head\n\npolicy 1 # one\n\n\n#two\nallow to any #three\n",
            ),
            (
                "joined lines",
                "policy 1\nallow to 10.0.0.1 \\\n 10.0.0.2, \\\n  \\\n10.0.0.3 # c\n",
                "policy 1\nallow to 10.0.0.1 \\\n    10.0.0.2 \\\n    10.0.0.3 # c\n",
            ),
            ("join before the end", "policy 1\nallow to any \\\n\n", "policy 1\nallow to any\n"),
            ("join before all", "policy 1\n\\\nallow to any", "policy 1\nallow to any\n"),
            (
                "break before a comma",
                "policy 1\nallow to 10.0.0.1 \\\n, 10.0.0.2",
                "policy 1\nallow to 10.0.0.1 \\\n    10.0.0.2\n",
            ),
            ("CRLF", "policy 1\r\nallow to any\r\n", "policy 1\nallow to any\n"),
            ("byte order mark", "\u{feff}policy 1\n", "policy 1\n"),
        ] {
            let source = Source { name: name.into(), text: text.into() };
            let once = format(&source).unwrap_or_else(|errors| panic!("{name}: {errors:?}"));
            assert_eq!(once, want, "{name}");
            let again = format(&Source { name: name.into(), text: once.clone() });
            assert_eq!(again.as_ref(), Ok(&once), "{name}");
        }
    }

    #[test]
    fn no_policy_has_no_form() {
        let source = Source { name: "a".into(), text: "policy 1\nalow\n".into() };
        assert!(format(&source).is_err());
    }
}
