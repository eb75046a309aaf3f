//! Dashboards and alerts look only at what exists. Every query is parsed and each of its names, labels and label values
//! held against what a real pool renders, which in turn is held against the catalogue.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::LazyLock,
};

use evalpool::{
    EvaluatorPool, Source, Spec,
    metrics::{AGE_BUCKETS, BUCKETS, CATALOGUE, MetricType},
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use promql_parser::{
    label::MatchOp,
    parser::{self, BinaryExpr, Call, Expr, LabelModifier, VectorMatchCardinality, VectorSelector, token::T_DIV},
};
use serde_json::{Value, json};

/// What `metrics-process` exports.
const PROCESS: &[&str] = &[
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_threads",
    "process_virtual_memory_bytes",
    "process_virtual_memory_max_bytes",
];

/// What Prometheus itself records of each target.
const SCRAPE: &str = "up";

/// The job that config/prometheus.yml scrapes, and that alerts may therefore name.
const JOB: &str = "evalpool";

/// The labels that Prometheus puts on every series.
const TARGET: [&str; 2] = ["instance", "job"];

/// The values of the second label of `evalpool_closes_total`, which the catalogue has no room for.
const HOW: [&str; 2] = ["drained", "forced"];

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn owned(labels: &[&str]) -> Labels {
    labels.iter().map(|label| (*label).to_owned()).collect()
}

// ---- What exists -----------------------------------------------------------------------------------------------------

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

/// `/metrics` of a pool that has built, evaluated and closed a real plugin.
static RENDERED: LazyLock<String> = LazyLock::new(|| {
    let age = Matcher::Full("evalpool_eviction_age_seconds".to_owned());
    let recorder = PrometheusBuilder::new()
        .set_buckets(BUCKETS)
        .and_then(|builder| builder.set_buckets_for_metric(age, AGE_BUCKETS))
        .unwrap()
        .build_recorder();
    let pool = metrics::with_local_recorder(&recorder, || EvaluatorPool::builder().capacity(2).build()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let wasm = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/service/greet/greet.wasm");
        let greet = pool.evaluator("greet", Spec::new(Source::file(wasm))).unwrap();
        let response = greet.evaluate(json!({"name": "Ada"})).await.unwrap();
        assert_eq!(response.json().unwrap(), json!({"greeting": "Hello, Ada!"}));
        pool.close().await;
    });
    recorder.handle().render()
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
    let rendered = series(&RENDERED);
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
        assert!(RENDERED.lines().any(|rendered| rendered == line), "no {line:?} in\n{}", *RENDERED);
    }
}

#[test]
#[cfg(all(target_os = "linux", feature = "service"))]
fn the_process_metrics_are_those_of_metrics_process() {
    let recorder = PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&recorder, || metrics_process::Collector::default().collect());
    let exported: Vec<_> = series(&recorder.handle().render()).into_iter().map(|series| series.name).collect();
    assert_eq!(exported, PROCESS);
}

// ---- What a query may say --------------------------------------------------------------------------------------------

type Labels = BTreeSet<String>;

/// What is known of a query that is right.
#[derive(Debug)]
struct Checked {
    /// The metrics of the catalogue that it looks at.
    metrics: BTreeSet<String>,
    /// The labels that its result has.
    labels: Labels,
}

/// Holds a query against `exposed`, every series that there can be.
fn check(exposed: &BTreeSet<Series>, query: &str) -> Result<Checked, String> {
    let expr = parser::parse(query)?;
    let mut checker = Checker { exposed, metrics: BTreeSet::new() };
    let labels = checker.labels(&expr)?;
    Ok(Checked { metrics: checker.metrics, labels })
}

/// Every series that there can be: the pool's, the process's, and Prometheus's own.
fn exposed() -> BTreeSet<Series> {
    let own = PROCESS.iter().chain([&SCRAPE]).map(|name| Series::new(*name, &[]));
    series(&RENDERED).into_iter().chain(own).collect()
}

struct Checker<'a> {
    exposed: &'a BTreeSet<Series>,
    metrics: BTreeSet<String>,
}

