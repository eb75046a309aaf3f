//! Series by evaluator and by tenant, as a Prometheus sees them that scrapes the server.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    process::{Command, Stdio},
};

use super::server::Server;
use crate::support::TEXT;

/// What a scrape shows, by metric and labels as they are written.
struct Scrape(BTreeMap<String, BTreeMap<String, String>>);

impl Scrape {
    /// Holds the text to its format: each of these metrics has a help, then a type, then all that is shown of it.
    fn of(server: &Server) -> Self {
        let answer = server.get("/metrics");
        let (mut shown, mut helped, mut current) = (BTreeMap::new(), BTreeSet::new(), "");
        for line in answer.text().lines().filter(|line| !line.is_empty()) {
            if let Some(help) = line.strip_prefix("# HELP ") {
                helped.insert(help.split(' ').next().unwrap());
            } else if let Some(of_type) = line.strip_prefix("# TYPE ") {
                let (name, kind) = of_type.split_once(' ').unwrap();
                assert!(helped.contains(name), "{name} has no help");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
                current = name;
            } else {
                let (series, value) = line.rsplit_once(' ').unwrap();
                let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
                let is_ours = ["evaluator", "tenant"].iter().any(|of| name.starts_with(&format!("evalpool_{of}_")));
                assert!(!is_ours || name == current, "{name} is apart from its type");
                let of_name: &mut BTreeMap<_, _> = shown.entry(name.to_owned()).or_default();
                let before = of_name.insert(labels.trim_end_matches('}').to_owned(), value.to_owned());
                assert_eq!(before, None, "{series} is there twice");
            }
        }
        Self(shown)
    }

    fn get(&self, metric: &str, labels: &str) -> Option<&str> {
        self.0.get(metric)?.get(labels).map(String::as_str)
    }

    /// The sum over all series of this metric that have the label. Only of counts.
    fn sum(&self, metric: &str, label: &str) -> u64 {
        let all = self.0[metric].iter().filter(|(labels, _)| labels.contains(label));
        all.map(|(_, value)| value.parse::<u64>().unwrap()).sum()
    }
}

#[test]
fn the_series_of_evaluators_and_tenants_add_up_to_all_evaluations() {
    let server = Server::start(&[("METRICS_PER_EVALUATOR", "1"), ("METRICS_PER_TENANT", "1")]);
    for name in ["acme%2Fa?entry_point=upper", "globex?entry_point=upper"] {
        assert_eq!(server.put(name, TEXT).status, 201);
    }
    let call = || assert_eq!(server.post("acme%2Fa", b"tea").status, 200);
    let first = Scrape::of(&server);
    (0..3).for_each(|_| call());
    let second = Scrape::of(&server);
    (0..2).for_each(|_| call());
    // Its guest does not run, so that it takes nobody's place.
    server.post("globex?entry_point=nothing", b"tea").is(422, "entry_point_missing");
    let last = Scrape::of(&server);

    for (of, name) in [("evaluator", "acme/a"), ("tenant", "acme")] {
        let [own, others] = [name, "other"].map(|name| format!("{of}=\"{name}\""));
        let [evaluations, runtimes] = ["evaluations_total", "runtimes"].map(|what| format!("evalpool_{of}_{what}"));
        let expected = [(&first, None, Some("0")), (&second, Some("0"), Some("3")), (&last, Some("2"), Some("3"))];
        for (scrape, own_ok, others_ok) in expected {
            let ok = |whose: &str| scrape.get(&evaluations, &format!("{whose},outcome=\"ok\""));
            assert_eq!((ok(&own), ok(&others)), (own_ok, others_ok));
            for outcome in ["outcome=\"ok\"", "outcome=\"entry_point_missing\""] {
                assert_eq!(scrape.sum(&evaluations, outcome), scrape.sum("evalpool_evaluations_total", outcome));
            }
            assert_eq!(scrape.sum(&runtimes, ""), scrape.sum("evalpool_runtimes_live", ""));
        }
        assert_eq!(last.get(&evaluations, &format!("{others},outcome=\"entry_point_missing\"")), Some("1"));
        for what in ["seconds_total", "exec_seconds_total", "runtimes", "memory_bytes"] {
            let metric = format!("evalpool_{of}_{what}");
            assert_eq!(first.0[&metric].keys().collect::<Vec<_>>(), [&others]);
            assert_eq!(last.0[&metric].keys().collect::<Vec<_>>(), [&own, &others]);
            assert_ne!(last.get(&metric, &own), Some("0"), "{metric}");
            if what.ends_with("_total") {
                assert_eq!(second.get(&metric, &own), Some("0"), "{metric}");
            }
        }
    }
}

#[test]
fn nobody_has_series_of_their_own_unless_the_settings_say_so() {
    let server = Server::start(&[("METRICS_PER_TENANT", "1")]);
    let text = server.get("/metrics").text().to_owned();
    assert!(text.contains("evalpool_tenant_runtimes{tenant=\"other\"} 0"), "{text}");
    assert!(!text.contains("evalpool_evaluator_"));
    assert!(!Server::start(&[]).get("/metrics").text().contains("evalpool_tenant_"));
}

#[test]
#[ignore = "slow lane: needs promtool, which .ci/run installs"]
fn prometheus_finds_nothing_wrong_with_the_text() {
    let promtool = Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).spawn();
    let Ok(mut promtool) = promtool else {
        println!("skipped: there is no promtool on this machine");
        return;
    };
    let server = Server::start(&[("METRICS_PER_EVALUATOR", "2"), ("METRICS_PER_TENANT", "2")]);
    assert_eq!(server.post("greet", br#"{"name":"Ada"}"#).status, 200);
    let text = server.get("/metrics").text().to_owned();
    assert!(text.contains("evalpool_tenant_runtimes{tenant=\"greet\"} 1"), "{text}");
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(promtool.wait().unwrap().success());
}
