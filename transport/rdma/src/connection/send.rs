//! What leaves: frames become writes of payload and messages, as far as there is room; what is lent is lent here.

use std::collections::VecDeque;

use sealfs_proto::{Header, HeaderKind};
use sealfs_transport::{CloseReason, Instant, Region, Slice, handshake};

use super::{Connection, Lent, Outcome, Outgoing, Phase, Pull, Reach, Reading};
use crate::bounce;
use crate::message::{self, Kind, PREFIX_LEN};
use crate::verbs::{Access, Failure, Link, Loan, Remote, Verbs, Work};

impl Connection {
    /// Queues a message of the handshake.
    pub(super) fn say(&mut self, message: &[u8]) {
        self.outbox.push_back(Outgoing {
            header: Header::new(HeaderKind::Handshake, 0),
            body: Vec::new(),
            push: VecDeque::new(),
            target: Remote { address: 0, key: 0 },
            encoded: Some(handshake::frame(message)),
            at: 0,
        });
    }

    /// Posts what waits, as far as the queue, the peer's window and the memory to copy through allow, in one chain.
    pub(crate) fn advance_out(&mut self, reach: &mut Reach<'_>, now: Instant) -> Outcome {
        let Some(link) = self.link else { return Ok(()) };
        if matches!(self.phase, Phase::Dialing(_)) {
            return Ok(());
        }
        self.starved = false;
        let mut chain = Vec::new();
        let room = reach.verbs.room(link);
        self.post_pulls(&mut chain, room, reach)?;
        while let Some(mut outgoing) = self.outbox.pop_front() {
            let left = self.post_frame(&mut outgoing, &mut chain, room, link, reach)?;
            if !left {
                self.outbox.push_front(outgoing);
                break;
            }
            self.traffic.frames_sent += u64::from(outgoing.header.kind != HeaderKind::Handshake);
        }
        if self.flow.must_give_back() && chain.len() < room {
            let bytes = message::encode(Kind::Credits, self.flow.send(), &[]);
            self.traffic.bytes_sent += bytes.len() as u64;
            chain.push(Work::Send { bytes, told: false, fenced: false });
        }
        if !chain.is_empty() {
            self.last_sent = now;
            self.counters.chains += 1;
            reach.verbs.post(link, chain).map_err(|Failure(why)| CloseReason::Gone(why))?;
        }
        Ok(())
    }

    /// Asks whether the peer is alive, if nothing was posted since `since`.
    pub(crate) fn probe(&mut self, since: Instant, now: Instant, verbs: &mut dyn Verbs) -> Outcome {
        let (Some(link), true) = (self.link, self.accepted) else { return Ok(()) };
        let is_open = matches!(self.phase, Phase::Open(_) | Phase::Judged(_));
        if is_open && verbs.room(link) > 0 && self.last_sent <= since {
            self.last_sent = now;
            self.counters.probes += 1;
            let posted = verbs.post(link, vec![Work::Probe]);
            posted.map_err(|Failure(why)| CloseReason::Gone(why))?;
        }
        Ok(())
    }

    fn post_pulls(&mut self, chain: &mut Vec<Work>, room: usize, reach: &mut Reach<'_>) -> Outcome {
        while chain.len() < room
            && let Some(pull) = self.pulls.pop_front()
        {
            let Pull { token, region, promise } = pull;
            let len = promise.len as usize;
            let (target, region) = if reach.verbs.is_registered(region.bytes()) {
                (region, None)
            } else if let Some(stand_in) = take(reach, Access::Local, len)? {
                (stand_in, Some(region))
            } else {
                self.starved = true;
                self.pulls.push_front(Pull { token, region, promise });
                return Ok(());
            };
            self.reading.push_back(Reading { token, region });
            chain.push(Work::Read { target, len, source: promise.remote });
        }
        Ok(())
    }

    /// Posts as much of a frame as there is room for; whether it has left.
    fn post_frame(
        &mut self,
        outgoing: &mut Outgoing,
        chain: &mut Vec<Work>,
        room: usize,
        link: Link,
        reach: &mut Reach<'_>,
    ) -> Result<bool, CloseReason> {
        let token = outgoing.header.token;
        if self.pulls.iter().any(|pull| pull.token == token) {
            return Ok(false); // its read is posted first, and then fenced
        }
        if outgoing.encoded.is_none() && !self.see_to_payload(outgoing, link, reach)? {
            self.starved = true;
            return Ok(false);
        }
        let pieces = reach.verbs.limits(link).pieces;
        while !outgoing.push.is_empty() {
            if chain.len() >= room {
                return Ok(false);
            }
            let count = outgoing.push.len().min(pieces);
            let source: Vec<Slice> = outgoing.push.drain(..count).collect();
            let target = outgoing.target;
            let len = source.iter().map(|slice| slice.len() as u64).sum();
            // The peer said where; what lies nowhere its adapter refuses.
            outgoing.target.address = outgoing.target.address.wrapping_add(len);
            chain.push(Work::Write { source, target });
        }
        let Outgoing { header, body, encoded, at, .. } = outgoing;
        let bytes = encoded.get_or_insert_with(|| {
            let mut bytes = header.to_bytes(body).to_vec();
            bytes.append(body);
            bytes
        });
        let fenced = self.reading.iter().any(|reading| reading.token == token);
        while *at < bytes.len() {
            if chain.len() >= room || !self.flow.may_send() {
                return Ok(false);
            }
            let end = bytes.len().min(*at + self.message_len - PREFIX_LEN);
            let kind = if *at == 0 { Kind::First } else { Kind::More };
            let message = message::encode(kind, self.flow.send(), &bytes[*at..end]);
            self.traffic.bytes_sent += message.len() as u64;
            let told = matches!(self.phase, Phase::Leaving(_));
            chain.push(Work::Send { bytes: message, told, fenced });
            *at = end;
            self.counters.messages_sent += 1;
        }
        Ok(true)
    }

