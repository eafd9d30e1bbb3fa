//! `sealfs stage`: a tree copied into a mount or out of it, in parallel, over several nodes, so that it can be repeated.
//!
//! ```text
//! walkers: folders of SOURCE --> batches of entries --> copiers: data, marks, sync, compare, name, record
//!                                                   '--> segments of large files
//! then: folders' marks, `.sealfs-stage` removed
//! ```
//!
//! 1. What is reported as staged is durable in DEST, and was read back from there.
//! 2. A process that dies at any moment leaves whole files under their names, others under temporary ones, and a manifest that
//!    claims nothing that is not so. The next run makes the tree right.
//! 3. Nothing is ever silent: an entry is there, or named in the report.
//! 4. Memory and descriptors do not grow with the tree.
//!
//! It does not delete what DEST has and SOURCE has not, and keeps no unwritten (preallocated) space.

mod copy;
mod data;
mod ends;
mod finish;
mod large;
mod links;
mod manifest;
mod marks;
mod names;
mod show;
mod source;
mod tally;
mod tree;
mod trouble;
mod walk;
mod work;

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fd::OwnedFd;
use rustix::fs::{
    AtFlags, Dir as Listing, Mode, OFlags, fstat, openat, renameat, statat, unlinkat,
};
use rustix::io::Errno;
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::Failure;
use copy::{Copier, data_len};
use ends::{Ends, MADE};
use finish::PartState;
use links::Links;
use manifest::{Manifest, Refused, part_of};
use names::{Key, digest, hex};
use show::Shown;
use source::{look, mount_id};
use tally::{Counts, Tally};
use tree::Dir;
use trouble::Trouble;
use walk::Visit;
use work::{Batch, Folder, Work};

pub(crate) use data::Checksum;

/// Which end is the mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Direction {
    In,
    Out,
}

/// What to do.
pub(crate) struct Plan {
    pub(crate) direction: Direction,
    pub(crate) source: PathBuf,
    pub(crate) target: PathBuf,
    /// K and N; none: everything, to the end.
    pub(crate) part: Option<(u32, u32)>,
    /// Only what comes after all parts.
    pub(crate) finish: bool,
    pub(crate) json: bool,
    pub(crate) workers: usize,
    pub(crate) deadline: Option<Duration>,
    pub(crate) checksum: Checksum,
    pub(crate) one_file_system: bool,
    pub(crate) keep_manifest: bool,
    pub(crate) any: bool,
    pub(crate) report: Option<PathBuf>,
}

/// How it ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// All is there, durable and verified.
    Complete,
    /// Something is not, and is named.
    Failed,
    /// The deadline came first; what is missing is named.
    Deadline,
}

/// What all threads share.
struct Shared {
    plan: Plan,
    part: u32,
    parts: u32,
    source: OwnedFd,
    target: OwnedFd,
    /// DEST's device and inode.
    target_id: (u64, u64),
    stage: OwnedFd,
    stage_path: PathBuf,
    syncs_each: bool,
    /// Files that a thread writes before it syncs them.
    group_files_max: usize,
    /// Whether temporary files that an earlier run may have left go at the end.
    cleans: AtomicBool,
    /// In temporary names, so that no other process has the same ones.
    nonce: [u8; 8],
    /// None when it is used no more.
    manifest: Option<Manifest>,
    links: Links,
    /// ctime of what was made in DEST when the run began.
    began: (i64, u64),
    work: Work,
    /// Folders that could not be walked; the walk at the end meets them again.
    failed_folders: Mutex<BTreeSet<Key>>,
    tally: Tally,
    /// Nothing more is begun.
    stop: AtomicBool,
}

