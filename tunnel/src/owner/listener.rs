//! Whether a socket is of whoever listens at an address of this host.
//!
//! # Theory of operation
//!
//! The kernel tells the listening socket's inode. The processes that have it open, found once
//! among all of this host, are its *family*, with all that they have started since: servers
//! fork, and have helpers. A socket is of the family where one of them has it open.
//!
//! Another process of the same user or of the same program is none of the family: a second
//! `ssh` carries somebody else's flows. Nor is a service manager that holds the socket for a
//! service, which all services descend from. Where nobody else has the socket open, or the open
//! files of whoever has can't be looked at, no socket is known to be of the family.
//!
//! Some servers hand a socket that is still connecting to another of their processes. On its way
//! nobody has it open; the Unix socket that it waits in says that something does (`scm_fds` of
//! proc_pid_fdinfo(5), since Linux 5.6), and then it is looked again a moment later. One that is
//! missed all the same counts as somebody else's: its flow goes round once more.
//!
//! A socket of a user that none of the family is costs one question about the listener, of
//! about 1 µs. Any other costs a look at the family's open files, about 1 µs each, and at its Unix
//! sockets, some 4 µs each; while one is handed on at most twice [`HANDING`] more, in vain once in
//! [`PAUSE`]. Where the
//! listener is another one than before all processes are looked at, which takes some ten
//! milliseconds, and at most five times a second.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::OwnerAnswer;

/// Who listens at one address.
#[derive(Debug, Default)]
pub(super) struct Family {
    /// Of the listening socket; 0: none was looked for.
    inode: u32,
    processes: Vec<Process>,
    /// What had been started when children were looked for: see [`newest`].
    newest: String,
    /// When all processes were looked at.
    searched: Option<Instant>,
    /// When children were.
    visited: Option<Instant>,
    /// When a socket on its way was waited for and did not come.
    waited: Option<Instant>,
}

#[derive(Debug)]
struct Process {
    id: u32,
    /// Tells it from a later one of the same number.
    started: u64,
    /// Real, effective, saved, of the file system.
    users: [u32; 4],
    /// The numbers of its Unix sockets among its first open files.
    channels: Box<[OsString]>,
}

/// What is known of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kinship {
    /// It is of the family.
    Own,
    /// It is of somebody else.
    Other,
    /// Nobody is known who listens.
    Unknown,
}

impl Family {
    /// Whether `socket` is of those who have `listener` open.
    pub(super) fn kinship(&mut self, listener: &OwnerAnswer, socket: &OwnerAnswer) -> Kinship {
        if listener.inode != self.inode || self.processes.is_empty() {
            self.search(listener.inode);
        }
        if self.processes.is_empty() {
            return Kinship::Unknown;
        }
        if !self.has_user(socket.uid) {
            let waits = self.visited.is_some_and(|visited| visited.elapsed() < PAUSE);
            if waits || !self.add_children() || !self.has_user(socket.uid) {
                return Kinship::Other;
            }
        }
        // Who never takes what it was sent must not hold up the flows of others.
        let may_wait = self.waited.is_none_or(|waited| waited.elapsed() >= PAUSE);
        for _ in 0..2 {
            let began = Instant::now();
            while may_wait && began.elapsed() < HANDING && self.hands_on() {
                thread::sleep(MOMENT);
            }
            if self.has_open(socket.inode) || self.add_children() && self.has_open(socket.inode) {
                return Kinship::Own;
            }
            // It may have been sent off before its receiver was looked at.
            if !may_wait || !self.hands_on() {
                return Kinship::Other;
            }
        }
        self.waited = Some(Instant::now());
        Kinship::Other
    }

    /// Whether a descriptor is on its way to one of the family.
    fn hands_on(&self) -> bool {
        let mut channels =
            self.processes.iter().flat_map(|it| it.channels.iter().map(|file| (it.id, file)));
        channels.any(|(id, file)| waiting(id, file).is_some_and(|count| count > 0))
    }

    /// Looks among all processes for those that have the listener open.
    fn search(&mut self, inode: u32) {
        let before = std::mem::replace(&mut self.inode, inode);
        if before == inode && self.searched.is_some_and(|searched| searched.elapsed() < PAUSE) {
            return;
        }
        self.searched = Some(Instant::now());
        let link = link_to(inode);
        let ids = fs::read_dir("/proc").into_iter().flatten().flatten();
        let ids = ids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let holders = ids.filter(|id| !is_manager(*id) && has_open(*id, &link) == Some(true));
        self.processes = holders.filter_map(Process::look).collect();
        self.newest.clear();
        self.add_children();
    }

    fn has_user(&self, user: u32) -> bool {
        self.processes.iter().any(|process| process.users.contains(&user))
    }

