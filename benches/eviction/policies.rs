//! The policies. Each must take every newcomer in: none may say that it is not worth a place.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

pub(crate) type Name = u32;

/// Decides which names keep their places, and is told of every call.
pub(crate) trait Policy {
    /// Calls of a name that is kept.
    fn hit(&mut self, name: Name);

    /// Gives up one of the names for which `evictable` holds; the policy prefers which.
    fn evict(&mut self, evictable: &dyn Fn(Name) -> bool) -> Option<Name>;

    /// A name that is not kept comes in, by its first call. There is room.
    fn admit(&mut self, name: Name);
}

/// A policy for so many places.
type New = fn(usize) -> Box<dyn Policy>;

/// The one that evicts by default.
pub(crate) const LRU: usize = 0;
/// The one that was chosen beside it.
pub(crate) const LFU: usize = 5;

pub(crate) const POLICIES: [(&str, New); 9] = [
    ("lru", |_| Box::new(Lru::default())),
    ("2nd chance", |_| Box::new(SecondChance::default())),
    ("less of 4", |places| Box::new(LessUsed::new(places, 4))),
    ("less of 8", |places| Box::new(LessUsed::new(places, 8))),
    ("less of 16", |places| Box::new(LessUsed::new(places, 16))),
    ("lfu", |places| Box::new(LessUsed::new(places, (places / 4).max(12)))),
    ("sieve", |_| Box::new(Sieve::default())),
    ("s3-fifo", |places| Box::new(S3Fifo::new(places))),
    ("w-tinylfu", |places| Box::new(TinyLfu::new(places))),
];

/// Names in the order of their last use.
#[derive(Default)]
struct Order {
    names: BTreeMap<u64, Name>,
    stamps: HashMap<Name, u64>,
    next: u64,
}

impl Order {
    /// Puts a name last: it is the most recently used one.
    fn touch(&mut self, name: Name) {
        self.remove(name);
        self.next += 1;
        self.names.insert(self.next, name);
        self.stamps.insert(name, self.next);
    }

    fn remove(&mut self, name: Name) -> bool {
        self.stamps.remove(&name).is_some_and(|stamp| self.names.remove(&stamp).is_some())
    }

    fn contains(&self, name: Name) -> bool {
        self.stamps.contains_key(&name)
    }

    /// The least recently used first.
    fn eldest(&self) -> impl Iterator<Item = Name> {
        self.names.values().copied()
    }

    fn pop(&mut self) -> Option<Name> {
        let (_, eldest) = self.names.pop_first()?;
        self.stamps.remove(&eldest);
        Some(eldest)
    }

    fn len(&self) -> usize {
        self.names.len()
    }
}

#[derive(Default)]
struct Lru(Order);

impl Policy for Lru {
    fn hit(&mut self, name: Name) {
        self.0.touch(name);
    }

    fn evict(&mut self, evictable: &dyn Fn(Name) -> bool) -> Option<Name> {
        let victim = self.0.eldest().find(|name| evictable(*name))?;
        self.0.remove(victim);
        Some(victim)
    }

    fn admit(&mut self, name: Name) {
        self.0.touch(name);
    }
}

/// LRU, but what was hit since it came, or since it was last passed over, is passed over once.
#[derive(Default)]
struct SecondChance {
    order: Order,
    hit: HashSet<Name>,
}

impl Policy for SecondChance {
    fn hit(&mut self, name: Name) {
        self.order.touch(name);
        self.hit.insert(name);
    }

    fn evict(&mut self, evictable: &dyn Fn(Name) -> bool) -> Option<Name> {
        loop {
            let eldest = self.order.eldest().find(|name| evictable(*name))?;
            if self.hit.remove(&eldest) {
                self.order.touch(eldest);
            } else {
                self.order.remove(eldest);
                return Some(eldest);
            }
        }
    }

    fn admit(&mut self, name: Name) {
        self.order.touch(name);
    }
}
/// The less used of those that were not used for longest.
struct LessUsed {
    /// Among how many of them.
    among: usize,
    places: usize,
    order: Order,
    uses: HashMap<Name, Uses>,
    /// What was evicted, and how much it had been used.
    ghosts: Order,
    ghost_uses: HashMap<Name, Uses>,
    evictions: usize,
}

/// How often a name was used, up to 7. Halved with each period, when it is next looked at.
#[derive(Clone, Copy, Default)]
struct Uses {
    count: u8,
    period: usize,
}

