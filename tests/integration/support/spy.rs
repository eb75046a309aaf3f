//! An engine that counts what it opens and closes, and does what a test tells it: be slow, fail, panic, never answer.

mod objects;

use std::{
    collections::{HashSet, VecDeque},
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::ThreadId,
    time::Duration,
};

use evalpool::{
    Error, EvaluatorPool, LastWords, PoolBuilder, Source, Spec,
    engine::{BoxFuture, CompileRequest, CompiledPlugin, Engine, Permit, SlotCounts, Slots},
};
use tokio::{runtime::Handle, sync::Notify};

use self::objects::SpyPlugin;

/// What one step of the engine does.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) enum Act {
    #[default]
    Succeed,
    /// Takes this long, then succeeds.
    Slow(Duration),
    /// Fails as a plugin at fault.
    Fail,
    /// Fails as initialisers that use up their fuel.
    Starve,
    /// Fails in a way that trying again may mend.
    FailOnce,
    Panic,
    /// Never answers.
    Never,
    /// Waits for [`Spy::release`], then succeeds.
    Held,
}

/// What happened, counted. Live figures are those of objects that exist now.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) compiles: AtomicUsize,
    /// Compiling or, of an engine that cannot interrupt initialisers, making an instance.
    pub(crate) working: AtomicUsize,
    pub(crate) working_max: AtomicUsize,
    pub(crate) opens: AtomicUsize,
    pub(crate) closes: AtomicUsize,
    pub(crate) instances_made: AtomicUsize,
    pub(crate) instances_live: AtomicUsize,
    pub(crate) instances_live_max: AtomicUsize,
    pub(crate) calls_started: AtomicUsize,
    pub(crate) calls_finished: AtomicUsize,
    /// From before a compile begins until its permit is let go.
    pub(crate) runtimes_live: AtomicUsize,
    pub(crate) runtimes_live_max: AtomicUsize,
}

#[derive(Default)]
struct Script {
    compile: VecDeque<Act>,
    instantiate: VecDeque<Act>,
    call: VecDeque<Act>,
    vanish: bool,
    takes_only_trusted: bool,
    linked: Vec<String>,
    /// Of how many plugins the permits are still to be kept.
    keeps_permits: usize,
    drops_panic: bool,
    kept: Vec<Permit>,
    closed_on: Vec<ThreadId>,
    /// The names of the threads on which plugins were compiled and closed.
    worked_on: Vec<String>,
    open_gates: HashSet<String>,
}

#[derive(Default)]
struct Shared {
    counts: Counts,
    script: Mutex<Script>,
    released: AtomicBool,
    release: Notify,
    interrupts_initialisers: AtomicBool,
    interrupts_compiles: AtomicBool,
    shares_code: AtomicBool,
    /// Bytes of each plugin's code, and of each instance.
    weighs: Mutex<(u64, u64)>,
}

/// The spy. Clones watch the same engine.
#[derive(Clone, Default)]
pub(crate) struct Spy {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Spy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Spy")
    }
}

impl Spy {
    /// A pool on this spy, whose background work is on the test's runtime if it has one.
    pub(crate) fn pool(&self, set: impl FnOnce(PoolBuilder) -> PoolBuilder) -> EvaluatorPool {
        let builder = self.builder(set);
        let builder = match Handle::try_current() {
            // Whose time the test may have paused.
            Ok(runtime) => builder.background(runtime),
            Err(_) => builder,
        };
        builder.build().expect("a test's settings are in range")
    }

    /// One whose background work is not on the test's own runtime.
    pub(crate) fn builder(&self, set: impl FnOnce(PoolBuilder) -> PoolBuilder) -> PoolBuilder {
        // Instances stay with their threads from the second call on, so that every test is one of that as well.
        set(EvaluatorPool::builder().park_after(0)).engine(self.clone())
    }

