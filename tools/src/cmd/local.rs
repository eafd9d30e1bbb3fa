//! `sealfs local up|down|status`: a whole cluster on this machine.
//!
//! Everything stands in one directory: `key`, `nodes`, and per node `n<ID>/` with its data, its log and its pid file.
//! `up` again after `down` (or after a crash) starts the same cluster with its data.
//!
//! 1. A pid file is believed only if that process is a sealfs node of this directory, whatever path names it.
//! 2. `up` is all or nothing: what it started it ends again when a later step fails.
//! 3. One mountpoint, which is on record before the mount is made: `down` finds what `up` has left, wherever that ended.
//! 4. Nothing of a node is removed while any process holds its data, pid file or not.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::net::TcpListener;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::process::Pid;

use crate::{Failure, place, process};

/// A whole cluster on this machine.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Starts a cluster and mounts it; the first time with fresh data and a fresh key.
    Up {
        /// An existing directory.
        mountpoint: PathBuf,
        /// How many nodes, the first time.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
        nodes: u16,
        /// Size of each node's volume, the first time.
        #[arg(long, default_value = "4G")]
        size: String,
        /// Where everything is kept.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Unmounts it and ends its nodes; the data stays.
    Down {
        /// Where everything is kept.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// Removes the data and the key too.
        #[arg(long)]
        wipe: bool,
        /// Also while files are open.
        #[arg(long)]
        force: bool,
    },
    /// Shows it.
    Status {
        /// Where everything is kept.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    match args.verb {
        Verb::Up { mountpoint, nodes, size, dir } => {
            let dir = named(dir);
            place::make_own(&dir)?;
            up(&Home::at(&dir)?, &resolved(&mountpoint)?, nodes, &size)
        }
        Verb::Down { dir, wipe, force } => down(&Home::at(&named(dir))?, wipe, force),
        Verb::Status { dir } => show(&Home::at(&named(dir))?),
    }
}

fn named(dir: Option<PathBuf>) -> PathBuf {
    let default = || format!("/var/tmp/sealfs-local-{}", rustix::process::getuid().as_raw()).into();
    dir.unwrap_or_else(default)
}

/// The one path of what `path` names: without `..` and symbolic links, if it is there.
fn resolved(path: &Path) -> io::Result<PathBuf> {
    fs::canonicalize(path).or_else(|_| std::path::absolute(path))
}

/// The directory of a local cluster, as [`resolved`].
struct Home(PathBuf);

impl Home {
    fn at(dir: &Path) -> Result<Self, Failure> {
        place::check_own(dir, "remove it, or name a directory of your own with --dir")?;
        Ok(Self(resolved(dir)?))
    }

    fn key(&self) -> PathBuf {
        self.0.join("key")
    }

    fn nodes(&self) -> PathBuf {
        self.0.join("nodes")
    }

    fn node(&self, id: u16) -> PathBuf {
        self.0.join(format!("n{id}"))
    }

    fn pid_file(&self, id: u16) -> PathBuf {
        self.node(id).join("pid")
    }

    fn mountpoint_file(&self) -> PathBuf {
        self.0.join("mountpoint")
    }

