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
        Ok(Endpoint(self.0.serve(Arc::new(move || page(&source, &last, Instant::now())))?))
    }
}

impl Endpoint {
    /// Where it listens.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.0.address()
    }
}

/// A page, or why there is none.
type Made = Result<String, String>;

/// The page, made anew if the last one is older than [`FRESH`]; one at a time.
fn page(source: &Source, last: &Mutex<Option<(Instant, Made)>>, now: Instant) -> Made {
    let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
    match &*last {
        // Who has waited for another one's page meanwhile came before it was made.
        Some((at, made)) if now.saturating_duration_since(*at) < FRESH => made.clone(),
        _ => {
            let begun = Instant::now();
            let made = make(source);
            *last = Some((now + begun.elapsed(), made.clone()));
            made
        }
    }
}

fn make(source: &Source) -> Made {
    let mut page = Page::default();
    source(&mut page)?;
    page.gauge("sealfs_build_info", "Always 1; the version of the program.")
        .sample(&[("version", env!("CARGO_PKG_VERSION"))], 1_u64);
    process::write(&mut page);
    Ok(page.finish())
}

/// Threads that serve are asked at most so often, whoever scrapes: an answer costs each half a millisecond of its processor, if
/// it has to be woken for it and a thousand shards are looked at.
const FRESH: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn threads_that_serve_are_asked_once_a_second_at_most() {
        let asked = Arc::new(AtomicUsize::new(0));
        let counting = Arc::clone(&asked);
        let source: Source = Arc::new(move |_| match counting.fetch_add(1, Ordering::Relaxed) {
            1 => Err("late".into()),
            _ => Ok(()),
        });
        let (last, begin) = (Mutex::new(None), Instant::now());
        for (ms, answered, times) in [
            (0, true, 1),
            (999, true, 1),
            (5_000, false, 2),
            // What is late is not asked again by all who wait.
            (5_900, false, 2),
            (10_000, true, 3),
        ] {
            let made = page(&source, &last, begin + Duration::from_millis(ms));
            assert_eq!((made.is_ok(), asked.load(Ordering::Relaxed)), (answered, times), "{ms}");
        }
    }
}
