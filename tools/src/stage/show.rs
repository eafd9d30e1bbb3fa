//! How it goes, for who watches: a bar on a terminal, an event each second with `--json`.

use std::ffi::OsStr;
use std::io::IsTerminal;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use rustix::fs::{AtFlags, Dir as Listing, FileType, Mode, fstat, open, statat};

use super::Shared;
use super::copy::data_len;
use super::source::open_folder;
use super::tree::FOLDER;

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
    /// Counts a tree by names: it opens folders only and follows no link, and nothing but the estimate comes of it, no new
    /// atime either where that can be.
    fn count(&self, root: PathBuf) {
        let mut folders = vec![root];
        while let Some(folder) = folders.pop() {
            let Ok(opened) = open(&folder, FOLDER, Mode::empty()) else { continue };
            let quiet = fstat(&opened).and_then(|stat| open_folder(&opened, &stat));
            for entry in quiet.and_then(Listing::new).into_iter().flatten().flatten() {
                if self.is_over.load(Ordering::Relaxed) || folders.len() > FOLDERS_MAX {
                    return;
                }
                let name = entry.file_name();
                if matches!(name.to_bytes(), b"." | b"..") {
                    continue;
                }
                let Ok(stat) = statat(&opened, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    folders.push(folder.join(OsStr::from_bytes(name.to_bytes())));
                } else {
                    self.entries.fetch_add(1, Ordering::Relaxed);
                    self.bytes.fetch_add(data_len(&stat), Ordering::Relaxed);
                }
            }
        }
        self.is_whole.store(true, Ordering::Relaxed);
    }
}

/// A tree of more folders than this at a time goes without an estimate.
const FOLDERS_MAX: usize = 100_000;
