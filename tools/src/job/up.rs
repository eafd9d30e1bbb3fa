//! `sealfs job up`: brings this node's part of a job up, together with the others.
//!
//! ```text
//! lock
//! round 0    end what an earlier run has left; record; key, mountpoint
//!            "my server's address, and my settings"    the first node compares, mints the cluster's id, makes the nodes' list
//! round 1    data's place, server: "it is ready"
//! round 2    "all servers answer me"                    the first node also mounts, makes the user owner of the root
//! round 3    the others mount: "it is mounted"
//! round 4    "my part is copied"                        } only where files are staged in
//! round 5    the first node finishes the copying        }
//! record: it is up
//! ```
//! 1. Nobody returns before the last round, and who fails, or hears that another has, undoes all it has begun. A node that dies
//!    with the last verdict on its way, or cannot write its record then, is the exception: it fails alone, and the others
//!    have a job that misses a server; `down`, which the scheduler runs everywhere, ends that.
//! 2. The path is printed last, when a program can use it: a server that ends before is noticed by its own node in any round,
//!    one that cannot be reached by those that do not reach it in round 2.
//! 3. Nothing takes longer than the deadline, but what is undone after it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::data::Data;
use super::down::{check_not_kept, tear_down};
use super::joining::{self, Joining};
use super::meeting::{Fault, Meeting, Party, Whose};
use super::reach::{self, Report};
use super::site::{Site, Store};
use super::staging::{self, Pair, Share};
use super::state::{self, Home, Intent, Record};
use super::stop::Stop;
use super::{cgroup, node};
use crate::place::trusted;
use crate::{Failure, process};

/// What `up` is told beside the settings.
pub(super) struct Wanted {
    pub(super) id: String,
    /// All nodes, without repetitions.
    pub(super) hosts: Vec<String>,
    /// Which of them this is.
    pub(super) me: usize,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// What is there before the job begins.
    pub(super) stage_in: Vec<Pair>,
}

/// Brings the job up; returns its record.
pub(super) fn up(site: &Site, wanted: Wanted) -> Result<Record, Failure> {
    let until = Instant::now() + Duration::from_secs(site.deadline_s);
    // Without the key the others would not listen.
    let site_key = sealfs_client::read_key(&site.site_key)?;
    let mut site = site.clone();
    site.state = trusted(&site.state, 0o700)?;
    site.mount = trusted(&site.mount, 0o755)?;
    let home = Home::new(&site.state, &wanted.id)?;
    // While a `down` of an earlier run works, this waits for it. Who does not get the lock is silent: another run has it.
    let lock = home.lock(Intent::Take, until)?;
    let list = wanted.hosts.join(",");
    let job_key = site_key.derived(b"sealfs job", &[home.id.as_bytes(), list.as_bytes()]);
    let party = Party {
        first: site.address_of(&wanted.hosts[0]),
        ports: site.meeting_ports(&home.id),
        hosts: wanted.hosts.clone(),
        me: wanted.me,
        key: job_key.derived(b"sealfs job meeting", &[b"up"]),
        verb: "sealfs job up",
    };
    let run = Run { site: &site, home: &home, key_hex: &job_key.to_hex(), until };
    let meeting = Meeting::open(party, until).map_err(Failure::from);
    let made = meeting.and_then(|meeting| run.bring_up(meeting, &wanted));
    let made = made.map_err(|error| match home.record() {
        // It was kept, or cannot be read, and is no part of this run.
        Ok(Some(Record { is_kept: true, .. })) | Err(_) => error,
        // Without a record nothing was begun; the directory goes if it is empty.
        Ok(None) => {
            let _ = home.remove();
            error
        }
        Ok(Some(_)) => match tear_down(&site, &home).and_then(|()| home.remove()) {
            Ok(()) => error,
            Err(left) => format!("{error}; and what was begun is not all undone: {left}").into(),
        },
    });
    drop(lock);
    made
}

