//! How large the registry would have to be: the reuse distances of its lookups.
//!
//! A lookup's distance is the number of different revisions that were looked up since its own last was, itself included. One
//! of distance 64 finds its runtime in a registry with a capacity of 64 or more that evicts the least recently used, and in
//! no smaller one. So the distances of all lookups tell the hit ratio of every capacity at once.
//!
//! To know them exactly takes an entry for each revision. So revisions are sampled by a hash of their number, one in 2^n, and
//! what is found among them stands for all (SHARDS: Waldspurger, Park, Garthwaite and Ahmad, FAST '15). `n` grows when more
//! than [`MOST`] are sampled. Up to that many revisions all is exact. A lookup of one that is not sampled pays for its hash
//! and a comparison; one of the revision that was looked up last, for another.
//!
//! Whether the most popular revisions are sampled is luck. So lookups are counted too, and what the sample has too few or too
//! many of is made up for among the smallest distances, where popular ones are (the paper's SHARDS-adj).
//!
//! That is within six in a hundred for capacities from a sixteenth of the revisions on; below, it depends on luck.
//! Idle times and the bound in bytes are no part of it.

use std::collections::HashMap;

use crate::metrics::REUSE_BOUNDS;

/// Revisions that are sampled at most.
const MOST: usize = 1_024;

/// Moments between two renumberings. A renumbering costs what some thousand lookups do.
const MOMENTS: usize = 8 * MOST;

/// One in 2^6 still tells of distances up to the largest bound. From then on, the least recently used ones make room.
const RAREST: u32 = 6;

/// Between lookups, and what the sampled ones stand for, a difference of this many that are sampled is left to even out.
const EVEN: i64 = 16;

/// The lookups since they were last taken, and the last one of each sampled revision.
#[derive(Debug, Default)]
pub(super) struct Reuse {
    /// One revision in 2^`rarity` is sampled.
    rarity: u32,
    /// When each of them was looked up last.
    last: HashMap<u64, usize>,
    /// A Fenwick tree over moments: each that is in `last` counts 1. From 1; empty before the first lookup.
    marks: Vec<u16>,
    now: usize,
    newest: Option<u64>,
    /// Lookups of all revisions.
    looked_up: u64,
    /// Lookups by their distance: above the bound before, and at most 2^index. As many as those that were sampled stand for.
    within: [u64; REUSE_BOUNDS],
    /// Of a greater distance, and first ones.
    beyond: u64,
    /// So many lookups more than were told of, or fewer.
    lookups: i64,
}

impl Reuse {
    pub(super) fn looked_up(&mut self, revision: u64) {
        self.looked_up += 1;
        if !self.samples(revision) {
            return;
        }
        let stands_for = 1 << self.rarity;
        let bound = if self.newest == Some(revision) { Some(0) } else { self.touch(revision).map(bound_of) };
        match bound.and_then(|bound| self.within.get_mut(bound)) {
            Some(within) => *within += stands_for,
            None => self.beyond += stands_for,
        }
    }

    /// It was used without a lookup.
    pub(super) fn used(&mut self, revision: u64) {
        if self.samples(revision) && self.newest != Some(revision) {
            self.touch(revision);
        }
    }

    /// There are no more lookups of it.
    pub(super) fn forget(&mut self, revision: u64) {
        if let Some(moment) = self.last.remove(&revision) {
            self.mark(moment, false);
            self.newest = self.newest.filter(|newest| *newest != revision);
            // Those that are sampled from now on count as first ones once.
            if self.last.len() < MOST / 8 {
                self.rarity = self.rarity.saturating_sub(1);
            }
        }
    }

