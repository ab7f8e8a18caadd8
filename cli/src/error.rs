//! What the user sees when a verb fails: `error: WHAT: WHY`, `help: WHAT TO DO`, and an exit
//! code that scripts can rely on.

use std::fmt;

/// Exit codes (stable).
pub(crate) mod code {
    /// Done, allowed, valid.
    pub(crate) const DONE: u8 = 0;
    /// A finding, blocked, invalid.
    pub(crate) const FINDING: u8 = 1;
    /// The command line or the configuration is wrong.
    pub(crate) const USAGE: u8 = 2;
    /// The daemon is not running.
    pub(crate) const NO_DAEMON: u8 = 3;
    /// Whoever asked may not.
    pub(crate) const NOT_PERMITTED: u8 = 4;
    /// The verb failed.
    pub(crate) const FAILED: u8 = 5;
    /// `exec`: tunneld itself failed.
    pub(crate) const EXEC_FAILED: u8 = 125;
}

/// A failure with its help and its exit code.
#[derive(Debug)]
pub(crate) struct Refusal {
    what: String,
    help: Option<String>,
    code: u8,
}

impl Refusal {
    /// `what` is `WHAT: WHY` in one line.
    pub(crate) fn new(code: u8, what: impl fmt::Display) -> Self {
        Self { what: what.to_string(), help: None, code }
    }

    pub(crate) fn help(mut self, help: impl fmt::Display) -> Self {
        self.help = Some(help.to_string());
        self
    }

    pub(crate) fn code(&self) -> u8 {
        self.code
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Refusal {}

/// Prints an error the way every verb does and gives its exit code.
pub(crate) fn report(error: &anyhow::Error, json: bool) -> u8 {
    let refusal = error.downcast_ref::<Refusal>();
    let help = refusal.and_then(|r| r.help.as_deref());
    let code = refusal.map_or(code::FAILED, Refusal::code);
    if json {
        let object = serde_json::json!({
            "event": "error", "error": format!("{error:#}"), "help": help, "exit": code,
        });
        eprintln!("{object}");
    } else {
        eprintln!("error: {error:#}");
        if let Some(help) = help {
            eprintln!("help: {help}");
        }
    }
    code
}
