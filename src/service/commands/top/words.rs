//! Figures as words of a few columns, texts cut and wrapped to columns, and small charts of one line.

use ratatui::text::Span;

/// What there is no figure of.
pub(super) const NONE: &str = "–";

/// At most six columns up to 10^15: `0.4`, `7`, `12345`, `123k`, `1.2M`.
pub(super) fn number(value: f64) -> String {
    // A sum of nothing is -0.
    let value = value + 0.0;
    if value < 100.0 {
        return decimal(value, 1).trim_end_matches(".0").to_owned();
    }
    if value < 99_999.5 {
        return format!("{value:.0}");
    }
    let mut scaled = value;
    for unit in ["k", "M", "G", "T"] {
        scaled /= 1000.0;
        if scaled < 999.5 {
            return format!("{}{unit}", if scaled < 9.95 { decimal(scaled, 1) } else { decimal(scaled, 0) });
        }
    }
    format!("{value:.0e}")
}

fn decimal(value: f64, places: usize) -> String {
    format!("{value:.places$}")
}

/// At most eight columns: `0 B`, `1023 KiB`, `9.9 MiB`.
pub(super) fn bytes(value: f64) -> String {
    let mut scaled = value + 0.0;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB", "PiB"] {
        if scaled < 1023.5 {
            let places = usize::from(scaled < 9.95 && unit != "B");
            return format!("{scaled:.places$} {unit}");
        }
        scaled /= 1024.0;
    }
    format!("{value:.0e} B")
}

/// At most seven columns up to some years: `85 µs`, `1.2 ms`, `120 ms`, `3.4 s`, `12 min`, `5 h`, `99 d`.
pub(super) fn seconds(value: f64) -> String {
    match value {
        0.0 => "0 s".to_owned(),
        ..0.000_999_5 => format!("{:.0} µs", value * 1e6),
        ..0.009_95 => format!("{:.1} ms", value * 1e3),
        ..0.999_5 => format!("{:.0} ms", value * 1e3),
        ..9.95 => format!("{value:.1} s"),
        ..119.5 => format!("{value:.0} s"),
        ..7_170.0 => format!("{:.0} min", value / 60.0),
        ..172_000.0 => format!("{:.0} h", value / 3600.0),
        _ => format!("{:.0} d", value / 86_400.0),
    }
}

pub(super) fn maybe_seconds(value: Option<f64>) -> String {
    value.map_or_else(|| NONE.to_owned(), seconds)
}

/// How long it is ago; both in milliseconds since the Unix epoch.
pub(super) fn since(now: u64, then: u64) -> String {
    match now.saturating_sub(then) {
        ..2000 => "now".to_owned(),
        passed => whole(passed / 1000),
    }
}

/// The same of whole seconds.
pub(super) fn whole(time: u64) -> String {
    if time < 10 { format!("{time} s") } else { seconds(time as f64) }
}

/// How many columns a text takes.
pub(super) fn width(text: &str) -> usize {
    Span::raw(text).width()
}

/// A text, or its beginning and `…` if it takes more columns than these.
pub(super) fn cut(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let (end, _) = fitting(text, columns.saturating_sub(1));
    let mut kept = text.get(..end).unwrap_or_default().to_owned();
    if columns > 0 {
        kept.push('…');
    }
    kept
}

/// A text in lines of at most so many columns, broken at spaces where there are any.
pub(super) fn wrap(text: &str, columns: usize) -> Vec<String> {
    let (mut lines, mut rest) = (Vec::new(), text);
    loop {
        // Not the width of all that is left, which would be measured again for each line.
        let (end, first) = fitting(rest, columns);
        if end == rest.len() {
            break;
        }
        // A character that is wider than all columns is on a line of its own all the same.
        let end = if end == 0 { first } else { end };
        let (kept, more) = rest.split_at(end);
        // Before the word that does not fit, if there is another one before it.
        let end = kept.rfind(' ').filter(|space| *space > 0 && !more.starts_with(' ')).unwrap_or(end);
        let (line, more) = rest.split_at(end);
        lines.push(line.to_owned());
        rest = more.trim_start_matches(' ');
    }
    if !rest.is_empty() || lines.is_empty() {
        lines.push(rest.to_owned());
    }
    lines
}

/// How many bytes of a text fit into so many columns, and how many its first character has.
fn fitting(text: &str, columns: usize) -> (usize, usize) {
    let (mut end, mut taken, mut buffer) = (0, 0, [0; 4]);
    for character in text.chars() {
        taken += width(character.encode_utf8(&mut buffer));
        if taken > columns {
            break;
        }
        end += character.len_utf8();
    }
    (end, text.chars().next().map_or(0, char::len_utf8))
}

/// Those of the parts that fit into so many columns, with two spaces between.
pub(super) fn fit(parts: impl IntoIterator<Item = String>, columns: usize) -> String {
    let mut line = String::new();
    for part in parts {
        let between = if line.is_empty() { "" } else { "  " };
        if width(&line) + between.len() + width(&part) <= columns {
            line.push_str(between);
            line.push_str(&part);
        }
    }
    line
}

const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Seconds that one column of a chart stands for.
const STEPS: [u64; 7] = [1, 2, 5, 10, 20, 30, 60];

/// How values are drawn that several seconds of one column have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Column {
    Mean,
    Most,
}

