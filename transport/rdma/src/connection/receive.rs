//! What the next message from the peer means.

use std::collections::VecDeque;
use std::sync::Arc;

use sealfs_proto::{ClusterMap, Header, HeaderKind, TransportKind, limits};
use sealfs_transport::handshake::{self, Failed, Step};
use sealfs_transport::{CloseReason, Event, Moved, Peer, Region, Slice, count_payload};

use super::{Assembly, Connection, Lent, Outcome, Phase, Promise, Reach, Reading};
use crate::bounce;
use crate::message::{self, Kind};
use crate::verbs::{Fault, Loan, Remote, Work};

impl Connection {
    /// A message has come; it is taken by [`Connection::advance_in`].
    pub(crate) fn on_received(&mut self, bytes: &[u8]) -> Outcome {
        let Some((kind, credits, content)) = message::decode(bytes) else {
            return wrong("a message of no known kind");
        };
        if !self.flow.receive(credits) {
            return wrong("a message beyond the window");
        }
        self.counters.messages_received += 1;
        self.traffic.bytes_received += bytes.len() as u64;
        self.inbox.push_back((kind, content.to_vec()));
        Ok(())
    }

    /// Work is over.
    pub(crate) fn on_done(
        &mut self,
        work: Work,
        result: Result<(), Fault>,
        events: &mut VecDeque<Event>,
    ) -> Outcome {
        result.map_err(|fault| CloseReason::Gone(format!("{} failed: {fault}", work.name())))?;
        match work {
            Work::Read { target, len, .. } => {
                let Reading { token, region } =
                    self.reading.pop_front().expect("reads end in the order of posting");
                let region = match region {
                    None => target,
                    Some(mut region) => {
                        bounce::place(&mut region, &target, len);
                        region
                    }
                };
                self.counters.bytes_read += len as u64;
                count_payload(Moved::RdmaRead, len as u64);
                self.traffic.rdma_received += len as u64;
                events.push_back(Event::Pulled { conn: self.conn, token, region, len: len as u32 });
            }
            Work::Write { source, .. } => {
                let len = source.iter().map(Slice::len).sum::<usize>() as u64;
                self.counters.bytes_written += len;
                count_payload(Moved::RdmaWritten, len);
                self.traffic.rdma_sent += len;
            }
            Work::Send { told: true, .. } if self.outbox.is_empty() => {
                if let Phase::Leaving(why) = &self.phase {
                    return Err(why.clone());
                }
            }
            Work::Send { .. } | Work::Probe => {}
        }
        Ok(())
    }

    /// Takes what has come, as far as it may be taken; whether that was anything.
    pub(crate) fn advance_in(&mut self, reach: &mut Reach<'_>) -> Result<bool, CloseReason> {
        let mut taken = false;
        while let Some(&(kind, _)) = self.inbox.front() {
            let may_take = match (kind, &self.phase) {
                (Kind::Credits, _) => true,
                (_, Phase::Judged(_) | Phase::Leaving(_)) => false,
                (Kind::First, Phase::Open(_)) => !self.accepted || self.may_take(),
                _ => true,
            };
            let Some((_, content)) = (if may_take { self.inbox.pop_front() } else { None }) else {
                break;
            };
            match (kind, &mut self.assembly) {
                (Kind::Credits, _) => {}
                (Kind::First, _) => self.begin_frame(&content)?,
                (Kind::More, Some(assembly)) => assembly.body.extend_from_slice(&content),
                (Kind::More, None) => return wrong("a message that goes on with nothing"),
            }
            self.flow.take();
            self.end_frame(reach)?;
            taken = true;
        }
        Ok(taken)
    }

    /// Whether another request may be taken. Replies that wait to be sent count, so that a peer which does not take them
    /// holds a bounded part of this end's memory.
    fn may_take(&self) -> bool {
        !self.paused && self.owed.len() + self.outbox.len() < limits::CREDITS as usize
    }

    fn begin_frame(&mut self, content: &[u8]) -> Outcome {
        let (head, rest) = content.split_first_chunk().expect("message::decode has checked it");
        if self.assembly.is_some() {
            return wrong("a frame inside another one");
        }
        let header = Header::from_bytes(head).map_err(|error| corrupt(&error))?;
        match &self.phase {
            Phase::Open(version) => handshake::check_frame(&header, self.accepted, *version)?,
            Phase::Meeting(exchange) => exchange.check(&header).map_err(|failed| failed.why)?,
            other => panic!("a frame in {other:?}"),
        }
        self.assembly = Some(Assembly { header, head: *head, body: rest.to_vec() });
        Ok(())
    }

