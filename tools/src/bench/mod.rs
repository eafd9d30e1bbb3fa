//! Workers that measure a directory through ordinary system calls.
//!
//! A [`Work`] is one measured phase; the phases run in the order of [`WORKS`], for a later one uses the files of an
//! earlier one. All workers start together; a phase's time is from the start to the end of the slowest. Every
//! operation's latency goes into a histogram (hdrhistogram, 3 digits).

pub(crate) mod io500;
mod works;

use std::path::PathBuf;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};

use crate::Failure;

pub(crate) use works::WORKS;

/// What to measure where.
pub(crate) struct Plan {
    /// An empty directory.
    pub(crate) root: PathBuf,
    /// Threads.
    pub(crate) workers: u32,
    /// Files per worker.
    pub(crate) files: u32,
    /// MiB per worker.
    pub(crate) mib: u32,
}

/// One measured phase.
pub(crate) struct Work {
    /// As shown.
    pub(crate) name: &'static str,
    /// Bytes that one operation moves; 0 for metadata.
    bytes: u64,
    /// How many operations a worker does.
    count: fn(&Plan) -> u64,
    /// Makes a worker's state before the clock starts.
    start: works::Start,
}

/// One worker's part of a phase, prepared; each call does one operation.
pub(crate) type Step = Box<dyn FnMut(u64) -> std::io::Result<()>>;

/// A phase's figures.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) operations: u64,
    pub(crate) seconds: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) max_us: f64,
    bytes: u64,
}

impl Row {
    /// Operations per second.
    pub(crate) fn rate(&self) -> f64 {
        self.operations as f64 / self.seconds
    }

    /// MiB per second, for data.
    pub(crate) fn mib_rate(&self) -> Option<f64> {
        (self.bytes > 0).then(|| self.rate() * self.bytes as f64 / f64::from(1 << 20))
    }
}

impl Plan {
    /// Runs one phase.
    pub(crate) fn run(&self, work: &Work, show_progress: bool) -> Result<Row, Failure> {
        let count = (work.count)(self);
        let bar = progress(work.name, count * u64::from(self.workers), show_progress);
        let barrier = Barrier::new(self.workers as usize);
        let results: Vec<_> = thread::scope(|scope| {
            let workers: Vec<_> = (0..self.workers)
                .map(|worker| {
                    let (barrier, bar) = (&barrier, &bar);
                    scope.spawn(move || self.worker(work, worker, count, barrier, bar))
                })
                .collect();
            workers
                .into_iter()
                .map(|worker| worker.join().expect("a worker does not panic"))
                .collect()
        });
        bar.finish_and_clear();
        let mut latencies = histogram();
        let (mut first, mut last) = (None::<Instant>, None::<Instant>);
        for result in results {
            let (mine, start, end) = result.map_err(|error| format!("{}: {error}", work.name))?;
            latencies.add(&mine)?;
            first = Some(first.map_or(start, |first| first.min(start)));
            last = Some(last.map_or(end, |last| last.max(end)));
        }
        let seconds = match (first, last) {
            (Some(first), Some(last)) => (last - first).as_secs_f64().max(1e-9),
            _ => return Err("there is at least one worker".into()),
        };
        let micros = |quantile: f64| latencies.value_at_quantile(quantile) as f64 / 1_000.0;
        Ok(Row {
            name: work.name,
            operations: latencies.len(),
            seconds,
            p50_us: micros(0.5),
            p99_us: micros(0.99),
            max_us: micros(1.0),
            bytes: work.bytes,
        })
    }

    /// One thread's part: its latencies (nanoseconds), when it began, when it ended.
    fn worker(
        &self,
        work: &Work,
        worker: u32,
        count: u64,
        barrier: &Barrier,
        bar: &ProgressBar,
    ) -> std::io::Result<(Histogram<u64>, Instant, Instant)> {
        let prepared = (work.start)(self, worker);
        // Every worker reaches the barrier, also one that failed, or the others would wait for ever.
        barrier.wait();
        let mut step = prepared?;
        let mut latencies = histogram();
        let start = Instant::now();
        for index in 0..count {
            let before = Instant::now();
            step(index)?;
            let nanos = before.elapsed().max(Duration::from_nanos(1)).as_nanos() as u64;
            latencies.saturating_record(nanos);
            if index % 64 == 63 {
                bar.inc(64);
            }
        }
        Ok((latencies, start, Instant::now()))
    }
}

/// 1 ns to 10 minutes, 3 digits.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000_000, 3).expect("the bounds are in order")
}

fn progress(name: &'static str, total: u64, show: bool) -> ProgressBar {
    if !show {
        return ProgressBar::hidden();
    }
    // Draws on stderr, and only when that is a terminal.
    let style = ProgressStyle::with_template("{msg:22} {wide_bar} {per_sec} {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total).with_style(style).with_message(name)
}
