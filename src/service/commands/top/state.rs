//! What is shown, and what keys do to it. Knows neither the terminal nor the network.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use ratatui::crossterm::event::{Event as Input, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::{
    server::{Event, Refusal, Told},
    told::{Evaluator, Found, Row, Sample, Text},
};

/// Samples that are kept: as many as the server does.
const KEPT: usize = 600;

/// Characters of a search. Names have at most 128.
const SEARCH: usize = 128;

/// Rows that a page may have.
const ROWS: usize = 1000;

/// By what the table is sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    Name,
    Tenant,
    State,
    Calls,
    Errors,
    Mean,
    Cpu,
    Memory,
    Used,
}

impl Sort {
    /// In the order of the columns.
    const ALL: [Self; 9] = [
        Self::Name,
        Self::Tenant,
        Self::State,
        Self::Calls,
        Self::Errors,
        Self::Mean,
        Self::Cpu,
        Self::Memory,
        Self::Used,
    ];

    /// The server's word for it.
    fn word(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Tenant => "tenant",
            Self::State => "state",
            Self::Calls => "evaluations",
            Self::Errors => "errors",
            Self::Mean => "mean",
            Self::Cpu => "guest",
            Self::Memory => "memory",
            Self::Used => "last_used",
        }
    }

    /// What one wants to see first of it: the largest of figures.
    fn begins_descending(self) -> bool {
        !matches!(self, Self::Name | Self::Tenant | Self::State)
    }

    fn step(self, by: usize) -> Self {
        let at = Self::ALL.iter().position(|sort| *sort == self).unwrap_or_default();
        Self::ALL.iter().copied().cycle().nth(at + by).unwrap_or(self)
    }
}

/// Which evaluators the table has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Search {
    pub(super) text: String,
    pub(super) tenant: Option<Text>,
    pub(super) state: Option<&'static str>,
    pub(super) sort: Sort,
    /// The server knows the p99 of evaluators, which says more than the mean.
    pub(super) knows_p99: bool,
    pub(super) descending: bool,
    /// From 0.
    pub(super) page: usize,
    /// As many rows as the terminal has room for.
    pub(super) limit: usize,
}

impl Search {
    /// By what the server is to sort.
    pub(super) fn sort_word(&self) -> &'static str {
        if self.sort == Sort::Mean && self.knows_p99 { "p99" } else { self.sort.word() }
    }
}

/// What is asked of the server, again and again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    List(Search),
    One(Text),
}

/// One evaluator, looked into.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) name: Text,
    pub(super) evaluator: Option<Evaluator>,
    /// Calls a second between two answers.
    pub(super) rates: Vec<(u64, Option<f64>)>,
    before: Option<(Instant, f64)>,
    /// The first line that is shown.
    pub(super) scroll: usize,
    /// Lines that a page has, and the last one that can be the first.
    pub(super) page: usize,
    pub(super) last: usize,
}

/// Whether the server tells what it does.
#[derive(Debug)]
pub(super) enum Link {
    Live,
    /// Since when not, and why.
    Away(Instant, Refusal),
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) url: String,
    pub(super) version: String,
    pub(super) link: Link,
    pub(super) samples: VecDeque<Sample>,
    pub(super) search: Search,
    /// The search's text is being typed.
    pub(super) is_typing: bool,
    /// `None` until there was an answer.
    pub(super) list: Option<Found>,
    /// What the list answers.
    answered: Option<Search>,
    /// The row that is chosen is to be looked into once the list answers what is looked for.
    is_looked_for: bool,
    /// The row that is chosen.
    pub(super) chosen: usize,
    pub(super) look: Option<Look>,
    /// Why the last answer is none.
    pub(super) problem: Option<Refusal>,
}

/// What a key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    Stay,
    Leave,
}

impl State {
    pub(super) fn new(url: String) -> Self {
        let (sort, descending) = (Sort::Cpu, true);
        let (text, tenant, state, knows_p99) = (String::new(), None, None, false);
        let search = Search { text, tenant, state, sort, knows_p99, descending, page: 0, limit: 1 };
        Self {
            url,
            version: String::new(),
            link: Link::Live,
            samples: VecDeque::new(),
            search,
            is_typing: false,
            list: None,
            answered: None,
            is_looked_for: false,
            chosen: 0,
            look: None,
            problem: None,
        }
    }

    /// The number of the sample that comes next.
    pub(super) fn next(&self) -> u64 {
        self.samples.back().map_or(0, |sample| sample.number.saturating_add(1))
    }

