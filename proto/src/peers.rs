//! What an end of a connection says of it: who is there, by which way, and what was moved. For `sealfs status`.
//!
//! 1. A page of [`PeerFigures`] fits into a frame and into an extended attribute, whatever peers and devices are called:
//!    texts are cut ([`PeerFigures::cut_texts`]), and a page has at most [`limits::PEERS_PAGE`] of them.

use wincode::{SchemaRead, SchemaWrite};

use crate::{NodeId, SessionId, TransportKind, limits};

/// Who is at the other end, as the handshake has proven.
#[allow(missing_docs, reason = "the variant's text describes its fields")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, SchemaRead, SchemaWrite)]
pub enum Peer {
    /// A client's thread: its session with this node and which of its endpoints.
    Client { session: SessionId, endpoint: u16 },
    /// A thread (`endpoint`) of another node of the cluster.
    Node { node: NodeId, endpoint: u16 },
}

/// What was moved, as one end counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Traffic {
    /// Frames that have left.
    pub frames_sent: u64,
    /// Frames that have come.
    pub frames_received: u64,
    /// Bytes that have left in frames: headers, bodies, and payload that follows them in the stream.
    pub bytes_sent: u64,
    /// Bytes that have come in frames.
    pub bytes_received: u64,
    /// Payload out of this end's memory by RDMA, whichever end has begun it.
    pub rdma_sent: u64,
    /// Payload into this end's memory by RDMA, whichever end has begun it.
    pub rdma_received: u64,
}

impl Traffic {
    /// Adds what another connection has moved.
    pub const fn add(&mut self, more: &Self) {
        self.frames_sent += more.frames_sent;
        self.frames_received += more.frames_received;
        self.bytes_sent += more.bytes_sent;
        self.bytes_received += more.bytes_received;
        self.rdma_sent += more.rdma_sent;
        self.rdma_received += more.rdma_received;
    }
}

/// The way of an RDMA connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct RdmaPath {
    /// The device's name.
    pub device: String,
    /// Its port.
    pub port: u8,
    /// Index of this end's GID.
    pub gid_index: u8,
    /// What kind that is: "RoCE v2", "IB/RoCE v1".
    pub gid_kind: String,
    /// Bytes of a packet's payload.
    pub mtu: u32,
    /// Work requests in flight at most.
    pub send_depth: u32,
    /// Receive buffers for this connection.
    pub receive_depth: u32,
}

/// The way of a connection.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Path {
    /// With what.
    pub transport: TransportKind,
    /// What may be sent at this moment: messages with RDMA, calls with TCP.
    pub credits: u32,
    /// What may be sent when nothing is under way.
    pub credits_max: u32,
    /// Of an RDMA connection.
    pub rdma: Option<RdmaPath>,
}

/// A peer, over all connections to it since this end has begun to count.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct PeerFigures {
    /// Who.
    pub peer: Peer,
    /// Whether the peer has begun the connections, or this end.
    pub accepted: bool,
    /// Its address, as the transport names it.
    pub address: String,
    /// By which way; `None`: not connected.
    pub path: Option<Path>,
    /// Connections so far.
    pub connections: u64,
    /// Connections that could not be made or have ended by an error.
    pub failures: u64,
    /// Calls that were sent again: the peer was busy, or the connection was lost.
    pub resent: u64,
    /// Calls that are not answered.
    pub in_flight: u64,
    /// What was moved.
    pub traffic: Traffic,
    /// Why the last connection has ended or could not be made; empty while there is one.
    pub last_error: String,
}

impl PeerFigures {
    /// Connections after the first one.
    #[must_use]
    pub const fn reconnects(&self) -> u64 {
        self.connections.saturating_sub(1)
    }

    /// Cuts its texts, see invariant 1.
    pub fn cut_texts(&mut self) {
        cut(&mut self.address, TEXT_LEN_MAX);
        cut(&mut self.last_error, ERROR_LEN_MAX);
        if let Some(rdma) = self.path.as_mut().and_then(|path| path.rdma.as_mut()) {
            cut(&mut rdma.device, TEXT_LEN_MAX);
            cut(&mut rdma.gid_kind, TEXT_LEN_MAX);
        }
    }
}

fn cut(text: &mut String, len_max: usize) {
    let mut end = len_max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}

/// An address: a host name of a nodes' list may be longer than that, but seldom is. IB_DEVICE_NAME_MAX is 64.
const TEXT_LEN_MAX: usize = 64;
/// An error's text: the cause comes first, behind the peer's address.
const ERROR_LEN_MAX: usize = 320;
/// All texts, and less than 200 bytes of numbers.
const FIGURES_LEN_MAX: usize = 3 * TEXT_LEN_MAX + ERROR_LEN_MAX + 256;
const _: () = assert!(limits::PEERS_PAGE * FIGURES_LEN_MAX < limits::XATTR_VALUE_LEN_MAX);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Reply, encode};

    #[test]
    fn a_page_of_the_longest_figures_fits_into_an_extended_attribute() {
        let long = "é".repeat(1_000);
        let rdma = RdmaPath { device: long.clone(), gid_kind: long.clone(), ..RdmaPath::default() };
        let path =
            Path { transport: TransportKind::Rdma, credits: 1, credits_max: 32, rdma: Some(rdma) };
        let mut figures = PeerFigures {
            peer: Peer::Client { session: SessionId(1), endpoint: 2 },
            accepted: true,
            address: long.clone(),
            path: Some(path),
            connections: 1,
            failures: 0,
            resent: 0,
            in_flight: 0,
            traffic: Traffic::default(),
            last_error: long,
        };
        figures.cut_texts();
        assert!(figures.last_error.len() <= ERROR_LEN_MAX && figures.address.ends_with('é'));
        let peers = vec![figures; limits::PEERS_PAGE];
        let page = encode(&Reply::Peers { peers, left: u32::MAX });
        assert!(page.len() <= limits::XATTR_VALUE_LEN_MAX, "{} bytes", page.len());
    }
}
