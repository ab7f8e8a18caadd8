//! What a proxy is asked to connect, and what it answers.
//!
//! # Theory of operation
//!
//! A flow's connection leads to the proxy instead of the destination. Before any byte of the
//! app moves there is a talk: [`socks5`] (RFC 1928, RFC 1929) or [`connect`] (RFC 9110 9.3.6),
//! both pure: [`Talk::to_send`] says what to send, [`Talk::receive`] looks at what has arrived
//! and says how much of it was the proxy's. What lies behind belongs to the far side: it was
//! only looked at, and is read later straight into the flow's ring.
//!
//! A proxy may answer anything. No answer is kept but in the socket, none is longer than
//! [`ANSWER`], and [`PATIENCE`] is how long the proxy itself may take. How long the far side
//! takes to answer is the far side's business and the app's.
//!
//! **What the app sees.** What the proxy says of the far side is passed on ([`Refusal::Far`]).
//! Where the proxy itself fails or refuses ([`Refusal::Proxy`]) there is no usable path: net
//! unreachable, or prohibited where it says so.
//!
//! **Which faults speak against a proxy.** That it can't be reached, is silent or ends the
//! connection before it knows the destination, is somebody else, doesn't take the login, or
//! speaks another protocol ([`Fault::speaks_against`]): new flows leave it then ([`Standing`]).
//! Whatever it does once it knows the destination may be about that, and so is no fault of its
//! own: some proxies just end a connection that they can't make.
//!
//! One that takes what it is asked and then says nothing may wait for the far side, or have died.
//! After [`PATIENCE`] it is *doubted*, unless it has done its part for somebody meanwhile: whoever
//! watches over it has it asked for a destination that is none, and counts the silence then.
//!
//! A *probe* ([`Talk::probe`]) is a talk that asks for no destination: it ends when what spoke
//! against the proxy does not any more.

mod connect;
pub(crate) mod relay;
mod socks5;
pub mod tls;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use engine::{Failure, LinkId, WayId};
use tracing::debug;
use zeroize::Zeroizing;

use socks5::Errand;
use tls::Tls;

/// Bytes of the longest answer: browsers and proxies take so much of a response's header.
pub(crate) const ANSWER: usize = 16 * 1024;

/// How long the proxy may take to be connected to, and for its part of the talk. A path across
/// the world takes a second, a proxy that looks its user up some more.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// When a proxy that has answered no connect is to be left, though the flow waits on: the kernel
/// has asked it three times then. It is how long new flows may run into one that has vanished.
pub(crate) const SUSPECT: Duration = Duration::from_secs(4);

/// A proxy, and how it is talked to.
#[derive(Debug, Clone)]
pub struct Proxy {
    /// The name of its way out.
    pub name: Arc<str>,
    /// Where it listens.
    pub address: SocketAddr,
    /// The tunnel that it is reached through; `None`: as the routes of this host have it.
    pub behind: Option<LinkId>,
    /// What it speaks.
    pub speaks: Speaks,
    /// Who we are to it.
    pub login: Option<Login>,
    /// What its language is wrapped in; `None`: nothing.
    pub tls: Option<Tls>,
    /// How it fares.
    pub standing: Standing,
}

/// How a proxy fares, as all shards see it. Whoever watches over proxies is told of the first
/// fault that speaks against it, and says when it is usable again.
#[derive(Clone, Default)]
pub struct Standing(Arc<Fares>);

#[derive(Default)]
struct Fares {
    down: AtomicBool,
    /// Whoever watches has been told of a doubt, and has not found out yet.
    doubted: AtomicBool,
    /// Talks in which it has done its part.
    worked: AtomicU64,
    told: Option<Told>,
}

type Told = Box<dyn Fn(Fault) + Send + Sync>;

impl Standing {
    /// Nothing speaks against it. `told` is called on a shard's thread: hand it on and return.
    /// [`Fault::Mute`] is a doubt, which a probe is to settle; any other counts at once.
    pub fn new(told: impl Fn(Fault) + Send + Sync + 'static) -> Self {
        Self(Arc::new(Fares { told: Some(Box::new(told)), ..Fares::default() }))
    }

    /// It is usable again, after a fault that was told.
    pub fn recovered(&self) {
        self.trusted();
        self.0.down.store(false, Ordering::Release);
    }

    /// A doubt that was told is settled: it answers.
    pub fn trusted(&self) {
        self.worked();
        self.0.doubted.store(false, Ordering::Release);
    }

    /// Whether a fault was told, and nobody has said that it is usable again.
    pub(crate) fn is_down(&self) -> bool {
        self.0.down.load(Ordering::Acquire)
    }

