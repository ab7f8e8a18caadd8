//! A program run in a namespace, as some uid, with a time limit.
//!
//! Between fork and exec the child enters the namespace, takes what its uid
//! needs (a /dev/net/tun open to all, the binaries at a path it can reach, both
//! in a mount namespace of its own) and ties its life to the thread that
//! started it.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::netns::{self, Netns};

/// The uid and gid of a user without any right ("nobody").
pub const NOBODY: u32 = 65534;

/// What login(1) gives a user for PATH, and root's directories.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where [`Who::Nobody`] finds the staged binaries. It is empty on a Debian
/// host, and covered in the child's own mount namespace only.
const STAGE: &str = "/srv";

/// Whose rights a program runs with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Who {
    /// The user of the test run.
    Root,
    /// [`NOBODY`], without groups or capabilities.
    Nobody,
}

impl Who {
    /// Both, for tests that hold for any user.
    pub const ALL: [Self; 2] = [Self::Root, Self::Nobody];
}

/// What a program finds at /dev/net/tun.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Tun {
    /// A device open to all.
    Open,
    /// A device that only root may open.
    Closed,
    /// Nothing.
    Missing,
}

/// A program about to run.
#[derive(Debug)]
pub struct Program {
    netns: Netns,
    program: OsString,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    input: Vec<u8>,
    open_input: bool,
    who: Who,
    tun: Tun,
    stage: Vec<PathBuf>,
    limit: Duration,
}

/// How a program ended.
#[derive(Debug)]
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// From the start to the end.
    pub elapsed: Duration,
}

impl Finished {
    /// The exit code as a shell would say it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }
}

impl Program {
    pub(crate) fn new(netns: &Netns, program: impl AsRef<OsStr>) -> Self {
        Self {
            netns: netns.clone(),
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            input: Vec::new(),
            open_input: false,
            who: Who::Root,
            tun: Tun::Open,
            stage: Vec::new(),
            limit: Duration::from_secs(60),
        }
    }

    /// Adds arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// What it reads on standard input; nothing else is there.
    pub fn input(mut self, input: &str) -> Self {
        self.input = input.as_bytes().to_vec();
        self
    }

    /// Leaves standard input open behind `input`, until [`Running::close_input`].
    pub fn open_input(mut self) -> Self {
        self.open_input = true;
        self
    }

    /// Whose rights it runs with.
    pub fn who(mut self, who: Who) -> Self {
        self.who = who;
        self
    }

    /// What it finds at /dev/net/tun; for root [`Tun::Open`] is what there is.
    pub fn tun(mut self, tun: Tun) -> Self {
        self.tun = tun;
        self
    }

    /// A binary that [`Who::Nobody`] must be able to reach; see [`Program::staged`].
    pub fn stage(mut self, binary: &Path) -> Self {
        self.stage.push(binary.to_owned());
        self
    }

    /// The path under which `who` reaches a binary given to [`Program::stage`].
    pub fn staged(who: Who, binary: &Path) -> PathBuf {
        match who {
            Who::Root => binary.to_owned(),
            Who::Nobody => Path::new(STAGE).join(binary.file_name().unwrap_or_default()),
        }
    }

    /// How long it may take before it is killed and the test fails.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs it to its end.
    pub fn run(self) -> Result<Finished> {
        self.spawn()?.wait()
    }