    /// Whether one of the family has that socket open. Who is gone is forgotten.
    fn has_open(&mut self, inode: u32) -> bool {
        let link = link_to(inode);
        let mut found = false;
        self.processes.retain(|process| {
            if found {
                return true;
            }
            match has_open(process.id, &link) {
                None => false,
                Some(false) => true,
                // Its number may be another's by now.
                Some(true) => {
                    found =
                        Process::look(process.id).is_some_and(|it| it.started == process.started);
                    found
                }
            }
        });
        found
    }

    /// Adds what the family has started since; whether that is anybody.
    fn add_children(&mut self) -> bool {
        self.visited = Some(Instant::now());
        let newest = newest();
        if !newest.is_empty() && newest == self.newest {
            return false;
        }
        self.newest = newest;
        let before = self.processes.len();
        let mut next = 0;
        while let Some(process) = self.processes.get(next) {
            for child in children(process.id) {
                if self.processes.len() < FAMILY && self.processes.iter().all(|it| it.id != child) {
                    self.processes.extend(Process::look(child));
                }
            }
            next += 1;
        }
        self.processes.len() > before
    }
}

impl Process {
    /// `None`: there is none of that number, or it can't be looked at.
    fn look(id: u32) -> Option<Self> {
        let started = started(&fs::read_to_string(format!("/proc/{id}/stat")).ok()?)?;
        let users = users(&fs::read_to_string(format!("/proc/{id}/status")).ok()?)?;
        let open = fs::read_dir(format!("/proc/{id}/fd")).into_iter().flatten().flatten();
        let files = open.take(CHANNELS).map(|file| file.file_name());
        let channels = files.filter(|file| waiting(id, file).is_some()).collect();
        Some(Self { id, started, users, channels })
    }
}

/// How many descriptors wait to be received at a Unix socket; `None`: it is none.
fn waiting(id: u32, file: &OsStr) -> Option<u32> {
    let path = Path::new("/proc").join(id.to_string()).join("fdinfo").join(file);
    scm_fds(&fs::read_to_string(path).ok()?)
}

/// proc_pid_fdinfo(5)
fn scm_fds(text: &str) -> Option<u32> {
    text.lines().find_map(|line| line.strip_prefix("scm_fds:"))?.trim().parse().ok()
}

/// proc_pid_stat(5): the 22nd field. The second, a name in parentheses, may hold anything.
fn started(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

/// proc_pid_status(5)
fn users(status: &str) -> Option<[u32; 4]> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let mut users = line.split_ascii_whitespace().map_while(|user| user.parse().ok());
    Some([users.next()?, users.next()?, users.next()?, users.next()?])
}

/// Whether a process has that file open; `None`: there is no such process.
fn has_open(id: u32, link: &str) -> Option<bool> {
    let open = match fs::read_dir(format!("/proc/{id}/fd")) {
        Ok(open) => open,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(_) => return Some(false),
    };
    let link = OsStr::new(link);
    let is_it = |path| fs::read_link(path).is_ok_and(|to| to.as_os_str() == link);
    Some(open.flatten().take(FILES).any(|entry| is_it(entry.path())))
}

/// What a socket's descriptor is a link to.
fn link_to(inode: u32) -> String {
    format!("socket:[{inode}]")
}

/// What a process has started and what still runs, by its threads.
fn children(id: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|it| fs::read_to_string(it.path().join("children")).ok());
    let parse = |list: String| -> Vec<u32> {
        list.split_ascii_whitespace().filter_map(|child| child.parse().ok()).collect()
    };
    lists.flat_map(parse).collect()
}

/// Another word as soon as anything was started on this host: the number that it got. Empty
/// where that can't be told.
fn newest() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_ascii_whitespace().nth(4).unwrap_or_default().to_owned()
}

/// Whether a process is one that holds sockets for others: the first of all, or a manager of a
/// user's services.
fn is_manager(id: u32) -> bool {
    let name = || fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
    id == 1 || name().trim_end() == "systemd"
}

