//! `sealfs job up`: brings this node's part of a job up, together with the others.
//!
//! ```text
//! lock; end what an earlier run has left; record; key, mountpoint
//! round 1    "my server's address"      the first node mints the cluster's id and makes the nodes' list
//!            data's place, server
//! round 2    "it is ready"              the first node mounts, makes the user owner of the root
//!            mount
//! round 3    "it is mounted"
//! round 4    "my part is copied"        the first node finishes the copying (only where files are staged in)
//! record: it is up
//! ```
//! 1. It succeeds on all nodes or on none: nobody returns before the last round, and who fails undoes all it has begun.
//! 2. The path is printed last, when a program can use it.

use std::time::{Duration, Instant};

use super::data::Data;
use super::down::{check_not_kept, tear_down};
use super::meeting::{Fault, Meeting, Party, Whose};
use super::site::{Site, Store};
use super::staging::{self, Pair, Share};
use super::state::{self, Home, Intent, Record};
use super::{cgroup, node};
use crate::Failure;
use crate::place::trusted;

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
    let site_key = sealfs_client::read_key(&site.site_key)?;
    node::check_reachable(site, &wanted.hosts, wanted.me)?;
    let mut site = site.clone();
    site.state = trusted(&site.state, 0o700)?;
    site.mount = trusted(&site.mount, 0o755)?;
    let home = Home::new(&site.state, &wanted.id)?;
    // While a `down` of an earlier run works, this waits for it.
    let lock = home.lock(Intent::Take, until)?;
    check_not_kept(&home)?;
    tear_down(&site, &home).map_err(|error| format!("of an earlier run is left: {error}"))?;
    let list = wanted.hosts.join(",");
    let job_key = site_key.derived(b"sealfs job", &[home.id.as_bytes(), list.as_bytes()]);
    let meeting_key = job_key.derived(b"sealfs job meeting", &[b"up"]);
    let party = Party {
        first: site.address_of(&wanted.hosts[0]),
        ports: site.meeting_ports(&home.id),
        hosts: wanted.hosts.clone(),
        me: wanted.me,
        key: meeting_key,
        verb: "sealfs job up",
    };
    let pairs = wanted.stage_in.clone();
    let made = write_record(&site, &home, wanted).and_then(|mut record| {
        let mut meeting = bring_up(&site, &home, &record, party, &job_key.to_hex(), until)?;
        stage_in(&site, &home, &record, &pairs, &mut meeting)?;
        record.is_up = true;
        home.set_record(&record)?;
        Ok(record)
    });
    let made = made.map_err(|error| match tear_down(&site, &home).and_then(|()| home.remove()) {
        Ok(()) => error,
        Err(left) => format!("{error}; and what was begun is not all undone: {left}").into(),
    });
    drop(lock);
    made
}

/// Decides where everything will be, and writes it down.
fn write_record(site: &Site, home: &Home, wanted: Wanted) -> Result<Record, Failure> {
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
    let port = node::free_port(site, home, &wanted.hosts[wanted.me])?;
    let record = Record {
        version: state::RECORD_VERSION,
        id: home.id.clone(),
        hosts: wanted.hosts,
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

/// The rounds; see above.
fn bring_up(
    site: &Site,
    home: &Home,
    record: &Record,
    party: Party,
    key_hex: &str,
    until: Instant,
) -> Result<Meeting, Failure> {
    let Record { hosts, me, port, .. } = record;
    let addresses: Vec<String> = hosts.iter().map(|host| site.address_of(host)).collect();
    node::prepare(home, record, key_hex)?;
    let mut meeting = Meeting::open(party)?;
    let mine = Ok(port.to_string());
    let list = meeting
        .round(mine, until, |ports| nodes_list(&addresses, ports, site.words.chunk.as_deref()))
        .map_err(|text| meeting.fault(text))?;
    let mine = node::serve(site, home, record, &list, until).map_err(|error| error.to_string());
    let ready = meeting.round(mine.map(|()| String::new()), until, |_| {
        let mounted = node::mount(site, home, record).and_then(|()| node::give_root(record));
        mounted.map(|()| String::new()).map_err(|error| error.to_string())
    });
    ready.map_err(|text| meeting.fault(text))?;
    let mine = if *me == 0 { Ok(()) } else { node::mount(site, home, record) };
    let mine = mine.map(|()| String::new()).map_err(|error| error.to_string());
    let mounted = meeting.round(mine, until, |_| Ok(String::new()));
    mounted.map_err(|text| meeting.fault(text))?;
    Ok(meeting)
}

/// Round 4, if there is anything to copy.
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
    let mine = staging::copy(home, record, pairs, Share::Mine, times.parts);
    let staged = meeting.round(mine.map(|()| String::new()), times.all, |_| {
        let finished = staging::copy(home, record, pairs, Share::Finish, times.all);
        finished.map(|()| String::new())
    });
    // The nodes have done what is theirs; what cannot be copied is the job's.
    staged.map_err(|text| Fault { whose: Whose::Jobs, absent: Vec::new(), text })?;
    Ok(())
}

/// The nodes' list of a new cluster.
fn nodes_list(
    addresses: &[String],
    ports: &[String],
    chunk: Option<&str>,
) -> Result<String, String> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|error| format!("no random bytes: {error}"))?;
    let cluster = sealfs_proto::ClusterId(id);
    let mut list = format!("cluster={cluster}\n");
    if let Some(chunk) = chunk {
        list.push_str(&format!("chunk={chunk}\n"));
    }
    for ((id, address), port) in (1..).zip(addresses).zip(ports) {
        let port: u16 = port.parse().map_err(|_| format!("port {port:?} is no number"))?;
        list.push_str(&format!("{id}@{address}:{port}\n"));
    }
    sealfs_proto::nodes::parse(&list).map_err(|error| error.to_string())?;
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_run_has_a_cluster_of_its_own() {
        let words = |all: &[&str]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
        let list = || nodes_list(&words(&["a", "b"]), &words(&["5", "6"]), Some("64K")).unwrap();
        let parsed = sealfs_proto::nodes::parse(&list()).unwrap();
        assert_eq!((parsed.nodes.len(), parsed.chunk_size), (2, 65_536));
        assert_ne!(parsed.cluster, sealfs_proto::nodes::parse(&list()).unwrap().cluster);
        assert!(nodes_list(&words(&["a"]), &words(&["5\n2@x:1"]), None).is_err());
        assert!(nodes_list(&words(&["a"]), &words(&["5"]), Some("3K")).is_err());
    }
}
