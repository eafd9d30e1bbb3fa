//! How many messages may be on their way: the window of each direction of a connection.
//!
//! The receiver has [`WINDOW`] buffers for each connection. A message uses up one credit of its sender; the receiver gives
//! credits back for messages that it has taken (not merely received), along with its own messages, or alone when half a
//! window is to be given back and there is nothing to say.
//!
//! 1. `credits` of the sender + messages under way + `held` of the receiver + credits under way = window.
//! 2. The last credit is kept for giving credits back. So both ends can never wait for each other: an end that has used
//!    its last credit has given half a window to the other, which will give back as much before it gets stuck itself.

use crate::verbs::WINDOW;

/// One end's view of both directions.
#[derive(Debug)]
pub(crate) struct Flow {
    /// Messages that may be sent.
    credits: u16,
    /// The peer's window.
    credits_max: u16,
    /// Messages of the peer that came and were not given back.
    held: u16,
    /// Of these, the ones that were taken.
    taken: u16,
}

/// See invariant 2.
const RESERVE: u16 = 1;

impl Flow {
    /// A connection to a peer with this window.
    pub(crate) const fn new(peer_window: u16) -> Self {
        Self { credits: peer_window, credits_max: peer_window, held: 0, taken: 0 }
    }

    /// Whether a message with content may be sent.
    pub(crate) const fn may_send(&self) -> bool {
        self.credits > RESERVE
    }

    /// Whether credits are to be given back even if there is nothing else to say.
    pub(crate) const fn must_give_back(&self) -> bool {
        self.taken >= WINDOW / 2 && self.credits > 0
    }

    /// A message is being sent: how many credits go back with it.
    pub(crate) fn send(&mut self) -> u16 {
        self.credits = self.credits.checked_sub(1).expect("a message is sent on credit");
        let back = std::mem::take(&mut self.taken);
        self.held -= back;
        back
    }

    /// A message has come, with credits. False: the peer does not keep to the windows.
    pub(crate) const fn receive(&mut self, credits: u16) -> bool {
        self.held += 1;
        self.credits = self.credits.saturating_add(credits);
        self.held <= WINDOW && self.credits <= self.credits_max
    }

    /// A message that has come was taken.
    pub(crate) fn take(&mut self) {
        self.taken += 1;
        assert!(self.taken <= self.held, "only messages that have come are taken");
    }

    /// Messages that may be sent.
    pub(crate) const fn credits(&self) -> u16 {
        self.credits
    }

    /// Messages that may be sent when the peer has taken all.
    pub(crate) const fn credits_max(&self) -> u16 {
        self.credits_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// Two ends that want to send as much as they may, take at random times, and never get stuck.
    #[test]
    fn two_ends_that_talk_at_once_never_wait_for_each_other() {
        for seed in 0..200 {
            let mut random = sealfs_transport::Random::new(seed);
            let mut ends = [Flow::new(WINDOW), Flow::new(WINDOW)];
            let mut wires = [VecDeque::new(), VecDeque::new()];
            let mut waiting = [0_u32; 2];
            let mut sent = [0_u32; 2];
            while sent.iter().any(|&sent| sent < 1_000) {
                let mut moved = false;
                for _ in 0..64 {
                    let me = random.below(2) as usize;
                    match random.below(3) {
                        0 if ends[me].may_send() && sent[me] < 1_000 => {
                            wires[me].push_back(ends[me].send());
                            sent[me] += 1;
                        }
                        1 if !wires[1 - me].is_empty() => {
                            let back = wires[1 - me].pop_front().unwrap();
                            assert!(ends[me].receive(back), "seed {seed}");
                            waiting[me] += 1;
                        }
                        2 if waiting[me] > 0 => {
                            ends[me].take();
                            waiting[me] -= 1;
                        }
                        _ => continue,
                    }
                    moved = true;
                }
                for me in 0..2 {
                    if ends[me].must_give_back() {
                        wires[me].push_back(ends[me].send());
                        moved = true;
                    }
                }
                let idle = wires.iter().all(VecDeque::is_empty) && waiting == [0, 0];
                assert!(moved || !idle, "seed {seed}: stuck: {ends:?}");
            }
        }
    }

    #[test]
    fn who_sends_more_than_the_window_is_found_out() {
        let mut end = Flow::new(WINDOW);
        assert!((0..WINDOW).all(|_| end.receive(0)));
        assert!(!end.receive(0));
        assert!(!Flow::new(WINDOW).receive(1), "credits that were never used");
    }
}
