//! Every shard is asked the same, and all answers are awaited.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout_at};
use tunnel::driver::Unasked;
use tunnel::driver::request::{Answer, Request};

use super::{Daemon, Shard};

/// How long a shard may take. A turn of its loop takes milliseconds; a policy with 100,000
/// rules against 10,000 flows takes 0.3 s.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a shard may be at too much else to take a request.
const BUSY: Duration = Duration::from_secs(1);
/// How long it is left alone then.
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
    /// It is at as much as it takes.
    #[error("shard {0} is busy with other requests")]
    Busy(usize),
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
            waiting.push(self.put(shard, &request).await);
        }
        wait_all(waiting, deadline).await
    }

    /// Tells all shards, with nothing in between, what each of them takes however busy it is
    /// ([`Request::Reload`]). The answers are awaited by what is returned.
    pub(super) fn tell_all<T: Send + 'static>(
        &self,
        request: impl Fn(Answer<T>) -> Request,
    ) -> impl Future<Output = Result<Vec<T>, Unanswered>> {
        let deadline = Instant::now() + PATIENCE;
        let tell = |(number, (shard, _)): (usize, &(Box<dyn Shard>, _))| {
            let (answer, receiver) = answer();
            let told = shard.ask(request(answer));
            told.map(|()| receiver).map_err(|error| Unanswered::of(error, number))
        };
        let waiting = self.shards.iter().enumerate().map(tell).collect();
        wait_all(waiting, deadline)
    }

    /// Asks one shard, which must exist.
    pub(super) async fn ask_one<T: Send + 'static>(
        &self,
        shard: usize,
        request: impl Fn(Answer<T>) -> Request,
    ) -> Result<T, Unanswered> {
        let deadline = Instant::now() + PATIENCE;
        let answer = self.put(shard, &request).await?;
        wait(shard, deadline, answer).await
    }

    async fn put<T: Send + 'static>(
        &self,
        shard: usize,
        request: &impl Fn(Answer<T>) -> Request,
    ) -> Result<oneshot::Receiver<T>, Unanswered> {
        let (handle, _) = self.shards.get(shard).ok_or(Unanswered::Gone(shard))?;
        put(&**handle, shard, request).await
    }
}

/// Asks the shard of that number.
pub(crate) async fn ask<T: Send + 'static>(
    shard: &dyn Shard,
    number: usize,
    request: impl Fn(Answer<T>) -> Request,
) -> Result<T, Unanswered> {
    let deadline = Instant::now() + PATIENCE;
    let answer = put(shard, number, &request).await?;
    wait(number, deadline, answer).await
}

async fn put<T: Send + 'static>(
    shard: &dyn Shard,
    number: usize,
    request: &impl Fn(Answer<T>) -> Request,
) -> Result<oneshot::Receiver<T>, Unanswered> {
    let deadline = Instant::now() + BUSY;
    loop {
        let (answer, receiver) = answer();
        match shard.ask(request(answer)) {
            Ok(()) => return Ok(receiver),
            Err(Unasked::Busy) if Instant::now() < deadline => sleep(RETRY).await,
            Err(error) => return Err(Unanswered::of(error, number)),
        }
    }
}

impl Unanswered {
    fn of(error: Unasked, shard: usize) -> Self {
        match error {
            Unasked::Gone => Self::Gone(shard),
            Unasked::Busy => Self::Busy(shard),
        }
    }
}

fn answer<T: Send + 'static>() -> (Answer<T>, oneshot::Receiver<T>) {
    let (sender, receiver) = oneshot::channel();
    let answer = move |value| {
        // Whoever asked may have given up.
        let _ = sender.send(value);
    };
    (Box::new(answer), receiver)
}

/// Waits for every shard, so that none is left at something when this is over, and gives all
/// answers or the first failure.
async fn wait_all<T>(
    waiting: Vec<Result<oneshot::Receiver<T>, Unanswered>>,
    deadline: Instant,
) -> Result<Vec<T>, Unanswered> {
    let mut answers = Vec::with_capacity(waiting.len());
    for (shard, answer) in waiting.into_iter().enumerate() {
        answers.push(match answer {
            Ok(answer) => wait(shard, deadline, answer).await,
            Err(error) => Err(error),
        });
    }
    answers.into_iter().collect()
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
