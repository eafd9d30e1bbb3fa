//! The handshake, without I/O: each state takes the peer's message and gives the next state and the answer.
//!
//! ```text
//! connecting                                  accepting
//! Greeted      -- 1 Greeting ------------->   Accepting     versions, nonce
//!              <------------ 2 Challenge --   Challenged    version, nonce
//! Introduced   -- 3 Introduction --------->   Proven        hello, proof
//!              <-------------- 4 Welcome --                 node, cluster, map, proof
//! ```
//! A proof is HMAC-SHA256 under the cluster's key over its sender's role and every message before it, and so over the
//! range of versions, the chosen one, the cluster, both ids, the map's hash and both nonces. Each message is the body of a
//! frame of kind `Handshake`. The greeting's layout is the same in every version of the protocol.
//!
//! 1. Before the connecting end has proven the key, it learns the version and a nonce, or that the key is wrong; nothing
//!    else. A refusal that tells more (which cluster, which node, which map) follows the proof only.
//! 2. The connecting end sends no request, and so no remote key, before it has checked the accepting end's proof.
//! 3. A recorded handshake is of no use: both ends bring a fresh nonce.
//! 4. Peers' bytes make an error, never a panic; texts from a peer are cut to 512 bytes.
//!
//! It does not encrypt and does not authenticate what follows: who can change packets on the way can take over a
//! connection. Nonces come in as arguments, from the kernel's generator.

mod exchange;

pub use exchange::{Exchange, Step};

use std::sync::Arc;

use sealfs_proto::{
    ClusterId, ClusterMap, Epoch, Header, HeaderKind, NodeId, decode, encode, limits,
};
use wincode::{SchemaRead, SchemaWrite};

use crate::key::Proof;
use crate::{CloseReason, Key, Peer};

/// 32 fresh random bytes.
pub type Nonce = [u8; 32];

/// Bytes of a handshake message that an end accepts before the peer has proven itself. [`Welcome`]s, which carry the map,
/// may have [`sealfs_proto::limits::BODY_LEN_MAX`].
pub const MESSAGE_LEN_MAX: u32 = 1_024;

/// Which map somebody has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct MapStamp {
    /// Its epoch.
    pub epoch: Epoch,
    /// What placement follows from, [`ClusterMap::placement_hash`].
    pub hash: u64,
}

impl MapStamp {
    /// The stamp of `map`.
    #[must_use]
    pub fn of(map: &ClusterMap) -> Self {
        Self { epoch: map.epoch, hash: map.placement_hash() }
    }
}

/// What a connecting end says of itself and of whom it wants to reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Hello {
    /// The cluster it wants; all zeros: whichever has its key.
    pub cluster: ClusterId,
    /// The node it wants; `None`: whichever listens there.
    pub node: Option<NodeId>,
    /// Who it is.
    pub peer: Peer,
    /// For a client: whether the node is to know the session already (false: a new one).
    pub resume: bool,
    /// The map it has; `None`: it has none and asks for it.
    pub map: Option<MapStamp>,
}

/// What an endpoint needs to prove itself, and to check those who connect to it.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The cluster's key.
    pub key: Key,
    /// The node that it serves; `None` for a client, which accepts nobody.
    pub serves: Option<Serves>,
}

/// Whom an accepting endpoint speaks for.
#[derive(Clone, Debug)]
pub struct Serves {
    /// The node.
    pub node: NodeId,
    /// Its map.
    pub map: Arc<ClusterMap>,
}

/// A finished handshake, as the connecting end sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The version to speak.
    pub version: u8,
    /// The node that answered.
    pub node: NodeId,
    /// Its map (checked), if it is not the one that the hello named.
    pub map: Option<Arc<ClusterMap>>,
}

/// A handshake that failed at the accepting end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// Why, for this end's log.
    pub why: CloseReason,
    /// What the peer is told before the connection is closed; `None`: nothing.
    pub answer: Option<Vec<u8>>,
}

/// A range of protocol versions, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
struct Versions {
    min: u8,
    max: u8,
}

impl Versions {
    const OURS: Self = Self { min: Header::VERSION_MIN, max: Header::VERSION };

    fn highest_common(self, other: Self) -> Option<u8> {
        let highest = self.max.min(other.max);
        (highest >= self.min.max(other.min)).then_some(highest)
    }
}

