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
//! | `recorder` | the same with a Prometheus recorder and without |
//! | `hits` | a hit on an engine that does nothing, beside a mutex with an LRU; of 10 to 100,000 evaluators |
//! | `endless`, `gallery` | a short evaluation beside hostile guests |
//! | `collected` | how late a guest ends that does nothing but collect, and a short evaluation beside many |
//! | `dirty` | fresh evaluations of guests that write to many pages |
//! | `segments` | fresh evaluations of a plugin with many data segments |
//! | `echo` | large inputs and outputs, with Extism's kernel in the plugin's module and beside it |
//! | `init` | fresh evaluations of plugins whose initialisers run in each instance, and once; `--plugin FILE` adds one |
//! | `back` | the return of an evicted plugin |
//! | `builds` | cold builds, compiled in workers and in this process |
//! | `start` | the start of a compile worker in a small process and in a large one |
//! | `bombs` | a cold call beside compiles that do not end |
//! | `served` | warm and cold calls over HTTP, and the server's health, beside hostile evaluators |

mod back;
mod bare;
mod builds;
mod collected;
mod dirty;
mod echo;
mod hits;
mod init;
mod measure;
mod neighbours;
mod plugins;
mod pooled;
mod raw_extism;
mod recorder;
mod report;
mod runners;
mod segments;
mod served;
mod workers;

// The hostile plugins of the tests.
#[allow(dead_code, reason = "the tests want more of them")]
#[path = "../../tests/integration/workers/bombs.rs"]
mod bombs;
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

const PARTS: [(&str, Part); 16] = [
    ("runners", runners::compare),
    ("workers", workers::one_and_two),
    ("recorder", recorder::with_and_without),
    ("hits", hits::of_few_and_of_many),
    ("endless", neighbours::beside_endless),
    ("gallery", neighbours::beside_gallery),
    ("collected", collected::full_heaps),
    ("dirty", dirty::many_pages),
    ("segments", segments::many_and_one),
    ("echo", echo::of_a_mebibyte),
    ("init", init::each_and_once),
    ("back", back::from_eviction),
    ("builds", builds::in_workers_and_in_process),
    ("start", builds::of_a_worker),
    ("bombs", builds::beside_bombs),
    ("served", served::beside_hostile),
];

fn main() -> ExitCode {
    evalpool::init_compile_workers();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    // What follows a flag of a part is not a part.
    let is_value = |at: usize| at > 0 && ["--plugin", "--entry"].contains(&arguments[at - 1].as_str());
    let names = arguments.iter().enumerate().filter(|(at, argument)| !argument.starts_with("--") && !is_value(*at));
    let names: Vec<_> = names.map(|(_, argument)| argument).collect();
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
