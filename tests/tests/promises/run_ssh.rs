//! Whoever looks after the host over SSH stays logged in, whatever the daemon does.

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::endpoints::Sshd;
use tests::lab::daemon::Daemon;
use tests::lab::{Lab, Running, plan};
use tests::{require_root, require_tunneld};

/// How long a line may take there and back.
const PATIENCE: Duration = Duration::from_secs(5);
/// A login from outside, which says back what is typed.
struct Login {
    running: Running,
    typed: String,
}

impl Login {
    fn open(lab: &Lab, server: &Sshd, to: IpAddr) -> Result<Self> {
        let running = lab
            .server
            .command("ssh")
            .args(["-F", "none", "-T", "-i"])
            .args([server.key()])
            .args(["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"])
            .args(["-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=5"])
            .args([format!("root@{to}").as_str(), "exec cat"])
            .open_input()
            .limit(Duration::from_secs(120))
            .spawn()?;
        let mut login = Self { running, typed: String::new() };
        login.types("hello").with_context(|| format!("a login at {to}"))?;
        Ok(login)
    }

    fn types(&mut self, line: &str) -> Result<()> {
        self.running.types(&format!("{line}\n"))?;
        self.typed += &format!("{line}\n");
        let began = Instant::now();
        while self.running.stdout() != self.typed {
            ensure!(
                began.elapsed() < PATIENCE && !self.running.ended()?,
                "`{line}` did not come back: {}",
                self.running.stderr()
            );
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Logs out in order.
    fn close(self) -> Result<()> {
        self.running.close_input();
        let ended = self.running.wait()?;
        ensure!(ended.code() == 0, "{ended:?}");
        Ok(())
    }
}

#[test]
fn ssh_sessions_stay_whatever_the_daemon_does() -> Result<()> {
    require_root!();
    require_tunneld!();
    for rp_filter in ["0", "1", "2"] {
        stay(rp_filter).with_context(|| format!("rp_filter {rp_filter}"))?;
    }
    Ok(())
}

fn stay(rp_filter: &str) -> Result<()> {
    let lab = Lab::new()?;
    lab.host.sysctl("net/ipv4/conf/all/rp_filter", rp_filter)?;
    let server = Sshd::start(&lab.host, &[plan::HOST4, plan::HOST6])?;
    let mut logins = Vec::new();
    let open = |logins: &mut Vec<Login>, when: &str| -> Result<()> {
        for to in [plan::HOST4, plan::HOST6] {
            logins.push(Login::open(&lab, &server, to).with_context(|| when.to_owned())?);
        }
        Ok(())
    };
    let all_type = |logins: &mut Vec<Login>, when: &str| -> Result<()> {
        for (number, login) in logins.iter_mut().enumerate() {
            login.types(when).with_context(|| format!("login {number} {when}"))?;
        }
        Ok(())
    };
    open(&mut logins, "before the daemon")?;
    let mut daemon =
        Daemon::start(&lab.host, "policy 1\ndefault block\n", "[device]\ncapture = \"all\"\n")?;
    all_type(&mut logins, "after the start")?;
    open(&mut logins, "beside the daemon")?;
    let reloaded = daemon.reload("policy 1\ndefault drop\n")?;
    ensure!(reloaded.code() == 0, "{reloaded:?}");
    all_type(&mut logins, "after a reload")?;
    daemon.kill()?;
    all_type(&mut logins, "with the daemon dead")?;
    open(&mut logins, "with the daemon dead")?;
    daemon.run()?;
    all_type(&mut logins, "after the restart")?;
    open(&mut logins, "after the restart")?;
    daemon.stop()?;
    all_type(&mut logins, "after the stop")?;
    ensure!(logins.len() == 8);
    logins.into_iter().try_for_each(Login::close)
}
