//! The table: what was measured, the figure, and whether it is what is wanted.

use std::time::Duration;

/// Holds figures against what is wanted of them, and counts those that miss it.
pub(crate) struct Report {
    /// A run that does everything once, as CI does, says nothing about speed.
    pub(crate) judges: bool,
    pub(crate) missed: usize,
}

impl Report {
    /// Prints a figure with a wanted value.
    pub(crate) fn judged(&mut self, what: &str, given: &str, wanted: &str, met: bool) {
        let verdict = match (self.judges, met) {
            (false, _) => "not judged, the run is too short",
            (true, true) => "met",
            (true, false) => "MISSED",
        };
        self.missed += usize::from(self.judges && !met);
        line(what, given, &format!("wanted {wanted}: {verdict}"));
    }
}

/// Prints a figure of which nothing is wanted.
pub(crate) fn figure(what: &str, given: &str) {
    line(what, given, "");
}

/// Prints a figure with a wanted value that this machine cannot show.
pub(crate) fn skipped(what: &str, given: &str, wanted: &str, why: &str) {
    line(what, given, &format!("wanted {wanted}: skipped, {why}"));
}

fn line(what: &str, given: &str, wanted: &str) {
    println!("{}", format!("{what:<60} {given:<64} {wanted}").trim_end());
}

pub(crate) fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// Of sorted durations.
pub(crate) fn quantile(sorted: &[Duration], thousandths: usize) -> Duration {
    sorted[(sorted.len() - 1) * thousandths / 1000]
}

pub(crate) fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
