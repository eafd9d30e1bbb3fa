//! `sealfs job reap` and `sealfs job status`: what stands of jobs on this node.
//!
//! A job lives while somebody works on it (its lock is held), or while it is up, in this run of the machine, with its server
//! running, and was not kept at its end. `reap` takes down whatever else there is: what has a state, a marked place for data, or a marked or mounted
//! mountpoint that nothing is mounted on. It may run at any time.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Instant;

use sealfs_client::is_mounted;
use serde::Serialize;

use super::down::tear_down;
use super::site::Site;
use super::state::{self, Home, Intent, Record};
use super::{marked, node};
use crate::Failure;
use crate::place::trusted;

/// Takes down all dead jobs; returns their ids. The error names what is left.
pub(super) fn reap(site: &Site) -> Result<Vec<String>, Failure> {
    let mut site = site.clone();
    site.state = trusted(&site.state, 0o700)?;
    site.mount = trusted(&site.mount, 0o755)?;
    site.data = trusted(&site.data, 0o700)?;
    let (mut reaped, mut left) = (Vec::new(), Vec::new());
    for id in all(&site) {
        let home = Home::new(&site.state, &id)?;
        let Some(_lock) = home.lock(Intent::Look, Instant::now())? else { continue };
        match home.record() {
            Some(record) if is_living(&record) => continue,
            // Another release's, or it cannot be read: it may be a living job's.
            None if home.has_record() => {
                left.push(format!(
                    "job {id}: its record cannot be read; `sealfs job down` ends it"
                ));
                continue;
            }
            _ => {}
        }
        match tear_down(&site, &home).and_then(|()| home.remove()) {
            Ok(()) => reaped.push(id),
            Err(error) => left.push(format!("job {id}: {error}")),
        }
    }
    if left.is_empty() { Ok(reaped) } else { Err(left.join("; ").into()) }
}

/// All jobs of which anything is there.
fn all(site: &Site) -> BTreeSet<String> {
    let named = |root: &Path| -> Vec<String> {
        let entries = fs::read_dir(root).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| state::check_id(name).is_ok()).collect()
    };
    let mut ids: BTreeSet<String> = state::all(&site.state).into_iter().collect();
    ids.extend(named(&site.data).into_iter().filter(|id| marked::is_marked(&site.data.join(id))));
    // A mount is asked nothing: it may not answer. Without a state or marked data it need not be a job's.
    ids.extend(named(&site.mount).into_iter().filter(|id| {
        let path = site.mount.join(id);
        !is_mounted(&path) && marked::is_marked(&path)
    }));
    ids
}

fn is_living(record: &Record) -> bool {
    let is_wanted = record.is_up && !record.is_ending && !record.is_kept;
    is_wanted && record.boot == state::boot() && node::is_serving(record)
}

/// One job, as `status` shows it.
#[derive(Debug, Serialize)]
pub(super) struct Shown {
    pub(super) id: String,
    /// `starting`, `up`, `ending`, `kept` or `dead`.
    pub(super) state: &'static str,
    pub(super) node: String,
    pub(super) nodes: usize,
    pub(super) uid: u32,
    pub(super) port: u16,
    pub(super) serving: bool,
    pub(super) mounted: bool,
    pub(super) mountpoint: String,
}

/// All jobs of this node, or the one.
pub(super) fn shown(site: &Site, id: Option<&str>) -> Result<Vec<Shown>, Failure> {
    let ids = state::all(&site.state).into_iter().filter(|one| id.is_none_or(|id| id == one));
    let homes = ids.map(|id| Home::new(&site.state, &id)).collect::<Result<Vec<_>, _>>()?;
    Ok(homes.iter().filter_map(show).collect())
}

fn show(home: &Home) -> Option<Shown> {
    let record = home.record()?;
    let (serving, mounted) = (node::is_serving(&record), is_mounted(&record.mountpoint));
    let state = match (home.is_worked_on(), record.is_up) {
        (true, false) => "starting",
        (true, true) => "ending",
        (false, _) if record.is_kept => "kept",
        (false, _) if is_living(&record) => "up",
        (false, _) => "dead",
    };
    Some(Shown {
        id: record.id,
        state,
        node: record.hosts.get(record.me).cloned().unwrap_or_default(),
        nodes: record.hosts.len(),
        uid: record.uid,
        port: record.port,
        serving,
        mounted,
        mountpoint: record.mountpoint.display().to_string(),
    })
}
