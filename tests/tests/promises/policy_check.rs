//! `tunneld check` tells all errors of all files at once, each with its place,
//! as a person sees them in a terminal of 80 columns.

use std::process::Command;

use anyhow::{Result, ensure};
use tests::lab::exec::built_tunneld;
use tests::lab::scratch::Scratch;

/// Twelve errors, each of another kind, none hiding another.
const FILES: [(&str, &str); 3] = [
    (
        "10-base.policy",
        "policy 1\n\
         set corp = 10.20.0.0/16 fd20::/32\n\
         alow tcp to @corp port 443\n\
         allow tcp to @crop port 443\n\
         allow tcp to 10.20.0.0/33\n\
         block to 192.0.2.1 port 70000\n\
         default block\n",
    ),
    (
        "20-routes.policy",
        "policy 1\n\
         set corp = 10.21.0.0/16\n\
         route from 192.0.2.0/24 via direct\n\
         allow tcp tcp to any\n\
         block to not any\n\
         allow udp to 192.0.2.1, port 53\n",
    ),
    (
        "30-last.policy",
        "policy 1\n\
         block to 192.0.2.7 id twice\n\
         block to 192.0.2.8 id twice\n\
         default allow\n\
         expect allow tcp any to 192.0.2.7 port\n",
    ),
];

#[test]
fn twelve_errors_of_three_files_are_told_at_once() -> Result<()> {
    let scratch = Scratch::new()?;
    for (name, text) in FILES {
        scratch.write(name, text)?;
    }
    let output = Command::new(built_tunneld()?)
        .args(["check", "."])
        .current_dir(scratch.path())
        .env("COLUMNS", "80")
        .env("NO_COLOR", "1")
        .output()?;
    let stderr = String::from_utf8(output.stderr)?;
    ensure!(output.status.code() == Some(1), "{}: {stderr}", output.status);
    let errors = stderr.lines().filter(|line| line.starts_with("error")).count();
    ensure!(errors >= 12, "12 errors expected, {errors} seen:\n{stderr}");
    for line in stderr.lines() {
        ensure!(line.chars().count() <= 80, "wider than 80 columns: {line}");
    }
    insta::assert_snapshot!(stderr);
    Ok(())
}

#[test]
fn a_valid_policy_is_no_finding() -> Result<()> {
    let scratch = Scratch::new()?;
    let file = scratch.write(
        "10-ok.policy",
        "policy 1\n\
         block from 192.0.2.0/24 to 203.0.113.0/24 id no-lab\n\
         default allow\n\
         expect block tcp 192.0.2.1 to 203.0.113.9 port 443\n\
         expect allow tcp 198.51.100.1 to 203.0.113.9 port 443\n",
    )?;
    for path in [file.as_path(), scratch.path()] {
        let output = Command::new(built_tunneld()?).arg("check").arg(path).output()?;
        ensure!(output.status.success(), "{output:#?}");
    }
    Ok(())
}
