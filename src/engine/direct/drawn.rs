//! What a guest draws of time and of chance: noted while its initialisers run, if others are to begin with what they did.
//!
//! WASI's clocks and random numbers are all that there is. `poll_oneoff` reads the clock as well; instructions, Extism's own
//! functions and standard streams tell neither, and initialisers that call other host functions [refuse](super::state) a
//! snapshot.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rand_core::{Rng, TryRng};
use wasmtime_wasi::{HostMonotonicClock, HostWallClock, clocks::WallClock, random};

use crate::engine::Drawn;

/// What one guest has drawn so far.
#[derive(Debug, Default)]
pub(super) struct Draws {
    time: AtomicBool,
    randomness: AtomicBool,
}

impl Draws {
    pub(super) fn drawn(&self) -> Drawn {
        let is_set = |flag: &AtomicBool| flag.load(Ordering::Relaxed);
        Drawn { time: is_set(&self.time), randomness: is_set(&self.randomness) }
    }
}

/// What is drawn from, and where that is noted.
pub(super) struct Noted<T> {
    from: T,
    draws: Arc<Draws>,
}

impl<T> Noted<T> {
    pub(super) fn new(from: T, draws: &Arc<Draws>) -> Self {
        Self { from, draws: draws.clone() }
    }

    fn time(&self) -> &T {
        self.draws.time.store(true, Ordering::Relaxed);
        &self.from
    }

    fn randomness(&mut self) -> &mut T {
        self.draws.randomness.store(true, Ordering::Relaxed);
        &mut self.from
    }
}

/// The clock that WASI has, from now on.
pub(super) fn wall_clock(draws: &Arc<Draws>) -> impl HostWallClock + use<> {
    Noted::new(WallClock::new(), draws)
}

/// The random numbers that WASI has.
pub(super) fn random_numbers(draws: &Arc<Draws>) -> impl Rng + Send + use<> {
    Noted::new(random::thread_rng(), draws)
}

impl<T: HostMonotonicClock> HostMonotonicClock for Noted<T> {
    fn resolution(&self) -> u64 {
        self.from.resolution()
    }

    fn now(&self) -> u64 {
        self.time().now()
    }
}

impl HostWallClock for Noted<WallClock> {
    fn resolution(&self) -> Duration {
        self.from.resolution()
    }

    fn now(&self) -> Duration {
        self.time().now()
    }
}

impl TryRng for Noted<Box<dyn Rng + Send>> {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.randomness().try_next_u32()
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        self.randomness().try_next_u64()
    }

    fn try_fill_bytes(&mut self, buffer: &mut [u8]) -> Result<(), Infallible> {
        self.randomness().try_fill_bytes(buffer)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use wasmtime_wasi::clocks::MonotonicClock;

    use super::*;

    /// Gives 1, 2, 3 and so on.
    struct Counts(u8);

    impl TryRng for Counts {
        type Error = Infallible;

        fn try_next_u32(&mut self) -> Result<u32, Infallible> {
            self.0 += 1;
            Ok(self.0.into())
        }

        fn try_next_u64(&mut self) -> Result<u64, Infallible> {
            self.0 += 1;
            Ok(self.0.into())
        }

        fn try_fill_bytes(&mut self, buffer: &mut [u8]) -> Result<(), Infallible> {
            self.0 += 1;
            buffer.fill(self.0);
            Ok(())
        }
    }

    #[test]
    fn a_guest_gets_what_there_is_to_draw_and_it_is_noted() {
        let (time, randomness) = (Drawn { time: true, randomness: false }, Drawn { time: false, randomness: true });
        let draws: Arc<Draws> = Arc::default();
        let clock = wall_clock(&draws);
        let monotonic = Noted::new(MonotonicClock::new(), &draws);
        assert_eq!(monotonic.resolution(), MonotonicClock::new().resolution());
        assert_eq!((clock.resolution(), draws.drawn()), (WallClock::new().resolution(), Drawn::default()));
        let before = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        assert!(clock.now() >= before);
        assert_eq!(draws.drawn(), time);
        for (number, draw) in (1..).zip([
            |rng: &mut dyn Rng| u64::from(rng.next_u32()),
            |rng: &mut dyn Rng| rng.next_u64(),
            |rng: &mut dyn Rng| {
                let mut bytes = [0; 2];
                rng.fill_bytes(&mut bytes);
                u64::from(bytes[1])
            },
        ]) {
            let draws: Arc<Draws> = Arc::default();
            let from: Box<dyn Rng + Send> = Box::new(Counts(number - 1));
            assert_eq!((draw(&mut Noted::new(from, &draws)), draws.drawn()), (number.into(), randomness));
        }
    }
}
