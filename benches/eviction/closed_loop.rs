//! Callers that call again once they have their answer, in simulated time: what a miss costs, they feel. Builds get a
//! place only as far as compile slots reach, and one more; until then their victims serve. The oldest build comes first.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
    ops::Add,
};

use crate::{
    policies::{Name, Policy},
    traces::{Random, Zipf},
};

pub(crate) const PLACES: usize = 16;
const CALLERS: usize = 64;
const NAMES: u32 = 200;
const SLOTS: usize = 2;

/// In microseconds, as all times here.
const BUILD: u64 = 4_000;
const RUN: u64 = 50;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Answered(usize),
    Built(Name),
}

#[derive(Clone, Copy, Default)]
struct Caller {
    began: u64,
    name: Name,
    age: u64,
}

#[derive(Default)]
struct Live {
    leases: usize,
    /// A newcomer waits for its place: younger callers wait until it is given up or no longer needed.
    reserved: bool,
    waiters: Vec<usize>,
}

struct Build {
    age: u64,
    placed: bool,
    waiters: Vec<usize>,
}

#[derive(Clone, Copy, Default)]
pub(crate) struct Outcome {
    pub(crate) calls: usize,
    pub(crate) builds: usize,
    pub(crate) seconds: f64,
    /// In milliseconds.
    pub(crate) longest_wait: f64,
}

impl Add for Outcome {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            calls: self.calls + other.calls,
            builds: self.builds + other.builds,
            seconds: self.seconds + other.seconds,
            longest_wait: self.longest_wait.max(other.longest_wait),
        }
    }
}

pub(crate) struct ClosedLoop {
    policy: Box<dyn Policy>,
    zipf: Zipf,
    random: Random,
    now: u64,
    /// Orders what happens at the same time, and callers by age.
    next: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    callers: [Caller; CALLERS],
    live: BTreeMap<Name, Live>,
    builds: BTreeMap<Name, Build>,
    /// Builds without a place, the oldest first.
    queue: BTreeMap<u64, Name>,
    /// Builds that have a place and wait for a slot.
    slot_queue: VecDeque<Name>,
    compiling: usize,
    outcome: Outcome,
}

impl ClosedLoop {
    pub(crate) fn new(policy: Box<dyn Policy>, skew: f64, seed: u64) -> Self {
        Self {
            policy,
            zipf: Zipf::new(NAMES, skew),
            random: Random(seed),
            now: 0,
            next: 0,
            events: BinaryHeap::new(),
            callers: [Caller::default(); CALLERS],
            live: BTreeMap::new(),
            builds: BTreeMap::new(),
            queue: BTreeMap::new(),
            slot_queue: VecDeque::new(),
            compiling: 0,
            outcome: Outcome::default(),
        }
    }

    pub(crate) fn run(mut self, seconds: u64) -> Outcome {
        for caller in 0..CALLERS {
            self.call(caller);
        }
        while self.now < seconds * 1_000_000
            && let Some(Reverse((at, _, event))) = self.events.pop()
        {
            self.now = at;
            match event {
                Event::Answered(caller) => self.answered(caller),
                Event::Built(name) => self.built(name),
            }
        }
        Outcome { seconds: self.now as f64 / 1e6, ..self.outcome }
    }

    fn unique(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn after(&mut self, time: u64, event: Event) {
        let order = self.unique();
        self.events.push(Reverse((self.now + time, order, event)));
    }

    fn call(&mut self, caller: usize) {
        self.callers[caller] = Caller { began: self.now, name: self.zipf.draw(&mut self.random), age: self.unique() };
        self.request(caller);
    }

    /// Also for a caller whose runtime was evicted while it waited: it keeps its age.
    fn request(&mut self, caller: usize) {
        let Caller { name, age, .. } = self.callers[caller];
        let eldest = self.queue.first_key_value().map(|(age, _)| *age);
        if let Some(live) = self.live.get_mut(&name) {
            if live.reserved && eldest.is_some_and(|eldest| eldest < age) {
                live.waiters.push(caller);
            } else {
                self.policy.hit(name);
                self.grant(caller);
            }
            return;
        }
        let build = self.builds.entry(name).or_insert_with(|| {
            self.queue.insert(age, name);
            Build { age, placed: false, waiters: Vec::new() }
        });
        build.waiters.push(caller);
        if !build.placed && age < build.age {
            self.queue.remove(&build.age);
            self.queue.insert(age, name);
            build.age = age;
        }
        self.dispatch();
    }

    fn grant(&mut self, caller: usize) {
        self.live.entry(self.callers[caller].name).or_default().leases += 1;
        self.after(RUN, Event::Answered(caller));
    }

    fn answered(&mut self, caller: usize) {
        let Caller { began, name, .. } = self.callers[caller];
        self.outcome.calls += 1;
        self.outcome.longest_wait = self.outcome.longest_wait.max((self.now - began) as f64 / 1e3);
        self.live.entry(name).or_default().leases -= 1;
        self.dispatch();
        self.call(caller);
    }

    fn built(&mut self, name: Name) {
        self.compiling -= 1;
        self.outcome.builds += 1;
        self.policy.admit(name);
        self.live.insert(name, Live::default());
        let waiters = self.builds.remove(&name).map(|build| build.waiters).unwrap_or_default();
        for (at, caller) in waiters.into_iter().enumerate() {
            if at > 0 {
                self.policy.hit(name);
            }
            self.grant(caller);
        }
        self.compile();
        self.dispatch();
    }

    fn compile(&mut self) {
        while self.compiling < SLOTS
            && let Some(name) = self.slot_queue.pop_front()
        {
            self.compiling += 1;
            self.after(BUILD, Event::Built(name));
        }
    }

    fn dispatch(&mut self) {
        while let Some((age, name)) = self.queue.first_key_value().map(|(age, name)| (*age, *name)) {
            let placed = self.builds.len() - self.queue.len();
            if placed > SLOTS {
                break;
            }
            if self.live.len() + placed == PLACES {
                let live = &self.live;
                let unleased = |name| live.get(&name).is_some_and(|live: &Live| live.leases == 0);
                let Some(victim) = self.policy.evict(&unleased) else {
                    let leased = self.live.values_mut().filter(|live| live.leases > 0);
                    leased.take(self.queue.len()).for_each(|live| live.reserved = true);
                    break;
                };
                for caller in self.live.remove(&victim).unwrap_or_default().waiters {
                    self.request(caller);
                }
                continue;
            }
            self.queue.remove(&age);
            if let Some(build) = self.builds.get_mut(&name) {
                build.placed = true;
            }
            self.slot_queue.push_back(name);
            self.compile();
        }
        if self.queue.is_empty() {
            let mut waiters = Vec::new();
            for live in self.live.values_mut() {
                live.reserved = false;
                waiters.append(&mut live.waiters);
            }
            for caller in waiters {
                self.policy.hit(self.callers[caller].name);
                self.grant(caller);
            }
        }
    }
}
