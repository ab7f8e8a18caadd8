//! Diagnostics of a policy or a configuration, for people and for programs.
//!
//! For people: rustc's look, at most 80 columns, colour only on a terminal and never
//! under `NO_COLOR`. For programs: one JSON object a line. The object says all that the look
//! needs, so that the daemon's diagnostics are shown where its client runs.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use engine::policy::{Diagnostic, Place, Severity};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config::{Excerpt, Faults};
use crate::policy_files::PolicyFiles;

/// The width that everything is fit into.
pub(crate) const COLUMNS: usize = 80;

/// The code of a configuration's faults.
const CONFIGURATION: &str = "configuration";

/// A diagnostic as it is told: the object of `docs/json.md`, less its `event`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Told {
    code: String,
    severity: String,
    #[serde(flatten)]
    place: ToldPlace,
    message: String,
    help: Option<String>,
    related: Vec<ToldRelated>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ToldPlace {
    file: String,
    line: usize,
    column: usize,
    end_line: usize,
    end_column: usize,
    excerpt: ToldExcerpt,
}

/// A part of one line, and which bytes of it are meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ToldExcerpt {
    text: String,
    start: usize,
    end: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ToldRelated {
    #[serde(flatten)]
    place: ToldPlace,
    message: String,
}

/// Prints to standard error.
pub(crate) fn print(diagnostics: &[Diagnostic], files: &PolicyFiles) {
    let told = diagnostics.iter().map(|diagnostic| Told::of(diagnostic, &|s| files.path_of(s)));
    print_told(&told.collect::<Vec<_>>());
}

/// Prints to standard error.
pub(crate) fn print_told(diagnostics: &[Told]) {
    let mut out = io::stderr().lock();
    for diagnostic in diagnostics {
        // A closed standard error leaves nobody to tell.
        let _ = writeln!(out, "{}\n", diagnostic.render(colour()));
    }
}

/// Prints a line to standard output. A reader that went away, such as head(1), is no
/// failure of ours.
pub(crate) fn line(line: impl fmt::Display) {
    let _ = writeln!(io::stdout().lock(), "{line}");
}

/// One object for each diagnostic.
pub(crate) fn object(diagnostic: &Diagnostic, files: &PolicyFiles) -> Value {
    Told::of(diagnostic, &|source| files.path_of(source)).object()
}

impl Told {
    /// `path_of` says where the text of a source lies.
    pub(crate) fn of(diagnostic: &Diagnostic, path_of: &dyn Fn(&str) -> PathBuf) -> Self {
        let place = |place: &Place| ToldPlace {
            file: path_of(&place.source).to_string_lossy().into_owned(),
            line: place.line,
            column: place.column,
            end_line: place.end_line,
            end_column: place.end_column,
            excerpt: ToldExcerpt {
                text: place.excerpt.text.clone(),
                start: place.excerpt.highlight.start,
                end: place.excerpt.highlight.end,
            },
        };
        let related = diagnostic.related.iter().map(|related| ToldRelated {
            place: place(&related.place),
            message: related.message.clone(),
        });
        Self {
            code: diagnostic.code.to_owned(),
            severity: diagnostic.severity.as_str().to_owned(),
            place: place(&diagnostic.place),
            message: diagnostic.message.clone(),
            help: diagnostic.help.clone(),
            related: related.collect(),
        }
    }

    /// The faults of a configuration.
    pub(crate) fn of_faults(faults: &Faults) -> Vec<Self> {
        let told = faults.faults.iter().map(|fault| {
            let Excerpt { text, start, end } = fault.excerpt.clone();
            let file = fault.file.as_ref().unwrap_or(&faults.file);
            Self {
                code: CONFIGURATION.to_owned(),
                severity: Severity::Error.as_str().to_owned(),
                place: ToldPlace {
                    file: file.to_string_lossy().into_owned(),
                    line: fault.line,
                    column: fault.column,
                    end_line: fault.line,
                    end_column: fault.column,
                    excerpt: ToldExcerpt { text, start, end },
                },
                message: fault.message.clone(),
                help: fault.help.clone(),
                related: Vec::new(),
            }
        });
        told.collect()
    }

