//! Who goes on when, in two ways: shuttle draws it at every lock (`--cfg evalpool_shuttle`); without it, and in every
//! `cargo test`, one thread of tokio's with a paused clock draws it at every await.

#[cfg(evalpool_shuttle)]
mod way {
    use std::{ops::Range, time::Duration};

    pub(in crate::registry::interleavings) use shuttle::future::{block_on, spawn, yield_now};
    use shuttle::rand::{Rng, thread_rng};
    pub(in crate::registry::interleavings) use shuttle::thread::yield_now as yield_thread;

    /// Shuttle prints a schedule that fails, and can replay it.
    pub(in crate::registry::interleavings) fn check(scenario: fn(), schedules: usize) {
        shuttle::check_random(scenario, schedules);
        shuttle::check_pct(scenario, schedules, 3);
    }

    /// A number out of this range.
    pub(in crate::registry::interleavings) fn draw(range: Range<usize>) -> usize {
        thread_rng().gen_range(range)
    }

    /// Deadlines pass when the scheduler wants them to.
    pub(in crate::registry::interleavings) fn patience() -> Duration {
        Duration::ZERO
    }
}

#[cfg(not(evalpool_shuttle))]
mod way {
    use std::{cell::RefCell, ops::Range, thread::panicking, time::Duration};

    use rand::{RngExt, SeedableRng, rngs::StdRng};
    pub(in crate::registry::interleavings) use tokio::spawn;
    use tokio::{runtime::Builder, time::sleep};

    thread_local! {
        static RANDOM: RefCell<StdRng> = RefCell::new(StdRng::seed_from_u64(0));
    }

    /// Names the seed of a schedule that failed.
    struct Seed(u64);

    impl Drop for Seed {
        fn drop(&mut self) {
            if panicking() {
                eprintln!("the schedule with seed {} failed; EVALPOOL_SEED runs it alone", self.0);
            }
        }
    }

    pub(in crate::registry::interleavings) fn check(scenario: fn(), schedules: usize) {
        let only = std::env::var("EVALPOOL_SEED").ok().and_then(|text| text.parse().ok());
        let seeds = only.map_or(0..schedules as u64, |seed| seed..seed + 1);
        for seed in seeds {
            let _named = Seed(seed);
            RANDOM.set(StdRng::seed_from_u64(seed));
            scenario();
        }
    }

    pub(in crate::registry::interleavings) fn block_on<F: Future>(future: F) -> F::Output {
        let mut paused = Builder::new_current_thread();
        paused.enable_time().start_paused(true).build().expect("one thread needs nothing").block_on(future)
    }

    pub(in crate::registry::interleavings) async fn yield_now() {
        sleep(Duration::from_millis(draw(0..5) as u64)).await;
    }

    /// One thread has nobody to yield to.
    pub(in crate::registry::interleavings) fn yield_thread() {}

    /// A number out of this range.
    pub(in crate::registry::interleavings) fn draw(range: Range<usize>) -> usize {
        RANDOM.with_borrow_mut(|random| random.random_range(range))
    }

    /// How long a caller waits: some see their deadline pass.
    pub(in crate::registry::interleavings) fn patience() -> Duration {
        Duration::from_millis(draw(0..20) as u64)
    }
}

pub(super) use self::way::{block_on, check, draw, patience, spawn, yield_now, yield_thread};

/// True once in so many times.
pub(super) fn once_in(times: usize) -> bool {
    draw(0..times) == 0
}
