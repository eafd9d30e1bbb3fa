//! `sealfs key FILE`.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::Failure;

/// Makes a key file of 32 random bytes, readable by its owner only.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The file; it must not exist.
    file: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    create(&args.file)
}

/// Makes the key file, with 64 hexadecimal digits in one line.
pub(crate) fn create(file: &Path) -> Result<(), Failure> {
    let name = file.display();
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(|error| format!("no random bytes for {name}: {error}"))?;
    let digits: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut opened = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .map_err(|error| format!("cannot make key file {name}: {error}"))?;
    writeln!(opened, "{digits}")
        .and_then(|()| opened.sync_all())
        .map_err(|error| format!("cannot write key file {name}: {error}").into())
}
