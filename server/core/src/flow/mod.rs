//! Changes of several steps, one file each. What must survive a crash is journaled before the next step, never kept in a
//! future; [`recover`] begins every flow again from what the shards' states say.

pub(crate) mod change;
pub(crate) mod cut;
pub(crate) mod data;
pub(crate) mod node;
pub(crate) mod numbers;
pub(crate) mod reclaim;
pub(crate) mod recover;
pub(crate) mod rename;
pub(crate) mod session;
pub(crate) mod snapshot;
pub(crate) mod space;
pub(crate) mod tx;
