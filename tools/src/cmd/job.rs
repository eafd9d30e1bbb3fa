//! `sealfs job up|down|status|reap|hosts`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::Failure;
use crate::job::{self, Pair, Scope, Settings, Wanted};

/// A file system that lives as long as a job.
///
/// Exit status of `up` and `down`: 1: this node's fault, or something is left on it; 2: the command line; 3: another node's
/// fault, and nothing is left on this one; 4: the job's own, as files that cannot be staged, and nothing is left. With
/// --slurm 1 is the only one: what is not this node's fault is told to Slurm.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Brings a job's file system up on this node, together with the job's other nodes; prints its path.
    Up {
        /// As Slurm's prologue: the job from the environment, what it wants from its comment.
        #[arg(long, conflicts_with_all = ["id", "hosts", "node", "uid", "gid", "unprivileged", "stage_in"])]
        slurm: bool,
        /// The job.
        #[arg(long, required_unless_present = "slurm", value_parser = job::id)]
        id: Option<String>,
        /// All its nodes, as Slurm writes them: n[1-3],m2. The first one is where they meet.
        #[arg(long, value_name = "HOSTLIST", required_unless_present = "slurm", value_parser = job::list)]
        hosts: Option<String>,
        /// This node's name in the list. Default: $SLURMD_NODENAME, else the host's name.
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
        /// Whose job it is. Needed but with --unprivileged.
        #[arg(long, requires = "gid")]
        uid: Option<u32>,
        /// The user's group.
        #[arg(long, requires = "uid")]
        gid: Option<u32>,
        /// What is copied into the file system before it is used: SOURCE of any path, DEST within it (its root).
        #[arg(long, value_name = "SOURCE[:DEST]", value_parser = Pair::inwards)]
        stage_in: Vec<Pair>,
        #[command(flatten)]
        scope: ScopeArgs,
        #[command(flatten)]
        settings: Box<Settings>,
    },
    /// Takes a job's file system down on this node and wipes its data. Nothing is there: done.
    Down {
        /// As Slurm's epilogue: the job from the environment.
        #[arg(long, conflicts_with_all = ["id", "node", "unprivileged", "stage_out", "force"])]
        slurm: bool,
        /// The job.
        #[arg(long, required_unless_present = "slurm", value_parser = job::id)]
        id: Option<String>,
        /// Accepted as for `up`; this node knows its name since then.
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
        /// What is copied out of the file system before it goes: SOURCE within it, DEST any path.
        #[arg(long, value_name = "SOURCE:DEST", value_parser = Pair::outwards)]
        stage_out: Vec<Pair>,
        /// Copies nothing, and wipes what an earlier `down` has kept.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        scope: ScopeArgs,
        #[command(flatten)]
        settings: Box<Settings>,
    },
    /// Shows what stands of jobs on this node.
    Status {
        /// This one only.
        #[arg(long)]
        id: Option<String>,
        /// As JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        scope: ScopeArgs,
        #[command(flatten)]
        settings: Box<Settings>,
    },
    /// Removes what dead jobs have left on this node, and prints their ids. For the boot; safe at any time.
    Reap {
        /// The jobs that run, as 17,[20-25]; all others have ended, even if their servers run. For slurmd's start.
        #[arg(long, value_name = "IDS", value_parser = job::list)]
        living: Option<String>,
        #[command(flatten)]
        scope: ScopeArgs,
        #[command(flatten)]
        settings: Box<Settings>,
    },
    /// Prints the names that a host list stands for, one per line.
    Hosts {
        /// n[1-3,07-11],m2
        list: String,
    },
    /// Makes the root of a file system a user's alone.
    #[command(hide = true)]
    Give {
        #[arg(long)]
        uid: u32,
        #[arg(long)]
        gid: u32,
        root: PathBuf,
    },
    /// Runs a program in a session of its own.
    #[command(hide = true)]
    Detach {
        #[arg(long)]
        cgroup: Option<PathBuf>,
        /// The program and its arguments.
        #[arg(last = true, required = true)]
        words: Vec<OsString>,
    },
}

#[derive(clap::Args)]
struct ScopeArgs {
    /// Settings as TOML, named as the flags; flags win. Default: /etc/sealfs/job.toml.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Without an administrator: everything is this user's.
    #[arg(long)]
    unprivileged: bool,
}

impl ScopeArgs {
    fn with(self, settings: Box<Settings>) -> Scope {
        Scope { flags: *settings, config: self.config, is_user: self.unprivileged }
    }
}

/// Exit status 0: done; 1: this node's fault, or something is left on it; 2: the command line; 3: another node's fault, and
/// nothing is left on this one; 4: the job's own, as files that cannot be staged, and nothing is left.
pub(crate) fn run(args: Args) -> ExitCode {
    match verb(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sealfs: {error}");
            ExitCode::from(job::exit_status(&error))
        }
    }
}

fn verb(args: Args) -> Result<(), Failure> {
    match args.verb {
        Verb::Up {
            id: Some(id),
            hosts: Some(hosts),
            node,
            uid,
            gid,
            stage_in,
            scope,
            settings,
            ..
        } => {
            let wanted = Wanted { id, hosts, node, owner: uid.zip(gid), stage_in };
            println!("{}", job::up(scope.with(settings), wanted)?.display());
        }
        // The parser has seen to --slurm.
        Verb::Up { scope, settings, .. } => job::slurm::up(scope.with(settings))?,
        Verb::Down { id: Some(id), stage_out, force, scope, settings, .. } => {
            job::down(scope.with(settings), &id, &stage_out, force)?;
        }
        Verb::Down { scope, settings, .. } => job::slurm::down(scope.with(settings))?,
        Verb::Status { id, json, scope, settings } => {
            println!("{}", job::status(scope.with(settings), id.as_deref(), json)?);
        }
        Verb::Reap { living, scope, settings } => {
            let reaped = job::reap(scope.with(settings), living.as_deref())?;
            reaped.ids.iter().for_each(|id| println!("{id}"));
            if !reaped.left.is_empty() {
                return Err(reaped.left.join("\nsealfs: ").into());
            }
        }
        Verb::Hosts { list } => job::hosts(&list)?.iter().for_each(|name| println!("{name}")),
        Verb::Give { uid, gid, root } => job::give(&root, uid, gid)?,
        Verb::Detach { cgroup, words } => return Err(job::detach(cgroup.as_deref(), &words)),
    }
    Ok(())
}
