//! What is wrong with a policy, and where.
//!
//! While a policy is read, faults are collected as findings: a code, a byte span
//! of one source, a message. At the end each becomes a [`Diagnostic`] that stands
//! on its own: it carries line, column and the line's text, so that a terminal, a
//! JSON line and the control socket can show it without the source at hand.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Stable names of the faults, for programs. Each is described where its readers are, in
/// `docs/policy.md`; a test sees to it.
pub mod code {
    #![allow(missing_docs)]
    pub const BAD_ADDRESS: &str = "bad-address";
    pub const BAD_CHARACTER: &str = "bad-character";
    pub const BAD_DOMAIN: &str = "bad-domain";
    pub const BAD_DURATION: &str = "bad-duration";
    pub const BAD_ITEM: &str = "bad-item";
    pub const BAD_NAME: &str = "bad-name";
    pub const BAD_PATH: &str = "bad-path";
    pub const BAD_PORT: &str = "bad-port";
    pub const BAD_QUOTE: &str = "bad-quote";
    pub const CLAUSE_NOT_ALLOWED: &str = "clause-not-allowed";
    pub const DOMAIN_HERE: &str = "domain-here";
    pub const DUPLICATE_DEFAULT: &str = "duplicate-default";
    pub const DUPLICATE_ID: &str = "duplicate-id";
    pub const DUPLICATE_SET: &str = "duplicate-set";
    pub const EXPECT_DEPENDS: &str = "expect-depends";
    pub const EXPECT_FAILED: &str = "expect-failed";
    pub const FORMAT: &str = "format";
    pub const HOST_BITS: &str = "host-bits";
    pub const MISSING: &str = "missing";
    pub const MISSING_DEFAULT: &str = "missing-default";
    pub const NOT_ANY: &str = "not-any";
    pub const NOT_IN_THIS_VERSION: &str = "not-in-this-version";
    pub const NOT_TEXT: &str = "not-text";
    pub const PLAIN_DOMAIN: &str = "plain-domain";
    pub const REPEATED: &str = "repeated";
    pub const RESERVED_WORD: &str = "reserved-word";
    pub const SET_FILE: &str = "set-file";
    pub const SHADOWED: &str = "shadowed";
    pub const TOO_LARGE: &str = "too-large";
    pub const TOO_MANY: &str = "too-many";
    pub const TRAILING_COMMA: &str = "trailing-comma";
    pub const UNEXPECTED: &str = "unexpected";
    pub const UNKNOWN_CLAUSE: &str = "unknown-clause";
    pub const UNKNOWN_RESOLVER: &str = "unknown-resolver";
    /// A way out that the configuration lacks.
    pub const UNKNOWN_WAY: &str = "unknown-way";
    pub const UNKNOWN_SET: &str = "unknown-set";
    pub const UNKNOWN_STATEMENT: &str = "unknown-statement";
    pub const UNKNOWN_USER: &str = "unknown-user";
    pub const UNUSED_SET: &str = "unused-set";
    /// A way out that no route names.
    pub const UNUSED_WAY: &str = "unused-way";
}

/// How much a diagnostic weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// The policy is not loaded.
    Error,
    /// The policy is loaded, and probably says something else than was meant.
    Warning,
}

impl Severity {
    /// `error` or `warning`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One fault of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// A stable name out of [`code`].
    pub code: &'static str,
    /// Whether the policy is refused for it.
    pub severity: Severity,
    /// Where it is.
    pub place: Place,
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub help: Option<String>,
    /// Other places that belong to it, such as the first of two equal names.
    pub related: Vec<Related>,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { source, line, column, .. } = &self.place;
        write!(f, "{source}:{line}:{column}: {}: {}", self.severity, self.message)
    }
}

/// A second place that explains a diagnostic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Related {
    /// Where.
    pub place: Place,
    /// What stands there.
    pub message: String,
}

