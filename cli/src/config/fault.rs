//! What is wrong with a configuration: a place, what is wanted there, and help.

use std::fmt;
use std::path::PathBuf;

/// One fault of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) line: usize,
    pub(crate) column: usize,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

/// All faults of a file.
#[derive(Debug)]
pub(crate) struct Faults {
    pub(crate) file: PathBuf,
    pub(crate) faults: Vec<Fault>,
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.faults.iter().enumerate() {
            let start = if i == 0 { "" } else { "\nerror: " };
            let file = self.file.display();
            write!(f, "{start}{file}:{}:{}: {}", fault.line, fault.column, fault.message)?;
            if let Some(help) = &fault.help {
                write!(f, "\nhelp: {help}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}