/// Between two looks at all processes, or at who has been started for somebody of another user, and
/// between two waits in vain.
const PAUSE: Duration = Duration::from_millis(200);
/// A socket that is handed on is there within that, unless nobody takes it.
const HANDING: Duration = Duration::from_millis(3);
/// ... and is looked for that often.
const MOMENT: Duration = Duration::from_micros(200);
/// Open files of a process among which its Unix sockets are looked for: servers have those to
/// each other from their start.
const CHANNELS: usize = 64;
/// Processes of one family; servers that fork for each client have fewer.
const FAMILY: usize = 4096;
/// Open files of a process that are looked at, so that one look takes no more than some 20 ms.
const FILES: usize = 16_384;

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    };
    use std::io::{IoSlice, IoSliceMut};
    use std::mem::MaybeUninit;
    use std::net::{TcpListener, UdpSocket};
    use std::os::fd::{AsFd, AsRawFd, OwnedFd};
    use std::os::unix::net::UnixStream;
    use std::process::{Command, Stdio};

    fn answer(socket: &impl AsRawFd) -> OwnerAnswer {
        let link = fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
        let text = link.to_str().unwrap();
        let inode = text["socket:[".len()..text.len() - 1].parse().unwrap();
        OwnerAnswer { uid: rustix::process::getuid().as_raw(), inode, cgroup_id: None }
    }

    #[test]
    fn a_family_is_who_listens_and_whom_they_start() {
        let listening = TcpListener::bind("127.0.0.1:0").unwrap();
        let (listener, own) = (answer(&listening), UdpSocket::bind("127.0.0.1:0").unwrap());
        let mut family = Family::default();
        assert_eq!(family.kinship(&listener, &answer(&own)), Kinship::Own);
        let nobody = OwnerAnswer { inode: u32::MAX, ..listener };
        assert_eq!(family.kinship(&listener, &nobody), Kinship::Other);
        let stranger = OwnerAnswer { uid: 4_000_000, ..answer(&own) };
        assert_eq!(family.kinship(&listener, &stranger), Kinship::Other);
        assert_eq!(Family::default().kinship(&nobody, &answer(&own)), Kinship::Unknown);

        // A child alone has it open: its standard input.
        let inherited = UdpSocket::bind("127.0.0.1:0").unwrap();
        let its = answer(&inherited);
        let input = Stdio::from(OwnedFd::from(inherited));
        let mut child = Command::new("sleep").arg("60").stdin(input).spawn().unwrap();
        assert_eq!(family.kinship(&listener, &its), Kinship::Own);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(family.kinship(&listener, &its), Kinship::Other);

        // Another listener is another family, who may be the same people.
        let another = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(family.kinship(&answer(&another), &answer(&own)), Kinship::Own);
    }

    #[test]
    fn a_socket_that_is_handed_on_is_of_the_family() {
        let listening = TcpListener::bind("127.0.0.1:0").unwrap();
        let listener = answer(&listening);
        let (sender, receiver) = UnixStream::pair().unwrap();
        let hand_on = |socket: UdpSocket| {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let files = [socket.as_fd()];
            assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
            let (byte, flags) = ([IoSlice::new(b"x")], SendFlags::empty());
            sendmsg(&sender, &byte, &mut control, flags).unwrap();
        };
        let take = || -> OwnedFd {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let (mut byte, flags) = ([0], RecvFlags::CMSG_CLOEXEC);
            recvmsg(&receiver, &mut [IoSliceMut::new(&mut byte)], &mut control, flags).unwrap();
            let first = control.drain().next();
            let Some(RecvAncillaryMessage::ScmRights(mut files)) = first else {
                panic!("a descriptor")
            };
            files.next().unwrap()
        };
        let mut family = Family::default();
        // Before it the family is found, and its channels with it.
        assert_eq!(family.kinship(&listener, &answer(&listening)), Kinship::Own);
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let its = answer(&socket);
        hand_on(socket);
        let began = Instant::now();
        assert_eq!(family.kinship(&listener, &its), Kinship::Other, "nobody takes it");
        assert!(began.elapsed() >= HANDING, "it was waited for");
        let waited = family.waited;
        assert_eq!(family.kinship(&listener, &its), Kinship::Other);
        assert!(waited.is_some() && family.waited == waited, "not again at once");
        thread::sleep(PAUSE);
        thread::scope(|scope| {
            let taken = scope.spawn(|| {
                thread::sleep(HANDING / 3);
                take()
            });
            // A machine under load may take longer than it is waited for.
            let found = (0..20).any(|_| {
                family.kinship(&listener, &its) == Kinship::Own || {
                    thread::sleep(HANDING);
                    false
                }
            });
            assert!(found, "it has come");
            drop(taken.join().unwrap());
        });
        assert_eq!(family.kinship(&listener, &its), Kinship::Other, "it is closed");
    }

    #[test]
    fn what_proc_says() {
        let stat = "7 (a) b) c) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2 3";
        assert_eq!(started(stat), Some(987_654));
        assert_eq!((started(""), started("7 (a) S 1")), (None, None));
        assert_eq!(users("Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5"), Some([1, 2, 3, 4]));
        assert_eq!((users("Uid:\t1\t2"), users("")), (None, None));
        assert_eq!(scm_fds("pos:\t0\nino:\t9\nscm_fds:\t2\n"), Some(2));
        assert_eq!((scm_fds("pos:\t0\n"), scm_fds("scm_fds:\t-")), (None, None));
        assert!(is_manager(1) && !is_manager(std::process::id()));
        assert!(!newest().is_empty());
    }
}
