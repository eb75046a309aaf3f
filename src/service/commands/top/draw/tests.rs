//! What is drawn, in terminals of every size.

use std::time::Instant;

use ratatui::{
    Terminal,
    backend::TestBackend,
    crossterm::event::{Event as Input, KeyCode, KeyEvent, KeyModifiers},
};
use serde_json::{Value, json};

use super::super::{
    server::{Event, Refusal, Told},
    state::{After, State, Wanted},
    told::Sample,
};

/// Names that would drive a terminal, turn text around, or take more columns than letters.
const HOSTILE: &str = "\u{1b}[2J\u{1b}]0;owned\u{7}\u{9b}31m\r\n\t\0\u{202e}日本語\u{200b}👩‍👩‍👧é\u{301}";

fn samples(count: u64) -> Vec<Sample> {
    let sample = |number: u64| {
        let calls = 40 + 10 * (number % 7);
        json!({
            "number": number, "at": 1_800_000_000_000 + number * 1000, "capacity": 256, "runtimes": [1, 11, 4, 0],
            "memory_limit": 1_u64 << 30, "memory": [20_000_000 + 200_000 * number, 30_000_000, 4_000_000],
            "waiting": [2, 0, 1], "oldest_wait": 0.12,
            "evaluations": {"ok": calls, "guest_trap": number % 2, "saturated": 1}, "builds": {"ok": number % 3},
            "evictions": {"idle": number % 2}, "wait": [0.000_08, 0.001 * (number % 5) as f64], "exec": [0.0012, 0.03],
            "changes": if number % 50 == 7 { json!([{"at": 1_800_000_000_000 + number * 1000, "name": "acme/price", "what": "replaced"}]) } else { json!([]) },
        })
    };
    serde_json::from_value((0..count).map(sample).collect()).unwrap()
}

fn rows(count: usize, name: impl Fn(usize) -> String) -> Value {
    let row = |at: usize| {
        let state = ["live", "cold", "building", "draining"].iter().cycle().nth(at);
        json!({
            "name": name(at), "tenant": "acme", "state": state,
            "evaluations": 123 * at * at, "errors": at % 3, "mean_seconds": 0.0012 * at as f64,
            "guest_seconds": 1.5 * (20.0 - at as f64), "memory_bytes": 700_000 * at, "last_used": 1_800_000_090_000_u64 - 9000 * at as u64,
        })
    };
    json!({"rows": (0..count).map(row).collect::<Vec<_>>(), "found": 103})
}

fn evaluator(text: &str) -> Value {
    json!({
        "name": text, "tenant": text, "state": "live", "revision": 7, "entry_point": text, "size_bytes": 70_000,
        "digest": "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", "instances": 3, "evaluations": 1234,
        "last_used": 1_800_000_080_000_u64, "debug": true,
        "usage": {"evaluations": 1234, "outcomes": {"ok": 1230, "guest_trap": 4}, "seconds": 3.4, "guest_seconds": 2.5},
        "p50_seconds": 0.0021, "p99_seconds": 0.04, "log": [{"at": 1_800_000_060_000_u64, "level": "warn", "text": text}],
        "spec": {"limits": {"memory": 33_554_432}, "static_data": text},
        "runtime": {"busy": 1, "uses": 1234, "memory_bytes": 7_000_000, "age_seconds": 75.5},
        "failures": [{"at": 1_800_000_070_000_u64, "times": 3, "kind": "guest_trap", "detail": format!("the plugin trapped: {text}"),
            "stack": ["0: give_up", text], "stderr": format!("one\n{text}"), "stdout": "", "hides": false}],
    })
}

/// A server that has run for a while, with this answer to what is wanted.
fn state() -> State {
    let mut state = State::new("http://127.0.0.1:8080".to_owned());
    state.hear(Ok(Event::Version("0.1.0".to_owned())));
    state.hear(Ok(Event::Samples(samples(90))));
    state
}

fn answer(state: &mut State, told: &Value) {
    let wanted = state.wanted();
    let told = match wanted {
        Wanted::List(_) => Told::List(serde_json::from_value(told.clone()).unwrap()),
        Wanted::One(_) => Told::One(serde_json::from_value(told.clone()).unwrap()),
    };
    state.take(&wanted, Ok(told));
}

/// The table, once it knows how many rows there is room for.
fn with_table(columns: u16, lines: u16, name: impl Fn(usize) -> String) -> State {
    let mut state = state();
    screen(&mut state, columns, lines);
    let limit = state.search.limit;
    answer(&mut state, &rows(limit.min(20), name));
    state
}

