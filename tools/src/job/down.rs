//! `sealfs job down`, and how everything of a job on this node is undone.
//!
//! Files are staged out first, by all nodes together, and no server ends before all have ended that or the time is over: what
//! was not copied by then is named, makes the exit status 1, and is wiped all the same, unless the site keeps it.
//!
//! The order then: mount, server, data, mountpoint, key, record. Each step is done whatever is there already, and so is the whole
//! again after it was cut short; the record goes last.

use std::time::{Duration, Instant};

use super::data::Data;
use super::meeting::{Meeting, Party};
use super::site::Site;
use super::staging::{self, Pair, Share, Times};
use super::state::{Home, Intent, RECORD_VERSION, Record};
use super::stop::Stop;
use super::{cgroup, holders, marked, node};
use crate::place::trusted;
use crate::{Failure, process};

/// All is gone, and not all was copied out before; says what was not.
#[derive(Debug)]
pub(super) struct NotCopied(String);

impl std::fmt::Display for NotCopied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotCopied {}

/// Takes the job down, after its files were staged out. Nothing is there: done. The error names what could not be copied,
/// and what is left. `force`: what an earlier one has kept goes, too, and nothing is copied.
pub(super) fn down(site: &Site, id: &str, stage_out: &[Pair], force: bool) -> Result<(), Failure> {
    let mut site = site.clone();
    site.state = trusted(&site.state, 0o700)?;
    let home = Home::new(&site.state, id)?;
    let patience = OTHERS_MAX + Duration::from_secs(site.stage_deadline_s);
    let _lock = home.lock(Intent::Take, Instant::now() + patience)?;
    if stage_out.is_empty() && !force {
        check_not_kept(&home)?;
    }
    let mut record = read(&home, force)?;
    if let Some(record) = &mut record {
        // CRASH: from here on the job is over, and `reap` goes on where this has stopped.
        record.is_ending = true;
        home.set_record(record)?;
    }
    let copies = !stage_out.is_empty() && !force;
    let record = record.filter(|record| record.is_up && copies);
    let staged = record.map_or(Ok(()), |mut record| {
        let staged = copy_out(&site, &home, &record, stage_out);
        record.is_kept = staged.is_err() && site.keep_failed;
        if record.is_kept {
            home.set_record(&record)?;
        }
        staged.map_err(Failure::from)
    });
    let record = read(&home, force)?;
    let is_kept = !force && record.as_ref().is_some_and(|record| record.is_kept);
    match staged {
        Ok(()) => undo(&site, &home, record).and_then(|()| home.remove()),
        Err(error) if is_kept => {
            Err(format!("{error}; everything is kept, until `sealfs job down --force --id {id}`")
                .into())
        }
        Err(error) => match tear_down(&site, &home).and_then(|()| home.remove()) {
            Ok(()) => Err(NotCopied(format!("{error}; the data of job {id} is wiped")).into()),
            Err(left) => Err(format!("{error}; {left}").into()),
        },
    }
}

/// The record; `force`: as if there were none, if it cannot be read.
fn read(home: &Home, force: bool) -> Result<Option<Record>, Failure> {
    match home.record() {
        Err(error) if force => {
            eprintln!("sealfs: job {}: {error}", home.id);
            Ok(None)
        }
        read => Ok(read?),
    }
}

/// Refuses to wipe what could not be staged out and was kept.
pub(super) fn check_not_kept(home: &Home) -> Result<(), Failure> {
    if home.record()?.is_none_or(|record| !record.is_kept) {
        return Ok(());
    }
    let id = &home.id;
    let next = "`down` with --stage-out tries again, `sealfs job down --force --id";
    Err(format!("job {id} was kept, for its files could not be staged out: {next} {id}` wipes it")
        .into())
}

