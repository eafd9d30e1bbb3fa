//! A file's size, blocks and bound; and the end of inodes without links.
//!
//! 1. No byte at or beyond `bound` was ever written, by anybody: it never falls, for a client may still write below the
//!    bound it knew before a truncation.
//! 2. While a cut is pending the file does not grow: what would grow it is Busy.
//! 3. A settlement made under an older generation never makes the file larger than its data, and leaves an mtime that was
//!    set. That data has changed is shown by ctime and the change counter in any case, or an open elsewhere would go on with
//!    the pages that it has.
//! 4. A cut begins a generation and ends it: what was written, and where the data was found to end, while it was pending is
//!    of an older one.

use sealfs_proto::{Attr, Errno, Ino, Reply, Request, Time, limits};

use super::{Asked, Planned, Question, Refused};
use crate::state::{Key, Unlinked};
use crate::{Answer, Body, Change, Inode, Record, State, Times};

pub(super) fn plan(state: &State, request: &Request, asked: &Asked) -> Result<Planned, Refused> {
    match *request {
        Request::Raise { ino, bound } => raise(state, asked, ino, bound),
        Request::Settle { ino, generation, size, blocks, wrote } => {
            let inode = file(state, ino)?;
            let times = settled_times(&inode.attr, generation, wrote);
            no_growth_into_cut(inode, size)?;
            let size = match settled_size(inode, generation, size, asked) {
                Ok(size) => size,
                Err(question) => return Ok(Planned::Ask(question)),
            };
            settle(inode, asked, size, blocks, times)
        }
        Request::Reserve { ino, length } => reserve(state, asked, ino, length),
        _ => Err(Errno::EOPNOTSUPP.into()),
    }
}

/// The settlement of a write of chunk 0 up to byte `to` of the file, to stand in the entry of that write; `blocks` more
/// 512-byte units are allocated. Busy while a cut is pending that the write would reach. Applying it gives
/// `Reply::Written` with attributes.
pub fn plan_settle_write(
    state: &State,
    ino: Ino,
    to: u64,
    blocks: i64,
    asked: &Asked,
) -> Result<Record, Refused> {
    let inode = file(state, ino)?;
    no_growth_into_cut(inode, to)?;
    let answer = Answer::Written(ino);
    let change = Change::Settle { ino, size: to, blocks, times: Times::Written, answer };
    Ok(Record { origin: Some(asked.origin), now: asked.now, change })
}

/// The end of an inode without links that nobody has open; Busy while a transaction holds it or a cut of it is pending,
/// ENOENT if there is no such inode, or it has links, or is being reclaimed already.
pub fn plan_reclaim(state: &State, ino: Ino, now: Time) -> Result<Record, Refused> {
    let stage = state.unlinked.get(&ino).copied();
    if !matches!(stage, Some(Unlinked::Unnamed | Unlinked::Waiting)) {
        return Err(Errno::ENOENT.into());
    }
    if state.holds.of(&Key::inode(ino)).is_some() || state.cut(ino).is_some() {
        return Err(Refused::Busy);
    }
    Ok(Record { origin: None, now, change: Change::Reclaim { ino } })
}

fn raise(state: &State, asked: &Asked, ino: Ino, bound: u64) -> Result<Planned, Refused> {
    let inode = file(state, ino)?;
    if bound <= inode.attr.bound {
        return Ok(Planned::Reply(Reply::Attr(inode.attr.clone())));
    }
    if bound > limits::FILE_SIZE_MAX {
        return Err(Errno::EFBIG.into());
    }
    no_growth_into_cut(inode, bound)?;
    Ok(asked.record(Change::Raise { ino, bound }))
}

/// Data that changed always shows: it moves ctime and the change counter. mtime moves, too, unless somebody who did not see
/// the data has set it (then it differs from ctime).
fn settled_times(attr: &Attr, generation: u64, wrote: bool) -> Times {
    let set = generation < attr.generation && attr.mtime != attr.ctime;
    match wrote {
        false => Times::None,
        true if set => Times::MtimeSet,
        true => Times::Written,
    }
}