/// Does what the plan says.
pub(crate) fn run(plan: Plan) -> Result<Outcome, Failure> {
    let started = Instant::now();
    if let Some(limit) = plan.deadline {
        end_at_the_latest(limit);
    }
    let signal = signals()?;
    // Modes are given exactly.
    rustix::process::umask(Mode::empty());
    let mut shared = Shared::open(plan)?;
    shared.tally.start(json!({
        "direction": if shared.plan.direction == Direction::In { "in" } else { "out" },
        "source": shared.plan.source.to_string_lossy(), "dest": shared.plan.target.to_string_lossy(),
        "part": shared.part, "parts": shared.parts, "finish": shared.plan.finish,
        "resumed": !shared.manifest().is_new(),
    }));
    let mut watch = Watch::new(&shared, started, signal);
    let mut counts = Counts::default();
    if shared.plan.finish {
        counts = shared.parts_counts()?;
    } else {
        shared.copy(&mut watch)?;
    }
    // What the deadline has cut off is not finished; a part never is by itself.
    let is_cut_off = shared.tally.counts().is_cut_off();
    let is_last = shared.plan.finish || (shared.plan.part.is_none() && !is_cut_off);
    if !(counts.is_complete() && shared.tally.counts().is_complete()) {
        // The next run goes on with what large files have.
        shared.cleans.store(false, Ordering::Relaxed);
    }
    if is_last {
        shared.finish(&mut watch)?;
    }
    counts.add(&shared.tally.counts());
    drop(watch);
    if is_last && let Err(trouble) = shared.finish_root(counts.is_complete()) {
        shared.tally.failed(b"", &trouble);
        counts.failed += 1;
    }
    let is_over = is_last && counts.is_complete();
    if !shared.plan.finish
        && !is_over
        && let Err(error) = shared.write_state(&counts)
    {
        shared.tally.failed(b"", &Trouble::Other(error.to_string()));
        counts.failed += 1;
    }
    Ok(shared.conclude(&counts))
}

impl Shared {
    fn open(plan: Plan) -> Result<Self, Failure> {
        let ends = Ends::open(&plan)?;
        let Ends { source, target, stage, stage_path, syncs_each, is_resumed } = ends;
        let (part, parts) = plan.part.unwrap_or((1, 1));
        let origin = digest(&[fs::canonicalize(&plan.source)?.as_os_str().as_bytes()]);
        let manifest = if plan.finish {
            Manifest::of_all(&stage, origin)
        } else {
            Manifest::open(&stage, part, parts, origin)
        };
        let manifest = manifest.map_err(|refused| match refused {
            Refused::InUse => format!(
                "another `sealfs stage` works on {}, which only parts of one N may do at a time; wait for it or end it",
                plan.target.display()
            ),
            Refused::Call(errno) => {
                format!("the manifest in {}: {}", stage_path.display(), std::io::Error::from(errno))
            }
        })?;
        let report = plan.report.clone().unwrap_or_else(|| {
            stage_path.join(if plan.finish {
                "report-finish.jsonl".into()
            } else {
                format!("report-{part}-of-{parts}.jsonl")
            })
        });
        // It would be taken for this run's. What is no file (/dev/stderr) stays.
        if fs::symlink_metadata(&report).is_ok_and(|old| old.is_file()) {
            fs::remove_file(&report).map_err(|error| {
                format!("the old report {} cannot be removed: {error}", report.display())
            })?;
        }
        let mut nonce = [0; 8];
        getrandom::fill(&mut nonce).map_err(|error| format!("no random number: {error}"))?;
        let stat = fstat(&target)?;
        let work = Work::new(first_folder(&source)?, spill(&stage)?, plan.workers)?;
        let made = look(&stage, c"")?;
        Ok(Self {
            part,
            parts,
            source,
            target_id: (stat.st_dev, stat.st_ino),
            target,
            cleans: AtomicBool::new(plan.finish || is_resumed),
            stage,
            stage_path,
            syncs_each,
            nonce,
            manifest: Some(manifest),
            links: Links::new(),
            began: (made.st_ctime, made.st_ctime_nsec),
            work,
            failed_folders: Mutex::default(),
            tally: Tally::new(plan.json, report),
            group_files_max: group_files_max(plan.workers),
            stop: AtomicBool::new(false),
            plan,
        })
    }