impl core::fmt::Display for Versions {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} to {}", self.min, self.max)
    }
}

/// Message 1. This layout is the same in every version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
struct Greeting {
    versions: Versions,
    nonce: Nonce,
}

/// Message 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
enum Challenge {
    Go { version: u8, nonce: Nonce },
    NoCommonVersion { versions: Versions },
}

/// Message 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
struct Introduction {
    hello: Hello,
    proof: Proof,
}

/// Message 4. `proof` is zero where the peer did not prove itself.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
struct Verdict {
    outcome: Outcome,
    proof: Proof,
}

#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
enum Outcome {
    Welcome { node: NodeId, cluster: ClusterId, stamp: MapStamp, map: Option<ClusterMap> },
    NoSession,
    Refused { why: String },
    WrongKey,
}

const CONNECTS: &[u8] = b"sealfs handshake: connecting";
const ACCEPTS: &[u8] = b"sealfs handshake: accepting";
const TEXT_LEN_MAX: usize = 512;

/// The bytes of the frame that carries a handshake message.
#[must_use]
pub fn frame(message: &[u8]) -> Vec<u8> {
    let mut bytes = Header::new(HeaderKind::Handshake, 0).to_bytes(message).to_vec();
    bytes.extend_from_slice(message);
    bytes
}

/// Whether `header` may begin a handshake message; `may_carry_map`: the one in which a map may come (message 4).
pub fn check_header(header: &Header, may_carry_map: bool) -> Result<(), CloseReason> {
    let longest = if may_carry_map { limits::BODY_LEN_MAX } else { MESSAGE_LEN_MAX };
    if header.kind != HeaderKind::Handshake || header.bulk_len != 0 || header.body_len > longest {
        return Err(CloseReason::Corrupt("not a handshake message".into()));
    }
    Ok(())
}

/// Whether a frame that begins with `header` may come after the handshake, which agreed on `version`; `accepted`: the peer
/// connected to this end, and so sends requests.
pub fn check_frame(header: &Header, accepted: bool, version: u8) -> Result<(), CloseReason> {
    let wrong = |what: &str| Err(CloseReason::Corrupt(format!("{what} is not allowed")));
    let is_request = match header.kind {
        HeaderKind::Request | HeaderKind::RequestForBulk => true,
        HeaderKind::Reply => false,
        HeaderKind::Handshake => return wrong("a handshake after the handshake"),
    };
    if is_request != accepted {
        return wrong("a frame of the wrong direction");
    }
    if header.version != version {
        return wrong("a frame of another version than was agreed on");
    }
    Ok(())
}

/// Connecting, message 1 sent.
#[derive(Debug)]
pub struct Greeted {
    key: Key,
    hello: Hello,
    greeting: Vec<u8>,
}

/// Connecting, message 3 sent.
#[derive(Debug)]
pub struct Introduced {
    key: Key,
    hello: Hello,
    version: u8,
    transcript: [Vec<u8>; 3],
}

impl Greeted {
    /// Begins a connection: the state, and message 1.
    #[must_use]
    pub fn new(key: &Key, hello: Hello, nonce: Nonce) -> (Self, Vec<u8>) {
        let greeting = encode(&Greeting { versions: Versions::OURS, nonce });
        (Self { key: key.clone(), hello, greeting: greeting.clone() }, greeting)
    }

    /// Takes message 2 and gives message 3.
    pub fn on_challenge(self, message: &[u8]) -> Result<(Introduced, Vec<u8>), CloseReason> {
        let version = match read("challenge", message)? {
            Challenge::Go { version, .. } => version,
            Challenge::NoCommonVersion { versions } => {
                return Err(CloseReason::Refused(format!(
                    "no common protocol version: the node speaks {versions}, this program {}; \
                     upgrade the older of the two",
                    Versions::OURS
                )));
            }
        };
        if !(Versions::OURS.min..=Versions::OURS.max).contains(&version) {
            return Err(CloseReason::Corrupt(format!("version {version} was not offered")));
        }
        let (hello, challenge) = (encode(&self.hello), message.to_vec());
        let proof = self.key.prove(CONNECTS, &[&self.greeting, &challenge, &hello]);
        let message = encode(&Introduction { hello: self.hello, proof });
        let transcript = [self.greeting, challenge, hello];
        Ok((Introduced { key: self.key, hello: self.hello, version, transcript }, message))
    }
}

