//! Virtual nodes: each has its own mount namespace, with memory of its own over /run, /var/lib, /mnt and /tmp, and an address of
//! its own from 127.0.0.0/8. What is left on a node is seen from outside: its processes, mounts, files, control groups, and the
//! devices that it holds.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use sealfs_tests::cluster::binary;

/// Some nodes, n1 and so on, with one site key.
pub(crate) struct Nodes {
    shared: tempfile::TempDir,
    pub(crate) all: Vec<Node>,
    pub(crate) list: String,
    /// The first three numbers of their addresses.
    pub(crate) net: String,
    /// Keeps the network between them, if they have one.
    _switch: Option<Kept>,
}

/// A process that sleeps in namespaces and so keeps them; ends when this is dropped.
struct Kept(Child);

/// One of them; a process that sleeps in its namespace keeps it.
pub(crate) struct Node {
    pub(crate) name: String,
    keeper: Kept,
    shared: PathBuf,
    before: Left,
}

/// What is there on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Left {
    processes: BTreeSet<String>,
    mounts: BTreeSet<String>,
    files: BTreeSet<String>,
    /// Control groups of jobs of this node.
    groups: BTreeSet<String>,
    /// Devices of the test that somebody has open for himself.
    devices: BTreeSet<String>,
}

/// The user that jobs belong to, and another one.
pub(crate) const USER: u32 = 12_345;
pub(crate) const OTHER: u32 = 12_346;

impl Nodes {
    /// `count` nodes with these settings beside the necessary ones.
    pub(crate) fn new(count: usize, settings: &str) -> Self {
        Self::start(count, settings, false)
    }

    /// The same, but each with a network of its own, and a wire between all of them.
    pub(crate) fn apart(count: usize, settings: &str) -> Self {
        Self::start(count, settings, true)
    }

    fn start(count: usize, settings: &str, is_apart: bool) -> Self {
        let shared = tempfile::tempdir().expect("a temporary directory");
        // Several tests may run on a machine, one after the other or not.
        let net = match is_apart {
            true => "10.77.0".to_string(),
            false => format!("127.77.{}", std::process::id() % 250 + 1),
        };
        let mut hosts = String::from("127.0.0.1 localhost\n");
        for at in 1..=count {
            hosts.push_str(&format!("{net}.{at} n{at}\n"));
        }
        fs::write(shared.path().join("hosts"), hosts).expect("it can be written");
        fs::write(
            shared.path().join("job.toml"),
            format!("size = '256M'\ncores = '0'\n{settings}"),
        )
        .expect("it can be written");
        // What all nodes see, beside the job's file system.
        let project = shared.path().join("project");
        fs::create_dir(&project).expect("it can be made");
        std::os::unix::fs::chown(&project, Some(USER), Some(USER)).expect("this is root");
        // fusermount3 wants to know its caller's name.
        let mut users = fs::read_to_string("/etc/passwd").expect("there are users");
        // An account whose name is the user's number must not be taken for the user.
        users.push_str(&format!("{USER}:x:5000:5000::/:/bin/sh\n"));
        users.push_str(&format!(
            "seal:x:{USER}:{USER}::/:/bin/sh\nother:x:{OTHER}:{OTHER}::/:/bin/sh\n"
        ));
        fs::write(shared.path().join("passwd"), users).expect("it can be written");
        let key = shared.path().join("site.key");
        sealfs_tests::cluster::run(Command::new(binary()).arg("key").arg(&key));
        let switch = is_apart.then(|| {
            let script = "ip link add wire type bridge && ip link set wire up && echo ready && exec sleep 1000000";
            Kept::start(&["--net", "sh", "-c", script])
        });
        let node = |at| Node::start(at, shared.path(), switch.as_ref().map(|one| one.0.id()));
        let all = (1..=count).map(node).collect();
        let list = if count == 1 { "n1".into() } else { format!("n[1-{count}]") };
        Self { shared, all, list, net, _switch: switch }
    }

    /// A file outside of the nodes, for a device. What devices are made of such files is looked at in the end.
    pub(crate) fn outside(&self, name: &str) -> PathBuf {
        self.shared.path().join(name)
    }

    /// `sealfs job up` on all nodes at a time; what each has said.
    pub(crate) fn up(&self, id: &str, words: &[&str]) -> Vec<Output> {
        let uid = USER.to_string();
        let words =
            [&["up", "--id", id, "--hosts", &self.list, "--uid", &uid, "--gid", &uid], words];
        self.job(&words.concat())
    }