    /// Whether an object is to be synced by itself: no syncfs(2) of DEST covers it.
    fn syncs(&self, object: &OwnedFd) -> Result<bool, Errno> {
        Ok(self.syncs_each || fstat(object)?.st_dev != self.target_id.0)
    }

    fn manifest(&self) -> &Manifest {
        self.manifest.as_ref().expect("it is open until all is copied and looked at")
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn stage_path(&self, name: &str) -> PathBuf {
        self.stage_path.join(name)
    }

    /// Whether staging has made DEST.
    fn made_dest(&self) -> bool {
        statat(&self.stage, MADE, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Copies this part's share, until all is there or the deadline comes.
    fn copy(&self, watch: &mut Watch<'_>) -> Result<(), Failure> {
        self.drop_old_states()?;
        let mut copiers = Vec::new();
        for _ in 0..self.plan.workers {
            copiers.push(Copier::new(self)?);
        }
        let latch = Latch::new(WALKERS + copiers.len());
        watch.look(&self.work);
        thread::scope(|scope| {
            for _ in 0..WALKERS {
                scope.spawn(|| {
                    self.walk(&self.work, &mut |visit| {
                        if let Visit::Entries(batch) = visit {
                            self.tally.found(batch.entries.len() as u64);
                            if let Err(batch) = self.work.add_batch(batch) {
                                self.report_batch(&batch);
                            }
                        }
                    });
                    if !self.is_stopped() {
                        self.tally.walked();
                    }
                    latch.leave();
                });
            }
            for copier in &mut copiers {
                scope.spawn(|| {
                    copier.run();
                    latch.leave();
                });
            }
            watch.await_end(&latch, &self.work);
        });
        self.report_leftovers();
        Ok(())
    }

    /// Folders' marks, and with `--finish` a look at everything.
    fn finish(&self, watch: &mut Watch<'_>) -> Result<(), Failure> {
        let work = Work::new(first_folder(&self.source)?, spill(&self.stage)?, 0)?;
        let latch = Latch::new(self.plan.workers);
        watch.look(&work);
        thread::scope(|scope| {
            for _ in 0..self.plan.workers {
                scope.spawn(|| {
                    self.finish_folders(&work);
                    latch.leave();
                });
            }
            watch.await_end(&latch, &work);
        });
        self.report_unread(&work);
        Ok(())
    }

    /// What the deadline has left, to the report.
    fn report_leftovers(&self) {
        let (batches, large) = self.work.leftovers();
        batches.iter().for_each(|batch| self.report_batch(batch));
        for large in large {
            let place = large.place();
            self.report_missing(&place.dir, &place.name, &place.path);
        }
        self.report_unread(&self.work);
    }

    fn report_unread(&self, work: &Work) {
        loop {
            match work.unread_folder() {
                Ok(Some(folder)) if folder.is_left => {}
                Ok(Some(folder)) => self.tally.unread(&folder.path),
                Ok(None) => return,
                Err(error) => return self.tally.fail_walk(&error),
            }
        }
    }

    fn report_batch(&self, batch: &Batch) {
        for entry in &batch.entries {
            self.report_missing(&batch.dir, &entry.name, &batch.dir.join(entry));
        }
    }

    /// An entry that was not copied, unless an earlier run did.
    fn report_missing(&self, dir: &Dir, name: &CStr, path: &[u8]) {
        match look(&dir.source, name) {
            Ok(stat) if self.is_there(dir, name, Key::of(path), &stat) => self.tally.kept(),
            Ok(stat) => self.tally.missing(path, data_len(&stat)),
            Err(errno) => self.tally.failed(path, &Trouble::reading(errno)),
        }
    }

    /// A new run of this part makes void what an earlier one said, or one that shared the work differently.
    fn drop_old_states(&self) -> Result<(), Failure> {
        let own_report = format!("report-{}-of-{}.jsonl", self.part, self.parts);
        for entry in Listing::read_from(&self.stage)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            let is_old = part_of(name, ".state")
                .is_some_and(|(part, parts)| parts != self.parts || part == self.part);
            if is_old || name == own_report {
                match unlinkat(&self.stage, name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(errno) => return Err(std::io::Error::from(errno).into()),
                }
            }
        }
        Ok(())
    }

    /// Says for `--finish` how this part has ended.
    fn write_state(&self, counts: &Counts) -> Result<(), Failure> {
        let name = format!("part-{}-of-{}.state", self.part, self.parts);
        let temporary = format!("{name}.tmp");
        let text = serde_json::to_vec(&PartState { counts: *counts })?;
        let path = self.stage_path(&temporary);
        let write = || {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW;
            let mode = Mode::RUSR | Mode::WUSR;
            let file = openat(&self.stage, temporary.as_str(), flags | OFlags::CLOEXEC, mode)?;
            let mut file = fs::File::from(file);
            file.write_all(&text)?;
            file.sync_all()?;
            renameat(&self.stage, temporary.as_str(), &self.stage, name.as_str())?;
            std::io::Result::Ok(rustix::fs::fsync(&self.stage)?)
        };
        write().map_err(|error| format!("{} cannot be written: {error}", path.display()).into())
    }

    fn conclude(&self, counts: &Counts) -> Outcome {
        let (outcome, status) = if counts.failed > 0 {
            (Outcome::Failed, "failed")
        } else if counts.is_cut_off() {
            (Outcome::Deadline, "deadline")
        } else {
            (Outcome::Complete, "complete")
        };
        self.tally.conclude(status, counts);
        outcome
    }
}

/// The thread that waits for the others: it shows how it goes, and knows the deadline.
struct Watch<'a> {
    shared: &'a Shared,
    deadline: Option<Instant>,
    grace: Duration,
    /// Somebody wants the process to end.
    signal: Arc<AtomicBool>,
    shown: Shown<'a>,
}

impl<'a> Watch<'a> {
    fn new(shared: &'a Shared, started: Instant, signal: Arc<AtomicBool>) -> Self {
        let limit = shared.plan.deadline;
        let grace = limit.map_or(GRACE_MAX, grace);
        let deadline = limit.and_then(|limit| started.checked_add(limit));
        Self { shared, deadline, grace, signal, shown: Shown::new(shared) }
    }

