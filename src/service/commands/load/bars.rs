//! Latencies as a histogram of plain text.

use std::{fmt::Write, time::Duration};

use hdrhistogram::Histogram;

/// Characters of the longest bar.
const WIDTH: u64 = 50;

/// Buckets that end at 1, 2 and 5 times each power of ten, from the first that holds something to the last.
pub(super) fn bars(latency: &Histogram<u64>) -> String {
    let mut counts = Vec::new();
    // Of the values that one count stands for, the lowest: 20 us are up to 20 us.
    let value = |highest| latency.lowest_equivalent(highest);
    let mut values =
        latency.iter_recorded().map(|each| (value(each.value_iterated_to()), each.count_at_value())).peekable();
    for end in ends() {
        let mut count = 0;
        while let Some((_, more)) = values.next_if(|(value, _)| *value <= end) {
            count += more;
        }
        if count > 0 || !counts.is_empty() {
            counts.push((end, count));
        }
        if values.peek().is_none() {
            break;
        }
    }
    let (all, most) = (latency.len(), counts.iter().map(|(_, count)| *count).max().unwrap_or_default());
    let mut text = String::new();
    for (end, count) in counts {
        let percent = count as f64 * 100.0 / all as f64;
        // As long as its share, and seen at all if there is one.
        let bar = (count * WIDTH / most).max(u64::from(count > 0));
        let bar = "#".repeat(usize::try_from(bar).unwrap_or_default());
        let line = format!("up to {:<8}{count:>10} {percent:>5.1} % {bar}", format!("{:?}", Duration::from_nanos(end)));
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// Ends of buckets, in nanoseconds.
fn ends() -> impl Iterator<Item = u64> {
    let powers = std::iter::successors(Some(1_u64), |power| power.checked_mul(10));
    powers.flat_map(|power| [1, 2, 5].map(|times| power.saturating_mul(times)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bucket_ends_at_a_round_time_and_holds_what_is_below() {
        let mut latency = Histogram::new_with_bounds(1, 3_600_000_000_000, 3).unwrap();
        assert_eq!(bars(&latency), "");
        for (micros, times) in [(15, 100), (20, 100), (21, 50), (1_500, 1)] {
            latency.record_n(micros * 1000, times).unwrap();
        }
        let found: Vec<_> = bars(&latency)
            .lines()
            .map(|line| {
                let words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
                (words[2].clone(), words[3].clone(), words.get(6).map_or(0, String::len))
            })
            .collect();
        let expected = [
            ("20\u{b5}s", "200", 50),
            ("50\u{b5}s", "50", 12),
            ("100\u{b5}s", "0", 0),
            ("200\u{b5}s", "0", 0),
            ("500\u{b5}s", "0", 0),
            ("1ms", "0", 0),
            ("2ms", "1", 1),
        ];
        assert_eq!(found, expected.map(|(end, count, bar)| (end.to_owned(), count.to_owned(), bar)));
    }
}
