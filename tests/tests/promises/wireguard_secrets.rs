//! The private and the preshared key of a tunnel are in nothing that tunneld says or leaves, however
//! much it is asked to say: logs, reports, answers, errors, the journal.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use tests::endpoints::TcpServer;
use tests::endpoints::page::{PAGE, page};
use tests::endpoints::wireguard::{End, WireguardGo, base64, ends, everything, hex, interface};
use tests::lab::daemon::{Daemon, ask};
use tests::lab::exec::built_tunneld;
use tests::lab::scratch::Scratch;
use tests::lab::{Exec, Who};
use tests::uplinks::within;
use tests::{require_root, require_tunneld};
use tunnel::link::wireguard::PresharedKey;

const FAR: &str = "203.0.113.9";
const RULES: &str = "route via wg0\ndefault allow";

/// 32 bytes, in every form in which somebody might print them.
struct Written {
    what: &'static str,
    forms: Vec<String>,
}

impl Written {
    fn of(what: &'static str, key: &[u8; 32]) -> Self {
        let hex = hex(key);
        let decimal: Vec<String> = key.iter().map(u8::to_string).collect();
        let forms =
            vec![base64(key), hex.to_uppercase(), hex, decimal.join(", "), decimal.join(",")];
        Self { what, forms }
    }

    /// Where a part of it stands that nobody would write by chance.
    fn found_in(&self, text: &str) -> Option<String> {
        const PART: usize = 14;
        let parts = self.forms.iter().flat_map(|form| form.as_bytes().windows(PART));
        let mut parts = parts.filter_map(|part| std::str::from_utf8(part).ok());
        parts.find(|part| text.contains(part)).map(|part| format!("{}: {part}", self.what))
    }
}

/// Two ends, of which the near one has no WireGuard, and what must not be seen.
struct Known {
    near: End,
    far: End,
    _theirs: WireguardGo,
    server: TcpServer,
    config: String,
    secrets: [Written; 2],
    /// The control: this may be seen, and is.
    public: Written,
}

impl Known {
    fn new() -> Result<Self> {
        let (near, far) = ends()?;
        let shared = [0xa7, 0x5c].repeat(16).try_into().expect("32 bytes");
        let preshared = PresharedKey::from_bytes(&shared);
        let theirs = WireguardGo::start(&far, &[near.peer(None, preshared.clone())])?;
        far.netns.ip(&format!("addr add {FAR}/32 dev lo\n"))?;
        let server = TcpServer::start(&far.netns, 0, page)?;
        let peer = everything(far.peer(Some(far.outer(false)), preshared));
        let config = interface("wg0", &near, "", &[peer]);
        let secrets = [
            Written::of("the private key", near.key.as_bytes()),
            Written::of("the preshared key", &shared),
        ];
        let public = Written::of("the public key", near.key.public().as_bytes());
        Ok(Self { near, far, _theirs: theirs, server, config, secrets, public })
    }

    fn url(&self) -> String {
        format!("http://{FAR}:{}/", self.server.port())
    }

    /// Nothing secret stands in it.
    fn keeps(&self, what: &str, text: &str) -> Result<()> {
        for secret in &self.secrets {
            let found = secret.found_in(text);
            ensure!(found.is_none(), "{what} tells {found:?}");
            // The control: planted, it is found.
            for form in &secret.forms {
                let planted = format!("{text}\n key={form:?}\n");
                ensure!(secret.found_in(&planted).is_some(), "{what}: {form} is not found");
            }
        }
        Ok(())
    }

    /// The configuration with something wrong in it, beside the keys.
    fn faulty(&self) -> Vec<(&'static str, String)> {
        let private = format!("private_key = \"{}", base64(self.near.key.as_bytes()));
        let part = &private[..private.len() - 3];
        vec![
            ("a key that is too short", self.config.replacen(&private, part, 1)),
            ("a key that is too long", self.config.replacen(&private, &format!("{private}A"), 1)),
            (
                "a key without its end",
                self.config.replacen("private_key = \"", "private_key = ", 1),
            ),
            ("another name", self.config.replacen("private_key", "private_kye", 1)),
            ("twice", self.config.replacen("private_key", "private_key = 1\nprivate_key", 1)),
            (
                "a preshared key with a sign",
                self.config.replacen("preshared_key = \"", "preshared_key = \"!", 1),
            ),
            (
                "another name of a preshared key",
                self.config.replacen("preshared_key", "preshard_key", 1),
            ),
            (
                "its own peer",
                self.config.replacen(
                    &base64(self.far.key.public().as_bytes()),
                    &base64(self.near.key.public().as_bytes()),
                    1,
                ),
            ),
        ]
    }
}

#[test]
fn exec_tells_no_key() -> Result<()> {
    require_root!();
    require_tunneld!();
    let known = Known::new()?;
    let seen = Exec::new(&known.near.netns, "curl")
        .who(Who::Nobody)
        .policy(RULES)
        .config_of_owner(&known.config)
        .env("RUST_LOG", "trace")
        .args(["-sS", "--max-time", "10", &known.url()])
        .run()?
        .success()?;
    ensure!(seen.stdout() == PAGE, "{seen:#?}");
    let log = &seen.finished.stderr;
    ensure!(log.contains("INFO") && log.contains("wg0"), "everything is logged: {log}");
    known.keeps("the log", log)?;
    known.keeps("the report", &format!("{:?} {:?}", seen.report, seen.counters))?;
    for (fault, config) in known.faulty() {
        let seen = Exec::new(&known.near.netns, "true")
            .policy(RULES)
            .config_of_owner(&config)
            .env("RUST_LOG", "trace")
            .run()?
            .code(125)?;
        known.keeps(fault, &seen.finished.stderr)?;
    }
    Ok(())
}