    /// Starts it.
    pub fn spawn(self) -> Result<Running> {
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        if self.who == Who::Nobody {
            // The caller's own directories are closed to it.
            command.current_dir("/").env("HOME", "/").env("PATH", PATH);
        }
        let preparation = Preparation {
            netns: self.netns.raw_fd(),
            parent: rustix::process::getpid().as_raw_pid(),
            stage: match (self.who, self.tun) {
                (Who::Root, Tun::Open) => None,
                (Who::Root, Tun::Closed | Tun::Missing) | (Who::Nobody, _) => {
                    Some(Stage::new(self.tun, &self.stage)?)
                }
            },
            who: self.who,
        };
        // SAFETY: the closure makes system calls on memory prepared before the fork and allocates nothing.
        unsafe { command.pre_exec(move || preparation.apply()) };
        let what = shown(&self.program, &self.args);
        let started = Instant::now();
        let mut child = command.spawn().with_context(|| format!("start `{what}`"))?;
        let mut stdin = child.stdin.take().expect("piped above");
        let held = if self.open_input { Some(stdin.as_fd().try_clone_to_owned()?) } else { None };
        let input = self.input;
        // A program that does not read its input closes it; that is no error of ours.
        thread::spawn(move || stdin.write_all(&input));
        Ok(Running {
            stdout: Collected::from(child.stdout.take().expect("piped above")),
            stderr: Collected::from(child.stderr.take().expect("piped above")),
            child,
            input: Mutex::new(held),
            what,
            started,
            limit: self.limit,
        })
    }
}

/// A program that runs; killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    input: Mutex<Option<OwnedFd>>,
    what: String,
    started: Instant,
    limit: Duration,
    stdout: Collected,
    stderr: Collected,
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes to its standard input, left open by [`Program::open_input`].
    pub fn types(&self, text: &str) -> Result<()> {
        let input = self.input.lock().expect("no holder panics");
        let input = input.as_ref().context("its input was closed")?;
        ensure!(rustix::io::write(input, text.as_bytes())? == text.len(), "its input is full");
        Ok(())
    }

    /// Ends its standard input, left open by [`Program::open_input`].
    pub fn close_input(&self) {
        drop(self.input.lock().expect("no holder panics").take());
    }

    /// What it has written to standard output so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// What it has written to standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Waits until a line on standard output contains `text`.
    pub fn wait_for(&self, text: &str) -> Result<()> {
        let limit = Instant::now() + self.limit;
        while !self.stdout().contains(text) {
            if Instant::now() > limit {
                bail!(
                    "`{}` never wrote `{text}`\nstdout: {}\nstderr: {}",
                    self.what,
                    self.stdout(),
                    self.stderr()
                );
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Whether it has ended.
    pub fn ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).context("kill")
    }

    /// Waits for its end; past the limit it is killed and that is an error.
    pub fn wait(mut self) -> Result<Finished> {
        let limit = self.started + self.limit;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() > limit {
                bail!(
                    "`{}` still ran after {:?}\nstdout: {}\nstderr: {}",
                    self.what,
                    self.limit,
                    self.stdout(),
                    self.stderr()
                );
            }
            thread::sleep(Duration::from_millis(1));
        };
        let elapsed = self.started.elapsed();
        // A grandchild that outlives the program keeps the pipes open: not waited for long.
        self.stdout.finish(Duration::from_secs(2));
        self.stderr.finish(Duration::from_secs(2));
        Ok(Finished { status, stdout: self.stdout.text(), stderr: self.stderr.text(), elapsed })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // Its own group, made at the start: a program of ours and its children.
            let group = rustix::process::Pid::from_child(&self.child);
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

/// A pipe read to its end by a thread.
#[derive(Debug)]
struct Collected {
    bytes: Arc<Mutex<Vec<u8>>>,
    ended: mpsc::Receiver<()>,
}

impl Collected {
    fn from(mut pipe: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let (end, ended) = mpsc::channel();
        let sink = Arc::clone(&bytes);
        thread::spawn(move || {
            let mut buffer = [0; 16 * 1024];
            while let Ok(length @ 1..) = pipe.read(&mut buffer) {
                sink.lock().expect("no holder panics").extend_from_slice(&buffer[..length]);
            }
            drop(end);
        });
        Self { bytes, ended }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().expect("no holder panics")).into_owned()
    }

    fn finish(&self, limit: Duration) {
        // Disconnected (the end) and timeout are all that can come.
        let _ = self.ended.recv_timeout(limit);
    }
}

