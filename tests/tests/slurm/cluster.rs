//! A Slurm of one controller and four nodes, with sealfs set up on them as docs/slurm.md says.
//!
//! The files of `tools/slurm/` are used as they are. Nothing waits for a fixed time: what is awaited is asked for again
//! every 100 ms, for two minutes at most, as slow as the machine may be.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use sealfs_tests::cluster::{binary, run};

use crate::machines::{ALICE, BOB, Machine, PROJECT, User};

/// Longer than anything may take on a slow machine.
const PATIENCE: Duration = Duration::from_secs(120);
const PROLOG: &str = "/etc/slurm/sealfs/prolog";
/// Jobs that may have servers on a node at a time.
pub(crate) const SLOTS: &str = "16";

/// The cluster; ends with all that it has started when it is dropped.
pub(crate) struct Slurm {
    // Before what they stand in.
    pub(crate) controller: Machine,
    nodes: Vec<Machine>,
    /// The first port of jobs' servers.
    port_base: u16,
    dir: tempfile::TempDir,
}

/// What Slurm says of a job.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) state: String,
    pub(crate) exit_code: String,
    pub(crate) restarts: u32,
}

impl Slurm {
    /// A cluster of the nodes n1 to n4, idle.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same, with more lines of job.toml.
    pub(crate) fn start_with(settings: &[(&str, &str)]) -> Self {
        // Not in /tmp, of which each machine has its own; nor with a name that is looked for among processes.
        let dir = tempfile::Builder::new()
            .prefix("cluster-")
            .tempdir_in("/var/tmp")
            .expect("a directory");
        let port_base = write_files(dir.path(), settings);
        let controller = Machine::start("ctl", dir.path());
        let nodes = (1..=4).map(|at| Machine::start(&format!("n{at}"), dir.path())).collect();
        let slurm = Self { controller, nodes, port_base, dir };
        slurm.await_idle();
        slurm
    }

    /// Node `number`, from 1.
    pub(crate) fn node(&self, number: usize) -> &Machine {
        &self.nodes[number - 1]
    }

    /// All nodes.
    pub(crate) fn nodes(&self) -> &[Machine] {
        &self.nodes
    }

    /// The same, to be rebooted.
    pub(crate) fn node_mut(&mut self, number: usize) -> &mut Machine {
        &mut self.nodes[number - 1]
    }

    /// The first port of jobs' servers.
    pub(crate) fn port_base(&self) -> u16 {
        self.port_base
    }

    /// The directory that all machines see.
    pub(crate) fn jobs(&self) -> PathBuf {
        self.dir.path().join("jobs")
    }

