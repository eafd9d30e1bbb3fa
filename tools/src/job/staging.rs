//! Files that are there before a job begins, or kept when it ends: `sealfs stage` on all nodes of the job, as its user.
//!
//! Every node copies its part of each pair, then the first one does what can be done only when all is there.
//!
//! 1. Nothing of a user's is read or written with root's rights: `setpriv` takes them away before the copying program starts.
//! 2. Paths within the job's file system stay in it: no `..`, and what begins with `/` begins at its root.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::hearing::Hearing;
use super::state::{Home, Record};
use super::stop::Stop;
use crate::Failure;

impl std::fmt::Display for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {} {}", self.direction, self.outer.display(), self.inner.display())
    }
}

/// What is copied from where to where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    direction: Direction,
    /// Outside.
    outer: PathBuf,
    /// Within the job's file system, relative to its root.
    inner: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    In,
    Out,
}

impl Pair {
    /// `SOURCE[:DEST]` of `--stage-in`; without DEST what SOURCE holds comes to the root.
    pub(crate) fn inwards(text: &str) -> Result<Self, String> {
        let (source, target) = text.split_once(':').unwrap_or((text, "/"));
        Self::new(Direction::In, source, target)
    }

    /// `SOURCE:DEST` of `--stage-out`.
    pub(crate) fn outwards(text: &str) -> Result<Self, String> {
        let pair =
            text.split_once(':').ok_or("write SOURCE:DEST, SOURCE within the job's file system")?;
        Self::new(Direction::Out, pair.1, pair.0)
    }

    fn new(direction: Direction, outer: &str, inner: &str) -> Result<Self, String> {
        if !outer.starts_with('/') {
            return Err(format!("{outer:?}, outside the job's file system, begins with a slash"));
        }
        let mut within = PathBuf::new();
        for part in Path::new(inner).components() {
            match part {
                Component::Normal(name) => within.push(name),
                Component::RootDir | Component::CurDir => {}
                Component::ParentDir | Component::Prefix(_) => {
                    return Err(format!("{inner:?} leads out of the job's file system by `..`"));
                }
            }
        }
        if inner.is_empty() {
            return Err("an empty path; `/` is the root of the job's file system".into());
        }
        Ok(Self { direction, outer: outer.into(), inner: within })
    }
}

/// When staging must have ended: parts leave a tenth of the time to the rest.
pub(super) struct Times {
    pub(super) parts: Instant,
    /// When the first node goes on without those that began later and still copy.
    pub(super) late: Instant,
    pub(super) all: Instant,
    /// When nobody waits any more for a first node that is connected and says nothing: it may have begun when this node's
    /// time was over.
    pub(super) last: Instant,
}

impl Times {
    /// From now on, `seconds` in all.
    pub(super) fn new(seconds: u64) -> Self {
        let (now, all) = (Instant::now(), Duration::from_secs(seconds));
        Self {
            parts: now + all * 9 / 10,
            late: now + all * 19 / 20,
            all: now + all,
            last: now + all * 2,
        }
    }
}

/// Which share of the work.
#[derive(Clone, Copy)]
pub(super) enum Share {
    /// This node's part.
    Mine,
    /// What comes when all parts have ended.
    Finish,
}

/// Does this node's share of all pairs until `until`, or until `stop` is pulled. The error names each pair that failed, and why.
pub(super) fn copy(
    home: &Home,
    record: &Record,
    pairs: &[Pair],
    share: Share,
    (stop, until): (&Stop, Instant),
) -> Result<String, String> {
    let done = pairs.iter().map(|pair| copy_one(home, record, pair, share, (stop, until)));
    let failed: Vec<String> = done.filter_map(|one| Some(one.err()?.to_string())).collect();
    if failed.is_empty() { Ok(String::new()) } else { Err(failed.join("; ")) }
}

fn copy_one(
    home: &Home,
    record: &Record,
    pair: &Pair,
    share: Share,
    (stop, until): (&Stop, Instant),
) -> Result<(), Failure> {
    let inner = record.mountpoint.join(&pair.inner);
    let (word, source, target) = match pair.direction {
        Direction::In => ("in", &pair.outer, &inner),
        Direction::Out => ("out", &inner, &pair.outer),
    };
    let failed = |cause: String| -> Failure {
        format!("staging {word} {} to {}: {cause}", source.display(), target.display()).into()
    };
    if let (Direction::In, Share::Mine, Some(parent)) = (pair.direction, share, target.parent())
        && pair.inner.parent().is_some()
    {
        let mut command = as_user(record, Path::new("/usr/bin/mkdir"))?;
        command.args(["-p", "--"]).arg(parent);
        run(home, record, &mut command, (stop, until)).map_err(failed)?;
    }
    let left = until.saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
    let mut command = as_user(record, &std::env::current_exe()?)?;
    command.args(["stage", word]).arg(source).arg(target);
    command.args(["--deadline", &left.as_secs().to_string()]);
    match share {
        Share::Mine => {
            command.args(["--part", &format!("{}/{}", record.me + 1, record.hosts.len())])
        }
        Share::Finish => command.arg("--finish"),
    };
    run(home, record, &mut command, (stop, until)).map_err(failed)
}