fn shown(program: &OsStr, args: &[OsString]) -> String {
    let mut line = program.to_string_lossy().into_owned();
    for arg in args {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    line
}

/// What the child does between fork and exec.
struct Preparation {
    netns: RawFd,
    parent: i32,
    stage: Option<Stage>,
    who: Who,
}

impl Preparation {
    fn apply(&self) -> io::Result<()> {
        netns::enter(self.netns)?;
        if let Some(stage) = &self.stage {
            stage.apply()?;
        }
        if self.who == Who::Nobody {
            drop_rights()?;
        }
        // After the change of uid, which clears it.
        // SAFETY: prctl(2) and getppid(2) with integers only.
        unsafe {
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
            if libc::getppid() != self.parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
        }
        Ok(())
    }
}

fn drop_rights() -> io::Result<()> {
    // SAFETY: integers, and an empty list for setgroups(2).
    unsafe {
        check(libc::setgroups(0, std::ptr::null()))?;
        check(libc::setresgid(NOBODY, NOBODY, NOBODY))?;
        check(libc::setresuid(NOBODY, NOBODY, NOBODY))
    }
}

/// A mount namespace in which [`NOBODY`] reaches the TUN device and the binaries.
///
/// Device nodes are often 0600 and a source tree below a closed directory:
/// neither is what a test is about, and neither may be changed on the host.
struct Stage {
    device: Tun,
    stage: CString,
    binaries: Vec<(CString, CString)>,
}

impl Stage {
    fn new(device: Tun, binaries: &[PathBuf]) -> Result<Self> {
        let binaries = binaries
            .iter()
            .filter(|binary| binary.exists())
            .map(|binary| {
                let to = Program::staged(Who::Nobody, binary);
                Ok((
                    CString::new(binary.as_os_str().as_bytes())?,
                    CString::new(to.as_os_str().as_bytes())?,
                ))
            })
            .collect::<Result<_>>()?;
        let stage = CString::new(STAGE)?;
        Ok(Self { device, stage, binaries })
    }

    fn apply(&self) -> io::Result<()> {
        let device = match self.device {
            Tun::Open => Some(0o666),
            Tun::Closed => Some(0o600),
            Tun::Missing => None,
        };
        // SAFETY: integers alone.
        check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
        mount(None, c"/", None, libc::MS_REC | libc::MS_PRIVATE)?;
        mount(Some(c"tmpfs"), c"/dev/net", Some(c"tmpfs"), 0)?;
        mount(Some(c"tmpfs"), &self.stage, Some(c"tmpfs"), 0)?;
        // SAFETY: C strings that outlive the calls, and integers.
        unsafe {
            check(libc::chmod(c"/dev/net".as_ptr(), 0o755))?;
            check(libc::chmod(self.stage.as_ptr(), 0o755))?;
            if let Some(mode) = device {
                let tun = c"/dev/net/tun".as_ptr();
                check(libc::mknod(tun, libc::S_IFCHR | mode, libc::makedev(10, 200)))?;
                // mknod(2) obeys the umask.
                check(libc::chmod(tun, mode))?;
            }
        }
        for (from, to) in &self.binaries {
            // SAFETY: a C string that outlives the call; the descriptor is closed at once.
            unsafe {
                let file = libc::open(to.as_ptr(), libc::O_CREAT | libc::O_CLOEXEC, 0o755);
                check(file)?;
                check(libc::close(file))?;
            }
            mount(Some(from), to, None, libc::MS_BIND)?;
        }
        Ok(())
    }
}

fn mount(
    source: Option<&CStr>,
    target: &CStr,
    kind: Option<&CStr>,
    flags: libc::c_ulong,
) -> io::Result<()> {
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    let (source, kind) = (pointer(source), pointer(kind));
    // SAFETY: C strings that outlive the call, or null where mount(2) allows it.
    check(unsafe { libc::mount(source, target.as_ptr(), kind, flags, std::ptr::null()) })
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
