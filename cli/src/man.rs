//! `tunneld man`: manual pages, made of what `--help` says.
//!
//! A page is the command line's own description, so that neither can say what the other
//! doesn't. Its paragraph `Exit: …` becomes the section EXIT STATUS. What no help text says,
//! files and environment, is written down here.

use std::io;
use std::path::PathBuf;

use clap::{Arg, ArgAction, Args, Command, CommandFactory as _};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};
use serde_json::json;

use crate::args::Cli;
use crate::diagnostics;
use crate::error::{Refusal, code};

/// Print a manual page, or write all of them
///
/// Without VERB it is the page of tunneld itself. With --json one object for each page.
///
/// Exit: 0 done, 2 wrong usage, 5 a page cannot be written.
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// The verb whose page is wanted; of a verb's own verb, as in `dns-query`
    #[arg(value_name = "VERB", conflicts_with = "dir")]
    verb: Option<String>,
    /// Write all pages into this directory, which must exist
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// The exit codes of verbs whose help doesn't say them.
const EXITS: &str = "0 done, allowed, valid; 1 a finding, blocked, invalid; 2 wrong usage, \
                     or not in this version; 3 the daemon is not running; 4 not permitted; \
                     5 failed";

/// Something that verbs use, and which; of none it is all.
struct Used {
    name: &'static str,
    meaning: &'static str,
    verbs: &'static [&'static str],
}

const ENVIRONMENT: &[Used] = &[
    Used {
        name: "TUNNELD_LOG",
        meaning: "what is logged to standard error, for example `debug`; without it `RUST_LOG` \
                  counts, and without both warnings are logged",
        verbs: &[],
    },
    Used { name: "NO_COLOR", meaning: "when set and not empty, nothing is coloured", verbs: &[] },
    Used {
        name: "TUNNELD_COUNTERS",
        meaning: "a file that gets one JSON object at the end: where every packet went",
        verbs: &["exec"],
    },
    Used { name: "PATH", meaning: "where CMD is looked for", verbs: &["exec"] },
];

const FILES: &[Used] = &[
    Used {
        name: "/etc/tunneld/tunneld.toml",
        meaning: "the configuration of the daemon; `exec` and `check` read one only when told",
        verbs: &["exec", "run", "reload", "check", "schema"],
    },
    Used {
        name: "/etc/tunneld/policy.d/*.policy",
        meaning: "the policy, read in the order of the names",
        verbs: &["run", "check", "fmt", "explain", "diff", "reload"],
    },
    Used {
        name: "/run/tunneld/control.sock",
        meaning: "where the daemon is asked and commanded, in HTTP; `GET /metrics` gives \
                  OpenMetrics",
        verbs: &["run", "status", "flows", "rules", "watch", "explain", "diff", "reload", "dns"],
    },
    Used {
        name: "/run/tunneld/journal",
        meaning: "what the daemon has changed on the host; beside the control socket, wherever \
                  that is",
        verbs: &["run", "cleanup"],
    },
    Used {
        name: "/etc/wireguard/*.conf",
        meaning: "where wg-quick(8) has its files; they are read only when told",
        verbs: &["import"],
    },
    Used { name: "/dev/net/tun", meaning: "must be open to the user", verbs: &["exec", "run"] },
    Used {
        name: "/etc/resolv.conf",
        meaning: "its first server answers what CMD asks at port 53; CMD sees another such file",
        verbs: &["exec"],
    },
];

/// A page, by the name of its file.
struct Page {
    name: String,
    text: String,
}

/// Runs the verb and gives its exit code.
///
/// # Errors
/// There is no such verb, or a page cannot be written.
pub(crate) fn run(args: &ManArgs, json: bool) -> anyhow::Result<u8> {
    let pages = pages()?;
    if let Some(directory) = &args.dir {
        for page in &pages {
            let path = directory.join(&page.name);
            std::fs::write(&path, &page.text).map_err(|error| {
                Refusal::new(code::FAILED, format!("{}: {error}", path.display()))
            })?;
            if json {
                let path = path.to_string_lossy();
                diagnostics::line(json!({"event": "page", "name": page.name, "path": path}));
            }
        }
        return Ok(code::DONE);
    }
    let name = args.verb.iter().fold("tunneld".to_owned(), |name, verb| format!("{name}-{verb}"));
    let name = format!("{name}.1");
    let Some(page) = pages.iter().find(|page| page.name == name) else {
        let verb = args.verb.as_deref().unwrap_or_default();
        return Err(Refusal::new(code::USAGE, format!("no page: unknown verb `{verb}`"))
            .help("`tunneld --help` lists the verbs")
            .into());
    };
    if json {
        diagnostics::line(json!({"event": "page", "name": page.name, "text": page.text}));
    } else {
        diagnostics::line(page.text.trim_end());
    }
    Ok(code::DONE)
}

