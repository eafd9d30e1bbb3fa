//! This node's part of a job: its server, its mount, and what both need.
//!
//! 1. Server and mount are in sessions of their own, for Slurm kills the prologue's process group when it has ended, and
//!    hold none of its descriptors.
//! 2. No secret is in an argument or in the environment: both read the key from its file.

use std::fs::{self, Permissions};
use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use sealfs_client::mount_source;
use sealfs_proto::{ClusterId, nodes};

use super::cgroup;
use super::marked::{self, Mark};
use super::site::Site;
use super::state::{self, Home, Record};
use super::stop::Stop;
use super::wire::lookup;
use crate::{Failure, process};

/// Log of the server.
pub(super) fn server_log(record: &Record) -> PathBuf {
    log_of(record, "server")
}

/// Log of the mount.
pub(super) fn mount_log(record: &Record) -> PathBuf {
    log_of(record, "mount")
}

/// One of the logs.
pub(super) fn log_of(record: &Record, what: &str) -> PathBuf {
    record.logs.join(format!("{what}.log"))
}

/// Appends the logs to those that the site keeps, if it does. The job ends all the same if that fails.
pub(super) fn keep_logs(record: &Record) {
    let Some(directory) = &record.logs_kept else { return };
    for what in ["server", "mount", "stage"] {
        let kept = directory.join(format!("{}.{what}.log", record.id));
        let Ok(mut log) = fs::File::open(log_of(record, what)) else { continue };
        let opened = fs::File::options().create(true).append(true).mode(0o600).open(&kept);
        if let Err(error) = opened.and_then(|mut kept| io::copy(&mut log, &mut kept)) {
            eprintln!("sealfs: job {}: cannot keep the log {}: {error}", record.id, kept.display());
        }
    }
}

/// The first of the job's candidates that no other job of this node has and that nobody listens on.
pub(super) fn free_port(
    site: &Site,
    home: &Home,
    host: &str,
    until: Instant,
) -> Result<u16, Failure> {
    let others = state::all(&site.state)?.into_iter().filter(|id| *id != home.id);
    // Of a job whose record cannot be read the port is not known, and found to be in use if it is.
    let record = |id: String| Home::new(&site.state, &id).ok()?.record().ok()?;
    let taken: Vec<u16> = others.filter_map(|id| Some(record(id)?.port)).collect();
    let address = site.address_of(host);
    let found = lookup(&address, until)?;
    let mut last = String::from("all belong to other jobs");
    for port in site.server_ports(&home.id).filter(|port| !taken.contains(port)) {
        let all: Vec<SocketAddr> = found.iter().map(|ip| SocketAddr::new(*ip, port)).collect();
        match TcpListener::bind(&all[..]) {
            Ok(_) => return Ok(port),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = error.to_string(),
            Err(error) => return Err(no_address(&address, &error).into()),
        }
    }
    Err(format!("no port is free at {address} for the server: {last}; see `port-base` and `slots`")
        .into())
}

fn no_address(address: &str, error: &io::Error) -> String {
    let next =
        "name this node with --node, or how nodes are reached with `address` in the settings";
    format!("cannot listen at {address}, this node's address: {error}; {next}")
}

/// Refuses an address of this machine's own that others cannot reach, as Debian writes it to /etc/hosts for a machine's name.
pub(super) fn check_reachable(
    site: &Site,
    hosts: &[String],
    me: usize,
    until: Instant,
) -> Result<(), Failure> {
    let is_loopback = |host: &String| {
        let found = lookup(&site.address_of(host), until).ok()?;
        found.first().map(|address| address.is_loopback())
    };
    let other = hosts.iter().enumerate().find(|(at, _)| *at != me).map(|(_, host)| host);
    match other.and_then(is_loopback) {
        Some(false) if is_loopback(&hosts[me]) == Some(true) => Err(format!(
            "the name {} leads to a loopback address here, which the job's other nodes cannot reach; correct /etc/hosts, or \
             set `address` to names that lead to the network, as \"%h-ib\"",
            site.address_of(&hosts[me])
        )
        .into()),
        _ => Ok(()),
    }
}

