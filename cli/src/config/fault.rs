//! What is wrong with a configuration: a place, what is wanted there, and help.

use std::fmt;
use std::path::PathBuf;

/// One fault of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// `None`: the configuration itself, not a file that it names.
    pub(crate) file: Option<PathBuf>,
    pub(crate) line: usize,
    pub(crate) column: usize,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
    pub(crate) excerpt: Excerpt,
}

/// What is shown of the line with the fault, and which bytes of it are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Excerpt {
    pub(crate) text: String,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl Excerpt {
    /// Of a `line`, of which `shown` may be shown; `column` counts its characters from 1.
    pub(crate) fn new(line: &str, shown: &str, column: usize) -> Self {
        /// Bytes on both sides of the place: far more than fits a terminal.
        const AROUND: usize = 200;
        let at = line.char_indices().nth(column.saturating_sub(1)).map_or(line.len(), |(at, _)| at);
        let start = if line.get(..at) == shown.get(..at) {
            at
        } else {
            // What is meant is not shown.
            shown.rfind('…').unwrap_or(0)
        };
        let first = shown.floor_char_boundary(start.saturating_sub(AROUND));
        let last = shown.ceil_char_boundary(start.saturating_add(AROUND).min(shown.len()));
        let meant = shown[start..].chars().next().map_or(0, char::len_utf8);
        let text = shown.get(first..last).unwrap_or_default().to_owned();
        Self { text, start: start - first, end: start - first + meant }
    }
}

/// All faults of a configuration and of the files that it names.
#[derive(Debug)]
pub(crate) struct Faults {
    pub(crate) file: PathBuf,
    pub(crate) faults: Vec<Fault>,
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.faults.iter().enumerate() {
            let start = if i == 0 { "" } else { "\nerror: " };
            let file = fault.file.as_deref().unwrap_or(&self.file).display();
            write!(f, "{start}{file}:{}:{}: {}", fault.line, fault.column, fault.message)?;
            if let Some(help) = &fault.help {
                write!(f, "\nhelp: {help}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}
