//! `sealfs man`.

use std::path::PathBuf;

use crate::Failure;

/// Writes the manual pages into a directory: sealfs.1, and one for each verb.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Made if it is not there; /usr/local/share/man/man1 is where man(1) looks.
    dir: PathBuf,
}

pub(crate) fn run(args: &Args, command: clap::Command) -> Result<(), Failure> {
    let failed = |error| format!("cannot write manual pages into {}: {error}", args.dir.display());
    std::fs::create_dir_all(&args.dir).map_err(failed)?;
    clap_mangen::generate_to(command, &args.dir).map_err(failed)?;
    Ok(())
}
