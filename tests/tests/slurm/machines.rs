//! Machines of a pretended cluster: each has its own mounts, processes, host name, /etc, /var, /run and /tmp, so that
//! nothing passes between them but the network and one shared directory.
//!
//! 1. A machine is a process that holds its disks, and one that is its running system. Both end when their standard input
//!    does, and the kernel ends all that runs in a system with its first process: a test that panics or is killed leaves
//!    nothing behind.
//! 2. They share the network: machine N has the address 127.1.0.N, and names are in /etc/hosts.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// A person with an account on all machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: &'static str,
    pub(crate) uid: u32,
}

/// Who runs jobs. She is in the group `project`, too.
pub(crate) const ALICE: User = User { name: "alice", uid: 4_001 };
/// Somebody else.
pub(crate) const BOB: User = User { name: "bob", uid: 4_002 };
/// Alice's second group.
pub(crate) const PROJECT: u32 = 4_100;

/// One machine.
pub(crate) struct Machine {
    name: String,
    dir: PathBuf,
    disks: Child,
    system: Child,
}

impl Machine {
    /// Sets up and boots the machine `name`; `dir` is what all machines share, with the files that `machine.sh` asks for.
    pub(crate) fn start(name: &str, dir: &Path) -> Self {
        let script = dir.join("machine.sh");
        let mut hold = Command::new("unshare");
        hold.args(["--mount", "--uts", "--propagation", "private", "bash"]);
        hold.arg(&script).args(["hold", name]).arg(dir);
        let disks = start(&mut hold, &dir.join("log").join(format!("{name}.disks.log")));
        let system = boot(name, dir, &disks);
        Self { name: name.to_owned(), dir: dir.to_owned(), disks, system }
    }

    /// Its host name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Cuts the power, and boots again.
    pub(crate) fn reboot(&mut self) {
        self.cut_power();
        self.system = boot(&self.name, &self.dir, &self.disks);
    }

    /// Ends all that runs on it, at once.
    pub(crate) fn cut_power(&mut self) {
        let _ = self.system.kill();
        let _ = self.system.wait();
    }

    /// `words` as root, for a minute at most.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let namespaces = format!("/proc/{}/ns", self.system.id());
        let mut command = Command::new("timeout");
        command.args(["-k", "5", "60", "nsenter"]);
        command.arg(format!("--mount={namespaces}/mnt")).arg(format!("--uts={namespaces}/uts"));
        command.arg(format!("--pid={namespaces}/pid_for_children"));
        command.args(["env", "-i", "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]);
        command.args(words).current_dir("/").stdin(Stdio::null());
        command
    }

    /// `words` as `user`, in the jobs' directory, for a minute at most.
    pub(crate) fn command_as(&self, user: User, words: &[&str]) -> Command {
        let (uid, gid) = (format!("--reuid={}", user.uid), format!("--regid={}", user.uid));
        let jobs = format!("--chdir={}", self.dir.join("jobs").display());
        let become_user = ["setpriv", &uid, &gid, "--init-groups", "env", &jobs];
        self.command(&[&become_user, words].concat())
    }

    /// Runs `words` as root to their end.
    pub(crate) fn output(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("nsenter starts")
    }

    /// What `words`, run as root, print; panics unless they end with status 0.
    pub(crate) fn print(&self, words: &[&str]) -> String {
        let output = self.output(words);
        assert!(output.status.success(), "{words:?} on {}: {output:?}", self.name);
        String::from_utf8(output.stdout).expect("it prints text")
    }

    /// Whether `words`, run as root, end with status 0.
    pub(crate) fn succeeds(&self, words: &[&str]) -> bool {
        self.output(words).status.success()
    }

    /// Writes a script, over what may be there.
    pub(crate) fn write_script(&self, path: &str, text: &str) {
        self.print(&[
            "sh",
            "-c",
            "rm -f \"$1\"; printf %s \"$2\" > \"$1\"; chmod 755 \"$1\"",
            "sh",
            path,
            text,
        ]);
    }

    /// Command lines of all processes on it, without kernel threads, zombies and the one that looks.
    pub(crate) fn processes(&self) -> Vec<String> {
        let table = self.print(&["ps", "-e", "-ww", "-o", "stat=,args="]);
        let living = table.lines().map(str::trim).filter(|line| !line.starts_with('Z'));
        living
            .filter_map(|line| line.split_once(' '))
            .map(|(_, args)| args.trim().to_owned())
            .collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.cut_power();
        let _ = self.disks.kill();
        let _ = self.disks.wait();
    }
}

/// Starts the system of the machine whose disks `disks` holds.
fn boot(name: &str, dir: &Path, disks: &Child) -> Child {
    let mut boot = Command::new("nsenter");
    boot.args(["--target", &disks.id().to_string(), "--mount", "--uts"]);
    boot.args(["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash"]);
    boot.arg(dir.join("machine.sh")).args(["boot", name]).arg(dir);
    start(&mut boot, &dir.join("log").join(format!("{name}.boot.log")))
}

/// Starts `command`, which says that it is ready; its errors go to `log`.
fn start(command: &mut Command, log: &Path) -> Child {
    let errors = std::fs::File::options().create(true).append(true).open(log).expect("a log");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors);
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut line = String::new();
    let stdout = child.stdout.take().expect("it is a pipe");
    BufReader::new(stdout).read_line(&mut line).expect("it says something");
    let said = || std::fs::read_to_string(log).unwrap_or_default();
    assert_eq!(line.trim(), "ready", "{command:?}:\n{}", said());
    child
}
