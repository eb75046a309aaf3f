//! Fakes, spies and fixtures.
