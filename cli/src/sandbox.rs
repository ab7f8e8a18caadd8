//! The fresh namespaces of `tunneld exec`: made in a child, everything opened inside passed
//! out, then CMD.
//!
//! # Theory of operation
//!
//! ```text
//! tunneld                          child
//!   hold signals, fork ──────────▶ unshare(user, mount, network)
//!                                  lo, TUN, addresses, routes      (network)
//!                                  sockets masked, /etc/resolv.conf (mounts)
//!   Sandbox { tun, sock_diag } ◀── the descriptors                 (handover)
//!   …starts the engine…            waits
//!   Sandbox::start ──────────────▶ signals as they were, execve(CMD)
//!   Child::wait ◀───────────────── exit status                     (child)
//! ```
//!
//! [`spawn`] forks, so it is called while tunneld has one thread. The child is plain Rust up
//! to `execve`; what fails there is told to the parent as a stage and an errno, and the
//! parent makes the error line from that. CMD doesn't run before [`Sandbox::start`], so a
//! tunneld that fails in between leaves nothing behind: the child sees the socket close.
//!
//! **A user** gets a user namespace in which only the own uid and gid exist, both as
//! outside. The capabilities that come with it end at `execve`, since the uid isn't 0; a
//! program with file capabilities gets those over the sandbox alone. **Root** (CAP_SYS_ADMIN
//! and CAP_NET_ADMIN) needs no user namespace and gets none, so that apt and sudo find the
//! users they look for. Root stays root: it can leave the sandbox if it wants to. A uid 0
//! without CAP_SYS_ADMIN (a container's) gets a user namespace, and in it capabilities over the
//! sandbox and nothing else. The sandbox is there to route and judge a program's traffic; it
//! holds a hostile program only where that program is no root.
//!
//! **Port 53.** What CMD asks of any server comes out of the TUN, because the default route
//! does. Loopback is the exception (127.0.0.53 is where systemd-resolved listens, 127.0.0.1
//! dnsmasq and the default of every resolver library without a resolv.conf): a routing rule
//! that is looked at before the table `local` sends 127.0.0.0/8 port 53 into the TUN too, and
//! `route_localnet` and `accept_local` let the answers back in. `::1` can't be treated so
//! (RFC 4291, 2.5.3: no such source address is accepted from a device) and is the sandbox's
//! own. A server that root starts inside on a loopback port 53 isn't reached, by intent.
//!
//! **Signals.** Those that a user or a service manager sends to tunneld are held from before
//! the fork and read by [`Child::wait`], which passes them on. CMD gets the mask and the
//! dispositions that tunneld was started with; SIGPIPE, which the Rust runtime has set to
//! ignored before `main`, is set to its default.
//!
//! **Killed.** When tunneld is killed, CMD is killed: by its own wish (PR_SET_PDEATHSIG) and,
//! where `execve` makes it forget that, by a guard process. Every grandchild loses the network,
//! which ends with our TUN descriptor.

mod child;
mod error;
mod guard;
mod handover;
mod inside;
mod keeper;
mod mounts;
mod namespaces;
mod network;
mod process;
mod resolv;
mod signals;
mod sysctl;

use std::ffi::OsString;
use std::os::fd::OwnedFd;

use engine::DeviceName;
use ipnet::IpNet;
use rustix::io::Errno;

pub use child::{Child, Status};
pub use error::{NoUserNamespace, SpawnError, Stage};
pub use resolv::Etc;

use guard::Lifeline;
use handover::{ParentEnd, Reply};
use keeper::Keeper;
use process::{Argv, Forked, Side};
use signals::Signals;

/// What the sandbox is to be.
#[derive(Debug, Clone)]
pub struct Plan {
    /// CMD and its arguments; the program is looked up in `PATH` as a shell would.
    pub command: Vec<OsString>,
    /// The name of the TUN inside.
    pub device: DeviceName,
    /// The addresses of the TUN. The first of each family is the source of CMD's packets.
    pub addresses: Vec<IpNet>,
    /// The TUN's MTU in bytes.
    pub mtu: u32,
    /// Whether packets carry the virtio header and may be super-packets.
    pub offload: bool,
    /// How many queues the TUN has: 1 to [`MAX_QUEUES`].
    pub queues: usize,
    /// What `/etc/resolv.conf` holds inside.
    pub resolv_conf: Vec<u8>,
    /// Leave the host's resolver sockets and its system D-Bus in place.
    pub keep_sockets: bool,
    /// Whether the TUN speaks IPv6. If not, IPv6 addresses are passed over.
    pub ipv6: bool,
}

