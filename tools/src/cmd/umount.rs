//! `sealfs umount MOUNTPOINT`.

use std::path::PathBuf;

use crate::Failure;

/// Unmounts.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The mount.
    mountpoint: PathBuf,
    /// Also while files are open or the client is dead: programs that use it or wait for a node get an error at once.
    #[arg(long, short)]
    force: bool,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    Ok(sealfs_client::unmount(&args.mountpoint, args.force)?)
}