    /// The same, which must succeed everywhere; the mount's path.
    pub(crate) fn up_well(&self, id: &str, words: &[&str]) -> PathBuf {
        let outputs = self.up(id, words);
        for (node, output) in self.all.iter().zip(&outputs) {
            assert!(output.status.success(), "{}: {}\n{}", node.name, said(output), node.logs(id));
        }
        PathBuf::from(String::from_utf8(outputs[0].stdout.clone()).unwrap().trim_end())
    }

    /// `sealfs job down` on all nodes at a time, which must succeed.
    pub(crate) fn down(&self, id: &str) {
        for (node, output) in self.all.iter().zip(self.job(&["down", "--id", id])) {
            assert!(output.status.success(), "{}: {}", node.name, said(&output));
        }
    }

    /// `sealfs job` on all nodes at a time; what each has said.
    pub(crate) fn job(&self, words: &[&str]) -> Vec<Output> {
        thread::scope(|scope| {
            let running: Vec<_> =
                self.all.iter().map(|node| scope.spawn(|| node.job(words))).collect();
            running.into_iter().map(|one| one.join().expect("it runs")).collect()
        })
    }

    /// Nothing is left on any node.
    pub(crate) fn assert_clean(&self) {
        self.all.iter().for_each(Node::assert_clean);
    }
}

impl Node {
    /// Node `number`; `switch`: a process in the network where the wire is.
    fn start(number: usize, shared: &std::path::Path, switch: Option<u32>) -> Self {
        let name = format!("n{number}");
        let network = switch.map_or(String::new(), |switch| {
            format!(
                "nsenter -n -t {switch} ip link add {name} type veth peer name eth0 netns $$; \
                 nsenter -n -t {switch} ip link set {name} master wire up; ip link set lo up; ip link set eth0 up; \
                 ip address add 10.77.0.{number}/24 dev eth0; "
            )
        });
        let script = format!(
            "set -e; {network}mkdir -p /mnt; for at in /run /var/lib /mnt; do mount -t tmpfs -o mode=755 none $at; done; \
             mkdir /run/site /run/project; mount --bind {shared}/project /run/project; cp {shared}/job.toml {shared}/site.key /run/site/; touch /run/site/sealfs; \
             mount --bind {binary} /run/site/sealfs; mount --bind {shared}/hosts /etc/hosts; mount --bind {shared}/passwd /etc/passwd; \
             echo \"site-key = '/run/site/site.key'\" >> /run/site/job.toml; \
             for at in /tmp /dev/shm; do mount -t tmpfs -o mode=1777 none $at; done; echo ready; exec sleep 1000000",
            shared = shared.display(),
            binary = binary().display(),
        );
        let net: &[&str] = if switch.is_some() { &["--net"] } else { &[] };
        let keeper = Kept::start(
            &[net, &["--mount", "--propagation", "private", "sh", "-c", &script]].concat(),
        );
        let (shared, before) = (shared.to_path_buf(), Left::default());
        let mut node = Self { name, keeper, shared, before };
        // It makes the directories of all jobs.
        let reaped = node.job(&["reap"]);
        assert!(reaped.status.success(), "{}", said(&reaped));
        node.before = node.left();
        node
    }

