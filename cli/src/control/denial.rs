//! What is said to a request that is not done: a status of HTTP and one JSON object.
//!
//! hyper answers what it can't parse by itself, with a status and no body, or not at all (half a
//! head, HTTP/2). [`Spoken`] stands between it and the socket and says what is to be said.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::{Instant, Sleep, sleep};

use super::connections::Seat;
use super::rights::Right;
use crate::daemon::{KillError, NotAsked, NotLoaded, Unanswered, Unexplained};
use crate::diagnostics::Told;
use crate::error::code;

/// A refusal.
#[derive(Debug)]
pub(super) struct Denial {
    status: StatusCode,
    error: String,
    help: Option<String>,
    /// What the client ends with.
    exit: u8,
    diagnostics: Vec<Told>,
}

impl Denial {
    pub(super) fn new(status: StatusCode, exit: u8, error: impl ToString) -> Self {
        Self { status, error: error.to_string(), help: None, exit, diagnostics: Vec::new() }
    }

    /// What was sent makes no sense.
    pub(super) fn bad(error: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code::USAGE, error).help(PATHS)
    }

    /// Who asked may not.
    pub(super) fn not_permitted(right: Right) -> Self {
        let (error, help) = match right {
            Right::Look => ("not permitted to look", "root, and members of `control.group`, may"),
            Right::Act => ("not permitted to act", "root, and users in `control.admins`, may"),
        };
        Self::new(StatusCode::FORBIDDEN, code::NOT_PERMITTED, error).help(help)
    }

    /// The kernel does not say who asks.
    pub(super) fn stranger() -> Self {
        let error = "the kernel does not say who asks";
        Self::new(StatusCode::FORBIDDEN, code::NOT_PERMITTED, error)
            .help("connect to the Unix socket from this host")
    }

    /// Too many ask at once.
    pub(super) fn crowded() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code::FAILED, "too many requests at once")
            .help("ask again later")
    }

    /// Whoever was at it ended early.
    pub(super) fn crashed() -> Self {
        let error = "the request could not be carried out";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, code::FAILED, error)
            .help("the daemon's log says more")
    }

    /// The expression or policy that was sent is wrong.
    pub(super) fn faulty(exit: u8, error: impl ToString, diagnostics: Vec<Told>) -> Self {
        let denial = Self::new(StatusCode::UNPROCESSABLE_ENTITY, exit, error);
        Self { diagnostics, ..denial }.help("docs/policy.md is the language")
    }

    pub(super) fn help(mut self, help: impl ToString) -> Self {
        self.help = Some(help.to_string());
        self
    }

    fn object(&self) -> Value {
        let mut object = json!({
            "event": "error", "error": self.error, "help": self.help, "exit": self.exit,
        });
        if !self.diagnostics.is_empty() {
            object["diagnostics"] = self.diagnostics.iter().map(Told::object).collect();
        }
        object
    }

    /// Answers a connection that is not carried on. Without waiting: nobody's loss but its own.
    pub(super) fn write_to(&self, stream: &UnixStream) {
        let _ = stream.try_write(&self.message());
    }

    /// The whole answer.
    fn message(&self) -> Vec<u8> {
        let body = format!("{}\n", self.object());
        let head = format!(
            "HTTP/1.1 {}\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n",
            self.status,
            body.len()
        );
        (head + &body).into_bytes()
    }
}

/// What helps whoever asked for what is not there.
const PATHS: &str = "GET /v1/openapi.json describes every request";

