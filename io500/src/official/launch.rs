//! How ranks are started: mpirun of Open MPI or of MPICH, or srun.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Error;

/// Starts ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launcher {
    program: PathBuf,
    kind: Kind,
    /// More words, before the benchmark's.
    extra: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    OpenMpi,
    Mpich,
    Srun,
}

/// Where ranks run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranks {
    /// Machines; none: this one.
    pub hosts: Vec<String>,
    /// On each of them.
    pub per_host: u64,
}

impl Ranks {
    /// In all.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.clients() * self.per_host
    }

    /// Machines.
    #[must_use]
    pub fn clients(&self) -> u64 {
        self.hosts.len().max(1) as u64
    }
}

impl Launcher {
    /// The one that was asked for (`mpirun`, `srun`, or a path to either), else what is there: srun inside a Slurm job,
    /// mpirun elsewhere.
    ///
    /// # Errors
    /// If there is none, or it is of a kind that is not known.
    pub fn find(wanted: Option<&str>, extra: Vec<String>) -> Result<Self, Error> {
        let in_job = std::env::var_os("SLURM_JOB_ID").is_some();
        let names: Vec<&str> = match wanted {
            Some(name) => vec![name],
            None if in_job => vec!["srun", "mpirun", "mpiexec"],
            None => vec!["mpirun", "mpiexec"],
        };
        let program = names.iter().find_map(|name| in_path(name)).ok_or_else(|| {
            Error::Plan(format!(
                "no MPI launcher ({}) is in PATH: install openmpi-bin, or say --mpi PATH",
                names.join(", ")
            ))
        })?;
        let output = Command::new(&program).arg("--version").output();
        let output = output.map_err(|error| Error::at("cannot start", &program, error))?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).to_lowercase();
        let kind = kind_of(&program, &said).ok_or_else(|| {
            let first = said.lines().next().unwrap_or_default().to_owned();
            Error::Plan(format!(
                "{} is neither Open MPI's nor MPICH's mpirun nor srun (it says {first:?}): say --mpi PATH",
                program.display()
            ))
        })?;
        Ok(Self { program, kind, extra })
    }

    /// Whether what it starts ends with a step of Slurm.
    #[must_use]
    pub fn is_srun(&self) -> bool {
        self.kind == Kind::Srun
    }

    /// The words that start `program` on all ranks.
    #[must_use]
    pub fn words(&self, ranks: &Ranks, program: &[OsString], is_root: bool) -> Vec<OsString> {
        let (count, per_host) = (ranks.count().to_string(), ranks.per_host.to_string());
        let hosts = ranks.hosts.join(",");
        let has_hosts = !ranks.hosts.is_empty();
        let mut words: Vec<String> = Vec::new();
        let mut add = |more: &[&str]| words.extend(more.iter().map(ToString::to_string));
        match self.kind {
            Kind::OpenMpi => {
                add(&["-np", &count]);
                if is_root {
                    add(&["--allow-run-as-root"]);
                }
                if has_hosts {
                    let slots: Vec<String> =
                        ranks.hosts.iter().map(|host| format!("{host}:{per_host}")).collect();
                    add(&["--host", &slots.join(","), "--map-by", &format!("ppr:{per_host}:node")]);
                } else {
                    // More ranks than cores are the user's choice.
                    add(&["--oversubscribe"]);
                }
            }
            Kind::Mpich => {
                add(&["-n", &count]);
                if has_hosts {
                    add(&["-hosts", &hosts, "-ppn", &per_host]);
                }
            }
            Kind::Srun => {
                let nodes = ranks.clients().to_string();
                add(&[
                    "-n",
                    &count,
                    "-N",
                    &nodes,
                    "--ntasks-per-node",
                    &per_host,
                    "--kill-on-bad-exit=1",
                ]);
                if has_hosts {
                    add(&["-w", &hosts]);
                }
            }
        }
        words.extend(self.extra.iter().cloned());
        let start = [self.program.clone().into_os_string()];
        let words = words.into_iter().map(OsString::from);
        start.into_iter().chain(words).chain(program.iter().cloned()).collect()
    }
}

fn kind_of(program: &Path, said: &str) -> Option<Kind> {
    if program.file_name().is_some_and(|name| name == "srun") {
        Some(Kind::Srun)
    } else if said.contains("open mpi") || said.contains("openrte") || said.contains("prte") {
        Some(Kind::OpenMpi)
    } else if said.contains("hydra") {
        Some(Kind::Mpich)
    } else {
        None
    }
}

/// The official program: as it is told, else from PATH.
///
/// # Errors
/// If there is none.
pub fn official_program(wanted: Option<&Path>) -> Result<PathBuf, Error> {
    let found = match wanted {
        Some(path) => is_program(path).then(|| path.to_owned()),
        None => in_path("io500"),
    };
    let found = found.ok_or_else(|| {
        let where_from = match wanted {
            Some(path) => format!("{} is no program", path.display()),
            None => "no io500 is in PATH".into(),
        };
        Error::Plan(format!(
            "{where_from}: build it from github.com/IO500/io500 (prepare.sh) and say --io500 PATH; without it \
             `sealfs bench io500` runs the same phases, with no official score"
        ))
    })?;
    found.canonicalize().map_err(|error| Error::at("cannot find", &found, error))
}

fn in_path(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return is_program(Path::new(name)).then(|| name.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(kind: Kind, hosts: &[&str], is_root: bool) -> String {
        let launcher = Launcher { program: "/x/run".into(), kind, extra: vec!["--more".into()] };
        let ranks = Ranks { hosts: hosts.iter().map(ToString::to_string).collect(), per_host: 4 };
        let words = launcher.words(&ranks, &["io500".into(), "a.ini".into()], is_root);
        words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn each_launcher_gets_its_own_words() {
        for (kind, hosts, is_root, expected) in [
            (Kind::OpenMpi, &["n1", "n2"][..], false, "-np 8 --host n1:4,n2:4 --map-by ppr:4:node"),
            (Kind::OpenMpi, &[], true, "-np 4 --allow-run-as-root --oversubscribe"),
            (Kind::Mpich, &["n1", "n2"], true, "-n 8 -hosts n1,n2 -ppn 4"),
            (Kind::Mpich, &[], true, "-n 4"),
            (
                Kind::Srun,
                &["n1", "n2"],
                true,
                "-n 8 -N 2 --ntasks-per-node 4 --kill-on-bad-exit=1 -w n1,n2",
            ),
        ] {
            let expected = format!("/x/run {expected} --more io500 a.ini");
            assert_eq!(line(kind, hosts, is_root), expected, "{kind:?}");
        }
    }

    #[test]
    fn launchers_are_known_by_what_they_say() {
        let kind = |program: &str, said: &str| kind_of(Path::new(program), said);
        assert_eq!(kind("/usr/bin/mpirun", "mpirun (open mpi) 4.1.4"), Some(Kind::OpenMpi));
        assert_eq!(kind("/usr/bin/mpirun", "hydra build details:"), Some(Kind::Mpich));
        assert_eq!(kind("/usr/bin/srun", "slurm 22.05"), Some(Kind::Srun));
        assert_eq!(kind("/usr/bin/mpirun", "hello"), None);
    }

    #[test]
    fn a_missing_program_says_what_to_do() {
        let error = official_program(Some(Path::new("/does/not/exist"))).unwrap_err().to_string();
        assert!(error.contains("/does/not/exist") && error.contains("--io500"), "{error}");
        let error = Launcher::find(Some("/does/not/exist"), Vec::new()).unwrap_err().to_string();
        assert!(error.contains("--mpi"), "{error}");
    }
}