/// The most queues a TUN of ours has. Two descriptors for each, and two more, must fit the
/// 253 that one message carries (`SCM_MAX_FD`).
pub const MAX_QUEUES: usize = 64;

const _: () = assert!(2 * MAX_QUEUES + 2 <= 253);

/// A sandbox that is ready, with CMD waiting for [`start`](Self::start). Dropped, CMD never
/// runs.
#[derive(Debug)]
pub struct Sandbox {
    /// The TUN's queues, non-blocking, in the order in which they were attached.
    pub tun: Vec<OwnedFd>,
    /// `NETLINK_SOCK_DIAG` sockets that see the sandbox's sockets, one a queue.
    pub sock_diag: Vec<OwnedFd>,
    /// Whether there is a user namespace; if not, CMD is root with root's rights.
    pub user_namespace: bool,
    /// Where what CMD writes to `/etc` goes.
    pub etc: Etc,
    held: Held,
    keeper: Option<Keeper>,
}

impl Sandbox {
    /// The process that is to become CMD.
    pub fn pid(&self) -> u32 {
        self.held.process.pid()
    }

    /// Lets CMD run, and returns when its `execve` has succeeded or failed.
    pub fn start(self) -> Result<Child, SpawnError> {
        let Held { socket, process, signals, program, lifeline } = self.held;
        socket.go().map_err(SpawnError::Handover)?;
        match socket.receive() {
            Reply::Closed => {}
            Reply::NotExecuted(errno) => return Err(SpawnError::Command { program, errno }),
            Reply::Ready { .. } | Reply::Failed { .. } | Reply::Garbled => {
                return Err(SpawnError::Handover(Errno::PROTO));
            }
        }
        // Without it a resolv.conf that the host renames shows through: no reason to end CMD.
        if let Some(keeper) = self.keeper {
            keeper.start();
        }
        Ok(Child::new(process, signals, lifeline))
    }
}

/// The child before `execve`.
#[derive(Debug)]
struct Held {
    socket: ParentEnd,
    process: Forked,
    signals: Signals,
    program: OsString,
    lifeline: Lifeline,
}

/// Makes the sandbox of `plan`.
///
/// Must be called while the process has one thread, and that thread must live as long as CMD
/// is to. From here to the end of the [`Child`] the signals that are passed on are blocked
/// in this thread and in all that it starts.
pub fn spawn(plan: &Plan) -> Result<Sandbox, SpawnError> {
    let argv = Argv::new(&plan.command)?;
    if plan.queues == 0 || plan.queues > MAX_QUEUES {
        return Err(SpawnError::Queues(plan.queues));
    }
    process::require_one_thread()?;
    let signals = Signals::hold().map_err(SpawnError::Fork)?;
    let (socket, theirs) = handover::pair().map_err(SpawnError::Fork)?;
    let process = match process::fork().map_err(SpawnError::Fork)? {
        Side::Child { parent } => {
            drop(socket);
            inside::run(plan, &argv, signals, &theirs, parent)
        }
        Side::Parent(process) => process,
    };
    drop(theirs);
    let lifeline = guard::start(&process).map_err(SpawnError::Fork)?;

    let program = plan.command[0].clone();
    match socket.receive() {
        Reply::Ready { user_namespace, etc, mut descriptors }
            if descriptors.len() == 2 * plan.queues + etc.descriptors() =>
        {
            let keeper = Keeper::new(descriptors.split_off(2 * plan.queues));
            let sock_diag = descriptors.split_off(plan.queues);
            let held = Held { socket, process, signals, program, lifeline };
            Ok(Sandbox { tun: descriptors, sock_diag, user_namespace, etc, held, keeper })
        }
        Reply::Failed { stage, errno, user_namespace } => {
            Err(SpawnError::at(stage, errno, user_namespace))
        }
        Reply::Closed => Err(SpawnError::Ended),
        Reply::Ready { .. } | Reply::NotExecuted(_) | Reply::Garbled => {
            Err(SpawnError::Handover(Errno::PROTO))
        }
    }
}
