//! The evaluators: as many columns as there is room for.

use std::fmt::Write;

use ratatui::{
    Frame,
    layout::{Constraint, Rect},
    style::{Style, Stylize},
    text::Line,
    widgets::{Cell, Row as Drawn, Table, TableState},
};

use super::{
    super::{
        state::{Sort, State},
        told::Row,
        words::{NONE, bytes, cut, fit, maybe_seconds, number, seconds, since},
    },
    BOLD, line,
};

/// A column.
struct Column {
    head: &'static str,
    sort: Sort,
    width: usize,
    is_figure: bool,
    /// The last ones are the first to go.
    rank: usize,
}

const fn column(head: &'static str, sort: Sort, width: usize, is_figure: bool, rank: usize) -> Column {
    Column { head, sort, width, is_figure, rank }
}

/// In their order.
const COLUMNS: [Column; 9] = [
    column("Name", Sort::Name, NAME, false, 0),
    column("Tenant", Sort::Tenant, 8, false, 8),
    column("State", Sort::State, 8, false, 3),
    column("Calls", Sort::Calls, 6, true, 1),
    column("Errors", Sort::Errors, 7, true, 2),
    column("Mean", Sort::Mean, 7, true, 5),
    column("CPU", Sort::Cpu, 7, true, 4),
    column("Memory", Sort::Memory, 8, true, 6),
    column("Used", Sort::Used, 7, true, 7),
];

/// What a name has at least.
const NAME: usize = 14;

/// From so many columns on, tenants have more room.
const ROOMY: usize = 110;

/// How wide each column is; those that are left out are not there.
fn widths(columns: usize) -> Vec<(&'static Column, usize)> {
    let mut ranked: Vec<_> = COLUMNS.iter().collect();
    ranked.sort_by_key(|column| column.rank);
    let mut left = columns;
    let mut fitting = 0;
    for (at, column) in ranked.iter().enumerate() {
        let takes = column.width + usize::from(at > 0);
        if takes > left {
            break;
        }
        (left, fitting) = (left - takes, at + 1);
    }
    // The name has what is left, and less than it wants where there is less.
    let fitting = fitting.max(1);
    let tenant = if columns >= ROOMY { left.min(8) } else { 0 };
    let name = if columns < NAME { columns } else { NAME + left - tenant };
    let shown = COLUMNS.iter().filter(|column| column.rank < fitting);
    let width = |column: &Column| match column.sort {
        Sort::Name => name,
        Sort::Tenant => column.width + tenant,
        _ => column.width,
    };
    shown.map(|column| (column, width(column))).collect()
}

pub(super) fn draw(frame: &mut Frame, mut area: Rect, state: &mut State) {
    let columns = usize::from(area.width);
    let title = line(&mut area);
    state.fit(usize::from(area.height.saturating_sub(1)));
    frame.render_widget(Line::from(said(state, columns)), title);
    let widths = widths(columns);
    let knows_p99 = state.search.knows_p99;
    let heads = widths.iter().map(|(column, width)| {
        let head = if column.sort == Sort::Mean && knows_p99 { "p99" } else { column.head };
        let is_sorted = column.sort == state.search.sort;
        let mark = match (is_sorted, state.search.descending) {
            (true, true) => "▼",
            (true, false) => "▲",
            _ => "",
        };
        cell(cut(&format!("{head}{mark}"), *width), column, Style::new())
    });
    let heads = Drawn::new(heads.collect::<Vec<_>>()).style(BOLD).underlined();
    let now = state.now();
    let rows = state.rows().iter().map(|row| {
        let cells = widths.iter().map(|(column, width)| {
            let (text, style) = content(row, column.sort, now, knows_p99);
            cell(cut(&text, *width), column, style)
        });
        Drawn::new(cells.collect::<Vec<_>>())
    });
    let constraints = widths.iter().map(|(_, width)| Constraint::Length(u16::try_from(*width).unwrap_or(u16::MAX)));
    let table = Table::new(rows, constraints).header(heads).column_spacing(1);
    let table = table.row_highlight_style(Style::new().reversed());
    let mut chosen = TableState::new().with_selected(Some(state.chosen));
    frame.render_stateful_widget(table, area, &mut chosen);
}

fn cell(text: String, column: &Column, style: Style) -> Cell<'static> {
    let text = Line::from(text);
    Cell::new(if column.is_figure { text.right_aligned() } else { text }).style(style)
}

fn content(row: &Row, of: Sort, now: u64, knows_p99: bool) -> (String, Style) {
    let plain = Style::new();
    match of {
        Sort::Name => (row.name.to_string(), plain),
        Sort::Tenant => (row.tenant.to_string(), plain),
        Sort::State => (row.state.to_string(), if row.state.as_sent() == "cold" { plain.dim() } else { plain }),
        Sort::Calls => (number(row.evaluations), plain),
        Sort::Errors => (number(row.errors), if row.errors > 0.0 { plain.red() } else { plain }),
        Sort::Mean => (maybe_seconds(if knows_p99 { row.p99_seconds } else { row.mean_seconds }), plain),
        Sort::Cpu => (seconds(row.guest_seconds), plain),
        Sort::Memory if row.memory_bytes > 0.0 => (bytes(row.memory_bytes), plain),
        Sort::Memory => (NONE.to_owned(), plain),
        Sort::Used => (row.last_used.map_or_else(|| "never".to_owned(), |then| since(now, then)), plain),
    }
}

/// Which rows are shown, of how many, and why these.
fn said(state: &State, columns: usize) -> String {
    let search = &state.search;
    let mut said = match &state.list {
        None => "Evaluators".to_owned(),
        Some(list) if list.found == 0 => "No evaluators".to_owned(),
        Some(list) => {
            let first = search.page.saturating_mul(search.limit);
            let [from, to] = [1, list.rows.len()].map(|more| first.saturating_add(more));
            format!("Evaluators {from}–{to} of {}", list.found)
        }
    };
    if !search.text.is_empty() {
        let _ = write!(said, " with {:?}", search.text);
    }
    let tenant = search.tenant.as_ref().map(|tenant| format!("of {tenant}"));
    fit(
        [Some(said), search.state.map(str::to_owned), tenant].into_iter().flatten().map(|part| cut(&part, columns)),
        columns,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_fill_the_terminal_and_the_least_important_go_first() {
        for columns in 0..300 {
            let widths = widths(columns);
            let sum: usize = widths.iter().map(|(_, width)| width).sum::<usize>() + widths.len() - 1;
            assert_eq!(sum, columns, "{columns}");
            assert!(widths[0].0.sort == Sort::Name);
        }
        let shown = |columns| widths(columns).iter().map(|(column, _)| column.head).collect::<Vec<_>>().join(" ");
        assert_eq!(shown(40), "Name State Calls Errors");
        assert_eq!(shown(80), "Name Tenant State Calls Errors Mean CPU Memory Used");
    }
}
