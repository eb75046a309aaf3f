//! What evaluations use is told, and added up.

#[cfg(feature = "service")]
mod engines;
mod totals;
