//! Mail between the cores of a node: bounded channels, and a wake-up of the receiver's ring.
//!
//! Each pair of cores has a channel of its own, so that mail of one sender stays in its order and a slow receiver stops
//! only those who write to it.
//!
//! 1. A mail that was taken by `send` will be seen by the receiver's next `poll` after its ring has woken.
//! 2. The receiver is woken after the mail is in its box, never before.

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use sealfs_ring::Wake;
use sealfs_server_core::{CoreId, Mailbox};

/// One core's boxes before it has a ring: the shape in which they are handed to its thread.
pub(crate) struct Boxes<M> {
    senders: Vec<Option<Sender<M>>>,
    receivers: Vec<Option<Receiver<M>>>,
}

/// The boxes of `cores` cores, in their order.
pub(crate) fn boxes<M>(cores: u16, len: usize) -> Vec<Boxes<M>> {
    let cores = usize::from(cores);
    let mut all: Vec<Boxes<M>> = (0..cores)
        .map(|_| Boxes {
            senders: (0..cores).map(|_| None).collect(),
            receivers: (0..cores).map(|_| None).collect(),
        })
        .collect();
    for from in 0..cores {
        for to in (0..cores).filter(|to| *to != from) {
            let (sender, receiver) = bounded(len);
            all[from].senders[to] = Some(sender);
            all[to].receivers[from] = Some(receiver);
        }
    }
    all
}

/// One core's mailbox.
pub(crate) struct Channels<M> {
    boxes: Boxes<M>,
    /// Of all cores, by their number.
    wakes: Vec<Wake>,
    /// Whose box is looked into first, so that no sender waits for ever behind another.
    turn: usize,
}

impl<M> Channels<M> {
    /// The mailbox with these boxes; `wakes`: all cores' rings.
    pub(crate) fn new(boxes: Boxes<M>, wakes: Vec<Wake>) -> Self {
        assert_eq!(boxes.senders.len(), wakes.len(), "every core has a ring");
        Self { boxes, wakes, turn: 0 }
    }
}

impl<M> Mailbox<M> for Channels<M> {
    fn send(&mut self, to: CoreId, mail: M) -> Result<(), M> {
        let to = usize::from(to.0);
        let sender = self.boxes.senders[to].as_ref().expect("a core sends no mail to itself");
        match sender.try_send(mail) {
            Ok(()) => {
                self.wakes[to].wake();
                Ok(())
            }
            // A core that is gone takes no mail any more; the node is stopping.
            Err(TrySendError::Full(mail) | TrySendError::Disconnected(mail)) => Err(mail),
        }
    }

    fn poll(&mut self) -> Option<(CoreId, M)> {
        let cores = self.boxes.receivers.len();
        for step in 0..cores {
            let from = (self.turn + step) % cores;
            let mail = self.boxes.receivers[from].as_ref().and_then(|mail| mail.try_recv().ok());
            if let Some(mail) = mail {
                self.turn = (from + 1) % cores;
                return Some((CoreId(from as u16), mail));
            }
        }
        None
    }
}

/// Mails that wait in one box: a core reads its mail every turn, so that more would only hide that it is slow.
pub(crate) const BOX_LEN: usize = 1_024;

#[cfg(test)]
mod tests {
    use super::*;
    use sealfs_ring::{Config, Ring};

    fn channels(cores: u16, len: usize) -> (Vec<Channels<u32>>, Vec<Ring>) {
        let rings: Vec<Ring> = (0..cores).map(|_| Ring::new(Config::default()).unwrap()).collect();
        let wakes: Vec<Wake> = rings.iter().map(Ring::wake).collect();
        let all = boxes(cores, len).into_iter().map(|own| Channels::new(own, wakes.clone()));
        (all.collect(), rings)
    }

    #[test]
    fn mail_arrives_in_order_with_its_sender_and_wakes_the_receiver() {
        let (mut cores, rings) = channels(2, 4);
        for mail in [7, 8] {
            cores[0].send(CoreId(1), mail).unwrap();
        }
        rings[1].enter(None).unwrap();
        assert_eq!(cores[1].poll(), Some((CoreId(0), 7)));
        assert_eq!(cores[1].poll(), Some((CoreId(0), 8)));
        assert_eq!(cores[1].poll(), None);
    }

    #[test]
    fn a_full_box_gives_the_mail_back() {
        let (mut cores, _rings) = channels(2, 1);
        cores[0].send(CoreId(1), 7).unwrap();
        assert_eq!(cores[0].send(CoreId(1), 8), Err(8));
        cores[1].poll().unwrap();
        assert_eq!(cores[0].send(CoreId(1), 8), Ok(()));
    }

    #[test]
    fn no_sender_waits_behind_another() {
        let (mut cores, _rings) = channels(3, 4);
        for mail in [1, 2] {
            cores[0].send(CoreId(2), mail).unwrap();
            cores[1].send(CoreId(2), mail + 10).unwrap();
        }
        let senders: Vec<u16> =
            std::iter::from_fn(|| cores[2].poll()).map(|(from, _)| from.0).collect();
        assert_eq!(senders, [0, 1, 0, 1]);
    }
}
