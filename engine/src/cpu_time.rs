//! For measurements in tests.

/// Time that this thread ran: other work on the machine does not count.
pub(crate) fn cpu_time() -> std::time::Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    let ran = stat.split(' ').next().and_then(|ns| ns.parse().ok());
    std::time::Duration::from_nanos(ran.expect("nanoseconds"))
}
