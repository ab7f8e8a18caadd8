//! The child, from the fork to CMD.

use std::convert::Infallible;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::io::Errno;
use rustix::process::Pid;

use super::error::{Failure, Stage};
use super::handover::ChildEnd;
use super::process::{self, Argv};
use super::resolv::Etc;
use super::signals::Signals;
use super::{Plan, mounts, namespaces, network, resolv};

/// Makes the sandbox, hands it over, waits to be let go and becomes CMD. Never returns: what
/// comes after the fork in the parent's code is the parent's alone.
pub(super) fn run(plan: &Plan, argv: &Argv, signals: Signals, socket: &ChildEnd, parent: Pid) -> ! {
    let ran = catch_unwind(AssertUnwindSafe(|| {
        if make(plan, socket, parent).is_some() && socket.wait() {
            let Err(errno) = become_command(argv, signals, parent);
            socket.not_executed(errno);
        }
    }));
    // A panic has told its place on standard error; the parent sees the socket close.
    drop(ran);
    process::quit(FAILED)
}

/// `None`: it failed, and the parent knows why.
fn make(plan: &Plan, socket: &ChildEnd, parent: Pid) -> Option<()> {
    let mut user_namespace = false;
    let made = set_up(plan, socket, parent, &mut user_namespace);
    if let Err(Failure { stage, errno }) = made {
        socket.failed(stage, errno, user_namespace);
        return None;
    }
    Some(())
}

fn set_up(
    plan: &Plan,
    socket: &ChildEnd,
    parent: Pid,
    user_namespace: &mut bool,
) -> Result<(), Failure> {
    namespaces::enter(user_namespace)?;
    // Entering a user namespace may clear the wish, so it comes after. Up to here the socket
    // does its work: nothing of the sandbox outlives the child.
    if !process::die_with(parent).at(Stage::DeathSignal)? {
        process::quit(FAILED);
    }
    let directory = rustix::process::getcwd(Vec::new());
    let devices = network::set_up(plan)?;
    if !plan.keep_sockets {
        mounts::mask_sockets(resolv::target().as_deref())?;
    }
    mounts::fresh_sysfs();
    let resolv = resolv::set_up(&plan.resolv_conf, *user_namespace)?;
    // A mount over a directory above leaves this process in the one beneath it. A directory
    // that was removed, or whose path isn't ours to walk, stays what it is.
    if let Ok(directory) = directory {
        let _ = rustix::process::chdir(directory);
    }

    let kept = match &resolv {
        resolv::Placed::Host { namespace, file } => vec![namespace.as_fd(), file.as_fd()],
        resolv::Placed::Overlay | resolv::Placed::Bound => Vec::new(),
    };
    let descriptors: Vec<_> =
        devices.tun.iter().chain(&devices.sock_diag).map(AsFd::as_fd).chain(kept).collect();
    socket.ready(*user_namespace, Etc::from(&resolv), &descriptors).at(Stage::Handover)
}

fn become_command(argv: &Argv, signals: Signals, parent: Pid) -> Result<Infallible, Errno> {
    signals.restore_for_command()?;
    if rustix::process::getppid() != Some(parent) {
        process::quit(FAILED);
    }
    Err(argv.execute())
}

/// What the parent would exit with.
const FAILED: i32 = 125;

/// Names the stage of an errno.
pub(super) trait At<T> {
    fn at(self, stage: Stage) -> Result<T, Failure>;
}

impl<T> At<T> for Result<T, Errno> {
    fn at(self, stage: Stage) -> Result<T, Failure> {
        self.map_err(|errno| Failure { stage, errno })
    }
}
