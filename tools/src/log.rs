//! What is logged, and how: a filter that can be changed while the program runs, and lines of text or JSON on stderr.

use std::fmt;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};

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
}

impl Log {
    /// Begins to log; once per process. `is_daemon`: stderr will become a file.
    pub(crate) fn begin(filter: &str, format: Format, is_daemon: bool) -> Result<Self, String> {
        let (layer, handle) = reload::Layer::new(parse(filter)?);
        let is_plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let in_colour = std::io::stderr().is_terminal() && !is_daemon && !is_plain;
        let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        let lines = match format {
            Format::Text => lines.with_ansi(in_colour).boxed(),
            Format::Json => lines.json().boxed(),
        };
        tracing_subscriber::registry().with(layer).with(lines).init();
        Ok(Self(Arc::new(Mutex::new(Inner { filter: filter.to_owned(), handle }))))
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

/// Whether it is a filter.
pub(crate) fn check(filter: &str) -> Result<(), String> {
    parse(filter).map(drop)
}

fn parse(filter: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(filter).map_err(|error| {
        format!("log {filter:?}: {error}; write a level as info, or sealfs_server=debug,warn")
    })
}

/// What is logged unless somebody says.
pub(crate) const DEFAULT: &str = "warn";
