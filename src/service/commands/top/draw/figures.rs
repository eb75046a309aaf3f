//! The pool at a glance: a line for each figure, with what it is made of and a chart of the last ten minutes.

use std::collections::{BTreeMap, VecDeque};

use ratatui::{
    Frame,
    layout::Rect,
    style::{Style, Stylize},
    text::{Line, Span},
};

use super::{
    super::{
        told::{Sample, of, sum},
        words::{Column, NONE, bytes, chart, cut, fit, maybe_seconds, number, seconds, width},
    },
    BOLD,
};

/// Rates are of so many seconds.
const RECENT: usize = 10;

/// Columns of the name, and of the value.
const NAME: usize = 12;
const VALUE: usize = 20;

/// From so many columns on there is room for what a value is made of.
const ROOMY: usize = 60;

/// One line.
pub(super) struct Figure {
    name: &'static str,
    value: String,
    style: Style,
    /// What it is made of, the most important part first.
    parts: Vec<String>,
    chart: Vec<(u64, Option<f64>)>,
    column: Column,
}

/// All of them, the most important one first.
pub(super) fn figures(samples: &VecDeque<Sample>) -> [Figure; 7] {
    let sample = samples.back().cloned().unwrap_or_default();
    let is_known = !samples.is_empty();
    let figure = |name, value: String, parts, of: &dyn Fn(&Sample) -> Option<f64>, column| Figure {
        name,
        value: if is_known { value } else { NONE.to_owned() },
        style: Style::new(),
        parts: if is_known { parts } else { Vec::new() },
        chart: samples.iter().map(|sample| (sample.number, of(sample))).collect(),
        column,
    };
    let [building, idle, busy, draining] = sample.runtimes;
    let [code, instances, kept] = sample.memory;
    let [for_place, for_instance, for_build] = sample.waiting;
    let held: f64 = sample.memory.iter().sum();
    let callers: f64 = sample.waiting.iter().sum();
    let quantiles = |times: fn(&Sample) -> Option<[f64; 2]>| {
        // Of the last second in which there was an evaluation.
        let [half, most] = recent(samples).rev().find_map(times).map_or([None; 2], |times| times.map(Some));
        (format!("p99 {}", maybe_seconds(most)), vec![format!("p50 {}", maybe_seconds(half))])
    };
    let (run, run_parts) = quantiles(|sample| sample.exec);
    let (wait, wait_parts) = quantiles(|sample| sample.wait);
    let built = per_second(samples, |sample| of(&sample.builds, "ok"));
    let failed = per_second(samples, |sample| sum(&sample.builds) - of(&sample.builds, "ok"));
    let evicted = per_second(samples, |sample| sum(&sample.evictions));
    let mut waiting = "nobody".to_owned();
    if callers > 0.0 {
        waiting = format!("{} for up to {}", number(callers), seconds(sample.oldest_wait));
    }
    // What they wait for.
    let waits = there([("place", for_place), ("instance", for_instance), ("build", for_build)], number);
    let mut all = [
        figure(
            "Evaluations",
            format!("{} / s", number(per_second(samples, |sample| sum(&sample.evaluations)))),
            outcomes(samples),
            &|sample| Some(sum(&sample.evaluations)),
            Column::Mean,
        ),
        figure(
            "Runtimes",
            format!("{} of {}", number(sample.runtimes.iter().sum()), number(sample.capacity)),
            there([("busy", busy), ("idle", idle), ("building", building), ("draining", draining)], number),
            &|sample| Some(sample.runtimes.iter().sum()),
            Column::Most,
        ),
        figure(
            "Memory",
            format!("{} of {}", bytes(held), bytes(sample.memory_limit)),
            there([("code", code), ("instances", instances), ("kept", kept)], bytes),
            &|sample| Some(sample.memory.iter().sum()),
            Column::Most,
        ),
        figure("Waiting", waiting, waits, &|sample| Some(sample.waiting.iter().sum()), Column::Most),
        figure("Run time", run, run_parts, &|sample| sample.exec.map(|[_, most]| most), Column::Most),
        figure("Wait time", wait, wait_parts, &|sample| sample.wait.map(|[_, most]| most), Column::Most),
        figure(
            "Builds",
            format!("{} / s", number(built)),
            there([("failed", failed), ("evictions", evicted)], |rate| format!("{} / s", number(rate))),
            &|sample| Some(sum(&sample.builds)),
            Column::Mean,
        ),
    ];
    let is_full = |used: f64, bound: f64| used >= 0.95 * bound && bound > 0.0;
    let alarms = [
        false,
        is_full(sample.runtimes.iter().sum(), sample.capacity) && evicted > 0.0,
        is_full(held, sample.memory_limit),
        callers > 0.0,
    ];
    for (figure, _) in all.iter_mut().zip(alarms).filter(|(_, is_alarming)| *is_alarming) {
        figure.style = Style::new().yellow();
    }
    all
}

fn recent(samples: &VecDeque<Sample>) -> impl DoubleEndedIterator<Item = &Sample> {
    samples.range(samples.len().saturating_sub(RECENT)..)
}

fn per_second(samples: &VecDeque<Sample>, of: impl Fn(&Sample) -> f64) -> f64 {
    recent(samples).map(of).sum::<f64>() / samples.len().clamp(1, RECENT) as f64
}

/// What came of evaluations, each a second, the most frequent first.
fn outcomes(samples: &VecDeque<Sample>) -> Vec<String> {
    let mut counts = BTreeMap::<_, f64>::new();
    for (word, count) in recent(samples).flat_map(|sample| &sample.evaluations) {
        *counts.entry(word).or_default() += count;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    let seconds = samples.len().clamp(1, RECENT) as f64;
    counts.into_iter().map(|(word, count)| format!("{word} {}", number(count / seconds))).collect()
}

/// Those parts that there are.
fn there<const N: usize>(parts: [(&str, f64); N], shown: impl Fn(f64) -> String) -> Vec<String> {
    parts
        .into_iter()
        .filter(|(_, value)| *value > 0.0)
        .map(|(name, value)| format!("{name} {}", shown(value)))
        .collect()
}

impl Figure {
    pub(super) fn draw(&self, frame: &mut Frame, area: Rect) {
        let columns = usize::from(area.width);
        let room = columns.saturating_sub(NAME + VALUE + 1);
        let (parts, chart_columns) = if columns >= ROOMY { (room - room / 3, room / 3) } else { (0, room) };
        let value = cut(&self.value, columns.saturating_sub(NAME));
        let mut spans = vec![
            Span::styled(format!("{:NAME$}", self.name), BOLD),
            Span::styled(padded(value, VALUE + 1), self.style),
        ];
        if parts > 0 {
            spans.push(Span::raw(padded(fit(self.parts.iter().cloned(), parts - 1), parts)));
        }
        let chart = chart(&self.chart, chart_columns, self.column);
        spans.push(Span::raw(chart).cyan());
        frame.render_widget(Line::from(spans), area);
    }
}

fn padded(mut text: String, columns: usize) -> String {
    text.push_str(&" ".repeat(columns.saturating_sub(width(&text))));
    text
}
