//! Errands to and from the node's other cores.
//!
//! 1. Mail that a full box refused stays here, in order; meanwhile the core takes no new client requests, so that the
//!    list is bounded by what is in service already. Answers are sent like everything else and never wait for requests.
//! 2. Every errand that was asked is answered once: with its result.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};

use crate::mail::{Answered, Errand, Letter};
use crate::{CoreId, Mail, Mailbox};

/// The other cores. `W` is what waits for a result.
pub(crate) struct Siblings<W> {
    inner: RefCell<Inner<W>>,
}

struct Inner<W> {
    mailbox: Box<dyn Mailbox<Mail>>,
    unsent: BTreeMap<CoreId, VecDeque<Mail>>,
    waiting: BTreeMap<u64, W>,
    next: u64,
}

/// What a sibling sent.
pub(crate) enum Received<W> {
    /// Something to do, to be answered by [`Siblings::answer`].
    Errand { from: CoreId, token: u64, errand: Errand },
    /// The result of an errand, and who waits for it.
    Answer { waits: W, result: Answered },
}

impl<W> Siblings<W> {
    /// Nothing sent yet.
    pub(crate) fn new(mailbox: Box<dyn Mailbox<Mail>>) -> Self {
        let (unsent, waiting) = (BTreeMap::new(), BTreeMap::new());
        Self { inner: RefCell::new(Inner { mailbox, unsent, waiting, next: 0 }) }
    }

    /// Sends an errand; `waits` comes back with its result.
    pub(crate) fn ask(&self, to: CoreId, errand: Errand, waits: W) {
        let mut inner = self.inner.borrow_mut();
        inner.next += 1;
        let token = inner.next;
        inner.waiting.insert(token, waits);
        inner.send(to, Letter::Ask { token, errand });
    }

    /// Answers an errand.
    pub(crate) fn answer(&self, to: CoreId, token: u64, result: Answered) {
        self.inner.borrow_mut().send(to, Letter::Answer { token, result });
    }

    /// The next mail.
    pub(crate) fn poll(&self) -> Option<Received<W>> {
        let mut inner = self.inner.borrow_mut();
        loop {
            let (from, Mail(letter)) = inner.mailbox.poll()?;
            match letter {
                Letter::Ask { token, errand } => {
                    return Some(Received::Errand { from, token, errand });
                }
                Letter::Answer { token, result } => {
                    if let Some(waits) = inner.waiting.remove(&token) {
                        return Some(Received::Answer { waits, result });
                    }
                }
            }
        }
    }

    /// Sends what full boxes refused; whether nothing is left.
    pub(crate) fn flush(&self) -> bool {
        let mut inner = self.inner.borrow_mut();
        let Inner { mailbox, unsent, .. } = &mut *inner;
        for (&to, mails) in unsent.iter_mut() {
            while let Some(mail) = mails.pop_front() {
                if let Err(mail) = mailbox.send(to, mail) {
                    mails.push_front(mail);
                    break;
                }
            }
        }
        unsent.retain(|_, mails| !mails.is_empty());
        unsent.is_empty()
    }
}

impl<W> Siblings<W> {
    /// Mails that full boxes have refused, and errands that are not answered.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let inner = self.inner.borrow();
        (inner.unsent.values().map(VecDeque::len).sum(), inner.waiting.len())
    }
}

impl<W> Inner<W> {
    fn send(&mut self, to: CoreId, letter: Letter) {
        let mail = Mail(letter);
        match self.unsent.get_mut(&to) {
            Some(mails) => mails.push_back(mail),
            None => {
                if let Err(mail) = self.mailbox.send(to, mail) {
                    self.unsent.insert(to, VecDeque::from([mail]));
                }
            }
        }
    }
}
