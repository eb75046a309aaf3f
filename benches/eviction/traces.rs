//! What is called, in which order.

use crate::policies::Name;

/// Numbers that look random, the same in every run: splitmix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to 1.
    pub(crate) fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Draws ranks: the n-th is drawn 1/n^skew times as often as the first.
pub(crate) struct Zipf(Vec<f64>);

impl Zipf {
    pub(crate) fn new(names: u32, skew: f64) -> Self {
        let mut sum = 0.0;
        let mut sums: Vec<f64> = (1..=names)
            .map(|rank| {
                sum += f64::from(rank).powf(-skew);
                sum
            })
            .collect();
        for part in &mut sums {
            *part /= sum;
        }
        Self(sums)
    }

    pub(crate) fn draw(&self, random: &mut Random) -> Name {
        let at = random.fraction();
        let rank = self.0.partition_point(|part| *part < at).min(self.0.len() - 1);
        Name::try_from(rank).unwrap_or(Name::MAX)
    }
}

/// From here on, names that are called once.
const ONCE: Name = 1_000_000;

#[derive(Clone, Copy)]
enum Pattern {
    /// A few names are called often, many seldom.
    Zipf,
    /// Every tenth call is of a name that never comes again.
    ScanBetween,
    /// After every 30 calls for each place, as many names as four times the places, once each.
    ScanInOneGo,
    /// One name more than places, in turn.
    Loop,
    /// After this many calls for each place, all names change their ranks.
    Shift(usize),
}

/// Calls that are drawn by the same rule.
pub(crate) struct Trace {
    pattern: Pattern,
    skew: f64,
    names: u32,
    pub(crate) places: usize,
}

impl Trace {
    pub(crate) fn calls(&self, seed: u64, length: usize) -> Vec<Name> {
        let (mut random, zipf, all) = (Random(seed), Zipf::new(self.names, self.skew), Zipf::new(self.names, 0.0));
        let mut once = ONCE..;
        let mut shifted = 0;
        let places = self.places;
        (0..length)
            .filter_map(|at| match self.pattern {
                Pattern::ScanBetween if at % 10 == 9 => once.next(),
                Pattern::ScanInOneGo if at % (34 * places) >= 30 * places => once.next(),
                Pattern::Zipf | Pattern::ScanBetween | Pattern::ScanInOneGo => Some(zipf.draw(&mut random)),
                Pattern::Loop => Name::try_from(at % (places + 1)).ok(),
                Pattern::Shift(every) => {
                    if at % (every * places) == 0 {
                        shifted = all.draw(&mut random);
                    }
                    Some((zipf.draw(&mut random) + shifted) % self.names)
                }
            })
            .collect()
    }

    pub(crate) fn is_scan(&self) -> bool {
        matches!(self.pattern, Pattern::ScanBetween | Pattern::ScanInOneGo)
    }

    pub(crate) fn named(&self) -> String {
        let Self { pattern, skew, names, places } = self;
        let pattern = match pattern {
            Pattern::Loop => return format!("a loop over {} in {places}", places + 1),
            Pattern::Zipf => String::new(),
            Pattern::ScanBetween => ", every tenth once".to_owned(),
            Pattern::ScanInOneGo => ", scans in one go".to_owned(),
            Pattern::Shift(every) => format!(", shifts after {}", every * places),
        };
        format!("Zipf {skew:.1}, {names} in {places}{pattern}")
    }
}

/// All that is tried.
pub(crate) fn all() -> Vec<Trace> {
    let mut traces = Vec::new();
    for (names, places) in [(200, 16), (4000, 16), (4000, 256)] {
        let patterns = [
            Pattern::Zipf,
            Pattern::ScanBetween,
            Pattern::ScanInOneGo,
            Pattern::Shift(10),
            Pattern::Shift(30),
            Pattern::Shift(100),
        ];
        for pattern in patterns {
            traces.extend([0.6, 0.8, 1.0, 1.2].map(|skew| Trace { pattern, skew, names, places }));
        }
    }
    traces.extend([16, 256].map(|places| Trace { pattern: Pattern::Loop, skew: 0.0, names: 1, places }));
    traces
}
