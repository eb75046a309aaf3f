//! Times, sizes and names as people read them, for messages.

use std::{fmt, time::Duration};

/// A time, rounded: `10 min`, `10 s`, `1.5 s`, `250 ms`, `0.4 ms`.
pub(crate) struct Time(pub(crate) Duration);

/// A number of bytes in the largest unit of which there is one, exact or with one decimal: `64 MiB`, `70.3 MiB`,
/// `1000 bytes`.
pub(crate) struct Size(pub(crate) u64);

/// A name from outside, in quotes. A longer one is cut. (A precision in `{:.100?}` cuts nothing.)
pub(crate) struct Quoted<'a>(pub(crate) &'a str);

/// Cuts what is longer than so many bytes, between characters, with a mark that says so.
pub(crate) fn cut(text: &mut String, most: usize) {
    if text.len() > most {
        text.truncate(text.floor_char_boundary(most));
        text.push('…');
    }
}

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.0.floor_char_boundary(100);
        let (shown, cut) = self.0.split_at(end);
        write!(f, "{shown:?}{}", if cut.is_empty() { "" } else { "…" })
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs_f64();
        if seconds >= 120.0 && self.0.as_secs().is_multiple_of(60) {
            return write!(f, "{} min", self.0.as_secs() / 60);
        }
        let (amount, unit) = if seconds >= 1.0 { (seconds, "s") } else { (seconds * 1000.0, "ms") };
        // Whole from 10 on; below, a decimal unless it is 0.
        let tenths = (amount * 10.0).round();
        if tenths >= 100.0 || tenths % 10.0 == 0.0 {
            write!(f, "{amount:.0} {unit}")
        } else {
            write!(f, "{amount:.1} {unit}")
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("GiB", 1_u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        match units.into_iter().find(|(_, unit)| self.0 >= *unit) {
            Some((name, unit)) if self.0.is_multiple_of(unit) => write!(f, "{} {name}", self.0 / unit),
            Some((name, unit)) => write!(f, "{:.1} {name}", self.0 as f64 / unit as f64),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

/// Why this is no name of an evaluator or a tenant; `None` if it is one: 1 to 128 of `A-Z a-z 0-9 . _ - /`, no `..`.
pub(crate) fn unfit_name(name: &str) -> Option<&'static str> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
    if name.is_empty() {
        Some("it is empty")
    } else if name.len() > 128 {
        Some("it is longer than 128 characters")
    } else if !name.bytes().all(allowed) {
        Some("only A-Z a-z 0-9 . _ - / are allowed")
    } else if name.contains("..") {
        Some("it must not hold ..")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_is_cut_between_characters_and_says_so() {
        for (text, most, left) in [("", 0, ""), ("ab", 2, "ab"), ("abc", 2, "ab…"), ("aé", 2, "a…"), ("aé", 3, "aé")]
        {
            let mut cutting = text.to_owned();
            cut(&mut cutting, most);
            assert_eq!(cutting, left, "{text} to {most}");
        }
    }

    #[test]
    fn a_name_is_shown_in_quotes_and_a_long_one_is_cut_between_characters() {
        for (name, shown) in [
            ("a\"\n".to_owned(), r#""a\"\n""#.to_owned()),
            ("x".repeat(100), format!("{:?}", "x".repeat(100))),
            ("x".repeat(30_000), format!("{:?}…", "x".repeat(100))),
            (format!("{}éé", "x".repeat(99)), format!("{:?}…", "x".repeat(99))),
        ] {
            assert_eq!(Quoted(&name).to_string(), shown);
        }
    }

    #[test]
    fn times_are_rounded() {
        for (nanos, shown) in [
            (600_001_000_000, "10 min"),
            (90_000_000_000, "90 s"),
            (10_000_840_358, "10 s"),
            (1_500_000_000, "1.5 s"),
            (1_000_000_000, "1 s"),
            (9_960_000_000, "10 s"),
            (250_000_000, "250 ms"),
            (12_345_678, "12 ms"),
            (1_040_000, "1 ms"),
            (400_000, "0.4 ms"),
            (0, "0 ms"),
        ] {
            assert_eq!(Time(Duration::from_nanos(nanos)).to_string(), shown);
        }
    }

    #[test]
    fn sizes_are_shown_in_their_unit() {
        for (bytes, shown) in [
            (64 << 20, "64 MiB"),
            (73_400_320, "70 MiB"),
            (73_400_321, "70.0 MiB"),
            (1 << 30, "1 GiB"),
            (1536, "1.5 KiB"),
            (1000, "1000 bytes"),
            (0, "0 bytes"),
        ] {
            assert_eq!(Size(bytes).to_string(), shown);
        }
    }
}
