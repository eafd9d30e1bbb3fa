//! `sealfs stage in|out SOURCE DEST`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;

use crate::Failure;
use crate::stage::{Checksum, Direction, Outcome, Plan, run as stage};

/// Copies a tree into a mount or out of it: in parallel, verified, and so that a second run goes on where the first one ended.
///
/// What SOURCE holds comes to be what DEST holds; nothing is deleted there. Exit status 0: all is there, durable and verified;
/// 1: something failed and is named; 2: the command line is wrong; 3: the deadline came first, and what is missing is named.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    direction: Way,
}

#[derive(Subcommand)]
enum Way {
    /// From anywhere to a sealfs mount.
    In(Options),
    /// From a sealfs mount to anywhere.
    Out(Options),
}

#[derive(clap::Args)]
struct Options {
    /// The directory whose content is copied.
    source: PathBuf,
    /// The directory that gets it; it is made if it is not there, but not its parent.
    dest: PathBuf,
    /// Only the K-th of N shares; the others are done by other processes, on any node that sees both ends.
    #[arg(long, value_name = "K/N", value_parser = part)]
    part: Option<(u32, u32)>,
    /// Only what comes when all parts have ended: directories' times, and the check that all is there.
    #[arg(long, conflicts_with = "part")]
    finish: bool,
    /// Events as JSON, one per line, on stdout.
    #[arg(long)]
    json: bool,
    /// Threads that copy.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: u16,
    /// Ends after so many seconds, whatever is done by then.
    #[arg(long, value_name = "SECONDS")]
    deadline: Option<u64>,
    /// What is read back from DEST is compared by this.
    #[arg(long, value_enum, default_value_t = Checksum::Crc32c)]
    checksum: Checksum,
    /// Leaves out what is mounted inside SOURCE.
    #[arg(long)]
    one_file_system: bool,
    /// Keeps the manifest in DEST/.sealfs-stage, so that a later run copies only what has changed.
    #[arg(long)]
    keep_manifest: bool,
    /// Copies even if no end is a sealfs mount.
    #[arg(long)]
    any: bool,
    /// Where each failure and each missing entry is named [default: in DEST/.sealfs-stage].
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// `K/N`.
fn part(text: &str) -> Result<(u32, u32), String> {
    let numbers = text
        .split_once('/')
        .and_then(|(part, parts)| Some((part.parse::<u32>().ok()?, parts.parse::<u32>().ok()?)));
    match numbers {
        Some((part, parts)) if part >= 1 && part <= parts => Ok((part, parts)),
        _ => Err("K/N with K from 1 to N, as in 2/3".into()),
    }
}

pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    let (direction, options) = match args.direction {
        Way::In(options) => (Direction::In, options),
        Way::Out(options) => (Direction::Out, options),
    };
    let outcome = stage(Plan {
        direction,
        source: options.source,
        target: options.dest,
        part: options.part,
        finish: options.finish,
        json: options.json,
        workers: options.workers.into(),
        deadline: options.deadline.map(Duration::from_secs),
        checksum: options.checksum,
        one_file_system: options.one_file_system,
        keep_manifest: options.keep_manifest,
        any: options.any,
        report: options.report,
    })?;
    Ok(ExitCode::from(match outcome {
        Outcome::Complete => 0,
        Outcome::Failed => 1,
        Outcome::Deadline => 3,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn a_part_is_one_of_all() {
        assert_eq!(part("1/1"), Ok((1, 1)));
        assert_eq!(part("2/3"), Ok((2, 3)));
        for wrong in ["", "1", "0/1", "4/3", "1/0", "-1/3", "a/b", "1/2/3"] {
            assert!(part(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_checksum_has_a_name() {
        let names: Vec<_> = Checksum::value_variants()
            .iter()
            .filter_map(|value| value.to_possible_value())
            .map(|value| value.get_name().to_owned())
            .collect();
        assert_eq!(names, ["none", "crc32c", "sha256"]);
    }
}