/// A job that is coming up.
struct Run<'a> {
    site: &'a Site,
    home: &'a Home,
    key_hex: &'a str,
    until: Instant,
}

impl Run<'_> {
    /// The rounds; see above.
    fn bring_up(&self, mut meeting: Meeting, wanted: &Wanted) -> Result<Record, Failure> {
        let Self { site, home, until, .. } = *self;
        let mut record = None;
        let list = self.join(&mut meeting, wanted, &mut record);
        let list = list.map_err(|text| meeting.fault(text))?;
        let mut record = record.ok_or("a node that has joined has a record")?;
        let watch = meeting.watch();
        let ready = meeting.round(
            until,
            |_| {
                let server = node::serve(site, home, &record, &list, until).map_err(told)?;
                let log = node::server_log(&record);
                watch.over(server, move || process::last_line(&log));
                tracing::info!("job {}: the server is ready", home.id);
                Ok(String::new())
            },
            |_| Ok(String::new()),
        );
        ready.map_err(|text| meeting.fault(text))?;
        self.mount(&mut meeting, &record)?;
        stage_in(site, home, &record, &wanted.stage_in, &mut meeting)?;
        record.is_up = true;
        home.set_record(&record)?;
        Ok(record)
    }

    /// Round 0: returns the nodes' list.
    fn join(
        &self,
        meeting: &mut Meeting,
        wanted: &Wanted,
        record: &mut Option<Record>,
    ) -> Result<String, String> {
        let Self { site, home, until, .. } = *self;
        let addresses: Vec<String> =
            wanted.hosts.iter().map(|host| site.address_of(host)).collect();
        let mut begin = || -> Result<String, Failure> {
            node::check_reachable(site, &wanted.hosts, wanted.me, until)?;
            check_not_kept(home)?;
            tear_down(site, home).map_err(|error| format!("of an earlier run is left: {error}"))?;
            let new = write_record(site, home, wanted, until)?;
            node::prepare(home, &new, self.key_hex)?;
            let joining = Joining { port: new.port, settings: settings(site, wanted) };
            *record = Some(new);
            Ok(serde_json::to_string(&joining)?)
        };
        let decide = |parts: &[String]| joining::nodes_list(&wanted.hosts, &addresses, parts);
        meeting.round(until, |_| begin().map_err(told), decide)
    }

    /// Rounds 2 and 3.
    fn mount(&self, meeting: &mut Meeting, record: &Record) -> Result<(), Failure> {
        let Self { site, home, until, .. } = *self;
        let is_first = record.me == 0;
        // What does not answer then can still be asked for.
        let mounting_until = |now: Instant| now + until.saturating_duration_since(now) * 3 / 4;
        let mount = |stop: &Stop| -> Result<Report, Failure> {
            let by = mounting_until(Instant::now());
            let mut mounted = node::mount(site, home, record, stop, by);
            if is_first {
                mounted = mounted.and_then(|()| node::give_root(record, stop, by));
            }
            match mounted {
                Ok(()) => Ok(Report::default()),
                Err(failed) => Report::after(failed, (site, home, record), until),
            }
        };
        let judge = |parts: &[String]| reach::judged(&record.hosts, parts);
        let reached = |stop: &Stop| {
            let report = Report::new(site, home, record, until);
            let report = report.and_then(|report| {
                if is_first && report.is_good() { mount(stop) } else { Ok(report) }
            });
            report.map(|report| report.part()).map_err(told)
        };
        let all_reached = meeting.round(until, reached, judge);
        all_reached.map_err(|text| meeting.fault(text))?;
        let mounted = |stop: &Stop| {
            let report = if is_first { Ok(Report::default()) } else { mount(stop) };
            report.map(|report| report.part()).map_err(told)
        };
        let all_mounted = meeting.round(until, mounted, judge);
        all_mounted.map_err(|text| meeting.fault(text))?;
        Ok(())
    }
}