    /// Moves it to where it stands in something that a user wrote on the command line as
    /// `file`, and that was read behind `lead` bytes of a line.
    pub(crate) fn in_argument(mut self, file: &str, lead: usize) -> Self {
        let related = self.related.iter_mut().map(|related| &mut related.place);
        for place in std::iter::once(&mut self.place).chain(related) {
            file.clone_into(&mut place.file);
            (place.line, place.end_line) = (1, 1);
            place.column = place.column.saturating_sub(lead).max(1);
            place.end_column = place.end_column.saturating_sub(lead).max(1);
            if let Some(text) = place.excerpt.text.get(lead..) {
                place.excerpt.text = text.to_owned();
                place.excerpt.start = place.excerpt.start.saturating_sub(lead);
                place.excerpt.end = place.excerpt.end.saturating_sub(lead);
            }
        }
        self
    }

    pub(crate) fn is_error(&self) -> bool {
        self.severity == Severity::Error.as_str()
    }

    pub(crate) fn object(&self) -> Value {
        let mut object = json!(self);
        object["event"] = json!("diagnostic");
        object
    }

    fn render(&self, colour: bool) -> String {
        let level = if self.is_error() { Level::ERROR } else { Level::WARNING };
        let lead = self.severity.len() + self.code.len() + "[]: ".len();
        let title = wrap(&self.message, lead);
        let title = level.primary_title(title).id(self.code.as_str());
        let mut group = self.place.show(Group::with_title(title), true);
        if let Some(help) = &self.help {
            let lead = self.place.gutter() + "= help: ".len();
            group = group.element(Level::HELP.message(wrap(help, lead)));
        }
        let mut groups = vec![group];
        for related in &self.related {
            let title = Level::NOTE.secondary_title(wrap(&related.message, "note: ".len()));
            groups.push(related.place.show(Group::with_title(title), false));
        }
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let text = renderer.term_width(COLUMNS).render(&groups);
        // Between an origin and its snippet stands a line of three colons, which says nothing.
        let lines = text.lines().filter(|line| !line.contains(":::") || line.contains('|'));
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// In one line, for a log.
impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ToldPlace { file, line, column, .. } = &self.place;
        write!(f, "{file}:{line}:{column}: {}: {}", self.severity, self.message)
    }
}

impl ToldPlace {
    fn show<'d>(&'d self, group: Group<'d>, primary: bool) -> Group<'d> {
        let kind = if primary { AnnotationKind::Primary } else { AnnotationKind::Context };
        let ToldExcerpt { text, start, end } = &self.excerpt;
        // An object may come from elsewhere.
        let highlight = if text.get(*start..*end).is_some() { *start..*end } else { 0..0 };
        let before = text.get(..highlight.start).unwrap_or_default();
        let column = before.chars().count() + 1;
        let snippet =
            Snippet::source(text.as_str()).line_start(self.line).annotation(kind.span(highlight));
        if column == self.column {
            return group.element(snippet.path(&self.file));
        }
        // The excerpt is a part of a long line: the renderer cannot count the column.
        let origin = Origin::path(&self.file).line(self.line).char_column(self.column);
        group.element(origin).element(snippet)
    }

    /// The width of the line numbers' column and the space after it.
    fn gutter(&self) -> usize {
        self.line.to_string().len() + 1
    }
}

/// `2 errors, 1 warning`
pub(crate) fn count(diagnostics: &[Diagnostic]) -> String {
    let of = |severity| diagnostics.iter().filter(|d| d.severity == severity).count();
    let plural = |count: usize, what: Severity| match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    };
    match (of(Severity::Error), of(Severity::Warning)) {
        (errors, 0) => plural(errors, Severity::Error),
        (0, warnings) => plural(warnings, Severity::Warning),
        (errors, warnings) => {
            format!("{}, {}", plural(errors, Severity::Error), plural(warnings, Severity::Warning))
        }
    }
}

/// Whether standard error is a terminal that shall be coloured.
fn colour() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !refused && io::stderr().is_terminal()
}