impl Checker<'_> {
    /// The labels that an expression's result has, or what is wrong with it.
    fn labels(&mut self, expr: &Expr) -> Result<Labels, String> {
        match expr {
            Expr::NumberLiteral(_) => Ok(Labels::new()),
            Expr::Paren(paren) => self.labels(&paren.expr),
            Expr::Unary(unary) => self.labels(&unary.expr),
            Expr::VectorSelector(selector) => {
                let (name, labels) = self.select(selector)?;
                if is_counter(name) {
                    return Err(format!("{name} only ever goes up: look at it through rate or increase"));
                }
                Ok(labels)
            }
            Expr::Aggregate(aggregate) => {
                let inner = self.labels(&aggregate.expr)?;
                match &aggregate.modifier {
                    None => Ok(Labels::new()),
                    Some(LabelModifier::Include(by)) => among(&by.labels, &inner),
                    Some(LabelModifier::Exclude(without)) => Ok(&inner - &among(&without.labels, &inner)?),
                }
            }
            Expr::Binary(binary) => self.binary(binary),
            Expr::Call(call) => self.call(call),
            other => Err(format!("{other} is beyond this test: teach it")),
        }
    }

    /// The metric and the labels of what a selector selects, which must be something.
    fn select<'b>(&mut self, selector: &'b VectorSelector) -> Result<(&'b str, Labels), String> {
        let name = selector.name.as_deref().ok_or("a selector without a metric name")?;
        let all: Vec<_> = self.exposed.iter().filter(|series| series.name == name).collect();
        let one = all.first().ok_or_else(|| format!("there is no metric {name}"))?;
        let labels: Labels = one.labels.keys().cloned().collect();
        if !selector.matchers.or_matchers.is_empty() {
            return Err("`or` between matchers is beyond this test: teach it".to_owned());
        }
        let mut selected = all.clone();
        for matcher in &selector.matchers.matchers {
            if TARGET.contains(&matcher.name.as_str()) {
                if matcher.name == "job" && matcher.op == MatchOp::Equal && matcher.value != JOB {
                    return Err(format!("nothing scrapes a job {:?}", matcher.value));
                }
                continue;
            }
            among(std::slice::from_ref(&matcher.name), &labels).map_err(|error| format!("{name}: {error}"))?;
            let values: Labels = all.iter().map(|series| series.labels[&matcher.name].clone()).collect();
            let said: Vec<_> = match matcher.op {
                MatchOp::Equal | MatchOp::NotEqual => vec![matcher.value.clone()],
                // Plain alternatives, so that each can be looked up.
                MatchOp::Re(_) | MatchOp::NotRe(_) => matcher.value.split('|').map(str::to_owned).collect(),
            };
            among(&said, &values).map_err(|error| format!("{name}, {}: {error}", matcher.name))?;
            selected.retain(|series| matcher.is_match(&series.labels[&matcher.name]));
        }
        if selected.is_empty() {
            return Err(format!("{selector} selects nothing"));
        }
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
        self.metrics.insert(base.to_owned());
        Ok((name, &labels | &owned(&TARGET)))
    }

    fn call(&mut self, call: &Call) -> Result<Labels, String> {
        let function = call.func.name;
        let args: Vec<_> = call.args.args.iter().map(|arg| &**arg).collect();
        match (function, args.as_slice()) {
            ("rate" | "increase", [Expr::MatrixSelector(matrix)]) => {
                let (name, labels) = self.select(&matrix.vs)?;
                if !is_counter(name) {
                    return Err(format!("{name} goes up and down: it has no {function}"));
                }
                Ok(labels)
            }
            ("histogram_quantile", [_, buckets]) => {
                let mut labels = self.labels(buckets)?;
                if !labels.remove("le") {
                    return Err("histogram_quantile needs the label le".to_owned());
                }
                Ok(labels)
            }
            ("clamp_min" | "clamp_max", [vector, _]) => self.labels(vector),
            ("vector" | "time", _) => Ok(Labels::new()),
            _ => Err(format!("{function} is beyond this test: teach it")),
        }
    }

    fn binary(&mut self, binary: &BinaryExpr) -> Result<Labels, String> {
        if binary.op.id() == T_DIV && !cannot_be_zero(&binary.rhs) {
            return Err(format!("{} may be zero: clamp_min it", binary.rhs));
        }
        let (left, right) = (self.labels(&binary.lhs)?, self.labels(&binary.rhs)?);
        if let (Expr::NumberLiteral(_), _) | (_, Expr::NumberLiteral(_)) = (&*binary.lhs, &*binary.rhs) {
            return Ok(&left | &right);
        }
        let modifier = binary.modifier.as_ref();
        let matching = match modifier.and_then(|modifier| modifier.matching.as_ref()) {
            Some(LabelModifier::Include(on)) => {
                among(&on.labels, &left)?;
                among(&on.labels, &right)?
            }
            Some(LabelModifier::Exclude(_)) => return Err("`ignoring` is beyond this test: say `on`".to_owned()),
            None if left == right => left.clone(),
            None => return Err(format!("{left:?} and {right:?} never match in {binary}")),
        };
        match modifier.map(|modifier| &modifier.card) {
            None | Some(VectorMatchCardinality::OneToOne) => Ok(matching),
            Some(VectorMatchCardinality::ManyToMany) => Ok(left),
            Some(_) => Err("group_left and group_right are beyond this test: teach it".to_owned()),
        }
    }
}