    /// Where `up` has mounted it, or was about to.
    fn mountpoint(&self) -> Result<Option<PathBuf>, Failure> {
        let file = self.mountpoint_file();
        match fs::read(&file) {
            Ok(path) => Ok(Some(resolved(Path::new(&OsString::from_vec(path)))?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("cannot read {}: {error}", file.display()).into()),
        }
    }

    fn data(&self, id: u16) -> PathBuf {
        self.node(id).join("data")
    }

    fn log(&self, id: u16) -> PathBuf {
        self.node(id).join("log")
    }

    /// The nodes file's lines, `ID@HOST:PORT`.
    fn node_lines(&self) -> Result<Vec<(u16, String)>, Failure> {
        let path = self.nodes();
        let text = fs::read_to_string(&path).map_err(|error| {
            format!(
                "no local cluster in {}: {}: {error}; `sealfs local up MOUNTPOINT` makes one",
                self.0.display(),
                path.display()
            )
        })?;
        text.lines()
            .map(|line| {
                let (id, address) =
                    line.split_once('@').ok_or_else(|| format!("{}: {line:?}", path.display()))?;
                Ok((id.parse::<u16>()?, address.to_string()))
            })
            .collect()
    }

    /// The running node's process, if the pid file names one.
    fn running(&self, id: u16) -> Option<Pid> {
        let pid = fs::read_to_string(self.pid_file(id)).ok()?.trim().parse::<i32>().ok()?;
        let words = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let data = self.data(id);
        let ours = words.split(|byte| *byte == 0).any(|word| {
            let word = Path::new(std::ffi::OsStr::from_bytes(word));
            word == data || is_same(word, &data)
        });
        if ours { Pid::from_raw(pid) } else { None }
    }

    /// An error if a process holds the data of the node: a node locks it for as long as it runs.
    fn check_unused(&self, id: u16) -> Result<(), Failure> {
        let lock = self.data(id).join("lock");
        match File::open(&lock).map(|file| file.try_lock()) {
            Ok(Err(TryLockError::WouldBlock)) => {
                let holder = fs::read_to_string(&lock).unwrap_or_default();
                Err(format!(
                    "node {id} still runs: process {} holds {}; end that process, then `sealfs local down --dir {}`",
                    holder.trim(),
                    self.data(id).display(),
                    self.0.display()
                )
                .into())
            }
            Ok(Err(TryLockError::Error(error))) => {
                Err(format!("cannot lock {}: {error}", lock.display()).into())
            }
            Ok(Ok(())) => Ok(()),
            // A node that never got so far.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(format!("cannot open {}: {error}", lock.display()).into()),
        }
    }
}

/// Whether both paths lead to one file.
fn is_same(one: &Path, other: &Path) -> bool {
    let identity = |path| fs::metadata(path).map(|found| (found.dev(), found.ino()));
    matches!((identity(one), identity(other)), (Ok(one), Ok(other)) if one == other)
}

fn up(home: &Home, mountpoint: &Path, count: u16, size: &str) -> Result<(), Failure> {
    if !home.nodes().exists() {
        prepare(home, count)?;
    }
    let lines = home.node_lines()?;
    let is_mounted = check_mountpoint(home, mountpoint)?;
    let mut is_new = true;
    let mut started = Vec::new();
    let result = lines
        .iter()
        .filter(|(id, _)| home.running(*id).is_none())
        .try_for_each(|(id, address)| {
            start_node(home, *id, address, size).map(|child| started.push((*id, child)))
        })
        .and_then(|()| {
            // Asked only now: a mount answers nothing without its nodes. One whose client is dead is made anew.
            if is_mounted && fs::symlink_metadata(mountpoint).is_ok() {
                is_new = false;
                return Ok(());
            }
            mount(home, mountpoint)
        });
    if let Err(error) = result {
        for (id, mut child) in started {
            let _ = child.kill();
            let _ = child.wait();
            let _ = fs::remove_file(home.pid_file(id));
        }
        return Err(error);
    }
    show(home)?;
    let how = if started.is_empty() && !is_new { "it is up already, " } else { "" };
    println!(
        "\n{how}mounted on {}; `sealfs local down` ends it and keeps the data in {}",
        mountpoint.display(),
        home.0.display()
    );
    Ok(())
}

/// Whether the cluster is mounted at `mountpoint` already; an error if it is mounted elsewhere, or something else here.
fn check_mountpoint(home: &Home, mountpoint: &Path) -> Result<bool, Failure> {
    let (shown, dir) = (mountpoint.display(), home.0.display());
    match home.mountpoint()?.filter(|there| sealfs_client::is_mounted(there)) {
        Some(there) if there == mountpoint => Ok(true),
        Some(there) => Err(format!(
            "cannot mount on {shown}: the cluster of {dir} is up and mounted on {}; for another mount of it: `sealfs \
             mount --key {} {} {shown}`; to end it first: `sealfs local down --dir {dir}`",
            there.display(),
            home.key().display(),
            home.nodes().display(),
        )
        .into()),
        None if sealfs_client::is_mounted(mountpoint) => Err(format!(
            "cannot mount on {shown}: another sealfs is mounted there; unmount it first: sealfs umount {shown}"
        )
        .into()),
        None => Ok(false),
    }
}

/// Makes key and nodes file; the nodes file last, for its presence says that all is there.
fn prepare(home: &Home, count: u16) -> Result<(), Failure> {
    if !home.key().exists() {
        super::key::create(&home.key())?;
    }
    // All are held open until all are known, so that no port comes twice.
    let ports: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    let mut text = String::new();
    for (id, port) in (1..).zip(&ports) {
        fs::create_dir_all(home.node(id))?;
        text.push_str(&format!("{id}@{}\n", port.local_addr()?));
    }
    let unfinished = home.0.join("nodes.new");
    fs::write(&unfinished, text)?;
    Ok(fs::rename(unfinished, home.nodes())?)
}

/// Starts a node and waits until it says that it is ready.
fn start_node(home: &Home, id: u16, address: &str, size: &str) -> Result<Child, Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--log", "info", "serve", "--listen", address, "--id", &id.to_string()]);
    command.arg("--data").arg(home.data(id));
    command.arg("--nodes").arg(home.nodes()).arg("--key").arg(home.key());
    command.args(["--size", size]);
    command.process_group(0);
    let log = home.log(id);
    let starting = process::start_node(&mut command, &log)?;
    fs::write(home.pid_file(id), starting.child.id().to_string())?;
    let ready = starting.ready(Instant::now() + START_MAX);
    ready.map_err(|error| format!("node {id} did not start: {error}").into())
}

