//! Each test of Extism's own suite has its twin here, or the reason why it does not apply: `OFFICIAL.md` has them all.

mod kernel;
mod odd;
mod pools;
mod runtime;
pub(super) mod steps;