/// What stands in every file below a directory, but for the configuration.
fn left_in(directory: &Path) -> Result<String> {
    let mut text = String::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let kind = fs::symlink_metadata(&path)?.file_type();
        if kind.is_dir() {
            text += &left_in(&path)?;
        } else if kind.is_file() && path.file_name().is_some_and(|name| name != "tunneld.toml") {
            text +=
                &format!("{}:\n{}\n", path.display(), String::from_utf8_lossy(&fs::read(&path)?));
        }
    }
    Ok(text)
}

#[test]
fn a_daemon_tells_no_key() -> Result<()> {
    require_root!();
    require_tunneld!();
    let known = Known::new()?;
    let policy = format!("policy 1\n{RULES}\n");
    let mut daemon = Daemon::new(&known.near.netns, &policy, &known.config)?;
    daemon.env("RUST_LOG", "trace");
    daemon.run()?;
    let watching =
        daemon.program_of(&["watch", "--json"])?.limit(Duration::from_secs(60)).spawn()?;
    // It may have begun to watch after the first.
    within(Duration::from_secs(10), "an event", || {
        let curl = ["-sS", "--max-time", "10", &known.url()];
        let done = known.near.netns.command("curl").args(curl).run()?;
        ensure!(done.stdout == PAGE, "{done:?}");
        Ok(watching.stdout().contains("\"flow\""))
    })?;
    let mut said = String::new();
    for verb in
        [&["status"][..], &["flows"], &["rules"], &["explain", "tcp", "any", "203.0.113.9:443"]]
    {
        for json in [&[][..], &["--json"]] {
            let done = daemon.verb(&[json, verb].concat())?;
            said += &format!("{verb:?}: {}{}\n", done.stdout, done.stderr);
        }
    }
    said += &ask(&daemon.socket(), "/metrics")?;
    ensure!(known.public.found_in(&said).is_some(), "the public key is told: {said}");
    known.keeps("a verb", &said)?;
    known.keeps("the events", &watching.stdout())?;
    drop(watching);
    for (fault, config) in known.faulty() {
        daemon.configure(&config)?;
        for json in [&[][..], &["--json"]] {
            let reload = daemon.verb(&[json, &["reload"]].concat())?;
            let check =
                known.near.netns.command(built_tunneld()?).args(json).args(["check", "--config"]);
            let check = check.args([daemon.config()]).run()?;
            ensure!(reload.code() == 1 && check.code() == 1, "{fault}: {reload:?} {check:?}");
            known.keeps(fault, &format!("{reload:?} {check:?}"))?;
        }
    }
    // Killed, it leaves its journal.
    daemon.configure(&known.config)?;
    let files = left_in(daemon.files().path())?;
    ensure!(files.contains("tunneld0"), "there is a journal: {files}");
    known.keeps("the journal", &files)?;
    let killed = daemon.kill()?;
    known.keeps("the journal of one that was killed", &left_in(daemon.files().path())?)?;
    ensure!(killed.stderr.contains("DEBUG") && killed.stderr.contains("wg0"), "{}", killed.stderr);
    known.keeps("the log", &format!("{}{}", killed.stdout, killed.stderr))
}

#[test]
fn a_file_of_wg_quick_keeps_its_key() -> Result<()> {
    require_root!();
    require_tunneld!();
    let known = Known::new()?;
    let files = Scratch::new()?;
    let text = format!(
        "[Interface]\nPrivateKey = {}\nAddress = 10.0.0.1/32\n\n[Peer]\nPublicKey = {}\n\
         PresharedKey = {}\nAllowedIPs = 0.0.0.0/0\nEndpoint = 192.0.2.2:51820\n",
        base64(known.near.key.as_bytes()),
        base64(known.far.key.public().as_bytes()),
        known.secrets[1].forms[0],
    );
    for (what, text) in [
        ("whole", text.clone()),
        ("a key that is too short", text.replacen("PrivateKey = ", "PrivateKey = A", 1)),
        ("another name", text.replacen("PrivateKey", "PrivateKye", 1)),
        ("a line without its sign", text.replacen("PresharedKey =", "PresharedKey", 1)),
    ] {
        let path = files.write_secret("wg0.conf", &text)?;
        for json in [&[][..], &["--json"]] {
            let tunneld = known.near.netns.command(built_tunneld()?);
            let done =
                tunneld.env("RUST_LOG", "trace").args(json).args(["import"]).args([&path]).run()?;
            ensure!((done.code() == 0) == (what == "whole"), "{what}: {done:?}");
            known.keeps(what, &done.stderr)?;
            if what == "whole" {
                // The configuration that it prints needs the key.
                ensure!(known.secrets[0].found_in(&done.stdout).is_some(), "{done:?}");
            } else {
                known.keeps(what, &done.stdout)?;
            }
        }
    }
    Ok(())
}
