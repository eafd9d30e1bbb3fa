//! From an operation's request to a call, and from what became of the call to an errno.
//!
//! 1. Every request is sent as what it is: what changes something carries a sequence number, and does so in no other session
//!    than the one whose locks it relies on.
//! 2. A node's loss of power is noticed before the first answer after it is acted on.
//! 3. Every failure becomes exactly one errno; one that is not the node's own answer is logged with node and cause.

use sealfs_proto::{Errno, NodeId, Reply, Request, ShardId};
use sealfs_transport::{Answer, Ask, Bulk, Call, CallError, Region, Slice};

use crate::Fs;

impl Fs {
    /// Asks the shard's node.
    pub(crate) async fn ask(&self, shard: ShardId, request: Request) -> Result<Reply, Errno> {
        let node = self.routes().node(shard);
        Ok(self.send(node, shard, request, Bulk::None).await?.reply)
    }

    /// Asks for a change that is answered by `Done`.
    pub(crate) async fn ask_done(&self, shard: ShardId, request: Request) -> Result<(), Errno> {
        done(&self.ask(shard, request).await?)
    }

    /// Asks the shard's node for bytes into `region`; gives the region back with the reply, and how many bytes of it are
    /// filled.
    pub(crate) async fn ask_into(
        &self,
        shard: ShardId,
        request: Request,
        region: Region,
    ) -> Result<(Reply, Region, u32), Errno> {
        let node = self.routes().node(shard);
        let answer = self.send(node, shard, request, Bulk::Receive(region)).await?;
        match answer.region {
            Some(region) => Ok((answer.reply, region, answer.bulk_len)),
            None => Err(unexpected("a region", &answer.reply)),
        }
    }

    /// Asks the shard's node to take `bytes`.
    pub(crate) async fn ask_with(
        &self,
        shard: ShardId,
        request: Request,
        bytes: Slice,
    ) -> Result<Reply, Errno> {
        let node = self.routes().node(shard);
        Ok(self.send(node, shard, request, Bulk::Send(vec![bytes])).await?.reply)
    }

    /// Asks a node about all of its shards.
    pub(crate) async fn ask_node(&self, node: NodeId, request: Request) -> Result<Reply, Errno> {
        Ok(self.send(node, ShardId(0), request, Bulk::None).await?.reply)
    }

    /// Asks a node for what is answered by `Done`.
    pub(crate) async fn ask_node_done(&self, node: NodeId, request: Request) -> Result<(), Errno> {
        done(&self.ask_node(node, request).await?)
    }

    /// Asks the shard's node for a lock and waits as long as it takes.
    pub(crate) fn ask_for_lock(&self, shard: ShardId, request: Request) -> Call {
        let ask = Ask::change(shard, request).waiting_for_lock();
        self.calls().call(self.routes().node(shard), ask)
    }

    /// Asks the shard's node for a change that is answered by `Done` and somebody relies on: as long as it takes, unless
    /// the session ends.
    pub(crate) async fn ask_patiently(
        &self,
        shard: ShardId,
        request: Request,
    ) -> Result<(), Errno> {
        let ask = Ask { in_session: true, ..Ask::change(shard, request).patiently() };
        let answer = self.calls().call(self.routes().node(shard), ask).await;
        done(&answer.map_err(|error| errno(&error))?.reply)
    }

    async fn send(
        &self,
        node: NodeId,
        shard: ShardId,
        request: Request,
        bulk: Bulk,
    ) -> Result<Answer, Errno> {
        let change = request.is_change();
        // Whoever holds a lock relies on it, and it ends with the session.
        let file = request.inode().filter(|_| change).and_then(|ino| self.file(ino));
        let in_session = file.is_some_and(|file| file.is_locked());
        let ask = Ask { bulk, change, in_session, ..Ask::read(shard, request) };
        let answer = self.calls().call(node, ask).await;
        self.notice_losses(node);
        answer.map_err(|error| errno(&error))
    }
}

/// What the program gets. Whatever is not a node's own answer is EIO, and the log says what happened: a program can do
/// nothing with the difference, a person can.
pub(crate) fn errno(error: &CallError) -> Errno {
    match error {
        CallError::Errno(errno) => *errno,
        CallError::Gone => Errno::EIO,
        CallError::Timeout { .. }
        | CallError::SessionEnded { .. }
        | CallError::Refused { .. }
        | CallError::Unknown { .. }
        | CallError::Answered { .. }
        | CallError::Corrupt { .. }
        | CallError::NotJoined(_) => {
            tracing::error!(%error, "an operation failed with EIO");
            Errno::EIO
        }
    }
}

/// A node answered a request with the wrong kind of reply: EIO, and a line in the log.
pub(crate) fn unexpected(asked: &str, reply: &Reply) -> Errno {
    tracing::error!(
        asked,
        ?reply,
        "a node's reply does not fit the request; are the versions the same?"
    );
    Errno::EIO
}

fn done(reply: &Reply) -> Result<(), Errno> {
    match reply {
        Reply::Done => Ok(()),
        other => Err(unexpected("Done", other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_of_a_call_is_one_errno() {
        let node = NodeId(3);
        let cause = "127.0.0.1:7002: connection refused".to_owned();
        let answers = [
            (CallError::Errno(Errno::ENOSPC), Errno::ENOSPC),
            (CallError::Timeout { node, cause: cause.clone() }, Errno::EIO),
            (CallError::SessionEnded { node }, Errno::EIO),
            (CallError::Refused { node, cause: cause.clone() }, Errno::EIO),
            (CallError::Unknown { node }, Errno::EIO),
            (CallError::Answered { node }, Errno::EIO),
            (CallError::Corrupt { node, cause: cause.clone() }, Errno::EIO),
            (CallError::NotJoined(cause), Errno::EIO),
            (CallError::Gone, Errno::EIO),
        ];
        for (error, expected) in answers {
            assert_eq!(errno(&error), expected, "{error}");
        }
    }
}
