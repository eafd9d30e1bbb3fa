//! A change of names or inodes that needs more than one step: questions, transactions, a sync.
//!
//! ```text
//! plan -> Ask -> find out -> plan ...          every plan is made on the present state
//!      -> Record -> commit [-> cut]
//!      -> Transaction -> tx::run -> committed | busy: back off, plan | refused: with fresh facts, once more
//! ```
//! 1. Nothing is held while it backs off.
//! 2. Who has tried for long tries more often than who has just come: the oldest gets through.

use std::rc::Rc;

use sealfs_meta::{Facts, Origin, Planned, Question, Refused, Target, plan};
use sealfs_proto::{Errno, Reply, Request, Status, Who};

use super::rename::RenameLock;
use super::{cut, node, numbers, rename, tx};
use crate::figures::Counted;
use crate::locks::Ticket;
use crate::mail::{Order, Outcome};
use crate::serve::follow;
use crate::world::{Caller, World, errno};

/// Begins the change; its answer goes to whoever asked last for `ticket`.
pub(crate) fn begin(world: &Rc<World>, ticket: Ticket, order: Order, origin: Origin) {
    let task = Rc::clone(world);
    world.spawner.spawn(async move {
        let shard = order.shard;
        let mut change = Change { world: &task, order: &order, origin, facts: Facts::default() };
        let mut lock = None;
        let outcome = change.run(&mut lock).await;
        if let Some(lock) = lock {
            rename::give_back(&task, lock);
        }
        task.respond(Caller::Change(ticket), shard, outcome);
    });
}

struct Change<'a> {
    world: &'a Rc<World>,
    order: &'a Order,
    origin: Origin,
    facts: Facts,
}

impl Change<'_> {
    async fn run(&mut self, lock: &mut Option<RenameLock>) -> Outcome {
        let (world, shard) = (self.world, self.order.shard);
        let begun = world.now.get().mono;
        let mut refused_before = None;
        loop {
            if world.has_ended(self.origin.session) {
                return Err(Status::NoSession).into();
            }
            let asked = world.asked(self.origin, self.facts.clone());
            let planned = world.with(shard, |state| plan(state, &self.order.request, &asked));
            let transaction = match planned {
                Ok(Planned::Reply(reply)) => return Ok(reply).into(),
                Ok(Planned::Record(record)) => return self.record(&record).await,
                Ok(Planned::Ask(question)) => {
                    if let Err(outcome) = self.find_out(question, lock).await {
                        return outcome;
                    }
                    continue;
                }
                Ok(Planned::Transaction(transaction)) => transaction,
                Err(Refused::Errno(error)) => return errno(error),
                Err(Refused::Busy) => {
                    self.forget_facts(lock);
                    if !world.freed(shard).await
                        || world.now.get().mono.ms_since(begun) > GIVE_UP_MS
                    {
                        return Err(Status::Busy).into();
                    }
                    continue;
                }
                Err(Refused::Numbers) => {
                    numbers::reserved(world, shard).await;
                    continue;
                }
            };
            let ended = tx::run(world, shard, transaction, lock.as_ref()).await;
            self.forget_facts(lock);
            match ended {
                tx::Ended::Committed(reply) => {
                    crate::memory::count(world, &self.order.request, self.origin, &reply);
                    return Ok(reply).into();
                }
                // What was found out may have been stale: an error counts when fresh facts lead to it again.
                tx::Ended::Refused(error) if refused_before == Some(error) => return errno(error),
                tx::Ended::Refused(error) => refused_before = Some(error),
                tx::Ended::NoNumbers => numbers::reserved(world, shard).await,
                tx::Ended::Busy => {
                    let age_ms = world.now.get().mono.ms_since(begun);
                    if age_ms > GIVE_UP_MS {
                        return Err(Status::Busy).into();
                    }
                    world.count(Counted::TransactionsRetried, 1);
                    world.back_off(pause_ms(age_ms)).await;
                }
            }
        }
    }

    /// What was found out may be stale by the next try; until then nobody waits for the rename lock because of it.
    fn forget_facts(&mut self, lock: &mut Option<RenameLock>) {
        self.facts = Facts::default();
        if let Some(lock) = lock.take() {
            rename::give_back(self.world, lock);
        }
    }

    /// One record that was not done at once: it waits for the device, or a question came before it.
    async fn record(&self, record: &sealfs_meta::Record) -> Outcome {
        let (world, shard) = (self.world, self.order.shard);
        let applied = world.commit(shard, record, None);
        crate::memory::count(world, &self.order.request, self.origin, &applied.reply);
        let first = follow(world, shard, applied.effects);
        cut::before_answer(world, first, self.order, applied.reply).await
    }

    async fn find_out(
        &mut self,
        question: Question,
        lock: &mut Option<RenameLock>,
    ) -> Result<(), Outcome> {
        let world = self.world;
        match question {
            Question::Target { dir, name } => {
                let attr = world.ask(dir.shard(), Request::Stat { ino: dir });
                let lookup = Request::Lookup { who: Who::root(), dir, name };
                let entry = world.ask(dir.shard(), lookup);
                let dir = match attr.await.reply {
                    Ok(Reply::Attr(attr)) => attr,
                    Ok(_) => return Err(errno(Errno::EPROTO)),
                    Err(status) => return Err(Err(status).into()),
                };
                let entry = match entry.await.reply {
                    Ok(Reply::Entry(entry)) => Some((entry.ino, entry.kind)),
                    Err(Status::Errno(Errno::ENOENT)) => None,
                    Ok(_) => return Err(errno(Errno::EPROTO)),
                    Err(status) => return Err(Err(status).into()),
                };
                self.facts.target = Some(Target { dir, entry });
            }
            Question::Ancestry { walks } => {
                if lock.is_none() {
                    *lock = Some(rename::take(world, self.order.shard).await?);
                }
                rename::walk(world, &walks).await?;
                self.facts.ancestry = true;
            }
            Question::End { ino, generation, chunk_size } => {
                let end = node::end_everywhere(world, ino, chunk_size).await?;
                self.facts.end = Some((generation, end));
            }
        }
        Ok(())
    }
}

/// How long to wait before the next try: from 1 ms doubling to 16 ms, and from a second of age on less again.
fn pause_ms(age_ms: u64) -> u64 {
    match age_ms {
        0..1_000 => (age_ms / 2).clamp(1, 16),
        1_000..4_000 => 8,
        _ => 2,
    }
}

/// The client asks again under the same sequence; meanwhile a forgotten request holds nothing here.
const GIVE_UP_MS: u64 = 30_000;
