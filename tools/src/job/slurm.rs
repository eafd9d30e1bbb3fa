//! `sealfs job up --slurm` and `sealfs job down --slurm`: what Slurm's prologue and epilogue run.
//!
//! All they know comes from Slurm: the job, its nodes and its owner from the environment, what the
//! job wants from its comment,
//! `--comment="sealfs:size=200G,chunk=1M,stage_in=SOURCE[:TARGET],stage_out=SOURCE:TARGET"`. A job
//! without the constraint `sealfs` is left alone.
//!
//! A prologue that fails drains its node and requeues the job. So it fails only for what is wrong
//! with its own node:
//!
//! | what is wrong | this node | the job |
//! |---|---|---|
//! | something of this node | drained, the cause is the reason | requeued by Slurm |
//! | another node has failed | as it was | requeued, by the first node |
//! | some of the other nodes never came | as it was | requeued by the first node, which drains them |
//! | most of several other nodes never came to the first | drained | requeued by Slurm |
//! | the first node never came | as it was | requeued by the second node, which drains the first |
//! | what the job asks for | as it was | ends: its tasks are refused and say why |
//!
//! 1. No task runs without its file system: the prologue leaves a note for the prologue of tasks, a
//!    path or a refusal.
//! 2. Nobody is drained and nothing requeued for a job that Slurm has ended meanwhile.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::down::NotCopied;
use super::meeting::{Fault, Whose};
use super::{Pair, Scope, Wanted, hostlist};
use crate::{Failure, place};

/// A job as Slurm tells it to prologue and epilogue.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    id: String,
    node: String,
    hosts: String,
    owner: (u32, u32),
    comment: String,
    /// Where the job was submitted from.
    directory: Option<PathBuf>,
}

/// What a job's comment asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    size: Option<String>,
    chunk: Option<String>,
    stage_in: Vec<Pair>,
    stage_out: Vec<Pair>,
}

/// The prologue. An error is this node's own.
pub(crate) fn up(mut scope: Scope) -> Result<(), Failure> {
    let Some(asked) = asked(|name| std::env::var(name).ok())? else { return Ok(()) };
    super::set_umask();
    forget(&asked.id)?;
    let options = match options(&asked.comment) {
        Ok(options) => options,
        Err(cause) => return leave_note(&asked.id, &refusal(&cause)),
    };
    scope.flags.size = options.size.or(scope.flags.size);
    scope.flags.chunk = options.chunk.or(scope.flags.chunk);
    let wanted = Wanted {
        id: asked.id.clone(),
        hosts: asked.hosts.clone(),
        node: Some(asked.node.clone()),
        owner: Some(asked.owner),
        stage_in: options.stage_in,
    };
    match super::up(scope, wanted) {
        Ok(path) => leave_note(&asked.id, &invitation(&path)),
        Err(error) => give_up(&asked, &error),
    }
}

/// The epilogue. An error names what is left.
pub(crate) fn down(scope: Scope) -> Result<(), Failure> {
    let Some(asked) = asked(|name| std::env::var(name).ok())? else { return Ok(()) };
    forget(&asked.id)?;
    // With wrong options it has never come up.
    let stage_out = options(&asked.comment).unwrap_or_default().stage_out;
    let done = super::down(scope, &asked.id, &stage_out, false);
    match &done {
        Err(error) if error.is::<NotCopied>() => {
            eprintln!("sealfs: job {}: {error}", asked.id);
            if hostlist::expand(&asked.hosts)?.first() == Some(&asked.node) {
                tell_owner(&asked, &error.to_string());
            }
            Ok(())
        }
        _ => done,
    }
}

/// Writes what was not copied where the job was submitted from, with its owner's rights: there is
/// no other place left that the owner looks at.
fn tell_owner(asked: &Asked, text: &str) {
    let Some(directory) = &asked.directory else { return };
    let path = directory.join(format!("sealfs-{}.stage_out", asked.id));
    let (uid, gid) = asked.owner;
    let mut command = Command::new("timeout");
    command.args([PATIENCE_S, "setpriv", "--init-groups", "--no-new-privs"]);
    command.args([format!("--reuid={uid}"), format!("--regid={gid}")]);
    command.args(["sh", "-c", "printf 'sealfs: %s\\n' \"$1\" >> \"$2\"", "sh", text]).arg(&path);
    let status = command.stdin(Stdio::null()).status();
    if !status.is_ok_and(|status| status.success()) {
        eprintln!("sealfs: job {}: cannot write {} for its owner", asked.id, path.display());
    }
}

