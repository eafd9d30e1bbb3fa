//! The handshake's states behind one type, for transports that keep one field per connection.

use std::sync::Arc;

use sealfs_proto::Header;

use super::{
    Accepting, Challenged, Failed, Greeted, Hello, Identity, Introduced, Nonce, Proven, Welcome,
    check_header,
};
use crate::Key;

/// A handshake under way at either end.
#[derive(Debug)]
pub struct Exchange(State);

#[derive(Debug)]
enum State {
    Greeted(Greeted),
    Introduced(Introduced),
    Accepting(Accepting),
    Challenged(Challenged),
}

/// What follows from a message.
#[derive(Debug)]
pub enum Step {
    /// Send this message and wait for the next one.
    Answer(Exchange, Vec<u8>),
    /// Accepting end: report [`crate::Event::Proven`] and wait for the verdict.
    Proven(Proven),
    /// Connecting end: it is done.
    Done(Welcome),
}

impl Exchange {
    /// Begins as the connecting end: the state, and the first message.
    #[must_use]
    pub fn connect(key: &Key, hello: Hello, nonce: Nonce) -> (Self, Vec<u8>) {
        let (state, message) = Greeted::new(key, hello, nonce);
        (Self(State::Greeted(state)), message)
    }

    /// Begins as the accepting end. Panics if `identity` serves no node.
    #[must_use]
    pub fn accept(identity: Arc<Identity>, nonce: Nonce) -> Self {
        Self(State::Accepting(Accepting::new(identity, nonce)))
    }

    /// Whether `header` may begin the message that comes next: to be asked before room is made for its body.
    pub fn check(&self, header: &Header) -> Result<(), Failed> {
        let may_carry_map = matches!(self.0, State::Introduced(_));
        check_header(header, may_carry_map).map_err(Failed::silent)
    }

    /// Takes the peer's next message, whose header has passed [`Exchange::check`].
    pub fn on_message(self, message: &[u8]) -> Result<Step, Failed> {
        match self.0 {
            State::Greeted(state) => {
                let (next, answer) = state.on_challenge(message).map_err(Failed::silent)?;
                Ok(Step::Answer(Self(State::Introduced(next)), answer))
            }
            State::Introduced(state) => {
                state.on_verdict(message).map(Step::Done).map_err(Failed::silent)
            }
            State::Accepting(state) => {
                let (next, answer) = state.on_greeting(message)?;
                Ok(Step::Answer(Self(State::Challenged(next)), answer))
            }
            State::Challenged(state) => state.on_introduction(message).map(Step::Proven),
        }
    }
}
