//! `sealfs bench io500`: the phases of the IO500 with workers of our own.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use sealfs_io500::archive::{Archive, Runs};
use sealfs_io500::own::{Bench, OFFICIAL_STONEWALL, OFFICIAL_TRANSFER};
use sealfs_io500::{Kind, Outcome, Phase, System};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::Failure;

/// Runs the phases of the IO500 with worker processes of our own on this machine: no MPI, and no official score (that is
/// `sealfs io500`). Give several mounts of one file system, so that each worker reads what another mount wrote.
///
/// Works in a directory of its own in the first mount and removes that at the end. Whatever is read is checked.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Mounts of one file system, or directories of it.
    #[arg(required = true, value_name = "MOUNT")]
    mounts: Vec<PathBuf>,
    /// Worker processes per mount (default: the processors, shared by the mounts).
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1_024))]
    workers: Option<u64>,
    /// How long each of the four writing phases lasts.
    #[arg(long, default_value_t = OFFICIAL_STONEWALL, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// MiB that ior-easy moves at once.
    #[arg(long, default_value_t = OFFICIAL_TRANSFER >> 20, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=64))]
    transfer: u64,
    /// Keeps the run in this directory, and makes the page of all runs in it (index.html).
    #[arg(long, value_name = "DIR")]
    results: Option<PathBuf>,
    /// One JSON object per phase, and one for the whole run.
    #[arg(long)]
    json: bool,
}

/// Is a worker: `sealfs bench io500` starts it.
pub(crate) fn work() -> Result<(), Failure> {
    Ok(sealfs_io500::own::work(std::io::stdin().lock(), std::io::stdout().lock())?)
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let mounts = args.mounts.len() as u64;
    let processors = thread::available_parallelism().map_or(1, |count| count.get() as u64);
    let per_mount =
        args.workers.unwrap_or((processors / mounts).max(if mounts == 1 { 2 } else { 1 }));
    let this = std::env::current_exe()?;
    let bench = Bench {
        mounts: args.mounts.clone(),
        workers: per_mount * mounts,
        stonewall: Duration::from_secs(args.seconds),
        transfer: args.transfer << 20,
        system: system(&args.mounts[0]),
        worker: vec![this.into(), "bench".into(), "io500-worker".into()],
    };
    // Before the run, so that a directory that cannot be written is found before and not after it.
    let archive = args.results.as_deref().map(Archive::open).transpose()?;
    let earlier = archive.as_ref().map(runs).transpose()?.unwrap_or_default();
    let (record, ended) =
        bench.run(interrupts()?, |phase, outcome| tell(args.json, phase, outcome))?;
    // Kept before anything is said: nobody may be listening any more. A run that measured nothing is no run.
    let page = match &archive {
        Some(archive) if !record.results.is_empty() => Some(archive.add(&record)?),
        _ => None,
    };
    ended?;
    let mut out = std::io::stdout().lock();
    if args.json {
        return Ok(writeln!(out, "{}", serde_json::to_string(&record)?)?);
    }
    write!(out, "\n{}\nNO OFFICIAL SCORE:\n", record.table(earlier.last(&Kind::Own)))?;
    record.reasons.iter().try_for_each(|reason| writeln!(out, "  - {reason}"))?;
    if let Some(page) = page {
        writeln!(out, "\nThe page of all runs: {}", page.display())?;
    }
    Ok(())
}

/// The runs until now; those that cannot be read are named.
pub(crate) fn runs(archive: &Archive) -> Result<Runs, Failure> {
    let runs = archive.runs()?;
    for error in &runs.damaged {
        writeln!(std::io::stderr(), "sealfs: a run is left out: {error}")?;
    }
    Ok(runs)
}

/// What a mount tells of what runs on it, by which runs are compared; nothing if it is no sealfs.
pub(crate) fn system(mount: &Path) -> System {
    let Ok(status) = sealfs_client::mount_status(mount) else { return System::default() };
    let paths = status.peers.iter().filter_map(|peer| peer.path.as_ref());
    let kinds: BTreeSet<String> = paths.map(|path| path.transport.to_string()).collect();
    System {
        nodes: status.peers.len() as u64,
        transport: kinds.into_iter().collect::<Vec<_>>().join("+"),
        durability: String::new(),
    }
}

/// Says when somebody wants the run to end, be it by ending the terminal, unless the run is to outlive that (nohup(1)).
pub(crate) fn interrupts() -> Result<mpsc::Receiver<()>, Failure> {
    let (sender, receiver) = mpsc::channel();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let hangup = (!is_ignored(&status, SIGHUP)).then_some(SIGHUP);
    let mut signals = Signals::new([SIGINT, SIGTERM].into_iter().chain(hangup))?;
    thread::spawn(move || {
        for _ in signals.forever() {
            if sender.send(()).is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

/// Whether whoever started this process has it ignore `signal`, by its /proc/PID/status (proc_pid_status(5), SigIgn: a bit
/// for each signal, from 1).
fn is_ignored(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}

fn tell(json: bool, phase: Phase, outcome: Option<&Outcome>) -> std::io::Result<()> {
    match outcome {
        None => writeln!(std::io::stderr(), "{phase} ..."),
        Some(outcome) if json => {
            let line = serde_json::to_string(outcome).expect("an outcome can be written");
            writeln!(std::io::stdout(), "{line}")
        }
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_those_of_the_mask() {
        let status = "SigBlk:\tffffffffffffffff\nSigIgn:\t0000000000001001\nSigCgt:\t0\n";
        assert!(is_ignored(status, SIGHUP) && is_ignored(status, 13));
        assert!(!is_ignored(status, SIGINT) && !is_ignored("", SIGHUP));
    }
}
