//! A transport with faults, around any other: connections break and events come late, at seeded moments.
//!
//! 1. What the contract promises still holds: tokens complete once, order per connection, regions come back.
//! 2. The same seed over the same events gives the same faults.
//!
//! Of what is under way when a connection is broken some arrives and the rest is lost: the region of a lost reply comes back
//! with the connection's end, as if the network had failed between the peer's answer and its arrival.

use std::collections::{BTreeMap, BTreeSet};

use sealfs_proto::Address;

use crate::{
    Bulk, CloseReason, Conn, Event, Figures, Frame, Hello, Instant, Random, Region, Transport,
};

/// How often what goes wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// One event in so many breaks its connection; 0: none does.
    pub break_one_in: u64,
    /// An event is at most so late, nanoseconds.
    pub delay_ns_max: u64,
}

/// `T` with faults.
pub struct Faulty<T> {
    inner: T,
    faults: Faults,
    random: Random,
    /// Events to come, by the moment and the order of their arrival.
    late: BTreeMap<(Instant, u64), Event>,
    next: u64,
    /// When the last event of a connection comes; the next one is not earlier.
    last: BTreeMap<Conn, Instant>,
    /// Connections whose end is among the events to come.
    ended: BTreeMap<Conn, (Instant, u64)>,
    /// Connections broken here, whose end `inner` has not reported.
    broken: BTreeSet<Conn>,
}

impl<T: Transport> Faulty<T> {
    /// `inner`, with `faults` that follow from `seed`.
    pub const fn new(inner: T, seed: u64, faults: Faults) -> Self {
        Self {
            inner,
            faults,
            random: Random::new(seed),
            late: BTreeMap::new(),
            next: 0,
            last: BTreeMap::new(),
            ended: BTreeMap::new(),
            broken: BTreeSet::new(),
        }
    }

    /// From now on nothing goes wrong any more.
    pub const fn heal(&mut self) {
        self.faults = Faults { break_one_in: 0, delay_ns_max: 0 };
    }

    fn take(&mut self, now: Instant, mut event: Event) {
        let conn = conn_of(&event);
        let is_end = matches!(event, Event::Closed { .. });
        if let Event::Closed { why, lent, .. } = &mut event {
            if self.broken.remove(&conn) {
                *why = CloseReason::Gone("the network: broken by the test".into());
                self.lose(conn, lent);
            }
        } else if self.broken.contains(&conn) {
            // Under way when the connection broke: its end decides whether it still arrives.
        } else if self.random.one_in(self.faults.break_one_in) {
            self.broken.insert(conn);
            self.inner.close(conn);
        }
        let delay = self.random.below(self.faults.delay_ns_max + 1);
        let last = self.last.entry(conn).or_default();
        *last = Instant(now.0 + delay).max(*last);
        let key = (*last, self.next);
        self.next += 1;
        self.late.insert(key, event);
        if is_end {
            self.ended.insert(conn, key);
            self.last.remove(&conn);
        }
    }

    /// Drops the end of what is still to come of a connection; regions in it go to `lent`.
    fn lose(&mut self, conn: Conn, lent: &mut Vec<(u64, Region)>) {
        let of_conn = self.late.iter().filter(|(_, event)| conn_of(event) == conn);
        let keys: Vec<_> = of_conn.map(|(&key, _)| key).collect();
        let kept = self.random.below(keys.len() as u64 + 1) as usize;
        for key in &keys[kept..] {
            if let Some(Event::Reply { header, region: Some(region), .. }) = self.late.remove(key) {
                lent.push((header.token, region));
            }
        }
    }
}

impl<T: Transport> Transport for Faulty<T> {
    fn reaches(&self, address: &Address) -> bool {
        self.inner.reaches(address)
    }

    fn connect(&mut self, address: &Address, hello: Hello) -> Conn {
        self.inner.connect(address, hello)
    }

    fn admit(&mut self, conn: Conn, verdict: Result<(), CloseReason>) {
        self.inner.admit(conn, verdict);
    }

    fn send(&mut self, conn: Conn, frame: Frame) {
        let ended = self.ended.get(&conn).and_then(|key| self.late.get_mut(key));
        let Some(Event::Closed { lent, .. }) = ended else { return self.inner.send(conn, frame) };
        if let Bulk::Receive(region) = frame.bulk {
            lent.push((frame.header.token, region));
        }
    }

    fn pull(&mut self, conn: Conn, token: u64, region: Region) {
        self.inner.pull(conn, token, region);
    }

    fn pause(&mut self, conn: Conn, paused: bool) {
        self.inner.pause(conn, paused);
    }

    fn close(&mut self, conn: Conn) {
        self.inner.close(conn);
    }

    fn flush(&mut self, now: Instant) {
        self.inner.flush(now);
    }

    fn poll(&mut self, now: Instant) -> Option<Event> {
        while let Some(event) = self.inner.poll(now) {
            self.take(now, event);
        }
        let first = self.late.first_entry().filter(|first| first.key().0 <= now)?;
        let event = first.remove();
        if let Event::Closed { conn, .. } = &event {
            self.ended.remove(conn);
        }
        Some(event)
    }

    fn deadline(&self) -> Option<Instant> {
        let late = self.late.keys().next().map(|key| key.0);
        late.into_iter().chain(self.inner.deadline()).min()
    }

    fn figures(&self, conn: Conn) -> Option<Figures> {
        self.inner.figures(conn)
    }
}

const fn conn_of(event: &Event) -> Conn {
    match event {
        Event::Proven { conn, .. }
        | Event::Opened { conn, .. }
        | Event::Request { conn, .. }
        | Event::Pulled { conn, .. }
        | Event::Reply { conn, .. }
        | Event::Closed { conn, .. } => *conn,
    }
}
