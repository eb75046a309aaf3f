//! Holds a query against the series that there can be.

use std::collections::BTreeSet;

use super::{
    JOB, Labels, Series, TARGET, exposed, owned,
    query::{Expr, Grouping, Selector, parse},
};

/// What is known of a query that is right.
#[derive(Debug)]
pub(super) struct Checked {
    /// The metrics of the catalogue that it looks at.
    pub(super) metrics: BTreeSet<String>,
    /// The labels that its result has.
    pub(super) labels: Labels,
}

/// Holds a query against `exposed`, every series that there can be.
pub(super) fn check(exposed: &BTreeSet<Series>, query: &str) -> Result<Checked, String> {
    let expr = parse(query)?;
    let mut checker = Checker { exposed, metrics: BTreeSet::new(), differs: false };
    let labels = checker.labels(&expr)?;
    Ok(Checked { metrics: checker.metrics, labels })
}

struct Checker<'a> {
    exposed: &'a BTreeSet<Series>,
    metrics: BTreeSet<String>,
    /// Inside `abs`, counters of one process may be held against each other as they are.
    differs: bool,
}

impl Checker<'_> {
    /// The labels that an expression's result has, or what is wrong with it.
    fn labels(&mut self, expr: &Expr) -> Result<Labels, String> {
        match expr {
            Expr::Number(_) => Ok(Labels::new()),
            Expr::Text(text) => Err(format!("{text:?} is no value")),
            Expr::Selector(selector) => {
                let labels = self.select(selector)?;
                if is_counter(&selector.name) && !self.differs {
                    return Err(format!("{} only ever goes up: look at it through rate or increase", selector.name));
                }
                Ok(labels)
            }
            Expr::Aggregate { grouping, of } => {
                let inner = self.labels(of)?;
                match grouping {
                    Grouping::All => Ok(Labels::new()),
                    Grouping::By(labels) => among(labels, &inner),
                    Grouping::Without(labels) => Ok(&inner - &among(labels, &inner)?),
                }
            }
            Expr::Binary { operator, on, left, right } => self.binary(operator, on.as_deref(), left, right),
            Expr::Call { function, arguments } => self.call(function, arguments),
            Expr::Range(selector) => Err(format!("{} over a range is no value", selector.name)),
        }
    }

    /// The labels of what a selector selects, which must be something.
    fn select(&mut self, selector: &Selector) -> Result<Labels, String> {
        let name = &selector.name;
        let all: Vec<_> = self.exposed.iter().filter(|series| series.name == *name).collect();
        let one = all.first().ok_or_else(|| format!("there is no metric {name}"))?;
        let labels: Labels = one.labels.keys().cloned().collect();
        let mut selected = all.clone();
        for matcher in &selector.matchers {
            let label = &matcher.label;
            if TARGET.contains(&label.as_str()) {
                if label == "job" && matcher.operator == "=" && matcher.value != JOB {
                    return Err(format!("nothing scrapes a job {:?}", matcher.value));
                }
                continue;
            }
            among(std::slice::from_ref(label), &labels).map_err(|error| format!("{name}: {error}"))?;
            let values: Labels = all.iter().map(|series| series.labels[label].clone()).collect();
            among(&matcher.values(), &values).map_err(|error| format!("{name}, {label}: {error}"))?;
            selected.retain(|series| matcher.is_match(&series.labels[label]));
        }
        if selected.is_empty() {
            return Err(format!("{selector:?} selects nothing"));
        }
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
        self.metrics.insert(base.to_owned());
        Ok(&labels | &owned(&TARGET))
    }

    fn call(&mut self, function: &str, arguments: &[Expr]) -> Result<Labels, String> {
        match (function, arguments) {
            ("rate" | "increase", [Expr::Range(selector)]) => {
                let labels = self.select(selector)?;
                if !is_counter(&selector.name) {
                    return Err(format!("{} goes up and down: it has no {function}", selector.name));
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
            ("clamp_min" | "clamp_max", [vector, _]) | ("ceil", [vector]) => self.labels(vector),
            ("abs", [difference @ Expr::Binary { operator, .. }]) if operator == "-" => {
                self.differs = true;
                let labels = self.labels(difference);
                self.differs = false;
                labels
            }
            ("time", []) => Ok(Labels::new()),
            ("scalar", [vector]) => match self.labels(vector)? {
                labels if labels.is_empty() => Ok(labels),
                labels => Err(format!("scalar of what has the labels {labels:?}")),
            },
            ("label_replace", [vector, Expr::Text(to), Expr::Text(with), Expr::Text(from), Expr::Text(regex)]) => {
                let mut labels = self.labels(vector)?;
                among(std::slice::from_ref(from), &labels)?;
                if (with.as_str(), regex.as_str()) != ("$1", "(.*)") {
                    return Err(format!("label_replace by {with:?} is beyond this test: teach it"));
                }
                labels.insert(to.clone());
                Ok(labels)
            }
            _ => Err(format!("{function} is beyond this test: teach it")),
        }
    }

    fn binary(&mut self, operator: &str, on: Option<&[String]>, left: &Expr, right: &Expr) -> Result<Labels, String> {
        if operator == "/" && !cannot_be_zero(right) {
            return Err(format!("{right:?} may be zero: clamp_min it"));
        }
        let (of_left, of_right) = (self.labels(left)?, self.labels(right)?);
        if is_scalar(left) || is_scalar(right) {
            return Ok(&of_left | &of_right);
        }
        let matching = match on {
            Some(on) => {
                among(on, &of_left)?;
                among(on, &of_right)?
            }
            None if of_left == of_right => of_left.clone(),
            None => return Err(format!("{of_left:?} and {of_right:?} never match in {left:?} {operator} {right:?}")),
        };
        Ok(if ["and", "or", "unless"].contains(&operator) { of_left } else { matching })
    }
}

/// Counters and the series of histograms only go up.
fn is_counter(name: &str) -> bool {
    ["_total", "_bucket", "_sum", "_count"].iter().any(|suffix| name.ends_with(suffix))
}

fn is_scalar(expr: &Expr) -> bool {
    match expr {
        Expr::Number(_) => true,
        Expr::Binary { left, right, .. } => is_scalar(left) && is_scalar(right),
        Expr::Call { function, .. } => ["scalar", "time"].contains(&function.as_str()),
        _ => false,
    }
}

fn cannot_be_zero(divisor: &Expr) -> bool {
    match divisor {
        Expr::Call { function, arguments } if function == "scalar" => arguments.iter().all(cannot_be_zero),
        Expr::Number(number) => *number != 0.0,
        Expr::Call { function, arguments } if function == "clamp_min" => arguments.get(1).is_some_and(cannot_be_zero),
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
        ("sum(evalpool_runtimes_live) / scalar(clamp_min(evalpool_runtimes_capacity, 1))", "scalar of what has"),
        ("label_replace(evalpool_runtimes_live, \"to\", \"$1\", \"from\", \"(.*)\")", "no \"from\" among"),
        ("evalpool_runtimes_live{", ""),
    ] {
        let error = check(&exposed, query).expect_err(query);
        assert!(error.contains(reason), "{query} gave {error:?}");
    }
    let right = "sum by (how, job) (rate(evalpool_closes_total{reason=\"idle\", how!=\"forced\"}[5m]))";
    assert_eq!(check(&exposed, right).unwrap().labels, owned(&["how", "job"]));
}
