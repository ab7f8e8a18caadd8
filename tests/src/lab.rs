//! A network of one's own for one test: two hosts and the links between them.
//!
//! ```text
//!   host  up0  192.0.2.1/25    ──veth──  192.0.2.2/25    far0  server
//!              2001:db8:1::1             2001:db8:1::2           lo: the good addresses
//!         up1  192.0.2.129/25  ──veth──  192.0.2.130/25  far1
//!              2001:db8:2::1             2001:db8:2::2
//! ```
//!
//! `host` is where tunneld runs; it has no default route, so an address outside
//! [`plan`] is one that the kernel has no route to. `server` owns the good
//! addresses; behind it lies the void (`void`), which answers for the bad ones.

use anyhow::{Context, Result};

pub mod capture;
pub mod command;
pub mod counters;
pub mod daemon;
pub mod exec;
pub mod frame;
pub mod host_state;
pub mod netns;
pub mod own_files;
pub mod plan;
pub mod probe;
pub mod process;
pub mod resolved;
pub mod scratch;
pub mod side_by_side;
mod void;

pub use command::{Finished, Running, Tun, Who};
pub use exec::{Exec, Outcome, Way};
pub use netns::Netns;
use void::Void;

/// Two namespaces, linked, addressed and ready.
#[derive(Debug)]
pub struct Lab {
    /// Where tunneld and the programs run.
    pub host: Netns,
    /// Where the far sides listen.
    pub server: Netns,
    _void: Void,
}

impl Lab {
    /// Builds the network. Needs root: see [`require_root`](crate::require_root).
    pub fn new() -> Result<Self> {
        let host = Netns::new("host").context("namespace `host`")?;
        let server = Netns::new("server").context("namespace `server`")?;
        link(&host, "up0", &server, "far0", plan::MTU)?;
        link(&host, "up1", &server, "far1", plan::MTU)?;
        let void = Void::start(&server)?;
        server.ip(&plan::server_addresses())?;
        host.ip(&plan::host_addresses())?;
        server.quiet_ipv6_autoconf()?;
        for family in ["ipv4", "ipv6"] {
            // The void's packets pass through.
            server.sysctl(&format!("net/{family}/conf/all/forwarding"), "1")?;
        }
        host.settle(&[plan::HOST6, plan::HOST6_SECOND])?;
        server.settle(&[plan::NEAR6, plan::GOOD6, plan::GOOD6_SECOND])?;
        Ok(Self { host, server, _void: void })
    }

    /// A program in `host`, by way of `tunneld exec` (or the kernel: [`Way`]).
    pub fn exec<S: AsRef<str>>(&self, program: S) -> Exec<'_> {
        Exec::new(&self.host, program.as_ref())
    }
}

/// A veth pair between two namespaces, both ends up.
pub fn link(a: &Netns, a_name: &str, b: &Netns, b_name: &str, mtu: u32) -> Result<()> {
    a.ip(&format!(
        "link add {a_name} mtu {mtu} type veth peer name {b_name} mtu {mtu} netns {}\n\
         link set {a_name} up\n",
        b.path()
    ))?;
    b.ip(&format!("link set {b_name} up\n"))
}

/// Makes the kernel track the connections of a namespace, as any stateful firewall does.
pub fn track_connections(netns: &Netns) -> Result<()> {
    let rules = "\
table inet stateful {
  chain input { type filter hook input priority filter; ct state established accept; }
}
";
    let done = netns.command("nft").args(["-f", "-"]).input(rules).run()?;
    anyhow::ensure!(done.code() == 0, "{done:?}");
    Ok(())
}

/// Whether this process may build a lab.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Says on standard error, past any capture of the test runner, that a test is
/// left out and why.
pub fn skipped(test: &str, why: &str) {
    use std::io::Write as _;
    // The reader of this line is a person; a closed standard error hides nothing else.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {why}");
}

/// Ends the test, loudly, unless it runs as root.
#[macro_export]
macro_rules! require_root {
    () => {
        if !$crate::lab::is_root() {
            $crate::lab::skipped(module_path!(), "needs root");
            return Ok(());
        }
    };
}

/// Ends the test, loudly, when the run is one of the kernel's own path: for
/// tests whose subject the kernel lacks (policy, reports).
#[macro_export]
macro_rules! require_tunneld {
    () => {
        if $crate::lab::Way::of_this_run() == $crate::lab::Way::Kernel {
            $crate::lab::skipped(module_path!(), "the kernel's own path has no such thing");
            return Ok(());
        }
    };
}

/// A Debian package as `tests/run` has unpacked it; ends the test, loudly, where it is missing.
#[macro_export]
macro_rules! require_package {
    ($name:literal) => {
        match $crate::lab::own_files::package($name) {
            Some(package) => package,
            None => {
                $crate::lab::skipped(
                    module_path!(),
                    concat!("the package ", $name, " is not unpacked: tests/run does"),
                );
                return Ok(());
            }
        }
    };
}