    /// The server's time: two clocks need not agree.
    pub(super) fn now(&self) -> u64 {
        self.samples.back().map_or(0, |sample| sample.at)
    }

    pub(super) fn rows(&self) -> &[Row] {
        self.list.as_ref().map_or(&[], |list| &list.rows)
    }

    pub(super) fn wanted(&self) -> Wanted {
        match &self.look {
            Some(look) => Wanted::One(look.name.clone()),
            None => Wanted::List(self.search.clone()),
        }
    }

    /// How many rows of the table there is room for.
    pub(super) fn fit(&mut self, rows: usize) {
        let limit = rows.clamp(1, ROWS);
        if limit != self.search.limit {
            // The chosen row stays where it can be seen.
            let first = self.search.page * self.search.limit + self.chosen;
            (self.search.page, self.search.limit) = (first / limit, limit);
            self.chosen = first % limit;
        }
    }

    /// Takes what the stream told, or why there is none.
    pub(super) fn hear(&mut self, heard: Result<Event, Refusal>) {
        match heard {
            Ok(Event::Version(version)) => {
                (self.version, self.link) = (version, Link::Live);
            }
            Ok(Event::Samples(samples)) => {
                // A server that was started again counts from the beginning.
                if samples.first().is_some_and(|first| first.number < self.next()) {
                    self.samples.clear();
                }
                self.samples.extend(samples);
                let old = self.samples.len().saturating_sub(KEPT);
                self.samples.drain(..old);
            }
            Err(why) => {
                let since = match self.link {
                    Link::Away(since, _) => since,
                    Link::Live => Instant::now(),
                };
                self.link = Link::Away(since, why);
            }
        }
    }

    /// Takes an answer to what was wanted.
    pub(super) fn take(&mut self, wanted: &Wanted, answer: Result<Told, Refusal>) {
        // An answer to what nobody wants any more comes too late.
        if *wanted != self.wanted() {
            return;
        }
        self.problem = None;
        match (answer, &mut self.look) {
            (Ok(Told::List(found)), None) => {
                self.answered = Some(self.search.clone());
                self.show(found);
                if std::mem::take(&mut self.is_looked_for) {
                    self.look_into();
                }
            }
            (Ok(Told::One(evaluator)), Some(look)) => look.show(*evaluator, Instant::now()),
            (Err(why), _) => self.problem = Some(why),
            _ => {}
        }
    }

    fn show(&mut self, mut found: Found) {
        found.rows.truncate(self.search.limit);
        let name = self.rows().get(self.chosen).map(|row| row.name.clone());
        let last_page = found.found.saturating_sub(1) / self.search.limit.max(1);
        // Whoever was on the last page when it went is on the one before.
        self.search.page = self.search.page.min(last_page);
        let same = name.and_then(|name| found.rows.iter().position(|row| row.name == name));
        self.chosen = same.unwrap_or(self.chosen).min(found.rows.len().saturating_sub(1));
        self.search.knows_p99 |= found.rows.iter().any(|row| row.p99_seconds.is_some());
        self.list = Some(found);
    }

    pub(super) fn handle(&mut self, input: &Input) -> After {
        match input {
            Input::Key(key) if key.kind != KeyEventKind::Release => self.press(*key),
            // The next drawing finds the new size.
            _ => After::Stay,
        }
    }

    /// Looks into the row that is chosen.
    fn look_into(&mut self) {
        let name = self.rows().get(self.chosen).map(|row| row.name.clone());
        (self.look, self.problem) = (name.map(Look::into), None);
    }