/// How far the data reaches as this settlement may say it.
fn settled_size(inode: &Inode, generation: u64, size: u64, asked: &Asked) -> Result<u64, Question> {
    let attr = &inode.attr;
    if generation >= attr.generation || size <= attr.size {
        return Ok(size);
    }
    match asked.facts.end {
        Some((known, end)) if known == attr.generation => Ok(size.min(end)),
        _ => {
            let (generation, chunk_size) = (attr.generation, attr.chunk_size);
            Err(Question::End { ino: attr.ino, generation, chunk_size })
        }
    }
}

fn settle(
    inode: &Inode,
    asked: &Asked,
    size: u64,
    blocks: i64,
    times: Times,
) -> Result<Planned, Refused> {
    let attr = &inode.attr;
    if size > limits::FILE_SIZE_MAX {
        return Err(Errno::EFBIG.into());
    }
    if size <= attr.size && blocks == 0 && times == Times::None {
        return Ok(Planned::Reply(Reply::Attr(attr.clone())));
    }
    let (ino, answer) = (attr.ino, Answer::Attr(attr.ino));
    Ok(asked.record(Change::Settle { ino, size, blocks, times, answer }))
}

fn reserve(state: &State, asked: &Asked, ino: Ino, length: u32) -> Result<Planned, Refused> {
    let inode = file(state, ino)?;
    let to = inode
        .attr
        .size
        .checked_add(u64::from(length))
        .filter(|to| *to <= limits::FILE_SIZE_MAX)
        .ok_or(Errno::EFBIG)?;
    no_growth_into_cut(inode, to)?;
    // Doubled, so that only a few appends wait for the device.
    let doubled = to.saturating_mul(2).min(limits::FILE_SIZE_MAX);
    let bound = if to > inode.attr.bound { doubled } else { inode.attr.bound };
    Ok(asked.record(Change::Reserve { ino, length, bound }))
}

fn file(state: &State, ino: Ino) -> Result<&Inode, Errno> {
    let inode = state.live(ino)?;
    match inode.body {
        Body::File { .. } => Ok(inode),
        Body::Directory(_) => Err(Errno::EISDIR),
        _ => Err(Errno::EINVAL),
    }
}

