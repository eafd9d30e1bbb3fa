//! A file system that lives as long as a run: `sealfs job up` on all clients before it, `down` after it, both by the MPI
//! launcher, one process per client.
//!
//! 1. Whatever was brought up is taken down when this is dropped, also what came up in parts, whether anybody still
//!    listens or not.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use sealfs_io500::official::{Launcher, Ranks};

use crate::Failure;

/// Where it is, and how it ends.
pub(super) struct Brought {
    /// On every client.
    pub(super) mount: PathBuf,
    /// The nodes' list and the key, if this machine is one of the clients.
    pub(super) nodes: PathBuf,
    pub(super) key: PathBuf,
    down: Vec<OsString>,
}

impl Brought {
    /// Brings it up; `words` go to `sealfs job`, behind `--durability power`.
    pub(super) fn up(
        launcher: &Launcher,
        hosts: &[String],
        words: &[String],
    ) -> Result<Self, Failure> {
        let this = std::env::current_exe()?.into_os_string();
        let id = id()?;
        let ranks = Ranks { hosts: hosts.to_vec(), per_host: 1 };
        let is_root = rustix::process::geteuid().is_root();
        let job = |verb: &[&str]| {
            let verb = ["job"].iter().chain(verb).map(OsString::from);
            let all =
                [this.clone()].into_iter().chain(verb).chain(words.iter().map(OsString::from));
            launcher.words(&ranks, &all.collect::<Vec<_>>(), is_root)
        };
        let list = hosts.join(",");
        let owner: &[&str] = match words.iter().any(|word| word == "--unprivileged") {
            true => &[],
            false => &["--uid", "0", "--gid", "0"],
        };
        let up = ["up", "--id", &id, "--hosts", &list, "--durability", "power"];
        let up = job(&[&up, owner].concat());
        let state = PathBuf::from("/run/sealfs/jobs").join(&id);
        writeln!(io::stderr(), "bringing a file system up on {list}")?;
        let mut brought = Self {
            mount: PathBuf::new(),
            nodes: state.join("nodes"),
            key: state.join("key"),
            down: job(&["down", "--id", &id]),
        };
        let output = command(&up).output()?;
        if !output.status.success() {
            return Err(
                format!("no file system came up on {list} (see above): {}", output.status).into()
            );
        }
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut paths: Vec<&str> =
            said.lines().map(str::trim).filter(|path| path.starts_with('/')).collect();
        paths.dedup();
        let [path] = paths.as_slice() else {
            return Err(format!("the clients do not agree on one path: {paths:?}").into());
        };
        brought.mount = path.into();
        Ok(brought)
    }
}

impl Drop for Brought {
    fn drop(&mut self) {
        // What it says goes through us: a program that cannot say something ends before it has done its work.
        let ended = command(&self.down).stderr(Stdio::piped()).output();
        let mut out = io::stderr();
        let _ = match ended {
            Ok(output) => out.write_all(&output.stderr).and_then(|()| match output.status {
                status if status.success() => Ok(()),
                status => {
                    writeln!(out, "sealfs: the file system was not taken down everywhere: {status}")
                }
            }),
            Err(error) => writeln!(out, "sealfs: the file system was not taken down: {error}"),
        };
    }
}

/// Nobody else's, whatever other process has our number on another of the hosts.
fn id() -> Result<String, Failure> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|error| format!("no random bytes: {error}"))?;
    Ok(format!("io500-{:016x}", u64::from_le_bytes(random)))
}

/// In a process group of its own: a Ctrl-C that ends the run must not end this halfway.
fn command(words: &[OsString]) -> Command {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).stdin(Stdio::null()).stderr(Stdio::inherit()).process_group(0);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_file_systems_have_one_id() {
        let ids = [id().unwrap(), id().unwrap()];
        assert_ne!(ids[0], ids[1]);
        assert!(ids.iter().all(|id| id.len() == "io500-".len() + 16), "{ids:?}");
    }
}
