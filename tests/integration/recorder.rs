//! A recorder is foreign code, and no lock is held while it is called: it may call the pool, and wait for who does.

use std::{
    cell::Cell,
    collections::BTreeMap,
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};

use evalpool::{EvaluatorPool, Isolation};
use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};

use crate::support::spy::Spy;

/// Longer than anything here takes.
const HANGS: Duration = Duration::from_mins(1);

/// Keeps what it is told, and calls `hook` whenever it is, with the name of the method.
#[derive(Clone, Default)]
struct Nosy {
    shown: Arc<Mutex<BTreeMap<String, f64>>>,
    hook: Arc<Mutex<Option<Hook>>>,
}

type Hook = Arc<dyn Fn(&'static str) + Send + Sync>;

thread_local! {
    /// What it calls tells it things, too.
    static CALLS: Cell<bool> = const { Cell::new(false) };
}

struct Series {
    key: String,
    recorder: Nosy,
}

impl Series {
    fn told(&self, method: &'static str, change: impl FnOnce(&mut f64)) {
        let hook = self.recorder.hook.lock().unwrap().clone();
        if let Some(hook) = hook
            && !CALLS.replace(true)
        {
            hook(method);
            CALLS.set(false);
        }
        change(self.recorder.shown.lock().unwrap().entry(self.key.clone()).or_default());
    }
}

impl CounterFn for Series {
    fn increment(&self, more: u64) {
        self.told("increment", |value| *value += more as f64);
    }

    fn absolute(&self, _: u64) {}
}

impl GaugeFn for Series {
    fn increment(&self, _: f64) {}

    fn decrement(&self, _: f64) {}

    fn set(&self, to: f64) {
        self.told("set", |value| *value = to);
    }
}

impl HistogramFn for Series {
    fn record(&self, _: f64) {
        self.told("record", |count| *count += 1.0);
    }
}

impl Recorder for Nosy {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.series(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.series(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.series(key))
    }
}

impl Nosy {
    fn series(&self, key: &Key) -> Arc<Series> {
        let labels: Vec<_> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        Arc::new(Series { key: format!("{} {}", key.name(), labels.join(",")), recorder: self.clone() })
    }

    /// What the series add up to whose name and labels have this text in them.
    fn sum(&self, text: &str) -> String {
        let sum: f64 =
            self.shown.lock().unwrap().iter().filter(|(key, _)| key.contains(text)).map(|(_, value)| value).sum();
        sum.to_string()
    }

    /// A pool whose instances stay with their threads soon.
    fn pool(&self, spy: &Spy) -> EvaluatorPool {
        metrics::with_local_recorder(self, || {
            spy.pool(|builder| builder.isolation(Isolation::Reuse).capacity(1).park_after(2))
        })
    }
}

/// Runs to its end on a thread of its own, or fails: what hangs there cannot be stopped.
fn unhung(test: impl FnOnce() + Send + 'static) {
    let (ended, end) = mpsc::channel();
    thread::spawn(move || {
        test();
        ended.send(()).unwrap();
    });
    end.recv_timeout(HANGS).expect("it ends");
}

#[test]
fn a_recorder_may_call_the_pool_that_tells_it() {
    unhung(|| {
        let (spy, recorder) = (Spy::default(), Nosy::default());
        let pool = recorder.pool(&spy);
        let (called, calls) = mpsc::channel();
        let inner = pool.clone();
        *recorder.hook.lock().unwrap() = Some(Arc::new(move |method| {
            let _ = inner.slots();
            let _ = (inner.snapshot(), inner.get("one"), inner.tenants(None, 10));
            called.send(method).unwrap();
        }));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            for name in ["one", "two"] {
                let evaluator = pool.register(name, Spy::spec()).unwrap();
                for _ in 0..20 {
                    evaluator.evaluate("").await.unwrap();
                }
                assert_eq!(recorder.sum("evalpool_evaluators_registered"), "1");
                let _ = pool.slots();
                drop(pool.take(name));
            }
            pool.close().await;
        });
        *recorder.hook.lock().unwrap() = None;
        assert_eq!(recorder.sum("evalpool_evaluations_total outcome=ok"), "40");
        assert_eq!(recorder.sum("evalpool_evaluation_seconds phase=exec"), "40");
        for gauge in ["evaluators_registered", "runtimes_live", "instances_live", "waiting"] {
            assert_eq!(recorder.sum(&format!("evalpool_{gauge}")), "0", "{gauge}");
        }
        let mut methods: Vec<_> = calls.try_iter().collect();
        methods.sort_unstable();
        methods.dedup();
        assert_eq!(methods, ["increment", "record", "set"]);
    });
}

#[test]
fn a_recorder_may_wait_for_a_thread_that_calls_the_pool() {
    unhung(|| {
        let (spy, recorder) = (Spy::default(), Nosy::default());
        let pool = recorder.pool(&spy);
        let evaluator = pool.register("one", Spy::spec()).unwrap();
        let (its_own, (came, comes)) = (Arc::new(Mutex::new(())), mpsc::channel());
        let mutex = its_own.clone();
        let held = its_own.lock().unwrap();
        *recorder.hook.lock().unwrap() = Some(Arc::new(move |_| {
            // Those of the test, which holds it, are told at once.
            if thread::current().name() == Some("caller") {
                let _ = came.send(());
                drop(mutex.lock().unwrap());
            }
        }));
        let evaluate = move || evaluator.evaluate_blocking("").map(drop);
        let caller = thread::Builder::new().name("caller".into()).spawn(evaluate).unwrap();
        comes.recv().unwrap();
        let _ = pool.slots();
        drop(pool.take("one"));
        drop(held);
        caller.join().unwrap().unwrap();
        assert_eq!(recorder.sum("evalpool_evaluators_registered"), "0");
        *recorder.hook.lock().unwrap() = None;
    });
}
