//! One evaluator: what it is, what became of it while it is looked at, why it failed last, and its spec.

use ratatui::{
    Frame,
    layout::Rect,
    style::{Style, Stylize},
    text::{Line, Span},
    widgets::Paragraph,
};

use super::{
    super::{
        state::{Look, State},
        told::{Evaluator, Failure, Text, sum},
        words::{Column, bytes, chart, cut, maybe_seconds, number, seconds, since, width, wrap},
    },
    BOLD, line,
};

/// Columns of a fact's name.
const TERM: usize = 12;

/// Columns of a chart.
const CHART: usize = 40;

pub(super) fn draw(frame: &mut Frame, mut area: Rect, state: &mut State) {
    let title = line(&mut area);
    let now = state.now();
    let changes = changes(state);
    let Some(look) = &mut state.look else { return };
    let lines = match &look.evaluator {
        Some(evaluator) => lines(look, evaluator, &changes, now, usize::from(area.width)),
        None => vec![Line::from("…")],
    };
    look.page = usize::from(area.height);
    look.last = lines.len().saturating_sub(look.page);
    look.scroll = look.scroll.min(look.last);
    let (first, end) = (look.scroll, (look.scroll + look.page).min(lines.len()));
    let place = if look.last > 0 { format!("{}–{} of {}", first + 1, end, lines.len()) } else { String::new() };
    let room = usize::from(title.width).saturating_sub(width(&place) + 1);
    frame.render_widget(Line::styled(cut(&look.name.to_string(), room), BOLD), title);
    frame.render_widget(Line::from(place).right_aligned(), title);
    let shown: Vec<_> = lines.into_iter().skip(first).take(look.page).collect();
    frame.render_widget(Paragraph::new(shown), area);
}

/// What was done to it in the last ten minutes: when and what, the last one first.
fn changes(state: &State) -> Vec<(u64, Text)> {
    let Some(look) = &state.look else { return Vec::new() };
    let all = state.samples.iter().rev().flat_map(|sample| sample.changes.iter().rev());
    all.filter(|change| change.name == look.name).map(|change| (change.at, change.what.clone())).collect()
}

fn lines(look: &Look, it: &Evaluator, changes: &[(u64, Text)], now: u64, columns: usize) -> Vec<Line<'static>> {
    let mut page = Page { lines: Vec::new(), columns };
    let runtime = it.runtime.as_ref().map(|runtime| {
        let age = runtime.age_seconds.map_or_else(String::new, |age| format!("{} old, ", seconds(age)));
        let (busy, instances) = (number(runtime.busy), number(it.instances));
        format!("{age}{}, {busy} of {instances} instances busy", bytes(runtime.memory_bytes))
    });
    let outcomes = it.usage.outcomes.iter().map(|(word, count)| format!("{word} {}", number(*count)));
    let mean = it.usage.seconds / it.usage.evaluations;
    let last = it.last_used.map_or_else(|| "never".to_owned(), |then| ago(now, then));
    page.fact("State", &it.state.to_string());
    page.fact("Tenant", &it.tenant.to_string());
    page.fact("Runtime", &runtime.unwrap_or_else(|| "none".to_owned()));
    page.fact("Calls", &format!("{}; the last one {last}", number(it.evaluations)));
    page.fact("Outcomes", &outcomes.collect::<Vec<_>>().join(", "));
    let mean = maybe_seconds(Some(mean).filter(|mean| mean.is_finite()));
    page.fact("CPU time", &format!("{}; mean {mean}, with waits", seconds(it.usage.guest_seconds)));
    if let (Some(half), Some(most)) = (it.p50_seconds, it.p99_seconds) {
        page.fact("Of late", &format!("p50 {}, p99 {}", seconds(half), seconds(most)));
    }
    let rate = look.rates.last().and_then(|(_, rate)| *rate).unwrap_or_default();
    let room = columns.saturating_sub(TERM + 12).min(CHART);
    let chart = chart(&look.rates, room, Column::Mean);
    page.chart("Rate", &format!("{} / s", number(rate)), &chart);
    page.fact("Entry point", &it.entry_point.as_ref().map_or("each call names one".to_owned(), Text::to_string));
    let size = it.size_bytes.map_or("not read yet".to_owned(), bytes);
    page.fact("Plugin", &format!("{size}, revision {}", it.revision));
    page.fact("Digest", &it.digest.as_ref().map_or("not known yet".to_owned(), Text::to_string));
    page.head("Last failures");
    for failure in &it.failures {
        page.failure(failure, now);
    }
    if it.failures.is_empty() {
        let failed =
            it.usage.evaluations - it.usage.outcomes.get(&Text::from("ok".to_owned())).copied().unwrap_or_default();
        let kept = if failed > 0.0 && sum(&it.usage.outcomes) > 0.0 { "none is kept" } else { "none" };
        page.text(2, kept, Style::new().dim());
    }
    if let Some(log) = &it.log {
        page.head("Last lines of its log");
        for line in log {
            page.text(2, &format!("{}: {} {}", ago(now, line.at), line.level, line.text), Style::new());
        }
        if log.is_empty() {
            page.text(2, "none", Style::new().dim());
        }
    }
    page.head("Changes in the last ten minutes");
    for (at, what) in changes {
        page.text(2, &format!("{}: {what}", ago(now, *at)), Style::new());
    }
    if changes.is_empty() {
        page.text(2, "none", Style::new().dim());
    }
    page.head("Spec, without the values of config");
    let spec = serde_json::to_string_pretty(&it.spec).unwrap_or_default();
    for line in Text::from(spec).lines() {
        page.text(2, &line, Style::new());
    }
    page.lines
}

