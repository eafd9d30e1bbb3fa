//! Free blocks: borrowed from the node's ledger, which core 0 keeps, and returned; and the sync mark that frees blocks.
//!
//! ```text
//! mark: end = journal's end -> SyncVolume -> end on the device -> mark on the device -> on_synced(end) -> GiveBack
//! ```

use std::rc::Rc;

use sealfs_meta::journal::Entry;
use sealfs_proto::{ShardId, encode};
use sealfs_transport::tasks::join_all;

use crate::CoreId;
use crate::chunk::{Ask, Groups, Loan, Run};
use crate::mail::{Answered, Errand};
use crate::world::{World, kind};

/// The core that keeps the ledger.
pub(crate) const LENDER: CoreId = CoreId(0);

/// The ledger, once all cores have told what they use; `None` on other cores.
#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) groups: Option<Groups>,
    told: Vec<CoreId>,
    used: Vec<Run>,
}

impl Ledger {
    /// A core says what its map names; whether that was the last one.
    pub(crate) fn tell(
        &mut self,
        core: CoreId,
        used: Vec<Run>,
        cores: u16,
        total: u64,
    ) -> Result<bool, sealfs_proto::Corrupt> {
        if !self.told.contains(&core) {
            self.told.push(core);
            self.used.extend(used);
        }
        if self.groups.is_none() && self.told.len() == usize::from(cores) {
            self.groups = Some(Groups::new(total, std::mem::take(&mut self.used))?);
        }
        Ok(self.groups.is_some())
    }
}

/// Gets blocks; `false`: the node has none.
pub(crate) async fn borrow(world: &Rc<World>, ask: Ask) -> bool {
    if take(world, ask).await {
        return true;
    }
    // Freed blocks may wait for a sync, here and elsewhere, and other cores may have more than they need.
    if world.chunks.borrow().has_pending() {
        mark(world).await;
    }
    let recalls = world.other_cores().map(|core| world.errand(core, Errand::Recall));
    join_all(recalls).await;
    let runs = world.chunks.borrow_mut().recall();
    give_back(world, runs).await;
    take(world, ask).await
}

async fn take(world: &Rc<World>, ask: Ask) -> bool {
    let loan = if world.config.core == LENDER {
        lend(world, ask)
    } else {
        match world.errand(LENDER, Errand::Lend(ask)).await {
            Answered::Loan(loan) => loan,
            _ => Loan::default(),
        }
    };
    let any = !loan.runs.is_empty();
    world.chunks.borrow_mut().lend(loan);
    any
}

/// Takes blocks from the ledger, on the core that keeps it.
pub(crate) fn lend(world: &World, ask: Ask) -> Loan {
    world.ledger.borrow_mut().groups.as_mut().map_or_else(Loan::default, |groups| groups.lend(ask))
}

/// Gives blocks to the ledger, wherever it is; when this ends they can be lent.
pub(crate) async fn give_back(world: &Rc<World>, runs: Vec<Run>) {
    if runs.is_empty() {
        return;
    }
    if world.config.core == LENDER {
        if let Some(groups) = world.ledger.borrow_mut().groups.as_mut() {
            groups.give_back(runs);
        }
        return;
    }
    let _ = world.errand(LENDER, Errand::GiveBack(runs)).await;
}

/// Another core has no space: frees and returns what this one does not need.
pub(crate) async fn recall(world: &Rc<World>) {
    let runs = world.chunks.borrow_mut().recall();
    give_back(world, runs).await;
    if world.chunks.borrow().has_pending() {
        mark(world).await;
    }
}

/// Makes everything so far durable on the device and says so in the journal; freed blocks become free. One at a time.
pub(crate) async fn mark(world: &Rc<World>) {
    while world.marking.replace(true) {
        world.marked.wait().await;
    }
    mark_once(world).await;
    world.marking.set(false);
    world.marked.wake_one();
}

async fn mark_once(world: &Rc<World>) {
    let (end, batch) = {
        let log = world.log.borrow();
        let pending = if log.dirty { log.gate.building() } else { log.gate.closed() };
        (log.writer.tail().position, pending)
    };
    if let Err(error) = world.disk.sync_volume().await {
        tracing::error!(%error, "the volume could not be synced; freed blocks stay unused");
        return;
    }
    world.on_device(batch).await;
    let marked = {
        let mut log = world.log.borrow_mut();
        let logical = encode(&end);
        log.append(&Entry {
            position: 0,
            shard: ShardId(0),
            number: 0,
            kind: kind::MARK,
            version: 1,
            logical: &logical,
            local: &[],
        });
        log.gate.building()
    };
    world.on_device(marked).await;
    let runs = world.chunks.borrow_mut().on_synced(end, world.now.get().mono);
    give_back(world, runs).await;
}

/// Borrows ahead of need and marks when it is time; called once a turn.
pub(crate) fn tend(world: &Rc<World>) {
    if !world.started.get() {
        return;
    }
    let (ask, sync_at) = {
        let chunks = world.chunks.borrow();
        (chunks.ask(), chunks.sync_at())
    };
    if let Some(ask) = ask
        && !world.borrowing.replace(true)
    {
        let task = Rc::clone(world);
        world.spawner.spawn(async move {
            let _ = take(&task, ask).await;
            task.borrowing.set(false);
        });
    }
    let due = sync_at.is_some_and(|at| at <= world.now.get().mono);
    if due && !world.marking.get() {
        let task = Rc::clone(world);
        world.spawner.spawn(async move { mark(&task).await });
    }
}
