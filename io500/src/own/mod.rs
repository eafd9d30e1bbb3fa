//! The phases of the IO500 with workers of our own: no MPI, one machine, any number of mounts. No official score.
//!
//! The conductor ([`Bench`]) starts one process per worker and leads them through the phases in step. It takes time,
//! from the moment that the first worker is told to go until the last one is done: open, fsync and close are inside, as
//! with IOR; the sync at the end of mdtest's writes, too.
//!
//! 1. A writing phase ends by its stonewall: nobody begins an operation after it, but all go on until each has done as
//!    many as the fastest one (wear-out). Later phases work on that count.
//! 2. What one worker wrote another one reads, stats and deletes; with several mounts, through another mount. Only a
//!    single worker reads its own.
//! 3. Whatever differs from what was written ends the run: a byte, a size, a number of files found.
//! 4. Everything is in one directory, which is removed at the end, also after an error. What was measured until then is
//!    told with it.

mod crew;
mod find;
mod pattern;
mod protocol;
mod tasks;
mod worker;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::{Duration, Instant};

use crate::Error;
use crate::phase::{Group, Phase};
use crate::record::{Kind, Outcome, Record, System, now_unix};
use crew::Crew;
use protocol::{Answer, Assignment, Order, Search, Setup};
use tasks::HARD_TRANSFER;

pub use worker::work;

/// The official stonewall, seconds.
pub const OFFICIAL_STONEWALL: u64 = 300;
/// The official transfer of ior-easy, bytes.
pub const OFFICIAL_TRANSFER: u64 = 2 << 20;

/// What to measure where.
#[derive(Clone, Debug)]
pub struct Bench {
    /// Mounts of one file system, or any directories of it.
    pub mounts: Vec<PathBuf>,
    /// Worker processes in all, a multiple of the mounts.
    pub workers: u64,
    /// How long the writing phases last.
    pub stonewall: Duration,
    /// Bytes of a transfer of ior-easy, a multiple of 4 KiB.
    pub transfer: u64,
    /// What it runs on, by which runs are compared.
    pub system: System,
    /// The program that calls [`work`] on its stdin and stdout, and its arguments.
    pub worker: Vec<OsString>,
}

/// How many operations each worker did in the writing phases.
#[derive(Default)]
struct Counts {
    easy_transfers: u64,
    easy_files: u64,
    hard_transfers: u64,
    hard_files: u64,
    /// The timestamp's modification time.
    timestamp: (i64, i64),
}

impl Bench {
    /// Runs all phases; `told` hears of each one when it begins (`None`) and when it has ended. Something that comes by
    /// `interrupts` ends the run, and so does `told` when it cannot listen any more; what it left is removed. Returns what
    /// was measured, and why that is not all.
    ///
    /// # Errors
    /// If it cannot begin.
    pub fn run(
        &self,
        interrupts: Receiver<()>,
        mut told: impl FnMut(Phase, Option<&Outcome>) -> io::Result<()>,
    ) -> Result<(Record, Result<(), Error>), Error> {
        self.check()?;
        let name = format!("sealfs-io500-{:016x}", fastrand::u64(..));
        let root = self.mounts[0].join(&name);
        fs::create_dir(&root).map_err(|error| Error::at("cannot work in", &root, error))?;
        let (started, started_unix) = (Instant::now(), now_unix());
        let mut outcomes = Vec::new();
        let measured = self.measure(&name, interrupts, &mut outcomes, &mut told);
        let seconds = started.elapsed().as_secs_f64();
        let removed =
            fs::remove_dir_all(&root).map_err(|error| Error::at("cannot remove", &root, error));
        let ended = measured.and(removed);
        let mut record = Record::new(Kind::Own, started_unix, outcomes);
        record.seconds = seconds;
        record.clients = self.mounts.len() as u64;
        record.workers = self.workers;
        record.stonewall_seconds = self.stonewall.as_secs_f64();
        record.system.clone_from(&self.system);
        record.reasons = self.reasons(&record);
        record.reasons.extend(ended.as_ref().err().map(ToString::to_string));
        Ok((record, ended))
    }

    fn check(&self) -> Result<(), Error> {
        let mounts = self.mounts.len() as u64;
        if mounts == 0 || self.workers == 0 || !self.workers.is_multiple_of(mounts) {
            return Err(Error::Plan(format!(
                "{} workers cannot be shared evenly by {mounts} mounts: give a multiple of {mounts}",
                self.workers
            )));
        }
        if self.transfer == 0 || !self.transfer.is_multiple_of(pattern::PAGE as u64) {
            return Err(Error::Plan(format!(
                "a transfer of {} bytes: it must be a multiple of {}",
                self.transfer,
                pattern::PAGE
            )));
        }
        Ok(())
    }

