//! A real cluster on this machine: `sealfs serve` processes and `sealfs mount` daemons, ended when dropped.
//!
//! The binary is `$SEALFS_BIN`, else `release/sealfs` in the target directory. Everything a cluster writes is in one
//! temporary directory; when a test fails, the tails of all logs are printed.
//!
//! Where a test runs decides three things: `$SEALFS_TEST_TRANSPORT` (tcp), the address that all nodes listen on,
//! `$SEALFS_TEST_ADDRESS` (127.0.0.1), and the size of a node's volume, `$SEALFS_TEST_SIZE` (2G).

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// The `sealfs` binary under test. Panics if it has not been built.
#[must_use]
pub fn binary() -> PathBuf {
    let path = std::env::var_os("SEALFS_BIN").map_or_else(
        || {
            // target/<profile>/deps/<this test>
            let this = std::env::current_exe().expect("a test knows its own path");
            let target = this.ancestors().nth(3).expect("a test lies in target/<profile>/deps");
            target.join("release/sealfs")
        },
        PathBuf::from,
    );
    assert!(
        path.exists(),
        "{} is missing: `cargo build --release -p sealfs` makes it",
        path.display()
    );
    path
}

/// How clients and nodes reach nodes, unless a test says otherwise.
#[must_use]
pub fn transport() -> String {
    setting("SEALFS_TEST_TRANSPORT", "tcp")
}

fn setting(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

/// A cluster of processes.
pub struct Cluster {
    /// One per node instead of a data directory, if there are any.
    devices: Vec<Loop>,
    dir: tempfile::TempDir,
    addresses: Vec<String>,
    nodes: Vec<Option<Child>>,
    /// What each node has printed when it was ready.
    ready: Vec<String>,
    mounts: Vec<Mounted>,
    extra: Vec<String>,
}

/// A file that the kernel shows as a block device, until it is dropped.
pub struct Loop {
    path: PathBuf,
}

impl Loop {
    /// The device of `file`, which is made `len` bytes long (sparse) if it is shorter. Panics without losetup(8), which
    /// util-linux has.
    #[must_use]
    pub fn of(file: &Path, len: u64) -> Self {
        let backing = fs::File::options().create(true).append(true).open(file);
        let backing = backing.expect("the device's file can be made");
        if backing.metadata().expect("it is open").len() < len {
            backing.set_len(len).expect("the device's file can be long");
        }
        let output = run(Command::new("losetup").args(["--find", "--show"]).arg(file));
        let path = String::from_utf8(output.stdout).expect("losetup prints a path");
        Self { path: path.trim().into() }
    }

    /// The device.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // While something still uses it, it goes when that ends.
        let _ = Command::new("losetup").arg("--detach").arg(&self.path).output();
    }
}

/// A name of the binary in /sbin, where mount(8) looks for who mounts a type, until it is dropped; or what has that name
/// already.
pub struct InSbin(Option<PathBuf>);

impl InSbin {
    /// Links the name to the binary under test if nothing has it.
    #[must_use]
    pub fn named(name: &str) -> Self {
        let link = Path::new("/sbin").join(name);
        if link.exists() {
            return Self(None);
        }
        // Left behind by a test that was killed, for a binary that is gone.
        let _ = fs::remove_file(&link);
        let binary = fs::canonicalize(binary()).expect("the binary has a path");
        std::os::unix::fs::symlink(binary, &link).expect("root may link in /sbin");
        Self(Some(link))
    }
}

impl Drop for InSbin {
    fn drop(&mut self) {
        if let Some(link) = &self.0 {
            let _ = fs::remove_file(link);
        }
    }
}

/// A mount of the cluster.
struct Mounted {
    path: PathBuf,
    daemon: Child,
}

impl Cluster {
    /// Starts `count` nodes.
    #[must_use]
    pub fn start(count: usize) -> Self {
        Self::start_with(count, &["--size", &setting("SEALFS_TEST_SIZE", "2G")])
    }

    /// Starts `count` nodes, `extra` behind `sealfs serve`.
    #[must_use]
    pub fn start_with(count: usize, extra: &[&str]) -> Self {
        let mut cluster = Self::prepare(count, extra);
        (0..count).for_each(|at| cluster.start_node(at));
        cluster
    }

    /// Starts `count` nodes on block devices of `len` bytes (sparse until written) instead of data directories, `extra`
    /// behind `sealfs serve`.
    #[must_use]
    pub fn start_on_devices(count: usize, len: u64, extra: &[&str]) -> Self {
        let mut cluster = Self::prepare(count, extra);
        for at in 0..count {
            cluster
                .devices
                .push(Loop::of(&cluster.dir.path().join(format!("device{}", at + 1)), len));
        }
        (0..count).for_each(|at| cluster.start_node(at));
        cluster
    }

