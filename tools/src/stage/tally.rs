//! What has been done, what was not, and how it is told: counters, the report file, events, the last words.
//!
//! 1. Every entry ends in exactly one of: done, kept, failed, missing.
//! 2. Every failure and every missing entry is a line of the report file, whatever their number; the first
//!    [`SHOWN_MAX`] failures are on stderr, too.
//! 3. With `--json` stdout has one event per line and nothing else; docs/staging.md lists them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use serde_json::{Value, json};

use super::names::shown;
use super::trouble::Trouble;

/// A line on stderr. Whoever reads it may be gone: that ends nothing.
macro_rules! say {
    ($($words:tt)*) => {
        let _ = writeln!(std::io::stderr(), $($words)*);
    };
}

/// Shared by all threads.
pub(crate) struct Tally {
    is_json: bool,
    started: Instant,
    found: AtomicU64,
    done: AtomicU64,
    bytes: AtomicU64,
    moved: AtomicU64,
    kept: AtomicU64,
    failed: AtomicU64,
    missing: AtomicU64,
    missing_bytes: AtomicU64,
    unread: AtomicU64,
    /// Whether all folders were walked, so that `found` is all there is.
    is_walked: AtomicBool,
    notes: Mutex<BTreeMap<String, u64>>,
    report: Mutex<Report>,
}

struct Report {
    path: PathBuf,
    file: Option<BufWriter<File>>,
    /// Why it cannot be written.
    error: Option<std::io::Error>,
}

impl Report {
    /// From here on stderr is the report; what the file has not taken goes there first.
    fn fail(&mut self, error: std::io::Error) {
        if let Some(file) = &self.file {
            let _ = std::io::stderr().write_all(file.buffer());
        }
        self.error.get_or_insert(error);
    }
}

/// The counters at one moment.
#[derive(Clone, Copy, Default, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Counts {
    /// Entries of this part that the walk has found.
    pub(crate) found: u64,
    /// Entries that this run has made and that are durable.
    pub(crate) done: u64,
    /// Their data.
    pub(crate) bytes: u64,
    /// Data moved, also of what is not complete yet.
    pub(crate) moved: u64,
    /// Entries that an earlier run had made.
    pub(crate) kept: u64,
    pub(crate) failed: u64,
    /// Entries that the deadline cut off, their data, and folders that nobody looked into.
    pub(crate) missing: u64,
    pub(crate) missing_bytes: u64,
    pub(crate) unread: u64,
}

impl Counts {
    /// Whether nothing is amiss.
    pub(crate) fn is_complete(&self) -> bool {
        self.failed == 0 && !self.is_cut_off()
    }

    pub(crate) fn is_cut_off(&self) -> bool {
        self.missing > 0 || self.unread > 0
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.found += other.found;
        self.done += other.done;
        self.bytes += other.bytes;
        self.moved += other.moved;
        self.kept += other.kept;
        self.failed += other.failed;
        self.missing += other.missing;
        self.missing_bytes += other.missing_bytes;
        self.unread += other.unread;
    }
}

