//! The real systemd-resolved, on a system bus of its own.

use std::net::UdpSocket;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::own_files::run;

/// A server; killed when dropped.
#[derive(Debug)]
pub struct Server(Child);

impl Server {
    fn start(program: &str, args: &[&str], is_ready: impl Fn() -> bool) -> Result<Self> {
        let child = Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| program.to_owned())?;
        let mut server = Self(child);
        let began = Instant::now();
        while !is_ready() {
            if let Some(status) = server.0.try_wait()? {
                bail!("{program} ended: {status}");
            }
            ensure!(began.elapsed() < Duration::from_secs(10), "{program} is not ready");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A system bus and systemd-resolved on it, with `/etc/resolv.conf` its stub, below files of the
/// calling thread's own ([`with_own_files`](super::own_files::with_own_files)) that hold the
/// package.
pub fn start() -> Result<(Server, Server)> {
    let prepare = "mkdir -p /run/dbus /run/systemd/resolve
        ln -s ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf
        id systemd-resolve >/dev/null 2>&1 \
          || echo 'systemd-resolve:x:991:991::/:/usr/sbin/nologin' >> /etc/passwd
        getent group systemd-resolve >/dev/null || echo 'systemd-resolve:x:991:' >> /etc/group
        chown 991:991 /run/systemd/resolve";
    run("sh", &["-ec", prepare], "")?;
    let socket = Path::new("/run/dbus/system_bus_socket");
    let arguments = ["--system", "--nofork", "--nopidfile"];
    let bus = Server::start("dbus-daemon", &arguments, || socket.exists())?;
    Ok((bus, start_service()?))
}

/// systemd-resolved alone, on a bus that is there.
pub fn start_service() -> Result<Server> {
    let args = ["get-property", "org.freedesktop.resolve1", "/org/freedesktop/resolve1"];
    Server::start("/usr/lib/systemd/systemd-resolved", &[], || {
        let asked = Command::new("busctl")
            .args(["--auto-start=no", "--timeout=2"])
            .args(args)
            .args(["org.freedesktop.resolve1.Manager", "DNS"])
            .output();
        asked.is_ok_and(|asked| asked.status.success())
    })
}

/// Asks resolved's stub for an address of a name.
pub fn stub_knows(name: &str) -> Result<bool> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(8)))?;
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(label.len() as u8);
        query.extend(label.bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    socket.send_to(&query, "127.0.0.53:53")?;
    let mut answer = [0; 512];
    let (length, _) = socket.recv_from(&mut answer)?;
    ensure!(length > 12 && answer[..2] == query[..2], "{:?}", &answer[..length]);
    Ok(answer[3] & 15 == 0 && answer[7] > 0)
}