/// A span of one source. Lines and columns count from 1, columns in characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The source's name as it was given to the loader.
    pub source: Arc<str>,
    /// The bytes of it that are meant; empty where something is missing.
    pub span: Range<usize>,
    /// Line of the first byte.
    pub line: usize,
    /// Column of the first byte.
    pub column: usize,
    /// Line of the last byte.
    pub end_line: usize,
    /// Column after the last byte.
    pub end_column: usize,
    /// What a reader has to see: the first line, or the part of it around the span.
    pub excerpt: Excerpt,
}

/// A part of one line that is short enough to be shown.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Excerpt {
    /// The text, without its line break.
    pub text: String,
    /// The bytes of `text` that are meant.
    pub highlight: Range<usize>,
}

/// Bytes of a source. 32 bits keep a million items small; a longer source is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Span {
    pub(super) start: u32,
    pub(super) end: u32,
}

impl Span {
    pub(super) fn new(start: usize, end: usize) -> Self {
        let clamp = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        Self { start: clamp(start), end: clamp(end) }
    }

    /// From the start of `self` to the end of `other`.
    pub(super) fn to(self, other: Self) -> Self {
        Self { start: self.start, end: other.end.max(self.start) }
    }

    pub(super) fn of(self, text: &str) -> &str {
        text.get(self.range()).unwrap_or_default()
    }

    pub(super) fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// An index into [`Sources`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SourceId(pub(super) u32);

/// A span and the source that it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Site {
    pub(super) source: SourceId,
    pub(super) span: Span,
}

/// Every text that was read for a policy: its files and the files of its sets.
#[derive(Debug, Default)]
pub(super) struct Sources {
    list: Vec<SourceText>,
}

#[derive(Debug)]
pub(super) struct SourceText {
    pub(super) name: Arc<str>,
    pub(super) text: Arc<str>,
}

impl Sources {
    pub(super) fn add(&mut self, name: &str, text: Arc<str>) -> SourceId {
        let id = SourceId(u32::try_from(self.list.len()).unwrap_or(u32::MAX));
        self.list.push(SourceText { name: name.into(), text });
        id
    }

    pub(super) fn text(&self, id: SourceId) -> &str {
        self.list.get(id.0 as usize).map_or("", |source| &source.text)
    }

    pub(super) fn name(&self, id: SourceId) -> &str {
        self.list.get(id.0 as usize).map_or("", |source| &source.name)
    }

    /// The first `count` sources: the policy's own files, without those of sets.
    pub(super) fn into_first(mut self, count: usize) -> Vec<SourceText> {
        self.list.truncate(count);
        self.list
    }
}

/// A diagnostic in the making.
#[derive(Debug)]
pub(super) struct Finding {
    code: &'static str,
    severity: Severity,
    site: Site,
    message: String,
    help: Option<String>,
    related: Vec<(Site, String)>,
}

impl Finding {
    pub(super) fn help(&mut self, help: impl Into<String>) -> &mut Self {
        self.help = Some(help.into());
        self
    }

    pub(super) fn maybe_help(&mut self, help: Option<String>) -> &mut Self {
        self.help = help.or_else(|| self.help.take());
        self
    }

    pub(super) fn related(&mut self, site: Site, message: impl Into<String>) -> &mut Self {
        self.related.push((site, message.into()));
        self
    }
}

/// A file of noise gives one fault a word; nobody reads more than this many of one file.
const FINDINGS_PER_SOURCE: u32 = 1_000;

/// What was found so far.
#[derive(Debug)]
pub(super) struct Findings {
    list: Vec<Finding>,
    errors: usize,
    counts: HashMap<(SourceId, Severity), u32>,
    /// Takes what goes beyond the limit.
    surplus: Finding,
}

impl Findings {
    pub(super) fn new() -> Self {
        Self {
            list: Vec::new(),
            errors: 0,
            counts: HashMap::new(),
            surplus: Finding {
                code: code::TOO_MANY,
                severity: Severity::Error,
                site: Site { source: SourceId(0), span: Span::default() },
                message: String::new(),
                help: None,
                related: Vec::new(),
            },
        }
    }