    fn press(&mut self, key: KeyEvent) -> After {
        self.is_looked_for = false;
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return if key.code == KeyCode::Char('c') { After::Leave } else { After::Stay };
        }
        if self.is_typing {
            self.type_search(key.code);
        } else if let Some(look) = &mut self.look {
            match key.code {
                KeyCode::Esc | KeyCode::Backspace | KeyCode::Char('q') => (self.look, self.problem) = (None, None),
                code => look.scroll(code),
            }
        } else {
            return self.press_in_table(key.code);
        }
        After::Stay
    }

    fn press_in_table(&mut self, code: KeyCode) -> After {
        match code {
            KeyCode::Esc if self.is_narrowed() => self.narrow(|search| {
                search.text.clear();
                (search.tenant, search.state) = (None, None);
            }),
            KeyCode::Esc | KeyCode::Char('q') => return After::Leave,
            // Not into what was found before: whoever types ahead means what they see next.
            KeyCode::Enter if self.answered.as_ref() != Some(&self.search) => self.is_looked_for = true,
            KeyCode::Enter => self.look_into(),
            KeyCode::Char('/') => self.is_typing = true,
            KeyCode::Char('s') | KeyCode::Right => self.sort_by(self.search.sort.step(1)),
            KeyCode::Char('S') | KeyCode::Left => self.sort_by(self.search.sort.step(Sort::ALL.len() - 1)),
            KeyCode::Char('r') => self.narrow(|search| search.descending = !search.descending),
            KeyCode::Char('f') => self.narrow(|search| search.state = next_state(search.state)),
            KeyCode::Char('t') => {
                let tenant = self.rows().get(self.chosen).map(|row| row.tenant.clone());
                self.narrow(|search| search.tenant = if search.tenant.is_some() { None } else { tenant });
            }
            KeyCode::Up | KeyCode::Char('k') if self.chosen > 0 => self.chosen -= 1,
            KeyCode::Down | KeyCode::Char('j') if self.chosen + 1 < self.rows().len() => self.chosen += 1,
            KeyCode::Up | KeyCode::Char('k') if self.search.page > 0 => {
                self.search.page -= 1;
                self.chosen = self.search.limit - 1;
            }
            KeyCode::Down | KeyCode::PageDown | KeyCode::Char('j' | ' ') => self.turn_to(self.search.page + 1),
            KeyCode::PageUp => self.turn_to(self.search.page.saturating_sub(1)),
            KeyCode::Home => self.turn_to(0),
            KeyCode::End => self.turn_to(self.last_page()),
            _ => {}
        }
        After::Stay
    }

    fn type_search(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.is_typing = false,
            KeyCode::Esc => {
                self.is_typing = false;
                self.narrow(|search| search.text.clear());
            }
            KeyCode::Backspace => self.narrow(|search| search.text.truncate(search.text.len().saturating_sub(1))),
            // No name has others.
            KeyCode::Char(typed) if typed.is_ascii_graphic() && self.search.text.len() < SEARCH => {
                self.narrow(|search| search.text.push(typed));
            }
            _ => {}
        }
    }

    fn is_narrowed(&self) -> bool {
        !self.search.text.is_empty() || self.search.tenant.is_some() || self.search.state.is_some()
    }

    /// Changes what is looked for, and begins with the first of it.
    fn narrow(&mut self, change: impl FnOnce(&mut Search)) {
        change(&mut self.search);
        (self.search.page, self.chosen) = (0, 0);
    }

    fn sort_by(&mut self, sort: Sort) {
        self.narrow(|search| (search.sort, search.descending) = (sort, sort.begins_descending()));
    }

    fn last_page(&self) -> usize {
        self.list.as_ref().map_or(0, |list| list.found.saturating_sub(1) / self.search.limit.max(1))
    }

    fn turn_to(&mut self, page: usize) {
        let page = page.min(self.last_page());
        if page != self.search.page {
            (self.search.page, self.chosen) = (page, 0);
        }
    }
}

fn next_state(state: Option<&str>) -> Option<&'static str> {
    match state {
        None => Some("live"),
        Some("live") => Some("building"),
        Some("building") => Some("draining"),
        Some("draining") => Some("cold"),
        Some(_) => None,
    }
}

impl Look {
    pub(super) fn into(name: Text) -> Self {
        Self { name, evaluator: None, rates: Vec::new(), before: None, scroll: 0, page: 0, last: 0 }
    }

    pub(super) fn show(&mut self, evaluator: Evaluator, now: Instant) {
        let calls = evaluator.evaluations;
        if let Some((then, before)) = self.before {
            let passed = now.saturating_duration_since(then).max(Duration::from_millis(1));
            let number = self.rates.last().map_or(0, |(number, _)| number + 1);
            // Fewer than before if it is another evaluator of the same name.
            self.rates.push((number, Some((calls - before).max(0.0) / passed.as_secs_f64())));
            let old = self.rates.len().saturating_sub(KEPT);
            self.rates.drain(..old);
        }
        (self.before, self.evaluator) = (Some((now, calls)), Some(evaluator));
    }

    fn scroll(&mut self, code: KeyCode) {
        let page = self.page.max(1);
        let to = match code {
            KeyCode::Up | KeyCode::Char('k') => self.scroll.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => self.scroll + 1,
            KeyCode::PageUp => self.scroll.saturating_sub(page),
            KeyCode::PageDown | KeyCode::Char(' ') => self.scroll + page,
            KeyCode::Home => 0,
            KeyCode::End => self.last,
            _ => return,
        };
        self.scroll = to.min(self.last);
    }
}