    fn measure(
        &self,
        name: &str,
        interrupts: Receiver<()>,
        outcomes: &mut Vec<Outcome>,
        told: &mut impl FnMut(Phase, Option<&Outcome>) -> io::Result<()>,
    ) -> Result<(), Error> {
        for mount in &self.mounts[1..] {
            let other = mount.join(name);
            fs::metadata(&other).map_err(|error| {
                Error::at("the mounts are not of one file system: cannot see", &other, error)
            })?;
        }
        let mut crew = Crew::start(&self.worker, self.workers as usize)?;
        let interrupter = crew.interrupter();
        thread::spawn(move || while interrupts.recv().is_ok() && interrupter.interrupt() {});
        let seed = fastrand::u64(..);
        crew.tell_all(|rank| {
            let mount = &self.mounts[rank % self.mounts.len()];
            Order::Setup(Setup {
                root: mount.join(name),
                rank: rank as u64,
                workers: self.workers,
                seed,
                transfer: self.transfer,
            })
        })?;
        let root = self.mounts[0].join(name);
        let mut counts = Counts::default();
        for phase in Phase::ALL {
            if phase == Phase::IorHardWrite {
                counts.timestamp = timestamp(&root)?;
            }
            told(phase, None).map_err(Error::Unheard)?;
            outcomes.push(self.phase(&mut crew, phase, &mut counts, &root)?);
            told(phase, outcomes.last()).map_err(Error::Unheard)?;
        }
        Ok(())
    }

    /// Why its score is none that could be compared or submitted.
    fn reasons(&self, record: &Record) -> Vec<String> {
        let mut reasons =
            vec!["not the official benchmark: workers of our own, one machine".into()];
        if self.stonewall != Duration::from_secs(OFFICIAL_STONEWALL) {
            let seconds = self.stonewall.as_secs_f64();
            reasons
                .push(format!("writing phases of {seconds} s instead of {OFFICIAL_STONEWALL} s"));
        }
        if self.mounts.len() == 1 {
            reasons.push("one mount: reads may come from the writer's own page cache".into());
        }
        if self.workers == 1 {
            reasons.push("one worker: it reads what it wrote itself".into());
        }
        if self.transfer != OFFICIAL_TRANSFER {
            let transfer = self.transfer;
            reasons.push(format!("ior-easy moves {transfer} bytes at once instead of 2 MiB"));
        }
        let ended_early = record.results.iter().filter(|outcome| outcome.invalid);
        reasons.extend(ended_early.map(|outcome| format!("{}: {}", outcome.phase, outcome.note)));
        reasons
    }

    fn phase(
        &self,
        crew: &mut Crew,
        phase: Phase,
        counts: &mut Counts,
        root: &Path,
    ) -> Result<Outcome, Error> {
        let limit = self.limit(phase, root)?;
        let count = counts.of(phase);
        crew.tell_all(|rank| {
            Order::Prepare(Assignment {
                phase,
                owner: (rank as u64 + self.shift(phase)) % self.workers,
                count,
                stonewall_ms: self.stonewall.as_millis() as u64,
                limit,
                easy_transfers: counts.easy_transfers,
            })
        })?;
        expect(crew.hear_all()?, |answer| matches!(answer, Answer::Ready))?;
        // Of millions of names: not on the clock.
        let matches = match phase {
            Phase::Find => find::expected(self.workers, counts.hard_files),
            _ => 0,
        };
        let start = Instant::now();
        crew.tell_all(|_| Order::Go)?;
        let operations = match (phase, count) {
            (Phase::Find, _) => find_all(crew, counts.timestamp, matches)?,
            (_, Some(count)) => count * self.workers,
            (_, None) => counts.note(phase, wear_out(crew, limit)?) * self.workers,
        };
        expect(crew.hear_all()?, |answer| matches!(answer, Answer::Done))?;
        let seconds = start.elapsed().as_secs_f64().max(1e-9);
        let mut outcome = Outcome::new(phase, self.value(phase, operations, seconds), seconds);
        outcome.operations = operations;
        if phase.is_write() && seconds < self.stonewall.as_secs_f64() {
            outcome.invalid = true;
            outcome.note = "ended before the stonewall: no space for more".into();
        }
        Ok(outcome)
    }