/// Copies this node's part, and waits until all nodes have, and the first one has finished it: before that no server may end.
fn copy_out(site: &Site, home: &Home, record: &Record, pairs: &[Pair]) -> Result<(), String> {
    let times = Times::new(site.stage_deadline_s);
    let key = sealfs_client::read_key(&home.key()).map_err(|error| error.to_string())?;
    let party = Party {
        first: site.address_of(&record.hosts[0]),
        ports: site.meeting_ports(&home.id),
        hosts: record.hosts.clone(),
        me: record.me,
        key: key.derived(b"sealfs job meeting", &[b"down"]),
        verb: "sealfs job down",
    };
    let copy = |share, stop: &Stop, until| staging::copy(home, record, pairs, share, (stop, until));
    let mut own = Ok(String::new());
    let mut mine = |stop: &Stop| {
        own = copy(Share::Mine, stop, times.parts);
        own.clone()
    };
    let mut meeting = match Meeting::open(party, times.all) {
        Ok(meeting) => meeting,
        // What this node has is copied all the same.
        Err(alone) => {
            let own = mine(&Stop::new()?).err();
            return Err(own.into_iter().chain([alone]).collect::<Vec<_>>().join("; "));
        }
    };
    let until = if record.me == 0 { times.late } else { times.last };
    let parts = meeting.patient_round(times.parts, until, mine);
    // What is there is made whole, whatever is not. The others stay, for their servers are needed.
    let until = if record.me == 0 { times.all } else { times.last };
    let finished = meeting.first_alone(until, |stop| copy(Share::Finish, stop, times.all));
    let mut failed: Vec<String> = Vec::new();
    // The others need not have heard of this node's.
    for text in [parts, finished, own].into_iter().filter_map(Result::err) {
        if !failed.iter().any(|told| told.contains(&text)) {
            failed.push(text);
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
}

/// Undoes everything of the job on this node, up to the directory that is locked. The error names all that is left. The
/// caller holds the job's lock.
pub(super) fn tear_down(site: &Site, home: &Home) -> Result<(), Failure> {
    undo(site, home, home.record()?)
}

/// The same by this record, or by what is where the settings say.
pub(super) fn undo(site: &Site, home: &Home, record: Option<Record>) -> Result<(), Failure> {
    let record = record.map_or_else(|| guess(site, home), Ok)?;
    for holder in holders::of(&record.mountpoint) {
        eprintln!("sealfs: job {}: {holder}", home.id);
    }
    let mut left = Vec::new();
    let mut step = |done: Result<(), Failure>| {
        let is_done = done.is_ok();
        left.extend(done.err().map(|error| error.to_string()));
        is_done
    };
    let is_unmounted = step(node::end_mount(home, &record));
    step(process::end_writers(&staging::log(&record), Duration::ZERO));
    if step(node::end_server(&record)) {
        step(record.data.wipe(home));
        step(record.cgroup.as_deref().map_or(Ok(()), cgroup::remove));
    }
    if is_unmounted {
        step(marked::remove(&record.mountpoint, home.state()));
    }
    if !left.is_empty() {
        return Err(left.join("; ").into());
    }
    node::keep_logs(&record);
    home.empty()
}

/// Where things would be by the settings, if there is no record: nothing was begun, or it was lost with the machine's power.
fn guess(site: &Site, home: &Home) -> Result<Record, Failure> {
    let memory = if site.is_user { site.shared_memory().join(&home.id) } else { home.memory() };
    let data = if std::fs::symlink_metadata(&memory).is_ok() {
        Data::Memory(memory)
    } else {
        let root = if site.lacks_data_root() { site.data.clone() } else { site.data_root()? };
        Data::Directory(root.join(&home.id))
    };
    Ok(Record {
        version: RECORD_VERSION,
        id: home.id.clone(),
        hosts: Vec::new(),
        me: 0,
        uid: 0,
        gid: 0,
        boot: String::new(),
        port: 0,
        mountpoint: trusted(&site.mount, 0o755)?.join(&home.id),
        data,
        logs: home.dir.clone(),
        logs_kept: site.log_dir.as_deref().map(|path| trusted(path, 0o750)).transpose()?,
        cgroup: cgroup::of(&home.id),
        is_up: false,
        is_ending: true,
        is_kept: false,
    })
}

/// For how long another `down` of the job may work.
const OTHERS_MAX: Duration = Duration::from_secs(120);
