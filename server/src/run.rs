//! A running node: one pinned thread per core, and the way to stop them.

use std::net::SocketAddr;

use crate::Config;

/// A node that could not start: names the thing, the cause and the next step.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StartError(pub String);

/// The environment is beyond repair (a failed journal write, say): the process must end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Fatal {
    /// Exit code of the process.
    pub code: u8,
    /// What happened.
    pub reason: String,
}

/// A running node. Dropping it stops it.
#[derive(Debug)]
pub struct Server {
    local_addr: SocketAddr,
}

impl Server {
    /// Opens (or formats) the data directory, recovers it and starts the cores. Returns when the node is ready: recovered
    /// and listening on every core.
    pub fn start(config: Config) -> Result<Self, StartError> {
        unimplemented!("{config:?}")
    }

    /// Where it listens; with port 0 the port that the system chose.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// A handle that stops the node, from any thread.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        unimplemented!()
    }

    /// Waits until the node has stopped: asked to by a [`Stopper`], or because it cannot go on.
    pub fn wait(self) -> Result<(), Fatal> {
        unimplemented!()
    }
}

/// Stops a node.
#[derive(Clone, Debug)]
pub struct Stopper {}

impl Stopper {
    /// Asks the node to stop: what was acknowledged is synced, then [`Server::wait`] returns. Does not wait.
    pub fn stop(&self) {
        unimplemented!()
    }
}
