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
};

use super::{
    state::{Link, State},
    words::{cut, fit, seconds, width},
};

/// Heads of tables and names of figures.
const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);

pub(super) fn draw(frame: &mut Frame, state: &mut State) {
    let area = frame.area();
    let mut left = area;
    head(frame, line(&mut left), state);
    // The footer is the last to go where there is little room.
    let foot = Rect { y: left.bottom().saturating_sub(1), height: left.height.min(1), ..left };
    left.height -= foot.height;
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
            let of = format!("of the last {}", seconds(state.samples.len() as f64));
            frame.render_widget(Line::from(of).right_aligned().dim(), line(&mut left));
        }
        table::draw(frame, left, state);
    }
    footer(frame, foot, state);
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
        Link::Away(since, _) => Span::raw(format!("away {}", seconds(since.elapsed().as_secs() as f64))).red(),
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

fn footer(frame: &mut Frame, area: Rect, state: &State) {
    let columns = usize::from(area.width);
    if state.is_typing {
        let (label, help) = ("Search: ", "Enter keep  Esc clear");
        let room = columns.saturating_sub(label.len() + 1);
        // The end of a long one, where the next letter goes.
        let text = &state.search.text;
        let text = text.get(text.len().saturating_sub(room)..).unwrap_or_default();
        let mut spans = vec![Span::styled(label, BOLD), Span::raw(text.to_owned()), Span::raw(" ").reversed()];
        if room >= text.len() + help.len() + 2 {
            spans.push(Span::raw(format!("  {help}")).dim());
        }
        frame.render_widget(Line::from(spans), area);
        return;
    }
    let why = match (&state.link, &state.problem) {
        (Link::Away(_, why), _) | (Link::Live, Some(why)) => why,
        (Link::Live, None) => {
            let keys: &[&str] = if state.look.is_some() {
                &["Esc back", "↑↓ scroll", "PgUp PgDn page", "Home End"]
            } else {
                &["Enter look", "/ search", "s sort", "q leave", "r reverse", "f state", "t tenant", "PgDn page"]
            };
            let keys = fit(keys.iter().map(|key| (*key).to_owned()), columns);
            frame.render_widget(Line::from(keys).dim(), area);
            return;
        }
    };
    frame.render_widget(Line::from(cut(&why.to_string(), columns)).red(), area);
}

#[cfg(test)]
mod tests;