/// Runs a program, whose words go to the log and to stderr; the last ones are the cause if it fails.
/// It ends itself in time, unless it waits for a node that is dead.
fn run(
    home: &Home,
    record: &Record,
    command: &mut Command,
    (stop, until): (&Stop, Instant),
) -> Result<(), String> {
    let path = log(record);
    let failed = |error: io::Error| format!("cannot open {}: {error}", path.display());
    let log = File::options().create(true).append(true).mode(0o600).open(&path).map_err(failed)?;
    // It is found again by its stdin, which it does not read.
    command.stdin(File::open(&path).map_err(failed)?);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).current_dir("/");
    let mut child =
        command.spawn().map_err(|error| format!("cannot start {command:?}: {error}"))?;
    let hearing = child.stderr.take().map(|stderr| Hearing::of(stderr, log, &home.id));
    let ended = stop.wait(&mut child, until + LATE_MAX);
    let lines = hearing.map_or_else(Vec::new, Hearing::last_words);
    let lines = lines.iter().map(|line| line.trim_start_matches("sealfs stage: "));
    let said = lines.collect::<Vec<_>>().join("; ");
    match ended.map(|status| status.code()) {
        Ok(Some(0)) => Ok(()),
        Ok(Some(3)) => Err(format!("the time was over first: {said}")),
        Ok(Some(_)) => Err(said),
        Ok(None) => Err(format!("it was ended by a signal: {said}")),
        Err(why) => Err(format!("it was ended, for {why}: {said}")),
    }
}

/// The log of the copying programs.
pub(super) fn log(record: &Record) -> PathBuf {
    super::node::log_of(record, "stage")
}

/// `program` with the job's user's rights, groups and nothing of this process's environment.
fn as_user(record: &Record, program: &Path) -> Result<Command, Failure> {
    let me = rustix::process::geteuid();
    let mut command = if me.as_raw() == record.uid {
        Command::new(program)
    } else {
        let mut command = Command::new(SETPRIV);
        // Without the sign, a number that is also somebody's login name would be that account.
        let (uid, gid) = (format!("+{}", record.uid), format!("+{}", record.gid));
        command.args(["--reuid", &uid, "--regid", &gid, "--no-new-privs"]);
        command.args(["--inh-caps=-all", "--bounding-set=-all"]);
        // A uid that has no name has no groups either.
        let groups = Command::new("/usr/bin/id").args(["-G", &uid]).output();
        let groups = groups.map_err(|error| format!("cannot run /usr/bin/id: {error}"))?;
        let list = String::from_utf8_lossy(&groups.stdout);
        let list: Vec<String> = list.split_whitespace().map(|group| format!("+{group}")).collect();
        match groups.status.success() && !list.is_empty() {
            true => command.arg(format!("--groups={}", list.join(","))),
            false => command.arg("--clear-groups"),
        };
        command.arg("--").arg(program);
        command
    };
    command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin");
    Ok(command)
}

/// What a copying program may take to notice that its time is over.
const LATE_MAX: Duration = Duration::from_secs(2);
/// Of util-linux, as mount(8) is.
const SETPRIV: &str = "/usr/bin/setpriv";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_name_an_outer_and_an_inner_end() {
        let pair = Pair::inwards("/project/in:data/in").unwrap();
        assert_eq!(
            (pair.outer.to_str(), pair.inner.to_str()),
            (Some("/project/in"), Some("data/in"))
        );
        assert_eq!(Pair::inwards("/project/in").unwrap().inner, PathBuf::new());
        let pair = Pair::outwards("/results/./x:/project/out").unwrap();
        assert_eq!(
            (pair.outer.to_str(), pair.inner.to_str()),
            (Some("/project/out"), Some("results/x"))
        );
    }

    #[test]
    fn what_leads_elsewhere_is_refused() {
        for wrong in ["in", "", "in:/x", "/a:../b", "/a:b/../../c", "/a:"] {
            assert!(Pair::inwards(wrong).is_err(), "{wrong}");
        }
        for wrong in ["x", "/x", "x:out", "../x:/out", ":/out"] {
            assert!(Pair::outwards(wrong).is_err(), "{wrong}");
        }
    }
}
