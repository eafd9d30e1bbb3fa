//! `sealfs completions`.

use std::io::Write;

use clap_complete::Shell;

use crate::Failure;

/// Prints the completions of a shell: for bash into /usr/share/bash-completion/completions/sealfs, for zsh into a file
/// `_sealfs` in a directory of $fpath, for fish into ~/.config/fish/completions/sealfs.fish.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which shell.
    #[arg(value_enum)]
    shell: Shell,
}

pub(crate) fn run(args: &Args, mut command: clap::Command) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "sealfs", &mut script);
    Ok(std::io::stdout().write_all(&script)?)
}