    /// Has a frame's payload in registered memory, and lends it if the peer is to reach it. False: there is no memory to
    /// copy through at present.
    fn see_to_payload(
        &mut self,
        outgoing: &mut Outgoing,
        link: Link,
        reach: &mut Reach<'_>,
    ) -> Result<bool, CloseReason> {
        let (token, len) = (outgoing.header.token, outgoing.header.bulk_len as usize);
        if len == 0 {
            return Ok(true);
        }
        if outgoing.header.kind == HeaderKind::Reply {
            if !outgoing.push.iter().all(|slice| reach.verbs.is_registered(slice.bytes())) {
                let Some(mut region) = take(reach, Access::Local, len)? else { return Ok(false) };
                let slices: Vec<Slice> = outgoing.push.drain(..).collect();
                bounce::gather(&mut region, &slices);
                outgoing.push = [region.freeze().cut(0, len)].into();
            }
            return Ok(true);
        }
        let lent = self.lent.remove(&token).expect("a call that has not left has not ended");
        let (lent, remote) = match lent {
            Lent::Room(region) => lend_room(reach, link, token, region, len),
            Lent::Offer(slices) => lend_offer(reach, link, token, slices, len),
            other => panic!("{other:?} is lent once"),
        };
        self.lent.insert(token, lent);
        let Some(remote) = remote? else { return Ok(false) };
        (outgoing.header.remote_address, outgoing.header.remote_key) = (remote.address, remote.key);
        Ok(true)
    }
}

/// Memory to copy through.
fn take(reach: &mut Reach<'_>, access: Access, len: usize) -> Result<Option<Region>, CloseReason> {
    let taken = reach.bounce.take(reach.verbs, access, len);
    taken.map_err(|Failure(why)| CloseReason::Gone(why))
}

/// What came of lending: where it lies for the peer; `None`: no memory to copy through at present.
type Lending = (Lent, Result<Option<Remote>, CloseReason>);

/// Lends room for a reply's payload: the region itself, or one to copy through.
fn lend_room(reach: &mut Reach<'_>, link: Link, token: u64, region: Region, len: usize) -> Lending {
    let region = match reach.verbs.lend(link, token, Loan::Room(region)) {
        Ok(remote) => return (Lent::Direct, Ok(Some(remote))),
        Err(Loan::Room(region)) => region,
        Err(Loan::Offer(_)) => panic!("what is refused comes back"),
    };
    match take(reach, Access::Remote, len) {
        Ok(Some(stand_in)) => match reach.verbs.lend(link, token, Loan::Room(stand_in)) {
            Ok(remote) => (Lent::Bounced(region), Ok(Some(remote))),
            Err(_) => (Lent::Room(region), Err(not_registered())),
        },
        Ok(None) => (Lent::Room(region), Ok(None)),
        Err(why) => (Lent::Room(region), Err(why)),
    }
}

/// Lends payload for the peer to read: where it lies, if it lies in one piece, or a copy.
fn lend_offer(
    reach: &mut Reach<'_>,
    link: Link,
    token: u64,
    mut slices: Vec<Slice>,
    len: usize,
) -> Lending {
    if let [_] = slices[..] {
        match reach.verbs.lend(link, token, Loan::Offer(slices.remove(0))) {
            Ok(remote) => return (Lent::Direct, Ok(Some(remote))),
            Err(Loan::Offer(slice)) => slices.push(slice),
            Err(Loan::Room(_)) => panic!("what is refused comes back"),
        }
    }
    match take(reach, Access::Remote, len) {
        Ok(Some(mut region)) => {
            bounce::gather(&mut region, &slices);
            match reach.verbs.lend(link, token, Loan::Offer(region.freeze().cut(0, len))) {
                Ok(remote) => (Lent::Direct, Ok(Some(remote))),
                Err(_) => (Lent::Offer(slices), Err(not_registered())),
            }
        }
        Ok(None) => (Lent::Offer(slices), Ok(None)),
        Err(why) => (Lent::Offer(slices), Err(why)),
    }
}

fn not_registered() -> CloseReason {
    CloseReason::Gone(
        "memory to copy through is not registered with this connection's device".into(),
    )
}
