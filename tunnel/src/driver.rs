//! The only loop of a shard: device, engine and far-side sockets on one thread.
//!
//! One turn: wait; take up to `BATCH` packets of the device; move the bytes of every
//! flow whose socket or ring is ready, at most `TURN` a flow and direction; run timers.
//! Requests of the engine are answered on the spot: a route or owner lookup is a blocking
//! netlink exchange of a few microseconds, a connect returns at once. Nothing else blocks
//! but the wait, which lasts until something is due: an idle engine does not wake.
//!
//! A panic while one flow is carried ends that flow alone and is counted.
//!
//! Packets into tunnels are sealed as they come and sent once a turn, by the shard that has the
//! tunnels (`lanes`); what comes out of one is
//! written to the device from where it was opened (`links`). Our own connections through tunnels
//! have their turn before that (`netstack`).
//!
//! Datagrams and bytes to the service ([`service::Service`]) are handed to it on this thread,
//! and what it answers at once goes back in the same turn.
//!
//! Between two turns the shard takes requests from outside ([`Handle::ask`], `queue`); what
//! goes over all flows is done a piece a turn (`live`).

mod bell;
pub(crate) mod lanes;
mod links;
mod live;
mod netstack;
mod proxies;
mod queue;
pub mod request;
pub mod service;
#[cfg(test)]
mod tests;

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Weak};
use std::time::Duration;

use engine::{
    Checksum, Counters, Egress, Engine, Failure, FlowId, Input, Instant, Output, Protocol,
    Received, Report, RingId, Rings, Unresolved,
};
use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use tracing::warn;

use crate::device::{Device, MAX_PACKET, RxOffload, virtio};
pub(crate) use crate::driver::bell::Bell;
use crate::driver::lanes::Here;
pub use crate::driver::lanes::join;
use crate::driver::live::Jobs;
use crate::driver::queue::{Place, Queued, REQUESTS, Turns};
use crate::driver::request::Request;
use crate::driver::service::{Conversations, Reply, Service};
use crate::egress::error::EgressError;
use crate::egress::proxy::{Proxies, Target};
use crate::egress::run::UnsentRun;
use crate::egress::{Progress, Sockets, Tag};
use crate::link::netstack::{Board, Netstack};
use crate::owner::Owners;
use crate::rings::{self, Pool, TakeError};
use crate::source::{LookupError, Query, RouteAnswer, Routes};

/// Packets read from the device before flows are pumped: a batch saves the ACK and the
/// send of every packet but the last of a flow (15-35 % of the CPU time of an upload).
const BATCH: usize = 64;
/// Bytes a flow may move in each direction before others have their turn.
const TURN: usize = 1024 * 1024;
/// Readiness events taken at once.
const EVENTS: usize = 256;

/// What a driver is built from.
#[derive(Debug)]
pub struct Parts<D> {
    /// The app side.
    pub device: D,
    /// The state machine.
    pub engine: Engine,
    /// The routing of the namespace that flows leave through.
    pub routes: Routes,
    /// The sockets of the app's namespace; `None`: owners stay unknown.
    pub owners: Option<Owners>,
    /// Ring memory.
    pub rings: Pool,
    /// The mark of our own sockets.
    pub mark: Option<u32>,
    /// The far side of flows to [`engine::Services::resolver`]; `None`: they are refused.
    pub service: Option<Box<dyn Service>>,
    /// This shard's number, which goes along with its reports.
    pub shard: usize,
    /// Where reports go. A full channel loses reports, which are counted.
    pub reports: Option<SyncSender<(usize, Report)>>,
}

