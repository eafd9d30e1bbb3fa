//! A node that is told its settings anew: SIGHUP reads the file of `sealfs serve --config` again.
//!
//! ```text
//! file -> flags over it -> compared with what runs -> all that is new is prepared -> then all of it is used
//! ```
//! 1. A file that cannot be read, says what is none, or changes what is fixed ([`Settings::reload`]) leaves everything as it
//!    was, and the log says why.
//! 2. Nothing is used before all of it is known to work: the filter is one, the address is bound. Only an address with the same
//!    port has to wait until the former one is free, which is taken again if that was in vain.

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

    /// Offers metrics on another address; on failure they are where they were.
    fn offer(&mut self, address: &str) -> Result<Endpoint, Failure> {
        let offer = |address: &str| Listener::bind(address)?.serve(Source::clone(&self.source));
        let refused = match offer(address) {
            Ok(endpoint) => return Ok(endpoint),
            Err(error) => error,
        };
        let port = address.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        let in_its_way = self.endpoint.take_if(|former| Some(former.address().port()) == port);
        let Some(former) = in_its_way else { return Err(refused) };
        let place = former.address().to_string();
        drop(former);
        offer(address).map_err(|error| match offer(&place) {
            Ok(former) => {
                self.endpoint = Some(former);
                error
            }
            Err(lost) => format!("{error}; and the former address is lost: {lost}").into(),
        })
    }

    fn take(&mut self, shown: &str) -> Result<(), Failure> {
        let file = self.file.as_ref().ok_or("there is no file")?;
        let new = self.flags.clone().over(Settings::from_file(file)?);
        let changed = self.settings.reload(&new)?;
        let filter = new.log.as_deref().unwrap_or(log::DEFAULT);
        log::check(filter)?;
        if changed.contains(&"metrics") {
            // The last thing that may fail.
            self.endpoint = match new.metrics.as_deref() {
                Some(address) => Some(self.offer(address)?),
                None => None,
            };
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