/// Breaks a message so that no line is wider than the terminal; `lead` is what stands
/// before its first line.
fn wrap(message: &str, lead: usize) -> String {
    let width = COLUMNS.saturating_sub(lead);
    let mut lines = String::new();
    let mut column = 0;
    for word in message.split(' ') {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > width {
            lines.push('\n');
            column = 0;
        } else if column > 0 {
            lines.push(' ');
            column += 1;
        }
        lines.push_str(word);
        column += length;
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::policy::{NoEnvironment, Policy, Source};

    fn rendered(text: &str) -> Vec<String> {
        let source = Source { name: "a.policy".into(), text: text.into() };
        let found = match Policy::load(&[source], &NoEnvironment) {
            Ok((_, found)) | Err(found) => found,
        };
        let files = PolicyFiles::default();
        let told = found.iter().map(|d| Told::of(d, &|source| files.path_of(source)));
        told.map(|told| told.render(false)).collect()
    }

    #[test]
    fn looks_like_a_compiler() {
        let text = "policy 1\nallow to 10.0.0.1/8 prot 80\ndefault block\n";
        let want = "\
error[host-bits]: `10.0.0.1/8` has bits set beyond its first 8
 --> a.policy:2:10
  |
2 | allow to 10.0.0.1/8 prot 80
  |          ^^^^^^^^^^
  |
  = help: write `10.0.0.0/8` for the prefix or `10.0.0.1` for the one address";
        assert_eq!(rendered(text)[0], want);
    }

    #[test]
    fn eighty_columns() {
        let long = "x".repeat(500);
        for text in [
            format!("policy 1\nallow to {long}/8 10.0.0.1/8 {long}\ndefault block"),
            format!("policy 1\nallow to 10.0.0.1 {long}.{long} tcp port {long}\ndefault block"),
            format!("policy 1\nset {long} = 1\nallow to @lan\nalow {long}\n"),
            "policy 1\nallow tcp id a\nallow udp id a\nroute from 10.0.0.1 via wg0".to_owned(),
            "policy 1\nblock to any\nallow to 10.0.0.1\ndefault allow".to_owned(),
            format!("policy 1\nallow user \"{}\0\"\ndefault block", "é".repeat(200)),
        ] {
            let all = rendered(&text);
            assert!(!all.is_empty());
            for line in all.iter().flat_map(|text| text.lines()) {
                assert!(line.chars().count() <= COLUMNS, "{line}");
            }
        }
    }

    #[test]
    fn objects() {
        let source = Source { name: "a.policy".into(), text: "policy 1\nalow\n".into() };
        let found = Policy::load(&[source], &NoEnvironment).expect_err("a bad policy");
        let object = object(&found[0], &PolicyFiles::default());
        let want = json!({
            "event": "diagnostic", "code": "unknown-statement", "severity": "error",
            "file": "a.policy", "line": 2, "column": 1, "end_line": 2, "end_column": 5,
            "message": "`alow` begins no statement", "help": "did you mean `allow`?",
            "related": [], "excerpt": { "text": "alow", "start": 0, "end": 4 },
        });
        assert_eq!(object, want);
        assert_eq!(count(&found), "2 errors");
        let back: Told = serde_json::from_value(object).expect("what was told");
        assert_eq!(back, Told::of(&found[0], &|source| source.into()));
    }

    #[test]
    fn an_object_from_elsewhere_is_shown_however_it_is() {
        let mut told = Told::of(&faulty()[0], &|source| source.into());
        told.place.excerpt.end = 1_000_000;
        told.place.column = 7_000;
        assert!(told.render(false).contains("a.policy:2:7000"));
    }

    #[test]
    fn faults_of_a_configuration() {
        let text = "[device]\nmtu = 1\n";
        let faults = crate::config::parse(std::path::Path::new("t.toml"), text).expect_err("bad");
        let told = Told::of_faults(&faults);
        let shown = told[0].render(false);
        let want = "t.toml:2:7: error: a number from 1280 to 65535 is wanted";
        assert_eq!(told[0].to_string(), want);
        assert!(shown.contains("--> t.toml:2:7\n") && shown.contains("2 | mtu = 1\n"), "{shown}");
    }

    fn faulty() -> Vec<Diagnostic> {
        let source = Source { name: "a.policy".into(), text: "policy 1\nalow\n".into() };
        Policy::load(&[source], &NoEnvironment).expect_err("a bad policy")
    }
}
