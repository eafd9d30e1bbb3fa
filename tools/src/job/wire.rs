//! What two nodes of a job say to one another on a TCP connection: the transport's handshake, then texts.
//!
//! ```text
//! handshake    frames of kind Handshake, as between nodes (FORMAT.md), under the meeting's key
//! message      length u32, little-endian; then a `Message` in the codec's bytes
//! ```
//! 1. Nothing but the handshake is read from a peer that has not proven the key, and of that at most 1 KiB a message.
//! 2. A peer's bytes make an error, never a panic. Every wait has an end.
//! 3. A peer whose machine has stopped is noticed within [`SILENCE_MAX`]: TCP asks it for a sign of life ([`set_up`]).
//!
//! As everywhere in sealfs, who can change packets on the way can change what follows the handshake.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, sockopt};
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

/// The addresses that `host` leads to. Whoever is asked for them may not answer.
pub(super) fn lookup(host: &str, until: Instant) -> Result<Vec<IpAddr>, String> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    let (sender, found) = mpsc::channel();
    let name = host.to_string();
    // It is left behind if nobody answers: a look-up cannot be ended.
    thread::spawn(move || {
        let found = (name.as_str(), 0).to_socket_addrs();
        let found = found.map(|all| all.map(|address| address.ip()).collect::<Vec<_>>());
        let _ = sender.send(found);
    });
    match found.recv_timeout(until.saturating_duration_since(Instant::now())) {
        Ok(Ok(all)) if all.is_empty() => Err(format!("the name {host} has no address")),
        Ok(found) => found.map_err(|error| format!("cannot look {host} up: {error}")),
        Err(_) => Err(format!("cannot look {host} up: no answer in time")),
    }
}

/// Connects from a port that only root can have, where this is root: strangers go first when too many knock. No more than
/// that follows from the port, for whoever translates addresses on the way may change it.
pub(super) fn dial(address: SocketAddr, until: Instant) -> Result<TcpStream, String> {
    let told = |error: rustix::io::Errno| io::Error::from(error).to_string();
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None).map_err(told)?;
    if rustix::process::geteuid().is_root() {
        let any: IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let mut ports = (0..PORT_TRIES).map(|_| fastrand::u16(ROOTS_PORTS));
        // If all of these are taken, any other will do.
        ports.any(|port| rustix::net::bind(&socket, &SocketAddr::new(any, port)).is_ok());
    }
    let done = rustix::net::connect(&socket, &address);
    if done == Err(rustix::io::Errno::INPROGRESS) {
        let wait = CONNECT_MAX.min(left(until)?);
        if !wait_for(&mut [PollFd::new(&socket, PollFlags::OUT)], wait)? {
            return Err("no answer".into());
        }
        sockopt::socket_error(&socket).map_err(told)?.map_err(told)?;
    } else {
        done.map_err(told)?;
    }
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(false).map_err(|error| error.to_string())?;
    set_up(&stream);
    Ok(stream)
}

/// Whether a connection comes from a port that only root of its machine can have, as far as can be told.
pub(super) fn is_roots(from: SocketAddr) -> bool {
    from.port() < 1024
}

/// Settings of a connection of a meeting.
pub(super) fn set_up(stream: &TcpStream) {
    // Where they are refused the connection works all the same, and the deadline remains.
    let _ = stream.set_nodelay(true);
    let _ = sockopt::set_socket_keepalive(stream, true);
    let _ = sockopt::set_tcp_keepidle(stream, SILENCE_MAX / 4);
    let _ = sockopt::set_tcp_keepintvl(stream, SILENCE_MAX / 8);
    let _ = sockopt::set_tcp_keepcnt(stream, 6);
    let _ = sockopt::set_tcp_user_timeout(stream, SILENCE_MAX.as_millis() as u32);
}

/// Proves this end (`me`, wanting node 1) and the other end to one another.
pub(super) fn connect(
    stream: &mut TcpStream,
    key: &Key,
    me: NodeId,
    until: Instant,
) -> Result<(), String> {
    let hello = Hello {
        cluster: sealfs_proto::ClusterId::default(),
        node: Some(FIRST),
        peer: Peer::Node { node: me, endpoint: 0 },
        resume: false,
        map: None,
    };
    let (mut state, mut message) = Exchange::connect(key, hello, nonce()?);
    let until = until.min(Instant::now() + HANDSHAKE_MAX);
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
pub(super) fn accept(
    stream: &mut TcpStream,
    identity: Arc<Identity>,
    until: Instant,
) -> Result<NodeId, String> {
    let mut state = Exchange::accept(identity, nonce()?);
    let until = until.min(Instant::now() + HANDSHAKE_MAX);
    await_byte(stream, until.min(Instant::now() + FIRST_BYTE_MAX))?;
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

/// Sends a message to all of them at a time: one that does not take it keeps it from no other, and is disconnected.
pub(super) fn tell<'a>(
    streams: impl IntoIterator<Item = &'a TcpStream>,
    message: &Message,
    until: Instant,
) -> Result<(), String> {
    let body = encode(message);
    let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
    bytes.extend(body);
    let mut open: Vec<(&TcpStream, &[u8])> =
        streams.into_iter().map(|stream| (stream, &bytes[..])).collect();
    let mut broken = None;
    while !open.is_empty() {
        // Another thread reads from the same socket, and is to wait there.
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        open.retain_mut(|(stream, rest)| match rustix::net::send(*stream, rest, flags) {
            Ok(count) => {
                *rest = &rest[count..];
                !rest.is_empty()
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => true,
            Err(error) => {
                let error = io::Error::from(error);
                broken = Some(format!("the connection broke: {error}"));
                false
            }
        });
        let mut waits: Vec<PollFd<'_>> =
            open.iter().map(|(stream, _)| PollFd::new(*stream, PollFlags::OUT)).collect();
        if waits.is_empty() {
            break;
        }
        if let Err(late) = left(until).and_then(|left| wait_for(&mut waits, left)) {
            // Half a message has no end.
            open.iter().for_each(|(stream, _)| drop(stream.shutdown(Shutdown::Both)));
            return Err(late);
        }
    }
    broken.map_or(Ok(()), Err)
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

/// Waits until there is something to be read.
fn await_byte(stream: &TcpStream, until: Instant) -> Result<(), String> {
    let is_there = wait_for(&mut [PollFd::new(stream, PollFlags::IN)], left(until)?)?;
    if is_there { Ok(()) } else { Err("it has said nothing".into()) }
}

/// Whether something comes within `wait`.
fn wait_for(on: &mut [PollFd<'_>], wait: Duration) -> Result<bool, String> {
    let until = Instant::now() + wait;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout =
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(on, Some(&timeout)) {
            Ok(count) => return Ok(count > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(io::Error::from(error).to_string()),
        }
    }
}

/// The beginning of a text, if it is longer than `len_max` bytes, and that it was longer.
pub(super) fn short(text: &str, len_max: usize) -> String {
    if text.len() <= len_max {
        return text.to_string();
    }
    let end = (0..=len_max).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{} ... ({} more bytes)", &text[..end], text.len() - end)
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
/// Who dials says its first words at once; who is honest and slower comes again.
const FIRST_BYTE_MAX: Duration = Duration::from_secs(2);
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// How long a machine may be silent before its connections count as broken: several lost packets and their repetitions.
const SILENCE_MAX: Duration = Duration::from_secs(16);
/// As rresvport(3) and NFS choose them.
const ROOTS_PORTS: std::ops::Range<u16> = 665..1024;
const PORT_TRIES: usize = 8;
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