/// The page of the program, then one of each verb, and of each verb of a verb.
fn pages() -> io::Result<Vec<Page>> {
    let mut program = Cli::command();
    program.build();
    let verbs: Vec<Command> =
        program.get_subcommands().filter(|verb| !verb.is_hide_set()).cloned().collect();
    let names: Vec<&str> = verbs.iter().map(Command::get_name).collect();
    let mut pages = vec![page(&program, None, &names)?];
    for verb in &verbs {
        let inner: Vec<&Command> = verb.get_subcommands().collect();
        let names: Vec<String> =
            inner.iter().map(|of| format!("{}-{}", verb.get_name(), of.get_name())).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        pages.push(page(verb, Some(verb.get_name()), &names)?);
        for of in inner {
            pages.push(page(of, Some(verb.get_name()), &[])?);
        }
    }
    Ok(pages)
}

fn page(command: &Command, verb: Option<&str>, verbs: &[&str]) -> io::Result<Page> {
    let (description, exits) = described(command);
    let command = command.clone().long_about(description).subcommand_help_heading("VERBS");
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let source = concat!("tunneld ", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone()).title(name.to_uppercase()).source(source).manual("tunneld");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    let mut usage = Roff::new();
    synopsis(&mut usage, &command);
    usage.to_writer(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text)?;
    }
    let mut rest = Roff::new();
    exit_status(&mut rest, exits.as_deref().unwrap_or(EXITS));
    list(&mut rest, "ENVIRONMENT", ENVIRONMENT, verb);
    list(&mut rest, "FILES", FILES, verb);
    see_also(&mut rest, verb, verbs);
    rest.to_writer(&mut text)?;
    Ok(Page { name: format!("{name}.1"), text: String::from_utf8_lossy(&text).into_owned() })
}

/// What the help says about a command, and what it says about its exit code.
fn described(command: &Command) -> (String, Option<String>) {
    let about = command.get_long_about().or_else(|| command.get_about());
    let after = command.get_after_long_help().or_else(|| command.get_after_help());
    let text = [about, after].into_iter().flatten().map(ToString::to_string);
    let text = text.collect::<Vec<_>>().join("\n\n");
    let mut description = Vec::new();
    let mut exits = None;
    for paragraph in text.split("\n\n") {
        let paragraph = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
        match paragraph.strip_prefix("Exit: ") {
            Some(codes) => exits = Some(codes.trim_end_matches('.').to_owned()),
            None => description.push(paragraph),
        }
    }
    (description.join("\n\n"), exits)
}

/// The codes of `0 valid, 1 errors found, or warnings; 128+N killed`: what begins with a digit
/// begins another.
fn exit_status(roff: &mut Roff, exits: &str) {
    roff.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in codes(exits) {
        if code.is_empty() {
            roff.text([roman(meaning)]);
        } else {
            roff.control("TP", []);
            roff.text([bold(code)]);
            roff.text([roman(meaning)]);
        }
    }
}

fn codes(exits: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for part in exits.split_inclusive([',', ';']) {
        let words = part.trim_start();
        match words.split_once(' ') {
            Some((code, meaning)) if code.starts_with(|c: char| c.is_ascii_digit()) => {
                found.push((code.to_owned(), meaning.to_owned()));
            }
            Some(_) | None => match found.last_mut() {
                Some((_, meaning)) => meaning.push_str(&format!(" {words}")),
                None => found.push((String::new(), words.to_owned())),
            },
        }
    }
    for (_, meaning) in &mut found {
        meaning.truncate(meaning.trim_end_matches([',', ';']).len());
    }
    found
}

/// What the verb uses, and nothing at all where it uses none.
fn list(roff: &mut Roff, heading: &str, all: &[Used], verb: Option<&str>) {
    let of_verb =
        |used: &&Used| verb.is_none_or(|verb| used.verbs.is_empty() || used.verbs.contains(&verb));
    for (number, used) in all.iter().filter(of_verb).enumerate() {
        if number == 0 {
            roff.control("SH", [heading]);
        }
        roff.control("TP", []);
        roff.text([bold(used.name)]);
        roff.text([roman(used.meaning)]);
    }
}

