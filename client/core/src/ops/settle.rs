//! Telling the shards what writes did, and making it durable.
//!
//! 1. One settlement of a file is under way at a time; what is written meanwhile waits for the next.
//! 2. A dirty file is settled within `Options::settle_ms` of the write that made it dirty; if that is 0, before the write
//!    is answered.
//! 3. fsync covers every write that was answered before it began.

use std::collections::BTreeSet;
use std::rc::Rc;

use sealfs_proto::{Errno, Ino, NodeId, Request};
use sealfs_transport::tasks::{join_all, race};

use crate::file::{Dirty, File, Open};
use crate::{Fs, Handle};

impl Fs {
    /// Everything written to the file by this client is on the devices when answered; with `data_only` its times may not
    /// be. Reports what failed since the handle was last told.
    pub async fn fsync(&self, handle: Handle, data_only: bool) -> Result<(), Errno> {
        let open = self.ready(handle).await?;
        let file = &open.file;
        file.writes_ended().await;
        // A failure is counted by the file and told to every handle, this one now.
        let _ = self.settle(file).await;
        let synced = self.sync_nodes(self.unsynced_nodes(file.ino, !data_only)).await;
        let lost = self.unsynced().take_lost(file.ino);
        open.report()?;
        if lost { Err(Errno::EIO) } else { synced }
    }

    /// Settles everything and makes it durable on all devices (syncfs(2)). EIO also if anything was lost since the last call.
    pub async fn sync_all(&self) -> Result<(), Errno> {
        let files = self.table().files();
        let settled = join_all(files.iter().map(|file| self.settle(file))).await;
        let nodes = self.routes().nodes().to_vec();
        let synced = self.sync_nodes(nodes).await;
        let lost = self.unsynced().take_loss();
        settled.into_iter().find(Result::is_err).unwrap_or(Ok(()))?;
        if lost { Err(Errno::EIO) } else { synced }
    }

    /// Writes to `file` were acknowledged that its shard does not know.
    pub(crate) fn wrote(&self, file: &File, dirty: Dirty) {
        if file.wrote(dirty) {
            self.settle_later(file.ino);
        }
    }

    /// Tells the inode's shard everything that it does not know. Free if there is nothing, else one request. A failure is
    /// also counted by the file, for every handle to be told.
    pub(crate) async fn settle(&self, file: &File) -> Result<(), Errno> {
        if !file.is_dirty() {
            return Ok(());
        }
        let _one = file.settling.exclusive().await;
        let Some(dirty) = file.begin_settling() else { return Ok(()) };
        let Dirty { generation, size, blocks, wrote } = dirty;
        let request = Request::Settle { ino: file.ino, generation, size, blocks, wrote };
        let sent = self.now();
        match self.ask_attr(file.ino, request).await {
            Ok(attr) => {
                file.absorb(&attr, sent);
                file.settled();
                self.mark(file.ino, self.node_of(file.ino));
                Ok(())
            }
            Err(errno) => {
                // An inode that is gone will never know.
                let again = !matches!(errno, Errno::ENOENT | Errno::ESTALE);
                if file.not_settled(errno, again) {
                    self.settle_later(file.ino);
                }
                Err(errno)
            }
        }
    }

    /// Settles everything and ends the sessions with all nodes, so that opens and locks go at once and not with the lease:
    /// the last thing that a client does. A node that does not answer at once is not waited for, once all is settled.
    pub async fn leave(&self) -> Result<(), Errno> {
        let files = self.table().files();
        let settled = join_all(files.iter().map(|file| self.settle(file))).await;
        let peers = self.calls().peers().into_iter().filter(|peer| peer.connected.is_some());
        let leaving = peers.map(|peer| self.ask_node_done(peer.node, Request::Leave));
        let patience = self.timers().sleep_until(self.now().after_ms(LEAVE_MS));
        // The sessions of nodes that have not heard of it end with their lease.
        let _ = race(join_all(leaving), patience).await;
        settled.into_iter().collect()
    }

    /// Settles in the background.
    pub(crate) async fn settle_in_background(self, file: Rc<File>) {
        if let Err(errno) = self.settle(&file).await {
            tracing::warn!(ino = %file.ino, %errno, "could not settle; fsync and close will report it");
        }
        self.table().forget_idle(file.ino);
    }

    /// The nodes that an fsync of `ino` must ask.
    pub(crate) fn unsynced_nodes(&self, ino: Ino, with_inode: bool) -> Vec<NodeId> {
        let mut nodes: BTreeSet<NodeId> = self.unsynced().nodes(ino).into_iter().collect();
        if with_inode {
            nodes.insert(self.node_of(ino));
        }
        nodes.into_iter().collect()
    }

    /// Makes durable what these nodes have acknowledged, all at the same time.
    pub(crate) async fn sync_nodes(&self, nodes: Vec<NodeId>) -> Result<(), Errno> {
        let stamp = self.unsynced().stamp();
        let syncs = nodes.into_iter().map(|node| async move {
            self.ask_node_done(node, Request::Sync).await?;
            self.unsynced().covered(node, stamp);
            Ok(())
        });
        join_all(syncs).await.into_iter().collect()
    }

    /// `node` has acknowledged a change of `ino`.
    pub(crate) fn mark(&self, ino: Ino, node: NodeId) {
        self.unsynced().mark(ino, node);
    }

    /// If `node` has lost power since it was last heard, what was not synced there counts as failed.
    pub(crate) fn notice_losses(&self, node: NodeId) {
        let Some(losses) = self.calls().losses(node) else { return };
        let Some(lost) = self.unsynced().on_losses(node, losses) else { return };
        tracing::warn!(%node, ?lost, "a node has lost power, and changes that were not synced may be lost");
        for file in self.table().files() {
            if self.node_of(file.ino) == node {
                file.doubt();
            }
            if lost.may_concern(file.ino) {
                file.fail(Errno::EIO);
            }
        }
    }

    /// What the handle has not been told, for close(2) to say. Who was told as a writer is not told again at the next fsync.
    pub(crate) fn report(&self, open: &Open) -> Result<(), Errno> {
        let told = open.report();
        if told.is_err() && open.flags.write {
            self.unsynced().take_lost(open.file.ino);
        }
        told
    }

    /// Before a change in which the nodes of `inodes` take part: each must have said once how often it has lost power, or a loss
    /// after the change could not be told from one before it.
    pub(crate) async fn names_will_change(&self, inodes: &[Ino]) -> Result<(), Errno> {
        for ino in inodes {
            let node = self.node_of(*ino);
            if self.calls().losses(node).is_none() {
                self.ask_node_done(node, Request::Ping).await?;
            }
        }
        Ok(())
    }

    /// Names in `dir` were changed, in which the nodes of `inodes` took part.
    pub(crate) fn names_changed(&self, dir: Ino, inodes: &[Ino]) {
        for ino in inodes {
            self.mark(dir, self.node_of(*ino));
        }
    }
}

/// A node that lives answers within milliseconds.
const LEAVE_MS: u64 = 1_000;
