//! A directory of runs: `<id>/run.json` for each, and `index.html` that shows all.
//!
//! 1. `run.json` is written last of a run's files, and whole or not at all: a directory without one is a run that did
//!    not end, and is passed over.
//! 2. The page is made from all runs anew each time.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::page;
use crate::record::Record;
use crate::{Error, Kind};

/// A directory of runs.
#[derive(Debug)]
pub struct Archive {
    directory: PathBuf,
}

impl Archive {
    /// Makes the directory if it is missing.
    ///
    /// # Errors
    /// If that is not possible.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        fs::create_dir_all(directory)
            .map_err(|error| Error::at("cannot make", directory, error))?;
        Ok(Self { directory: directory.into() })
    }

    /// A new run's own directory.
    ///
    /// # Errors
    /// If there is one already, or it cannot be made.
    pub fn make_run(&self, id: &str) -> Result<PathBuf, Error> {
        let path = self.directory.join(id);
        fs::create_dir(&path).map_err(|error| Error::at("cannot make", &path, error))?;
        Ok(path)
    }

    /// Keeps a run, in its directory, which is made if it is missing, and makes the page anew. Returns the page's path.
    ///
    /// # Errors
    /// If something cannot be written or an earlier run cannot be read.
    pub fn add(&self, record: &Record) -> Result<PathBuf, Error> {
        let directory = self.directory.join(&record.id);
        fs::create_dir_all(&directory)
            .map_err(|error| Error::at("cannot make", &directory, error))?;
        let run = directory.join("run.json");
        if run.exists() {
            return Err(Error::at("cannot keep the run in", &run, ErrorKind::AlreadyExists.into()));
        }
        let text = serde_json::to_string_pretty(record).expect("a record can be written");
        replace(&run, &(text + "\n"))?;
        let page = self.directory.join("index.html");
        replace(&page, &page::render(&self.runs()?))?;
        Ok(page)
    }

    /// All runs that have ended, the oldest first.
    ///
    /// # Errors
    /// If one cannot be read.
    pub fn runs(&self) -> Result<Vec<Record>, Error> {
        let at = |error| Error::at("cannot list", &self.directory, error);
        let mut runs = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(at)? {
            let path = entry.map_err(at)?.path().join("run.json");
            match fs::read_to_string(&path) {
                Ok(text) => runs.push(parse(&path, &text)?),
                Err(error)
                    if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
                Err(error) => return Err(Error::at("cannot read", &path, error)),
            }
        }
        runs.sort_by(|a: &Record, b| {
            a.started_unix.cmp(&b.started_unix).then_with(|| a.id.cmp(&b.id))
        });
        Ok(runs)
    }

    /// The newest run of the same kind of benchmark.
    ///
    /// # Errors
    /// As [`Archive::runs`].
    pub fn last(&self, kind: &Kind) -> Result<Option<Record>, Error> {
        let is_own = |kind: &Kind| matches!(kind, Kind::Own);
        let runs = self.runs()?;
        Ok(runs.into_iter().rfind(|run| is_own(&run.kind) == is_own(kind)))
    }
}

fn parse(path: &Path, text: &str) -> Result<Record, Error> {
    serde_json::from_str(text)
        .map_err(|error| Error::Bad { path: path.into(), cause: format!("not a run: {error}") })
}

/// Whole or not at all.
fn replace(path: &Path, text: &str) -> Result<(), Error> {
    let new = path.with_extension("new");
    fs::write(&new, text).map_err(|error| Error::at("cannot write", &new, error))?;
    fs::rename(&new, path).map_err(|error| Error::at("cannot write", path, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Outcome, Phase};

    fn record(started: u64, value: f64) -> Record {
        Record::new(Kind::Own, started, vec![Outcome::new(Phase::Find, value, 1.0)])
    }

    #[test]
    fn runs_come_back_in_the_order_of_time_and_unfinished_ones_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let archive = Archive::open(&dir.path().join("runs")).unwrap();
        let (new, old) = (record(2_000, 2.5), record(1_000, 1.5));
        archive.add(&new).unwrap();
        archive.add(&old).unwrap();
        archive.make_run("unfinished").unwrap();
        assert_eq!(archive.runs().unwrap(), [old, new.clone()]);
        assert_eq!(archive.last(&Kind::Own).unwrap(), Some(new));
        assert_eq!(archive.last(&Kind::Official("1".into())).unwrap(), None);
        assert!(archive.make_run("unfinished").is_err());
        assert!(archive.add(&record(2_000, 9.0)).is_err(), "a run is never replaced");
    }

    #[test]
    fn bad_bytes_are_a_typed_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let archive = Archive::open(dir.path()).unwrap();
        let run = archive.make_run("bad").unwrap();
        let good = serde_json::to_string(&record(1, 1.0)).unwrap();
        for bytes in ["", "{", "[]", &good.replace("find", "fund"), &good[..good.len() - 1]] {
            fs::write(run.join("run.json"), bytes).unwrap();
            match archive.runs() {
                Err(Error::Bad { path, .. }) => assert!(path.ends_with("bad/run.json")),
                other => panic!("{bytes:?}: {other:?}"),
            }
        }
    }
}
