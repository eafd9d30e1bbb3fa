//! The official benchmark: configured, run, read, judged, kept.
//!
//! [`Wrap::run`] leads one run: calibrate, check the space, write the configuration, run, read what came out, say why it
//! cannot be submitted if so, and keep everything in a directory of the archive:
//!
//! ```text
//! <id>/run.json            the record; written last
//! <id>/calibration/        the short run before
//! <id>/submission/         what a submission needs: the program's results, io500.ini, io500.sh (the command),
//!                          output.txt, cluster.json, system-information.txt; NOT-SUBMITTABLE.txt if it is not
//! ```
//!
//! 1. A run that fails, is interrupted or lacks phases is kept, too, with what it measured, and labelled.
//! 2. The data directory is removed at the end of every run, also of one that ends because nobody listens any more.
//! 3. The mark in `submission/` stands before anything else is there, and goes only when every rule is kept: a crash
//!    leaves nothing that looks submittable.

mod ini;
mod launch;
mod program;
mod result;
mod rules;
mod settings;

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::time::Instant;

use crate::Error;
use crate::archive::Archive;
use crate::phase::Phase;
use crate::record::{Kind, Record, System, now_unix};
use program::{Interrupts, run};
use result::{Reading, Report, Summary};
use rules::{After, Before};
use settings::{Limits, Rates, Wish};

pub use ini::{Ini, Malformed};
pub use launch::{Launcher, Ranks, official_program};
pub use program::Told;
pub use rules::{Keeping, Persistence};
pub use settings::check_path;

/// One run of the official program.
#[derive(Debug)]
pub struct Wrap {
    /// Where the file system is mounted, on every client.
    pub mount: PathBuf,
    /// The official program, as every client finds it.
    pub program: PathBuf,
    /// Starts the ranks.
    pub launcher: Launcher,
    /// Where and how many.
    pub ranks: Ranks,
    /// Seconds of the writing phases.
    pub stonewall: u64,
    /// Seconds of the writing phases of the short run before; 0: none.
    pub calibration: u64,
    /// What the nodes say.
    pub persistence: Persistence,
    /// The cluster's status, as JSON.
    pub cluster: String,
    /// What it runs on, by which runs are compared.
    pub system: System,
    /// Tells runs apart for people.
    pub about: String,
}

impl Wrap {
    /// Why no run with these settings can be submitted, whatever its result; known before it.
    #[must_use]
    pub fn reasons(&self) -> Vec<String> {
        let nowhere = Path::new("");
        rules::reasons_before(&self.before(self.configuration(nowhere, nowhere, Limits::OFFICIAL)))
    }

    /// Runs it, keeps it in `archive`, returns the record, which says why it cannot be submitted, and its directory.
    /// `told` hears what the program says.
    ///
    /// # Errors
    /// If it cannot begin: no directory, no space, a calibration that fails. What happens later is in the record.
    pub fn run(
        &self,
        archive: &Archive,
        interrupts: Receiver<()>,
        told: &mut Told<'_>,
    ) -> Result<(Record, PathBuf), Error> {
        // The program runs elsewhere, too: what it is told does not depend on a working directory.
        check_path(&self.mount)?;
        check_path(archive.directory())?;
        let interrupts = Interrupts::new(interrupts);
        let (started, started_unix) = (Instant::now(), now_unix());
        let (id, directory) = archive.make_run(started_unix)?;
        let data = self.mount.join(format!("io500-{id}"));
        fs::create_dir(&data).map_err(|error| Error::at("cannot work in", &data, error))?;
        let after = self.measure(&directory, &data, &interrupts, told);
        let removed = remove(&data);
        let (ini, after) = after?;
        let mut record = Record::new(
            Kind::Official(after.report.version.clone()),
            started_unix,
            after.report.outcomes.clone(),
        );
        record.id = id;
        record.seconds = started.elapsed().as_secs_f64();
        record.clients = self.ranks.clients();
        record.workers = self.ranks.count();
        record.stonewall_seconds = self.stonewall as f64;
        record.system.clone_from(&self.system);
        record.about.clone_from(&self.about);
        record.reasons = rules::reasons_before(&self.before(ini));
        record.reasons.extend(rules::reasons_after(&after));
        self.finish(&directory.join("submission"), &record)?;
        archive.add(&record)?;
        // The run is kept all the same.
        removed?;
        Ok((record, directory))
    }