    /// What the file `name` of the jobs' directory holds, if it is there.
    pub(crate) fn said(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.jobs().join(name)).ok()
    }

    /// Makes an empty file in the jobs' directory: who waits for it goes on.
    pub(crate) fn signal(&self, name: &str) {
        fs::write(self.jobs().join(name), "").expect("the jobs' directory can be written to");
    }

    /// sbatch of `script` with `options` by `user`.
    pub(crate) fn sbatch(&self, user: User, options: &[&str], script: &str) -> Output {
        let file = self.jobs().join(format!("{}.sh", fastrand::u64(..)));
        fs::write(&file, format!("#!/bin/bash\n{script}\n")).expect("a script is written");
        let file = file.display().to_string();
        let fixed = ["sbatch", "--parsable", "--output=%j.out", "--open-mode=append"];
        let words = [&fixed, options, &[&file]].concat();
        self.controller.command_as(user, &words).output().expect("nsenter starts")
    }

    /// Submits a job of Alice that wants sealfs, returns its number.
    pub(crate) fn submit(&self, options: &[&str], script: &str) -> u32 {
        self.submit_as(ALICE, &[&["--constraint=sealfs"], options].concat(), script)
    }

    /// Submits a job, returns its number.
    pub(crate) fn submit_as(&self, user: User, options: &[&str], script: &str) -> u32 {
        let output = self.sbatch(user, options, script);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).trim().parse().expect("sbatch prints a number")
    }

    /// What the job's script and tasks have printed.
    pub(crate) fn printed(&self, job: u32) -> String {
        self.said(&format!("{job}.out")).unwrap_or_default()
    }

    /// What Slurm says of it.
    pub(crate) fn job(&self, job: u32) -> Job {
        let text =
            self.controller.print(&["scontrol", "--oneliner", "show", "job", &job.to_string()]);
        let field = |name: &str| {
            let words = text.split_whitespace().filter_map(|word| word.split_once('='));
            let mut found =
                words.filter(|(key, _)| *key == name).map(|(_, value)| value.to_owned());
            found.next().unwrap_or_else(|| panic!("no {name} in {text}"))
        };
        let restarts = field("Restarts").parse().expect("a number");
        let (state, exit_code) = (field("JobState"), field("ExitCode"));
        Job { state, exit_code, restarts }
    }

    /// scontrol of `words`, by root.
    pub(crate) fn scontrol(&self, words: &[&str]) {
        self.controller.print(&[&["scontrol"], words].concat());
    }

    /// scancel of `job`.
    pub(crate) fn cancel(&self, job: u32) {
        self.controller.print(&["scancel", &job.to_string()]);
    }

    /// Waits until `is_so`; panics with `what` when that takes too long.
    pub(crate) fn wait_until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(Instant::now() < deadline, "waited in vain until {what}");
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until the job and its epilogues have ended; returns what became of it.
    pub(crate) fn await_end(&self, job: u32) -> Job {
        let running = ["PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED"];
        self.await_job(job, "has ended", |job| !running.contains(&job.state.as_str()))
    }

    /// Waits until `is_so` of the job.
    pub(crate) fn await_job(&self, job: u32, what: &str, is_so: impl Fn(&Job) -> bool) -> Job {
        let mut last = None;
        self.wait_until(&format!("job {job} {what}"), || is_so(last.insert(self.job(job))));
        last.expect("it was asked for")
    }

    /// Waits until `name` is in the jobs' directory.
    pub(crate) fn await_file(&self, name: &str) {
        self.wait_until(&format!("{name} is written"), || self.jobs().join(name).exists());
    }

    /// State and reason of each node, as sinfo tells them.
    pub(crate) fn states(&self) -> Vec<(String, String)> {
        let text = self.controller.print(&["sinfo", "-h", "-N", "-o", "%T|%E"]);
        let lines = text.lines().filter_map(|line| line.trim().split_once('|'));
        lines.map(|(state, reason)| (state.to_owned(), reason.to_owned())).collect()
    }

    /// Waits until node `number` has been drained and has nothing more to do; returns why.
    pub(crate) fn await_drained(&self, number: usize) -> String {
        let mut reason = String::new();
        self.wait_until(&format!("n{number} is drained"), || {
            let (state, why) = self.states().swap_remove(number - 1);
            reason = why;
            state == "drained"
        });
        reason
    }

    /// Waits until all nodes are idle.
    pub(crate) fn await_idle(&self) {
        self.wait_until("all nodes are idle", || {
            let states = self.states();
            states.len() == self.nodes.len() && states.iter().all(|(state, _)| state == "idle")
        });
    }

    /// Has the controller read its configuration anew, all of it.
    pub(crate) fn restart_controller(&mut self) {
        self.controller.reboot();
        self.await_idle();
    }

    /// Has drained node `number` be used again.
    pub(crate) fn resume(&self, number: usize) {
        self.scontrol(&["update", &format!("nodename=n{number}"), "state=resume"]);
    }

    /// Has the prologue of node `number` wait, from now on, until `name` is in the jobs' directory.
    pub(crate) fn hold_prolog(&self, number: usize, name: &str) {
        let gate = self.jobs().join(name);
        let gate = gate.display();
        let node = self.node(number);
        if !node.succeeds(&["test", "-e", &format!("{PROLOG}.real")]) {
            node.print(&["cp", "-a", PROLOG, &format!("{PROLOG}.real")]);
        }
        // One step, for a prologue may be running.
        let script = format!(
            "#!/bin/bash\n: > {gate}.waits\nuntil [ -e {gate} ]; do /bin/sleep 0.05; done\nexec {PROLOG}.real\n"
        );
        node.write_script(&format!("{PROLOG}.held"), &script);
        node.print(&["mv", &format!("{PROLOG}.held"), PROLOG]);
    }

    /// What slurmd of node `number` has logged.
    pub(crate) fn slurmd_log(&self, number: usize) -> String {
        let log = self.dir.path().join(format!("log/n{number}.log"));
        fs::read_to_string(log).expect("slurmd has a log")
    }

    /// Runs `tools/slurm/`'s script `which` (prolog or epilog) on node `number` as Slurm would for `job` of Alice.
    pub(crate) fn run_script(&self, which: &str, number: usize, job: u32, hosts: &str) -> Output {
        let script = format!("/etc/slurm/sealfs/{which}");
        let environment = [
            format!("SLURM_JOB_ID={job}"),
            format!("SLURM_JOB_UID={}", ALICE.uid),
            format!("SLURM_JOB_GID={}", ALICE.uid),
            format!("SLURM_JOB_USER={}", ALICE.name),
            format!("SLURM_NODELIST={hosts}"),
            format!("SLURMD_NODENAME=n{number}"),
            "SLURM_JOB_CONSTRAINTS=sealfs".to_owned(),
            "SLURM_JOB_COMMENT=sealfs:size=256M".to_owned(),
        ];
        let environment: Vec<&str> = environment.iter().map(String::as_str).collect();
        let words = [&["env", "-i"], environment.as_slice(), &[&script]].concat();
        self.node(number).output(&words)
    }

    /// Waits until all nodes are idle, then asserts that nothing of sealfs is left on any of them.
    pub(crate) fn assert_nothing_left(&self) {
        self.await_idle();
        for node in &self.nodes {
            assert_eq!(left_on(node), Vec::<String>::new(), "left on {}", node.name());
        }
    }

    /// The ends of all logs.
    fn logs(&self) -> String {
        let mut text = String::new();
        let mut add = |path: String, log: &str| {
            let lines: Vec<&str> = log.lines().collect();
            let end = lines[lines.len().saturating_sub(40)..].join("\n");
            text.push_str(&format!("--- {path}\n{end}\n"));
        };
        for folder in ["log", "jobs"] {
            let mut files: Vec<PathBuf> = fs::read_dir(self.dir.path().join(folder))
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path())
                .filter(|path| path.extension().is_some_and(|end| end == "log" || end == "out"))
                .collect();
            files.sort();
            for file in files {
                add(file.display().to_string(), &fs::read_to_string(&file).unwrap_or_default());
            }
        }
        for machine in self.nodes.iter().chain([&self.controller]) {
            let tails = "squeue -a 2>/dev/null; sinfo -N -o '%N %T %E' 2>/dev/null; ps -eww -o pid,ppid,user,stat,args --forest; \
                         tail -n 40 /var/log/sealfs/* /var/log/sealfs/*/* 2>/dev/null";
            let output = machine.output(&["sh", "-c", tails]);
            add(machine.name().to_owned(), &String::from_utf8_lossy(&output.stdout));
        }
        text
    }
}