/// One shard.
#[derive(Debug)]
pub struct Driver<D> {
    engine: Engine,
    sockets: Sockets<D>,
    routes: Routes,
    owners: Option<Owners>,
    rings: Pool,
    /// The receipts of rings that flows have, by the number the engine knows.
    receipts: slab::Slab<rings::RingId>,
    mark: Option<u32>,
    proxies: Arc<Proxies>,
    service: Option<Box<dyn Service>>,
    conversations: Conversations,
    shard: usize,
    reports: Option<SyncSender<(usize, Report)>>,
    epoll: OwnedFd,
    handle: Handle,
    /// Packets that other shards have for this one.
    here: Here,
    requests: Receiver<Queued>,
    reload: Arc<Place>,
    replies: Receiver<Reply>,
    /// The queue of replies was not emptied.
    more_replies: bool,
    jobs: Jobs,
    started: std::time::Instant,
    totals: Totals,
    /// Flows whose turn was cut short; kept for its allocation.
    unfinished: Vec<FlowId>,
    /// That echo is not open to us was said.
    told_of_echo: bool,
    /// One packet of the device. Held as an option so that it can be lent beside `self`.
    packet: Option<Box<[u8]>>,
}

/// What a shard counts beside the engine.
#[derive(Debug, Clone, Default)]
pub struct Totals {
    /// How the engine's packets ended.
    pub engine: Counters,
    /// Packets that the device refused.
    pub device_errors: u64,
    /// Flows that were ended because carrying them panicked, and tunnels.
    pub panics: u64,
    /// Reports that found the channel full.
    pub reports_lost: u64,
}

/// Asks a running driver, or tells it to stop, from any thread.
#[derive(Debug, Clone)]
pub struct Handle {
    bell: Arc<Bell>,
    requests: SyncSender<Queued>,
    turns: Turns,
    reload: Weak<Place>,
    replies: SyncSender<Reply>,
    board: Weak<Board>,
    state: Arc<AtomicU8>,
}

const RUN: u8 = 0;
const DRAIN: u8 = 1;
const STOP: u8 = 2;

/// After the app is gone: how long its last bytes may take.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// ... and how long nothing may move before they count as delivered.
const DRAIN_QUIET: Duration = Duration::from_millis(250);

/// Why a request was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unasked {
    /// The shard has ended.
    #[error("the shard has ended")]
    Gone,
    /// Its queue is full, or it is at as much of that kind as it takes.
    #[error("the shard is busy")]
    Busy,
}

/// Late answers of the service that may wait for it.
const REPLIES: usize = 4096;

impl Handle {
    /// Gives a request to the shard and wakes it. Never blocks.
    ///
    /// # Errors
    /// The shard has ended, or it is busy, which it never is for a reload.
    pub fn ask(&self, request: Request) -> Result<(), Unasked> {
        if let Request::Reload(reload) = request {
            Place::put(&self.reload, reload)?;
        } else {
            let turn = self.turns.take(&request)?;
            self.requests.try_send(Queued { request, turn }).map_err(unasked)?;
        }
        self.bell.ring();
        Ok(())
    }

    /// Gives the answer that the service said would come later. Never blocks; many wake the
    /// shard once. One that finds the queue full is lost: its asker will ask again.
    pub fn reply(&self, reply: Reply) -> Result<(), Unasked> {
        self.replies.try_send(reply).map_err(unasked)?;
        self.bell.ring();
        Ok(())
    }

    /// Stops once the bytes that the app has written are with the far side.
    pub fn drain(&self) {
        self.tell(DRAIN);
    }

    /// Stops now: every flow is ended.
    pub fn stop(&self) {
        self.tell(STOP);
    }

    fn tell(&self, state: u8) {
        self.state.fetch_max(state, Ordering::AcqRel);
        self.bell.ring();
    }
}

fn unasked<T>(error: TrySendError<T>) -> Unasked {
    match error {
        TrySendError::Full(_) => Unasked::Busy,
        TrySendError::Disconnected(_) => Unasked::Gone,
    }
}

/// Why a driver ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// Waiting for events failed.
    #[error("cannot wait for events: {0}")]
    Wait(Errno),
    /// The device is gone.
    #[error("the device failed: {0}")]
    Device(std::io::Error),
}

