//! Dashboards and alerts ask only for what exists. The tests read every query and hold each of its names, labels and
//! label values against what a real pool renders, and that against the catalogue.

mod alerts;
mod check;
mod generate;
mod live;
mod panels;
mod promtool;
mod query;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::LazyLock,
};

use evalpool::{
    PoolBuilder, Settings, Source, Spec,
    metrics::{AGE_BUCKETS, BUCKETS, CATALOGUE, MetricType},
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use serde_json::{Value, json};

/// What the server tells of its own process.
pub(crate) const PROCESS: &[&str] = &[
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_threads",
    "process_virtual_memory_bytes",
    "process_virtual_memory_max_bytes",
];

/// What the server tells of its clients.
pub(crate) const HTTP: &[&str] = &["evalpool_http_body_bytes", "evalpool_http_connections", REQUESTS];

const REQUESTS: &str = "evalpool_http_requests_total";

/// How they end, by the label `status`.
pub(crate) const HTTP_STATUS: [&str; 5] = ["2xx", "3xx", "4xx", "5xx", "left"];

/// What Prometheus itself records of each target.
const SCRAPE: &str = "up";

/// The job that config/prometheus.yml scrapes, and that alerts may therefore name.
const JOB: &str = "evalpool";

/// The labels that Prometheus puts on every series.
const TARGET: [&str; 2] = ["instance", "job"];

/// The values of the second label of `evalpool_closes_total`, which the catalogue has no room for.
const HOW: [&str; 2] = ["drained", "forced"];

type Labels = BTreeSet<String>;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn owned(labels: &[&str]) -> Labels {
    labels.iter().map(|label| (*label).to_owned()).collect()
}

/// One series, as `/metrics` shows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Series {
    name: String,
    labels: BTreeMap<String, String>,
}

impl Series {
    fn new(name: impl Into<String>, labels: &[(&str, &str)]) -> Self {
        let labels = labels.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned())).collect();
        Self { name: name.into(), labels }
    }
}

/// `/metrics` of a pool that has built, evaluated and closed a real plugin: the catalogue, and the series by evaluator and
/// tenant.
static RENDERED: LazyLock<[String; 2]> = LazyLock::new(|| {
    let age = Matcher::Full("evalpool_eviction_age_seconds".to_owned());
    let recorder = PrometheusBuilder::new()
        .set_buckets(BUCKETS)
        .and_then(|builder| builder.set_buckets_for_metric(age, AGE_BUCKETS))
        .unwrap()
        .build_recorder();
    let mut settings = Settings::default();
    (settings.metrics.per_evaluator, settings.metrics.per_tenant) = (1, 1);
    let builder = PoolBuilder::from(settings).capacity(2);
    let pool = metrics::with_local_recorder(&recorder, || builder.build()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let by_name = runtime.block_on(async {
        let wasm = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/service/greet/greet.wasm");
        let greet = pool.evaluator("greet", Spec::new(Source::file(wasm))).unwrap();
        let response = greet.evaluate(json!({"name": "Ada"})).await.unwrap();
        assert_eq!(response.json::<Value>().unwrap(), json!({"greeting": "Hello, Ada!"}));
        pool.close().await;
        pool.usage_series().to_string()
    });
    [recorder.handle().render(), by_name]
});

/// The series of a text in Prometheus's format.
fn series(text: &str) -> BTreeSet<Series> {
    text.lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let (id, _value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value in {line:?}"));
            let (name, labels) = id.split_once('{').unwrap_or((id, "}"));
            // No label value of ours holds a comma or a quote.
            let labels: Vec<_> = labels
                .trim_end_matches('}')
                .split(',')
                .filter(|label| !label.is_empty())
                .map(|label| label.split_once('=').unwrap_or_else(|| panic!("no label in {line:?}")))
                .map(|(label, value)| (label, value.trim_matches('"')))
                .collect();
            Series::new(name, &labels)
        })
        .collect()
}

