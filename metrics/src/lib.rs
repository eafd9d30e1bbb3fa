//! Figures as Prometheus reads them: histograms that a thread owns, and the page of text that is scraped.
//!
//! Nothing here is shared between threads and nothing is global: who counts owns plain numbers ([`Histogram`], or just a
//! `u64`), gives a copy to whoever asks, and that one writes them down ([`Page`]). A registry of atomics that every thread
//! adds to was rejected: the threads of a node share nothing on a request's path.
//!
//! It does no I/O and reads no clock.
#![forbid(unsafe_code)]

mod histogram;
mod page;

pub use histogram::{BOUNDS_NS, Histogram};
pub use page::{Kind, Page, Samples, Value};