    fn measure(
        &self,
        directory: &Path,
        data: &Path,
        interrupts: &Interrupts,
        told: &mut Told<'_>,
    ) -> Result<(Ini, After), Error> {
        let limits = if self.calibration > 0 {
            self.calibrate(&directory.join("calibration"), data, interrupts, told)?
        } else {
            Limits::OFFICIAL
        };
        let results = directory.join("submission");
        make(&results)?;
        write(&results.join(MARK), "This run has not ended.\n")?;
        let ini = self.configuration(data, &results, limits);
        let file = results.join("io500.ini");
        write(&file, &ini.to_string())?;
        let words = self.words(&file);
        write(&results.join("io500.sh"), &script(&words))?;
        write(&results.join("cluster.json"), &self.cluster)?;
        write(&results.join("system-information.txt"), &self.system())?;
        told(&format!("running: {}", line(&words))).map_err(Error::Unheard)?;
        let ended = run(&words, &results.join("output.txt"), interrupts, told)?;
        let asked = (self.ranks.count(), self.ranks.clients());
        let mut after = After { asked, ended: ended.fault(), ..After::default() };
        after.reading = said(&results, Phase::MdtestHardRead);
        match read(&results) {
            Ok(report) => after.report = report,
            Err(error) => {
                let fault = after.ended.map_or_else(String::new, |fault| format!("{fault}; "));
                after.ended = Some(format!("{fault}{error}"));
            }
        }
        after.changed = changed(&ini, &results);
        Ok((ini, after))
    }

    /// A short run of the writing phases: the limits and whether there is space follow from its rates.
    fn calibrate(
        &self,
        directory: &Path,
        data: &Path,
        interrupts: &Interrupts,
        told: &mut Told<'_>,
    ) -> Result<Limits, Error> {
        make(directory)?;
        let data = data.join("calibration");
        make(&data)?;
        let wish = Wish {
            data: &data,
            results: directory,
            stonewall: self.calibration,
            limits: Limits::OFFICIAL,
        };
        let file = directory.join("io500.ini");
        write(&file, &settings::calibration(&wish).to_string())?;
        told(&format!("calibrating: the writing phases for {} s each", self.calibration))
            .map_err(Error::Unheard)?;
        let output = directory.join("output.txt");
        let ended = run(&self.words(&file), &output, interrupts, &mut |_| Ok(()))?;
        if ended.interrupted.is_some() {
            return Err(Error::Interrupted);
        }
        let failed = |cause: String| {
            Error::Plan(format!("the calibration failed: {cause} (see {})", output.display()))
        };
        if let Some(fault) = ended.fault() {
            return Err(failed(fault));
        }
        // Known here, before the long run, and again after it.
        let machines = said(directory, Phase::MdtestHardWrite)
            .and_then(|said| rules::other_machines(self.ranks.clients(), said));
        if let Some(reason) = machines {
            told(&format!("NOT SUBMITTABLE, whatever comes out:\n  - {reason}\n"))
                .map_err(Error::Unheard)?;
        }
        let report = read(directory)?;
        let rates =
            Rates::of(&report).ok_or_else(|| failed("a writing phase has no result".into()))?;
        remove(&data)?;
        self.check_space(&rates, told)?;
        Ok(Limits::for_rates(&rates, self.ranks.count(), self.stonewall))
    }

    fn check_space(&self, rates: &Rates, told: &mut Told<'_>) -> Result<(), Error> {
        let space = rustix::fs::statvfs(&self.mount)
            .map_err(|error| Error::at("cannot ask for the space of", &self.mount, error.into()))?;
        let free = space.f_bavail * space.f_frsize;
        let needed = rates.space(self.stonewall);
        told(&format!("space: about {} are needed, {} are free", gib(needed), gib(free)))
            .map_err(Error::Unheard)?;
        if needed <= free {
            return Ok(());
        }
        let fits = self.stonewall as f64 * free as f64 / needed as f64;
        Err(Error::Plan(format!(
            "at the calibrated rates, writing phases of {} s need about {}, but {} are free in {}: give the nodes more \
             space, or try --seconds {:.0}, which cannot be submitted",
            self.stonewall,
            gib(needed),
            gib(free),
            self.mount.display(),
            (fits * 0.8).floor().max(1.0)
        )))
    }

    fn configuration(&self, data: &Path, results: &Path, limits: Limits) -> Ini {
        settings::configuration(&Wish { data, results, stonewall: self.stonewall, limits })
    }

    fn before(&self, ini: Ini) -> Before {
        Before { ini, clients: self.ranks.clients(), persistence: self.persistence.clone() }
    }

    fn words(&self, ini: &Path) -> Vec<OsString> {
        let program = [self.program.clone().into_os_string(), ini.as_os_str().to_owned()];
        self.launcher.words(&self.ranks, &program, rustix::process::geteuid().is_root())
    }