fn mount(home: &Home, mountpoint: &Path) -> Result<(), Failure> {
    fs::write(home.mountpoint_file(), mountpoint.as_os_str().as_bytes())?;
    let status = Command::new(std::env::current_exe()?)
        .args(["--log", "info", "mount", "--transport", "tcp"])
        .arg("--key")
        .arg(home.key())
        .arg("--log-file")
        .arg(home.0.join("mount.log"))
        .arg(home.nodes())
        .arg(mountpoint)
        .status()?;
    if status.success() {
        Ok(())
    } else {
        if !sealfs_client::is_mounted(mountpoint) {
            let _ = fs::remove_file(home.mountpoint_file());
        }
        Err(format!("mounting on {} failed", mountpoint.display()).into())
    }
}

fn show(home: &Home) -> Result<(), Failure> {
    if home.node_lines()?.iter().all(|(id, _)| home.running(*id).is_none()) {
        let shown = home.0.display();
        return Err(format!(
            "no node of {shown} runs; `sealfs local up MOUNTPOINT` starts them with the data they have"
        )
        .into());
    }
    let nodes = home.nodes();
    let addresses = super::mount::addresses(&nodes.to_string_lossy())?;
    let status = sealfs_client::cluster_status(
        &addresses,
        &home.key(),
        &sealfs_client::Network::default(),
        Duration::from_secs(5),
        false,
    )?;
    print!("{}", super::status::table(&status));
    Ok(())
}

fn down(home: &Home, wipe: bool, force: bool) -> Result<(), Failure> {
    let lines = home.node_lines()?;
    if let Some(mountpoint) = home.mountpoint()? {
        if sealfs_client::is_mounted(&mountpoint) {
            sealfs_client::unmount(&mountpoint, force)?;
        }
        fs::remove_file(home.mountpoint_file())?;
    }
    for (id, _) in &lines {
        if let Some(pid) = home.running(*id) {
            let is_ours = || home.running(*id) == Some(pid);
            process::end(pid, Duration::from_secs(30), is_ours).map_err(|error| {
                format!("node {id} (pid {pid}): {error}", pid = pid.as_raw_nonzero())
            })?;
        }
        home.check_unused(*id)?;
        let _ = fs::remove_file(home.pid_file(*id));
    }
    if wipe {
        fs::remove_dir_all(&home.0)?;
    }
    Ok(())
}

/// What a node may take to read what it has kept.
const START_MAX: Duration = Duration::from_secs(600);
