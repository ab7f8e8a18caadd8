//! The requests of `/v1`, and `/metrics`, each with the right that it needs. `openapi`
//! describes them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, Query, Request, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::connections::{Busy, Seat, Task};
use super::denial::Denial;
use super::openapi;
use super::rights::Right;
use crate::config::Named;
use crate::daemon::{
    Daemon, FlowId, Inquiry, KillError, NoFlowId, NotLoaded, OPENMETRICS, Reloaded, Selection,
    Unexplained,
};
use crate::error::code;
use crate::policy_sent::PolicySent;

/// Longest body, in bytes.
const BODY: usize = 1 << 20;
/// Longest policy, files of sets included.
const POLICY: usize = 64 << 20;
/// Policies that are compiled at once: each may take a processor for seconds and several times
/// its size.
const POLICIES: usize = 2;
/// Lists that are made at once: 65,536 flows take a processor for 0.3 s and 50 MB.
const LISTS: usize = 2;
/// Flows that are looked for at once, to end them: a shard takes a few more.
const KILLS: usize = 8;
/// Names that are asked at once: each may take 5 s.
const INQUIRIES: usize = 32;

/// What every handler has.
#[derive(Clone)]
struct Control {
    daemon: Arc<Daemon>,
    policies: Arc<Semaphore>,
    lists: Arc<Semaphore>,
    kills: Arc<Semaphore>,
    inquiries: Arc<Semaphore>,
    patience: Duration,
}

type Answer = Result<Response, Denial>;

pub(super) fn router(daemon: Arc<Daemon>, patience: Duration) -> Router {
    let turns = |count| Arc::new(Semaphore::new(count));
    let (policies, lists, kills) = (turns(POLICIES), turns(LISTS), turns(KILLS));
    let inquiries = turns(INQUIRIES);
    let control = Control { daemon, policies, lists, kills, inquiries, patience };
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/flows", get(flows))
        .route("/v1/flows/{id}", delete(kill))
        .route("/v1/rules", get(rules))
        .route("/v1/reload", post(reload))
        .route("/v1/diff", post(diff))
        .route("/v1/explain", post(explain))
        .route("/v1/dns/query", post(inquire))
        .route("/v1/dns/servers", get(servers))
        .route("/v1/dns/flush", post(flush))
        .route("/v1/watch", get(watch))
        .route("/v1/openapi.json", get(description))
        .route("/metrics", get(metrics))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .with_state(control)
}

async fn status(
    State(control): State<Control>,
    Extension(seat): Extension<Arc<Seat>>,
    uri: Uri,
) -> Answer {
    control.require(&seat, Right::Look)?;
    query(&uri, [])?;
    Ok(object(&control.daemon.status().await?))
}

async fn flows(
    State(control): State<Control>,
    Extension(seat): Extension<Arc<Seat>>,
    uri: Uri,
) -> Answer {
    control.require(&seat, Right::Look)?;
    let [expression] = query(&uri, ["match"])?;
    let selection = match expression {
        None => None,
        Some(expression) => Some(select(&control, expression).await?),
    };
    let list = control.list(&seat).await?;
    let turn = control.turn(&control.lists).await?;
    let daemon = Arc::clone(&control.daemon);
    let flows = to_its_end(turn, async move { daemon.flows(selection).await }).await??;
    Ok(long(LINES, flows, list))
}

async fn kill(
    State(control): State<Control>,
    Extension(seat): Extension<Arc<Seat>>,
    id: Result<Path<FlowId>, PathRejection>,
    uri: Uri,
) -> Answer {
    query(&uri, [])?;
    let Path(id) = id.map_err(|_| Denial::bad(NoFlowId))?;
    // Whoever may not act may still end what is theirs.
    let acts = control.daemon.in_force().access.grants(seat.peer(), Right::Act);
    let looks = acts || control.daemon.in_force().access.grants(seat.peer(), Right::Look);
    let of = (!acts).then_some(seat.peer().uid);
    let killing = Seat::begin(&seat, Task::Kill).ok_or_else(Denial::crowded)?;
    let turn = control.turn(&control.kills).await?;
    let daemon = Arc::clone(&control.daemon);
    let killed = to_its_end((killing, turn), async move { daemon.kill(id, of).await }).await?;
    killed.map_err(|error| match error {
        // Whoever may not look does not learn which flows there are.
        KillError::NoSuchFlow(id) if !looks => KillError::NotYours(id),
        error @ (KillError::NoSuchFlow(_) | KillError::NotYours(_) | KillError::Unanswered(_)) => {
            error
        }
    })?;
    Ok(object(&json!({ "event": "killed", "id": id.to_string() })))
}