    /// A program on this node, without PATH and HOME as in a prologue.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["-m", "-n"])
            .arg("-t")
            .arg(self.keeper.0.id().to_string())
            .arg("--")
            .arg(program);
        command.env_clear().env("SLURMD_NODENAME", &self.name).stdin(Stdio::null());
        command
    }

    /// `sealfs job` on this node.
    pub(crate) fn job_command(&self, words: &[&str]) -> Command {
        let mut command = self.command("/run/site/sealfs");
        command.args(["--log", "info", "job"]).args(words);
        command.args(["--config", "/run/site/job.toml"]);
        command
    }

    /// The same, to its end.
    pub(crate) fn job(&self, words: &[&str]) -> Output {
        self.job_command(words).output().expect("nsenter is there")
    }

    /// A line of shell on this node, as a user; what it printed, or its error.
    pub(crate) fn shell(&self, uid: u32, line: &str) -> Result<String, String> {
        let id = format!("+{uid}");
        let mut command = self.command("/usr/bin/setpriv");
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "/bin/sh", "-c", line]);
        let output = command.env("PATH", "/usr/bin:/bin").output().expect("setpriv is there");
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(said(&output))
        }
    }

    /// What a job has logged.
    pub(crate) fn logs(&self, id: &str) -> String {
        self.shell(0, &format!("tail -n 20 /run/sealfs/jobs/{id}/*.log")).unwrap_or_default()
    }

    /// Pids and words of the processes in this node's namespace, but for its keeper.
    pub(crate) fn processes(&self) -> Vec<(u32, String)> {
        let space = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        let ours = space(&self.keeper.0.id().to_string());
        let entries = fs::read_dir("/proc").expect("there is a /proc").flatten();
        let pids = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let pids = pids.filter(|pid| pid.parse::<u32>().is_ok_and(|pid| pid != self.keeper.0.id()));
        pids.filter(|pid| space(pid).is_some() && space(pid) == ours)
            .filter_map(|pid| {
                let words = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
                // A zombie has no words.
                let words = String::from_utf8_lossy(&words).replace('\0', " ");
                (!words.is_empty()).then(|| (pid.parse().unwrap(), words))
            })
            .collect()
    }

    /// Sends SIGKILL to the processes one of whose words is `verb`, and waits until they have ended.
    pub(crate) fn kill(&self, verb: &str) -> usize {
        let word = format!(" {verb} ");
        let found = || self.processes().into_iter().filter(|(_, words)| words.contains(&word));
        let mut count = 0;
        for (pid, _) in found() {
            let pid = rustix::process::Pid::from_raw(pid as i32).expect("it is a pid");
            let process = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty());
            let Ok(process) = process else { continue };
            let kill = rustix::process::Signal::KILL;
            let _ = rustix::process::pidfd_send_signal(&process, kill);
            let mut wait = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut wait, None).expect("a process can be waited for");
            count += 1;
        }
        count
    }

    pub(crate) fn left(&self) -> Left {
        let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", self.keeper.0.id()));
        let mounts = mounts.expect("the keeper lives");
        let files =
            self.shell(0, "find /run /var/lib /mnt /tmp /dev/shm -xdev ! -path '*/jobs/.ports'");
        Left {
            processes: self.processes().into_iter().map(|(_, words)| words).collect(),
            mounts: mounts.lines().map(ToString::to_string).collect(),
            files: files.unwrap().lines().map(ToString::to_string).collect(),
            groups: self.groups(),
            devices: self.devices_in_use(),
        }
    }

    /// Control groups of jobs of this node, of whichever hierarchy.
    fn groups(&self) -> BTreeSet<String> {
        let line = format!("find /sys/fs/cgroup -type d -name 'sealfs-job-*@{}'", self.name);
        self.shell(0, &line).unwrap().lines().map(ToString::to_string).collect()
    }

    /// Loop devices of files beside the nodes that cannot be opened by one more for himself.
    fn devices_in_use(&self) -> BTreeSet<String> {
        use std::os::unix::fs::OpenOptionsExt;
        let devices = fs::read_dir("/sys/block").expect("there is a /sys").flatten();
        let is_ours = |name: &String| {
            let file = fs::read_to_string(format!("/sys/block/{name}/loop/backing_file"));
            file.is_ok_and(|file| std::path::Path::new(file.trim()).starts_with(&self.shared))
        };
        let names = devices.filter_map(|device| device.file_name().into_string().ok());
        let exclusive = rustix::fs::OFlags::EXCL.bits() as i32;
        let is_held = |name: &String| {
            let mut options = fs::File::options();
            options.read(true).custom_flags(exclusive).open(format!("/dev/{name}")).is_err()
        };
        names.filter(is_ours).filter(is_held).collect()
    }

    pub(crate) fn assert_clean(&self) {
        let left = self.left();
        let more = |now: &BTreeSet<String>, then: &BTreeSet<String>| -> Vec<String> {
            now.difference(then).cloned().collect()
        };
        let (before, none) = (&self.before, Vec::<String>::new());
        assert_eq!(more(&left.processes, &before.processes), none, "processes on {}", self.name);
        assert_eq!(more(&left.mounts, &before.mounts), none, "mounts on {}", self.name);
        assert_eq!(more(&left.files, &before.files), none, "files on {}", self.name);
        assert_eq!(more(&left.groups, &before.groups), none, "groups of {}", self.name);
        assert_eq!(more(&left.devices, &before.devices), none, "devices of {}", self.name);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for (pid, words) in self.processes() {
            // A test has failed: what it has left is ended.
            if words.contains("sealfs") || words.contains("sleep") {
                let pid = rustix::process::Pid::from_raw(pid as i32).expect("it is a pid");
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

impl Kept {
    /// `unshare` with a script that says when it is ready.
    fn start(words: &[&str]) -> Self {
        let mut command = Command::new("unshare");
        let mut keeper = command
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare is there");
        let mut line = String::new();
        let stdout = keeper.stdout.take().expect("it is a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("it can be read");
        let kept = Self(keeper);
        assert_eq!(line, "ready\n", "root may make namespaces, and ip (iproute2) is there");
        kept
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Both streams.
pub(crate) fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