/// What the job gets instead of a file system; an error if this node is to be drained.
fn give_up(asked: &Asked, error: &Failure) -> Result<(), Failure> {
    let own = Fault { whose: Whose::Own, absent: Vec::new(), text: error.to_string() };
    let fault = error.downcast_ref::<Fault>().unwrap_or(&own);
    let hosts = hostlist::expand(&asked.hosts)?;
    let text = named(&asked.node, &fault.text);
    let job = format!("job {}", asked.id);
    match verdict(&hosts, &asked.node, fault) {
        Verdict::Own => {
            // Slurm would say no more than `Prolog error`.
            let _ = drain(&asked.node, &format!("{job}: {text}"));
            return Err(text.into());
        }
        Verdict::Speak { drained } if is_wanted(&asked.id) => {
            eprintln!("sealfs: {job}: {text}");
            for node in drained {
                drain(&node, &format!("{job}: {text}"))?;
            }
            requeue(&asked.id)?;
        }
        Verdict::Speak { .. } | Verdict::Listen | Verdict::Refuse => {
            eprintln!("sealfs: {job}: {text}");
        }
    }
    leave_note(&asked.id, &refusal(&text))
}

/// What a node does about a fault.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Fails.
    Own,
    /// Speaks for all: has the job requeued and these nodes drained.
    Speak { drained: Vec<String> },
    /// Leaves it to others.
    Listen,
    /// Lets the job end.
    Refuse,
}

fn verdict(hosts: &[String], node: &str, fault: &Fault) -> Verdict {
    let (first, others) = (&hosts[0], hosts.len() - 1);
    let is_speaker = if fault.absent.contains(first) {
        hosts.get(1).is_some_and(|second| second == node)
    } else {
        first == node
    };
    let is_alone = others > 1 && fault.absent.len() * 2 > others;
    match (fault.whose, is_speaker) {
        (Whose::Jobs, _) => Verdict::Refuse,
        (Whose::Own, _) => Verdict::Own,
        (Whose::Others, true) if is_alone => Verdict::Own,
        (Whose::Others, true) => Verdict::Speak { drained: fault.absent.clone() },
        (Whose::Others, false) => Verdict::Listen,
    }
}

/// The job in the environment; `None` if it does not want a file system.
fn asked(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Asked>, Failure> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    let constraints = variable("SLURM_JOB_CONSTRAINTS").unwrap_or_default();
    if !constraints.split(|c| !is_part(c)).any(|word| word == "sealfs") {
        return Ok(None);
    }
    let get = |name: &str| {
        let missing =
            || format!("${name} is not set; --slurm is for Slurm's prologue and epilogue");
        variable(name).ok_or_else(missing)
    };
    let number = |name: &str| get(name)?.parse().map_err(|_| format!("${name} is no number"));
    Ok(Some(Asked {
        id: get("SLURM_JOB_ID")?,
        node: get("SLURMD_NODENAME")?,
        hosts: variable("SLURM_JOB_NODELIST").map_or_else(|| get("SLURM_NODELIST"), Ok)?,
        owner: (number("SLURM_JOB_UID")?, number("SLURM_JOB_GID")?),
        comment: variable("SLURM_JOB_COMMENT").unwrap_or_default(),
        directory: variable("SLURM_JOB_WORK_DIR").map(PathBuf::from),
    }))
}

/// The options in a comment. `options.lua` of `tools/slurm/` checks the same when the job is
/// submitted.
fn options(comment: &str) -> Result<Options, String> {
    let mut words = comment.split(|c: char| c.is_ascii_whitespace() || c == ';');
    let mut options = Options::default();
    let Some(text) = words.find_map(|word| word.strip_prefix("sealfs:")) else {
        return Ok(options);
    };
    let once = |place: &mut Option<String>, name: &str, value: &str| {
        let is_first = place.replace(value.to_owned()).is_none();
        if is_first { Ok(()) } else { Err(format!("{name}= is there twice")) }
    };
    for option in text.split(',') {
        match option.split_once('=') {
            Some(("size", value)) => {
                once(&mut options.size, "size", value)?;
                check_size(value)?;
            }
            Some(("chunk", value)) => {
                once(&mut options.chunk, "chunk", value)?;
                check_chunk(value)?;
            }
            Some(("stage_in", value)) => options.stage_in.push(stage_in(value)?),
            Some(("stage_out", value)) => options.stage_out.push(stage_out(value)?),
            _ => {
                return Err(format!(
                    "unknown option `{option}`; there are size=, chunk=, stage_in= and stage_out="
                ));
            }
        }
    }
    Ok(options)
}

fn check_size(value: &str) -> Result<(), String> {
    let size = sealfs_proto::nodes::bytes(value).filter(|size| *size >= 256 << 20);
    let wrong = || format!("size={value}: write at least 256M on each node, as size=200G");
    size.map(drop).ok_or_else(wrong)
}

