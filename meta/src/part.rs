//! Elementary changes: one check and one application per part, for plans and transactions alike.

use sealfs_proto::{Part, Reply};

use crate::State;

/// The attributes of inodes that the parts make or change, as they will be.
pub(crate) fn prepared_reply(state: &State, parts: &[Part]) -> Reply {
    let _ = (state, parts);
    unimplemented!()
}
