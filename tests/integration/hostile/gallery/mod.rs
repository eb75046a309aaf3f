//! The gallery: each plugin with its trick, and what must come of it. The benches look at it too, so it needs nothing of
//! the tests around it.

mod binaries;
mod blocks;
mod guests;
mod initialisers;
mod proposals;
mod tricks;
mod uploads;

/// Everything that Extism provides, and a few functions over it.
pub(super) const IMPORTS: &str = include_str!("../../support/imports.wat");

/// What must come of a hostile plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comes {
    /// It is refused, with this kind.
    Refused(&'static str),
    /// Each evaluation ends with this kind.
    Ends(&'static str),
    /// Its trick does nothing; an evaluation succeeds.
    Nothing,
    /// Refused, ended or nothing: the engine's own affair, as long as the fault is the plugin's and it is in time.
    Somehow,
}

pub(super) struct Hostile {
    pub(super) trick: &'static str,
    pub(super) bytes: Vec<u8>,
    pub(super) comes: Comes,
}

impl Hostile {
    /// Whether a deadline ends it, or may.
    pub(super) fn meets_a_deadline(&self) -> bool {
        matches!(self.comes, Comes::Refused("build_timeout") | Comes::Ends("exec_timeout") | Comes::Somehow)
    }
}

/// Each of them.
pub(super) fn all() -> Vec<Hostile> {
    [
        uploads::all(),
        binaries::all(),
        initialisers::all(),
        guests::all(),
        tricks::all(),
        blocks::all(),
        proposals::all(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn wasm(text: &str) -> Vec<u8> {
    wat::parse_str(text).expect("a test's module is well formed")
}

fn upload(trick: &'static str, bytes: impl Into<Vec<u8>>) -> Hostile {
    Hostile { trick, bytes: bytes.into(), comes: Comes::Refused("invalid_plugin") }
}

fn module(trick: &'static str, text: &str, comes: Comes) -> Hostile {
    Hostile { trick, bytes: wasm(text), comes }
}

/// A module that runs this, with all of Extism's functions at hand.
fn run(trick: &'static str, body: &str, comes: Comes) -> Hostile {
    module(trick, &format!("(module {IMPORTS} (func (export \"run\") (result i32) {body}))"), comes)
}

/// The same, with more around it.
fn parts(trick: &'static str, rest: &str, body: &str, comes: Comes) -> Hostile {
    let text = format!("(module {IMPORTS} {rest} (func (export \"run\") (result i32) {body}))");
    module(trick, &text, comes)
}

/// A module that runs this, with one function of WASI as `$f`.
fn wasi(trick: &'static str, name: &str, ty: &str, body: &str, comes: Comes) -> Hostile {
    let text = format!(
        "(module (import \"wasi_snapshot_preview1\" \"{name}\" (func $f {ty})) {IMPORTS}
            (func (export \"run\") (result i32) {body}))"
    );
    module(trick, &text, comes)
}

/// The text of each, for as many.
fn numbered(times: usize, each: impl Fn(usize) -> String) -> String {
    (0..times).map(each).collect::<Vec<_>>().join("\n")
}