    /// What a description of the system begins with: of this machine, and of the ranks.
    fn system(&self) -> String {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let first = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_once(':').map_or("", |(_, value)| value.trim()).to_owned()
        };
        let (cpu, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
        let names = cpu.lines().filter(|line| line.starts_with("processor")).count();
        let mounts = read("/proc/self/mounts");
        let mount = self.mount.display().to_string();
        let mounted = mounts.lines().find(|line| line.split(' ').nth(1) == Some(&mount));
        format!(
            "host        {}\nkernel      {}\nprocessors  {names} x {}\nmemory      {}\nmount       {}\n\
             clients     {} ({})\nranks       {} per client\ncluster     {}\n",
            read("/proc/sys/kernel/hostname").trim(),
            read("/proc/version").trim(),
            first(&cpu, "model name"),
            first(&memory, "MemTotal"),
            mounted.unwrap_or(&mount),
            self.ranks.clients(),
            if self.ranks.hosts.is_empty() {
                "this host".into()
            } else {
                self.ranks.hosts.join(",")
            },
            self.ranks.per_host,
            self.about,
        )
    }

    /// Sets the mark aright.
    fn finish(&self, submission: &Path, record: &Record) -> Result<(), Error> {
        let mark = submission.join(MARK);
        if record.is_submittable() {
            return fs::remove_file(&mark)
                .map_err(|error| Error::at("cannot remove", &mark, error));
        }
        let reasons: Vec<String> =
            record.reasons.iter().map(|reason| format!("- {reason}\n")).collect();
        write(&mark, &format!("This result must not be submitted:\n{}", reasons.concat()))
    }
}

/// What the program left in its result directory.
fn read(results: &Path) -> Result<Report, Error> {
    let text = |name: &str| {
        let path = results.join(name);
        // Bytes that are no text become marks that no line of these files has.
        let bytes = fs::read(&path).map_err(|error| Error::at("cannot read", &path, error))?;
        Ok::<_, Error>(String::from_utf8_lossy(&bytes).into_owned())
    };
    let bad = |name: &str| {
        let path = results.join(name);
        move |error: Malformed| Error::Bad { path, cause: error.to_string() }
    };
    let summary =
        Summary::parse(&text("result_summary.txt")?).map_err(bad("result_summary.txt"))?;
    summary.with_details(&text("result.txt")?).map_err(bad("result.txt"))
}

/// What mdtest said of a phase, if it came to that.
fn said(results: &Path, phase: Phase) -> Option<Reading> {
    let text = fs::read(results.join(format!("{phase}.txt"))).ok()?;
    Reading::parse(&String::from_utf8_lossy(&text))
}

/// How the configuration that the program says it ran with differs from ours.
fn changed(ini: &Ini, results: &Path) -> Vec<String> {
    let mut changed = Vec::new();
    for name in ["io500.ini", "config-orig.ini"] {
        match fs::read_to_string(results.join(name)) {
            Ok(text) => match Ini::parse(&text) {
                Ok(ran) => changed.extend(ini.difference(&ran)),
                Err(error) => changed.push(format!("{name}, {error}")),
            },
            Err(error) => changed.push(format!("{name}: {error}")),
        }
    }
    changed.dedup();
    changed
}

fn make(path: &Path) -> Result<(), Error> {
    fs::create_dir(path).map_err(|error| Error::at("cannot make", path, error))
}

/// The program removes its own directory when it has emptied it.
fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Error::at("cannot remove", path, error))
        }
        _ => Ok(()),
    }
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    fs::write(path, text).map_err(|error| Error::at("cannot write", path, error))
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64)
}

fn line(words: &[OsString]) -> String {
    words.iter().map(|word| quoted(&word.to_string_lossy())).collect::<Vec<_>>().join(" ")
}

fn script(words: &[OsString]) -> String {
    format!("#!/bin/sh\n# How this run was started.\nexec {}\n", line(words))
}

/// For a shell.
fn quoted(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./:,=+@%".contains(letter);
    if !word.is_empty() && word.chars().all(plain) {
        word.into()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

const MARK: &str = "NOT-SUBMITTABLE.txt";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_a_shell() {
        let words: Vec<OsString> = ["/a/b", "c d", "it's", ""].map(Into::into).to_vec();
        assert_eq!(line(&words), "/a/b 'c d' 'it'\\''s' ''");
    }

    #[test]
    fn a_changed_or_lost_configuration_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let mut ini = Ini::default();
        ini.set("debug", "stonewall-time", 300);
        let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        put("io500.ini", &ini.to_string());
        put("config-orig.ini", &ini.to_string());
        assert_eq!(changed(&ini, dir.path()), Vec::<String>::new());
        put("config-orig.ini", "[debug]\nstonewall-time = 3\n");
        assert_eq!(changed(&ini, dir.path()), ["[debug] stonewall-time: 300 became 3"]);
        put("config-orig.ini", "what");
        assert!(changed(&ini, dir.path())[0].contains("config-orig.ini, line 1"));
        fs::remove_file(dir.path().join("io500.ini")).unwrap();
        assert!(changed(&ini, dir.path())[0].contains("io500.ini: "));
    }
}