impl IntoResponse for Denial {
    fn into_response(self) -> Response {
        let body = format!("{}\n", self.object());
        (self.status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
    }
}

impl From<Unanswered> for Denial {
    fn from(error: Unanswered) -> Self {
        let status = match error {
            Unanswered::Gone(_) | Unanswered::Busy(_) => StatusCode::SERVICE_UNAVAILABLE,
            Unanswered::Silent(_) => StatusCode::GATEWAY_TIMEOUT,
        };
        let help = match error {
            Unanswered::Gone(_) | Unanswered::Silent(_) => "the daemon's log says more",
            Unanswered::Busy(_) => "ask again later",
        };
        Self::new(status, code::FAILED, error).help(help)
    }
}

impl From<KillError> for Denial {
    fn from(error: KillError) -> Self {
        match error {
            KillError::NoSuchFlow(_) => Self::new(StatusCode::NOT_FOUND, code::FAILED, error)
                .help("`tunneld flows` lists what is live"),
            KillError::NotYours(_) => Self::new(StatusCode::FORBIDDEN, code::NOT_PERMITTED, error)
                .help("root, users in `control.admins`, and the flow's own user may end it"),
            KillError::Unanswered(error) => error.into(),
        }
    }
}

impl From<NotLoaded> for Denial {
    fn from(error: NotLoaded) -> Self {
        let (status, exit) = match &error {
            NotLoaded::Configuration(_) | NotLoaded::Resolver(_) | NotLoaded::Policy(_) => {
                (StatusCode::UNPROCESSABLE_ENTITY, code::FINDING)
            }
            NotLoaded::NeedsRestart(_) | NotLoaded::Unled(_) | NotLoaded::Unopened(_) => {
                (StatusCode::CONFLICT, code::FAILED)
            }
            NotLoaded::Unreadable { .. } | NotLoaded::Files(_) | NotLoaded::Crashed => {
                (StatusCode::INTERNAL_SERVER_ERROR, code::FAILED)
            }
            NotLoaded::Unanswered(unanswered) | NotLoaded::Unconfirmed(unanswered) => {
                let status = Self::from(*unanswered).status;
                (status, code::FAILED)
            }
        };
        let help = error.help().unwrap_or("nothing has changed");
        let denial = Self::new(status, exit, &error).help(help);
        Self { diagnostics: error.diagnostics().to_vec(), ..denial }
    }
}

impl From<NotAsked> for Denial {
    fn from(error: NotAsked) -> Self {
        let (status, exit) = match &error {
            NotAsked::NotAName { .. }
            | NotAsked::AnAddress { .. }
            | NotAsked::Unaskable { .. }
            | NotAsked::UnknownResolver { .. }
            | NotAsked::Twice { .. } => (StatusCode::BAD_REQUEST, code::USAGE),
            NotAsked::Nobody | NotAsked::Deaf(_) => (StatusCode::SERVICE_UNAVAILABLE, code::FAILED),
        };
        Self::new(status, exit, &error).help(error.help())
    }
}

impl From<Unexplained> for Denial {
    fn from(error: Unexplained) -> Self {
        match error {
            Unexplained::NoSuchFlow(_) | Unexplained::NotAName(_) | Unexplained::Nowhere => {
                Self::bad(error)
            }
            Unexplained::Unanswered(error) => error.into(),
            Unexplained::Source(_) | Unexplained::NoAddress => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, code::FINDING, error)
                    .help("give an address as SRC")
            }
            Unexplained::Crashed => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, code::FAILED, error)
                    .help("the daemon's log says more")
            }
        }
    }
}

/// A stream whose every error says what is wrong.
#[derive(Debug)]
pub(super) struct Spoken {
    stream: UnixStream,
    /// Something came.
    heard: bool,
    /// Something was said to it.
    said: bool,
    /// What is said instead of what hyper wrote, and how much of it is out.
    instead: Option<(Vec<u8>, usize)>,
    seat: Arc<Seat>,
    patience: Duration,
    /// Till when something has to be read of what is said.
    unread: Option<Pin<Box<Sleep>>>,
}

impl Spoken {
    /// Of what is said to who has this seat something must be read within `patience`, unless it is
    /// a stream of events.
    pub(super) fn new(stream: UnixStream, seat: Arc<Seat>, patience: Duration) -> Self {
        Self { stream, heard: false, said: false, instead: None, seat, patience, unread: None }
    }

    fn write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if written.is_ready() {
            self.unread = None;
            return written;
        }
        let patience = self.patience;
        let unread = self.unread.get_or_insert_with(|| Box::pin(sleep(patience)));
        while unread.as_mut().poll(cx).is_ready() {
            if !self.seat.watches() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            unread.as_mut().reset(Instant::now() + patience);
        }
        Poll::Pending
    }
}

impl Drop for Spoken {
    fn drop(&mut self) {
        if self.heard && !self.said {
            Denial::bad("no whole request of HTTP/1.1 came").write_to(&self.stream);
        }
    }
}

/// What to say where `written` is hyper's own answer to something that it can't parse: an
/// error without a body, which none of our answers is.
fn own_answer(written: &[u8]) -> Option<Denial> {
    let rest = written.strip_prefix(b"HTTP/1.")?.get(2..)?;
    let empty = b"content-length: 0\r\n";
    if !written.ends_with(b"\r\n\r\n") || !written.windows(empty.len()).any(|part| part == empty) {
        return None;
    }
    let status = StatusCode::from_bytes(rest.get(..3)?).ok()?;
    let error = match status {
        StatusCode::URI_TOO_LONG | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
            "the head of the request is too long"
        }
        StatusCode::HTTP_VERSION_NOT_SUPPORTED => "not HTTP/1.1",
        status if status.is_client_error() => "not an HTTP request",
        _ => return None,
    };
    Some(Denial { status, ..Denial::bad(error) })
}

impl AsyncRead for Spoken {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.heard |= buf.filled().len() > before;
        read
    }
}

impl AsyncWrite for Spoken {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        this.said = true;
        if this.instead.is_none() {
            this.instead = own_answer(buf).map(|denial| (denial.message(), 0));
        }
        while let Some((message, written)) = this.instead.take() {
            let Some(rest) = message.get(written..).filter(|rest| !rest.is_empty()) else {
                return Poll::Ready(Ok(buf.len()));
            };
            let more = this.write(cx, rest);
            let count = if let Poll::Ready(Ok(count)) = &more { *count } else { 0 };
            this.instead = Some((message, written + count));
            if ready!(more)? == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
        }
        this.write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
