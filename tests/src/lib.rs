//! Tests that need more than one crate: the harness of real clusters and mounts, and what several tests share.
//!
//! The tests themselves are in `tests/`, one program per kind; `cargo ci` runs them by kind.

pub mod cluster;
pub mod sim;
pub mod suites;

/// Bytes that differ at every offset and for every `seed`.
#[must_use]
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; len];
    random.fill(&mut bytes);
    bytes
}

/// What the file `name`, a number, contains: up to 3 MB that follow from it.
#[must_use]
pub fn named_content(name: &str) -> Vec<u8> {
    let seed: u64 = name.parse().expect("the name is a number");
    pattern(seed, (seed % 3_000_000) as usize)
}
