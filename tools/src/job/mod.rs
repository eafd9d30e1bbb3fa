//! `sealfs job`: file systems that live as long as a job, under Slurm's prologue and epilogue or inside a job script.
//!
//! | module | what |
//! |---|---|
//! | `hostlist` | which nodes a job has, as Slurm writes it |
//! | `site` | what is settled for all jobs |
//! | `state` | what stands of a job on this node, and who works on it |
//! | `marked`, `data` | directories that jobs make; where the data lies |
//! | `meeting` | how the nodes of a job find and hear one another; `door`, `finding`, `first`, `other` and `wire` are its parts |
//! | `joining`, `reach` | what they compare before they begin; whether all reach all |
//! | `node`, `holders`, `stop` | this node's server and mount; who uses it; how what may hang is ended |
//! | `staging`, `hearing`, `cgroup` | files that come and go with the job, and what is said of them; the server's memory |
//! | `up`, `down`, `reap` | the verbs |
//! | `slurm` | the verbs under Slurm |
//!
//! 1. Nothing passes between nodes but connections on which both ends have proven the job's key, which follows from the
//!    site's key, the job's id and its nodes.
//! 2. Whatever moment a process is killed at, `down`, `reap` and the next `up` find and remove all that is there.
//! 3. Root works only in directories that no user can change, and follows no user's link.

mod cgroup;
mod data;
mod door;
mod down;
mod finding;
mod first;
mod hearing;
mod holders;
mod hostlist;
mod joining;
mod marked;
mod meeting;
mod node;
mod other;
mod reach;
mod reap;
mod site;
pub(crate) mod slurm;
mod staging;
mod state;
mod stop;
mod up;
mod wire;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

pub(crate) use reap::Reaped;
pub(crate) use site::Settings;
pub(crate) use staging::Pair;

use crate::Failure;
use site::Site;

/// Where settings come from, and whose jobs these are.
pub(crate) struct Scope {
    /// From the command line.
    pub(crate) flags: Settings,
    /// The file, if it is not the site's own.
    pub(crate) config: Option<PathBuf>,
    /// A user's own jobs.
    pub(crate) is_user: bool,
}

impl Scope {
    fn site(self) -> Result<Site, Failure> {
        set_umask();
        keep_out_of_cores()?;
        Site::new(self.flags, self.config.as_deref(), self.is_user)
    }
}

/// Which job to bring up, and for whom.
pub(crate) struct Wanted {
    /// The job.
    pub(crate) id: String,
    /// Its nodes, as Slurm writes them.
    pub(crate) hosts: String,
    /// This node's name among them.
    pub(crate) node: Option<String>,
    /// Whose job it is; `None`: this user's.
    pub(crate) owner: Option<(u32, u32)>,
    /// What is there before it begins.
    pub(crate) stage_in: Vec<Pair>,
}

/// Brings a job up on this node; returns its path.
pub(crate) fn up(scope: Scope, wanted: Wanted) -> Result<PathBuf, Failure> {
    let site = scope.site()?;
    site.check_memory()?;
    let hosts = distinct(hostlist::expand(&wanted.hosts)?);
    let me = own_place(&hosts, wanted.node.as_deref())?;
    let limit = sealfs_proto::limits::NODES_MAX;
    if hosts.len() > limit {
        return Err(format!("{} nodes; a file system has at most {limit}", hosts.len()).into());
    }
    let process = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let (uid, gid) = wanted.owner.unwrap_or(process);
    if !site.is_user && wanted.owner.is_none() {
        return Err("whose job is it? Root names its user: --uid UID --gid GID".into());
    }
    if site.is_user && (uid, gid) != process {
        return Err("--uid and --gid are for root: a user's own job is that user's".into());
    }
    let Wanted { id, stage_in, .. } = wanted;
    let record = up::up(&site, up::Wanted { id, hosts, me, uid, gid, stage_in })?;
    Ok(record.mountpoint)
}

/// Takes a job down on this node, after its files were staged out; `force`: without that.
pub(crate) fn down(scope: Scope, id: &str, stage_out: &[Pair], force: bool) -> Result<(), Failure> {
    down::down(&scope.site()?, id, stage_out, force)
}

/// Takes all dead jobs down; `living`: jobs that run, written as hosts are. All others have ended then.
pub(crate) fn reap(scope: Scope, living: Option<&str>) -> Result<Reaped, Failure> {
    let living = living.map(|list| match list.trim() {
        "" => Ok(Vec::new()),
        list => hostlist::expand(list),
    });
    reap::reap(&scope.site()?, living.transpose()?.as_deref())
}

/// Whether `text` can be a job's id; the id.
pub(crate) fn id(text: &str) -> Result<String, String> {
    state::check_id(text).map(|()| text.to_string()).map_err(|error| error.to_string())
}

