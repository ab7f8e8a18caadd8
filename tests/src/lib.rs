//! The lab: what every promise test stands on.
//!
//! * [`lab`]: network namespaces, links and addresses made for one test,
//!   commands inside them, capture on a far link, `tunneld exec` as a builder.
//! * [`endpoints`]: the far sides that real programs talk to: TCP, UDP, HTTP
//!   and DNS servers on threads inside a namespace.
//!
//! Nothing of it outlives the test process: namespaces are held by descriptors
//! alone, and every child dies with the thread that started it.

pub mod endpoints;
pub mod lab;