    fn worked(&self) {
        self.0.worked.fetch_add(1, Ordering::Relaxed);
    }

    /// A talk that began after so many had worked has met with a fault. One that worked
    /// meanwhile says more.
    fn failed(&self, name: &str, fault: Fault, worked: u64) {
        debug!(name, "the proxy did not carry a flow: {fault}");
        let counts = fault.speaks_against() && self.0.worked.load(Ordering::Relaxed) == worked;
        if counts
            && !self.0.down.swap(true, Ordering::AcqRel)
            && let Some(told) = &self.0.told
        {
            told(fault);
        }
    }

    /// A talk that began after so many had worked has had no answer for long.
    fn doubted(&self, worked: u64) {
        if self.0.worked.load(Ordering::Relaxed) == worked
            && !self.is_down()
            && !self.0.doubted.swap(true, Ordering::AcqRel)
            && let Some(told) = &self.0.told
        {
            told(Fault::Mute);
        }
    }
}

impl fmt::Debug for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Standing").field("down", &self.is_down()).finish_non_exhaustive()
    }
}

/// A proxy's language.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// SOCKS version 5.
    Socks5,
    /// HTTP/1.1, with `CONNECT`.
    Http,
}

/// A user's name and password, which are wiped and never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    user: Zeroizing<String>,
    password: Zeroizing<String>,
}

/// Why a name and a password are no login.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    /// RFC 1929 2: each has at least one byte and at most 255.
    #[error("user and password have 1 to 255 bytes each")]
    Length,
    /// RFC 7617 2: a colon would end the name, and neither has control characters.
    #[error("a user has no colon, and neither it nor the password control characters")]
    Characters,
}

impl Login {
    /// A login that every proxy can take.
    ///
    /// # Errors
    /// One of the two can't be said to a proxy.
    pub fn new(user: String, password: String) -> Result<Self, LoginError> {
        let (user, password) = (Zeroizing::new(user), Zeroizing::new(password));
        if [&user, &password].iter().any(|text| text.is_empty() || text.len() > 255) {
            return Err(LoginError::Length);
        }
        if user.contains(':') || user.chars().chain(password.chars()).any(char::is_control) {
            return Err(LoginError::Characters);
        }
        Ok(Self { user, password })
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login(…)")
    }
}

/// The proxies of a configuration, by the numbers of their ways out.
#[derive(Debug, Clone, Default)]
pub struct Proxies(Vec<(WayId, Arc<Proxy>)>);

impl Proxies {
    /// The proxy of a way out.
    pub fn of(&self, way: WayId) -> Option<&Arc<Proxy>> {
        self.0.iter().find(|(id, _)| *id == way).map(|(_, proxy)| proxy)
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Proxy>> {
        self.0.iter().map(|(_, proxy)| proxy)
    }
}

impl Proxies {
    /// The ways out that a fault speaks against.
    pub(crate) fn down(&self) -> impl Iterator<Item = WayId> {
        self.0.iter().filter(|(_, proxy)| proxy.standing.is_down()).map(|(id, _)| *id)
    }
}

impl FromIterator<(WayId, Arc<Proxy>)> for Proxies {
    fn from_iter<I: IntoIterator<Item = (WayId, Arc<Proxy>)>>(proxies: I) -> Self {
        Self(proxies.into_iter().collect())
    }
}

/// Where the proxy is to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// The address that the app named.
    pub(crate) address: SocketAddr,
    /// The name that it has it from.
    pub(crate) name: Option<Arc<str>>,
}

impl Target {
    /// No place at all (RFC 6761 6.4): a proxy that looks it up finds nothing.
    fn nowhere() -> Self {
        let address = (Ipv4Addr::UNSPECIFIED, 443).into();
        Self { address, name: Some("probe.invalid".into()) }
    }

    /// The name, where it is one that a proxy can be told: nothing in it may end a line or a
    /// field of the request.
    fn name(&self) -> Option<&str> {
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
        let name = self.name.as_deref()?;
        (!name.is_empty() && name.len() <= 253 && name.bytes().all(fits)).then_some(name)
    }

    /// The name that a proxy is told.
    pub(crate) fn told_name(&self) -> Option<Arc<str>> {
        self.name().and_then(|_| self.name.clone())
    }
}

/// Why the proxy gave no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// What it says of the far side.
    Far(Failure),
    /// It failed itself, or won't.
    Proxy(Fault),
}

