//! The other end of the control socket: how a verb asks the daemon.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, Response, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::config;
use crate::control::SOCKET;
use crate::diagnostics::{self, Told};
use crate::error::{Refusal, code};

/// Which daemon.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Target {
    /// The daemon's control socket
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// The daemon's configuration, which says where its socket is, unless --socket does
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// An answer takes less: the daemon gives its shards 5 s.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection to the daemon.
pub(crate) struct Client {
    verb: &'static str,
    json: bool,
    runtime: Runtime,
    sender: SendRequest<Full<Bytes>>,
}

impl Client {
    /// Connects. With `json`, diagnostics that come back are printed as objects.
    ///
    /// # Errors
    /// No daemon listens there, or it may not be asked.
    pub(crate) fn connect(verb: &'static str, target: &Target, json: bool) -> anyhow::Result<Self> {
        let path = target.path()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let sender = runtime.block_on(async {
            let stream = UnixStream::connect(&path).await.map_err(|error| {
                let kind = error.kind();
                let shown = path.display();
                if kind == ErrorKind::NotFound || kind == ErrorKind::ConnectionRefused {
                    Refusal::new(code::NO_DAEMON, format!("{verb}: daemon not running"))
                        .help(format!("nothing listens at {shown}"))
                } else if kind == ErrorKind::PermissionDenied {
                    Refusal::new(code::NOT_PERMITTED, format!("{verb}: not permitted"))
                        .help(format!("root, and members of the group of {shown}, may"))
                } else {
                    Refusal::new(code::FAILED, format!("{verb}: {shown}: {error}"))
                }
            })?;
            let (sender, connection) = handshake(TokioIo::new(stream)).await?;
            // Its end is seen by whoever waits for an answer.
            tokio::spawn(connection);
            anyhow::Ok(sender)
        })?;
        Ok(Self { verb, json, runtime, sender })
    }

    /// Asks for one object.
    pub(crate) fn get(&mut self, path: &str) -> anyhow::Result<Value> {
        self.object(Method::GET, path, Bytes::new())
    }

    /// Sends a body and gets one object.
    pub(crate) fn post(&mut self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
        self.object(Method::POST, path, body)
    }

    /// Orders the end of something.
    pub(crate) fn delete(&mut self, path: &str) -> anyhow::Result<Value> {
        self.object(Method::DELETE, path, Bytes::new())
    }

    /// Calls `each` with every object of a list or a stream, until that ends or `each` fails.
    pub(crate) fn lines(
        &mut self,
        path: &str,
        each: impl FnMut(&Value) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let response = self.answer(Method::GET, path, Bytes::new())?;
        self.each(response, each)
    }

    /// The same, of what a body asks for.
    pub(crate) fn post_lines(
        &mut self,
        path: &str,
        body: &Value,
        each: impl FnMut(&Value) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let response = self.answer(Method::POST, path, body.to_string().into())?;
        self.each(response, each)
    }

    fn each(
        &self,
        mut response: Response<Incoming>,
        mut each: impl FnMut(&Value) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut text = Vec::new();
        loop {
            let frame = self.runtime.block_on(response.frame());
            let Some(frame) = frame else { return Ok(()) };
            let frame = frame.map_err(|_| self.gone())?;
            text.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            let Some(end) = text.iter().rposition(|byte| *byte == b'\n') else { continue };
            for line in text[..end].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                each(&serde_json::from_slice(line)?)?;
            }
            text.drain(..=end);
        }
    }

    fn object(&mut self, method: Method, path: &str, body: Bytes) -> anyhow::Result<Value> {
        let response = self.answer(method, path, body)?;
        let body = self.collect(response)?;
        Ok(serde_json::from_slice(&body)?)
    }

    /// The response, where it is no error.
    fn answer(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<Response<Incoming>> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        let sender = &mut self.sender;
        let answer = self.runtime.block_on(async {
            // A connection that was idle may be closed for another.
            timeout(PATIENCE, async {
                sender.ready().await?;
                sender.send_request(request).await
            })
            .await
        });
        let response = answer.map_err(|_| self.silent())?.map_err(|_| self.gone())?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = self.collect(response)?;
        let Ok(error) = serde_json::from_slice::<Value>(&body) else {
            let what = format!("{}: the daemon answered {status}", self.verb);
            return Err(Refusal::new(code::FAILED, what).into());
        };
        Err(self.refusal(&error))
    }

    fn collect(&self, response: Response<Incoming>) -> anyhow::Result<Bytes> {
        let body = async { timeout(PATIENCE, response.into_body().collect()).await };
        let body = self.runtime.block_on(body).map_err(|_| self.silent())?;
        Ok(body.map_err(|_| self.gone())?.to_bytes())
    }

    /// What the daemon refused, as if it was refused here.
    fn refusal(&self, error: &Value) -> anyhow::Error {
        print_diagnostics(&error["diagnostics"], self.json);
        let what = error["error"].as_str().unwrap_or("the daemon refused");
        let exit = error["exit"].as_u64().and_then(|exit| u8::try_from(exit).ok());
        let refusal = Refusal::new(exit.unwrap_or(code::FAILED), format!("{}: {what}", self.verb));
        match error["help"].as_str() {
            Some(help) => refusal.help(help).into(),
            None => refusal.into(),
        }
    }

    fn gone(&self) -> anyhow::Error {
        Refusal::new(code::NO_DAEMON, format!("{}: the daemon has gone away", self.verb)).into()
    }

    fn silent(&self) -> anyhow::Error {
        let seconds = PATIENCE.as_secs();
        let what = format!("{}: the daemon did not answer within {seconds} s", self.verb);
        Refusal::new(code::FAILED, what).into()
    }
}

impl Target {
    /// Where it listens.
    pub(crate) fn path(&self) -> anyhow::Result<PathBuf> {
        if let Some(socket) = &self.socket {
            return Ok(socket.clone());
        }
        match &self.config {
            Some(file) => Ok(config::read(file)?.control.socket),
            None => Ok(SOCKET.into()),
        }
    }

    /// The policy of the daemon's configuration.
    pub(crate) fn policy(&self) -> anyhow::Result<Option<PathBuf>> {
        let Some(file) = &self.config else { return Ok(None) };
        Ok(config::read(file)?.policy)
    }
}

/// Prints the diagnostics of an answer: to be read on standard error, as objects on standard
/// output.
pub(crate) fn print_diagnostics(list: &Value, json: bool) {
    let list = list.as_array().map_or(&[][..], Vec::as_slice);
    if json {
        list.iter().for_each(diagnostics::line);
        return;
    }
    let told: Vec<Told> =
        list.iter().filter_map(|object| serde_json::from_value(object.clone()).ok()).collect();
    diagnostics::print_told(&told);
}

/// A value as part of a query (RFC 3986 2.1).
pub(crate) fn encoded(value: &str) -> String {
    let mut text = String::new();
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_in_a_query() {
        assert_eq!(encoded("tcp to ::1/128 #é&="), "tcp%20to%20%3A%3A1%2F128%20%23%C3%A9%26%3D");
    }
}
