//! What is logged, and how: a filter that can be changed while the program runs, and lines of text or JSON on stderr.
//!
//! A node does not wait for whoever reads its log: from [`Log::detach`] on, lines go through a bounded queue to a thread that
//! writes them. What the queue does not take is lost, counted, and said when there is room again.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use sealfs_client::LogControl;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

/// What a line looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// A line for a person.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// The program's log. A clone is the same one.
#[derive(Clone)]
pub(crate) struct Log(Arc<Mutex<Inner>>);

struct Inner {
    filter: String,
    handle: reload::Handle<EnvFilter, Registry>,
    lines: Lines,
}

impl Log {
    /// Begins to log; once per process. `is_daemon`: stderr will become a file.
    pub(crate) fn begin(filter: &str, format: Format, is_daemon: bool) -> Result<Self, String> {
        let (layer, handle) = reload::Layer::new(parse(filter)?);
        let is_plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let in_colour = io::stderr().is_terminal() && !is_daemon && !is_plain;
        let lines = Lines::default();
        let writer = lines.clone();
        let layer_of_lines = tracing_subscriber::fmt::layer().with_writer(move || writer.clone());
        let layer_of_lines = match format {
            Format::Text => layer_of_lines.with_ansi(in_colour).boxed(),
            Format::Json => layer_of_lines.json().boxed(),
        };
        tracing_subscriber::registry().with(layer).with(layer_of_lines).init();
        Ok(Self(Arc::new(Mutex::new(Inner { filter: filter.to_owned(), handle, lines }))))
    }

    /// From now on nobody waits for who reads the log. Starts a thread, so that a process that still forks must not.
    pub(crate) fn detach(&self) -> io::Result<()> {
        let (sender, items) = sync_channel(LINES_MAX);
        let queue = Arc::new(Queue { sender, lost: AtomicU64::new(0) });
        let of_thread = Arc::clone(&queue);
        thread::Builder::new().name("log".into()).spawn(move || write_lines(&items, &of_thread))?;
        let _ = self.lines().queue.set(queue);
        Ok(())
    }

    /// A line that no filter holds back.
    pub(crate) fn say(&self, line: &str) {
        let _ = self.lines().write_all(format!("{line}\n").as_bytes());
    }

    /// Before the process ends: waits until all lines are written, for a moment.
    pub(crate) fn settle(&self) {
        if let Some(queue) = self.lines().queue.get() {
            let (done, is_done) = sync_channel(1);
            if queue.sender.try_send(Item::Mark(done)).is_ok() {
                let _ = is_done.recv_timeout(SETTLING_MAX);
            }
        }
    }

    fn lines(&self) -> Lines {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).lines.clone()
    }

    /// Logs by another filter from now on; nothing changes if it is none.
    pub(crate) fn set(&self, filter: &str) -> Result<(), String> {
        let parsed = parse(filter)?;
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.handle.reload(parsed).map_err(|error| format!("the log's filter stays: {error}"))?;
        filter.clone_into(&mut inner.filter);
        Ok(())
    }

    /// The present filter.
    pub(crate) fn filter(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).filter.clone()
    }
}

impl LogControl for Log {
    fn filter(&self) -> String {
        Self::filter(self)
    }

    fn set_filter(&self, filter: &str) -> Result<(), String> {
        self.set(filter)
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Log({:?})", self.filter())
    }
}

/// Where lines are written.
#[derive(Clone, Default)]
struct Lines {
    /// Without one, to stderr at once.
    queue: Arc<OnceLock<Arc<Queue>>>,
}

struct Queue {
    sender: SyncSender<Item>,
    /// Lines that found no room.
    lost: AtomicU64,
}

enum Item {
    Line(Vec<u8>),
    /// All before it were written.
    Mark(SyncSender<()>),
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(queue) = self.queue.get() else { return io::stderr().write(bytes) };
        if queue.sender.try_send(Item::Line(bytes.to_vec())).is_err() {
            queue.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The thread that may wait for who reads.
fn write_lines(items: &Receiver<Item>, queue: &Queue) {
    for item in items {
        match item {
            // Nobody is left to be told of an error.
            Item::Line(line) => drop(io::stderr().write_all(&line)),
            Item::Mark(done) => drop(done.send(())),
        }
        let lost = queue.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            tracing::warn!("{lost} lines of the log are lost: nobody took them in time");
        }
    }
}

/// Whether it is a filter.
pub(crate) fn check(filter: &str) -> Result<(), String> {
    parse(filter).map(drop)
}

fn parse(filter: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(filter).map_err(|error| {
        format!("log {filter:?}: {error}; write a level as info, or sealfs_server=debug,warn")
    })
}

/// Lines that wait for who reads them: under a megabyte.
const LINES_MAX: usize = 4_096;
/// At the end of a process.
const SETTLING_MAX: Duration = Duration::from_secs(1);
/// What is logged unless somebody says.
pub(crate) const DEFAULT: &str = "warn";
