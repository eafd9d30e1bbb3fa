//! `sealfs job reap` and `sealfs job status`: what stands of jobs on this node.
//!
//! A job lives while somebody works on it (its lock is held), or while it is up, in this run of the
//! machine, with its server running, unless whoever calls knows that it has ended. What was kept at
//! its end is kept until somebody says otherwise. `reap` takes down whatever else there is: what
//! has a state, or a place for data or a mountpoint that is marked as made by a job whose state is
//! nowhere else. It may run at any time, and what is wrong with one job keeps it from no other.
//!
//! A record that cannot be read may be a living job's: only if it is torn, and no server runs, that
//! job is dead.

use std::collections::BTreeSet;
use std::time::Instant;

use sealfs_client::is_mounted;
use serde::Serialize;

use super::down::undo;
use super::site::Site;
use super::state::{self, Home, Intent, Record};
use super::{marked, node, slurm};
use crate::place::trusted;
use crate::{Failure, process};

/// What a reap has done.
pub(crate) struct Reaped {
    /// Jobs that are gone.
    pub(crate) ids: Vec<String>,
    /// What is left of others, and why.
    pub(crate) left: Vec<String>,
}

/// Takes down all dead jobs; `living`: none but these can be living.
pub(super) fn reap(site: &Site, living: Option<&[String]>) -> Result<Reaped, Failure> {
    let mut site = site.clone();
    site.state = trusted(&site.state, 0o700)?;
    site.mount = trusted(&site.mount, 0o755)?;
    let mut reaped = Reaped { ids: Vec::new(), left: Vec::new() };
    let mut ids: BTreeSet<String> = state::all(&site.state)?.into_iter().collect();
    ids.extend(marked::ids_in(&site.mount, &site.state)?);
    match site.data_root() {
        Ok(root) => {
            ids.extend(marked::ids_in(&root, &site.state)?);
            site.data = root;
        }
        // What has its state here is reaped all the same.
        Err(error) => reaped.left.push(error.to_string()),
    }
    for id in ids {
        let may_live = living.is_none_or(|living| living.contains(&id));
        match reap_one(&site, &id, may_live) {
            Ok(true) => reaped.ids.push(id),
            Ok(false) => {}
            Err(error) => reaped.left.push(format!("job {id}: {error}")),
        }
    }
    Ok(reaped)
}

/// Takes the job down if it is dead, as one must be that may not live; whether it was.
fn reap_one(site: &Site, id: &str, may_live: bool) -> Result<bool, Failure> {
    let home = Home::new(&site.state, id)?;
    let Some(_lock) = home.lock(Intent::Look, Instant::now())? else { return Ok(false) };
    let record = match home.record() {
        Ok(Some(record)) if is_kept(&record) || may_live && is_living(&record)? => {
            return Ok(false);
        }
        Ok(record) => record,
        Err(error) if error.is_torn => {
            if may_live && !process::writing_to(&home.log("server"))?.is_empty() {
                return Err(format!("{error}; its server runs").into());
            }
            None
        }
        Err(error) => return Err(error.into()),
    };
    let path = record.as_ref().map_or(site.mount.join(id), |record| record.mountpoint.clone());
    undo(site, &home, record).and_then(|()| home.remove())?;
    slurm::uninvite(id, &path);
    Ok(true)
}

/// It is kept as it runs, so no longer than this run of the machine.
fn is_kept(record: &Record) -> bool {
    record.is_kept && record.boot == state::boot()
}

fn is_living(record: &Record) -> Result<bool, Failure> {
    let is_wanted = record.is_up && !record.is_ending && !record.is_kept;
    Ok(is_wanted && record.boot == state::boot() && node::is_serving(record)?)
}

/// One job, as `status` shows it.
#[derive(Debug, Serialize)]
pub(super) struct Shown {
    pub(super) id: String,
    /// `starting`, `up`, `ending`, `kept`, `dead`, or `unreadable`: its record.
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
    let ids = state::all(&site.state)?.into_iter().filter(|one| id.is_none_or(|id| id == one));
    let homes = ids.map(|id| Home::new(&site.state, &id)).collect::<Result<Vec<_>, _>>()?;
    homes.iter().filter_map(|home| show(home).transpose()).collect()
}

fn show(home: &Home) -> Result<Option<Shown>, Failure> {
    let record = match home.record() {
        Ok(Some(record)) => record,
        Ok(None) => return Ok(None),
        Err(_) => return Ok(Some(unreadable(home))),
    };
    let (serving, mounted) = (node::is_serving(&record)?, is_mounted(&record.mountpoint));
    let state = match (home.is_worked_on(), record.is_up) {
        (true, false) => "starting",
        (true, true) => "ending",
        (false, _) if is_kept(&record) => "kept",
        (false, _) if is_living(&record)? => "up",
        (false, _) => "dead",
    };
    Ok(Some(Shown {
        id: record.id,
        state,
        node: record.hosts.get(record.me).cloned().unwrap_or_default(),
        nodes: record.hosts.len(),
        uid: record.uid,
        port: record.port,
        serving,
        mounted,
        mountpoint: record.mountpoint.display().to_string(),
    }))
}

/// A job of which nothing is known but that it is there.
fn unreadable(home: &Home) -> Shown {
    let serving = process::writing_to(&home.log("server")).is_ok_and(|found| !found.is_empty());
    Shown {
        id: home.id.clone(),
        state: "unreadable",
        node: String::new(),
        nodes: 0,
        uid: 0,
        port: 0,
        serving,
        mounted: false,
        mountpoint: String::new(),
    }
}
