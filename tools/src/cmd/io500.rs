//! `sealfs io500`.

mod brought;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sealfs_client::ClusterStatus;
use sealfs_io500::archive::Archive;
use sealfs_io500::official::{
    Keeping, Launcher, Persistence, Ranks, Wrap, check_path, official_program,
};
use sealfs_io500::own::OFFICIAL_STONEWALL;
use sealfs_io500::{Record, System};

use crate::Failure;
use brought::Brought;

/// Runs the official IO500 on a mount, or on a host list, where a file system lives as long as the run: checks the submission rules, calibrates, writes the configuration, runs it by MPI,
/// keeps results and configuration ready for submission (or says why not), and makes a page of all runs.
///
/// Without the official program `sealfs bench io500` runs the same phases with workers of our own.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where the file system is mounted, on every client; or a host list (n[1-10]), on which `sealfs job up` makes one.
    #[arg(value_name = "MOUNT|HOSTLIST")]
    target: String,
    /// One more word for `sealfs job up` and `down`, with a host list; may be repeated.
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    job_arg: Vec<String>,
    /// The official program, at the same path on every client [default: io500 in PATH].
    #[arg(long, value_name = "PATH")]
    io500: Option<PathBuf>,
    /// Starts the ranks [default: srun inside a Slurm job, else mpirun].
    #[arg(long, value_name = "mpirun|srun|PATH")]
    mpi: Option<String>,
    /// One more word for the launcher; may be repeated.
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    mpi_arg: Vec<String>,
    /// The clients, as Slurm writes them: n[1-10],m2 [default: this machine alone, which cannot be submitted].
    #[arg(long, value_name = "HOSTLIST")]
    hosts: Option<String>,
    /// Processes on each client [default: its processors].
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=4_096))]
    ranks: Option<u64>,
    /// How long each of the four writing phases lasts; other than 300 cannot be submitted.
    #[arg(long, default_value_t = OFFICIAL_STONEWALL, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Writing phases of a short run before, from whose rates sizes follow and whether there is space; 0 for none.
    #[arg(long, default_value_t = 10, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=600))]
    calibrate: u64,
    /// Some or all nodes (`HOST:PORT,...` or the nodes file), to ask them for their durability; needs --key.
    #[arg(long, value_name = "FILE|LIST", requires = "key")]
    nodes: Option<String>,
    /// The cluster's key file.
    #[arg(long, value_name = "FILE", requires = "nodes")]
    key: Option<PathBuf>,
    #[command(flatten)]
    network: super::NetworkArgs,
    /// Where runs are kept.
    #[arg(long, value_name = "DIR", default_value = "io500-results")]
    results: PathBuf,
    /// Prints the run as one JSON object.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let program = official_program(args.io500.as_deref())?;
    let launcher = Launcher::find(args.mpi.as_deref(), args.mpi_arg.clone())?;
    let archive = Archive::open(&args.results)?;
    check_path(archive.directory())?;
    let earlier = crate::bench::io500::runs(&archive)?;
    // From here on a signal ends the run, not this process: what was brought up is taken down.
    let interrupts = crate::bench::io500::interrupts()?;
    let (hosts, brought) = clients(args, &launcher)?;
    let mount = brought.as_ref().map_or(Path::new(&args.target), |brought| brought.mount.as_path());
    let mount = mount.canonicalize().map_err(|error| format!("{}: {error}", mount.display()))?;
    let processors = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    let ranks = Ranks { hosts, per_host: args.ranks.unwrap_or(processors) };
    let cluster = ask(args, brought.as_ref()).and_then(|cluster| of_mount(cluster, &mount));
    let wrap = Wrap {
        system: system(&cluster, &mount),
        about: about(&cluster),
        cluster: describe(&cluster, &mount),
        persistence: cluster.as_ref().map_err(Clone::clone).and_then(persistence),
        mount,
        program,
        launcher,
        ranks,
        stonewall: args.seconds,
        calibration: args.calibrate,
    };
    let before = wrap.reasons();
    let mut told = |line: &str| writeln!(io::stderr(), "{line}");
    if !before.is_empty() {
        told(&format!("NOT SUBMITTABLE, whatever comes out:\n{}", list(&before)))?;
    }
    // It is kept before it is told: nobody may be listening any more.
    let (record, directory) = wrap.run(&archive, interrupts, &mut told)?;
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&record)?)?;
    } else {
        let last = earlier.last(&record.kind);
        tell(&mut out, &record, last, &directory, archive.directory())?;
    }
    match record.score {
        Some(_) => Ok(()),
        None => Err(format!("there is no score: {}", record.reasons.join("; ")).into()),
    }
}

fn tell(
    out: &mut impl Write,
    record: &Record,
    last: Option<&Record>,
    directory: &Path,
    results: &Path,
) -> io::Result<()> {
    write!(out, "\n{}", record.table(last))?;
    if record.is_submittable() {
        let rules = "Submittable by the rules that are checked here: read io500.org/rules, too.";
        writeln!(out, "\n{rules}")?;
    } else {
        writeln!(out, "\nNOT SUBMITTABLE:\n{}", list(&record.reasons))?;
    }
    let (submission, page) = (directory.join("submission"), results.join("index.html"));
    writeln!(out, "results and configuration: {}", submission.display())?;
    writeln!(out, "the page of all runs:      {}", page.display())
}

fn list(reasons: &[String]) -> String {
    reasons.iter().map(|reason| format!("  - {reason}\n")).collect()
}