impl Uses {
    fn now(self, period: usize) -> u8 {
        let halvings = u32::try_from(period - self.period).unwrap_or(u32::MAX);
        self.count.checked_shr(halvings).unwrap_or_default()
    }

    fn again(self, period: usize) -> Self {
        Self { count: (self.now(period) + 1).min(7), period }
    }
}

impl LessUsed {
    fn new(places: usize, among: usize) -> Self {
        Self {
            among,
            places,
            order: Order::default(),
            uses: HashMap::new(),
            ghosts: Order::default(),
            ghost_uses: HashMap::new(),
            evictions: 0,
        }
    }

    /// A new one begins after four evictions for each place.
    fn period(&self) -> usize {
        self.evictions / (4 * self.places)
    }
}

impl Policy for LessUsed {
    fn hit(&mut self, name: Name) {
        let period = self.period();
        self.order.touch(name);
        let uses = self.uses.entry(name).or_default();
        *uses = uses.again(period);
    }

    fn evict(&mut self, evictable: &dyn Fn(Name) -> bool) -> Option<Name> {
        let period = self.period();
        let eldest = self.order.eldest().filter(|name| evictable(*name)).take(self.among);
        // The first of equals: the one that was not used for longest.
        let victim = eldest.min_by_key(|name| self.uses.get(name).map(|uses| uses.now(period)))?;
        self.order.remove(victim);
        self.evictions += 1;
        self.ghosts.touch(victim);
        self.ghost_uses.insert(victim, self.uses.remove(&victim)?);
        if self.ghosts.len() > 4 * self.places
            && let Some(forgotten) = self.ghosts.pop()
        {
            self.ghost_uses.remove(&forgotten);
        }
        Some(victim)
    }

    fn admit(&mut self, name: Name) {
        self.ghosts.remove(name);
        let before = self.ghost_uses.remove(&name).unwrap_or_default();
        self.uses.insert(name, before);
        self.hit(name);
    }
}

/// SIEVE: a queue in which nothing moves; a hand walks from the oldest to the newest and takes what was not hit since.
#[derive(Default)]
struct Sieve {
    /// The oldest first.
    queue: VecDeque<Name>,
    hit: HashSet<Name>,
    hand: usize,
}

impl Policy for Sieve {
    fn hit(&mut self, name: Name) {
        self.hit.insert(name);
    }

    fn evict(&mut self, evictable: &dyn Fn(Name) -> bool) -> Option<Name> {
        // Twice around: once to forget the hits, once to find what has none.
        for _ in 0..=2 * self.queue.len() {
            if self.hand >= self.queue.len() {
                self.hand = 0;
            }
            let name = *self.queue.get(self.hand)?;
            if evictable(name) && !self.hit.remove(&name) {
                return self.queue.remove(self.hand);
            }
            self.hand += 1;
        }
        None
    }

    fn admit(&mut self, name: Name) {
        self.queue.push_back(name);
    }
}

/// S3-FIFO: a tenth of the places for newcomers; what is hit there, or comes again soon after, gets into the main queue.
struct S3Fifo {
    small: VecDeque<Name>,
    main: VecDeque<Name>,
    hits: HashMap<Name, u8>,
    ghosts: Order,
    most_small: usize,
    most_ghosts: usize,
}

impl S3Fifo {
    fn new(places: usize) -> Self {
        let most_small = (places / 10).max(1);
        Self {
            small: VecDeque::new(),
            main: VecDeque::new(),
            hits: HashMap::new(),
            ghosts: Order::default(),
            most_small,
            most_ghosts: places - most_small,
        }
    }
}

impl Policy for S3Fifo {
    fn hit(&mut self, name: Name) {
        let hits = self.hits.entry(name).or_default();
        *hits = (*hits + 1).min(3);
    }

    fn evict(&mut self, evictable: &dyn Fn(Name) -> bool) -> Option<Name> {
        // Every name at most once through `small` and four times through `main`; those that cannot be evicted go round.
        for _ in 0..6 * (self.small.len() + self.main.len()) {
            let from_small = self.small.len() >= self.most_small && self.small.iter().any(|name| evictable(*name))
                || !self.main.iter().any(|name| evictable(*name));
            if from_small {
                let name = self.small.pop_front()?;
                if self.hits.get(&name).is_some_and(|hits| *hits > 1) {
                    self.hits.insert(name, 0);
                    self.main.push_back(name);
                } else if evictable(name) {
                    self.hits.remove(&name);
                    self.ghosts.touch(name);
                    if self.ghosts.len() > self.most_ghosts {
                        self.ghosts.pop();
                    }
                    return Some(name);
                } else {
                    self.small.push_back(name);
                }
            } else {
                let name = self.main.pop_front()?;
                let hits = self.hits.entry(name).or_default();
                if *hits == 0 && evictable(name) {
                    self.hits.remove(&name);
                    return Some(name);
                }
                *hits = hits.saturating_sub(1);
                self.main.push_back(name);
            }
        }
        None
    }