impl Refusal {
    /// What the app is to see.
    pub(crate) fn failure(self) -> Failure {
        match self {
            Self::Far(failure) => failure,
            Self::Proxy(fault) => fault.failure(),
        }
    }
}

/// What is wrong between us and a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// There is no connection to it.
    #[error("it cannot be reached: {0}")]
    Unreachable(Failure),
    /// It said nothing for [`PATIENCE`].
    #[error("it does not answer")]
    Silent,
    /// It takes what it is asked, and answers nothing.
    #[error("it answers nothing that it is asked")]
    Mute,
    /// It ended the talk before it knew the destination.
    #[error("it ended the connection at once")]
    Left,
    /// It ended the talk instead of an answer.
    #[error("it ended the connection before it answered")]
    Ended,
    /// Its answer is none.
    #[error("its answer is not of its protocol")]
    Garbled,
    /// It wants a login, or another one.
    #[error("it does not take the login")]
    Login,
    /// It is somebody else, as far as its certificate tells.
    #[error("its certificate is not trusted")]
    Certificate,
    /// Its rules forbid that destination.
    #[error("its rules forbid the destination")]
    Forbidden,
    /// It can't do that at all.
    #[error("it cannot connect there")]
    Incapable,
    /// It takes datagrams where none can be sent as was judged.
    #[error("it takes datagrams at no address that can be reached as itself can")]
    Relay,
    /// It failed, and says no more.
    #[error("it failed")]
    Failed,
}

impl Fault {
    /// Whether other flows would fare the same.
    pub fn speaks_against(self) -> bool {
        match self {
            Self::Unreachable(_)
            | Self::Silent
            | Self::Mute
            | Self::Left
            | Self::Garbled
            | Self::Login
            | Self::Certificate => true,
            Self::Ended | Self::Forbidden | Self::Incapable | Self::Relay | Self::Failed => false,
        }
    }

    /// What the app is to see.
    pub(crate) fn failure(self) -> Failure {
        match self {
            Self::Unreachable(_)
            | Self::Silent
            | Self::Mute
            | Self::Left
            | Self::Ended
            | Self::Garbled
            | Self::Certificate
            | Self::Incapable
            | Self::Relay
            | Self::Failed => Failure::NetUnreachable,
            Self::Login | Self::Forbidden => Failure::Prohibited,
        }
    }
}

/// There is no connection to the proxy. Where this host has run out of something it is not the
/// proxy that failed.
pub(crate) fn unreachable(failure: Failure) -> Refusal {
    match failure {
        Failure::Exhausted => Refusal::Far(failure),
        Failure::Refused
        | Failure::Reset
        | Failure::NetUnreachable
        | Failure::HostUnreachable
        | Failure::Prohibited
        | Failure::TimedOut
        | Failure::TooBig { .. } => Refusal::Proxy(Fault::Unreachable(failure)),
    }
}

/// How much of what has arrived was the proxy's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Bytes from the start. The rest stays where it is and is looked at again with what comes
    /// behind it.
    pub(crate) bytes: usize,
    /// The far side is connected: what comes next is its own.
    pub(crate) connected: bool,
}

/// A talk with a proxy, from the connection to it to the one to the far side.
pub(crate) struct Talk {
    proxy: Arc<Proxy>,
    /// The proxy's talks that had worked when it began.
    worked: u64,
    language: Language,
    purpose: Purpose,
    /// What is to be sent. It may hold a password.
    out: Zeroizing<Vec<u8>>,
    sent: usize,
}

#[derive(Debug)]
enum Language {
    Socks5(socks5::Talk),
    Http(connect::Talk),
}

/// What a talk is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// A connection to the far side.
    Carry,
    /// To see whether the proxy lets us ask.
    Reach,
    /// To see whether it answers in its protocol, and takes the login.
    Answer,
}

impl Talk {
    /// Begins.
    pub(crate) fn new(proxy: &Arc<Proxy>, target: Target) -> Self {
        let mut out = Zeroizing::new(Vec::new());
        let language = match proxy.speaks {
            Speaks::Socks5 => {
                let errand = Errand::Connect(target);
                Language::Socks5(socks5::Talk::new(proxy.login.clone(), errand, &mut out))
            }
            Speaks::Http => {
                connect::request(proxy.login.as_ref(), &target, &mut out);
                Language::Http(connect::Talk)
            }
        };
        let worked = proxy.standing.0.worked.load(Ordering::Relaxed);
        let proxy = Arc::clone(proxy);
        Self { proxy, worked, language, purpose: Purpose::Carry, out, sent: 0 }
    }