/// Counters and the series of histograms only go up.
fn is_counter(name: &str) -> bool {
    ["_total", "_bucket", "_sum", "_count"].iter().any(|suffix| name.ends_with(suffix))
}

fn cannot_be_zero(divisor: &Expr) -> bool {
    match divisor {
        Expr::NumberLiteral(number) => number.val != 0.0,
        Expr::Paren(paren) => cannot_be_zero(&paren.expr),
        Expr::Call(call) if call.func.name == "clamp_min" => {
            call.args.args.get(1).is_some_and(|least| cannot_be_zero(least))
        }
        _ => false,
    }
}

/// `words`, each of which must be among `known`.
fn among(words: &[String], known: &Labels) -> Result<Labels, String> {
    match words.iter().find(|word| !known.contains(*word)) {
        Some(word) => Err(format!("no {word:?} among {known:?}")),
        None => Ok(words.iter().cloned().collect()),
    }
}

#[test]
fn a_query_that_is_wrong_is_found_out() {
    let exposed = exposed();
    for (query, reason) in [
        ("evalpool_runtime_live", "there is no metric evalpool_runtime_live"),
        ("process_cpu_seconds", "there is no metric"),
        ("rate(evalpool_build_seconds[5m])", "there is no metric evalpool_build_seconds"),
        ("evalpool_runtimes_live{status=\"live\"}", "no \"status\" among"),
        ("evalpool_runtimes_live{state=\"dead\"}", "no \"dead\" among"),
        ("rate(evalpool_evaluations_total{outcome=~\"ok|okay\"}[5m])", "no \"okay\" among"),
        ("evalpool_runtimes_live{state=\"live\", state!=\"live\"}", "selects nothing"),
        ("evalpool_runtimes_capacity{job=\"evalpol\"}", "nothing scrapes"),
        ("sum by (stat) (evalpool_runtimes_live)", "no \"stat\" among"),
        ("sum without (stat) (evalpool_runtimes_live)", "no \"stat\" among"),
        ("sum by (state) (sum by (job) (evalpool_runtimes_live))", "no \"state\" among"),
        ("evalpool_evaluations_total", "only ever goes up"),
        ("rate(evalpool_runtimes_live[5m])", "goes up and down"),
        ("histogram_quantile(0.9, sum by (phase) (rate(evalpool_build_seconds_bucket[5m])))", "needs the label le"),
        ("sum(evalpool_runtimes_live) / sum(evalpool_runtimes_capacity)", "may be zero"),
        ("evalpool_runtimes_live > evalpool_runtimes_capacity", "never match"),
        ("sum(evalpool_runtimes_live) > on (state) evalpool_runtimes_capacity", "no \"state\" among"),
        ("evalpool_runtimes_live{", ""),
    ] {
        let error = check(&exposed, query).expect_err(query);
        assert!(error.contains(reason), "{query} gave {error:?}");
    }
    let right = "sum by (how, job) (rate(evalpool_closes_total{reason=\"idle\", how!=\"forced\"}[5m]))";
    assert_eq!(check(&exposed, right).unwrap().labels, owned(&["how", "job"]));
}

// ---- The dashboards --------------------------------------------------------------------------------------------------