/// The clients' names, none for this machine alone; and the file system, if it has to be brought up on them.
fn clients(args: &Args, launcher: &Launcher) -> Result<(Vec<String>, Option<Brought>), Failure> {
    let target = &args.target;
    if Path::new(target).is_dir() {
        let hosts = args.hosts.as_deref().map(hosts).transpose()?;
        return Ok((hosts.unwrap_or_default(), None));
    }
    if target.contains('/') {
        return Err(format!("{target} is no directory: give a mount or a host list").into());
    }
    if args.hosts.is_some() {
        return Err(format!("{target} is no directory, and --hosts goes with a mount").into());
    }
    if launcher.is_srun() || std::env::var_os("SLURM_JOB_ID").is_some() {
        return Err(format!(
            "cannot bring a file system up on {target} from inside a Slurm job or by srun: the servers would end with \
             the step that starts them; let the job have its own (sbatch --constraint=sealfs, docs/slurm.md) and name \
             its mount: --hosts {target} \"$SEALFS_DIR\""
        )
        .into());
    }
    let hosts = hosts(target)?;
    let brought = Brought::up(launcher, &hosts, &args.job_arg)?;
    Ok((hosts, Some(brought)))
}

/// Asks the nodes, if we are told how.
fn ask(args: &Args, brought: Option<&Brought>) -> Result<ClusterStatus, String> {
    let told = args.nodes.clone().zip(args.key.clone());
    let own = brought.map(|brought| (brought.nodes.display().to_string(), brought.key.clone()));
    let Some((nodes, key)) = told.or(own) else {
        return Err("nobody asked the nodes; say --nodes and --key".into());
    };
    let ask = || -> Result<ClusterStatus, Failure> {
        let nodes = super::mount::addresses(&nodes)?;
        let network = args.network.network()?;
        Ok(sealfs_client::cluster_status(&nodes, &key, &network, Duration::from_secs(10), false)?)
    };
    ask().map_err(|error| error.to_string())
}

/// The nodes that answered say nothing of a mount that is another cluster's.
fn of_mount(cluster: ClusterStatus, mount: &Path) -> Result<ClusterStatus, String> {
    let mounted = sealfs_client::mount_status(mount).map_err(|error| error.to_string())?.cluster;
    let asked = cluster.map.cluster.to_string();
    if mounted == asked {
        return Ok(cluster);
    }
    let mount = mount.display();
    Err(format!(
        "the nodes are of cluster {asked}, {mount} is of {mounted}; name its own by --nodes"
    ))
}

/// When each node acknowledges a change.
fn persistence(cluster: &ClusterStatus) -> Persistence {
    let mut modes = BTreeMap::new();
    for node in &cluster.nodes {
        let status = node.status.as_ref().map_err(|error| format!("node {}: {error}", node.id))?;
        let durability = super::status::durability(&status.counters)
            .ok_or_else(|| format!("node {} is too old to say its durability", node.id))?
            .to_owned();
        let says = |name: &str| status.counters.iter().any(|(counter, _)| counter == name);
        let in_memory = match (says("data_in_memory"), says("data_on_device")) {
            (false, false) => None,
            (in_memory, _) => Some(in_memory),
        };
        modes.insert(node.id.to_string(), Keeping { durability, in_memory });
    }
    Ok(modes)
}

/// What the run runs on, by which runs are compared.
fn system(cluster: &Result<ClusterStatus, String>, mount: &Path) -> System {
    let durability = match cluster.as_ref().map_err(Clone::clone).and_then(persistence) {
        Ok(nodes) => {
            let modes: BTreeSet<String> =
                nodes.into_values().map(|keeping| keeping.durability).collect();
            modes.into_iter().collect::<Vec<_>>().join("+")
        }
        Err(_) => String::new(),
    };
    System { durability, ..crate::bench::io500::system(mount) }
}

fn about(cluster: &Result<ClusterStatus, String>) -> String {
    let Ok(cluster) = cluster else { return String::new() };
    let version = cluster.nodes.iter().find_map(|node| Some(&node.status.as_ref().ok()?.version));
    format!("{} nodes, sealfs {}", cluster.nodes.len(), version.map_or("?", String::as_str))
}

/// What is known about the cluster, as JSON: the nodes' status, or why there is none, and the mount's.
fn describe(cluster: &Result<ClusterStatus, String>, mount: &Path) -> String {
    let nodes = match cluster {
        Ok(cluster) => super::status::json(cluster),
        Err(error) => serde_json::json!({ "error": error }),
    };
    let status = match sealfs_client::mount_status(mount) {
        Ok(status) => serde_json::json!({
            "version": status.version, "cluster": status.cluster, "transport": status.transport,
            "poll": status.poll, "memory": status.memory,
        }),
        Err(error) => serde_json::json!({ "error": error.to_string() }),
    };
    let all = serde_json::json!({ "nodes": nodes, "mount": status });
    format!("{all:#}\n")
}

/// The clients' names, each once: a client that is named twice would read its own writes.
fn hosts(list: &str) -> Result<Vec<String>, Failure> {
    let hosts = crate::job::hosts(list)?;
    let mut names = hosts.clone();
    names.sort();
    names.dedup();
    if names.len() < hosts.len() {
        return Err(format!("{list:?} names a host twice").into());
    }
    Ok(hosts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_and_each_one_once() {
        assert_eq!(hosts("n[1-2],m.x").unwrap(), ["n1", "n2", "m.x"]);
        for bad in ["", "n1,n1", "n[1-2],n2", "a;b", "n1/2"] {
            assert!(hosts(bad).is_err(), "{bad:?}");
        }
    }
}