impl Introduced {
    /// Takes message 4.
    pub fn on_verdict(self, message: &[u8]) -> Result<Welcome, CloseReason> {
        let Verdict { outcome, proof } = read("verdict", message)?;
        if outcome == Outcome::WrongKey {
            return Err(wrong_key("the node's"));
        }
        let [greeting, challenge, hello] = &self.transcript;
        let spoken = encode(&outcome);
        if !self.key.check(ACCEPTS, &[greeting, challenge, hello, &spoken], &proof) {
            return Err(wrong_key("the node's"));
        }
        match outcome {
            Outcome::Welcome { node, cluster, stamp, map } => {
                self.welcome(node, cluster, stamp, map)
            }
            Outcome::NoSession => Err(CloseReason::NoSession),
            Outcome::Refused { why } => Err(CloseReason::Refused(cut(&why))),
            Outcome::WrongKey => Err(wrong_key("the node's")),
        }
    }

    /// The accepting end is who it says; is it whom this end wants?
    fn welcome(
        self,
        node: NodeId,
        cluster: ClusterId,
        stamp: MapStamp,
        map: Option<ClusterMap>,
    ) -> Result<Welcome, CloseReason> {
        if self.hello.cluster != ANY_CLUSTER && self.hello.cluster != cluster {
            return Err(other_cluster(cluster, self.hello.cluster));
        }
        if let Some(wanted) = self.hello.node.filter(|&wanted| wanted != node) {
            return Err(other_node(node, wanted));
        }
        if let Some(map) = &map {
            map.check().map_err(|error| CloseReason::Corrupt(error.to_string()))?;
            if MapStamp::of(map) != stamp || map.cluster != cluster || map.node(node).is_none() {
                return Err(CloseReason::Corrupt("the map is not the one that was named".into()));
            }
        } else if self.hello.map != Some(stamp) {
            return Err(CloseReason::Corrupt("the node did not send its map".into()));
        }
        Ok(Welcome { version: self.version, node, map: map.map(Arc::new) })
    }
}

/// Accepting, nothing received.
#[derive(Debug)]
pub struct Accepting {
    identity: Arc<Identity>,
    nonce: Nonce,
}

/// Accepting, message 2 sent.
#[derive(Debug)]
pub struct Challenged {
    identity: Arc<Identity>,
    version: u8,
    greeting: Vec<u8>,
    challenge: Vec<u8>,
}

/// Accepting: the peer has the key and wants this node; whether it may enter is for the core to say.
#[derive(Debug)]
pub struct Proven {
    identity: Arc<Identity>,
    version: u8,
    hello: Hello,
    transcript: [Vec<u8>; 3],
}

impl Accepting {
    /// Waits for a peer. Panics if `identity` serves no node: an endpoint that accepts speaks for one.
    #[must_use]
    pub fn new(identity: Arc<Identity>, nonce: Nonce) -> Self {
        assert!(identity.serves.is_some(), "an endpoint that accepts speaks for a node");
        Self { identity, nonce }
    }

    /// Takes message 1 and gives message 2.
    pub fn on_greeting(self, message: &[u8]) -> Result<(Challenged, Vec<u8>), Failed> {
        let greeting: Greeting = read("greeting", message).map_err(Failed::silent)?;
        let Some(version) = Versions::OURS.highest_common(greeting.versions) else {
            let why = format!(
                "no common protocol version: the peer speaks {}, this node {}",
                greeting.versions,
                Versions::OURS
            );
            let answer = encode(&Challenge::NoCommonVersion { versions: Versions::OURS });
            return Err(Failed { why: CloseReason::Refused(why), answer: Some(answer) });
        };
        let challenge = encode(&Challenge::Go { version, nonce: self.nonce });
        let (greeting, answer) = (message.to_vec(), challenge.clone());
        Ok((Challenged { identity: self.identity, version, greeting, challenge }, answer))
    }
}

impl Challenged {
    /// Takes message 3.
    pub fn on_introduction(self, message: &[u8]) -> Result<Proven, Failed> {
        let Introduction { hello, proof } =
            read("introduction", message).map_err(Failed::silent)?;
        let spoken = encode(&hello);
        let parts: [&[u8]; 3] = [&self.greeting, &self.challenge, &spoken];
        if !self.identity.key.check(CONNECTS, &parts, &proof) {
            let answer = encode(&Verdict { outcome: Outcome::WrongKey, proof: [0; 32] });
            return Err(Failed { why: wrong_key("the peer's"), answer: Some(answer) });
        }
        let proven = Proven {
            identity: self.identity,
            version: self.version,
            hello,
            transcript: [self.greeting, self.challenge, spoken],
        };
        match proven.objection() {
            None => Ok(proven),
            Some(why) => {
                let answer = proven.refuse(&why);
                Err(Failed { why, answer: Some(answer) })
            }
        }
    }
}

