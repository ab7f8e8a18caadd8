//! Diagnostics of a policy, for people and for programs.
//!
//! For people: rustc's look, at most 80 columns, colour only on a terminal and never
//! under `NO_COLOR`. For programs: one JSON object a line.

use std::io::{self, IsTerminal, Write};

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use engine::policy::{Diagnostic, Place, Severity};
use serde_json::{Value, json};

use crate::policy_files::PolicyFiles;

/// The width that everything is fit into.
const COLUMNS: usize = 80;

/// Prints to standard error.
pub(crate) fn print(diagnostics: &[Diagnostic], files: &PolicyFiles) {
    let mut out = io::stderr().lock();
    for diagnostic in diagnostics {
        // A closed standard error leaves nobody to tell.
        let _ = writeln!(out, "{}\n", render(diagnostic, files, colour()));
    }
}

/// Prints a line to standard output. A reader that went away, such as head(1), is no
/// failure of ours.
pub(crate) fn line(line: impl std::fmt::Display) {
    let _ = writeln!(io::stdout().lock(), "{line}");
}

/// One object for each diagnostic.
pub(crate) fn object(diagnostic: &Diagnostic, files: &PolicyFiles) -> Value {
    let place = |place: &Place| {
        json!({
            "file": files.path_of(&place.source).to_string_lossy(),
            "line": place.line,
            "column": place.column,
            "end_line": place.end_line,
            "end_column": place.end_column,
        })
    };
    let mut object = place(&diagnostic.place);
    let related = diagnostic.related.iter().map(|related| {
        let mut object = place(&related.place);
        object["message"] = json!(related.message);
        object
    });
    object["event"] = json!("diagnostic");
    object["code"] = json!(diagnostic.code);
    object["severity"] = json!(diagnostic.severity.as_str());
    object["message"] = json!(diagnostic.message);
    object["help"] = json!(diagnostic.help);
    object["related"] = related.collect();
    object
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

fn render(diagnostic: &Diagnostic, files: &PolicyFiles, colour: bool) -> String {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let lead = diagnostic.severity.as_str().len() + diagnostic.code.len() + "[]: ".len();
    let title = wrap(&diagnostic.message, lead);
    let title = level.primary_title(title).id(diagnostic.code);
    let mut group = place(Group::with_title(title), &diagnostic.place, files, true);
    if let Some(help) = &diagnostic.help {
        let lead = gutter(&diagnostic.place) + "= help: ".len();
        group = group.element(Level::HELP.message(wrap(help, lead)));
    }
    let mut groups = vec![group];
    for related in &diagnostic.related {
        let title = Level::NOTE.secondary_title(wrap(&related.message, "note: ".len()));
        groups.push(place(Group::with_title(title), &related.place, files, false));
    }
    let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
    let text = renderer.term_width(COLUMNS).render(&groups);
    // Between an origin and its snippet stands a line of three colons, which says nothing.
    let lines = text.lines().filter(|line| !line.contains(":::") || line.contains('|'));
    lines.collect::<Vec<_>>().join("\n")
}

fn place<'d>(group: Group<'d>, place: &'d Place, files: &PolicyFiles, primary: bool) -> Group<'d> {
    let path = files.path_of(&place.source).to_string_lossy().into_owned();
    let kind = if primary { AnnotationKind::Primary } else { AnnotationKind::Context };
    let excerpt = &place.excerpt;
    let snippet = Snippet::source(excerpt.text.as_str())
        .line_start(place.line)
        .annotation(kind.span(excerpt.highlight.clone()));
    let before = excerpt.text.get(..excerpt.highlight.start).unwrap_or_default();
    if before.chars().count() + 1 == place.column {
        return group.element(snippet.path(path));
    }
    // The excerpt is a part of a long line: the renderer cannot count the column.
    let origin = Origin::path(path).line(place.line).char_column(place.column);
    group.element(origin).element(snippet)
}

/// The width of the line numbers' column and the space after it.
fn gutter(place: &Place) -> usize {
    place.line.to_string().len() + 1
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
        found.iter().map(|diagnostic| render(diagnostic, &files, false)).collect()
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
            "related": [],
        });
        assert_eq!(object, want);
        assert_eq!(count(&found), "2 errors");
    }
}