    /// Returns when all threads have ended. After the deadline they are told to; those that hang in a system call do not,
    /// and the process ends without them.
    fn await_end(&mut self, latch: &Latch, work: &Work) {
        while !latch.is_open_within(TICK) {
            self.shown.tick();
            self.look(work);
        }
    }

    /// Looks at the clock, and at what signals came.
    fn look(&mut self, work: &Work) {
        if self.signal.swap(false, Ordering::Relaxed) {
            self.shared.tally.note("a signal came: this is the deadline");
            let now = Instant::now();
            self.deadline = Some(self.deadline.map_or(now, |deadline| deadline.min(now)));
            self.grace = GRACE_MIN;
            end_at_the_latest(Duration::ZERO);
        }
        let now = Instant::now();
        let Some(late) = self.deadline.and_then(|deadline| now.checked_duration_since(deadline))
        else {
            return;
        };
        self.shared.stop.store(true, Ordering::Relaxed);
        work.stop();
        if late > self.grace {
            work.cut();
        }
        if late > self.grace + HANG_MAX {
            self.give_up();
        }
    }

    /// SOURCE or DEST answers no more.
    fn give_up(&self) -> ! {
        let tally = &self.shared.tally;
        let mut counts = tally.counts();
        counts.missing = counts.found.saturating_sub(counts.done + counts.kept + counts.failed);
        counts.unread += 1;
        tally.note("SOURCE or DEST does not answer: not all that is missing could be listed");
        tally.conclude("deadline", &counts);
        std::process::exit(3);
    }
}

/// Tells when SIGTERM or SIGINT came; the one after that ends the process at once.
fn signals() -> std::io::Result<Arc<AtomicBool>> {
    let (came, again) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    for signal in [SIGTERM, SIGINT] {
        flag::register_conditional_default(signal, Arc::clone(&again))?;
        flag::register(signal, Arc::clone(&again))?;
        flag::register(signal, Arc::clone(&came))?;
    }
    Ok(came)
}

/// Ends the process when everything else that a deadline does has failed, wherever a thread hangs.
fn end_at_the_latest(limit: Duration) {
    let last = limit.saturating_add(grace(limit) + 2 * HANG_MAX);
    thread::spawn(move || {
        thread::sleep(last);
        let _ = writeln!(
            std::io::stderr(),
            "sealfs stage: SOURCE or DEST does not answer; what is missing is not listed: run again"
        );
        std::process::exit(3);
    });
}

/// Time after a deadline to list what is missing.
fn grace(limit: Duration) -> Duration {
    (limit / 10).clamp(GRACE_MIN, GRACE_MAX)
}

/// Threads that have not ended.
struct Latch {
    left: Mutex<usize>,
    changed: Condvar,
}

impl Latch {
    fn new(threads: usize) -> Self {
        Self { left: Mutex::new(threads), changed: Condvar::new() }
    }