/// Makes the mountpoint and the key file.
pub(super) fn prepare(home: &Home, record: &Record, key_hex: &str) -> Result<(), Failure> {
    home.write("key", format!("{key_hex}\n").as_bytes())?;
    marked::make(&record.mountpoint, 0o755, &Mark::of(home, None, String::new()))
}

/// Makes the data's place and starts the server for the cluster that `list` describes; it is ready when this returns.
pub(super) fn serve(
    site: &Site,
    home: &Home,
    record: &Record,
    list: &str,
    until: Instant,
) -> Result<Child, Failure> {
    home.write("nodes", list.as_bytes())?;
    let cluster = nodes::parse(list)?.cluster.unwrap_or_default();
    make_data(site, home, record, cluster)?;
    if let (Some(group), Some(memory_max)) = (&record.cgroup, site.memory_max) {
        cgroup::make(group, memory_max)?;
    }
    let mut command = detached(record.cgroup.as_deref())?;
    command.args(["--log", "info", "serve", "--id", &(record.me + 1).to_string()]);
    command.arg("--data").arg(record.data.argument());
    command.arg("--nodes").arg(home.nodes()).arg("--key").arg(home.key());
    command.args(["--only-uid", &record.uid.to_string()]);
    let words = &site.words;
    for (name, value) in [
        ("--size", &words.size),
        ("--transport", &words.transport),
        ("--durability", &words.durability),
        ("--cores", &words.cores),
        ("--memory", &words.memory),
    ] {
        if let Some(value) = value {
            command.args([name, value]);
        }
    }
    let log = server_log(record);
    let ready = process::start_node(&mut command, &log).and_then(|started| started.ready(until));
    ready.map_err(|error| format!("its server failed: {error}").into())
}

fn make_data(site: &Site, home: &Home, record: &Record, cluster: ClusterId) -> Result<(), Failure> {
    let size = site.words.size.as_deref().map(|size| {
        nodes::bytes(size).ok_or_else(|| format!("size {size}: write a size, as --size 100G"))
    });
    record.data.make(home, cluster, size.transpose()?)
}

/// This program, as a session leader without the terminal, in a control group.
fn detached(group: Option<&Path>) -> Result<Command, Failure> {
    let program = std::env::current_exe()?;
    let mut command = Command::new(&program);
    command.args(["job", "detach"]);
    if let Some(group) = group {
        command.arg("--cgroup").arg(group);
    }
    command.arg("--").arg(program);
    Ok(command)
}

/// Mounts, unless `stop` or the time ends it; the mount answers when this returns.
pub(super) fn mount(
    site: &Site,
    home: &Home,
    record: &Record,
    stop: &Stop,
    until: Instant,
) -> Result<(), Failure> {
    let log = mount_log(record);
    let opened = fs::File::options().create(true).append(true).open(&log);
    let file = opened.map_err(|error| format!("cannot open {}: {error}", log.display()))?;
    let mut command = detached(None)?;
    command.args(["--log", "info", "mount", "-o", "nosuid,nodev"]);
    command.arg("--key").arg(home.key()).arg("--log-file").arg(&log);
    if let Some(transport) = &site.words.transport {
        command.args(["--transport", transport]);
    }
    command.arg(home.nodes()).arg(&record.mountpoint);
    let out = file.try_clone()?;
    command.stdin(Stdio::null()).stdout(out).stderr(file).current_dir("/");
    let mut child = command.spawn().map_err(|error| format!("cannot start the mount: {error}"))?;
    let late = match stop.wait(&mut child, until) {
        Ok(status) if status.success() => return Ok(()),
        Ok(_) => String::new(),
        Err(why) => format!("{why}; it says: "),
    };
    let said = process::last_line(&log);
    Err(format!("its mount failed: {late}{said} (log: {})", log.display()).into())
}

