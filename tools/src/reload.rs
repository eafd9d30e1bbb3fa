//! A node that is told its settings anew: SIGHUP reads the file of `sealfs serve --config` again.
//!
//! ```text
//! file -> flags over it -> compared with what runs -> all that is new is prepared -> then all of it is used
//! ```
//! 1. A file that cannot be read, says what is none, or changes what is fixed ([`Settings::reload`]) leaves everything as it
//!    was, and the log says why.
//! 2. Nothing is used before all of it is known to work: the filter is one, the address is bound.

use std::path::PathBuf;

use sealfs_server::Settings;

use crate::Failure;
use crate::log::{self, Log};
use crate::metrics::{Endpoint, Listener, Source};

/// What of a running node can be told anew.
pub(crate) struct Reloadable {
    /// What the command line says, which wins over the file.
    pub(crate) flags: Settings,
    pub(crate) file: Option<PathBuf>,
    /// What is in use.
    pub(crate) settings: Settings,
    pub(crate) log: Log,
    pub(crate) source: Source,
    pub(crate) endpoint: Option<Endpoint>,
}

impl Reloadable {
    /// Reads the file again, and says in the log how that went.
    pub(crate) fn reload(&mut self) {
        let Some(file) = &self.file else {
            // A node outlives the terminal that started it.
            return tracing::info!("SIGHUP: there is no --config FILE to read again");
        };
        let shown = file.display().to_string();
        if let Err(error) = self.take(&shown) {
            tracing::error!("SIGHUP: {shown} is refused: {error}");
        }
    }

    fn take(&mut self, shown: &str) -> Result<(), Failure> {
        let file = self.file.as_ref().ok_or("there is no file")?;
        let new = self.flags.clone().over(Settings::from_file(file)?);
        let changed = self.settings.reload(&new)?;
        let filter = new.log.as_deref().unwrap_or(log::DEFAULT);
        log::check(filter)?;
        if changed.contains(&"metrics") {
            let listener = new.metrics.as_deref().map(Listener::bind).transpose()?;
            let source = || Source::clone(&self.source);
            let endpoint = listener.map(|listener| listener.serve(source())).transpose()?;
            // The last thing that may fail has not.
            self.endpoint = endpoint;
        }
        let tell = || {
            if changed.is_empty() {
                tracing::warn!("SIGHUP: {shown} says nothing new (flags win over it)");
            } else {
                tracing::warn!("SIGHUP: {shown} was read again: {}", changed.join(", "));
            }
        };
        // By the filter that shows it; a new one may be silent.
        let is_heard = tracing::enabled!(tracing::Level::WARN);
        if is_heard {
            tell();
        }
        self.log.set(filter)?;
        if !is_heard {
            tell();
        }
        self.settings = new;
        Ok(())
    }
}