    pub(super) fn error(
        &mut self,
        code: &'static str,
        site: Site,
        message: impl Into<String>,
    ) -> &mut Finding {
        self.add(code, Severity::Error, site, message.into())
    }

    pub(super) fn warning(
        &mut self,
        code: &'static str,
        site: Site,
        message: impl Into<String>,
    ) -> &mut Finding {
        self.add(code, Severity::Warning, site, message.into())
    }

    pub(super) fn has_errors(&self) -> bool {
        self.errors > 0
    }

    /// In the order of the text.
    pub(super) fn into_diagnostics(mut self, sources: &Sources) -> Vec<Diagnostic> {
        let mut crowded: Vec<_> = self
            .counts
            .iter()
            .filter(|(_, count)| **count > FINDINGS_PER_SOURCE)
            .map(|(key, count)| (*key, count - FINDINGS_PER_SOURCE))
            .collect();
        crowded.sort_unstable();
        self.list.sort_by_key(|finding| finding.site);
        for ((source, severity), surplus) in crowded {
            let end = sources.text(source).len();
            self.list.push(Finding {
                code: code::TOO_MANY,
                severity,
                site: Site { source, span: Span::new(end, end) },
                message: format!("{surplus} more {severity}s in this file are not shown"),
                help: None,
                related: Vec::new(),
            });
        }
        let mut places = Places { sources, lines: HashMap::new() };
        let diagnostic = |finding: Finding| Diagnostic {
            code: finding.code,
            severity: finding.severity,
            place: places.place(finding.site),
            message: finding.message,
            help: finding.help,
            related: finding
                .related
                .into_iter()
                .map(|(site, message)| Related { place: places.place(site), message })
                .collect(),
        };
        self.list.into_iter().map(diagnostic).collect()
    }

    fn add(
        &mut self,
        code: &'static str,
        severity: Severity,
        site: Site,
        message: String,
    ) -> &mut Finding {
        if severity == Severity::Error {
            self.errors += 1;
        }
        let count = self.counts.entry((site.source, severity)).or_insert(0);
        *count = count.saturating_add(1);
        let finding = Finding { code, severity, site, message, help: None, related: Vec::new() };
        if *count > FINDINGS_PER_SOURCE {
            self.surplus = finding;
            return &mut self.surplus;
        }
        self.list.push(finding);
        let last = self.list.len() - 1;
        &mut self.list[last]
    }
}

/// Turns byte offsets into lines and columns; a source's lines are found once.
struct Places<'s> {
    sources: &'s Sources,
    lines: HashMap<SourceId, Vec<usize>>,
}

/// Widest excerpt in bytes, and how much of it stands before the fault.
const EXCERPT: usize = 240;
const EXCERPT_BEFORE: usize = 80;

impl Places<'_> {
    fn place(&mut self, site: Site) -> Place {
        let text = self.sources.text(site.source);
        let starts = self.lines.entry(site.source).or_insert_with(|| line_starts(text));
        let start = floor(text, site.span.range().start);
        let end = floor(text, site.span.range().end).max(start);
        let (line, column) = position(text, starts, start);
        let (end_line, end_column) = position(text, starts, end);
        let line_start = starts[line - 1];
        let line_text = text[line_start..].split('\n').next().unwrap_or_default();
        let line_text = line_text.trim_end_matches('\r');
        Place {
            source: self.sources.name(site.source).into(),
            span: start..end,
            line,
            column,
            end_line,
            end_column,
            excerpt: excerpt(line_text, start - line_start, end - line_start),
        }
    }
}

fn line_starts(text: &str) -> Vec<usize> {
    let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
    std::iter::once(0).chain(breaks.map(|(at, _)| at + 1)).collect()
}

fn position(text: &str, starts: &[usize], at: usize) -> (usize, usize) {
    let line = starts.partition_point(|start| *start <= at).max(1);
    (line, text[starts[line - 1]..at].chars().count() + 1)
}

