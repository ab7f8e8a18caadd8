//! The probe: the program under `tunneld exec` that asks one exact question and
//! answers with one JSON object, so that a test can demand an errno and a time.
//!
//! `probe QUESTION ARGUMENT…`; the questions are the arms of [`ask`].

mod errno;
mod load;
mod raw;
mod tcp;
mod udp;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

fn main() -> Result<()> {
    raise_descriptor_limit()?;
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (question, words) = words.split_first().context("usage: probe QUESTION ARGUMENT…")?;
    let answer = ask(question, &mut Arguments { words })?;
    println!("{answer}");
    Ok(())
}

/// Questions about many connections hold many descriptors.
fn raise_descriptor_limit() -> io::Result<()> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    Ok(setrlimit(Resource::Nofile, limit)?)
}

fn ask(question: &str, given: &mut Arguments<'_>) -> Result<Value> {
    match question {
        "connect" => tcp::connect(given.address()?, given.milliseconds_or(10_000)?),
        "download" => tcp::download(given.address()?),
        "upload" => tcp::upload(given.address()?, given.next()?),
        "half-close" => tcp::half_close(given.address()?, given.next()?),
        "send-after-end" => tcp::send_after_end(given.address()?, given.next()?),
        "reset" => tcp::reset(given.address()?),
        "await-reset" => tcp::await_reset(given.address()?),
        "slow-read" => tcp::slow_read(given.address()?, given.next()?, given.next()?),
        "push" => tcp::push(given.address()?, given.next()?),
        "downloads" => {
            load::downloads(given.address()?, given.next()?, given.next()?, given.next()?)
        }
        "outcomes" => load::outcomes(given.address()?, given.next()?),
        "udp-outcomes" => udp::outcomes(given.address()?, given.next()?),
        "udp-errors" => udp::errors(given.address()?, given.milliseconds_or(1_000)?),
        "idle" => load::idle(given.address()?, given.next()?, given.next()?),
        "syns" => load::syns(given.next()?, given.next()?, given.next()?),
        "latency" => load::latency(given.address()?, given.next()?),
        "rate" => load::rate(given.address()?, given.next()?, given.next()?),
        "udp" => udp::once(given.address()?, given.milliseconds_or(1_000)?),
        "udp-echo" => udp::echo(given.address()?, given.next()?, given.next()?),
        "udp-until" => udp::until(given.address()?, given.milliseconds_or(5_000)?),
        "udp-latency" => udp::latency(given.address()?, given.next()?),
        "udp-segments" => udp::segments(given.address()?, given.next()?, given.next()?),
        "udp-mapping" => udp::mapping(given.address()?, given.address()?),
        "udp-flood" => udp::flood(given.address()?, given.next()?, given.next()?),
        "dns" => udp::dns(given.address()?, &given.next::<String>()?),
        "bad-packets" => raw::bad_packets(given.next()?, given.next()?),
        other => bail!("the probe knows no question `{other}`"),
    }
}

/// The words of the command line that are still to be read.
struct Arguments<'a> {
    words: &'a [String],
}

impl Arguments<'_> {
    fn next<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(&mut self) -> Result<T> {
        let (word, rest) = self.words.split_first().context("an argument is missing")?;
        self.words = rest;
        word.parse().with_context(|| format!("argument `{word}`"))
    }

    /// An address and a port.
    fn address(&mut self) -> Result<SocketAddr> {
        Ok(SocketAddr::new(self.next::<IpAddr>()?, self.next()?))
    }

    fn milliseconds_or(&mut self, default: u64) -> Result<Duration> {
        let given = if self.words.is_empty() { default } else { self.next()? };
        Ok(Duration::from_millis(given))
    }
}