impl Drop for Slurm {
    #[allow(clippy::print_stderr, reason = "a failed test shows its logs")]
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.logs());
        }
    }
}

/// Processes, mounts, keys, state and data of jobs that are on `node`.
pub(crate) fn left_on(node: &Machine) -> Vec<String> {
    let processes = node.processes();
    let mut left: Vec<String> =
        processes.into_iter().filter(|args| args.contains("sealfs")).collect();
    let mounts = node.print(&["cat", "/proc/self/mountinfo"]);
    let is_ours = |line: &&str| {
        let place = line.split(' ').nth(4).unwrap_or_default();
        line.contains(" - fuse") || place.contains("sealfs") && place != "/var/lib/sealfs-jobs"
    };
    left.extend(mounts.lines().filter(is_ours).map(str::to_owned));
    let places = "for place in /run/sealfs /var/lib/sealfs-jobs /mnt /tmp /dev/shm /run/user; do \
                  if [ -e $place ]; then find $place -mindepth 1; fi; done";
    let found = node.print(&["sh", "-c", places]);
    // What all jobs' directories lie in stays: root's, and those of a user who has had jobs of her own.
    let own = format!("/tmp/sealfs-{}", ALICE.uid);
    let stays = |path: &str| {
        let path = path.strip_prefix(&own).unwrap_or(path);
        let path = path.strip_prefix("/run/sealfs").unwrap_or(path);
        ["", "/jobs", "/jobs/.ports", "/tasks", "/mnt", "/data", "/mnt/sealfs"].contains(&path)
    };
    left.extend(found.lines().filter(|path| !stays(path)).map(str::to_owned));
    left
}

