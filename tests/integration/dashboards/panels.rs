//! The dashboards: what their panels ask for, and how they are laid out.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use evalpool::metrics::CATALOGUE;
use serde_json::Value;

use super::{Labels, check::check, exposed, owned, read};

/// Every dashboard of the folder, by file name.
pub(super) fn dashboards() -> Vec<(String, Value)> {
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

pub(super) fn titles(dashboard: &Value) -> Vec<String> {
    drawn(dashboard).map(|panel| text(panel, "title").to_owned()).collect()
}

/// A query as Grafana would send it, with everything chosen in every variable.
fn expand(dashboard: &Value, query: &str) -> Result<String, String> {
    expand_over(dashboard, query, "1m", "1h")
}

fn expand_over(dashboard: &Value, query: &str, interval: &str, range: &str) -> Result<String, String> {
    let variables = list(&dashboard["templating"], "list").iter().map(|variable| text(variable, "name"));
    let replaced = variables.fold(
        query.replace("$__rate_interval", interval).replace("$__interval", "15s").replace("$__range", range),
        |query, name| query.replace(&format!("${{{name}}}"), ".+").replace(&format!("${name}"), ".+"),
    );
    // What label_replace puts in is no variable.
    if replaced.replace("\"$1\"", "").contains('$') {
        return Err(format!("an unknown variable in {replaced}"));
    }
    Ok(replaced)
}

/// Every query of every panel, as Grafana would send it.
pub(super) fn queries() -> Vec<String> {
    queries_of("1m", "1h")
}

/// The same where rates are taken over this interval, and the dashboard shows this range.
pub(super) fn queries_of(interval: &str, range: &str) -> Vec<String> {
    let expand = |dashboard: &Value, query: &str| expand_over(dashboard, query, interval, range).unwrap();
    let of_panel = |dashboard: &Value, panel: &Value| -> Vec<String> {
        list(panel, "targets").iter().map(|target| expand(dashboard, text(target, "expr"))).collect()
    };
    let of_dashboard = |(_, dashboard): &(String, Value)| -> Vec<String> {
        drawn(dashboard).flat_map(|panel| of_panel(dashboard, panel)).collect()
    };
    dashboards().iter().flat_map(of_dashboard).collect()
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
    let shown: BTreeSet<_> = queries().iter().flat_map(|query| check(&exposed, query).unwrap().metrics).collect();
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
            let what_to_do = text(panel, "description").split_once("\n\n**When it looks wrong:** ");
            let is_described = what_to_do.is_some_and(|(shows, wrong)| shows.len() > 20 && wrong.len() > 20);
            assert!(is_described, "{file}, {title:?} says what it shows, and what to do when that looks wrong");
            assert!(!text(defaults, "unit").is_empty(), "{file}, {title:?} has no unit");
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{file}, {title:?}");
            let steps = list(&defaults["thresholds"], "steps");
            let values: Vec<_> = steps.iter().map(|step| step["value"].as_f64()).collect();
            assert!(values.first() == Some(&None) && values.is_sorted(), "{file}, {title:?}: thresholds {values:?}");
        }
    }
}

#[test]
fn the_bound_of_what_is_stacked_does_not_lie_on_top_of_it() {
    let mut bounds = 0;
    for (file, dashboard) in dashboards() {
        for panel in drawn(&dashboard) {
            let config = &panel["fieldConfig"];
            let legends: Vec<_> = list(panel, "targets").iter().map(|target| text(target, "legendFormat")).collect();
            // Of lines by a label, and one by its own name, that one bounds the others.
            let (parts, single): (Vec<&str>, Vec<&str>) = legends.iter().partition(|legend| legend.contains("{{"));
            if parts.is_empty() || config["defaults"]["custom"]["stacking"]["mode"] != "normal" {
                continue;
            }
            for line in single {
                bounds += 1;
                let own = list(config, "overrides").iter().filter(|change| change["matcher"]["options"] == line);
                let mut properties = own.flat_map(|change| list(change, "properties"));
                let is_apart = properties.any(|it| it["id"] == "custom.stacking" && it["value"]["mode"] == "none");
                assert!(is_apart, "{file}, {:?}: {line} is stacked", text(panel, "title"));
            }
        }
    }
    assert!(bounds >= 2, "{bounds}");
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