fn press(state: &mut State, code: KeyCode) -> After {
    state.handle(&Input::Key(KeyEvent::new(code, KeyModifiers::NONE)))
}

fn type_text(state: &mut State, text: &str) {
    for letter in text.chars() {
        press(state, KeyCode::Char(letter));
    }
}

/// The picture of the README, whose figures are made up and whose lines are not.
#[test]
fn the_readme_shows_what_is_drawn() {
    let names = ["acme/price", "acme/tax", "zeta/score", "acme/route", "greet"];
    let mut state = with_table(80, 18, |at| names.iter().cycle().nth(at).unwrap().to_string());
    answer(&mut state, &{
        let mut rows = rows(5, |at| names[at].to_owned());
        for row in rows["rows"].as_array_mut().unwrap() {
            let tenant = row["name"].as_str().unwrap().split('/').next().unwrap().to_owned();
            row["tenant"] = tenant.into();
        }
        rows["found"] = 5.into();
        rows
    });
    let readme = include_str!("../../../../../README.md");
    let (_, picture) = readme.split_once("shows the same in a terminal:\n\n```text\n").unwrap();
    let (picture, _) = picture.split_once("\n```\n").unwrap();
    let shown = screen(&mut state, 80, 18).join("\n");
    assert!(picture == shown, "the README has:\n{picture}\nand this is drawn:\n{shown}");
}

/// What a terminal of this size shows.
fn screen(state: &mut State, columns: u16, lines: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(columns, lines)).unwrap();
    terminal.draw(|frame| super::draw(frame, state)).unwrap();
    let buffer = terminal.backend().buffer();
    let symbol = |x, y| buffer.cell((x, y)).unwrap().symbol();
    for symbol in (0..lines).flat_map(|y| (0..columns).map(move |x| symbol(x, y))) {
        assert!(
            !symbol.contains(|next: char| next.is_control() || ('\u{202a}'..='\u{202e}').contains(&next)),
            "{symbol:?}"
        );
    }
    let text = |y| (0..columns).map(|x| symbol(x, y)).collect::<String>().trim_end().to_owned();
    (0..lines).map(text).collect()
}

#[track_caller]
fn shows(screen: &[String], texts: &[&str]) {
    for text in texts {
        assert!(screen.iter().any(|line| line.contains(text)), "{text:?} is not in\n{}", screen.join("\n"));
    }
}

#[test]
fn every_size_is_drawn_whatever_is_told() {
    let sizes = (0..=30).chain([40, 59, 60, 80, 109, 110, 200, 999]);
    for columns in sizes {
        for lines in [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 24, 100] {
            screen(&mut State::new("http://127.0.0.1:8080".to_owned()), columns, lines);
            let mut state = with_table(columns, lines, |at| format!("{HOSTILE}{at}"));
            screen(&mut state, columns, lines);
            press(&mut state, KeyCode::Char('t'));
            type_text(&mut state, "/a");
            screen(&mut state, columns, lines);
            press(&mut state, KeyCode::Esc);
            answer(&mut state, &rows(1, |_| HOSTILE.to_owned()));
            press(&mut state, KeyCode::Enter);
            assert!(state.look.is_some());
            screen(&mut state, columns, lines);
            answer(&mut state, &evaluator(HOSTILE));
            screen(&mut state, columns, lines);
            for code in [KeyCode::Down, KeyCode::PageDown, KeyCode::End, KeyCode::Up, KeyCode::Home] {
                press(&mut state, code);
                screen(&mut state, columns, lines);
            }
            state.hear(Err(Refusal::new(HOSTILE)));
            screen(&mut state, columns, lines);
        }
    }
}

#[test]
fn figures_beyond_belief_are_drawn() {
    let mut state = state();
    let wild = json!([{"number": u64::MAX, "at": u64::MAX, "capacity": -1, "runtimes": [1e308, 1e308, 1e308, 1e308],
        "memory": [1e308, 1e308, -5], "waiting": [1e300, 0, 0], "oldest_wait": -1, "evaluations": {"ok": 1e308, "": 1e308},
        "wait": [1e308, -1e308], "changes": [{}]}]);
    state.hear(Ok(Event::Samples(serde_json::from_value(wild).unwrap())));
    screen(&mut state, 80, 24);
    answer(
        &mut state,
        &json!({"rows": [{"evaluations": 1e308, "guest_seconds": 1e308, "memory_bytes": 1e308, "errors": -1,
        "mean_seconds": 1e308, "last_used": u64::MAX}], "found": usize::MAX}),
    );
    screen(&mut state, 80, 24);
    press(&mut state, KeyCode::End);
    screen(&mut state, 80, 24);
    press(&mut state, KeyCode::Home);
    answer(&mut state, &json!({"rows": [{}], "found": 1}));
    press(&mut state, KeyCode::Enter);
    answer(
        &mut state,
        &json!({"evaluations": 1e308, "usage": {"evaluations": 0, "seconds": 1e308}, "runtime": {}, "failures": [{}]}),
    );
    screen(&mut state, 80, 24);
}

