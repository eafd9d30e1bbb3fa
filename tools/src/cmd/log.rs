//! `sealfs log`.

use std::path::PathBuf;

use crate::{Failure, log};

/// Shows or changes what a mount logs while it runs; as root or whoever has mounted. A node reads `log` of its settings file
/// again on SIGHUP.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The directory of a mount.
    mountpoint: PathBuf,
    /// From now on, e.g. `info` or `sealfs_client=debug,warn`. Left out: prints the present filter.
    filter: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    match &args.filter {
        None => println!("{}", sealfs_client::mount_log(&args.mountpoint)?),
        Some(filter) => {
            log::check(filter)?;
            sealfs_client::set_mount_log(&args.mountpoint, filter)?;
        }
    }
    Ok(())
}
