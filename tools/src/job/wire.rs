//! What two nodes of a job say to one another on a TCP connection: the transport's handshake, then texts.
//!
//! ```text
//! handshake    frames of kind Handshake, as between nodes (FORMAT.md), under the meeting's key
//! message      length u32, little-endian; then a `Message` in the codec's bytes
//! ```
//! 1. Nothing but the handshake is read from a peer that has not proven the key, and of that at most 1 KiB a message.
//! 2. A peer's bytes make an error, never a panic. Every wait has an end.
//!
//! As everywhere in sealfs, who can change packets on the way can change what follows the handshake.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sealfs_proto::{Corrupt, Header, NodeId, Peer, decode, encode};
use sealfs_transport::handshake::{Exchange, Step, frame};
use sealfs_transport::{Hello, Identity, Key};
use wincode::{SchemaRead, SchemaWrite};

/// One node's part of a round, or the first node's verdict about it.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub(super) struct Message {
    /// Which round, counted from 0.
    pub(super) round: u32,
    /// What it gives, or why it failed.
    pub(super) outcome: Outcome,
}

/// As a `Result`, for the wire.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub(super) enum Outcome {
    Gives(String),
    Failed(String),
}

impl From<Result<String, String>> for Outcome {
    fn from(result: Result<String, String>) -> Self {
        result.map_or_else(Self::Failed, Self::Gives)
    }
}

impl From<Outcome> for Result<String, String> {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Gives(text) => Ok(text),
            Outcome::Failed(why) => Err(why),
        }
    }
}

/// Proves this end (`me`, wanting node 1) and the other end to one another.
pub(super) fn connect(stream: &mut TcpStream, key: &Key, me: NodeId) -> Result<(), String> {
    let hello = Hello {
        cluster: sealfs_proto::ClusterId::default(),
        node: Some(FIRST),
        peer: Peer::Node { node: me, endpoint: 0 },
        resume: false,
        map: None,
    };
    let (mut state, mut message) = Exchange::connect(key, hello, nonce()?);
    let until = Instant::now() + HANDSHAKE_MAX;
    loop {
        send(stream, &frame(&message), until)?;
        let answer = receive_frame(stream, &state, until)?;
        match state.on_message(&answer).map_err(|failed| failed.why.to_string())? {
            Step::Answer(next, answer) => (state, message) = (next, answer),
            Step::Done(_) => return Ok(()),
            Step::Proven(_) => return Err("the handshake went astray".into()),
        }
    }
}

/// Proves this end (node 1, as `identity` says) and whoever has connected to one another; says which node it is.
pub(super) fn accept(stream: &mut TcpStream, identity: Arc<Identity>) -> Result<NodeId, String> {
    let mut state = Exchange::accept(identity, nonce()?);
    let until = Instant::now() + HANDSHAKE_MAX;
    loop {
        let message = receive_frame(stream, &state, until)?;
        match state.on_message(&message) {
            Ok(Step::Answer(next, answer)) => {
                send(stream, &frame(&answer), until)?;
                state = next;
            }
            Ok(Step::Proven(proven)) => {
                let Peer::Node { node, .. } = proven.hello().peer else {
                    return Err("it is no node of the job".into());
                };
                send(stream, &frame(&proven.admit().1), until)?;
                return Ok(node);
            }
            Ok(Step::Done(_)) => return Err("the handshake went astray".into()),
            Err(failed) => {
                if let Some(answer) = failed.answer {
                    send(stream, &frame(&answer), until)?;
                }
                return Err(failed.why.to_string());
            }
        }
    }
}

/// Sends a message.
pub(super) fn tell(
    stream: &mut TcpStream,
    message: &Message,
    until: Instant,
) -> Result<(), String> {
    let body = encode(message);
    let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
    bytes.extend(body);
    send(stream, &bytes, until)
}

/// Waits for a message; `until`: `None` waits for as long as the connection stands.
pub(super) fn hear(stream: &mut TcpStream, until: Option<Instant>) -> Result<Message, String> {
    let mut len = [0; 4];
    receive(stream, &mut len, until)?;
    let len = u32::from_le_bytes(len);
    if len > MESSAGE_LEN_MAX {
        return Err(format!("it has sent {len} bytes that are no message of a job"));
    }
    let mut body = vec![0; len as usize];
    receive(stream, &mut body, until)?;
    read_message(&body).map_err(|error| error.to_string())
}

fn read_message(body: &[u8]) -> Result<Message, Corrupt> {
    decode("message of a job", body)
}

fn receive_frame(
    stream: &mut TcpStream,
    state: &Exchange,
    until: Instant,
) -> Result<Vec<u8>, String> {
    let mut head = [0; Header::LEN];
    receive(stream, &mut head, Some(until))?;
    let header = Header::from_bytes(&head).map_err(|error| error.to_string())?;
    state.check(&header).map_err(|failed| failed.why.to_string())?;
    let mut body = vec![0; header.body_len as usize];
    receive(stream, &mut body, Some(until))?;
    Header::check(&head, &body).map_err(|error| error.to_string())?;
    Ok(body)
}

fn receive(
    stream: &mut TcpStream,
    mut bytes: &mut [u8],
    until: Option<Instant>,
) -> Result<(), String> {
    while !bytes.is_empty() {
        let wait = until.map(left).transpose()?;
        stream.set_read_timeout(wait).map_err(|error| error.to_string())?;
        match stream.read(bytes) {
            Ok(0) => return Err("the connection broke".into()),
            Ok(count) => bytes = &mut bytes[count..],
            Err(error) if is_wait(&error) => {}
            Err(error) => return Err(format!("the connection broke: {error}")),
        }
    }
    Ok(())
}

fn send(stream: &mut TcpStream, mut bytes: &[u8], until: Instant) -> Result<(), String> {
    while !bytes.is_empty() {
        stream.set_write_timeout(Some(left(until)?)).map_err(|error| error.to_string())?;
        match stream.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if is_wait(&error) => {}
            Err(error) => return Err(format!("the connection broke: {error}")),
        }
    }
    Ok(())
}

fn is_wait(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

/// What is left until then; an error if nothing is.
fn left(until: Instant) -> Result<Duration, String> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err("it did not answer in time".into()) } else { Ok(left) }
}

fn nonce() -> Result<[u8; 32], String> {
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce).map_err(|error| format!("no random bytes: {error}"))?;
    Ok(nonce)
}

/// The node that the others come to.
pub(super) const FIRST: NodeId = NodeId(1);
/// Four messages between machines that may be busy; who is honest and slower comes again.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// A list of 1,024 nodes with names of 253 characters twice each, as `ID@HOST:PORT rdma=HOST:PORT`.
const MESSAGE_LEN_MAX: u32 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_are_a_message_that_comes_back_or_an_error() {
        let samples = [Ok("n1:21000".to_string()), Err(String::new())]
            .map(|result| encode(&Message { round: 3, outcome: result.into() }));
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..50_000 {
            let mut bytes = samples[random.usize(..2)].clone();
            for _ in 0..random.usize(..4) {
                let at = random.usize(..bytes.len());
                bytes[at] = random.u8(..);
            }
            bytes.truncate(random.usize(..=bytes.len()));
            if let Ok(message) = read_message(&bytes) {
                assert_eq!(encode(&message), bytes);
            }
        }
    }
}