fn excerpt(line: &str, start: usize, end: usize) -> Excerpt {
    let start = start.min(line.len());
    let end = end.clamp(start, line.len());
    if line.len() <= EXCERPT {
        return Excerpt { text: line.to_owned(), highlight: start..end };
    }
    let from = floor(line, start.saturating_sub(EXCERPT_BEFORE));
    let until = floor(line, from + EXCERPT);
    let before = if from > 0 { "…" } else { "" };
    let after = if until < line.len() { "…" } else { "" };
    let shift = before.len();
    Excerpt {
        text: format!("{before}{}{after}", &line[from..until]),
        highlight: start - from + shift..end.min(until).max(start) - from + shift,
    }
}

/// The last character boundary at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// A word of the policy inside a message: in backticks, control characters
/// escaped, cut where it is long.
pub(super) fn quoted(word: &str) -> String {
    const LONGEST: usize = 48;
    let mut shown = String::from("`");
    for (count, c) in word.chars().enumerate() {
        if count == LONGEST {
            shown.push('…');
            break;
        }
        if c.is_control() {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown.push('`');
    shown
}

/// The word that was probably meant.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Longer than any word of the language or a sensible name: nobody mistyped that.
    const LONGEST: usize = 64;
    if word.len() > LONGEST {
        return None;
    }
    let allowed = (word.chars().count() / 3).clamp(1, 3);
    known
        .into_iter()
        .filter(|candidate| candidate.len() <= LONGEST)
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Edits (insert, remove, replace, swap two neighbours) from one word to the other.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().flat_map(char::to_lowercase).collect();
    let b: Vec<char> = b.chars().flat_map(char::to_lowercase).collect();
    let mut before = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_word() {
        for (name, word, want) in [
            ("letter missing", "alow", Some("allow")),
            ("neighbours swapped", "blcok", Some("block")),
            ("upper case", "ALLOW", Some("allow")),
            ("short word", "tcq", Some("tcp")),
            ("nothing near", "zebra", None),
            ("far too long", &"a".repeat(1_000_000), None),
        ] {
            assert_eq!(nearest(word, ["allow", "block", "tcp"]), want, "{name}");
        }
    }

    #[test]
    fn places() {
        let long = format!("{}X{}", "é".repeat(500), "b".repeat(500));
        for (name, text, span, want) in [
            ("start", "ab\ncd", 0..1, (1, 1, 1, 2)),
            ("second line", "ab\ncd", 3..5, (2, 1, 2, 3)),
            ("columns are characters", "é x", 3..4, (1, 3, 1, 4)),
            ("across lines", "a\\\nb", 0..4, (1, 1, 2, 2)),
            ("end of text", "ab\n", 3..3, (2, 1, 2, 1)),
            ("inside a character", "é", 1..1, (1, 1, 1, 1)),
            ("beyond the end", "é", 7..9, (1, 2, 1, 2)),
            ("long line", &long, 1000..1001, (1, 501, 1, 502)),
        ] {
            let mut sources = Sources::default();
            let source = sources.add("a", text.into());
            let mut findings = Findings::new();
            let span = Span::new(span.start, span.end);
            findings.error(code::MISSING, Site { source, span }, "m");
            let place = findings.into_diagnostics(&sources).remove(0).place;
            let got = (place.line, place.column, place.end_line, place.end_column);
            assert_eq!(got, want, "{name}");
            assert!(place.excerpt.text.len() <= EXCERPT + 6, "{name}");
            assert!(place.excerpt.text.get(place.excerpt.highlight).is_some(), "{name}");
        }
    }

    #[test]
    fn a_noisy_file_is_cut_off_and_says_so() {
        let mut sources = Sources::default();
        let source = sources.add("a", "x".into());
        let mut findings = Findings::new();
        for _ in 0..FINDINGS_PER_SOURCE + 5 {
            findings.error(code::MISSING, Site { source, span: Span::new(0, 1) }, "m");
        }
        let diagnostics = findings.into_diagnostics(&sources);
        assert_eq!(diagnostics.len(), FINDINGS_PER_SOURCE as usize + 1);
        assert_eq!(
            diagnostics.last().map(|d| d.message.as_str()),
            Some("5 more errors in this file are not shown")
        );
    }
}