/// Every option with the name of its value: `[--policy PATH]...`.
fn synopsis(roff: &mut Roff, command: &Command) {
    roff.control("SH", ["SYNOPSIS"]);
    let mut line = vec![bold(command.get_bin_name().unwrap_or_else(|| command.get_name()))];
    let (positional, options): (Vec<&Arg>, Vec<&Arg>) =
        command.get_arguments().filter(|arg| !arg.is_hide_set()).partition(|a| a.is_positional());
    for arg in options.into_iter().chain(positional) {
        let (start, end) = if arg.is_required_set() { (" ", "") } else { (" [", "]") };
        line.push(roman(start));
        let flag = match (arg.get_long(), arg.get_short()) {
            (Some(long), _) => Some(format!("--{long}")),
            (None, Some(short)) => Some(format!("-{short}")),
            (None, None) => None,
        };
        let takes_value = arg.get_action().takes_values();
        if let Some(flag) = flag {
            line.push(bold(flag));
            line.push(roman(if takes_value { " " } else { "" }));
        }
        if takes_value {
            let names = arg.get_value_names().unwrap_or_default();
            line.push(italic(names.join(" ")));
        }
        line.push(roman(end));
        let many = arg.get_num_args().is_some_and(|number| number.max_values() > 1);
        if many || matches!(arg.get_action(), ArgAction::Append) {
            line.push(roman("..."));
        }
    }
    if command.has_subcommands() {
        line.push(roman(" "));
        line.push(italic("VERB"));
        line.push(roman(" ..."));
    }
    roff.text(line);
}

fn see_also(roff: &mut Roff, verb: Option<&str>, verbs: &[&str]) {
    roff.control("SH", ["SEE ALSO"]);
    let others = verbs.iter().map(|other| format!("tunneld-{other}"));
    let program = verb.map(|_| "tunneld".to_owned());
    let names: Vec<String> = program.into_iter().chain(others).collect();
    for (number, name) in names.iter().enumerate() {
        let end = if number + 1 < names.len() { "(1)," } else { "(1)" };
        roff.text([bold(name), roman(end)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_has_its_sections() {
        let pages = pages().expect("pages");
        let names: Vec<&str> = pages.iter().map(|page| &*page.name).collect();
        for name in [
            "tunneld.1",
            "tunneld-exec.1",
            "tunneld-check.1",
            "tunneld-man.1",
            "tunneld-dns.1",
            "tunneld-dns-query.1",
        ] {
            assert!(names.contains(&name), "{name}: {names:?}");
        }
        for page in &pages {
            let mut wanted = vec![
                "NAME",
                "SYNOPSIS",
                "DESCRIPTION",
                "OPTIONS",
                "\"EXIT STATUS\"",
                "ENVIRONMENT",
            ];
            wanted.push("\"SEE ALSO\"");
            if ["tunneld.1", "tunneld-exec.1", "tunneld-check.1"].contains(&&*page.name) {
                wanted.push("FILES");
            }
            for section in wanted {
                let heading = format!("\n.SH {section}\n");
                let sections = page.text.matches(&heading).count();
                assert_eq!(sections, 1, "{section} in {}:\n{}", page.name, page.text);
            }
            // It is a section, and not said twice.
            assert!(!page.text.contains("Exit:"), "{}:\n{}", page.name, page.text);
        }
        assert!(pages[0].text.contains("\n.SH VERBS\n"), "{}", pages[0].text);
    }

    /// The options of a verb with their values, and what may be given more than once.
    #[test]
    fn a_synopsis_names_the_values() {
        let pages = pages().expect("pages");
        let exec = pages.iter().find(|page| page.name == "tunneld-exec.1").expect("its page");
        for part in ["[\\fB\\-\\-policy\\fR \\fIPATH\\fR]...", " \\fICMD\\fR..."] {
            assert!(exec.text.contains(part), "{part}:\n{}", exec.text);
        }
    }

    #[test]
    fn exit_codes_are_a_list() {
        for (exits, want) in [
            ("0 done, 5 failed", &[("0", "done"), ("5", "failed")][..]),
            (
                "0 done, allowed, valid; 1 a finding",
                &[("0", "done, allowed, valid"), ("1", "a finding")],
            ),
            (
                "CMD's own; 125 tunneld failed, 128+N killed by signal N",
                &[("", "CMD's own"), ("125", "tunneld failed"), ("128+N", "killed by signal N")],
            ),
        ] {
            let found = codes(exits);
            let found: Vec<(&str, &str)> = found.iter().map(|(c, m)| (&**c, &**m)).collect();
            assert_eq!(found, want, "{exits}");
        }
    }
}