    fn admit(&mut self, name: Name) {
        let queue = if self.ghosts.remove(name) { &mut self.main } else { &mut self.small };
        queue.push_back(name);
        self.hits.insert(name, 0);
    }
}

/// W-TinyLFU: a small window in front of a segmented LRU. What falls out of the window stays if a sketch of how often
/// names were called says that it is called more than the eldest of the rest. Here it decides at the next eviction, so that
/// every newcomer gets in.
struct TinyLfu {
    window: Order,
    probation: Order,
    protected: Order,
    most_window: usize,
    most_protected: usize,
    sketch: Sketch,
}

impl TinyLfu {
    fn new(places: usize) -> Self {
        let most_window = (places / 100).max(1);
        Self {
            window: Order::default(),
            probation: Order::default(),
            protected: Order::default(),
            most_window,
            most_protected: (places - most_window) * 4 / 5,
            sketch: Sketch::new(places),
        }
    }
}

impl Policy for TinyLfu {
    fn hit(&mut self, name: Name) {
        self.sketch.add(name);
        if self.window.contains(name) {
            return self.window.touch(name);
        }
        self.probation.remove(name);
        self.protected.touch(name);
        if self.protected.len() > self.most_protected
            && let Some(eldest) = self.protected.pop()
        {
            self.probation.touch(eldest);
        }
    }

    fn evict(&mut self, evictable: &dyn Fn(Name) -> bool) -> Option<Name> {
        let first = |order: &Order| order.eldest().find(|name| evictable(*name));
        let candidate = first(&self.window).filter(|_| self.window.len() >= self.most_window);
        let main = first(&self.probation).or_else(|| first(&self.protected));
        let (victim, stays) = match (candidate, main) {
            (Some(candidate), Some(main)) if self.sketch.calls(candidate) <= self.sketch.calls(main) => {
                (candidate, None)
            }
            (candidate, Some(main)) => (main, candidate),
            (_, None) => (first(&self.window)?, None),
        };
        for order in [&mut self.window, &mut self.probation, &mut self.protected] {
            order.remove(victim);
        }
        if let Some(stays) = stays {
            self.window.remove(stays);
            self.probation.touch(stays);
        }
        Some(victim)
    }

    fn admit(&mut self, name: Name) {
        self.sketch.add(name);
        self.window.touch(name);
        // Only while there are free places: otherwise `evict` has made room here.
        if self.window.len() > self.most_window
            && let Some(eldest) = self.window.pop()
        {
            self.probation.touch(eldest);
        }
    }
}

/// A multiplier for each row of the sketch.
const ODD: [u64; 4] = [0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f, 0x1656_67b1_9e37_79f9, 0x27d4_eb2f_1656_67c5];

/// Counts of calls, up to 15, in four rows; halved after ten calls for each place.
struct Sketch {
    rows: [Vec<u8>; 4],
    calls: usize,
    most_calls: usize,
}

impl Sketch {
    fn new(places: usize) -> Self {
        let width = (places * 8).next_power_of_two();
        Self { rows: std::array::from_fn(|_| vec![0; width]), calls: 0, most_calls: 10 * places }
    }

    fn at(&self, row: usize, name: Name) -> usize {
        let mixed = (u64::from(name) + 1).wrapping_mul(ODD[row]);
        usize::try_from(mixed >> 40).unwrap_or_default() & (self.rows[row].len() - 1)
    }

    fn add(&mut self, name: Name) {
        for row in 0..4 {
            let at = self.at(row, name);
            let count = &mut self.rows[row][at];
            *count = (*count + 1).min(15);
        }
        self.calls += 1;
        if self.calls >= self.most_calls {
            self.calls /= 2;
            self.rows.iter_mut().flatten().for_each(|count| *count /= 2);
        }
    }

    fn calls(&self, name: Name) -> u8 {
        (0..4).map(|row| self.rows[row][self.at(row, name)]).min().unwrap_or_default()
    }
}
