//! The endpoint that Prometheus scrapes: `GET /metrics` over HTTP, for nodes and mounts alike.
//!
//! What is told comes from a [`Source`], which asks the node's or the mount's threads; what is true of any process (its version,
//! memory, descriptors) is added here. Rejected: a web framework (an executor and fifty crates for one path), and a file that
//! another exporter reads (somebody must write it while nobody reads).
//!
//! 1. Whoever scrapes, however fast, slowly or badly, costs a bounded number of threads, bytes and questions: see [`http`].
//! 2. Without an address there is no thread and no socket.

mod http;
mod process;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use sealfs_metrics::Page;

use crate::Failure;

/// Writes what a node or a mount has to tell, or says why it does not.
pub(crate) type Source = Arc<dyn Fn(&mut Page) -> Result<(), String> + Send + Sync>;

/// A bound address on which nobody is answered yet.
pub(crate) struct Listener(http::Listener);

/// Answers scrapes until it is dropped.
pub(crate) struct Endpoint(http::Endpoint);

impl Listener {
    /// Takes `address`, `HOST:PORT`; with port 0 a free one. Starts no thread.
    pub(crate) fn bind(address: &str) -> Result<Self, Failure> {
        Ok(Self(http::Listener::bind(address)?))
    }

    /// Where it will listen.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.0.address()
    }

    /// Answers from now on.
    pub(crate) fn serve(self, source: Source) -> Result<Endpoint, Failure> {
        let last = Mutex::new(None);
        Ok(Endpoint(self.0.serve(Arc::new(move || page(&source, &last)))?))
    }
}

impl Endpoint {
    /// Where it listens.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.0.address()
    }
}

/// One scrape at a time, and not more than [`GAP`] allows.
fn page(source: &Source, last: &Mutex<Option<Instant>>) -> Result<String, String> {
    let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(wait) = last.and_then(|last| GAP.checked_sub(last.elapsed())) {
        thread::sleep(wait);
    }
    let mut page = Page::default();
    let told = source(&mut page);
    *last = Some(Instant::now());
    told?;
    page.gauge("sealfs_build_info", "Always 1; the version of the program.")
        .sample(&[("version", env!("CARGO_PKG_VERSION"))], 1_u64);
    process::write(&mut page);
    Ok(page.finish())
}

/// Threads that serve are asked at most so often, whoever scrapes: an answer costs each half a millisecond of its processor, if
/// it has to be woken for it and a thousand shards are looked at.
const GAP: Duration = Duration::from_millis(100);
