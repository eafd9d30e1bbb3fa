//! Tests that need more than one crate: the harness of real clusters and mounts, and what several tests share.
//!
//! The tests themselves are in `tests/`, one program per kind; `cargo ci` runs them by kind.

pub mod cluster;
pub mod sim;
