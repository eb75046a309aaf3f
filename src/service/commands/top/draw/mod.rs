//! How the state is drawn, in whatever room there is. All text of others comes as [`Text`](super::told::Text), whose display
//! is harmless.

mod figures;
mod look;
mod table;

use ratatui::{
    Frame,
    layout::Rect,
    style::{Modifier, Style, Stylize},
    text::{Line, Span},
    widgets::Paragraph,
};

use super::{
    state::{Link, State},
    words::{cut, fit, whole, width, wrap},
};

/// Heads of tables and names of figures.
const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);

pub(super) fn draw(frame: &mut Frame, state: &mut State) {
    let area = frame.area();
    let mut left = area;
    head(frame, line(&mut left), state);
    // The footer is the last to go where there is little room.
    let footer = footer(state, area);
    let height = left.height.min(u16::try_from(footer.len()).unwrap_or(u16::MAX));
    let foot = Rect { y: left.bottom().saturating_sub(height), height, ..left };
    left.height -= height;
    if state.look.is_some() {
        look::draw(frame, left, state);
    } else {
        let figures = figures::figures(&state.samples);
        // The table has half of the lines at least; two of them are its heads.
        let shown = figures.len().min(usize::from(left.height.saturating_sub(2) / 2));
        for figure in figures.iter().take(shown) {
            figure.draw(frame, line(&mut left));
        }
        if left.height > 12 {
            let of = format!("of the last {}", whole(state.samples.len() as u64));
            frame.render_widget(Line::from(of).right_aligned().dim(), line(&mut left));
        }
        table::draw(frame, left, state);
    }
    frame.render_widget(Paragraph::new(footer), foot);
}

/// Takes the first line of an area; an empty one if there is none.
fn line(area: &mut Rect) -> Rect {
    let line = Rect { height: area.height.min(1), ..*area };
    area.y += line.height;
    area.height -= line.height;
    line
}

fn head(frame: &mut Frame, area: Rect, state: &State) {
    let columns = usize::from(area.width);
    let link = match &state.link {
        Link::Live if state.samples.is_empty() => Span::raw("waiting"),
        Link::Live => Span::raw("live").green(),
        Link::Away(since, _) => Span::raw(format!("away {}", whole(since.elapsed().as_secs()))).red(),
    };
    let room = columns.saturating_sub(link.width() + 2);
    let version = if state.version.is_empty() { "evalpool".to_owned() } else { format!("evalpool {}", state.version) };
    // The address says more than the version, where there is room for one of them.
    let is_roomy = width(&version) + 2 + width(&state.url) <= room;
    let mut spans = if is_roomy { vec![Span::styled(version, BOLD), Span::raw("  ")] } else { vec![] };
    let taken: usize = spans.iter().map(Span::width).sum();
    let url = state.url.trim_start_matches("http://");
    spans.push(Span::raw(cut(if is_roomy { &state.url } else { url }, room.saturating_sub(taken))));
    frame.render_widget(Line::from(spans), area);
    frame.render_widget(Line::from(link).right_aligned(), area);
}

/// Why something is not as it should be, what is typed, or what may be.
fn footer(state: &State, area: Rect) -> Vec<Line<'static>> {
    let columns = usize::from(area.width);
    if state.is_typing {
        return vec![typing(&state.search.text, columns)];
    }
    if let (Link::Away(_, why), _) | (Link::Live, Some(why)) = (&state.link, &state.problem) {
        // Whole, unless that takes what there is to see.
        let most = usize::from(area.height / 4).max(1);
        let mut lines = wrap(&why.to_string(), columns.max(1));
        if lines.len() > most {
            let rest = lines.split_off(most - 1).join(" ");
            lines.push(cut(&rest, columns));
        }
        return lines.into_iter().map(|line| Line::from(line).red()).collect();
    }
    let keys: &[&str] = if state.look.is_some() {
        &["Esc back", "↑↓ scroll", "PgUp PgDn page", "Home End"]
    } else {
        &["Enter look", "/ search", "s sort", "q leave", "r reverse", "f state", "t tenant", "PgDn page"]
    };
    vec![Line::from(fit(keys.iter().map(|key| (*key).to_owned()), columns)).dim()]
}

fn typing(text: &str, columns: usize) -> Line<'static> {
    let (label, help) = ("Search: ", "Enter keep  Esc clear");
    let room = columns.saturating_sub(label.len() + 1);
    // The end of a long one, where the next letter goes.
    let shown = text.get(text.len().saturating_sub(room)..).unwrap_or_default().to_owned();
    let mut spans = vec![Span::styled(label, BOLD), Span::raw(shown), Span::raw(" ").reversed()];
    if room >= text.len() + help.len() + 2 {
        spans.push(Span::raw(format!("  {help}")).dim());
    }
    Line::from(spans)
}

#[cfg(test)]
mod tests;