    fn prepare(count: usize, extra: &[&str]) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("sealfs-test-")
            .tempdir()
            .expect("a temporary directory");
        // All are held open until all are known, so that no port comes twice.
        let host = setting("SEALFS_TEST_ADDRESS", "127.0.0.1");
        let bind = || TcpListener::bind((host.as_str(), 0)).expect("a free port");
        let ports: Vec<TcpListener> = (0..count).map(|_| bind()).collect();
        let addresses: Vec<String> =
            ports.iter().map(|port| port.local_addr().expect("it is bound").to_string()).collect();
        drop(ports);
        run(Command::new(binary()).arg("key").arg(dir.path().join("key")));
        let cluster = Self {
            devices: Vec::new(),
            dir,
            addresses,
            nodes: (0..count).map(|_| None).collect(),
            ready: vec![String::new(); count],
            mounts: Vec::new(),
            extra: extra.iter().map(ToString::to_string).collect(),
        };
        cluster.write_nodes();
        cluster
    }

    /// Where everything lies.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The key file.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.dir.path().join("key")
    }

    /// The nodes file.
    #[must_use]
    pub fn nodes_file(&self) -> PathBuf {
        self.dir.path().join("nodes")
    }

    /// Address of the node at `at` (0 is node 1).
    #[must_use]
    pub fn address(&self, at: usize) -> &str {
        &self.addresses[at]
    }

    /// Data directory, or device, of the node at `at`.
    #[must_use]
    pub fn data(&self, at: usize) -> PathBuf {
        match self.devices.get(at) {
            Some(device) => device.path().to_owned(),
            None => self.dir.path().join(format!("n{}", at + 1)),
        }
    }

    /// Gives the node at `at`, which does not run, another device.
    pub fn set_device(&mut self, at: usize, device: Loop) {
        self.devices[at] = device;
    }

    /// Adds settings behind `sealfs serve` for the nodes that are started from now on.
    pub fn add_settings(&mut self, extra: &[&str]) {
        self.extra.extend(extra.iter().map(ToString::to_string));
    }

    /// Gives the node at `at`, which does not run, another address, and says so in the nodes file.
    pub fn move_node(&mut self, at: usize) {
        assert!(self.nodes[at].is_none(), "node {} runs", at + 1);
        let port = TcpListener::bind("127.0.0.1:0").expect("a free port");
        self.addresses[at] = port.local_addr().expect("it is bound").to_string();
        self.write_nodes();
    }

    fn write_nodes(&self) {
        let lines = (1..).zip(&self.addresses).map(|(id, address)| format!("{id}@{address}\n"));
        let lines: Vec<String> = lines.collect();
        fs::write(self.nodes_file(), lines.concat()).expect("the nodes file is written");
    }

    /// Starts the node at `at` and waits until it is ready.
    pub fn start_node(&mut self, at: usize) {
        assert!(self.nodes[at].is_none(), "node {} runs already", at + 1);
        let log = append(&self.dir.path().join(format!("n{}.log", at + 1)));
        let mut child = self
            .serve_command(at)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("sealfs serve starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("it is a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("the node's stdout can be read");
        assert!(line.contains("ready"), "node {} is not ready: {line:?}\n{}", at + 1, self.logs());
        self.nodes[at] = Some(child);
        self.ready[at] = line;
    }

    /// What the node at `at` has printed when it was ready.
    #[must_use]
    pub fn ready_line(&self, at: usize) -> &str {
        &self.ready[at]
    }

    /// `sealfs serve` with all that the node at `at` needs.
    #[must_use]
    pub fn serve_command(&self, at: usize) -> Command {
        let mut command = Command::new(binary());
        command.args(["--log", "info", "serve", "--listen", &self.addresses[at]]);
        command.args(["--id", &(at + 1).to_string()]);
        command.arg("--data").arg(self.data(at)).arg("--nodes").arg(self.nodes_file());
        command.arg("--key").arg(self.key()).args(&self.extra).stdin(Stdio::null());
        if !self.extra.iter().any(|word| word == "--transport") {
            command.args(["--transport", &transport()]);
        }
        command
    }

    /// kill -9, and waits for its end.
    pub fn kill_node(&mut self, at: usize) {
        let mut child = self.nodes[at].take().expect("the node runs");
        child.kill().expect("it is ours");
        child.wait().expect("it is ours");
    }

    /// Sends a signal to the node at `at`.
    pub fn signal_node(&self, at: usize, signal: Signal) {
        let child = self.nodes[at].as_ref().expect("the node runs");
        kill_process(Pid::from_child(child), signal).expect("it is ours");
    }

    /// SIGTERM, and waits for its end; returns whether it ended with status 0.
    pub fn stop_node(&mut self, at: usize) -> bool {
        self.signal_node(at, Signal::TERM);
        self.nodes[at].take().expect("the node runs").wait().expect("it is ours").success()
    }

    /// Waits until the node at `at`, which was asked to, has ended.
    pub fn await_node(&mut self, at: usize) -> ExitStatus {
        self.nodes[at].take().expect("the node runs").wait().expect("it is ours")
    }

    /// What the node at `at` has logged, whichever process it was.
    #[must_use]
    pub fn node_log(&self, at: usize) -> String {
        let log = self.dir.path().join(format!("n{}.log", at + 1));
        fs::read_to_string(log).expect("the node has a log")
    }

    /// Mounts once more, returns the mountpoint; `extra` behind `sealfs mount`.
    pub fn mount_with(&mut self, extra: &[&str]) -> PathBuf {
        let number = self.mounts.len();
        let path = self.dir.path().join(format!("mnt{number}"));
        fs::create_dir_all(&path).expect("the mountpoint can be made");
        let log = append(&self.dir.path().join(format!("mnt{number}.log")));
        let chosen = ["--transport", &transport()];
        let default: &[&str] = if extra.contains(&"--transport") { &[] } else { &chosen };
        let daemon = Command::new(binary())
            .args(["--log", "info", "mount", "--foreground"])
            .args(default)
            .args(extra)
            .arg("--key")
            .arg(self.key())
            .arg(self.nodes_file())
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("sealfs mount starts");
        self.mounts.push(Mounted { path: path.clone(), daemon });
        self.await_mount(number);
        path
    }

    /// Mounts once more, returns the mountpoint.
    pub fn mount(&mut self) -> PathBuf {
        self.mount_with(&[])
    }

    /// kill -9 of the client behind the mount made as `number`.
    pub fn kill_mount(&mut self, number: usize) {
        self.mounts[number].daemon.kill().expect("it is ours");
        self.mounts[number].daemon.wait().expect("it is ours");
    }

    /// Unmounts the mount made as `number`, and waits until its client has ended; returns whether with status 0.
    pub fn unmount(&mut self, number: usize) -> bool {
        run(Command::new(binary()).arg("umount").arg(&self.mounts[number].path));
        self.mounts[number].daemon.wait().expect("it is ours").success()
    }

    /// `sealfs status --json`.
    #[must_use]
    pub fn status(&self) -> serde_json::Value {
        let output = self.status_command().output().expect("sealfs status starts");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }

    /// A counter of `sealfs status`, over all nodes.
    #[must_use]
    pub fn counter(&self, name: &str) -> u64 {
        let status = self.status();
        let nodes = status["nodes"].as_array().expect("there are nodes");
        let of = |node: &serde_json::Value| node["counters"][name].as_u64();
        nodes.iter().map(|node| of(node).unwrap_or_else(|| panic!("no {name} in {node}"))).sum()
    }

    /// What the client behind the mount made as `number` has logged.
    #[must_use]
    pub fn mount_log(&self, number: usize) -> String {
        let log = self.dir.path().join(format!("mnt{number}.log"));
        fs::read_to_string(log).expect("the mount has a log")
    }

    /// `sealfs status --json`, to be run.
    #[must_use]
    pub fn status_command(&self) -> Command {
        let mut command = Command::new(binary());
        command.args(["status", "--json", "--key"]).arg(self.key()).arg(self.nodes_file());
        command
    }

    /// Waits until the kernel lists the mount: the mount answers by then.
    fn await_mount(&mut self, number: usize) {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mounted = &mut self.mounts[number];
        let wanted = mounted.path.display().to_string();
        // The kernel wakes whoever polls this table when it changes.
        let table = fs::File::open("/proc/self/mounts").expect("there is a /proc");
        loop {
            let text = fs::read_to_string("/proc/self/mounts").expect("there is a /proc");
            if text.lines().any(|line| line.split(' ').nth(1) == Some(&wanted)) {
                break;
            }
            let ended = mounted.daemon.try_wait().expect("it is ours");
            if ended.is_some() || Instant::now() > deadline {
                let logs = self.logs();
                panic!("the mount does not come up ({ended:?}):\n{logs}");
            }
            let mut wait = [rustix::event::PollFd::new(&table, rustix::event::PollFlags::PRI)];
            let tick = rustix::event::Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
            rustix::event::poll(&mut wait, Some(&tick)).expect("the table can be polled");
        }
        fs::metadata(&mounted.path).expect("the mount answers");
    }

    /// The last lines of every log.
    #[must_use]
    pub fn logs(&self) -> String {
        let mut text = String::new();
        let entries = fs::read_dir(self.dir.path()).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        paths.sort();
        for path in
            paths.iter().filter(|path| path.extension().is_some_and(|ending| ending == "log"))
        {
            let log = fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            text.push_str(&format!("--- {}\n", path.display()));
            text.push_str(&lines[lines.len().saturating_sub(40)..].join("\n"));
            text.push('\n');
        }
        text
    }
}

impl Drop for Cluster {
    #[allow(clippy::print_stderr, reason = "a failed test shows its logs")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        for mounted in &mut self.mounts {
            let _ = Command::new(binary()).args(["umount", "--force"]).arg(&mounted.path).output();
            let _ = mounted.daemon.kill();
            let _ = mounted.daemon.wait();
        }
        for child in self.nodes.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Runs a command to its end; panics with its output unless it ends with status 0.
pub fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?} ended with {}\nstdout:\n{}\nstderr:\n{}",
        output.status,
        tail(&output.stdout),
        tail(&output.stderr)
    );
    output
}

/// The last 100 lines, as text.
fn tail(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(100)..].join("\n")
}

fn append(path: &Path) -> fs::File {
    fs::File::options().create(true).append(true).open(path).expect("the log can be opened")
}