    fn leave(&self) {
        *self.left.lock().expect(NO_PANIC) -= 1;
        self.changed.notify_all();
    }

    fn is_open_within(&self, time: Duration) -> bool {
        let left = self.left.lock().expect(NO_PANIC);
        let waited = self.changed.wait_timeout_while(left, time, |left| *left > 0);
        *waited.expect(NO_PANIC).0 == 0
    }
}

fn first_folder(source: &OwnedFd) -> Result<Folder, Failure> {
    let (device, mount) = (fstat(source)?.st_dev, mount_id(source, b"")?);
    Ok(Folder { path: Vec::new(), device, mount, is_left: false })
}

/// A file without a name for folders that memory does not hold.
fn spill(stage: &OwnedFd) -> Result<fs::File, Failure> {
    let mut nonce = [0; 8];
    getrandom::fill(&mut nonce).map_err(|error| format!("no random number: {error}"))?;
    let name = format!("folders-{}", hex(&nonce));
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = openat(stage, name.as_str(), flags, Mode::RUSR | Mode::WUSR)?;
    unlinkat(stage, name.as_str(), AtFlags::empty())?;
    Ok(file.into())
}

/// Lets this process open as many descriptors as it may, and says how many files a thread may keep open with that.
fn group_files_max(workers: usize) -> usize {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    let before = limit.current;
    limit.current = limit.maximum;
    let now = if setrlimit(Resource::Nofile, limit).is_ok() { limit.current } else { before };
    let most = now.map_or(usize::MAX, |now| usize::try_from(now).unwrap_or(usize::MAX));
    // A file of a group may hold three: itself, and its folder on both sides. One of the group before it holds its folder.
    (most.saturating_sub(DESCRIPTORS_BESIDE) / (4 * workers.max(1))).clamp(1, GROUP_FILES_MAX)
}

const NO_PANIC: &str = "nobody panics while he holds it";
/// Threads that read folders: one waits for the other end while the other one works.
const WALKERS: usize = 2;
/// Files of a group: each is an open descriptor, and waits for the others to be synced.
const GROUP_FILES_MAX: usize = 64;
/// Descriptors of folders that wait to be copied, of the ends, the manifest, a large file of each thread.
const DESCRIPTORS_BESIDE: usize = 256;
/// How often progress is shown and the deadline looked at.
const TICK: Duration = Duration::from_millis(100);
/// After the deadline: time to list what is missing.
const GRACE_MIN: Duration = Duration::from_secs(1);
const GRACE_MAX: Duration = Duration::from_secs(10);
/// After that: time for a system call to come back.
const HANG_MAX: Duration = Duration::from_secs(5);
