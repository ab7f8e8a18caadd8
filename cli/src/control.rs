//! The control socket: HTTP/1.1 and JSON over a Unix socket, the only way into a running
//! daemon.
//!
//! # Theory of operation
//!
//! Everything runs on one thread beside the shards and never holds them up. Who asks is what
//! the kernel says of the connection (`rights`), and each request is judged anew, as a reload
//! may have changed who is an admin. What a client sends is bounded in every way: the head in
//! size and time, the body in size and time, the connections in number, the long answers that a
//! user has not read yet in number, each of them in the time without progress, and the oldest that
//! asks nothing gives way to a new one (`connections`). Whatever is wrong is answered with one
//! JSON object that says what and what helps (`denial`), the requests that no parser
//! understands too.

mod connections;
mod denial;
mod openapi;
mod rights;
mod routes;
mod socket;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use hyper::body::{Body as _, Incoming};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tower_service::Service;
use tracing::{debug, warn};

use crate::daemon::Daemon;

use connections::{Connections, Seat};
pub(crate) use socket::{SOCKET, group_id, listen};

/// A request's head or body that takes longer is not waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest head of a request, and so the longest line, in bytes.
const HEAD: usize = 64 << 10;
/// Most header lines.
const HEADERS: usize = 64;
/// After a connection could not be taken, for want of descriptors: how long until the next.
const BREATH: Duration = Duration::from_millis(50);

/// Answers requests until `stop` is ready. Removes the socket's file at the end.
pub(crate) async fn serve(
    listener: UnixListener,
    daemon: Arc<Daemon>,
    stop: impl Future<Output = ()>,
) {
    serve_with(listener, daemon, stop, PATIENCE).await;
}

async fn serve_with(
    listener: UnixListener,
    daemon: Arc<Daemon>,
    stop: impl Future<Output = ()>,
    patience: Duration,
) {
    let connections = Arc::new(Connections::default());
    let router = routes::router(daemon, patience);
    let mut tasks = JoinSet::new();
    let mut stop = pin!(stop);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => match Connections::admit(&connections, &stream) {
                Ok(seat) => {
                    tasks.spawn(carry(stream, Arc::new(seat), router.clone(), patience));
                }
                Err(denial) => denial.write_to(&stream),
            },
            Err(error) => {
                warn!(code = "control-accept", "cannot take a control connection: {error}");
                tokio::time::sleep(BREATH).await;
            }
        }
        // A new connection is looked at before others come and it has to give way.
        tokio::task::yield_now().await;
    }
    socket::remove(&listener);
}

/// One connection, until its end or until it gives way.
async fn carry(stream: UnixStream, seat: Arc<Seat>, router: Router, patience: Duration) {
    let service = {
        let seat = Arc::clone(&seat);
        hyper::service::service_fn(move |request: Request<Incoming>| {
            let mut router = router.clone();
            // One with a body is busy from its last byte on.
            let busy = request.body().is_end_stream().then(|| Seat::busy(&seat));
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(Arc::clone(&seat));
            async move {
                let answer = router.call(request).await;
                drop(busy);
                answer
            }
        })
    };
    let spoken = denial::Spoken::new(stream, Arc::clone(&seat), patience);
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .max_headers(HEADERS)
        .max_buf_size(HEAD)
        // An answer's bytes are not copied: what they hold is held until they are out.
        .writev(true)
        .serve_connection(TokioIo::new(spoken), service);
    tokio::select! {
        ended = connection => {
            if let Err(error) = ended {
                debug!("a control connection ended: {error}");
            }
        }
        () = seat.kicked() => debug!("a control connection gave way to another"),
    }
}

#[cfg(test)]
mod tests;