    /// How many lookups were within each bound since this was last called, and how many there were in all.
    pub(super) fn take(&mut self) -> [u64; REUSE_BOUNDS + 1] {
        let (mut within, beyond) = (std::mem::take(&mut self.within), std::mem::take(&mut self.beyond));
        let sampled = within.iter().sum::<u64>() + beyond;
        self.lookups =
            self.lookups.saturating_add_unsigned(std::mem::take(&mut self.looked_up)).saturating_sub_unsigned(sampled);
        // The next lookups may make up for this much.
        let even = ((1 << self.rarity) - 1) * EVEN;
        let [smallest, ..] = &mut within;
        let more = u64::try_from(self.lookups - even).unwrap_or_default();
        *smallest += more;
        let mut fewer = u64::try_from(-self.lookups - even).unwrap_or_default();
        self.lookups = self.lookups.saturating_sub_unsigned(more);
        for within in &mut within {
            let back = fewer.min(*within);
            *within -= back;
            fewer -= back;
            self.lookups = self.lookups.saturating_add_unsigned(back);
        }
        let (mut sum, mut told) = (0, [0; REUSE_BOUNDS + 1]);
        for (told, more) in told.iter_mut().zip(within.into_iter().chain([beyond])) {
            sum += more;
            *told = sum;
        }
        told
    }

    fn samples(&self, revision: u64) -> bool {
        hash(revision).leading_zeros() >= self.rarity
    }

    /// It is the one that was used last. The number of different revisions that were used since it last was, estimated.
    fn touch(&mut self, revision: u64) -> Option<u64> {
        if self.now >= MOMENTS || self.marks.is_empty() {
            self.renumber(|_| true);
        }
        self.now += 1;
        let before = self.last.insert(revision, self.now);
        let between = before.map(|moment| {
            // It counts itself.
            let until = self.count_until(moment);
            self.mark(moment, false);
            ((self.last.len() - until) as u64) << self.rarity
        });
        self.mark(self.now, true);
        self.newest = Some(revision);
        if self.last.len() > MOST {
            self.make_room();
        }
        between
    }

    fn make_room(&mut self) {
        if self.rarity < RAREST {
            self.rarity += 1;
            let rarity = self.rarity;
            self.renumber(|(revision, _)| hash(revision).leading_zeros() >= rarity);
        } else {
            // An eighth at once: to find the oldest means to look at all.
            let mut moments: Vec<usize> = self.last.values().copied().collect();
            let (_, oldest, _) = moments.select_nth_unstable(MOST / 8);
            let oldest = *oldest;
            self.renumber(|(_, moment)| moment > oldest);
        }
    }

    /// Gives those that stay the first moments, in their order.
    fn renumber(&mut self, stays: impl Fn((u64, usize)) -> bool) {
        let mut order: Vec<(usize, u64)> = self.last.drain().map(|(revision, moment)| (moment, revision)).collect();
        order.retain(|(moment, revision)| stays((*revision, *moment)));
        order.sort_unstable();
        self.now = order.len();
        self.newest = order.last().map(|(_, revision)| *revision);
        self.last.extend(order.into_iter().zip(1..).map(|((_, revision), moment)| (revision, moment)));
        self.marks.clear();
        // Whatever is marked at the last moment is the newest until the next renumbering, and is never counted.
        self.marks.resize(MOMENTS, 0);
        for moment in 1..=self.now {
            self.mark(moment, true);
        }
    }

    fn mark(&mut self, mut moment: usize, there: bool) {
        while let Some(mark) = self.marks.get_mut(moment) {
            *mark = if there { *mark + 1 } else { *mark - 1 };
            moment += moment & moment.wrapping_neg();
        }
    }

    /// How many were looked up last at this moment or before.
    fn count_until(&self, mut moment: usize) -> usize {
        let mut count = 0;
        while moment > 0 {
            count += usize::from(self.marks.get(moment).copied().unwrap_or_default());
            moment &= moment - 1;
        }
        count
    }
}

/// The index of the smallest power of two that is greater than this many others.
fn bound_of(others: u64) -> usize {
    (u64::BITS - others.leading_zeros()) as usize
}

