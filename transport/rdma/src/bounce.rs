//! Registered memory for payload that lies elsewhere: the only place where this transport copies payload, and counts it.
//!
//! Regions of the arena are registered and never come here. What does: regions of ordinary memory (tests, rare paths), a
//! request's payload in several places, and bulk that a serving endpoint lends as a client, since its arena is never
//! registered for peers. Each kind of access has its own memory, made when it is first needed. When it is all in use, frames
//! wait for it in their order.

use sealfs_ring::Pool;
use sealfs_transport::{Arena, Region, Slice, copy_payload};

use crate::verbs::{Access, Failure, Verbs};

/// Slots to copy through.
#[derive(Debug, Default)]
pub(crate) struct Bounce {
    local: Option<Pool>,
    remote: Option<Pool>,
}

/// Bytes of each kind: a few of the largest payloads.
pub(crate) const LEN: usize = 8 << 20;

impl Bounce {
    /// A registered region of `len` bytes; `None`: there is none at present.
    pub(crate) fn take(
        &mut self,
        verbs: &mut dyn Verbs,
        access: Access,
        len: usize,
    ) -> Result<Option<Region>, Failure> {
        let pool = match access {
            Access::Local => &mut self.local,
            Access::Remote => &mut self.remote,
        };
        if pool.is_none() {
            let made = Pool::new(LEN).map_err(|error| Failure(error.to_string()))?;
            verbs.register(&made, access)?;
            *pool = Some(made);
        }
        Ok(pool.as_ref().and_then(|pool| pool.take(len)))
    }
}

/// Copies the slices to the start of `region`, one behind the other.
pub(crate) fn gather(region: &mut Region, slices: &[Slice]) {
    let mut at = 0;
    for slice in slices {
        copy_payload(&mut region.bytes_mut()[at..at + slice.len()], slice.bytes());
        at += slice.len();
    }
}

/// Copies the first `len` bytes of `source` to the start of `target`.
pub(crate) fn place(target: &mut Region, source: &Region, len: usize) {
    copy_payload(&mut target.bytes_mut()[..len], &source.bytes()[..len]);
}
