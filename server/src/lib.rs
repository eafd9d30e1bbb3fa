//! The shell of a node: data directory, disk, mailbox, one pinned thread per core. It moves bytes and decides nothing.
//!
//! [`Settings`] is what a person may say (flags and a file), [`Config`] what they mean, [`Server`] the running node.
//! [`Server::start`] reads the configuration's files, opens or formats the data directory, recovers it, starts a thread
//! per core and returns when all of them listen. From then on the threads share nothing but mailboxes.

mod config;
mod core_thread;
mod datadir;
mod disk;
mod mailbox;
mod metrics;
mod recover;
mod reload;
mod run;
mod segments;
mod store;
mod sys;

pub use config::{Config, ConfigError, Settings};
pub use datadir::cluster_on;
pub use metrics::{Late, NodeMetrics};
pub use reload::Read;
pub use run::{Fatal, Server, StartError, Stopper};
pub use sealfs_net::Choice;
