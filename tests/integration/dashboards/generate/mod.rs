//! The dashboards, written by code that knows which metrics there are: the files in `dashboards/` are what this makes, and
//! a metric that is renamed leaves no dead panel.
//!
//! To change a dashboard, change its module here and write the files anew:
//!
//! ```sh
//! EVALPOOL_BLESS=1 cargo test --release --test integration dashboards::generate
//! ```

mod builds;
mod capacity;
mod http;
mod overview;
mod panel;
mod promql;
mod tenants;

use std::{collections::BTreeSet, env, fs, path::Path};

use serde_json::{Value, json};

use self::panel::{Panel, lay_out, source};

/// A dashboard: its name in the file's name and its address, and its rows, from the symptom to the cause.
struct Dashboard {
    uid: &'static str,
    title: &'static str,
    description: &'static str,
    rows: Vec<(&'static str, Vec<Panel>)>,
}

fn dashboards() -> [Dashboard; 5] {
    [overview::dashboard(), tenants::dashboard(), builds::dashboard(), capacity::dashboard(), http::dashboard()]
}

impl Dashboard {
    fn file(&self) -> String {
        format!("{}.json", self.uid)
    }

    fn to_json(&self, all: &[Dashboard]) -> Value {
        let link = |other: &Dashboard| {
            json!({
                "type": "link",
                "title": other.title,
                "url": format!("/d/{}", other.uid),
                "icon": "dashboard",
                "tooltip": other.description,
                "tags": [],
                "asDropdown": false,
                "includeVars": true,
                "keepTime": true,
                "targetBlank": false,
            })
        };
        let links: Vec<_> = all.iter().filter(|other| other.uid != self.uid).map(link).collect();
        json!({
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["evalpool", "extism", "webassembly"],
            "links": links,
            "panels": lay_out(&self.rows),
            "templating": {"list": [data_source(), jobs(), instances()]},
            "annotations": {"list": [annotations()]},
            "time": {"from": "now-1h", "to": "now"},
            "timepicker": {},
            "timezone": "browser",
            "refresh": "30s",
            "graphTooltip": 1,
            "editable": true,
            "fiscalYearStartMonth": 0,
            "liveNow": false,
            "schemaVersion": 42,
            "version": 1,
        })
    }
}

/// Of Grafana itself.
fn annotations() -> Value {
    json!({
        "builtIn": 1,
        "datasource": {"type": "grafana", "uid": "-- Grafana --"},
        "enable": true,
        "hide": true,
        "iconColor": "rgba(0, 211, 255, 1)",
        "name": "Annotations & Alerts",
        "type": "dashboard",
    })
}

fn data_source() -> Value {
    json!({
        "name": "datasource",
        "label": "Data source",
        "description": "The Prometheus that scrapes evalpool.",
        "type": "datasource",
        "query": "prometheus",
        "hide": 0,
        "includeAll": false,
        "multi": false,
        "options": [],
        "refresh": 1,
        "regex": "",
        "skipUrlSync": false,
    })
}

fn jobs() -> Value {
    labels("job", "Job", "The scrape jobs to show, summed.", "evalpool_runtimes_capacity")
}

fn instances() -> Value {
    let description = "The instances to show, summed; the process panels show each.";
    labels("instance", "Instance", description, "evalpool_runtimes_capacity{job=~\"$job\"}")
}

/// A variable with the values of a label.
fn labels(name: &str, label: &str, description: &str, selector: &str) -> Value {
    let query = format!("label_values({selector}, {name})");
    json!({
        "name": name,
        "label": label,
        "description": description,
        "type": "query",
        "datasource": source(),
        "definition": query,
        "query": {"qryType": 1, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        "allValue": ".+",
        "current": {"selected": true, "text": ["All"], "value": ["$__all"]},
        "hide": 0,
        "includeAll": true,
        "multi": true,
        "options": [],
        "refresh": 2,
        "regex": "",
        "skipUrlSync": false,
        "sort": 1,
    })
}

#[test]
fn the_files_are_what_the_generator_makes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboards");
    let all = dashboards();
    let writes = env::var_os("EVALPOOL_BLESS").is_some();
    for dashboard in &all {
        let file = folder.join(dashboard.file());
        let made = serde_json::to_string_pretty(&dashboard.to_json(&all)).unwrap() + "\n";
        if writes {
            fs::write(&file, &made).unwrap();
        }
        let there = fs::read_to_string(&file).unwrap_or_default();
        assert!(there == made, "{} is not what is generated: EVALPOOL_BLESS=1 writes it", file.display());
    }
    let made: BTreeSet<_> = all.iter().map(Dashboard::file).collect();
    let there: BTreeSet<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(there, made, "and no others");
}