/// Makes the root of the file system the owner's alone, unless `stop` or the time ends that: nodes may not answer.
pub(super) fn give_root(record: &Record, stop: &Stop, until: Instant) -> Result<(), Failure> {
    let root = &record.mountpoint;
    let failed = |error: String| format!("cannot give {} to its user: {error}", root.display());
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["job", "give", "--uid", &record.uid.to_string()]);
    command.args(["--gid", &record.gid.to_string()]).arg(root).current_dir("/");
    let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let status = stop.wait(&mut child, until).map_err(failed)?;
    if status.success() {
        return Ok(());
    }
    let mut said = String::new();
    let stderr = child.stderr.take();
    stderr.map_or(Ok(0), |mut stderr| stderr.read_to_string(&mut said))?;
    Err(failed(said.trim().trim_start_matches("sealfs job: ").to_string()).into())
}

/// Makes a directory a user's alone.
pub(super) fn give(root: &Path, uid: u32, gid: u32) -> Result<(), Failure> {
    // The same one for both steps, whatever is unmounted meanwhile.
    let root = fs::File::open(root)?;
    // Nobody but root may enter before it is the user's, and none but the user after.
    root.set_permissions(Permissions::from_mode(0o700))?;
    if rustix::process::geteuid().is_root() {
        fchown(&root, Some(uid), Some(gid))?;
    }
    Ok(())
}

/// Ends the mount and takes it away, in use or not. What is mounted there and not the job's stays, which is an error.
pub(super) fn end_mount(home: &Home, record: &Record) -> Result<(), Failure> {
    let log = mount_log(record);
    let (path, until) = (&record.mountpoint, Instant::now() + UNMOUNT_MAX);
    loop {
        // Once for every mount that lies on another; a client that is just being started may still make one.
        let unmounted = match mount_source(path) {
            Some(source) if source == home.nodes() => sealfs_client::unmount(path, true),
            _ => Ok(()),
        };
        process::end_writers(&log, END_PATIENCE).map_err(|error| format!("the mount's {error}"))?;
        match mount_source(path) {
            None => return Ok(()),
            Some(source) if source != home.nodes() => {
                let (path, source) = (path.display(), source.display());
                return Err(format!(
                    "{source} is mounted at {path}, and is not this job's: it stays"
                )
                .into());
            }
            Some(_) if Instant::now() >= until => {
                let cause = unmounted.err().map_or(String::new(), |error| format!(": {error}"));
                return Err(format!("{} is still mounted{cause}", path.display()).into());
            }
            // Nobody tells when what is in the way has gone.
            Some(_) if unmounted.is_err() => thread::sleep(UNMOUNT_PAUSE),
            Some(_) => {}
        }
    }
}

/// Ends the server.
pub(super) fn end_server(record: &Record) -> Result<(), Failure> {
    let ended = process::end_writers(&server_log(record), END_PATIENCE);
    Ok(ended.map_err(|error| format!("the server's {error}"))?)
}

/// Whether the server runs.
pub(super) fn is_serving(record: &Record) -> Result<bool, Failure> {
    Ok(!process::writing_to(&server_log(record))?.is_empty())
}

/// Runs `words` in a session of its own and in a control group, in this process's place.
pub(super) fn detach(group: Option<&Path>, words: &[std::ffi::OsString]) -> Failure {
    use std::os::unix::process::CommandExt;
    // It cannot fail, for who was just started leads no process group.
    let _ = rustix::process::setsid();
    if let Some(Err(error)) = group.map(cgroup::join) {
        return error;
    }
    let Some((program, words)) = words.split_first() else { return "detach what?".into() };
    Command::new(program).args(words).current_dir(Path::new("/")).exec().into()
}

/// Everything is to be wiped: what a client or server has still to write is of no use.
const END_PATIENCE: Duration = Duration::from_secs(3);
const UNMOUNT_MAX: Duration = Duration::from_secs(20);
const UNMOUNT_PAUSE: Duration = Duration::from_millis(200);
