//! One trait for everything that can be closed, and how a close ends.

use std::time::Duration;

use tokio::time::timeout;

use crate::{engine::BoxFuture, registry::Gone};

/// Something that holds runtimes and can close them: an [`Executable`](crate::Executable), an
/// [`Evaluator`](crate::Evaluator), an [`EvaluatorPool`](crate::EvaluatorPool).
///
/// Closing refuses new work at once, lets calls in flight finish, interrupts their guests after a grace, and ends when
/// the engine's objects are really dropped. It begins when the method is called, not when its future is first polled;
/// dropping the future does not stop it. It is idempotent, and safe to call from many tasks at once: each waits for
/// the end.
///
/// ```
/// # async fn example(pool: evalpool::EvaluatorPool, greet: evalpool::Evaluator) {
/// use evalpool::Close;
///
/// let held: Vec<Box<dyn Close>> = vec![Box::new(greet), Box::new(pool)];
/// for one in held {
///     println!("{:?}", one.close().await);
/// }
/// # }
/// ```
pub trait Close: Send + Sync {
    /// Closes with the pool's own grace, `pool.grace`.
    fn close(&self) -> BoxFuture<'static, CloseReport>;

    /// Closes with this grace instead. What is closing already is interrupted at the sooner of both ends.
    fn close_with(&self, grace: Duration) -> BoxFuture<'static, CloseReport>;
}

/// How a close ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloseReport {
    /// All calls in flight had ended by themselves.
    Drained,
    /// Some were interrupted after their grace.
    Forced,
    /// Some runtimes still exist five seconds after the grace: a host function blocks, an initialiser does not end, or a
    /// caller neither polls nor drops its evaluation. They close, and give their places back, when that ends.
    Unfinished {
        /// How many.
        remaining: usize,
    },
}

impl CloseReport {
    /// How much longer than its grace a close may take before it is reported as unfinished.
    const SLACK: Duration = Duration::from_secs(5);

    pub(crate) async fn after(mut gone: Gone, grace: Duration) -> Self {
        match timeout(grace.saturating_add(Self::SLACK), gone.wait()).await {
            Ok(false) => CloseReport::Drained,
            Ok(true) => CloseReport::Forced,
            Err(_) => CloseReport::Unfinished { remaining: gone.remaining() },
        }
    }
}