/// The series that the catalogue promises.
fn promised() -> BTreeSet<Series> {
    let mut promised = BTreeSet::new();
    for metric in CATALOGUE {
        let (label, values) = metric.label.unwrap_or(("", &[""]));
        for value in values {
            let labels: Vec<_> = [(label, *value)].into_iter().filter(|(label, _)| !label.is_empty()).collect();
            match metric.kind {
                MetricType::Histogram => {
                    let own = if metric.name == "evalpool_eviction_age_seconds" { AGE_BUCKETS } else { BUCKETS };
                    let bounds = own.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
                    for bound in bounds {
                        let labels = [&labels[..], &[("le", &bound)]].concat();
                        promised.insert(Series::new(format!("{}_bucket", metric.name), &labels));
                    }
                    for suffix in ["_sum", "_count"] {
                        promised.insert(Series::new(format!("{}{suffix}", metric.name), &labels));
                    }
                }
                _ if metric.name == "evalpool_closes_total" => {
                    for how in HOW {
                        promised.insert(Series::new(metric.name, &[&labels[..], &[("how", how)]].concat()));
                    }
                }
                _ => drop(promised.insert(Series::new(metric.name, &labels))),
            }
        }
    }
    promised
}

#[test]
fn a_pool_renders_exactly_the_series_of_the_catalogue() {
    let rendered = series(&RENDERED[0]);
    let promised = promised();
    let missing: Vec<_> = promised.difference(&rendered).collect();
    let surplus: Vec<_> = rendered.difference(&promised).collect();
    assert!(missing.is_empty() && surplus.is_empty(), "missing: {missing:#?}\nnot in the catalogue: {surplus:#?}");
}

#[test]
fn what_happened_is_what_is_rendered() {
    for line in [
        "evalpool_evaluations_total{outcome=\"ok\"} 1",
        "evalpool_builds_total{outcome=\"ok\"} 1",
        "evalpool_closes_total{reason=\"shutdown\",how=\"drained\"} 1",
        "evalpool_evaluation_seconds_count{phase=\"exec\"} 1",
        "evalpool_runtimes_capacity 2",
        "evalpool_runtimes_live{state=\"live\"} 0",
        "evalpool_runtimes_live{state=\"draining\"} 0",
        "evalpool_instances_live{state=\"idle\"} 0",
        "evalpool_instances_live{state=\"busy\"} 0",
    ] {
        assert!(RENDERED[0].lines().any(|rendered| rendered == line), "no {line:?} in\n{}", RENDERED[0]);
    }
}

/// Every series that there can be: the pool's, the server's, the process's, and Prometheus's own.
fn exposed() -> BTreeSet<Series> {
    let own = PROCESS.iter().chain(HTTP).chain([&SCRAPE]).filter(|name| !name.starts_with(REQUESTS));
    let own = own.map(|name| Series::new(*name, &[]));
    let requests = HTTP_STATUS.map(|status| Series::new(REQUESTS, &[("status", status)]));
    RENDERED.iter().flat_map(|text| series(text)).chain(own).chain(requests).collect()
}

/// Each name that begins like one of ours, as the documents write it.
#[test]
fn the_documents_name_metrics_that_exist() {
    let exposed = exposed();
    let names: BTreeSet<_> =
        exposed.iter().map(|series| series.name.as_str()).chain(CATALOGUE.iter().map(|metric| metric.name)).collect();
    for file in ["README.md", "ARCHITECTURE.md", "SECURITY.md", "ERRORS.md", "CHANGELOG.md", "RUNBOOK.md"] {
        let text = read(file);
        for word in text.split(|next: char| !next.is_ascii_lowercase() && next != '_') {
            // Not the start of several names, nor a cfg.
            let is_metric = word.starts_with("evalpool_") && !word.ends_with('_') && word != "evalpool_shuttle";
            assert!(!is_metric || names.contains(word), "{file} names {word}, which there is not");
        }
    }
}
