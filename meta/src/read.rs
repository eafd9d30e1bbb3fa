//! Requests that change nothing.

use sealfs_proto::{Errno, Reply, Request, TxId};

use crate::State;

/// Answers `Lookup`, `List`, `Stat`, `ReadLink`, `XattrGet`, `XattrList` and `Parent`; EOPNOTSUPP for anything else.
pub fn read(state: &State, request: &Request) -> Result<Reply, Errno> {
    let _ = (state, request);
    unimplemented!()
}

/// The prepared transaction whose decision the read must wait for, if what it looks at is held. Keys that this shard's own
/// open transactions hold do not matter: until decided, the present is the truth.
#[must_use]
pub fn waits(state: &State, request: &Request) -> Option<TxId> {
    let _ = (state, request);
    unimplemented!()
}