/// Writes all that the machines start with into `dir`; returns the first port of jobs' servers.
fn write_files(dir: &Path, settings: &[(&str, &str)]) -> u16 {
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("root may");
    };
    let write = |path: &str, text: &str| {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().expect("it lies in dir")).expect("it can be made");
        fs::write(&path, text).expect("it can be written");
        path
    };
    for folder in ["mnt", "disks", "jobs", "log", "bin", "munge"] {
        fs::create_dir(dir.join(folder)).expect("it is new");
    }
    mode(dir, 0o755);
    mode(&dir.join("jobs"), 0o1777);
    mode(&dir.join("log"), 0o1777);
    mode(&write("munge/key", &format!("{:x}", fastrand::u128(..)).repeat(8)), 0o600);
    run(Command::new("chown").arg("-R").arg("munge:").arg(dir.join("munge")));
    mode(&dir.join("munge"), 0o711);
    fs::copy(binary(), dir.join("bin/sealfs")).expect("the binary can be copied");

    mode(&write("machine.sh", include_str!("machine.sh")), 0o755);
    let lines = |line: fn(&User) -> String| [ALICE, BOB].iter().map(line).collect::<String>();
    let account =
        |user: &User| format!("{0}:x:{1}:{1}::/nonexistent:/bin/sh\n", user.name, user.uid);
    write("users", &lines(account));
    let groups = lines(|user| format!("{}:x:{}:\n", user.name, user.uid));
    write("groups", &format!("{groups}project:x:{PROJECT}:{}\n", ALICE.name));
    let hosts = (1..=4).map(|at| format!("127.1.0.{at} n{at}\n")).collect::<String>();
    write("hosts", &format!("127.0.0.1 localhost\n127.1.0.100 ctl\n{hosts}"));

    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/slurm");
    let copy = |name: &str, to: &str| {
        let path = write(to, "");
        fs::copy(ours.join(name), path).unwrap_or_else(|error| panic!("{name}: {error}"));
    };
    for script in ["prolog", "epilog", "task_prolog", "reap"] {
        copy(script, &format!("etc/slurm/sealfs/{script}"));
    }
    copy("options.lua", "etc/slurm/sealfs/options.lua");
    for file in ["sealfs.conf", "burst_buffer.lua", "job_submit.lua"] {
        copy(file, &format!("etc/slurm/{file}"));
    }
    write("etc/slurm/slurm.conf", &slurm_conf(dir, free_ports(5)));
    let port_base = free_ports(64);
    let example = fs::read_to_string(ours.join("job.toml")).expect("there is an example");
    write("etc/sealfs/job.toml", &(example + &job_toml(port_base, settings)));
    run(Command::new(binary()).arg("key").arg(dir.join("etc/sealfs/site.key")));
    port_base
}

/// Site settings of the tests; `settings` are more of them, or others.
fn job_toml(port_base: u16, settings: &[(&str, &str)]) -> String {
    let port_base = port_base.to_string();
    let mut all = BTreeMap::from([
        ("size", "\"256M\""),
        ("memory", "\"32M\""),
        ("port-base", &port_base),
        ("slots", SLOTS),
        ("transport", "\"tcp\""),
    ]);
    all.extend(settings.iter().copied());
    all.iter().map(|(name, value)| format!("{name} = {value}\n")).collect()
}

/// The part of slurm.conf that a site has already.
fn slurm_conf(dir: &Path, port: u16) -> String {
    let shared = dir.display();
    let nodes: String = (1..=4)
        .map(|at| {
            let port = port + at;
            format!("NodeName=n{at} NodeAddr=127.1.0.{at} Port={port} CPUs=2 RealMemory=500 Feature=sealfs\n")
        })
        .collect();
    format!(
        "ClusterName=tests\nSlurmctldHost=ctl(127.1.0.100)\nSlurmctldPort={port}\n\
         CommunicationParameters=NoCtldInAddrAny\nSlurmUser=slurm\nSlurmdUser=root\n\
         AuthType=auth/munge\nAuthInfo=socket={shared}/munge/socket,cred_expire=10\n\
         StateSaveLocation=/var/spool/slurmctld\nSlurmdSpoolDir=/var/spool/slurmd\n\
         SlurmctldPidFile=/var/spool/slurmctld/pid\nSlurmdPidFile=/run/slurmd.pid\n\
         SlurmctldLogFile={shared}/log/ctl.log\nSlurmdLogFile={shared}/log/%n.log\n\
         ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nMailProg=/bin/true\n\
         JobAcctGatherType=jobacct_gather/none\nAccountingStorageType=accounting_storage/none\n\
         MpiDefault=none\nSelectType=select/cons_tres\nSelectTypeParameters=CR_Core\n\
         SchedulerParameters=sched_min_interval=0,sched_interval=1,bf_interval=1,nohold_on_prolog_fail\n\
         ReturnToService=2\nSlurmdTimeout=30\nKillWait=2\nInclude sealfs.conf\n{nodes}\
         PartitionName=all Nodes=n[1-4] Default=YES State=UP\n"
    )
}

/// The first of `count` ports in a row that nobody has.
fn free_ports(count: u16) -> u16 {
    let is_free = |port: u16| TcpListener::bind(("0.0.0.0", port)).is_ok();
    // Below the ports that the kernel gives to whoever asks for any.
    (0..1_000)
        .map(|_| fastrand::u16(12_000..32_000))
        .find(|base| (*base..base + count).all(is_free))
        .expect("some ports are free")
}