fn no_growth_into_cut(inode: &Inode, to: u64) -> Result<(), Refused> {
    match inode.body {
        Body::File { cut: Some(from) } if to > from => Err(Refused::Busy),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Facts;
    use crate::testing::{World, at};
    use sealfs_proto::{SetAttr, SetTime, Who};

    fn settle(ino: Ino, generation: u64, size: u64, blocks: i64) -> Request {
        Request::Settle { ino, generation, size, blocks, wrote: true }
    }

    #[test]
    fn a_settlement_raises_the_size_and_moves_the_times() {
        let mut world = World::new();
        let file = world.create(Ino::ROOT, "a");
        world.run(&settle(file, 1, 5_000, 16)).unwrap();
        world.run(&settle(file, 1, 4_000, -8)).unwrap();
        let attr = world.attr(file);
        assert_eq!((attr.size, attr.blocks, attr.mtime), (5_000, 8, at(3)));
        world.assert_sound();
    }

    #[test]
    fn a_settlement_does_not_undo_a_later_utimens() {
        let mut world = World::new();
        let file = world.create(Ino::ROOT, "a");
        let set = SetAttr { mtime: Some(SetTime::At(at(77))), ..SetAttr::default() };
        world.set(Who::root(), file, set).unwrap();
        let asked =
            Asked { facts: Facts { end: Some((2, 3_000)), ..Facts::default() }, ..world.asked() };
        let Ok(Planned::Record(record)) =
            plan(&world.states[0], &settle(file, 1, 5_000, 8), &asked)
        else {
            panic!("the end of the data is known")
        };
        world.append(file.shard(), record);
        let attr = world.attr(file);
        assert_eq!((attr.mtime, attr.size, attr.blocks), (at(77), 3_000, 8));
    }

    #[test]
    fn an_older_settlement_asks_where_the_data_ends() {
        let mut world = World::new();
        let file = world.create(Ino::ROOT, "a");
        world.set(Who::root(), file, SetAttr { size: Some(10), ..SetAttr::default() }).unwrap();
        let mut asked = world.asked();
        let generation = world.attr(file).generation;
        let question = Question::End { ino: file, generation, chunk_size: 1 << 20 };
        let request =
            Request::Settle { ino: file, generation: 1, size: 5_000, blocks: 0, wrote: false };
        let planned = plan(&world.states[0], &request, &asked);
        assert_eq!(planned, Ok(Planned::Ask(question)));
        asked.facts.end = Some((1, 9_000));
        let planned = plan(&world.states[0], &request, &asked);
        assert!(
            matches!(planned, Ok(Planned::Ask(_))),
            "an answer of before the truncation is none"
        );
        asked.facts.end = Some((generation, 4));
        let planned = plan(&world.states[0], &request, &asked);
        assert!(matches!(planned, Ok(Planned::Reply(_))), "nothing changes");
    }

    #[test]
    fn where_the_data_ended_while_a_cut_was_pending_says_nothing_after_it() {
        let mut world = World::new();
        let file = world.create(Ino::ROOT, "a");
        world.run(&Request::Raise { ino: file, bound: 1 << 22 }).unwrap();
        let state = &mut world.states[0];
        let asked = crate::testing::asked(9);
        let size = SetAttr { size: Some(100), ..SetAttr::default() };
        let request = Request::SetAttr { who: Who::root(), ino: file, set: size, opened: true };
        let Ok(Planned::Record(record)) = crate::plan(state, &request, &asked) else {
            panic!("it is allowed")
        };
        crate::apply(state, &record);
        let pending = state.inode(file).unwrap().attr.generation;
        assert_eq!(plan(state, &settle(file, 1, 5_000, 0), &asked), Err(Refused::Busy));
        let change = Change::CutDone { ino: file, blocks: 0 };
        crate::apply(state, &Record { origin: None, now: at(0), change });
        // Written, and asked for, while what lies beyond was being discarded.
        let facts = Facts { end: Some((pending, 5_000)), ..Facts::default() };
        for generation in [1, pending] {
            let asked = Asked { facts: facts.clone(), ..asked.clone() };
            let planned = plan(state, &settle(file, generation, 5_000, 0), &asked);
            assert!(matches!(planned, Ok(Planned::Ask(Question::End { .. }))), "{planned:?}");
        }
    }

    #[test]
    fn blocks_that_were_freed_may_be_settled_before_those_that_were_allocated() {
        let mut world = World::new();
        let file = world.create(Ino::ROOT, "a");
        world.run(&settle(file, 1, 0, -16)).unwrap();
        world.run(&settle(file, 1, 0, 24)).unwrap();
        assert_eq!(world.attr(file).blocks, 8);
    }

    #[test]
    fn appends_get_ranges_that_do_not_overlap() {
        let mut world = World::new();
        let file = world.create(Ino::ROOT, "a");
        let mut end = 0;
        for length in [100, 1 << 20, 5] {
            let reply = world.run(&Request::Reserve { ino: file, length });
            assert_eq!(reply, Ok(Reply::Offset(end)));
            end += u64::from(length);
            assert!(world.attr(file).bound >= end);
        }
        assert_eq!(world.attr(file).size, end);
        world.assert_sound();
    }

    #[test]
    fn a_raised_bound_waits_for_the_device_only_when_it_grows() {
        let mut world = World::new();
        let file = world.create(Ino::ROOT, "a");
        let asked = world.asked();
        let raise = |bound| Request::Raise { ino: file, bound };
        let planned = plan(&world.states[0], &raise(1 << 20), &asked);
        assert!(matches!(planned, Ok(Planned::Reply(_))));
        let Ok(Planned::Record(record)) = plan(&world.states[0], &raise(1 << 21), &asked) else {
            panic!("it grows")
        };
        let applied = world.append(file.shard(), record);
        assert_eq!(applied.effects, [crate::Effect::Durable(file)]);
        let huge = plan(&world.states[0], &raise(u64::MAX), &asked);
        assert_eq!(huge, Err(Errno::EFBIG.into()));
    }

    #[test]
    fn a_write_of_chunk_0_settles_itself() {
        let mut world = World::new();
        let file = world.create(Ino::ROOT, "a");
        let asked = world.asked();
        let record = plan_settle_write(&world.states[0], file, 900, 8, &asked).unwrap();
        let applied = world.append(file.shard(), record);
        let attr = world.attr(file).clone();
        assert_eq!((attr.size, attr.blocks), (900, 8));
        assert_eq!(applied.reply, Reply::Written { blocks: 8, attr: Some(attr) });
        assert!(plan_settle_write(&world.states[0], Ino::ROOT, 9, 0, &asked).is_err());
    }
}