#[test]
fn a_small_terminal_shows_what_matters_most_whole() {
    let mut state = with_table(40, 10, |at| format!("acme/price-{at}"));
    let shown = screen(&mut state, 40, 10);
    shows(&shown, &["127.0.0.1:8080", "live", "Evaluations", "Runtimes", "16 of 256", "Memory", "Calls", "Errors"]);
    shows(&shown, &["acme/price-0", "Enter look"]);
    assert!(shown.iter().all(|line| !line.is_empty()), "{shown:#?}");
    assert!(shown.iter().all(|line| !line.contains('…')), "{shown:#?}");
}

#[test]
fn what_waits_is_said_with_what_it_waits_for() {
    let mut state = with_table(120, 40, |at| format!("acme/price-{at}"));
    let shown = screen(&mut state, 120, 40);
    shows(&shown, &["3 for up to 120 ms", "place 2", "build 1", "ok 73", "saturated 1", "guest_trap 0.5"]);
    shows(
        &shown,
        &["busy 4", "p99 30 ms", "p50 1.2 ms", "idle 11", "▇", "█", "acme/price-19", "CPU▼", "of the last 90 s"],
    );
}

#[test]
fn keys_sort_search_and_turn_pages_and_each_change_begins_with_the_first_row() {
    let mut state = with_table(80, 24, |at| format!("name-{at}"));
    let limit = state.search.limit;
    assert!(limit > 8, "{limit}");
    for _ in 0..limit {
        press(&mut state, KeyCode::Down);
    }
    assert_eq!((state.search.page, state.chosen), (1, 0), "past the last row is the next page");
    answer(&mut state, &rows(limit, |at| format!("other-{at}")));
    press(&mut state, KeyCode::Up);
    assert_eq!((state.search.page, state.chosen), (0, limit - 1));
    press(&mut state, KeyCode::End);
    assert_eq!(state.search.page, 102 / limit);
    press(&mut state, KeyCode::Char('s'));
    let wanted = |state: &State| match state.wanted() {
        Wanted::List(search) => (search.sort_word(), search.descending, search.page),
        Wanted::One(_) => panic!("one is looked at"),
    };
    assert_eq!(wanted(&state), ("memory", true, 0));
    press(&mut state, KeyCode::Char('r'));
    assert_eq!(wanted(&state), ("memory", false, 0));
    for _ in 0..2 {
        press(&mut state, KeyCode::Right);
    }
    assert_eq!(wanted(&state), ("name", false, 0), "after the last column is the first");
    press(&mut state, KeyCode::Char('f'));
    type_text(&mut state, "/qu");
    press(&mut state, KeyCode::Char('é'));
    shows(&screen(&mut state, 80, 24), &["Search: qu", "with \"qu\"", "live"]);
    assert_eq!((state.search.text.as_str(), state.search.state), ("qu", Some("live")));
    press(&mut state, KeyCode::Enter);
    assert_eq!(press(&mut state, KeyCode::Esc), After::Stay, "first it takes back what narrows the table");
    assert!(state.search.text.is_empty() && state.search.state.is_none());
    assert_eq!(press(&mut state, KeyCode::Esc), After::Leave);
    assert_eq!(press(&mut state, KeyCode::Char('q')), After::Leave);
    let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(state.handle(&Input::Key(interrupt)), After::Leave);
}

#[test]
fn an_evaluator_that_is_searched_for_and_entered_at_once_is_looked_into_when_it_is_found() {
    let mut state = with_table(80, 24, |at| format!("name-{at}"));
    type_text(&mut state, "/x");
    for _ in 0..2 {
        press(&mut state, KeyCode::Enter);
    }
    assert!(state.look.is_none());
    answer(&mut state, &json!({"rows": [{"name": "x"}], "found": 1}));
    assert_eq!(state.look.as_ref().unwrap().name.as_sent(), "x");
}

