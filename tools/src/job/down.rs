//! `sealfs job down`, and how everything of a job on this node is undone.
//!
//! The order: mount, server, data, mountpoint, key, record. Each step is done whatever is there already, and so is the whole
//! again after it was cut short; the record goes last.

use std::time::{Duration, Instant};

use super::data::Data;
use super::site::Site;
use super::state::{Home, Intent, Record};
use super::{holders, marked, node};
use crate::Failure;
use crate::place::trusted;

/// Takes the job down. Nothing is there: done.
pub(super) fn down(site: &Site, id: &str) -> Result<(), Failure> {
    let mut site = site.clone();
    site.state = trusted(&site.state, 0o700)?;
    let home = Home::new(&site.state, id)?;
    let _lock = home.lock(Intent::Take, Instant::now() + OTHERS_MAX)?;
    tear_down(&site, &home)?;
    home.remove()
}

/// Undoes everything of the job on this node, up to the directory that is locked. The error names all that is left. The caller holds the job's lock.
pub(super) fn tear_down(site: &Site, home: &Home) -> Result<(), Failure> {
    let record = home.record().map_or_else(|| guess(site, home), Ok)?;
    for holder in holders::of(&record.mountpoint) {
        eprintln!("sealfs: job {}: {holder}", home.id);
    }
    let mut left = Vec::new();
    let mut step = |done: Result<(), Failure>| {
        let is_done = done.is_ok();
        left.extend(done.err().map(|error| error.to_string()));
        is_done
    };
    let is_unmounted = step(node::end_mount(&record));
    if step(node::end_server(&record)) {
        step(record.data.wipe());
    }
    if is_unmounted {
        step(marked::remove(&record.mountpoint));
    }
    if !left.is_empty() {
        return Err(left.join("; ").into());
    }
    home.empty()
}

/// Where things would be by the settings, if there is no record: nothing was begun, or it was lost with the machine's power.
fn guess(site: &Site, home: &Home) -> Result<Record, Failure> {
    Ok(Record {
        id: home.id.clone(),
        hosts: Vec::new(),
        me: 0,
        uid: 0,
        gid: 0,
        boot: String::new(),
        port: 0,
        mountpoint: trusted(&site.mount, 0o755)?.join(&home.id),
        data: Data::Directory(trusted(&site.data, 0o700)?.join(&home.id)),
        logs: home.dir.clone(),
        is_up: false,
    })
}

/// For how long another `down` of the job may work.
const OTHERS_MAX: Duration = Duration::from_secs(120);