    fn value(&self, phase: Phase, operations: u64, seconds: f64) -> f64 {
        let bytes = match phase {
            Phase::IorEasyWrite | Phase::IorEasyRead => self.transfer,
            Phase::IorHardWrite | Phase::IorHardRead => HARD_TRANSFER as u64,
            _ => pattern::PAGE as u64,
        };
        match phase.group() {
            Group::Metadata => operations as f64 / seconds / 1e3,
            Group::Bandwidth | Group::Extra => (operations * bytes) as f64 / seconds / GIB,
        }
    }

    /// At most so many operations per worker: the official numbers, or less where space is short.
    fn limit(&self, phase: Phase, root: &Path) -> Result<u64, Error> {
        let (official, bytes, share) = match phase {
            Phase::IorEasyWrite => (9_920_000 * (1 << 20) / self.transfer, self.transfer, 0.6),
            Phase::IorHardWrite => (10_000_000, HARD_TRANSFER as u64, 0.5),
            // A file's bytes and what the file system keeps about it.
            Phase::MdtestEasyWrite => (1_000_000, 1_024, 0.1),
            Phase::MdtestHardWrite => (1_000_000, 8_192, 0.5),
            _ => return Ok(u64::MAX),
        };
        let space = rustix::fs::statvfs(root)
            .map_err(|error| Error::at("cannot ask for the space of", root, error.into()))?;
        let available = (space.f_bavail * space.f_frsize) as f64;
        let limit = (available * share / self.workers as f64 / bytes as f64) as u64;
        if limit == 0 {
            let mib = available / f64::from(1 << 20);
            return Err(Error::Plan(format!(
                "{phase}: {mib:.0} MiB are free, which is not enough"
            )));
        }
        Ok(limit.min(official))
    }

    /// How far a worker's files are from its own, as mdtest and IOR shift their ranks, but always to another mount.
    fn shift(&self, phase: Phase) -> u64 {
        let nth = match phase {
            Phase::IorEasyRead
            | Phase::IorHardRead
            | Phase::MdtestEasyStat
            | Phase::MdtestHardStat => 1,
            Phase::MdtestHardRead | Phase::IorRandomRead => 2,
            Phase::MdtestEasyDelete | Phase::MdtestHardDelete => 3,
            _ => return 0,
        };
        let mounts = self.mounts.len() as u64;
        let shift = if mounts > 1 && nth % mounts == 0 { nth + 1 } else { nth };
        if shift.is_multiple_of(self.workers) { 1 } else { shift }
    }
}

impl Counts {
    /// How many operations the phase has for each worker, if that is known before.
    fn of(&self, phase: Phase) -> Option<u64> {
        match phase {
            Phase::IorEasyRead => Some(self.easy_transfers),
            Phase::IorHardRead => Some(self.hard_transfers),
            Phase::MdtestEasyStat | Phase::MdtestEasyDelete => Some(self.easy_files),
            Phase::MdtestHardStat | Phase::MdtestHardRead | Phase::MdtestHardDelete => {
                Some(self.hard_files)
            }
            _ => None,
        }
    }

    fn note(&mut self, phase: Phase, count: u64) -> u64 {
        match phase {
            Phase::IorEasyWrite => self.easy_transfers = count,
            Phase::MdtestEasyWrite => self.easy_files = count,
            Phase::IorHardWrite => self.hard_transfers = count,
            Phase::MdtestHardWrite => self.hard_files = count,
            _ => {}
        }
        count
    }
}

/// All have reached the stonewall: all go on to the largest count. Returns it.
fn wear_out(crew: &mut Crew, limit: u64) -> Result<u64, Error> {
    let mut largest = 1;
    for (rank, answer) in crew.hear_all()?.into_iter().enumerate() {
        match answer {
            Answer::Reached(count) if count <= limit => largest = largest.max(count),
            other => return Err(Error::Worker { rank, reason: format!("out of turn: {other:?}") }),
        }
    }
    crew.tell_all(|_| Order::UpTo(largest))?;
    Ok(largest)
}

/// Deals out directories until all have been looked through. Returns the number of files.
fn find_all(crew: &mut Crew, newer_than: (i64, i64), expected: u64) -> Result<u64, Error> {
    let mut waiting = vec![PathBuf::new()];
    let mut idle: Vec<usize> = (0..crew.len()).collect();
    let (mut files, mut matches) = (0, 0);
    loop {
        while let (Some(rank), Some(directory)) = (idle.last().copied(), waiting.pop()) {
            idle.pop();
            crew.tell(rank, &Order::List(Search { directory, newer_than }))?;
        }
        if idle.len() == crew.len() {
            break;
        }
        match crew.hear()? {
            (rank, Answer::Listed(listing)) => {
                idle.push(rank);
                files += listing.files;
                matches += listing.matches;
                waiting.extend(listing.directories);
            }
            (rank, other) => {
                return Err(Error::Worker { rank, reason: format!("out of turn: {other:?}") });
            }
        }
    }
    if matches != expected {
        return Err(Error::Found { matches, expected });
    }
    crew.tell_all(|_| Order::Go)?;
    Ok(files)
}

