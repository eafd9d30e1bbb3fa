//! The verbs, and the flags that several of them have.

use sealfs_client::{Choice, Network};

use crate::Failure;

pub(crate) mod bench;
pub(crate) mod completions;
pub(crate) mod doctor;
pub(crate) mod io500;
pub(crate) mod job;
pub(crate) mod key;
pub(crate) mod local;
pub(crate) mod log;
pub(crate) mod man;
pub(crate) mod mount;
pub(crate) mod serve;
pub(crate) mod stage;
pub(crate) mod status;
pub(crate) mod umount;

/// How to reach nodes.
#[derive(clap::Args)]
pub(crate) struct NetworkArgs {
    /// With tcp, rdma, or auto (the best that both ends have).
    #[arg(long, value_name = "tcp|rdma|auto", default_value = "auto")]
    pub(crate) transport: String,
    /// The RDMA device; else whichever the route to a node goes through.
    #[arg(long, value_name = "DEVICE")]
    pub(crate) rdma_device: Option<String>,
}

impl NetworkArgs {
    /// What they say.
    pub(crate) fn network(&self) -> Result<Network, Failure> {
        let choice: Choice = self.transport.parse().map_err(|error| format!("--{error}"))?;
        Ok(Network { choice, rdma_device: self.rdma_device.clone(), ..Network::default() })
    }
}
