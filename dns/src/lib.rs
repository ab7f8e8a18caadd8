//! How a name finds its servers.
//!
//! An app's query ([`message`]) is answered from the [`cache`], or the plan ([`split`])
//! chooses the resolvers, [`query`] asks them in the rule's form through
//! [`ask::Upstreams`], and what they say is checked ([`answer`]) and merged. [`resolver`]
//! joins these.
//!
//! [`inquiry`] is for questions by hand.
//!
//! [`server`] is a server as it is written, [`upstream`] asks those of a resolver, [`socket`]
//! is the way there, [`tls`] whom to trust. [`discover`] tells which servers the network that
//! the host is on has named, and [`takeover`] leads the host's own queries to us.
#![forbid(unsafe_code)]

pub mod answer;
pub mod ask;
mod bus;
pub mod cache;
mod descriptor;
pub mod discover;
pub mod event;
mod inotify;
pub mod inquiry;
pub mod message;
pub mod name;
pub mod own;
pub mod query;
mod ready;
mod rebinding;
pub mod resolver;
#[cfg(test)]
mod scratch;
pub mod server;
pub mod socket;
pub mod split;
pub mod takeover;
pub mod tls;
pub mod upstream;