fn check_chunk(value: &str) -> Result<(), String> {
    let size = sealfs_proto::nodes::bytes(value).unwrap_or(0);
    let is_right = size.is_power_of_two() && (64 << 10..=1 << 20).contains(&size);
    if is_right { Ok(()) } else { Err(format!("chunk={value}: use 64K, 128K, 256K, 512K or 1M")) }
}

fn stage_in(value: &str) -> Result<Pair, String> {
    let (source, target) = value.split_once(':').unwrap_or((value, "/"));
    if !source.starts_with('/') || target.contains(':') {
        return Err(format!(
            "stage_in={value}: write stage_in=/absolute/source or stage_in=/absolute/source:target"
        ));
    }
    let outside = |_| {
        format!("stage_in={value}: the target is a path within the job's file system, without ..")
    };
    Pair::inwards(value).map_err(outside)
}

fn stage_out(value: &str) -> Result<Pair, String> {
    let (_, target) = value.split_once(':').unwrap_or((value, ""));
    if !target.starts_with('/') || target.contains(':') {
        return Err(format!("stage_out={value}: write stage_out=source:/absolute/target"));
    }
    let outside = |_| {
        format!("stage_out={value}: the source is a path within the job's file system, without ..")
    };
    Pair::outwards(value).map_err(outside)
}

/// Puts the node's name before what does not begin with one.
fn named(node: &str, text: &str) -> String {
    if text.starts_with(node) { text.to_owned() } else { format!("{node}: {text}") }
}

/// The note of a job whose tasks are not to run: Slurm prints it into the job's output.
fn refusal(cause: &str) -> String {
    let lines = cause.lines().map(|line| format!("print sealfs: {line}\n"));
    lines.collect()
}

/// The note of a job whose file system is mounted at `path`.
fn invitation(path: &Path) -> String {
    format!("export SEALFS_DIR={}\n", path.display())
}

/// Removes the note of a job whose file system was at `path`, for no epilogue has done it. Another
/// job's of that name stays.
pub(super) fn uninvite(id: &str, path: &Path) {
    let note = Path::new(NOTES).join(id);
    if fs::read_to_string(&note).is_ok_and(|text| text == invitation(path)) {
        let _ = fs::remove_file(note);
    }
}

/// Leaves what `tools/slurm/task_prolog` reads.
fn leave_note(id: &str, text: &str) -> Result<(), Failure> {
    let (note, fresh) = (note(id)?, note(&format!("{id}.new"))?);
    let written = fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, &note));
    Ok(written.map_err(|error| format!("cannot write {}: {error}", note.display()))?)
}

/// Removes the note of a job.
fn forget(id: &str) -> Result<(), Failure> {
    let note = note(id)?;
    let gone = fs::remove_file(&note).or_else(super::state::unless(std::io::ErrorKind::NotFound));
    Ok(gone.map_err(|error| format!("cannot remove {}: {error}", note.display()))?)
}

fn note(id: &str) -> Result<PathBuf, Failure> {
    super::state::check_id(id)?;
    Ok(place::trusted(Path::new(NOTES), 0o755)?.join(id))
}

/// Whether Slurm still wants the job to run. If it does not answer, it may.
fn is_wanted(id: &str) -> bool {
    let state = slurm("squeue", &["--noheader", "--jobs", id, "--format=%T"]);
    state.map_or(true, |state| matches!(state.trim(), "RUNNING" | "CONFIGURING"))
}

/// Has Slurm run the job once more, later; or end it, if it may not be run again.
///
/// Slurm requeues a job itself when a prologue fails: another node may have been first.
fn requeue(id: &str) -> Result<(), Failure> {
    let Err(refused) = slurm("scontrol", &["requeue", id]) else { return Ok(()) };
    let job = slurm("scontrol", &["--oneliner", "show", "job", id]);
    if job.is_ok_and(|job| job.split(' ').any(|field| field == "Requeue=0")) {
        return slurm("scancel", &[id]).map(drop);
    }
    if is_wanted(id) { Err(refused) } else { Ok(()) }
}

fn drain(node: &str, reason: &str) -> Result<(), Failure> {
    let line = reason.replace(['\n', '"'], " ");
    let short: String = line.chars().take(REASON_CHARS).collect();
    let (node, reason) = (format!("nodename={node}"), format!("reason=sealfs: {short}"));
    slurm("scontrol", &["update", &node, "state=drain", &reason]).map(drop)
}

/// What a command of Slurm's prints.
fn slurm(program: &str, words: &[&str]) -> Result<String, Failure> {
    let mut command = Command::new("timeout");
    let output = command.args([PATIENCE_S, program]).args(words).output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {}: {} {}", words.join(" "), output.status, said.trim()).into())
}