/// Numbers are given one after the other. By this, whether one is sampled has nothing to do with its neighbours (a step of
/// `SplitMix64`).
fn hash(revision: u64) -> u64 {
    let mixed = revision.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use lru::LruCache;
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    /// The hit ratio at each bound, told in parts.
    fn told(reuse: &mut Reuse, trace: &[u64]) -> Vec<f64> {
        let (mut sums, before) = ([0; REUSE_BOUNDS + 1], reuse.lookups);
        for part in trace.chunks(1_000) {
            for revision in part {
                reuse.looked_up(*revision);
            }
            assert!(reuse.last.len() <= MOST && reuse.last.capacity() <= 4 * MOST, "{} are sampled", reuse.last.len());
            sums.iter_mut().zip(reuse.take()).for_each(|(sum, more)| *sum += more);
        }
        assert!(sums.is_sorted());
        let all = sums[REUSE_BOUNDS];
        assert_eq!(all.checked_add_signed(reuse.lookups - before), Some(trace.len() as u64));
        sums.iter().map(|sum| *sum as f64 / all as f64).collect()
    }

    /// What an LRU of this capacity has.
    fn exact(trace: &[u64], capacity: usize) -> f64 {
        let mut cache = LruCache::new(NonZeroUsize::new(capacity).unwrap());
        let hits = trace.iter().filter(|revision| cache.put(**revision, ()).is_some()).count();
        hits as f64 / trace.len() as f64
    }

    fn zipf(revisions: u64, skew: f64, length: usize, seed: u64) -> Vec<u64> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut sum = 0.0;
        let sums: Vec<f64> = (1..=revisions)
            .map(|rank| {
                sum += (rank as f64).powf(-skew);
                sum
            })
            .collect();
        let mut draw = || sums.partition_point(|until| *until < rng.random_range(0.0..sum)) as u64;
        (0..length).map(|_| draw()).collect()
    }

    #[test]
    fn up_to_as_many_as_are_sampled_it_is_exact() {
        for trace in [zipf(MOST as u64, 0.9, 20_000, 1), (0..20_000).map(|at| at % 700).collect()] {
            let told = told(&mut Reuse::default(), &trace);
            for (bound, told) in told.into_iter().enumerate().take(REUSE_BOUNDS) {
                let exact = exact(&trace, 1 << bound);
                assert!((told - exact).abs() < 1e-9, "{exact} at {}, told {told}", 1 << bound);
            }
        }
    }

    #[test]
    fn of_many_it_tells_the_hit_ratio_within_six_in_a_hundred_from_a_sixteenth_of_them_on() {
        for (revisions, skew, seed) in [(8_000, 0.7, 2), (8_000, 1.0, 3), (20_000, 0.9, 4), (100_000, 0.6, 5)] {
            let trace = zipf(revisions, skew, 100_000, seed);
            let mut reuse = Reuse::default();
            let told = told(&mut reuse, &trace);
            assert!(reuse.rarity >= 2);
            for bound in (0..REUSE_BOUNDS).filter(|bound| (16 << bound) >= revisions).step_by(2) {
                let exact = exact(&trace, 1 << bound);
                assert!((told[bound] - exact).abs() < 0.06, "{exact} at {}, told {}", 1 << bound, told[bound]);
            }
        }
    }

    #[test]
    fn a_loop_hits_nothing_until_all_of_it_fits() {
        let trace: Vec<u64> = (0..60_000).map(|at| at % 3_000).collect();
        let told = told(&mut Reuse::default(), &trace);
        assert!(told[11] < 0.02, "at 2,048: {}", told[11]);
        assert!((told[12] - exact(&trace, 4_096)).abs() < 0.05, "at 4,096: {}", told[12]);
    }

    #[test]
    fn without_end_new_ones_keep_the_sample_bounded_and_the_old_ones_leave_it() {
        let mut reuse = Reuse::default();
        let told = told(&mut reuse, &(0..300_000).collect::<Vec<_>>());
        assert!(told[REUSE_BOUNDS - 1] < 0.02, "{told:?}");
        assert_eq!(reuse.rarity, RAREST);
    }

    #[test]
    fn once_most_are_forgotten_the_few_that_are_left_are_all_sampled() {
        let mut reuse = Reuse::default();
        (0..20_000).for_each(|revision| reuse.looked_up(revision));
        assert!(reuse.rarity > 3);
        (20..20_000).for_each(|revision| reuse.forget(revision));
        reuse.take();
        assert_eq!((reuse.rarity, reuse.last.len() <= 20), (0, true));
        let trace: Vec<u64> = (0..20_000).map(|at| at % 20).collect();
        let told = told(&mut reuse, &trace);
        assert!(told[4] < 0.01 && told[5] > 0.99, "{told:?}");
    }

    #[test]
    fn what_is_used_without_a_lookup_counts_as_one_that_came_between() {
        let mut reuse = Reuse::default();
        (1..=3).for_each(|revision| reuse.looked_up(revision));
        reuse.take();
        reuse.used(1);
        reuse.looked_up(3);
        assert_eq!(reuse.take()[..3], [0, 1, 1]);
    }

    #[test]
    fn numbers_are_mixed_as_splitmix64_does() {
        // Its first outputs, from 0.
        assert_eq!(hash(0), 0xE220_A839_7B1D_CDAF);
        assert_eq!(hash(0x9E37_79B9_7F4A_7C15), 0x6E78_9E6A_A1B9_65F4);
    }

    #[test]
    fn forgetting_one_of_many_leaves_the_others_as_rare() {
        let mut reuse = Reuse::default();
        (0..=MOST as u64).for_each(|revision| reuse.looked_up(revision));
        let sampled = *reuse.last.keys().next().unwrap();
        assert!(reuse.last.len() > MOST / 8);
        reuse.forget(sampled);
        assert_eq!(reuse.rarity, 1);
    }

    #[test]
    fn where_no_more_can_be_left_out_the_eighth_that_was_not_used_for_longest_leaves() {
        let mut reuse = Reuse { rarity: RAREST, ..Reuse::default() };
        let sampled: Vec<u64> = (0..).filter(|revision| reuse.samples(*revision)).take(MOST + 1).collect();
        for revision in &sampled {
            reuse.looked_up(*revision);
        }
        let (left, stay) = sampled.split_at(MOST / 8 + 1);
        assert!(left.iter().all(|revision| !reuse.last.contains_key(revision)));
        assert!(stay.iter().all(|revision| reuse.last.contains_key(revision)));
    }

    #[test]
    fn all_are_sampled_until_they_are_too_many() {
        let mut reuse = Reuse::default();
        (0..MOST as u64).for_each(|revision| reuse.looked_up(revision));
        assert_eq!((reuse.rarity, reuse.last.len()), (0, MOST));
        reuse.looked_up(MOST as u64);
        assert_eq!(reuse.rarity, 1);
    }

    #[test]
    fn what_is_not_sampled_leaves_no_trace_when_it_is_used_without_a_lookup() {
        let mut reuse = Reuse::default();
        (0..4_000).for_each(|revision| reuse.looked_up(revision));
        assert!(reuse.rarity > 0);
        let sampled = reuse.last.clone();
        let newest = reuse.newest;
        (0..4_000).filter(|revision| !sampled.contains_key(revision)).for_each(|revision| reuse.used(revision));
        assert_eq!((reuse.last, reuse.newest), (sampled, newest));
    }

    #[test]
    fn what_the_sample_missed_is_made_up_for_but_for_what_the_next_lookups_may_even_out() {
        for (rarity, even) in [(0, 0), (1, 16), (2, 48)] {
            for (lookups, more) in [(even, 0), (even + 4, 4), (-even, 0), (-even - 4, 0)] {
                let mut reuse = Reuse { rarity, lookups, ..Reuse::default() };
                assert_eq!(reuse.take()[0], more, "at {rarity}, with {lookups} to make up for");
            }
        }
    }
}
