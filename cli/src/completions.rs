//! `tunneld completions`: what a shell needs to complete the command line.

use clap::{Args, CommandFactory as _, ValueEnum};
use clap_complete::{Shell, generate};
use serde_json::json;

use crate::args::Cli;
use crate::diagnostics;
use crate::error::code;

/// Print a completion script for a shell
///
/// bash: into /usr/share/bash-completion/completions/tunneld. zsh: as _tunneld into a
/// directory of $fpath. fish: into ~/.config/fish/completions/tunneld.fish. With --json the
/// script is a field of one object.
///
/// Exit: 0 done, 2 wrong usage.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Known,
}

/// The shells that there are scripts for.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Known {
    Bash,
    Zsh,
    Fish,
}

/// Runs the verb and gives its exit code.
pub(crate) fn run(args: &CompletionsArgs, json: bool) -> u8 {
    let (name, shell) = match args.shell {
        Known::Bash => ("bash", Shell::Bash),
        Known::Zsh => ("zsh", Shell::Zsh),
        Known::Fish => ("fish", Shell::Fish),
    };
    let mut script = Vec::new();
    generate(shell, &mut Cli::command(), "tunneld", &mut script);
    let script = String::from_utf8_lossy(&script);
    if json {
        diagnostics::line(json!({"event": "completions", "shell": name, "text": script}));
    } else {
        diagnostics::line(script.trim_end());
    }
    code::DONE
}