/// Where the prologue of tasks finds its notes; it runs as the job's user.
const NOTES: &str = "/run/sealfs/tasks";
/// A controller that does not answer holds up neither prologue nor epilogue for longer.
const PATIENCE_S: &str = "20";
/// sinfo(1) shows reasons in a column.
const REASON_CHARS: usize = 400;

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of comments when a job is submitted must hold here, too.
    const COMMENTS: &str = include_str!("../../slurm/comments.txt");

    #[test]
    fn options_are_read_as_they_are_checked_at_submission() {
        let lines: Vec<&str> = COMMENTS.lines().filter(|line| !line.starts_with('#')).collect();
        assert!(lines.len() > 30);
        for line in lines {
            let mut parts = line.splitn(3, ' ');
            let [verdict, word, comment] = [(); 3].map(|()| parts.next().unwrap());
            match options(comment) {
                Ok(_) => assert_eq!(verdict, "ok", "{comment}"),
                Err(cause) => {
                    assert!(verdict == "no" && cause.contains(word), "{comment}: {cause}");
                }
            }
        }
        let read =
            options("run 3; sealfs:size=1T,stage_in=/a:b,stage_in=/c,stage_out=d:/e chunk=1M");
        assert_eq!(
            read.unwrap(),
            Options {
                size: Some("1T".into()),
                chunk: None,
                stage_in: ["/a:b", "/c"].map(|text| Pair::inwards(text).unwrap()).into(),
                stage_out: vec![Pair::outwards("d:/e").unwrap()],
            }
        );
    }

    #[test]
    fn a_job_asks_by_a_word_of_its_constraints() {
        let with = |constraints: &str| {
            let all = [
                ("SLURM_JOB_CONSTRAINTS", constraints),
                ("SLURM_JOB_ID", "7"),
                ("SLURM_NODELIST", "n[1-2]"),
                ("SLURMD_NODENAME", "n2"),
                ("SLURM_JOB_UID", "5"),
                ("SLURM_JOB_GID", "6"),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
            let all = std::collections::BTreeMap::from(all);
            asked(|name| all.get(name).cloned()).unwrap()
        };
        for constraints in ["sealfs", "gpu&sealfs", "[sealfs*2&gpu*1]", "(sealfs)&x"] {
            let asked = with(constraints).expect("it asks");
            assert_eq!((asked.owner, asked.hosts.as_str()), ((5, 6), "n[1-2]"));
        }
        for constraints in ["", "gpu", "nosealfs", "sealfs-old", "sealfs.2"] {
            assert_eq!(with(constraints), None, "{constraints}");
        }
        let only = |name: &str| (name == "SLURM_JOB_CONSTRAINTS").then(|| "sealfs".to_owned());
        assert!(asked(only).unwrap_err().to_string().contains("$SLURM_JOB_ID"));
    }

    #[test]
    fn the_node_at_fault_is_drained_and_nobody_else() {
        let hosts: Vec<String> = ["a", "b", "c", "d"].map(str::to_owned).into();
        let speak = |drained: &[&str]| Verdict::Speak {
            drained: drained.iter().map(ToString::to_string).collect(),
        };
        type Row<'a> = (Whose, &'a [&'a str], [Verdict; 4]);
        let refuse = || Verdict::Refuse;
        let rows: [Row<'_>; 6] = [
            (Whose::Jobs, &[], [refuse(), refuse(), refuse(), refuse()]),
            (Whose::Own, &[], [Verdict::Own, Verdict::Own, Verdict::Own, Verdict::Own]),
            (Whose::Others, &[], [speak(&[]), Verdict::Listen, Verdict::Listen, Verdict::Listen]),
            (
                Whose::Others,
                &["c"],
                [speak(&["c"]), Verdict::Listen, Verdict::Listen, Verdict::Listen],
            ),
            (
                Whose::Others,
                &["b", "c"],
                [Verdict::Own, Verdict::Listen, Verdict::Listen, Verdict::Listen],
            ),
            (
                Whose::Others,
                &["a"],
                [Verdict::Listen, speak(&["a"]), Verdict::Listen, Verdict::Listen],
            ),
        ];
        for (whose, absent, expected) in rows {
            let absent: Vec<String> = absent.iter().map(ToString::to_string).collect();
            let fault = Fault { whose, absent, text: String::new() };
            let all: Vec<Verdict> =
                hosts.iter().map(|node| verdict(&hosts, node, &fault)).collect();
            assert_eq!(all, expected, "{fault:?}");
        }
        let fault = Fault { whose: Whose::Others, absent: vec!["b".into()], text: String::new() };
        assert_eq!(verdict(&hosts[..2], "a", &fault), speak(&["b"]));
    }

    #[test]
    fn a_refusal_is_printed_line_by_line() {
        assert_eq!(refusal("one\ntwo"), "print sealfs: one\nprint sealfs: two\n");
        assert_eq!(named("n2", "n2: no disk"), "n2: no disk");
        assert_eq!(named("n2", "no disk"), "n2: no disk");
    }
}
