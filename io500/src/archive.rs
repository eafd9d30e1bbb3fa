//! A directory of runs: `<id>/run.json` for each, and `index.html` that shows all.
//!
//! 1. `run.json` is written last of a run's files, and whole or not at all: a directory without one is a run that did
//!    not end, and is passed over.
//! 2. The page is made from all runs anew each time.
//! 3. A run that cannot be read is named, here and on the page, and left as it is; it stops no other.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::page;
use crate::record::{Record, time_name};
use crate::{Error, Kind};

/// A directory of runs.
#[derive(Debug)]
pub struct Archive {
    /// Absolute.
    directory: PathBuf,
}

/// What is in it.
#[derive(Debug, Default)]
pub struct Runs {
    /// Those that have ended, the oldest first.
    pub records: Vec<Record>,
    /// Why others cannot be read, each with its file.
    pub damaged: Vec<Error>,
}

impl Archive {
    /// Makes the directory if it is missing.
    ///
    /// # Errors
    /// If that is not possible.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        fs::create_dir_all(directory)
            .map_err(|error| Error::at("cannot make", directory, error))?;
        let directory =
            directory.canonicalize().map_err(|error| Error::at("cannot find", directory, error))?;
        Ok(Self { directory })
    }

    /// Where it is.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A new run's id, by the second in which it began, and its own directory.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn make_run(&self, started_unix: u64) -> Result<(String, PathBuf), Error> {
        let moment = time_name(started_unix);
        let mut id = moment.clone();
        for nth in 2.. {
            let path = self.directory.join(&id);
            match fs::create_dir(&path) {
                Ok(()) => return Ok((id, path)),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    id = format!("{moment}_{nth}");
                }
                Err(error) => return Err(Error::at("cannot make", &path, error)),
            }
        }
        unreachable!("there are more numbers than directories")
    }

    /// Keeps a run, in its directory, which is made if it is missing, and makes the page anew. Returns the page's path.
    ///
    /// # Errors
    /// If something cannot be written.
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

    /// All runs that have ended.
    ///
    /// # Errors
    /// If the directory cannot be listed.
    pub fn runs(&self) -> Result<Runs, Error> {
        let at = |error| Error::at("cannot list", &self.directory, error);
        let mut runs = Runs::default();
        for entry in fs::read_dir(&self.directory).map_err(at)? {
            let path = entry.map_err(at)?.path().join("run.json");
            match fs::read(&path) {
                Ok(bytes) => match parse(&path, &bytes) {
                    Ok(record) => runs.records.push(record),
                    Err(error) => runs.damaged.push(error),
                },
                Err(error)
                    if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
                Err(error) => runs.damaged.push(Error::at("cannot read", &path, error)),
            }
        }
        let order = |record: &Record| (record.started_unix, record.id.clone());
        runs.records.sort_by_cached_key(order);
        runs.damaged.sort_by_cached_key(ToString::to_string);
        Ok(runs)
    }
}

impl Runs {
    /// The newest run of the same kind of benchmark.
    #[must_use]
    pub fn last(&self, kind: &Kind) -> Option<&Record> {
        self.records.iter().rfind(|run| run.kind.is_own() == kind.is_own())
    }
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Record, Error> {
    serde_json::from_slice(bytes)
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
        archive.make_run(3_000).unwrap();
        let runs = archive.runs().unwrap();
        assert_eq!(runs.records, [old, new.clone()]);
        assert_eq!(runs.last(&Kind::Own), Some(&new));
        assert_eq!(runs.last(&Kind::Official("1".into())), None);
        assert!(archive.add(&record(2_000, 9.0)).is_err(), "a run is never replaced");
    }

    #[test]
    fn runs_of_one_second_have_directories_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let archive = Archive::open(dir.path()).unwrap();
        let ids = [(); 3].map(|()| archive.make_run(0).unwrap().0);
        assert_eq!(ids, ["1970-01-01_00.00.00", "1970-01-01_00.00.00_2", "1970-01-01_00.00.00_3"]);
    }

    #[test]
    fn a_damaged_run_is_named_and_kept_and_stops_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let archive = Archive::open(dir.path()).unwrap();
        let good = serde_json::to_vec(&record(1, 1.0)).unwrap();
        let other = serde_json::to_string(&record(1, 1.0)).unwrap().replace("find", "fund");
        for (nth, bytes) in
            [&b""[..], b"{", b"[]", b"\xff", other.as_bytes(), &good[..good.len() - 1]]
                .iter()
                .enumerate()
        {
            let (_, run) = archive.make_run(9).unwrap();
            let file = run.join("run.json");
            fs::write(&file, bytes).unwrap();
            let page = archive.add(&record(1_000 + nth as u64, 1.0)).unwrap();
            let runs = archive.runs().unwrap();
            assert_eq!((runs.records.len(), runs.damaged.len()), (nth + 1, nth + 1));
            let text =
                runs.damaged.iter().map(|error| error.to_string() + "\n").collect::<String>();
            assert!(text.contains(file.to_str().unwrap()), "{text}");
            assert!(fs::read_to_string(page).unwrap().contains(file.to_str().unwrap()));
            assert_eq!(fs::read(&file).unwrap(), *bytes, "it is left as it is");
        }
    }
}
