//! The real thing: Prometheus scrapes the real server while it works, and answers every query of every panel, rule and alert.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

use super::{alerts, panels, read};
use crate::{
    service::{Server, eventually},
    support::{TEXT, wasm},
};

/// Panels' queries that have nothing to show where all is well: closes by force.
const EMPTY: [&str; 1] = ["how=\"forced\""];

/// Prometheus as a process of its own; ends with the test.
struct Prometheus {
    child: Child,
    address: String,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    /// With the repository's own configuration, but each second, and of this server. `None` if there is none on this machine.
    fn start(folder: &Path, server: &str) -> Option<Self> {
        Command::new("prometheus").arg("--version").output().ok()?;
        // Free until a moment ago.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let config = read("config/prometheus.yml").replace("15s", "1s").replace("127.0.0.1:8080", server);
        fs::write(folder.join("prometheus.yml"), config).unwrap();
        for rules in ["rules.yml", "alerts.yml"] {
            fs::write(folder.join(rules), read(&format!("config/{rules}"))).unwrap();
        }
        let child = Command::new("prometheus")
            .current_dir(folder)
            .args(["--config.file=prometheus.yml", "--storage.tsdb.path=data"])
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Some(Self { child, address })
    }

    /// What a query has now; nothing while Prometheus is not ready.
    fn try_ask(&self, query: &str) -> Option<Vec<Value>> {
        let url = format!("http://{}/api/v1/query", self.address);
        let answer = ureq::get(url).query("query", query).call().ok()?.body_mut().read_to_string().ok()?;
        let answer: Value = serde_json::from_str(&answer).unwrap();
        let result = &answer["data"]["result"];
        // A scalar is one value.
        Some(if answer["data"]["resultType"] == "scalar" { vec![result.clone()] } else { result.as_array()?.clone() })
    }

    fn ask(&self, query: &str) -> Vec<Value> {
        self.try_ask(query).unwrap_or_else(|| panic!("Prometheus does not answer {query}"))
    }

    /// The one value of a query.
    fn value(&self, query: &str) -> f64 {
        let found = self.ask(query);
        let [one] = &found[..] else { panic!("{query}: {found:?}") };
        one["value"][1].as_str().unwrap().parse().unwrap()
    }
}

/// Calls in every state that a short time can show: hits, evictions, builds, failures, refusals, closes.
fn work(server: &Server) {
    for name in ["acme%2Fa", "acme%2Fb", "globex%2Fc", "globex%2Fd"] {
        for _ in 0..3 {
            assert_eq!(server.post(name, b"tea").status, 200);
        }
    }
    server.post("globex%2Fd?entry_point=nothing", b"tea").is(422, "entry_point_missing");
    let fails = wasm(r#"(module (func $f unreachable) (func (export "run") (result i32) i32.const 0) (start $f))"#);
    assert_eq!(server.put("bad", &fails).status, 422);
    assert_eq!(server.unload("acme%2Fa").status, 204);
}

#[test]
#[ignore = "slow lane: needs Prometheus, which .ci/run installs, and half a minute"]
fn every_query_has_an_answer_from_a_server_at_work() {
    let server = Server::start(&[("POOL_CAPACITY", "2"), ("METRICS_PER_EVALUATOR", "2"), ("METRICS_PER_TENANT", "2")]);
    let folder = TempDir::new().unwrap();
    let Some(prometheus) = Prometheus::start(folder.path(), &server.address) else {
        println!("skipped: there is no Prometheus on this machine");
        return;
    };
    for name in ["acme%2Fa", "acme%2Fb", "globex%2Fc", "globex%2Fd"] {
        assert_eq!(server.put(&format!("{name}?entry_point=upper"), TEXT).status, 201);
    }
    // A rate takes two samples; the series of tenants begin when they are first looked at.
    eventually("Prometheus has seen it work", || {
        work(&server);
        let scrapes = prometheus.try_ask("count_over_time(evalpool_tenant_runtimes{tenant=\"acme\"}[1m]) > 8");
        scrapes.is_some_and(|found| !found.is_empty())
    });

    let mut nothing = Vec::new();
    for query in panels::queries_of("1m", "1m") {
        if prometheus.ask(&query).is_empty() && !EMPTY.iter().any(|part| query.contains(part)) {
            nothing.push(query);
        }
    }
    assert!(nothing.is_empty(), "nothing to show for {nothing:#?}");
    for query in alerts::queries() {
        // Most alerts have nothing to say; a ratio always has.
        let found = prometheus.ask(&query);
        let is_alert = query.split_whitespace().any(|word| [">", "<", ">=", "=="].contains(&word));
        assert!(is_alert || !found.is_empty(), "{query}");
    }
    for name in alerts::recorded_names() {
        assert!(!prometheus.ask(&name).is_empty(), "{name} is recorded");
    }

    // Of the right magnitude.
    let ratio = |query: &str| {
        let value = prometheus.value(query);
        assert!((0.0..=1.0).contains(&value), "{query}: {value}");
        value
    };
    assert_eq!(prometheus.value("sum(evalpool_runtimes_capacity)").to_string(), "2");
    assert_eq!(prometheus.value("count(up == 1)").to_string(), "1");
    assert!(prometheus.value("sum(evalpool_runtimes_live)") <= 2.0);
    assert_eq!(ratio("evalpool:refused:ratio_rate5m").to_string(), "0");
    ratio("evalpool:slow:ratio_rate5m");
    // Each plugin is called thrice in a row, and four take turns on two places.
    let within = |bound: &str| {
        let lookups = |bound: &str| format!("sum(increase(evalpool_reuse_distance_total{{within=\"{bound}\"}}[1m]))");
        ratio(&format!("{} / {}", lookups(bound), lookups("+Inf")))
    };
    assert!(within("2") < 0.75 && within("4") > within("2"), "{}, {}", within("2"), within("4"));
    assert!(prometheus.value("sum(rate(evalpool_evictions_total{reason=\"capacity\"}[1m]))") > 0.0);
}