#[test]
fn the_p99_of_evaluators_stands_for_their_mean_where_the_server_knows_it() {
    let mut state = with_table(80, 24, |at| format!("name-{at}"));
    press(&mut state, KeyCode::Left);
    shows(&screen(&mut state, 80, 24), &["Mean▼", "1.2 ms"]);
    assert_eq!(state.search.sort_word(), "mean");
    answer(
        &mut state,
        &json!({"rows": [{"name": "a", "p99_seconds": 0.123, "mean_seconds": 0.001}, {"name": "b", "mean_seconds": 0.77}], "found": 2}),
    );
    let shown = screen(&mut state, 80, 24);
    shows(&shown, &["p99▼", "123 ms"]);
    assert!(!shown.join("").contains("770 ms"), "what is not known is not the mean");
    assert_eq!(state.search.sort_word(), "p99");
}

#[test]
fn an_evaluator_is_shown_whole_and_one_leaves_it_for_the_table() {
    let mut state = with_table(80, 24, |_| "acme/price".to_owned());
    press(&mut state, KeyCode::Enter);
    answer(&mut state, &evaluator("acme/price"));
    let mut shown = screen(&mut state, 80, 24);
    for code in [KeyCode::PageDown, KeyCode::End] {
        press(&mut state, code);
        shown.extend(screen(&mut state, 80, 24));
    }
    shows(&shown, &["State       live", "guest_trap 4, ok 1230", "0123456789abcdef", "19 s ago: guest_trap, 3 times"]);
    shows(
        &shown,
        &[
            "the plugin trapped: acme/price",
            "0: give_up",
            "standard error",
            "p50 2.1 ms, p99 40 ms",
            "29 s ago: warn acme/price",
            "32 s ago: replaced",
            "\"memory\": 33554432",
        ],
    );
    assert_eq!(press(&mut state, KeyCode::Char('q')), After::Stay);
    shows(&screen(&mut state, 80, 24), &["Evaluators 1–"]);
}

#[test]
fn the_row_that_is_chosen_stays_so_when_the_table_moves_or_the_terminal_changes() {
    let mut state = with_table(80, 24, |at| format!("name-{at}"));
    for _ in 0..3 {
        press(&mut state, KeyCode::Down);
    }
    answer(&mut state, &rows(8, |at| format!("name-{}", 7 - at)));
    assert_eq!(state.chosen, 4);
    screen(&mut state, 80, 10);
    let limit = state.search.limit;
    assert_eq!(state.search.page * limit + state.chosen, 4);
}

#[test]
fn a_server_that_is_away_is_said_to_be_and_one_that_began_anew_has_a_new_history() {
    let mut state = state();
    state.hear(Err(Refusal::new("no answer:\u{1b} refused")));
    let shown = screen(&mut state, 80, 24);
    shows(&shown, &["away 0 s", r"no answer:\u{1b} refused", "16 of 256"]);
    let long = "401: the server does not take the token of --token-file";
    state.hear(Err(Refusal::new(long)));
    let shown = screen(&mut state, 40, 10);
    assert_eq!(shown[8..].join(" "), long, "it is whole, on two lines");
    state.hear(Ok(Event::Version("0.2.0".to_owned())));
    state.hear(Ok(Event::Samples(samples(3))));
    assert_eq!((state.samples.len(), state.next()), (3, 3));
    shows(&screen(&mut state, 80, 24), &["evalpool 0.2.0", "live"]);
}

#[test]
fn an_answer_that_comes_too_late_is_not_shown() {
    let mut state = with_table(80, 24, |at| format!("name-{at}"));
    let wanted = state.wanted();
    press(&mut state, KeyCode::Char('s'));
    state.take(&wanted, Ok(Told::List(serde_json::from_value(rows(1, |_| "late".to_owned())).unwrap())));
    assert!(state.rows().iter().all(|row| row.name.as_sent() != "late"));
    state.take(&wanted, Err(Refusal::new("too late")));
    assert_eq!(state.problem, None);
}

#[test]
fn rates_of_one_evaluator_are_those_between_two_answers() {
    let mut look = super::super::state::Look::into("a".to_owned().into());
    let began = Instant::now();
    for (after, calls) in [(0, 100), (2, 120), (4, 20)] {
        let evaluator = serde_json::from_value(json!({"evaluations": calls})).unwrap();
        look.show(evaluator, began + std::time::Duration::from_secs(after));
    }
    assert_eq!(look.rates, [(0, Some(10.0)), (1, Some(0.0))]);
}