impl Proven {
    /// What the peer said of itself.
    #[must_use]
    pub const fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Lets it in: the version to speak, and message 4.
    #[must_use]
    pub fn admit(self) -> (u8, Vec<u8>) {
        let Serves { node, map } = self.serves();
        let stamp = MapStamp::of(map);
        let sent = (self.hello.map != Some(stamp)).then(|| ClusterMap::clone(map));
        let outcome = Outcome::Welcome { node: *node, cluster: map.cluster, stamp, map: sent };
        (self.version, self.verdict(outcome))
    }

    /// Message 4 for a peer that may not enter.
    #[must_use]
    pub fn refuse(self, why: &CloseReason) -> Vec<u8> {
        self.verdict(match why {
            CloseReason::NoSession => Outcome::NoSession,
            other => Outcome::Refused { why: cut(&other.to_string()) },
        })
    }

    fn verdict(&self, outcome: Outcome) -> Vec<u8> {
        let [greeting, challenge, hello] = &self.transcript;
        let spoken = encode(&outcome);
        let proof = self.identity.key.prove(ACCEPTS, &[greeting, challenge, hello, &spoken]);
        encode(&Verdict { outcome, proof })
    }

    /// Why a peer that has the key may not enter all the same.
    fn objection(&self) -> Option<CloseReason> {
        let Serves { node, map } = self.serves();
        let hello = &self.hello;
        if hello.cluster != ANY_CLUSTER && hello.cluster != map.cluster {
            return Some(other_cluster(map.cluster, hello.cluster));
        }
        if let Some(wanted) = hello.node.filter(|wanted| wanted != node) {
            return Some(other_node(*node, wanted));
        }
        if let Peer::Node { node: peer, .. } = hello.peer {
            if peer == *node {
                return Some(CloseReason::Refused(format!(
                    "two servers say that they are node {peer}; give each its own --id and data directory"
                )));
            }
            if map.node(peer).is_none() {
                return Some(CloseReason::Refused(format!(
                    "node {peer} is not in node {node}'s map; start all nodes with the same --nodes"
                )));
            }
        }
        let (ours, theirs) = (MapStamp::of(map), hello.map?);
        // Another epoch is another list of addresses: whoever places everything alike is let in, and is sent our map.
        (ours.hash != theirs.hash).then(|| {
            CloseReason::Refused(format!(
                "the cluster maps differ in ids, weights, shards or chunk size: node {node} has epoch {} with hash \
                 {:016x}, the peer epoch {} with {:016x}; start all nodes with the same --nodes",
                ours.epoch, ours.hash, theirs.epoch, theirs.hash
            ))
        })
    }

    fn serves(&self) -> &Serves {
        self.identity.serves.as_ref().expect("Accepting::new has checked that it serves a node")
    }
}

impl Failed {
    const fn silent(why: CloseReason) -> Self {
        Self { why, answer: None }
    }
}

/// Stands for "any cluster" in a hello.
const ANY_CLUSTER: ClusterId = ClusterId([0; 16]);

fn read<'de, T>(what: &'static str, message: &'de [u8]) -> Result<T, CloseReason>
where
    T: SchemaRead<'de, wincode::config::DefaultConfig, Dst = T>,
{
    decode(what, message).map_err(|error| CloseReason::Corrupt(error.to_string()))
}

fn wrong_key(whose: &str) -> CloseReason {
    CloseReason::Refused(format!(
        "{whose} key is not this end's; give the same key file to all nodes and clients (--key)"
    ))
}

fn other_cluster(here: ClusterId, wanted: ClusterId) -> CloseReason {
    CloseReason::Refused(format!(
        "the node belongs to cluster {here}, not to {wanted}; check its address and --data"
    ))
}

fn other_node(here: NodeId, wanted: NodeId) -> CloseReason {
    CloseReason::Refused(format!(
        "node {here} answers where node {wanted} is expected; check the addresses in --nodes, --id and --data"
    ))
}