async fn rules(
    State(control): State<Control>,
    Extension(seat): Extension<Arc<Seat>>,
    uri: Uri,
) -> Answer {
    control.require(&seat, Right::Look)?;
    query(&uri, [])?;
    let list = control.list(&seat).await?;
    let turn = control.turn(&control.lists).await?;
    let daemon = Arc::clone(&control.daemon);
    let rules = to_its_end(turn, async move { daemon.rules().await }).await??;
    Ok(long(LINES, rules, list))
}

async fn reload(
    State(control): State<Control>,
    Extension(seat): Extension<Arc<Seat>>,
    uri: Uri,
) -> Answer {
    let [dry_run] = query(&uri, ["dry_run"])?;
    let dry_run = match dry_run.as_deref() {
        None | Some("0") => false,
        Some("1") => true,
        Some(other) => return Err(Denial::bad(format!("dry_run is 0 or 1, not `{other}`"))),
    };
    control.require(&seat, if dry_run { Right::Look } else { Right::Act })?;
    let list = control.list(&seat).await?;
    // Reloads wait for each other anyway.
    let turn = if dry_run { Some(control.turn(&control.policies).await?) } else { None };
    let daemon = Arc::clone(&control.daemon);
    let reload =
        async move { if dry_run { daemon.rehearse().await } else { daemon.reload().await } };
    told(to_its_end(turn, reload).await??, "reload", list).await
}

async fn diff(
    State(control): State<Control>,
    Extension(seat): Extension<Arc<Seat>>,
    request: Request,
) -> Answer {
    control.require(&seat, Right::Look)?;
    query(request.uri(), [])?;
    let receiving = Seat::begin(&seat, Task::Policy).ok_or_else(Denial::crowded)?;
    let body = control.body(request, POLICY).await?;
    let list = control.list(&seat).await?;
    let turn = control.turn(&control.policies).await?;
    let in_force = control.daemon.in_force();
    let load = move || {
        let sent: PolicySent = parse(&body)?;
        let loaded = sent.load(&Named::of(&in_force.policy));
        loaded.map_err(|found| Denial::faulty(code::FINDING, "the policy has errors", found))
    };
    let daemon = Arc::clone(&control.daemon);
    let compare = async move {
        let loaded = tokio::task::spawn_blocking(load).await;
        let (policy, warnings) = loaded.unwrap_or_else(|_| Err(NotLoaded::Crashed.into()))?;
        Ok::<_, Denial>(daemon.compare(policy, warnings).await?)
    };
    told(to_its_end((receiving, turn), compare).await??, "diff", list).await
}

async fn explain(
    State(control): State<Control>,
    Extension(seat): Extension<Arc<Seat>>,
    request: Request,
) -> Answer {
    control.require(&seat, Right::Look)?;
    query(request.uri(), [])?;
    let asked = parse(&control.body(request, BODY).await?)?;
    let _busy = Seat::busy(&seat);
    Ok(object(&control.daemon.explain(asked).await?))
}

async fn inquire(
    State(control): State<Control>,
    Extension(seat): Extension<Arc<Seat>>,
    request: Request,
) -> Answer {
    control.require(&seat, Right::Look)?;
    query(request.uri(), [])?;
    let inquiry: Inquiry = parse(&control.body(request, BODY).await?)?;
    let busy = (Seat::begin(&seat, Task::Inquiry).ok_or_else(Denial::crowded)?, Seat::busy(&seat));
    let turn = control.turn(&control.inquiries).await?;
    let daemon = Arc::clone(&control.daemon);
    let inquire = async move { daemon.inquire(inquiry).await };
    Ok(objects(&to_its_end((busy, turn), inquire).await??))
}

