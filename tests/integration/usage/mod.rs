//! What evaluations use is told, and added up.

#[cfg(feature = "service")]
mod engines;
#[cfg(feature = "service")]
mod reports;
mod series;
mod totals;
