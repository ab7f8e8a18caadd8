//! The lab: what every promise test stands on.
//!
//! * [`lab`]: network namespaces, links and addresses made for one test,
//!   commands inside them, capture on a far link, `tunneld exec` as a builder.
//! * [`both`]: the two name servers of a split, and who asks them.
//! * [`endpoints`]: the far sides that real programs talk to: TCP, UDP, HTTP
//!   and DNS servers on threads inside a namespace.
//! * [`figures`]: what the benchmarks share.
//! * [`tunnelled`]: a host with a tunnel, and its far end.
//! * [`uplinks`]: a host with two tunnels, and the far ends of both.
//! * [`ways`]: connections over ways out, and what a daemon tells of them.
//!
//! Nothing of it outlives the test process: namespaces are held by descriptors
//! alone, and every child dies with the thread that started it.

pub mod both;
pub mod endpoints;
pub mod figures;
pub mod lab;
pub mod tunnelled;
pub mod uplinks;
pub mod ways;