    /// Hands the frame on, if all of it is here.
    fn end_frame(&mut self, reach: &mut Reach<'_>) -> Outcome {
        let Some(assembly) = &self.assembly else { return Ok(()) };
        let wanted = assembly.header.body_len as usize;
        if assembly.body.len() < wanted {
            return Ok(());
        }
        if assembly.body.len() > wanted {
            return wrong("a frame longer than its header says");
        }
        Header::check(&assembly.head, &assembly.body).map_err(|error| corrupt(&error))?;
        let Assembly { header, body, .. } = self.assembly.take().expect("it is there");
        if !matches!(self.phase, Phase::Open(_)) {
            return self.on_handshake(&body, reach);
        }
        self.traffic.frames_received += 1;
        match header.kind {
            HeaderKind::Reply => self.on_reply(header, body, reach),
            _ => self.on_request(header, body, reach),
        }
    }

    fn on_handshake(&mut self, message: &[u8], reach: &mut Reach<'_>) -> Outcome {
        let Phase::Meeting(exchange) = std::mem::replace(&mut self.phase, Phase::Moving) else {
            panic!("a handshake message during the handshake");
        };
        match exchange.on_message(message) {
            Ok(Step::Answer(exchange, answer)) => {
                self.say(&answer);
                self.phase = Phase::Meeting(exchange);
            }
            Ok(Step::Proven(proven)) => {
                let hello = *proven.hello();
                self.announced = true;
                self.phase = Phase::Judged(proven);
                reach.events.push_back(Event::Proven { conn: self.conn, hello });
            }
            Ok(Step::Done(welcome)) => {
                let peer = Peer::Node { node: welcome.node, endpoint: 0 };
                self.open(welcome.version, peer, welcome.map, reach.events);
            }
            Err(Failed { why, answer: None }) => return Err(why),
            Err(Failed { why, answer: Some(answer) }) => {
                self.say(&answer);
                self.phase = Phase::Leaving(why);
            }
        }
        Ok(())
    }

    fn on_request(&mut self, header: Header, body: Vec<u8>, reach: &mut Reach<'_>) -> Outcome {
        let promise = Promise {
            remote: Remote { address: header.remote_address, key: header.remote_key },
            len: header.bulk_len,
            is_room: header.kind == HeaderKind::RequestForBulk,
            pulled: false,
        };
        let in_flight = self.reading.iter().any(|reading| reading.token == header.token);
        if in_flight || self.owed.insert(header.token, promise).is_some() {
            return wrong("two requests with one token");
        }
        reach.events.push_back(Event::Request { conn: self.conn, header, body });
        Ok(())
    }

    fn on_reply(&mut self, header: Header, body: Vec<u8>, reach: &mut Reach<'_>) -> Outcome {
        let (conn, len) = (self.conn, header.bulk_len as usize);
        let Some(lent) = self.lent.remove(&header.token) else {
            return wrong("a reply to no request");
        };
        let link = self.link.expect("a connection that receives has a link");
        let region = match (lent, reach.verbs.reclaim(link, header.token)) {
            (Lent::Nothing, _) => None,
            (Lent::Direct, Some(Loan::Offer(slice))) => {
                // Whether the peer has fetched all of it is only known to the peer.
                self.traffic.rdma_sent += slice.len() as u64;
                None
            }
            (Lent::Direct, Some(Loan::Room(region))) => Some(region),
            (Lent::Bounced(mut region), Some(Loan::Room(stand_in))) => {
                if len <= stand_in.len() {
                    bounce::place(&mut region, &stand_in, len);
                }
                Some(region)
            }
            (Lent::Room(region), None) if region.is_empty() => Some(region),
            // Its request has not left: what it would have lent is kept for `Closed`.
            (lent @ (Lent::Room(_) | Lent::Offer(_)), None) => {
                self.lent.insert(header.token, lent);
                return wrong("a reply to no request");
            }
            (lent, loan) => panic!("{lent:?} and {loan:?} belong together"),
        };
        if region.as_ref().map_or(0, Region::len) < len {
            if let Some(region) = region {
                self.lent.insert(header.token, Lent::Room(region));
            }
            return wrong("a reply with more payload than there is room for");
        }
        self.traffic.rdma_received += len as u64;
        reach.events.push_back(Event::Reply { conn, header, body, region });
        Ok(())
    }

    pub(super) fn open(
        &mut self,
        version: u8,
        peer: Peer,
        map: Option<Arc<ClusterMap>>,
        events: &mut VecDeque<Event>,
    ) {
        self.phase = Phase::Open(version);
        let (conn, kind) = (self.conn, TransportKind::Rdma);
        events.push_back(Event::Opened { conn, peer, kind, map });
    }
}

fn corrupt(error: &sealfs_proto::Corrupt) -> CloseReason {
    CloseReason::Corrupt(error.to_string())
}

fn wrong<T>(what: &str) -> Result<T, CloseReason> {
    Err(CloseReason::Corrupt(format!("{what} is not allowed")))
}