/// Whether `text` can be a host list, or nothing; the text.
pub(crate) fn list(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Ok(String::new()),
        list => hostlist::expand(list).map(|_| list.to_string()).map_err(|error| error.to_string()),
    }
}

/// The exit status that an error of `up` or `down` means, so that a prologue of a site's own can tell who is to be drained.
pub(crate) fn exit_status(error: &Failure) -> u8 {
    match error.downcast_ref::<meeting::Fault>().map(|fault| fault.whose) {
        Some(meeting::Whose::Others) => 3,
        Some(meeting::Whose::Jobs) => 4,
        None if error.is::<down::NotCopied>() => 4,
        Some(meeting::Whose::Own) | None => 1,
    }
}

/// The jobs of this node as text for a person, or as JSON.
pub(crate) fn status(scope: Scope, id: Option<&str>, as_json: bool) -> Result<String, Failure> {
    let jobs = reap::shown(&scope.site()?, id)?;
    if as_json {
        return Ok(serde_json::to_string_pretty(&jobs)?);
    }
    let mut text = String::from("job         state     node            nodes  uid     mountpoint");
    for job in &jobs {
        let not = |is: bool, what: &str| if is { String::new() } else { format!(" ({what})") };
        text.push_str(&format!(
            "\n{:<11} {:<9} {:<15} {:<6} {:<7} {}{}{}",
            job.id,
            job.state,
            job.node,
            job.nodes,
            job.uid,
            job.mountpoint,
            not(job.mounted, "not mounted"),
            not(job.serving, "no server")
        ));
    }
    Ok(text)
}

/// The names that a host list stands for.
pub(crate) fn hosts(list: &str) -> Result<Vec<String>, Failure> {
    Ok(hostlist::expand(list)?)
}

/// Runs a program in this process's place, in a session of its own and a control group; returns only with an error.
pub(crate) fn detach(group: Option<&Path>, words: &[OsString]) -> Failure {
    node::detach(group, words)
}

/// Makes the root of a job's file system, mounted at `root`, a user's alone.
pub(crate) fn give(root: &Path, uid: u32, gid: u32) -> Result<(), Failure> {
    node::give(root, uid, gid)
}

/// A prologue's umask may be anything, and the modes of what is made are meant as they stand.
fn set_umask() {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
}

/// Memory that holds a key is not written to disk when a process dies; what this one starts inherits the limit. That a user's
/// processes are not dumpable would hide from the user's own `down` what `up` has open.
fn keep_out_of_cores() -> Result<(), Failure> {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, setrlimit};
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    if rustix::process::geteuid().is_root() {
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    }
    Ok(())
}

/// A node that is named twice is one node.
fn distinct(hosts: Vec<String>) -> Vec<String> {
    let mut seen = std::collections::HashSet::new();
    hosts.into_iter().filter(|host| seen.insert(host.clone())).collect()
}

/// Which of the hosts this node is: by its full name, else by what stands before the first dot.
fn own_place(hosts: &[String], name: Option<&str>) -> Result<usize, Failure> {
    let name = match name {
        Some(name) => name.to_string(),
        None => match std::env::var("SLURMD_NODENAME") {
            Ok(name) => name,
            Err(_) => std::fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_string(),
        },
    };
    let short = |name: &str| name.split('.').next().unwrap_or_default().to_string();
    let found = hosts.iter().position(|host| *host == name);
    let found = found.or_else(|| {
        let mut alike = hosts.iter().enumerate().filter(|(_, host)| short(host) == short(&name));
        alike.next().filter(|_| alike.next().is_none()).map(|(at, _)| at)
    });
    found.ok_or_else(|| {
        let shown: Vec<&str> = hosts.iter().take(8).map(String::as_str).collect();
        format!(
            "this node's name {name} is none of the job's ({}{}); name it with --node",
            shown.join(", "),
            if hosts.len() > 8 { ", ..." } else { "" }
        )
        .into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_finds_itself_by_its_name_or_what_stands_before_the_dot() {
        let hosts = |list| distinct(hostlist::expand(list).unwrap());
        assert_eq!(own_place(&hosts("n[1-3]"), Some("n2")).unwrap(), 1);
        assert_eq!(own_place(&hosts("n[1-3]"), Some("n2.site")).unwrap(), 1);
        assert_eq!(own_place(&hosts("n1.a,n2.a"), Some("n2")).unwrap(), 1);
        assert!(own_place(&hosts("n1.a,n1.b"), Some("n1")).is_err(), "it could be either");
        let error = own_place(&hosts("n[1-20]"), Some("m1")).unwrap_err().to_string();
        assert!(error.contains("m1") && error.contains("n1, n2") && error.contains("--node"));
        assert_eq!(hosts("n1,n2,n1").len(), 2);
    }
}