/// Every dashboard of the folder, by file name.
fn dashboards() -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboards");
    let mut dashboards: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| Path::new(name).extension().is_some_and(|extension| extension == "json"))
        .map(|name| {
            let text = read(&format!("dashboards/{name}"));
            let dashboard = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
            (name, dashboard)
        })
        .collect();
    dashboards.sort_by(|(a, _), (b, _)| a.cmp(b));
    assert!(!dashboards.is_empty());
    dashboards
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// All panels and rows of a dashboard, those inside folded rows too.
fn panels(dashboard: &Value) -> Vec<&Value> {
    list(dashboard, "panels").iter().flat_map(|panel| std::iter::once(panel).chain(list(panel, "panels"))).collect()
}

fn drawn(dashboard: &Value) -> impl Iterator<Item = &Value> {
    panels(dashboard).into_iter().filter(|panel| text(panel, "type") != "row")
}

/// A query as Grafana would send it, with everything chosen in every variable.
fn expand(dashboard: &Value, query: &str) -> Result<String, String> {
    let variables = list(&dashboard["templating"], "list").iter().map(|variable| text(variable, "name"));
    let replaced = variables.fold(
        query.replace("$__rate_interval", "1m").replace("$__interval", "15s").replace("$__range", "1h"),
        |query, name| query.replace(&format!("${{{name}}}"), ".+").replace(&format!("${name}"), ".+"),
    );
    if replaced.contains('$') {
        return Err(format!("an unknown variable in {replaced}"));
    }
    Ok(replaced)
}

/// The words in double braces of a legend.
fn legend_labels(legend: &str) -> Labels {
    legend.split("{{").skip(1).filter_map(|rest| Some(rest.split_once("}}")?.0.trim().to_owned())).collect()
}

#[test]
fn every_panel_asks_for_what_exists_and_names_each_of_its_lines() {
    let exposed = exposed();
    for (file, dashboard) in dashboards() {
        for panel in drawn(&dashboard) {
            let title = text(panel, "title");
            assert!(!list(panel, "targets").is_empty(), "{file}, {title:?} asks for nothing");
            for target in list(panel, "targets") {
                let checked = expand(&dashboard, text(target, "expr")).and_then(|query| check(&exposed, &query));
                let checked = checked.unwrap_or_else(|error| panic!("{file}, {title:?}: {error}"));
                // Else lines that differ in a label would share a name. The job is known from the variable above.
                let named = legend_labels(text(target, "legendFormat"));
                let lines = &checked.labels - &owned(&["job"]);
                assert_eq!(named, lines, "{file}, {title:?}: labels of the legend, and of the result");
                assert!(!text(target, "legendFormat").is_empty(), "{file}, {title:?} has a line without a name");
            }
        }
    }
}

#[test]
fn every_variable_asks_for_what_exists() {
    let exposed = exposed();
    for (file, dashboard) in dashboards() {
        let variables = list(&dashboard["templating"], "list");
        assert!(
            variables.iter().any(|variable| text(variable, "type") == "datasource"),
            "{file} names its data source"
        );
        for variable in variables.iter().filter(|variable| text(variable, "type") == "query") {
            let query = text(&variable["query"], "query");
            let inner = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
            let (selector, label) = inner.and_then(|inner| inner.rsplit_once(',')).unwrap_or_else(|| panic!("{query}"));
            let checked = expand(&dashboard, selector).and_then(|selector| check(&exposed, &selector));
            let checked = checked.unwrap_or_else(|error| panic!("{file}, {query}: {error}"));
            assert!(checked.labels.contains(label.trim()), "{file}, {query}: no such label");
        }
    }
}

#[test]
fn every_metric_of_the_catalogue_is_shown() {
    let exposed = exposed();
    let mut shown = BTreeSet::new();
    for (_, dashboard) in dashboards() {
        for target in drawn(&dashboard).flat_map(|panel| list(panel, "targets")) {
            let checked = expand(&dashboard, text(target, "expr")).and_then(|query| check(&exposed, &query));
            shown.extend(checked.unwrap().metrics);
        }
    }
    let hidden: Vec<_> = CATALOGUE.iter().map(|metric| metric.name).filter(|name| !shown.contains(*name)).collect();
    assert!(hidden.is_empty(), "no panel shows {hidden:?}");
}

