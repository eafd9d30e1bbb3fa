//! A file system that lives as long as a run: `sealfs job up` on all clients before it, `down` after it, both by the MPI
//! launcher, one process per client.
//!
//! 1. Whatever was brought up is taken down when this is dropped, also what came up in parts.

use std::ffi::OsString;
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
        let id = format!("io500-{}", std::process::id());
        let ranks = Ranks { hosts: hosts.to_vec(), per_host: 1 };
        let is_root = rustix::process::geteuid().is_root();
        let job = |verb: &[&str]| {
            let verb = ["job"].iter().chain(verb).map(OsString::from);
            let all =
                [this.clone()].into_iter().chain(verb).chain(words.iter().map(OsString::from));
            launcher.words(&ranks, &all.collect::<Vec<_>>(), is_root)
        };
        let list = hosts.join(",");
        let up = job(&["up", "--id", &id, "--hosts", &list, "--durability", "power"]);
        let state = PathBuf::from("/run/sealfs/jobs").join(&id);
        let mut brought = Self {
            mount: PathBuf::new(),
            nodes: state.join("nodes"),
            key: state.join("key"),
            down: job(&["down", "--id", &id]),
        };
        eprintln!("bringing a file system up on {list}");
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
        match command(&self.down).status() {
            Ok(status) if status.success() => {}
            Ok(status) => {
                eprintln!("sealfs: the file system was not taken down everywhere: {status}");
            }
            Err(error) => eprintln!("sealfs: the file system was not taken down: {error}"),
        }
    }
}

/// In a process group of its own: a Ctrl-C that ends the run must not end this halfway.
fn command(words: &[OsString]) -> Command {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).stdin(Stdio::null()).stderr(Stdio::inherit()).process_group(0);
    command
}
