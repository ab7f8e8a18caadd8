//! The `tunneld` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(cli::main())
}