impl Tally {
    pub(crate) fn new(is_json: bool, report: PathBuf) -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            is_json,
            started: Instant::now(),
            found: zero(),
            done: zero(),
            bytes: zero(),
            moved: zero(),
            kept: zero(),
            failed: zero(),
            missing: zero(),
            missing_bytes: zero(),
            unread: zero(),
            is_walked: AtomicBool::new(false),
            notes: Mutex::default(),
            report: Mutex::new(Report { path: report, file: None, error: None }),
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            found: value(&self.found),
            done: value(&self.done),
            bytes: value(&self.bytes),
            moved: value(&self.moved),
            kept: value(&self.kept),
            failed: value(&self.failed),
            missing: value(&self.missing),
            missing_bytes: value(&self.missing_bytes),
            unread: value(&self.unread),
        }
    }

    /// Entries to copy.
    pub(crate) fn found(&self, entries: u64) {
        self.found.fetch_add(entries, Ordering::Relaxed);
    }

    /// Data on its way.
    pub(crate) fn moved(&self, bytes: u64) {
        self.moved.fetch_add(bytes, Ordering::Relaxed);
    }

    /// An entry is durable.
    pub(crate) fn done(&self, bytes: u64) {
        self.done.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// An entry was there already.
    pub(crate) fn kept(&self) {
        self.kept.fetch_add(1, Ordering::Relaxed);
    }

    /// All folders were walked.
    pub(crate) fn walked(&self) {
        self.is_walked.store(true, Ordering::Relaxed);
    }

    /// An entry cannot be copied.
    pub(crate) fn failed(&self, path: &[u8], trouble: &Trouble) {
        let before = self.failed.fetch_add(1, Ordering::Relaxed);
        let (path, cause) = (shown(path), trouble.to_string());
        let event = json!({"event": "failed", "path": path, "cause": cause});
        self.report(&event);
        self.event(&event);
        if before < SHOWN_MAX {
            say!("sealfs stage: {path}: {cause}");
        } else if before == SHOWN_MAX {
            say!("sealfs stage: more failed; the report has all");
        }
    }

    /// The walk itself cannot go on.
    pub(crate) fn fail_walk(&self, error: &std::io::Error) {
        self.failed(b"", &Trouble::Other(format!("the list of folders is lost: {error}")));
    }

    /// The deadline came before the entry.
    pub(crate) fn missing(&self, path: &[u8], bytes: u64) {
        self.missing.fetch_add(1, Ordering::Relaxed);
        self.missing_bytes.fetch_add(bytes, Ordering::Relaxed);
        let event = json!({"event": "missing", "path": shown(path), "bytes": bytes});
        self.report(&event);
        self.event(&event);
    }

    /// The deadline came before anybody looked into the folder.
    pub(crate) fn unread(&self, path: &[u8]) {
        self.unread.fetch_add(1, Ordering::Relaxed);
        let event = json!({"event": "unread", "path": shown(path)});
        self.report(&event);
        self.event(&event);
    }

    /// Something that holds for many entries and fails none: said once.
    pub(crate) fn note(&self, text: &str) {
        let mut notes = self.notes.lock().expect(NO_PANIC);
        if let Some(times) = notes.get_mut(text) {
            *times += 1;
            return;
        }
        notes.insert(text.to_owned(), 1);
        drop(notes);
        self.event(&json!({"event": "note", "text": text}));
        say!("sealfs stage: {text}");
    }

    /// The first event.
    pub(crate) fn start(&self, mut event: Value) {
        event["event"] = "start".into();
        self.event(&event);
    }

    /// The event of each second.
    pub(crate) fn progress(&self) {
        let counts = self.counts();
        let seconds = self.started.elapsed().as_secs_f64();
        self.event(&json!({
            "event": "progress", "seconds": seconds, "entries": counts.done + counts.kept,
            "bytes": counts.moved, "bytes_per_s": counts.moved as f64 / seconds.max(1e-3),
            "found": counts.found, "all_found": self.is_walked.load(Ordering::Relaxed),
            "failed": counts.failed,
        }));
    }

    /// The last event, and the last words. `status` is `complete`, `failed` or `deadline`.
    pub(crate) fn conclude(&self, status: &str, counts: &Counts) {
        let report = self.close_report();
        let seconds = self.started.elapsed().as_secs_f64();
        self.event(&json!({
            "event": "done", "status": status, "seconds": seconds, "entries": counts.done,
            "bytes": counts.bytes, "kept": counts.kept, "failed": counts.failed,
            "missing": counts.missing, "missing_bytes": counts.missing_bytes,
            "unread": counts.unread, "report": report,
            "notes": *self.notes.lock().expect(NO_PANIC),
        }));
        let Counts { done, bytes, kept, failed, missing, missing_bytes, unread, .. } = counts;
        if !self.is_json {
            let rate = amount((*bytes as f64 / seconds.max(1e-3)) as u64);
            let bytes = amount(*bytes);
            let kept = match kept {
                0 => String::new(),
                kept => format!("; {kept} were there already"),
            };
            let _ = writeln!(
                std::io::stdout(),
                "{done} entries with {bytes} staged in {seconds:.1} s ({rate}/s){kept}"
            );
        }
        if *failed > 0 {
            say!("sealfs stage: {failed} failed");
        }
        if *missing > 0 || *unread > 0 {
            let bytes = amount(*missing_bytes);
            let more = match unread {
                0 => String::new(),
                unread => format!(", and what is in {unread} folders that were not looked into"),
            };
            say!(
                "sealfs stage: the deadline came before {missing} entries with {bytes}{more}; \
                 run again to go on"
            );
        }
        if let Some(report) = report {
            say!("sealfs stage: each is named in {report}");
        }
    }

    /// Where the report is, if there is something in it.
    fn close_report(&self) -> Option<String> {
        let mut report = self.report.lock().expect(NO_PANIC);
        if report.error.is_none()
            && let Some(Err(error)) = report.file.as_mut().map(Write::flush)
        {
            report.fail(error);
        }
        if let Some(error) = &report.error {
            let path = report.path.display();
            say!("sealfs stage: the report {path} is not whole ({error}); what it lacks is above");
        }
        report.file.as_ref().map(|_| report.path.display().to_string())
    }

    fn report(&self, line: &Value) {
        let mut report = self.report.lock().expect(NO_PANIC);
        if report.file.is_none() && report.error.is_none() {
            let mut options = File::options();
            options.write(true).create(true).truncate(true).mode(0o600);
            match options.open(&report.path) {
                Ok(file) => report.file = Some(BufWriter::new(file)),
                Err(error) => report.error = Some(error),
            }
        }
        let line = format!("{line}\n");
        if report.error.is_none()
            && let Some(Err(error)) =
                report.file.as_mut().map(|file| file.write_all(line.as_bytes()))
        {
            report.fail(error);
        }
        if report.error.is_some() {
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }

    fn event(&self, event: &Value) {
        if self.is_json {
            // Whoever listened is gone: the copying goes on, and its exit status says how it went.
            let _ = writeln!(std::io::stdout().lock(), "{event}");
        }
    }
}

/// Bytes for people.
pub(crate) fn amount(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

const NO_PANIC: &str = "nobody panics while he holds it";
/// Failures that are shown as they come; a log is not to be flooded.
const SHOWN_MAX: u64 = 20;