impl<D: Device> Driver<D> {
    /// Joins the parts. Nothing runs yet.
    pub fn new(parts: Parts<D>) -> Result<Self, DriverError> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(DriverError::Wait)?;
        let bell = Arc::new(Bell::new().map_err(DriverError::Wait)?);
        let level = epoll::EventFlags::IN;
        epoll::add(&epoll, parts.device.as_fd(), Tag::Device.data(), level)
            .map_err(DriverError::Wait)?;
        epoll::add(&epoll, bell.fd(), Tag::Wake.data(), level).map_err(DriverError::Wait)?;
        let (sender, requests) = sync_channel(REQUESTS);
        // Room is allocated at once: none for what never comes.
        let late = if parts.service.is_some() { REPLIES } else { 1 };
        let (replier, replies) = sync_channel(late);
        let reload = Arc::new(Place::default());
        let board = Board::new(Arc::clone(&bell));
        let weak = Arc::downgrade(&board);
        let netstack = Netstack::new(board);
        Ok(Self {
            engine: parts.engine,
            sockets: Sockets::new(parts.device, parts.service.is_some(), netstack),
            routes: parts.routes,
            owners: parts.owners,
            rings: parts.rings,
            receipts: slab::Slab::new(),
            mark: parts.mark,
            proxies: Arc::default(),
            service: parts.service,
            conversations: Conversations::default(),
            shard: parts.shard,
            reports: parts.reports,
            epoll,
            handle: Handle {
                bell,
                requests: sender,
                turns: Turns::default(),
                reload: Arc::downgrade(&reload),
                replies: replier,
                board: weak,
                state: Arc::new(AtomicU8::new(RUN)),
            },
            here: Here::default(),
            requests,
            reload,
            replies,
            more_replies: false,
            jobs: Jobs::default(),
            started: std::time::Instant::now(),
            totals: Totals::default(),
            unfinished: Vec::new(),
            told_of_echo: false,
            packet: Some(vec![0; MAX_PACKET].into_boxed_slice()),
        })
    }

    /// The means to stop it.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// The moment that the engine's time counts from.
    pub fn epoch(&self) -> std::time::Instant {
        self.started
    }

    /// Runs until told to stop; then ends every flow and says what was counted.
    pub fn run(mut self) -> Result<Totals, DriverError> {
        let mut events = Vec::with_capacity(EVENTS);
        let mut more = false;
        let mut draining_since = None;
        loop {
            let timeout = self.timeout(more, draining_since.is_some());
            events.clear();
            match epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                timeout.as_ref(),
            ) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(DriverError::Wait(errno)),
            }
            let now = self.now();
            self.sockets.links.now = now;
            self.take_reload(now);
            let mut device_ready = false;
            let mut asked = false;
            for event in &events {
                match Tag::from_data(event.data) {
                    Tag::Device => device_ready = true,
                    Tag::Wake => {
                        self.handle.bell.heard();
                        asked = true;
                    }
                    Tag::Stream(id) => {
                        self.guard(now, |driver| driver.stream_ready(id, event.flags, now));
                        self.answer(now);
                    }
                    tag @ (Tag::Mapping(_) | Tag::Echo(_)) => self.read_datagrams(tag, now),
                    Tag::Link(number) => self.read_link(number, now),
                    Tag::Probe(number) => self.sockets.probes.ready(number, event.flags),
                    Tag::Control(slot, serial) => {
                        self.control_ready(slot, serial, event.flags, now);
                    }
                }
            }
            if asked {
                self.take_requests(now);
                self.take_lanes(now);
            }
            if asked || self.more_replies {
                self.take_replies(now);
            }
            for _ in 0..self.sockets.waiting() {
                if let Some(tag) = self.sockets.next_waiting() {
                    self.read_datagrams(tag, now);
                }
            }
            // When the app is gone its last packets are all in the device: an empty one proves
            // that they were taken.
            let draining = self.handle.state.load(Ordering::Acquire) == DRAIN;
            let emptied = (device_ready || draining) && self.take_packets(now)?;
            self.send_datagrams(now);
            more = self.pump_all(now) | self.work(now)
                || self.sockets.waiting() > 0
                || self.more_replies;
            let now = self.now();
            if self.engine.poll_timeout().is_some_and(|(at, _)| at <= now) {
                self.guard(now, |driver| driver.engine.handle_timeout(now, &mut driver.sockets));
                self.answer(now);
            }
            self.end_silent_talks(now);
            self.run_netstack(asked, now);
            self.take_wakes(now);
            self.send_datagrams(now);
            self.sockets.links.run_timers(&self.epoll, now);
            self.sockets.links.flush();
            self.sockets.away.flush();
            self.totals.panics += self.sockets.links.mend(&self.epoll);
            match self.handle.state.load(Ordering::Acquire) {
                RUN => {}
                DRAIN => {
                    let since = *draining_since.get_or_insert(now);
                    let waited = now.since(since) >= DRAIN_LIMIT;
                    if waited || emptied && !self.engine.is_delivering(now, DRAIN_QUIET) {
                        break;
                    }
                }
                _ => break,
            }
        }
        let now = self.now();
        // Each panic ends one flow, and the rest are told again.
        for _ in 0..=self.engine.flows() {
            let ended = self.guard(now, |driver| {
                driver.engine.handle(Input::Shutdown, now, &mut driver.sockets);
            });
            if ended.is_some() {
                break;
            }
        }
        self.answer(now);
        self.sockets.flush_datagrams();
        self.sockets.links.flush();
        self.sockets.away.flush();
        self.totals.engine = self.engine.counters().clone();
        self.totals.device_errors = self.sockets.device_errors();
        Ok(self.totals)
    }

    fn now(&self) -> Instant {
        let micros = self.started.elapsed().as_micros();
        Instant::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
    }

    fn timeout(&mut self, more: bool, draining: bool) -> Option<Timespec> {
        if more || self.engine.has_dirty() {
            return Some(Timespec { tv_sec: 0, tv_nsec: 0 });
        }
        let flows = self.engine.poll_timeout().map(|(at, _)| at);
        let others = [
            self.sockets.links.next_timer(),
            self.sockets.next_talk(),
            self.sockets.probes.next_end(),
            self.sockets.netstack.next_timer(),
        ];
        let due = flows.into_iter().chain(others.into_iter().flatten()).min();
        let due = due.map(|at| at.since(self.now()));
        let due =
            if draining { Some(due.map_or(DRAIN_QUIET, |d| d.min(DRAIN_QUIET))) } else { due };
        due.map(|due| Timespec {
            tv_sec: i64::try_from(due.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(due.subsec_nanos()),
        })
    }

    /// Takes a batch of packets; whether the device has no more.
    fn take_packets(&mut self, now: Instant) -> Result<bool, DriverError> {
        let Some(mut buffer) = self.packet.take() else { return Ok(true) };
        let result = self.take_batch(&mut buffer, now);
        self.packet = Some(buffer);
        result
    }

    fn take_batch(&mut self, buffer: &mut [u8], now: Instant) -> Result<bool, DriverError> {
        for _ in 0..BATCH {
            let (length, offload) = match self.sockets.device().read(buffer) {
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                // One packet was not one; the next may be.
                Err(error) if error.kind() == ErrorKind::InvalidData => {
                    self.totals.device_errors += 1;
                    continue;
                }
                Err(error) => return Err(DriverError::Device(error)),
            };
            self.guard(now, |driver| {
                let (packet, sockets) = (&buffer[..length], &mut driver.sockets);
                driver.engine.handle_packet(packet, received(offload), now, sockets)
            });
            self.answer(now);
        }
        Ok(false)
    }

    /// Sends the datagrams that waited for the end of the batch.
    fn send_datagrams(&mut self, now: Instant) {
        self.sockets.flush_datagrams();
        while let Some(UnsentRun { towards, datagrams, bytes, why }) = self.sockets.next_unsent() {
            let input = Input::Unsent(towards.mapping, towards.far, datagrams, bytes, why);
            self.guard(now, |driver| driver.engine.handle(input, now, &mut driver.sockets));
            self.answer(now);
        }
    }

    fn read_datagrams(&mut self, tag: Tag, now: Instant) {
        let read =
            self.guard(now, |driver| driver.sockets.datagrams_ready(tag, &mut driver.engine, now));
        if read.is_none() {
            // Other flows of that mapping have their datagrams in the same socket.
            self.sockets.read_again(tag);
        }
        self.answer(now);
        self.end_broken_relays(now);
    }

    /// Moves bytes of every flow that is ready; whether some flow has more to move.
    fn pump_all(&mut self, now: Instant) -> bool {
        let mut unfinished = std::mem::take(&mut self.unfinished);
        while let Some(id) = self.engine.next_dirty() {
            if self.guard(now, |driver| driver.pump(id, now)) == Some(true) {
                unfinished.push(id);
            }
            self.answer(now);
        }
        let more = !unfinished.is_empty();
        for id in unfinished.drain(..) {
            self.engine.mark_dirty(id);
        }
        self.unfinished = unfinished;
        more
    }

    /// Moves one flow's bytes both ways; whether there is more to move at once.
    fn pump(&mut self, id: FlowId, now: Instant) -> bool {
        self.engine.carry(Some(id));
        let mut more = false;
        let mut far_over = None;
        if let Some(stream) = self.sockets.stream(id) {
            more |= stream.carry_out(&mut self.engine, now, TURN);
            match stream.carry_in(&mut self.engine, now, TURN) {
                Progress::Blocked => {}
                Progress::More => more = true,
                Progress::Ended => far_over = Some(Input::FarEnded(id)),
                Progress::Failed(failure) => far_over = Some(Input::FarFailed(id, failure)),
            }
        } else {
            let turn = self.converse(id, now);
            more = turn.more;
            far_over = turn.over;
        }
        if let Some(input) = far_over {
            self.engine.handle(input, now, &mut self.sockets);
        }
        self.engine.settle(id, now, &mut self.sockets);
        more
    }

    /// Runs what may be about one flow. A panic ends that flow ([`Engine::carried`]), is counted
    /// and gives `None`. What the end of the flow asks for is left to [`Driver::answer`].
    fn guard<R>(&mut self, now: Instant, body: impl FnOnce(&mut Self) -> R) -> Option<R> {
        self.engine.carry(None);
        if let Ok(done) = catch_unwind(AssertUnwindSafe(|| body(self))) {
            return Some(done);
        }
        self.totals.panics += 1;
        let id = self.engine.carried()?;
        let (engine, sockets) = (&mut self.engine, &mut self.sockets);
        let ended =
            catch_unwind(AssertUnwindSafe(|| engine.handle(Input::Broken(id), now, sockets)));
        if ended.is_err() {
            self.totals.panics += 1;
            // What is left of it must not end the shard.
            let engine = &mut self.engine;
            let forgotten = catch_unwind(AssertUnwindSafe(|| engine.forget(id)));
            self.totals.panics += u64::from(forgotten.is_err());
        }
        None
    }

    fn stream_ready(&mut self, id: FlowId, flags: epoll::EventFlags, now: Instant) {
        self.engine.carry(Some(id));
        let Some(stream) = self.sockets.stream(id) else { return };
        if stream.ready(flags) {
            self.engine.mark_dirty(id);
            return;
        }
        let Some(opened) = stream.open() else { return };
        match opened {
            Ok(port) if self.engine.has_rings(id) => {
                self.engine.handle(Input::Joined(id, port), now, &mut self.sockets);
            }
            Ok(port) => match self.rings_for(id, Pool::take, now) {
                Some(rings) => {
                    let input = Input::Connected(id, port, rings);
                    self.engine.handle(input, now, &mut self.sockets);
                }
                None => {
                    self.sockets.reset(id);
                    let input = Input::Failed(id, Failure::Exhausted);
                    self.engine.handle(input, now, &mut self.sockets);
                }
            },
            Err(refusal) => {
                self.sockets.close(id);
                self.leave_proxies();
                self.engine.handle(proxies::refused(id, refusal), now, &mut self.sockets);
            }
        }
    }

    /// Carries out what the engine asks for, and has the service answer what it was sent.
    fn answer(&mut self, now: Instant) {
        let mut asked = None;
        loop {
            // Each panic is one output less, or one query.
            while self.guard(now, |driver| driver.answer_all(&mut asked, now)).is_none() {}
            if !self.sockets.has_queries() {
                return;
            }
            while self.guard(now, |driver| driver.serve_queries(now)).is_none() {}
        }
    }

    fn answer_all(&mut self, asked: &mut Option<Asked>, now: Instant) {
        while let Some(output) = self.engine.poll_output() {
            self.engine.carry(output.flow());
            let input = match output {
                Output::Owner(id, protocol, client, destination) => {
                    let owners = self.owners.as_mut();
                    let owner = owners.and_then(|o| o.lookup(protocol, client, destination));
                    Some(Input::Owner(id, owner))
                }
                Output::Source(id, protocol, far, bound) => {
                    let answer = self.routes.lookup(self.query(protocol, far, bound));
                    *asked = Some((id, far.ip(), answer));
                    Some(Input::Source(id, answer.map(|a| a.egress).map_err(unresolved)))
                }
                Output::Rings(id) => Some(Input::Lent(id, self.rings_for(id, Pool::take, now))),
                Output::Connect(id, far, egress, bound) => {
                    let query = self.query(Protocol::Tcp, far, bound);
                    self.recheck(id, query, egress, *asked, |driver, index| {
                        driver.sockets.connect(&driver.epoll, id, far, egress, index, driver.mark)
                    })
                }
                Output::ConnectVia(id, way, destination, name, egress) => {
                    let target = Target { address: destination, name };
                    self.connect_via(id, way, target, egress, *asked, now)
                }
                Output::Bind(id, mapping, far, egress, bound) => {
                    let query = self.query(Protocol::Udp, far, bound);
                    self.recheck(id, query, egress, *asked, |driver, index| {
                        driver.sockets.bind(
                            &driver.epoll,
                            id,
                            mapping,
                            far,
                            egress,
                            index,
                            driver.mark,
                        )
                    })
                }
                Output::Associate(id, mapping, way, destination, name, egress) => {
                    let target = Target { address: destination, name };
                    self.associate(id, mapping, way, target, egress, *asked, now)
                }
                Output::OpenEcho(id, far, egress, bound) => {
                    let query = self.query(Protocol::Icmp, SocketAddr::new(far, 0), bound);
                    let opened = self.recheck(id, query, egress, *asked, |driver, index| {
                        driver.sockets.open_echo(&driver.epoll, id, far, egress, index, driver.mark)
                    });
                    if matches!(opened, Some(Input::Unsupported(_))) && !self.told_of_echo {
                        self.told_of_echo = true;
                        warn!(code = "echo-unsupported", "{}", EgressError::EchoUnsupported);
                    }
                    opened
                }
                Output::Serve(id) => Some(self.join_service(id, now)),
                Output::ShutdownFar(id) => {
                    if let Some(conversation) = self.conversations.of(id) {
                        conversation.asker_ended();
                        self.engine.mark_dirty(id);
                    } else {
                        self.sockets.shutdown(id);
                    }
                    None
                }
                Output::Close(id) => {
                    self.conversations.end(id);
                    self.sockets.close(id);
                    None
                }
                Output::Reset(id) => {
                    self.conversations.end(id);
                    self.sockets.reset(id);
                    None
                }
                Output::Unbind(mapping) => {
                    self.sockets.unbind(mapping);
                    None
                }
                Output::Trim(rings) => {
                    self.trim(rings);
                    None
                }
                Output::Release(rings, touched) => {
                    self.give_back(rings, touched);
                    None
                }
                Output::Report(report) => {
                    if let Some(reports) = &self.reports
                        && reports.try_send((self.shard, *report)).is_err()
                    {
                        self.totals.reports_lost += 1;
                    }
                    None
                }
            };
            if let Some(input) = input {
                self.engine.handle(input, now, &mut self.sockets);
            }
        }
    }

    /// Looks at the route again and opens a socket where it still is the judged one. An answer
    /// that was had in this call of [`Driver::answer`] is as new as another would be: nothing
    /// was waited for since.
    fn recheck(
        &mut self,
        id: FlowId,
        query: Query,
        egress: Egress,
        asked: Option<Asked>,
        open: impl FnOnce(&mut Self, u32) -> Option<Input>,
    ) -> Option<Input> {
        let answer = match asked {
            Some((flow, to, answer)) if flow == id && to == query.destination => answer,
            Some(_) | None => self.routes.lookup(query),
        };
        match answer {
            Ok(answer) if answer.egress == egress => {
                open(self, answer.bound_device(query.destination))
            }
            Ok(answer) => Some(Input::SourceChanged(id, answer.egress)),
            Err(error) => Some(Input::Source(id, Err(unresolved(error)))),
        }
    }

    fn query(&self, protocol: Protocol, far: SocketAddr, bound: Option<IpAddr>) -> Query {
        Query {
            destination: far.ip(),
            source: bound,
            device: None,
            protocol,
            destination_port: far.port(),
            uid: None,
            mark: self.mark,
        }
    }

    /// Rings for a flow that opens; where memory is short, those of whatever was idle longest.
    fn rings_for(&mut self, id: FlowId, take: TakeRings, now: Instant) -> Option<Rings> {
        if let Some(rings) = self.take_rings(take) {
            return Some(rings);
        }
        self.engine.handle(Input::EvictIdle, now, &mut self.sockets);
        self.answer(now);
        self.engine.carry(Some(id));
        self.take_rings(take)
    }

    fn take_rings(&mut self, take: TakeRings) -> Option<Rings> {
        let rings::Rings { id, to_far, to_app } = take(&mut self.rings).ok()?;
        let number = self.receipts.insert(id) as u32;
        Some(Rings { id: RingId(number), to_far, to_app })
    }

    #[allow(unsafe_code, reason = "only here is it known that the engine lends no ring")]
    fn trim(&mut self, rings: RingId) {
        if let Some(receipt) = self.receipts.get(rings.0 as usize) {
            // SAFETY: the engine says that both rings are empty, and lends none of them now.
            unsafe { self.rings.trim(receipt) }
        }
    }

    #[allow(unsafe_code, reason = "only here is it known that the engine lends no ring")]
    fn give_back(&mut self, rings: RingId, touched: u64) {
        if let Some(receipt) = self.receipts.try_remove(rings.0 as usize) {
            // SAFETY: the engine dropped the socket that held both slices before it said so,
            // and a receipt is used once.
            unsafe { self.rings.give_back(receipt, touched) }
        }
    }
}

/// A size of rings.
type TakeRings = fn(&mut Pool) -> Result<rings::Rings, TakeError>;

/// The last route lookup: for which flow and destination, and the answer.
type Asked = (FlowId, IpAddr, Result<RouteAnswer, LookupError>);

fn unresolved(error: LookupError) -> Unresolved {
    match error {
        LookupError::NoRoute(_)
        | LookupError::NeedsDevice
        | LookupError::NoSource
        | LookupError::OwnDevice => Unresolved::NoRoute(error.failure()),
        LookupError::DeviceGone
        | LookupError::Silent
        | LookupError::Socket(_)
        | LookupError::Garbled => Unresolved::LookupFailed,
    }
}

fn received(offload: RxOffload) -> Received {
    Received {
        checksum: match offload.checksum {
            virtio::Checksum::Partial | virtio::Checksum::Valid => Checksum::Trusted,
            virtio::Checksum::Unknown => Checksum::Unknown,
        },
        segment: offload.gso.map(|gso| gso.size),
    }
}