fn ago(now: u64, then: u64) -> String {
    match since(now, then).as_str() {
        "now" => "now".to_owned(),
        time => format!("{time} ago"),
    }
}

/// Lines that grow downwards.
struct Page {
    lines: Vec<Line<'static>>,
    columns: usize,
}

impl Page {
    fn head(&mut self, text: &str) {
        self.lines.push(Line::default());
        self.text(0, text, BOLD);
    }

    fn fact(&mut self, term: &str, value: &str) {
        for (at, part) in wrap(value, self.columns.saturating_sub(TERM).max(1)).into_iter().enumerate() {
            let term = if at == 0 { term } else { "" };
            self.lines.push(Line::from(vec![Span::styled(format!("{term:TERM$}"), BOLD), Span::raw(part)]));
        }
    }

    fn chart(&mut self, term: &str, value: &str, chart: &str) {
        let spans = vec![
            Span::styled(format!("{term:TERM$}"), BOLD),
            Span::raw(format!("{value:12}")),
            Span::raw(chart.to_owned()).cyan(),
        ];
        self.lines.push(Line::from(spans));
    }

    fn text(&mut self, indent: usize, text: &str, style: Style) {
        for part in wrap(text, self.columns.saturating_sub(indent).max(1)) {
            self.lines.push(Line::from(format!("{:indent$}{part}", "")).style(style));
        }
    }

    fn failure(&mut self, it: &Failure, now: u64) {
        let times = if it.times > 1.0 { format!(", {} times", number(it.times)) } else { String::new() };
        self.text(2, &format!("{}: {}{times}", ago(now, it.last.max(it.at)), it.kind), Style::new().red());
        self.text(4, &it.detail.to_string(), Style::new());
        let stack = it.stack.iter().map(Text::to_string).collect::<Vec<_>>();
        for (label, lines) in [
            ("stack", stack),
            ("standard error", it.stderr.lines().collect()),
            ("standard output", it.stdout.lines().collect()),
        ] {
            if !lines.is_empty() {
                self.text(4, label, Style::new().dim());
            }
            for line in lines {
                self.text(6, &line, Style::new());
            }
        }
        if it.hides {
            self.text(4, "It left more behind, which is not kept: its debug is off.", Style::new().dim());
        }
    }
}