#[test]
fn every_panel_is_described_and_has_a_unit_and_thresholds() {
    for (file, dashboard) in dashboards() {
        for panel in drawn(&dashboard) {
            let title = text(panel, "title");
            let defaults = &panel["fieldConfig"]["defaults"];
            assert!(!title.is_empty(), "{file} has a panel without a title");
            assert!(text(panel, "description").len() > 20, "{file}, {title:?} does not say what it shows");
            assert!(!text(defaults, "unit").is_empty(), "{file}, {title:?} has no unit");
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{file}, {title:?}");
            let steps = list(&defaults["thresholds"], "steps");
            let values: Vec<_> = steps.iter().map(|step| step["value"].as_f64()).collect();
            assert!(values.first() == Some(&None) && values.is_sorted(), "{file}, {title:?}: thresholds {values:?}");
        }
    }
}

#[test]
fn panels_are_told_apart_and_do_not_overlap() {
    for (file, dashboard) in dashboards() {
        let panels = panels(&dashboard);
        let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
        assert_eq!(ids.len(), panels.len(), "{file}: two panels have one id");
        let mut cells = BTreeMap::new();
        for panel in panels {
            let title = text(panel, "title");
            let [x, y, w, h] = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap());
            assert!(w > 0 && h > 0 && x + w <= 24, "{file}, {title:?} is not on the grid");
            for cell in (x..x + w).flat_map(|column| (y..y + h).map(move |row| (column, row))) {
                let other = cells.insert(cell, title);
                assert_eq!(other, None, "{file}: {title:?} lies over another panel");
            }
        }
    }
}

// ---- The alerts ------------------------------------------------------------------------------------------------------

/// The values of `expr:` in a YAML text: on the line itself, or a block (`|`) below it.
fn expressions(yaml: &str) -> Vec<String> {
    let depth = |line: &str| line.len() - line.trim_start().len();
    let lines: Vec<_> = yaml.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        match line.trim_start().strip_prefix("expr:").map(str::trim) {
            None => {}
            Some("|") => {
                let block = lines[at + 1..].iter().take_while(|below| below.is_empty() || depth(below) > depth(line));
                found.push(block.map(|line| line.trim()).collect::<Vec<_>>().join("\n"));
            }
            Some(expression) => found.push(expression.to_owned()),
        }
    }
    found
}

#[test]
fn expressions_are_found_on_a_line_and_in_a_block() {
    let yaml = "rules:\n  - alert: A\n    expr: up == 0\n  - alert: B\n    expr: |\n      a\n      > 1\n    for: 5m\n";
    assert_eq!(expressions(yaml), ["up == 0", "a\n> 1"]);
}

#[test]
fn every_alert_asks_for_what_exists() {
    let (yaml, exposed) = (read("config/alerts.yml"), exposed());
    let expressions = expressions(&yaml);
    assert_eq!(expressions.len(), yaml.matches("- alert:").count());
    for expression in &expressions {
        let checked = check(&exposed, expression).unwrap_or_else(|error| panic!("{expression}: {error}"));
        // Else the text of the alert could not name the instance.
        assert_eq!(checked.labels, owned(&TARGET), "labels of {expression}");
    }
}

#[test]
fn every_alert_says_what_is_wrong_and_is_tested() {
    let (yaml, tested) = (read("config/alerts.yml"), read("config/alerts_test.yml"));
    for rule in yaml.split("- alert:").skip(1) {
        let name = rule.lines().next().unwrap_or_default().trim();
        for key in ["severity: ", "summary: ", "description: "] {
            assert!(rule.contains(key), "{name} has no {key:?}");
        }
        assert!(tested.contains(&format!("alertname=\"{name}\"")), "config/alerts_test.yml does not raise {name}");
    }
}

#[test]
fn prometheus_scrapes_the_job_and_reads_the_alerts() {
    let yaml = read("config/prometheus.yml");
    for line in [format!("job_name: {JOB}"), "- alerts.yml".to_owned(), "metrics_path: /metrics".to_owned()] {
        assert!(
            yaml.lines().any(|found| found.trim().trim_start_matches("- ") == line.trim_start_matches("- ")),
            "{line}"
        );
    }
}
