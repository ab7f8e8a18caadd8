//! Every shard is asked the same, and all answers are awaited.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout_at};
use tunnel::driver::Unasked;
use tunnel::driver::request::{Answer, Request};

use super::Daemon;

/// How long a shard may take. A turn of its loop takes milliseconds; a policy with 100,000
/// rules against 10,000 flows takes 0.3 s.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a full queue is left alone.
const RETRY: Duration = Duration::from_millis(2);

/// A shard that gave no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unanswered {
    /// Its thread is over.
    #[error("shard {0} has ended")]
    Gone(usize),
    /// Nothing came in time.
    #[error("shard {0} did not answer within {seconds} s", seconds = PATIENCE.as_secs())]
    Silent(usize),
}

impl Daemon {
    /// Asks all shards at once; the answers come in the order of the shards.
    pub(super) async fn ask_all<T: Send + 'static>(
        &self,
        request: impl Fn(Answer<T>) -> Request,
    ) -> Result<Vec<T>, Unanswered> {
        let deadline = Instant::now() + PATIENCE;
        let mut waiting = Vec::with_capacity(self.shards.len());
        for shard in 0..self.shards.len() {
            waiting.push(self.put(shard, deadline, &request).await?);
        }
        let mut answers = Vec::with_capacity(waiting.len());
        for (shard, answer) in waiting.into_iter().enumerate() {
            answers.push(wait(shard, deadline, answer).await?);
        }
        Ok(answers)
    }

    /// Asks one shard, which must exist.
    pub(super) async fn ask_one<T: Send + 'static>(
        &self,
        shard: usize,
        request: impl Fn(Answer<T>) -> Request,
    ) -> Result<T, Unanswered> {
        let deadline = Instant::now() + PATIENCE;
        let answer = self.put(shard, deadline, &request).await?;
        wait(shard, deadline, answer).await
    }

    async fn put<T: Send + 'static>(
        &self,
        shard: usize,
        deadline: Instant,
        request: &impl Fn(Answer<T>) -> Request,
    ) -> Result<oneshot::Receiver<T>, Unanswered> {
        let (handle, _) = self.shards.get(shard).ok_or(Unanswered::Gone(shard))?;
        loop {
            let (sender, receiver) = oneshot::channel();
            let answer: Answer<T> = Box::new(move |value| {
                // Whoever asked may have given up.
                let _ = sender.send(value);
            });
            match handle.ask(request(answer)) {
                Ok(()) => return Ok(receiver),
                Err(Unasked::Gone) => return Err(Unanswered::Gone(shard)),
                Err(Unasked::Busy) if Instant::now() >= deadline => {
                    return Err(Unanswered::Silent(shard));
                }
                Err(Unasked::Busy) => sleep(RETRY).await,
            }
        }
    }
}

async fn wait<T>(
    shard: usize,
    deadline: Instant,
    answer: oneshot::Receiver<T>,
) -> Result<T, Unanswered> {
    match timeout_at(deadline, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        // The shard ended and dropped the request.
        Ok(Err(_)) => Err(Unanswered::Gone(shard)),
        Err(_) => Err(Unanswered::Silent(shard)),
    }
}