    /// A spec that any pool takes: a real module, so that what looks at bytes has some to look at.
    pub(crate) fn spec() -> Spec {
        Spec::new(Source::bytes(super::wasm(r#"(module (func (export "run")))"#)))
    }

    /// What the next compiles do, in order; those after them succeed.
    pub(crate) fn on_compile(&self, acts: impl IntoIterator<Item = Act>) {
        self.shared.script.lock().unwrap().compile.extend(acts);
    }

    /// What the next instantiations do.
    pub(crate) fn on_instantiate(&self, acts: impl IntoIterator<Item = Act>) {
        self.shared.script.lock().unwrap().instantiate.extend(acts);
    }

    /// What the next calls do.
    pub(crate) fn on_call(&self, acts: impl IntoIterator<Item = Act>) {
        self.shared.script.lock().unwrap().call.extend(acts);
    }

    /// From now on, the engine says that an endless initialiser holds up nobody else.
    pub(crate) fn interrupts_initialisers(&self) {
        self.shared.interrupts_initialisers.store(true, Ordering::SeqCst);
    }

    /// One that compiles as `direct` does in its workers: a compile can be ended, and the same bytes are compiled once.
    pub(crate) fn with_workers() -> Self {
        let spy = Self::default();
        spy.interrupts_compiles();
        spy.shares_code();
        spy
    }

    /// From now on, a compile ends when its future is dropped, and at `build_timeout`.
    pub(crate) fn interrupts_compiles(&self) {
        self.shared.interrupts_compiles.store(true, Ordering::SeqCst);
    }

    pub(crate) fn ends_compiles(&self) -> bool {
        self.is_set(|shared| &shared.interrupts_compiles)
    }

    /// From now on, plugins with the same bytes share their code.
    pub(crate) fn shares_code(&self) {
        self.shared.shares_code.store(true, Ordering::SeqCst);
    }

    /// From now on, the code of each plugin takes so many bytes, and each instance.
    pub(crate) fn weighs(&self, code: u64, instance: u64) {
        *self.shared.weighs.lock().unwrap() = (code, instance);
    }

    /// From now on, the engine refuses plugins that are not trusted.
    pub(crate) fn takes_only_trusted(&self) {
        self.shared.script.lock().unwrap().takes_only_trusted = true;
    }

    /// The permits of this many plugins outlive them, as where an engine has more to give back.
    pub(crate) fn keeps_permits(&self, plugins: usize) {
        self.shared.script.lock().unwrap().keeps_permits = plugins;
    }

    /// From now on, the drop of each plugin and instance panics.
    pub(crate) fn drops_panic(&self) {
        self.shared.script.lock().unwrap().drops_panic = true;
    }

    pub(crate) fn let_go_of_permits(&self) {
        let kept = std::mem::take(&mut self.shared.script.lock().unwrap().kept);
        drop(kept);
    }

    /// The threads on which plugins were closed, in order.
    pub(crate) fn closed_on(&self) -> Vec<ThreadId> {
        self.shared.script.lock().unwrap().closed_on.clone()
    }

    /// The names of the threads on which plugins were compiled and closed since the last call.
    pub(crate) fn take_worked_on(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.script.lock().unwrap().worked_on)
    }

    /// The names of the modules that the last plugin was linked with, in the order in which the engine got them.
    pub(crate) fn linked(&self) -> Vec<String> {
        self.shared.script.lock().unwrap().linked.clone()
    }

    /// From now on, compiled plugins lack the entry point that their bytes have.
    pub(crate) fn entry_points_vanish(&self) {
        self.shared.script.lock().unwrap().vanish = true;
    }

    /// Lets everything that is [`Act::Held`], now and later, go on.
    pub(crate) fn release(&self) {
        self.shared.released.store(true, Ordering::SeqCst);
        self.shared.release.notify_waiters();
    }

    /// Lets the call whose input is `hold NAME` go on.
    pub(crate) fn open_gate(&self, name: &str) {
        self.shared.script.lock().unwrap().open_gates.insert(name.to_owned());
        self.shared.release.notify_waiters();
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.shared.counts
    }

    pub(crate) fn compiles(&self) -> usize {
        self.counts().compiles.load(Ordering::SeqCst)
    }

    pub(crate) fn opens(&self) -> usize {
        self.counts().opens.load(Ordering::SeqCst)
    }

    pub(crate) fn closes(&self) -> usize {
        self.counts().closes.load(Ordering::SeqCst)
    }

    /// Those that compile now.
    pub(crate) fn working(&self) -> usize {
        self.counts().working.load(Ordering::SeqCst)
    }

    pub(crate) fn calls_started(&self) -> usize {
        self.counts().calls_started.load(Ordering::SeqCst)
    }

    pub(crate) fn instances_live(&self) -> usize {
        self.counts().instances_live.load(Ordering::SeqCst)
    }

    pub(crate) fn instances_live_max(&self) -> usize {
        self.counts().instances_live_max.load(Ordering::SeqCst)
    }

    pub(crate) fn runtimes_live(&self) -> usize {
        self.counts().runtimes_live.load(Ordering::SeqCst)
    }

    pub(crate) fn runtimes_live_max(&self) -> usize {
        self.counts().runtimes_live_max.load(Ordering::SeqCst)
    }

    /// Fails unless everything that was opened was closed, once, and nothing is left.
    pub(crate) fn assert_nothing_left(&self) {
        assert_eq!(self.opens(), self.closes(), "opens and closes");
        assert_eq!(self.instances_live(), 0, "instances");
        assert_eq!(self.runtimes_live(), 0, "permits of runtimes");
    }

    fn is_set(&self, which: impl Fn(&Shared) -> &AtomicBool) -> bool {
        which(&self.shared).load(Ordering::SeqCst)
    }

    fn works_here(&self) {
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        self.shared.script.lock().unwrap().worked_on.push(name);
    }

    fn panic_in_drop(&self) {
        let panics = self.shared.script.lock().unwrap().drops_panic;
        assert!(!panics, "told to panic in a drop");
    }

    fn next(&self, pick: impl FnOnce(&mut Script) -> &mut VecDeque<Act>) -> Act {
        pick(&mut self.shared.script.lock().unwrap()).pop_front().unwrap_or_default()
    }
}

impl Shared {
    async fn until(&self, condition: impl Fn() -> bool) {
        loop {
            let mut released = pin!(self.release.notified());
            // Before looking, or a release in between would be missed.
            released.as_mut().enable();
            if condition() {
                return;
            }
            released.await;
        }
    }

    async fn act(&self, act: Act) -> Result<(), Error> {
        match act {
            Act::Succeed => Ok(()),
            Act::Slow(time) => {
                tokio::time::sleep(time).await;
                Ok(())
            }
            Act::Fail => Err(Error::InvalidPlugin {
                reason: "told to fail".into(),
                cause: None,
                last_words: LastWords::default(),
            }),
            Act::Starve => Err(Error::OutOfFuel { limit: 1, initialising: true, last_words: LastWords::default() }),
            Act::FailOnce => Err(Error::Internal { reason: "told to fail", cause: None }),
            Act::Panic => panic!("told to panic"),
            Act::Never => std::future::pending().await,
            Act::Held => {
                self.until(|| self.released.load(Ordering::SeqCst)).await;
                Ok(())
            }
        }
    }
}

/// Counts one live thing for as long as it lives.
struct Live(Arc<Shared>, fn(&Counts) -> &AtomicUsize);

impl Live {
    fn new(shared: &Arc<Shared>, which: fn(&Counts) -> &AtomicUsize) -> Self {
        which(&shared.counts).fetch_add(1, Ordering::SeqCst);
        Self(shared.clone(), which)
    }

    fn working(shared: &Arc<Shared>) -> Self {
        let live = Self::new(shared, |counts| &counts.working);
        shared.counts.working_max.fetch_max(shared.counts.working.load(Ordering::SeqCst), Ordering::SeqCst);
        live
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        (self.1)(&self.0.counts).fetch_sub(1, Ordering::SeqCst);
    }
}

impl Engine for Spy {
    fn check(&self, trusted: bool, _allowed_hosts: &[String]) -> Result<(), Error> {
        if self.shared.script.lock().unwrap().takes_only_trusted && !trusted {
            return Err(Error::InvalidRequest { reason: "told to refuse".into() });
        }
        Ok(())
    }

    /// Those that it holds now.
    fn slots(&self) -> Option<Slots> {
        let live = SlotCounts { instances: self.instances_live() as u64, ..SlotCounts::default() };
        Some(Slots { live, ..Slots::default() })
    }

    fn compile(&self, request: CompileRequest) -> BoxFuture<'_, Result<Box<dyn CompiledPlugin>, Error>> {
        let spy = self.clone();
        let shared = spy.shared.clone();
        shared.script.lock().unwrap().linked = request.linked.iter().map(|linked| linked.name.clone()).collect();
        shared.counts.compiles.fetch_add(1, Ordering::SeqCst);
        let live = Live::new(&shared, |counts| &counts.runtimes_live);
        shared.counts.runtimes_live_max.fetch_max(shared.counts.runtimes_live.load(Ordering::SeqCst), Ordering::SeqCst);
        Box::pin(async move {
            let held = (live, request.permit);
            spy.works_here();
            let act = spy.next(|script| &mut script.compile);
            let working = Live::working(&shared);
            if spy.is_set(|shared| &shared.interrupts_compiles) {
                let after = request.limits.build_timeout;
                let in_time = tokio::time::timeout(after, shared.act(act)).await;
                in_time.unwrap_or(Err(Error::BuildTimeout { after, cause: None, last_words: LastWords::default() }))?;
            } else {
                shared.act(act).await?;
            }
            drop(working);
            let (memory, (code, instance)) = (request.memory, *shared.weighs.lock().unwrap());
            if code > 0 {
                // The charge of the first instance is its own.
                let (code, ..) = memory.reserve(code, 0, instance).await?;
                memory.runs(Arc::new(code));
            }
            shared.counts.opens.fetch_add(1, Ordering::SeqCst);
            Ok(Box::new(SpyPlugin { spy, memory, held }) as Box<dyn CompiledPlugin>)
        })
    }

    fn interrupts_initialisers(&self) -> bool {
        self.is_set(|shared| &shared.interrupts_initialisers)
    }

    fn interrupts_compiles(&self) -> bool {
        self.ends_compiles()
    }

    fn shares_code(&self) -> bool {
        self.is_set(|shared| &shared.shares_code)
    }
}