/// A chart of numbered seconds, the last one at the right. Where there is no value, it is empty.
pub(super) fn chart(seconds: &[(u64, Option<f64>)], columns: usize, column: Column) -> String {
    let numbers = || seconds.iter().map(|(number, _)| *number);
    let (Some(first), Some(last)) = (numbers().min(), numbers().max()) else { return " ".repeat(columns) };
    let span = last.saturating_sub(first).saturating_add(1);
    let fits = |step: &&u64| last / **step - first / **step < columns as u64;
    let step = STEPS.iter().find(fits).copied().unwrap_or_else(|| span.div_ceil(columns.max(1) as u64).max(1));
    let mut bars = vec![(0.0_f64, 0_u32); columns];
    for (number, value) in seconds.iter().copied() {
        // Whole steps, so that no value moves from one column to another while the chart moves on.
        let back = usize::try_from(last / step - number / step).unwrap_or(usize::MAX);
        let at = columns.checked_sub(back).and_then(|at| at.checked_sub(1));
        if let (Some(value), Some((sum, count))) = (value, at.and_then(|at| bars.get_mut(at))) {
            *sum = if column == Column::Most { sum.max(value) } else { *sum + value };
            *count += 1;
        }
    }
    let value = |(sum, count): &(f64, u32)| {
        let divided = if column == Column::Most { *sum } else { sum / f64::from((*count).max(1)) };
        (*count > 0).then_some(divided)
    };
    let most = bars.iter().filter_map(value).fold(0.0, f64::max);
    bars.iter().map(|bar| value(bar).map_or(' ', |value| level(value, most))).collect()
}

/// How high a value is drawn of the highest.
fn level(value: f64, most: f64) -> char {
    let part = if most > 0.0 { value / most } else { 0.0 };
    let at = BARS.iter().enumerate().rposition(|(at, _)| part * 8.0 > at as f64);
    at.and_then(|at| BARS.get(at)).copied().unwrap_or('▁')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_take_few_columns() {
        for (value, shown) in [
            (-0.0, "0"),
            (0.44, "0.4"),
            (7.0, "7"),
            (12345.4, "12345"),
            (123_456.0, "123k"),
            (1.23e6, "1.2M"),
            (1e300, "1e300"),
        ] {
            assert_eq!(number(value), shown);
        }
        for (value, shown) in
            [(-0.0, "0 B"), (1023.0, "1023 B"), (1024.0, "1.0 KiB"), (1_048_064.0, "1.0 MiB"), (1.5e9, "1.4 GiB")]
        {
            assert_eq!(bytes(value), shown);
        }
        for (value, shown) in [
            (0.0, "0 s"),
            (0.000_085, "85 µs"),
            (0.001_24, "1.2 ms"),
            (0.12, "120 ms"),
            (3.44, "3.4 s"),
            (60.0, "60 s"),
            (720.0, "12 min"),
            (86_400.0, "24 h"),
            (8e6, "93 d"),
        ] {
            assert_eq!(seconds(value), shown);
        }
        assert_eq!([since(5000, 4500), since(5000, 0), since(0, 5000)], ["now", "5 s", "now"]);
        let mut value = 1e-9;
        while value < 1e12 {
            assert!(width(&number(value)) <= 6 && width(&bytes(value)) <= 8, "{value}");
            assert!(value > 3e8 || width(&seconds(value)) <= 7, "{value}: {}", seconds(value));
            value *= 1.01;
        }
    }

    #[test]
    fn texts_are_cut_and_wrapped_to_columns() {
        assert_eq!([cut("abc", 3), cut("abcd", 3), cut("日本語", 5), cut("a", 0)], ["abc", "ab…", "日本…", ""]);
        assert_eq!(wrap("to be or not", 6), ["to be", "or not"]);
        assert_eq!(wrap("abcdefg", 3), ["abc", "def", "g"]);
        assert_eq!(wrap("abc  def gh", 3), ["abc", "def", "gh"]);
        assert_eq!(wrap("      a", 3), ["   ", "a"]);
        assert_eq!(wrap("日本", 1), ["日", "本"]);
        assert_eq!(wrap("", 0), [""]);
        assert_eq!(fit(["abc", "defghi", "jk"].map(str::to_owned), 8), "abc  jk");
    }

    #[test]
    fn a_chart_has_the_last_second_at_its_right_and_steps_that_hold_all() {
        let seconds = |values: &[f64]| (0..).zip(values.iter().copied().map(Some)).collect::<Vec<_>>();
        let draw = |seconds: &[(u64, Option<f64>)], columns, column| chart(seconds, columns, column);
        assert_eq!(draw(&seconds(&[0.0, 4.0, 8.0]), 5, Column::Mean), "  ▁▄█");
        assert_eq!(draw(&seconds(&[0.0, 4.0, 8.0, 8.0]), 2, Column::Mean), "▂█");
        assert_eq!(draw(&seconds(&[0.0, 4.0, 8.0, 8.0]), 2, Column::Most), "▄█");
        assert_eq!(draw(&[(0, Some(1.0)), (1, None), (2, Some(0.001))], 3, Column::Most), "█ ▁");
        assert_eq!(draw(&[], 2, Column::Mean), "  ");
        // Numbers that no server of ours gives.
        let wild = [(0, Some(1.0)), (u64::MAX, Some(f64::NAN)), (7, Some(f64::INFINITY))];
        for columns in 0..4 {
            assert_eq!(draw(&wild, columns, Column::Mean).chars().count(), columns);
        }
    }
}
