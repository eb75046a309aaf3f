//! Everything that can run the same plugins, and what the pool promises of its times: a table of what was measured and
//! what is wanted. Percentiles and ratios, which is why it is not one of criterion's.
//!
//! ```text
//! cargo bench --bench engines              # all
//! cargo bench --bench engines -- workers   # one part
//! cargo bench --bench engines -- --check   # exits with 1 when a wanted value is missed
//! cargo bench --bench engines -- --test    # each part once, and nothing is judged
//! ```
//!
//! | part | what it measures |
//! |---|---|
//! | `runners` | bare wasmtime, `direct`, the `extism` crate, its pool, the `extism` engine; fresh and warm |
//! | `workers` | warm calls on one and on two workers |
//! | `endless`, `gallery` | a short evaluation beside hostile guests |
//! | `back` | the return of an evicted plugin |

mod back;
mod bare;
mod measure;
mod neighbours;
mod plugins;
mod pooled;
mod raw_extism;
mod report;
mod runners;
mod workers;

// The hostile plugins of the tests.
#[allow(dead_code, reason = "what must come of each, the tests look at")]
#[path = "../../tests/integration/hostile/gallery/mod.rs"]
mod gallery;
#[path = "../support/mod.rs"]
mod support;

use std::{process::ExitCode, time::Duration};

use self::report::Report;

/// Callers at once, where there are many.
const TASKS: usize = 64;

type Part = fn(&mut Report, Duration);

const PARTS: [(&str, Part); 5] = [
    ("runners", runners::compare),
    ("workers", workers::one_and_two),
    ("endless", neighbours::beside_endless),
    ("gallery", neighbours::beside_gallery),
    ("back", back::from_eviction),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let names: Vec<_> = arguments.iter().filter(|argument| !argument.starts_with("--")).collect();
    let mut report = Report { judges: !has("--test"), missed: 0 };
    let length = Duration::from_millis(if report.judges { 3000 } else { 50 });
    for (name, measure) in PARTS {
        if names.is_empty() || names.iter().any(|wanted| name.contains(wanted.as_str())) {
            measure(&mut report, length);
        }
    }
    if report.judges {
        println!("{} wanted values missed", report.missed);
    }
    if has("--check") && report.missed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
