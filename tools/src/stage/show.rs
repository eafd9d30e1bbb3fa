//! How it goes, for who watches: a bar on a terminal, an event each second with `--json`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::Shared;

/// Draws or tells, each time it is asked to.
pub(crate) struct Shown<'a> {
    shared: &'a Shared,
    bar: Option<ProgressBar>,
    told: Instant,
    estimate: Arc<Estimate>,
}

/// What there is to do, as far as it is counted.
#[derive(Default)]
struct Estimate {
    entries: AtomicU64,
    bytes: AtomicU64,
    is_whole: AtomicBool,
    is_over: AtomicBool,
}

impl<'a> Shown<'a> {
    pub(crate) fn new(shared: &'a Shared) -> Self {
        let estimate = Arc::new(Estimate::default());
        let is_shown = !shared.plan.json && !shared.plan.finish && std::io::stderr().is_terminal();
        let bar = is_shown.then(|| {
            let (counting, root) = (Arc::clone(&estimate), shared.plan.source.clone());
            // It is not waited for: nothing depends on it.
            thread::spawn(move || counting.count(root));
            ProgressBar::new_spinner().with_style(
                ProgressStyle::with_template("{spinner} {msg}, {elapsed}").expect("it is valid"),
            )
        });
        Self { shared, bar, told: Instant::now(), estimate }
    }

    pub(crate) fn tick(&mut self) {
        if self.shared.plan.json && self.told.elapsed() >= Duration::from_secs(1) {
            self.told = Instant::now();
            self.shared.tally.progress();
        }
        let Some(bar) = &self.bar else { return };
        let counts = self.shared.tally.counts();
        let entries = counts.done + counts.kept;
        if self.estimate.is_whole.load(Ordering::Relaxed) && bar.length().is_none() {
            let parts = u64::from(self.shared.parts);
            bar.set_length(self.estimate.bytes.load(Ordering::Relaxed).max(1) / parts);
            bar.set_style(
                ProgressStyle::with_template(
                    "{bar:30} {binary_bytes}/{binary_total_bytes}, {binary_bytes_per_sec}, {msg}, {eta} left",
                )
                .expect("it is valid"),
            );
        }
        bar.set_position(counts.moved);
        let total = match self.estimate.entries.load(Ordering::Relaxed) {
            _ if self.shared.parts > 1 => counts.found,
            total => total.max(counts.found),
        };
        if bar.length().is_none() {
            let rate = counts.moved as f64 / bar.elapsed().as_secs_f64().max(1e-3);
            let (moved, rate) =
                (super::tally::amount(counts.moved), super::tally::amount(rate as u64));
            bar.set_message(format!("{entries} of {total} entries, {moved}, {rate}/s"));
        } else {
            bar.set_message(format!("{entries} of {total} entries"));
        }
    }
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        self.estimate.is_over.store(true, Ordering::Relaxed);
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Estimate {
    /// Counts a tree by names: it opens nothing and follows no link, and nothing but the estimate comes of it.
    fn count(&self, root: PathBuf) {
        let mut folders = vec![root];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                if self.is_over.load(Ordering::Relaxed) || folders.len() > FOLDERS_MAX {
                    return;
                }
                let Ok(meta) = entry.metadata() else { continue };
                if meta.is_dir() {
                    folders.push(entry.path());
                } else {
                    self.entries.fetch_add(1, Ordering::Relaxed);
                    let taken = std::os::unix::fs::MetadataExt::blocks(&meta).saturating_mul(512);
                    self.bytes.fetch_add(meta.len().min(taken), Ordering::Relaxed);
                }
            }
        }
        self.is_whole.store(true, Ordering::Relaxed);
    }
}

/// A tree of more folders than this at a time goes without an estimate.
const FOLDERS_MAX: usize = 100_000;