/// At most 512 bytes of a peer's text.
fn cut(text: &str) -> String {
    let end = (0..=TEXT_LEN_MAX.min(text.len())).rfind(|&end| text.is_char_boundary(end));
    text[..end.unwrap_or(0)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sealfs_proto::{Address, Node, SessionId, TransportKind};

    const KEY: [u8; 32] = [9; 32];

    fn map(epoch: u32) -> ClusterMap {
        let node = |id| Node { id: NodeId(id), weight: 1, addresses: vec![] };
        ClusterMap {
            cluster: ClusterId([3; 16]),
            epoch: Epoch(epoch),
            shards_log2: 12,
            chunk_size: 1 << 20,
            nodes: vec![node(1), node(2)],
        }
    }

    fn identity() -> Arc<Identity> {
        let serves = Serves { node: NodeId(2), map: Arc::new(map(5)) };
        Arc::new(Identity { key: Key::new(KEY), serves: Some(serves) })
    }

    fn client() -> Hello {
        Hello {
            cluster: ClusterId([3; 16]),
            node: Some(NodeId(2)),
            peer: Peer::Client { session: SessionId(7), endpoint: 0 },
            resume: false,
            map: Some(MapStamp::of(&map(5))),
        }
    }

    /// Messages 1 to 3, and the accepting end's view.
    fn meet(key: [u8; 32], hello: Hello) -> (Introduced, Result<Proven, Failed>) {
        let (greeted, one) = Greeted::new(&Key::new(key), hello, [1; 32]);
        let (challenged, two) = Accepting::new(identity(), [2; 32]).on_greeting(&one).unwrap();
        let (introduced, three) = greeted.on_challenge(&two).unwrap();
        (introduced, challenged.on_introduction(&three))
    }

    fn admitted(hello: Hello) -> Result<Welcome, CloseReason> {
        let (introduced, proven) = meet(KEY, hello);
        introduced.on_verdict(&proven.unwrap().admit().1)
    }

    /// The refusal as both ends see it.
    fn refused(key: [u8; 32], hello: Hello) -> [String; 2] {
        let (introduced, proven) = meet(key, hello);
        let failed = proven.unwrap_err();
        let told = introduced.on_verdict(&failed.answer.unwrap()).unwrap_err();
        assert!(matches!((&failed.why, &told), (CloseReason::Refused(_), CloseReason::Refused(_))));
        [failed.why.to_string(), told.to_string()]
    }

    #[test]
    fn who_has_the_key_is_admitted() {
        let welcome = admitted(client()).unwrap();
        assert_eq!((welcome.version, welcome.node, welcome.map), (1, NodeId(2), None));
    }

    #[test]
    fn who_knows_only_the_key_gets_the_map() {
        let hello = Hello { cluster: ClusterId::default(), node: None, map: None, ..client() };
        assert_eq!(*admitted(hello).unwrap().map.unwrap(), map(5));
    }

    #[test]
    fn a_client_with_an_older_map_gets_the_present_one() {
        let hello = Hello { map: Some(MapStamp::of(&map(4))), ..client() };
        assert_eq!(*admitted(hello).unwrap().map.unwrap(), map(5));
    }

    #[test]
    fn a_wrong_key_is_refused_and_learns_nothing_else() {
        for text in refused([8; 32], client()) {
            assert!(text.contains("key"), "{text}");
            assert!(!text.contains("0303") && !text.contains("node 2"), "{text}");
        }
    }

    #[test]
    fn a_node_without_the_key_is_not_believed() {
        let (introduced, _) = meet(KEY, client());
        let (_, proven) = meet(KEY, client());
        let mut forged: Verdict = decode("verdict", &proven.unwrap().admit().1).unwrap();
        forged.proof[0] ^= 1;
        assert!(introduced.on_verdict(&encode(&forged)).unwrap_err().to_string().contains("key"));
    }

    #[test]
    fn another_cluster_or_node_is_refused_by_name() {
        let hello = Hello { cluster: ClusterId([4; 16]), ..client() };
        assert!(
            refused(KEY, hello).iter().all(|text| text.contains("0303") && text.contains("0404"))
        );
        let hello = Hello { node: Some(NodeId(1)), ..client() };
        assert!(
            refused(KEY, hello).iter().all(|text| text.contains("node 2 answers where node 1"))
        );
    }

    #[test]
    fn whoever_places_otherwise_is_refused_and_whoever_has_other_addresses_is_not() {
        let node = Peer::Node { node: NodeId(1), endpoint: 0 };
        let mut other = map(6);
        other.nodes[0].weight = 2;
        for peer in [node, client().peer] {
            let hello = Hello { peer, map: Some(MapStamp::of(&other)), ..client() };
            assert!(refused(KEY, hello)[1].contains("epoch 5"));
            let mut moved = map(6);
            moved.nodes[0].addresses =
                vec![Address { transport: TransportKind::Tcp, text: "a:1".into() }];
            let hello = Hello { peer, map: Some(MapStamp::of(&moved)), ..client() };
            assert_eq!(*admitted(hello).unwrap().map.unwrap(), map(5), "it learns which is older");
        }
        let hello = Hello { peer: Peer::Node { node: NodeId(2), endpoint: 0 }, ..client() };
        assert!(refused(KEY, hello)[1].contains("two servers"));
        let hello = Hello { peer: Peer::Node { node: NodeId(9), endpoint: 0 }, ..client() };
        assert!(refused(KEY, hello)[1].contains("not in node 2's map"));
        let hello = Hello { peer: node, ..client() };
        assert!(admitted(hello).is_ok());
    }

    #[test]
    fn an_ended_session_is_told_apart_and_cannot_be_forged() {
        let (introduced, proven) = meet(KEY, client());
        let message = proven.unwrap().refuse(&CloseReason::NoSession);
        assert_eq!(introduced.on_verdict(&message), Err(CloseReason::NoSession));
        let forged = encode(&Verdict { outcome: Outcome::NoSession, proof: [0; 32] });
        let (introduced, _) = meet(KEY, client());
        assert!(matches!(introduced.on_verdict(&forged), Err(CloseReason::Refused(_))));
    }

    #[test]
    fn a_recorded_handshake_is_refused() {
        let (greeted, one) = Greeted::new(&Key::new(KEY), client(), [1; 32]);
        let (_, two) = Accepting::new(identity(), [2; 32]).on_greeting(&one).unwrap();
        let (_, three) = greeted.on_challenge(&two).unwrap();
        let (challenged, _) = Accepting::new(identity(), [5; 32]).on_greeting(&one).unwrap();
        assert!(challenged.on_introduction(&three).unwrap_err().why.to_string().contains("key"));
    }

    #[test]
    fn versions_without_overlap_are_named() {
        let greeting = Greeting { versions: Versions { min: 7, max: 9 }, nonce: [1; 32] };
        let failed =
            Accepting::new(identity(), [2; 32]).on_greeting(&encode(&greeting)).unwrap_err();
        assert!(failed.why.to_string().contains("7 to 9"));
        let (greeted, _) = Greeted::new(&Key::new(KEY), client(), [1; 32]);
        let told = greeted.on_challenge(&failed.answer.unwrap()).unwrap_err();
        assert!(told.to_string().contains("1 to 1"));
        let wide = Versions { min: 0, max: 200 };
        assert_eq!(Versions::OURS.highest_common(wide), Some(Versions::OURS.max));
    }

    #[test]
    fn every_flipped_bit_of_the_introduction_is_refused() {
        let (greeted, one) = Greeted::new(&Key::new(KEY), client(), [1; 32]);
        let (_, two) = Accepting::new(identity(), [2; 32]).on_greeting(&one).unwrap();
        let (_, three) = greeted.on_challenge(&two).unwrap();
        for bit in 0..three.len() * 8 {
            let mut bytes = three.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let (challenged, _) = Accepting::new(identity(), [2; 32]).on_greeting(&one).unwrap();
            assert!(challenged.on_introduction(&bytes).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn garbage_is_an_error() {
        assert!(Accepting::new(identity(), [2; 32]).on_greeting(&[0; 9]).is_err());
        let (greeted, _) = Greeted::new(&Key::new(KEY), client(), [1; 32]);
        assert!(greeted.on_challenge(&[255; 40]).is_err());
        let (introduced, _) = meet(KEY, client());
        assert!(introduced.on_verdict(&[1; 100]).is_err());
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let text = "ä".repeat(400);
        assert_eq!(cut(&text).len(), 512);
        assert_eq!(cut(&format!("x{text}")).len(), 511);
    }
}