async fn servers(
    State(control): State<Control>,
    Extension(seat): Extension<Arc<Seat>>,
    uri: Uri,
) -> Answer {
    control.require(&seat, Right::Look)?;
    query(&uri, [])?;
    Ok(objects(&control.daemon.servers()?))
}

async fn flush(
    State(control): State<Control>,
    Extension(seat): Extension<Arc<Seat>>,
    uri: Uri,
) -> Answer {
    // What is forgotten is asked again: nothing is decided otherwise.
    control.require(&seat, Right::Look)?;
    let [using] = query(&uri, ["using"])?;
    Ok(object(&control.daemon.flush(using.as_deref())?))
}

async fn watch(
    State(control): State<Control>,
    Extension(seat): Extension<Arc<Seat>>,
    uri: Uri,
) -> Answer {
    control.require(&seat, Right::Look)?;
    query(&uri, [])?;
    let watching = Seat::begin(&seat, Task::Watch).ok_or_else(|| {
        Denial::new(StatusCode::SERVICE_UNAVAILABLE, code::FAILED, "you watch too often already")
            .help("end another watch first")
    })?;
    // A stream lasts longer than its answer's head.
    let events = (control.daemon.events().watch(), (watching, Seat::busy(&seat)));
    let stream = futures_util::stream::unfold(events, |(mut watch, busy)| async {
        let lines = Bytes::from(watch.next().await?);
        Some((Ok::<_, std::convert::Infallible>(lines), (watch, busy)))
    });
    Ok(([(header::CONTENT_TYPE, LINES)], Body::from_stream(stream)).into_response())
}

async fn description(
    State(control): State<Control>,
    Extension(seat): Extension<Arc<Seat>>,
    uri: Uri,
) -> Answer {
    control.require(&seat, Right::Look)?;
    query(&uri, [])?;
    Ok(object(&openapi::document()))
}

