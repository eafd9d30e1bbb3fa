//! The one binary: `sealfs <verb>`, one file per verb in `cmd/`.
//!
//! A verb parses, calls a library, prints. Exit status 0: done; 1: an error, whose text names the thing, the cause and
//! the next step; 2: the command line is wrong (`doctor`: 1 is degraded, 2 unusable or a wrong command
//! line; `job` has more, see `cmd/job.rs`). Called as `mount.sealfs` or `mount.fuse.sealfs` it speaks mount(8)'s helper convention.
#![forbid(unsafe_code)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool talks on its streams"
)]

mod bench;
mod cmd;
mod doctor;
mod job;
mod log;
mod metrics;
mod notify;
mod peers;
mod place;
mod process;
mod reload;
mod stage;

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// A file system for high-performance computing over the drives or memory of a set of nodes.
#[derive(Parser)]
#[command(name = "sealfs", version, max_term_width = 100)]
struct Cli {
    /// What to log, e.g. `info` or `sealfs_client=debug` (also from SEALFS_LOG). Default: warn.
    #[arg(long, global = true, env = "SEALFS_LOG", value_name = "FILTER")]
    log: Option<String>,
    /// How to log (also from SEALFS_LOG_FORMAT).
    #[arg(
        long,
        global = true,
        env = "SEALFS_LOG_FORMAT",
        value_name = "text|json",
        default_value = "text",
        hide_possible_values = true
    )]
    log_format: log::Format,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Runs a node: stores files in a data directory and serves them.
    Serve(cmd::serve::Args),
    /// Mounts a cluster on a directory.
    Mount(cmd::mount::Args),
    /// Unmounts it.
    Umount(cmd::umount::Args),
    /// Shows a cluster: nodes, space, what is unreachable and why.
    Status(cmd::status::Args),
    /// A whole cluster on this machine, in one command.
    Local(cmd::local::Args),
    /// Checks this machine and the way to the nodes, and says what to do.
    Doctor(cmd::doctor::Args),
    /// A file system that lives as long as a job, for Slurm's prologue and epilogue or a job script.
    Job(cmd::job::Args),
    /// Makes a key file that all nodes and clients of a cluster share.
    Key(cmd::key::Args),
    /// Shows or changes what a mount logs, while it runs.
    Log(cmd::log::Args),
    /// Prints the completions of a shell.
    Completions(cmd::completions::Args),
    /// Writes the manual pages into a directory.
    Man(cmd::man::Args),
    /// Measures a mount (or any directory): metadata and data rates with latencies.
    Bench(cmd::bench::Args),
    /// Copies a tree into a mount or out of it: parallel, verified, restartable.
    Stage(cmd::stage::Args),
    /// Runs the official IO500 on a mount, judges and keeps the result, and shows all runs on a page.
    Io500(cmd::io500::Args),
}

/// An error for a person.
type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().collect();
    let called_as = words.first().map(Path::new).and_then(Path::file_name);
    let words = if called_as.is_some_and(cmd::mount::is_helper) {
        cmd::mount::from_helper(&words)
    } else {
        words
    };
    let cli = Cli::parse_from(words);
    // A daemon's stderr becomes its log file.
    let is_daemon = matches!(&cli.verb, Verb::Mount(args) if !args.foreground());
    let filter = cli.log.as_deref().unwrap_or(log::DEFAULT);
    let log = match log::Log::begin(filter, cli.log_format, is_daemon) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("sealfs: {error}");
            return ExitCode::from(2);
        }
    };
    let done = |()| ExitCode::SUCCESS;
    let result = match cli.verb {
        Verb::Doctor(args) => Ok(cmd::doctor::run(&args)),
        Verb::Serve(args) => cmd::serve::run(args, cli.log, log).map(done),
        Verb::Mount(args) => cmd::mount::run(args, log).map(done),
        Verb::Umount(args) => cmd::umount::run(&args).map(done),
        Verb::Status(args) => cmd::status::run(&args).map(done),
        Verb::Local(args) => cmd::local::run(args).map(done),
        Verb::Job(args) => Ok(cmd::job::run(args)),
        Verb::Key(args) => cmd::key::run(&args).map(done),
        Verb::Log(args) => cmd::log::run(&args).map(done),
        Verb::Completions(args) => cmd::completions::run(&args, Cli::command()).map(done),
        Verb::Man(args) => cmd::man::run(&args, Cli::command()).map(done),
        Verb::Bench(args) => cmd::bench::run(&args).map(done),
        Verb::Stage(args) => cmd::stage::run(args),
        Verb::Io500(args) => cmd::io500::run(&args).map(done),
    };
    match result {
        Ok(status) => status,
        Err(error) => {
            // The error may be that nobody listens any more: that is no reason to panic.
            let _ = writeln!(std::io::stderr(), "sealfs: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_has_a_manual_page_and_a_completion() {
        let dir = tempfile::tempdir().unwrap();
        clap_mangen::generate_to(Cli::command(), dir.path()).unwrap();
        let mut script = Vec::new();
        clap_complete::generate(
            clap_complete::Shell::Bash,
            &mut Cli::command(),
            "sealfs",
            &mut script,
        );
        let script = String::from_utf8(script).unwrap();
        for verb in Cli::command().get_subcommands().map(clap::Command::get_name) {
            let page =
                std::fs::read_to_string(dir.path().join(format!("sealfs-{verb}.1"))).unwrap();
            assert!(page.contains("SYNOPSIS"), "{verb}");
            assert!(script.contains(&format!("sealfs,{verb})")), "{verb}");
        }
        assert!(dir.path().join("sealfs.1").exists());
    }
}