    /// Begins a talk that only shows whether that fault still speaks against the proxy.
    pub(crate) fn probe(proxy: &Arc<Proxy>, fault: Fault) -> Self {
        let mut talk = Self::new(proxy, Target::nowhere());
        talk.purpose = match (&talk.language, fault) {
            (Language::Http(_), Fault::Login | Fault::Garbled) => Purpose::Answer,
            (Language::Http(_) | Language::Socks5(_), Fault::Mute) => Purpose::Answer,
            (Language::Http(_) | Language::Socks5(_), _) => Purpose::Reach,
        };
        if matches!(talk.language, Language::Http(_)) && talk.purpose == Purpose::Reach {
            talk.out = Zeroizing::default();
        }
        talk
    }

    /// Begins one about datagrams. `None`: the proxy's language has no words for them.
    pub(crate) fn associate(proxy: &Arc<Proxy>) -> Option<Self> {
        let mut out = Zeroizing::new(Vec::new());
        let language = match proxy.speaks {
            Speaks::Socks5 => {
                let errand = Errand::Associate { v4: proxy.address.is_ipv4() };
                Language::Socks5(socks5::Talk::new(proxy.login.clone(), errand, &mut out))
            }
            Speaks::Http => return None,
        };
        let worked = proxy.standing.0.worked.load(Ordering::Relaxed);
        let proxy = Arc::clone(proxy);
        Some(Self { proxy, worked, language, purpose: Purpose::Carry, out, sent: 0 })
    }

    /// Where the proxy takes datagrams, once it has said so.
    pub(crate) fn relay(&self) -> Option<SocketAddr> {
        let Language::Socks5(talk) = &self.language else { return None };
        let mut relay = talk.associated()?;
        if relay.ip().is_unspecified() {
            // Where it listens itself.
            relay.set_ip(self.proxy.address.ip());
        }
        Some(relay)
    }

    /// Whom it is with.
    pub(crate) fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    /// What is to be sent now.
    pub(crate) fn to_send(&self) -> &[u8] {
        self.out.get(self.sent..).unwrap_or_default()
    }

    /// So much of it was sent.
    pub(crate) fn sent(&mut self, bytes: usize) {
        self.sent += bytes;
        if self.to_send().is_empty() {
            self.out = Zeroizing::default();
            self.sent = 0;
        }
    }

    /// Whether the proxy knows what it is to do: from here on the far side may let it wait.
    pub(crate) fn has_asked(&self) -> bool {
        self.to_send().is_empty()
            && match &self.language {
                Language::Socks5(talk) => talk.has_asked(),
                Language::Http(connect::Talk) => true,
            }
    }

    /// Whether it wants no answer, once it has asked.
    pub(crate) fn is_content(&self) -> bool {
        self.purpose == Purpose::Reach && self.has_asked()
    }

    /// Whether it is a probe that only an answer ends well.
    pub(crate) fn wants_answer(&self) -> bool {
        self.purpose == Purpose::Answer
    }

    /// It has had no answer for long.
    pub(crate) fn doubt(&self) {
        self.proxy.standing.doubted(self.worked);
    }

    /// The end that the proxy has made of it.
    pub(crate) fn ended(&self) -> Fault {
        if self.has_asked() { Fault::Ended } else { Fault::Left }
    }

    /// What it came to, for those that follow.
    pub(crate) fn note(&self, talked: Result<(), Refusal>) {
        match talked {
            // This host has run out of something.
            Err(Refusal::Far(Failure::Exhausted)) => {}
            // It could say so.
            Ok(()) | Err(Refusal::Far(_)) => self.proxy.standing.worked(),
            Err(Refusal::Proxy(fault)) => {
                self.proxy.standing.failed(&self.proxy.name, fault, self.worked);
            }
        }
    }

    /// Looks at all that has arrived and was not taken yet, of which [`ANSWER`] bytes are
    /// enough.
    ///
    /// # Errors
    /// There will be no connection.
    pub(crate) fn receive(&mut self, arrived: &[u8]) -> Result<Taken, Refusal> {
        let taken = match &mut self.language {
            Language::Socks5(talk) => talk.receive(arrived, &mut self.out)?,
            Language::Http(talk) => talk.receive(arrived)?,
        };
        let asks = matches!(&self.language, Language::Socks5(talk) if talk.has_asked());
        if asks && self.purpose == Purpose::Reach {
            // It has let us in. It is not asked for anything.
            self.out = Zeroizing::default();
            return Ok(Taken { connected: true, ..taken });
        }
        Ok(taken)
    }
}

impl fmt::Debug for Talk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Talk").field("language", &self.language).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