fn told(error: Failure) -> String {
    error.to_string()
}

/// What must be the same on all nodes.
fn settings(site: &Site, wanted: &Wanted) -> BTreeMap<String, String> {
    let word = |word: &Option<String>| word.clone().unwrap_or_default();
    let pairs: Vec<String> = wanted.stage_in.iter().map(ToString::to_string).collect();
    let all = [
        ("release", env!("CARGO_PKG_VERSION").to_string()),
        ("uid", wanted.uid.to_string()),
        ("gid", wanted.gid.to_string()),
        (joining::CHUNK, word(&site.words.chunk)),
        ("transport", word(&site.words.transport)),
        ("durability", word(&site.words.durability)),
        ("stage-in", pairs.join(", ")),
    ];
    all.map(|(name, value)| (name.to_string(), value)).into()
}

/// Decides where everything will be, and writes it down.
fn write_record(
    site: &Site,
    home: &Home,
    wanted: &Wanted,
    until: Instant,
) -> Result<Record, Failure> {
    let data_root = || site.data_root();
    let data = match &site.store {
        Store::Below(_) => Data::Directory(data_root()?.join(&home.id)),
        Store::Device(device) => {
            Data::Device { device: device.clone(), note: data_root()?.join(&home.id) }
        }
        Store::Memory => Data::Memory(memory(site, home)?),
    };
    let logs_kept = site.log_dir.as_ref().map(|directory| trusted(directory, 0o750));
    let cgroup = site.memory_max.map(|_| cgroup::place(&home.id, &wanted.hosts[wanted.me]));
    // Until the record is written, no other job may see the port as free.
    let ports = state::lock_ports(&site.state)?;
    let port = node::free_port(site, home, &wanted.hosts[wanted.me], until)?;
    let record = Record {
        version: state::RECORD_VERSION,
        id: home.id.clone(),
        hosts: wanted.hosts.clone(),
        me: wanted.me,
        uid: wanted.uid,
        gid: wanted.gid,
        boot: state::boot(),
        port,
        mountpoint: site.mount.join(&home.id),
        data,
        logs: home.dir.clone(),
        logs_kept: logs_kept.transpose()?,
        cgroup,
        is_up: false,
        is_ending: false,
        is_kept: false,
    };
    home.set_record(&record)?;
    drop(ports);
    Ok(record)
}

/// Where memory is mounted; a user cannot mount it, but has a part of /dev/shm.
fn memory(site: &Site, home: &Home) -> Result<std::path::PathBuf, Failure> {
    if !site.is_user {
        return Ok(home.memory());
    }
    Ok(trusted(&site.shared_memory(), 0o700)?.join(&home.id))
}

/// Rounds 4 and 5, if there is anything to copy.
fn stage_in(
    site: &Site,
    home: &Home,
    record: &Record,
    pairs: &[Pair],
    meeting: &mut Meeting,
) -> Result<(), Failure> {
    if pairs.is_empty() {
        return Ok(());
    }
    let times = staging::Times::new(site.stage_deadline_s);
    let copy = |share, stop: &Stop, until| staging::copy(home, record, pairs, share, (stop, until));
    let mine = |stop: &Stop| copy(Share::Mine, stop, times.parts);
    let finish = |stop: &Stop| match record.me {
        0 => copy(Share::Finish, stop, times.all),
        _ => Ok(String::new()),
    };
    let nothing = |_: &[String]| Ok(String::new());
    let staged = meeting
        .round(times.all, mine, nothing)
        .and_then(|_| meeting.round(times.all, finish, nothing));
    staged.map_err(|text| match meeting.is_broken() {
        true => meeting.fault(text),
        // The nodes have done what is theirs; what cannot be copied is the job's.
        false => Fault { whose: Whose::Jobs, absent: Vec::new(), text },
    })?;
    Ok(())
}
