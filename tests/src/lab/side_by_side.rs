//! Cases that wait more than they work, several at once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::Result;

/// Cases at once: each has a network of its own.
const AT_ONCE: usize = 6;

/// Does all cases, each on a thread of its own.
///
/// # Errors
/// The first of those that went wrong.
pub fn side_by_side<T: Sync>(cases: &[T], work: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        let one_after_another = || -> Result<()> {
            while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                work(case)?;
            }
            Ok(())
        };
        let workers: Vec<_> =
            (0..AT_ONCE.min(cases.len())).map(|_| scope.spawn(one_after_another)).collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
}
