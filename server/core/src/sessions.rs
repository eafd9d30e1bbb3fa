//! The sessions of a node: who may ask, until when, and whether those of before a restart have come back.
//!
//! ```text
//! (unknown) --begin--> alive --expire, Leave--> (unknown)     who resumes an unknown session is told that it is over
//! ```
//! One core of a node keeps them (the one that owns the node's first shard) and tells its siblings. That shard journals
//! the beginning and the end, so that a restarted node knows whose opens and locks to expect back.
//!
//! 1. A session is alive while something was heard of it within one lease; a restart counts as hearing of it, and so does
//!    going on after the process stood still (SIGSTOP, a paused machine): who cannot hear may not call others silent.
//! 2. The grace period ends when every session of before the restart has claimed what it holds, or has ended: after one
//!    lease at the latest.

use std::collections::BTreeMap;

use sealfs_proto::SessionId;
use sealfs_transport::Instant;

#[derive(Clone, Copy, Debug)]
struct Lease {
    heard: Instant,
    /// Known from before the restart and has not said yet what it holds.
    owes_claim: bool,
}

/// What only the running process knows of the sessions.
#[derive(Debug)]
pub(crate) struct Leases {
    lease_ms: u64,
    /// Whoever has not claimed by then will not.
    grace_until: Instant,
    leases: BTreeMap<SessionId, Lease>,
    /// When this was last looked at.
    looked: Instant,
}

impl Leases {
    /// The leases of the sessions known at a start.
    pub(crate) fn new(known: impl Iterator<Item = SessionId>, lease_ms: u64, now: Instant) -> Self {
        let lease = Lease { heard: now, owes_claim: true };
        let leases = known.map(|session| (session, lease)).collect();
        Self { lease_ms, grace_until: now.after_ms(lease_ms), leases, looked: now }
    }

    /// To be called at least every eighth of a lease, before anything else: finds out whether the process stood still.
    pub(crate) fn look(&mut self, now: Instant) {
        let stood_still_ms = now.ms_since(std::mem::replace(&mut self.looked, now));
        if stood_still_ms > self.lease_ms / 4 {
            tracing::warn!(
                ms = stood_still_ms,
                "this node stood still; every session gets a new lease"
            );
            self.leases.values_mut().for_each(|lease| lease.heard = now);
            self.grace_until = now.after_ms(self.lease_ms);
        }
    }

    /// A new session.
    pub(crate) fn begin(&mut self, session: SessionId, now: Instant) {
        self.leases.entry(session).or_insert(Lease { heard: now, owes_claim: false });
    }

    /// It connects: whether it owes a claim; `None` if it is not alive.
    pub(crate) fn greet(&mut self, session: SessionId, now: Instant) -> Option<bool> {
        self.hear(session, now);
        self.leases.get(&session).map(|lease| lease.owes_claim)
    }

    /// Something was heard of it.
    pub(crate) fn hear(&mut self, session: SessionId, now: Instant) {
        if let Some(lease) = self.leases.get_mut(&session) {
            lease.heard = lease.heard.max(now);
        }
    }

    /// It has claimed all it holds.
    pub(crate) fn claimed(&mut self, session: SessionId) {
        if let Some(lease) = self.leases.get_mut(&session) {
            lease.owes_claim = false;
        }
    }

    /// How many are alive.
    pub(crate) fn count(&self) -> u32 {
        self.leases.len() as u32
    }

    /// It is no more.
    pub(crate) fn end(&mut self, session: SessionId) {
        self.leases.remove(&session);
    }

    /// Whether some session of before the restart has not claimed yet.
    pub(crate) fn in_grace(&self, now: Instant) -> bool {
        now < self.grace_until && self.leases.values().any(|lease| lease.owes_claim)
    }

    /// The sessions whose lease has run out.
    pub(crate) fn expired(&self, now: Instant) -> Vec<SessionId> {
        let mut expired = Vec::new();
        for (&session, lease) in &self.leases {
            if lease.heard.after_ms(self.lease_ms) <= now {
                expired.push(session);
            }
        }
        expired
    }

    /// When the next lease runs out, or the grace period ends.
    pub(crate) fn deadline(&self, now: Instant) -> Option<Instant> {
        let leases = self.leases.values().map(|lease| lease.heard.after_ms(self.lease_ms));
        leases.chain(self.in_grace(now).then_some(self.grace_until)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SessionId = SessionId(5);
    const B: SessionId = SessionId(3);

    #[test]
    fn grace_ends_with_the_last_claim_or_the_last_lease() {
        let mut leases = Leases::new([A, B].into_iter(), 1_000, Instant(0));
        assert_eq!(
            (leases.greet(A, Instant(0)), leases.greet(SessionId(9), Instant(0))),
            (Some(true), None)
        );
        leases.claimed(A);
        assert!(leases.in_grace(Instant(0)));
        assert!(!leases.in_grace(Instant(0).after_ms(1_000)), "one lease at the latest");
        leases.hear(A, Instant(0).after_ms(500));
        assert_eq!(leases.deadline(Instant(0)), Some(Instant(0).after_ms(1_000)));
        assert_eq!(leases.expired(Instant(0).after_ms(999)), []);
        assert_eq!(leases.expired(Instant(0).after_ms(1_000)), [B]);
        leases.end(B);
        assert!(!leases.in_grace(Instant(0)));
        assert_eq!(leases.deadline(Instant(0)), Some(Instant(0).after_ms(1_500)));
    }

    #[test]
    fn a_node_that_stood_still_calls_nobody_silent() {
        let at = |ms| Instant(0).after_ms(ms);
        let mut leases = Leases::new([A].into_iter(), 1_000, at(0));
        for ms in [125, 250, 500] {
            leases.look(at(ms));
        }
        assert_eq!(leases.expired(at(1_000)), [A], "it was never heard");
        leases.look(at(5_000));
        assert_eq!(leases.expired(at(5_999)), []);
        assert!(leases.in_grace(at(5_999)), "who has to claim gets the time that was lost");
        assert_eq!(leases.expired(at(6_000)), [A]);
    }
}
