//! `tunneld import`: what a file of wg-quick does, as a configuration and a policy.
//!
//! wg-quick makes an interface, leads the prefixes of its peers into it, leads the host's names
//! to its `DNS`, and runs commands. The first is `[[wireguard]]`, the next two are a policy, and
//! the last is nothing that we do: what they are mostly for is said in their place. What is not
//! in the result is told on standard error, each with its reason.

mod files;
mod plan;
mod written;

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use self::plan::{Note, Plan};
use crate::config::{self, Faults};
use crate::diagnostics::{self, Told};
use crate::error::{Refusal, code};
use crate::wireguard::conf;
use crate::wireguard::file::{self, File};

/// Turn a file of wg-quick into a configuration and a policy
///
/// Both are printed, or written below DIR, and do what wg-quick(8) does with FILE: its prefixes
/// are led into the tunnel, and all names are asked of its DNS through it. What is not in them,
/// commands above all, is told on standard error with the reason. The configuration holds the
/// private key.
///
/// Exit: 0 done, 1 FILE has faults, 2 wrong usage, 5 a file cannot be read or written.
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// A file of wg-quick, such as /etc/wireguard/wg0.conf
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// What the tunnel is called; default: as the file, without `.conf`
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Write DIR/tunneld.toml and DIR/policy.d/NAME.policy, and overwrite nothing
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

/// Runs the verb and gives its exit code.
///
/// # Errors
/// A file cannot be read or written, or the tunnel can't have its name.
pub(crate) fn run(args: &ImportArgs, json: bool) -> anyhow::Result<u8> {
    let path = &args.file;
    let name = name(args)?;
    let File { text, mode } = file::read(path)
        .map_err(|error| Refusal::new(code::FAILED, format!("{}: {error}", path.display())))?;
    let conf = conf::read(&text);
    let Some(interface) = conf.interface else {
        let faults = Faults { file: path.clone(), faults: conf.faults };
        let told = Told::of_faults(&faults);
        if json {
            told.iter().for_each(|told| diagnostics::line(told.object()));
        } else {
            diagnostics::print_told(&told);
        }
        return Ok(code::FINDING);
    };
    let mut plan = Plan::new(&name, &interface, &conf.extras);
    if file::is_open(mode) {
        let why = format!("others may read the key in {} (mode {mode:03o})", path.display());
        plan.notes.push(Note::remark(why, format!("chmod 600 {}", path.display())));
    }
    let source = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    let config = written::config(&source, &plan, &interface);
    let policy = written::policy(&source, &plan);
    let output = args.output.as_deref();
    let paths = output.map(|directory| files::write(directory, &name, &config, &policy));
    let paths = paths.transpose()?;
    if json {
        diagnostics::line(object(&name, paths.as_ref(), &config, &policy, &plan));
        return Ok(code::DONE);
    }
    match &paths {
        Some(paths) => paths.iter().for_each(|path| diagnostics::line(path.display())),
        None => {
            diagnostics::line(format_args!(
                "# ==== tunneld.toml (mode 600: it holds a key) ====\n"
            ));
            diagnostics::line(&**config);
            diagnostics::line(format_args!("# ==== policy.d/{name}.policy ====\n"));
            diagnostics::line(policy.trim_end());
        }
    }
    plan.notes.iter().for_each(|note| eprintln!("{note}"));
    Ok(code::DONE)
}

/// What the tunnel is called.
fn name(args: &ImportArgs) -> Result<String, Refusal> {
    let of_file = || {
        let name = args.file.file_name().unwrap_or_default().to_string_lossy();
        name.strip_suffix(".conf").unwrap_or(&name).to_owned()
    };
    let name = args.name.clone().unwrap_or_else(of_file);
    if name == config::Config::default().device.name {
        let what = format!("`{name}` is the name of the TUN device");
        return Err(Refusal::new(code::USAGE, what).help("write another: --name wg0"));
    }
    config::tunnel_name(&name).map_err(|wrong| {
        let help = wrong.help.unwrap_or_else(|| "write another: --name wg0".to_owned());
        let what = format!("{}: {}", args.file.display(), wrong.message);
        Refusal::new(code::USAGE, what).help(format!("{help} (--name NAME)"))
    })?;
    Ok(name)
}

fn object(
    name: &str,
    paths: Option<&[PathBuf; 2]>,
    config: &str,
    policy: &str,
    plan: &Plan,
) -> Value {
    let of = |dropped: bool| -> Value {
        let notes = plan.notes.iter().filter(|note| note.is_dropped() == dropped);
        notes.map(Note::object).collect()
    };
    let shown = |path: &PathBuf| path.to_string_lossy().into_owned();
    let written = paths.map(|paths| paths.iter().map(shown).collect::<Vec<_>>());
    json!({
        "event": "import",
        "name": name,
        // What was written is there, and a key is in no more places than it must be.
        "config": paths.is_none().then_some(config),
        "policy": policy,
        "written": written,
        "dropped": of(true),
        "notes": of(false),
    })
}

/// Where a file is put below the directory of a configuration.
fn policy_path(directory: &Path, name: &str) -> PathBuf {
    directory.join("policy.d").join(format!("{name}.policy"))
}
