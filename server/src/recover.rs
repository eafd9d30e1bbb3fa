//! From files to a core: snapshots first, then the journal behind them.
//!
//! What becomes of a journal's end stands in [`sealfs_meta::recover`].
//!
//! A node that is started with another number of cores first turns its state into snapshots ([`convert`]), for a journal
//! holds the entries of its own core's shards only.

use std::sync::Arc;

use sealfs_meta::journal::SegmentHeader;
use sealfs_server_core::{Config, Recovery};

use crate::StartError;
use crate::datadir::{DataDir, LastRun, VOLUME_AT};
use crate::segments::Segments;
use crate::store::{Extent, JournalId, Store};

/// What a core's thread needs of the node's store.
#[derive(Debug)]
pub(crate) struct CoreFiles {
    /// Where everything lies.
    pub(crate) store: Arc<dyn Store>,
    /// Its journal.
    pub(crate) journal: JournalId,
    /// Header of its segments.
    pub(crate) owner: SegmentHeader,
    /// How the last run ended.
    pub(crate) last: LastRun,
    /// The node's volume.
    pub(crate) volume: Extent,
}

impl CoreFiles {
    /// Those of `core`.
    pub(crate) fn of(dir: &DataDir, core: u16) -> Result<Self, StartError> {
        Ok(Self {
            store: Arc::clone(dir.store()),
            journal: dir.journal(core),
            owner: dir.segment_header(core),
            last: dir.last_run(),
            volume: dir.store().volume()?.extent,
        })
    }

    /// Reads snapshots and journal of the core that `config` describes.
    pub(crate) fn recover(&self, config: Config) -> Result<(Recovery, Segments), StartError> {
        let core = config.core;
        let owned = config.owners().into_iter().filter(|(_, owner)| *owner == core);
        let shards: Vec<_> = owned.map(|(shard, _)| shard).collect();
        let mut recovery = Recovery::new(config);
        for shard in shards {
            let Some(bytes) = self.store.snapshot(shard)? else { continue };
            recovery.snapshot(shard, &bytes).map_err(|error| {
                let (name, anew) = (self.store.name(), self.store.anew());
                StartError(format!(
                    "{name}: snapshot of shard {shard}: {error}; restore it, or {anew}"
                ))
            })?;
        }
        let store = Arc::clone(&self.store);
        let feed = |bytes: &[u8]| recovery.journal(bytes);
        let segments = Segments::recover(store, self.journal, self.owner, self.last, feed)?;
        if self.last.lost_power() {
            recovery.verify(|read, bytes| {
                let read = self.volume.read_at(bytes, VOLUME_AT + read.offset);
                read.map_err(|error| error.to_string())
            });
        }
        Ok((recovery, segments))
    }
}

/// Turns the state of all cores into snapshots and goes over to an empty journal for `cores` cores. `config_of` gives the
/// configuration of a core (number, of how many).
pub(crate) fn convert(
    dir: &mut DataDir,
    cores: u16,
    config_of: impl Fn(u16, u16) -> Config,
) -> Result<(), StartError> {
    let before = dir.superblock().journal_cores;
    tracing::info!(before, cores, "the number of cores has changed: all shards go to snapshots");
    // A snapshot's extents are not verified again, so that they must be on the device before it.
    dir.store().volume()?.extent.sync()?;
    for core in 0..before {
        let files = CoreFiles::of(dir, core)?;
        let (recovery, _) = files.recover(config_of(core, before))?;
        for (shard, bytes) in recovery.snapshots() {
            // CRASH: entries that a snapshot contains are skipped, so that old and new ones may stand side by side.
            let pieces = bytes.map(|bytes| vec![bytes]);
            files.store.set_snapshot(shard, pieces.as_deref())?;
        }
    }
    Ok(dir.renew_journal(cores)?)
}