fn expect(answers: Vec<Answer>, wanted: impl Fn(&Answer) -> bool) -> Result<(), Error> {
    for (rank, answer) in answers.into_iter().enumerate() {
        if !wanted(&answer) {
            return Err(Error::Worker { rank, reason: format!("out of turn: {answer:?}") });
        }
    }
    Ok(())
}

/// Makes the timestamp file; returns its modification time as this mount tells it.
fn timestamp(root: &Path) -> Result<(i64, i64), Error> {
    let path = root.join("timestampfile");
    let made = fs::File::create(&path).and_then(|file| file.metadata());
    let attributes = made.map_err(|error| Error::at("cannot make", &path, error))?;
    Ok((attributes.mtime(), attributes.mtime_nsec()))
}

const GIB: f64 = (1u64 << 30) as f64;

#[cfg(test)]
mod tests {
    use super::*;

    fn bench(mounts: usize, workers: u64) -> Bench {
        Bench {
            mounts: (0..mounts).map(|at| format!("/m{at}").into()).collect(),
            workers,
            stonewall: Duration::from_secs(1),
            transfer: OFFICIAL_TRANSFER,
            system: System::default(),
            worker: vec!["false".into()],
        }
    }

    #[test]
    fn a_run_that_breaks_off_leaves_nothing_behind_and_says_why() {
        let dir = tempfile::tempdir().unwrap();
        // A worker that never answers.
        let worker = ["sh", "-c", "while read line; do :; done"].map(Into::into).to_vec();
        let bench = Bench { mounts: vec![dir.path().into()], worker, ..bench(1, 1) };
        let (sender, interrupts) = std::sync::mpsc::channel();
        let told = |_: Phase, _: Option<&Outcome>| {
            sender.send(()).unwrap();
            Ok(())
        };
        let (record, ended) = bench.run(interrupts, told).unwrap();
        assert!(matches!(ended, Err(Error::Interrupted)), "{ended:?}");
        assert!(record.reasons.iter().any(|reason| reason == "interrupted"), "{record:?}");
        let (_keep, interrupts) = std::sync::mpsc::channel();
        let unheard = |_: Phase, _: Option<&Outcome>| Err(io::ErrorKind::BrokenPipe.into());
        let (record, ended) = bench.run(interrupts, unheard).unwrap();
        assert!(matches!(ended, Err(Error::Unheard(_))), "{ended:?}");
        assert!(record.score.is_none() && record.results.is_empty());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn nobody_but_a_single_worker_touches_what_it_wrote_and_never_by_the_same_mount() {
        for mounts in 1..5 {
            for workers in (1..5).map(|times| times * mounts as u64) {
                let bench = bench(mounts, workers);
                for phase in Phase::ALL.into_iter().filter(|phase| !phase.is_write()) {
                    if phase == Phase::Find {
                        continue;
                    }
                    let shift = bench.shift(phase);
                    let name = format!("{phase}, {mounts} mounts, {workers} workers");
                    assert!(workers == 1 || !shift.is_multiple_of(workers), "{name}");
                    for rank in 0..workers {
                        let owner = (rank + shift) % workers;
                        let same = owner % mounts as u64 == rank % mounts as u64;
                        assert!(mounts == 1 || !same, "{name}, rank {rank}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_plan_that_cannot_be_shared_evenly_is_refused() {
        for (mounts, workers) in [(0, 1), (1, 0), (2, 3)] {
            assert!(matches!(bench(mounts, workers).check(), Err(Error::Plan(_))));
        }
        assert!(bench(2, 4).check().is_ok());
        let odd = Bench { transfer: 5_000, ..bench(1, 1) };
        assert!(matches!(odd.check(), Err(Error::Plan(_))));
    }

    #[test]
    fn values_are_gib_per_second_and_thousands_per_second() {
        let bench = bench(1, 1);
        let is = |phase, operations, expected: f64| {
            let value = bench.value(phase, operations, 2.0);
            assert!((value - expected).abs() < 1e-12, "{phase}: {value}");
        };
        is(Phase::IorEasyWrite, 1_024, 1.0);
        is(Phase::IorHardRead, 1 << 30, 23_504.0);
        is(Phase::IorRandomRead, 1 << 18, 0.5);
        is(Phase::MdtestHardStat, 3_000, 1.5);
        is(Phase::Find, 3_000, 1.5);
    }
}
