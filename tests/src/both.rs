//! Two sides of a split: the company's server and the network's own, each with data of its
//! own, and whoever asks.

use std::time::Duration;

use anyhow::Result;

use crate::endpoints::Unbound;
use crate::lab::{Exec, Lab, Netns, plan};

/// Where names are answered.
pub const OURS: &str = "198.18.0.2";

/// Both servers, and the network between.
#[derive(Debug)]
pub struct Both {
    /// The resolver `corp`.
    pub corp: Unbound,
    /// The network's own.
    pub upstream: Unbound,
    /// The last to go.
    pub lab: Lab,
}

impl Both {
    /// The lines of tunneld.toml that name both.
    pub const CONFIG: &str = "[dns]\nupstream = [\"203.0.113.129\"]\n\
                              [[resolver]]\nname = \"corp\"\nservers = [\"203.0.113.1\"]\n";

    /// Starts both, each with lines of unbound's `server:` section besides.
    pub fn start(corp: &str, upstream: &str) -> Result<Self> {
        let lab = Lab::new()?;
        let corp = Unbound::with(&lab.server, plan::GOOD4, None, corp)?;
        let upstream = Unbound::with(&lab.server, plan::GOOD4_SECOND, None, upstream)?;
        Ok(Self { corp, upstream, lab })
    }

    /// How often each was asked for a name.
    ///
    /// # Errors
    /// One does not answer.
    pub fn asked(&self, name: &str) -> Result<[usize; 2]> {
        Ok([self.corp.asked(name)?, self.upstream.asked(name)?])
    }
}

/// kdig(1), not yet started: what it asks of us it asks once. `args` are separated by spaces.
fn kdig_args(args: &str) -> Vec<String> {
    let own = ["+edns", "+timeout=8", "+retry=0"].into_iter();
    let at = (!args.split(' ').any(|arg| arg.starts_with('@'))).then(|| format!("@{OURS}"));
    own.map(str::to_owned).chain(at).chain(args.split(' ').map(str::to_owned)).collect()
}

/// What kdig says on the host. Who is asked is us, unless `args` name another.
///
/// # Errors
/// It can't be run.
pub fn kdig(lab: &Lab, args: &str) -> Result<String> {
    kdig_at(&lab.host, args)
}

/// The same on any host.
///
/// # Errors
/// It can't be run.
pub fn kdig_at(host: &Netns, args: &str) -> Result<String> {
    Ok(host.command("kdig").args(kdig_args(args)).run()?.stdout)
}

/// What kdig says inside `exec`, and how long all of it took.
///
/// # Errors
/// It has no answer.
pub fn kdig_in(exec: Exec<'_>, args: &str) -> Result<(String, Duration)> {
    let seen = exec.args(kdig_args(args)).run()?.success()?;
    Ok((seen.stdout().to_owned(), seen.finished.elapsed))
}