async fn metrics(
    State(control): State<Control>,
    Extension(seat): Extension<Arc<Seat>>,
    uri: Uri,
) -> Answer {
    control.require(&seat, Right::Look)?;
    query(&uri, [])?;
    let text = control.daemon.metrics().await?;
    Ok(([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response())
}

async fn unknown(uri: Uri) -> Denial {
    let error = format!("there is no {}", uri.path());
    Denial::new(StatusCode::NOT_FOUND, code::USAGE, error)
        .help("GET /v1/openapi.json describes every request")
}

async fn wrong_method(method: Method, uri: Uri) -> Denial {
    let error = format!("{} takes no {method}", uri.path());
    Denial::new(StatusCode::METHOD_NOT_ALLOWED, code::USAGE, error)
        .help("GET /v1/openapi.json describes every request")
}

impl Control {
    fn require(&self, seat: &Seat, right: Right) -> Result<(), Denial> {
        let granted = self.daemon.in_force().access.grants(seat.peer(), right);
        if granted { Ok(()) } else { Err(Denial::not_permitted(right)) }
    }

    /// Waits until the user has read enough of what they have asked before.
    async fn list(&self, seat: &Arc<Seat>) -> Result<List, Denial> {
        let busy = Seat::busy(seat);
        let list = timeout(self.patience, seat.list()).await;
        Ok((busy, list.ok().flatten().ok_or_else(Denial::crowded)?))
    }

    /// Waits for a turn at something that takes the processor long: see [`to_its_end`].
    async fn turn(&self, turns: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Denial> {
        let turn = timeout(self.patience, Arc::clone(turns).acquire_owned()).await;
        turn.ok().and_then(Result::ok).ok_or_else(Denial::crowded)
    }

    /// All of a request's body.
    async fn body(&self, request: Request, limit: usize) -> Result<Bytes, Denial> {
        let too_long = || {
            let error = format!("the body is longer than {} MiB", limit >> 20);
            Denial::new(StatusCode::PAYLOAD_TOO_LARGE, code::FAILED, error)
                .help("GET /v1/openapi.json describes every request")
        };
        let length = request.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if length.is_some_and(|length| length > limit as u64) {
            return Err(too_long());
        }
        let body = Limited::new(request.into_body(), limit).collect();
        match timeout(self.patience, body).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_long()),
            Ok(Err(_)) => Err(Denial::bad("the body cannot be read")),
            Err(_) => {
                let error = "the body did not come in time";
                Err(Denial::new(StatusCode::REQUEST_TIMEOUT, code::FAILED, error)
                    .help("send all of the request at once"))
            }
        }
    }
}

/// Does something in a task of its own, which does not end where the client goes away: what
/// shards were asked goes on in them. So what is `held` is given back when it is over, and
/// whoever asks and goes away again and again comes to no more than others.
async fn to_its_end<H: Send + 'static, T: Send + 'static>(
    held: H,
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, Denial> {
    let task = tokio::spawn(async move {
        let done = work.await;
        drop(held);
        done
    });
    task.await.map_err(|_| Denial::crashed())
}

async fn select(control: &Control, expression: String) -> Result<Selection, Denial> {
    let in_force = control.daemon.in_force();
    let parse = move || Selection::parse(&expression, in_force.policy.resolvers());
    match tokio::task::spawn_blocking(parse).await {
        Ok(Ok(selection)) => Ok(selection),
        Ok(Err(found)) => Err(Denial::faulty(code::USAGE, "the expression has errors", found)),
        Err(_) => Err(Unexplained::Crashed.into()),
    }
}

/// The values of a query's keys; another key is an error, and so is one given twice.
fn query<const N: usize>(uri: &Uri, keys: [&str; N]) -> Result<[Option<String>; N], Denial> {
    let pairs = Query::<Vec<(String, String)>>::try_from_uri(uri)
        .map_err(|_| Denial::bad("the query cannot be read"))?;
    let mut values: HashMap<String, String> = HashMap::new();
    for (key, value) in pairs.0 {
        if !keys.contains(&&*key) {
            return Err(Denial::bad(format!("{} takes no `{key}`", uri.path())));
        }
        if values.contains_key(&key) {
            return Err(Denial::bad(format!("`{key}` is given twice")));
        }
        values.insert(key, value);
    }
    Ok(keys.map(|key| values.remove(key)))
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Denial> {
    serde_json::from_slice(body).map_err(|error| Denial::bad(format!("the body: {error}")))
}

const OBJECT: &str = "application/json";
const LINES: &str = "application/x-ndjson";

fn object(object: &Value) -> Response {
    ([(header::CONTENT_TYPE, OBJECT)], format!("{object}\n")).into_response()
}

fn lines(lines: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, LINES)], lines).into_response()
}

/// Held from before a long answer is made until its last byte was read, or its client has gone:
/// its connection does not give way, and its user does not have many of them.
type List = (Busy, OwnedSemaphorePermit);

fn long(kind: &'static str, text: Vec<u8>, list: List) -> Response {
    struct Held(Vec<u8>, #[expect(dead_code, reason = "held")] List);
    impl AsRef<[u8]> for Held {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    ([(header::CONTENT_TYPE, kind)], Bytes::from_owner(Held(text, list))).into_response()
}

/// A few objects, one a line.
fn objects(objects: &[Value]) -> Response {
    lines(objects.iter().map(|object| format!("{object}\n")).collect::<String>().into_bytes())
}

/// A policy may cut many flows: its object is written on a thread of its own.
async fn told(reloaded: Reloaded, event: &'static str, list: List) -> Answer {
    let write = move || format!("{}\n", reloaded.object(event));
    let text = tokio::task::spawn_blocking(write).await.map_err(|_| NotLoaded::Crashed)?;
    Ok(long(OBJECT, text.into_bytes(), list))
}
