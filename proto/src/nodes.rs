//! The nodes' list: how a person writes down a cluster. Servers and clients read the same text and agree on the map.
//!
//! ```text
//! 1@node-a:7000, 2@node-b:7000 weight=150     items stand between commas or on lines of their own
//! [fd00::7]:7000                              without an id: numbered from 1 in the order of the list
//! 3@node-c:7000 rdma=node-c-ib:7000           where it listens with RDMA, if not at the same address
//! shards=8192                                 # fixed at format; default: 1,024 per node, a power of two
//! chunk=1M
//! cluster=0123456789abcdef0123456789abcdef    # default: derived from the key and the list
//! ```
//!
//! 1. Either every node carries an id or none does: adding one must not renumber others unnoticed.
//! 2. What the list leaves open follows from the list alone, never from the machine that reads it.
//!
//! It reads no file: whoever is given `FILE|LIST` asks [`is_list`].

use crate::{Address, ClusterId, ClusterMap, Epoch, MapError, Node, NodeId, TransportKind, limits};

/// A parsed list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeList {
    /// The nodes, ascending by id.
    pub nodes: Vec<Node>,
    /// log2 of the number of shards.
    pub shards_log2: u8,
    /// Bytes per chunk of files in directories that say nothing else.
    pub chunk_size: u32,
    /// The cluster's id, if the list names it.
    pub cluster: Option<ClusterId>,
}

/// Weight of a node that names none: a node of half as much space again is 150.
pub const WEIGHT: u32 = 100;

/// Whether an argument `FILE|LIST` is a list: it has a port and no slash. A file whose name has a colon is written `./a:b`.
#[must_use]
pub fn is_list(argument: &str) -> bool {
    argument.contains(':') && !argument.contains('/')
}

/// Reads a list; the result has passed [`ClusterMap::check`]. Errors name the item.
pub fn parse(text: &str) -> Result<NodeList, MapError> {
    let (mut nodes, mut shards, mut chunk_size, mut cluster) =
        (Vec::new(), None, limits::CHUNK_SIZE, None);
    let items = text
        .lines()
        .flat_map(|line| line.split('#').next().unwrap_or_default().split(','))
        .map(str::trim)
        .filter(|item| !item.is_empty());
    for item in items {
        match item.split_once('=') {
            Some(("shards", value)) => shards = Some(shards_log2(value)?),
            Some(("chunk", value)) => {
                chunk_size =
                    bytes(value).and_then(|size| u32::try_from(size).ok()).ok_or_else(|| {
                        MapError(format!("`{item}`: write chunk=1M, a power of two from 64K to 1M"))
                    })?;
            }
            Some(("cluster", value)) => cluster = Some(cluster_id(value)?),
            _ => nodes.push(node(item)?),
        }
    }
    let nodes = numbered(nodes)?;
    let shards_log2 = shards.unwrap_or_else(|| shards_log2_default(nodes.len()));
    let list = NodeList { nodes, shards_log2, chunk_size, cluster };
    list.map(ClusterId::default()).check()?;
    Ok(list)
}

/// A number of bytes: digits and an optional K, M, G or T (powers of 1,024), as `100G`. `None` if it is none.
#[must_use]
pub fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let shift = match text.as_bytes().last()? {
        b'K' | b'k' => 10,
        b'M' | b'm' => 20,
        b'G' | b'g' => 30,
        b'T' | b't' => 40,
        _ => 0,
    };
    let digits = if shift == 0 { text } else { &text[..text.len() - 1] };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

impl NodeList {
    /// The first map of the cluster `cluster`.
    #[must_use]
    pub fn map(&self, cluster: ClusterId) -> ClusterMap {
        ClusterMap {
            cluster,
            epoch: Epoch(1),
            shards_log2: self.shards_log2,
            chunk_size: self.chunk_size,
            nodes: self.nodes.clone(),
        }
    }
}

/// 64 shards for each of 16 cores per node, within the limits: enough for any machine, and known without asking it.
fn shards_log2_default(nodes: usize) -> u8 {
    let wanted = (nodes as u32).saturating_mul(64 * 16).next_power_of_two();
    wanted.clamp(limits::SHARDS_MIN, limits::SHARDS_MAX).ilog2() as u8
}

fn shards_log2(value: &str) -> Result<u8, MapError> {
    let shards = bytes(value).filter(|shards| {
        shards.is_power_of_two()
            && (u64::from(limits::SHARDS_MIN)..=u64::from(limits::SHARDS_MAX)).contains(shards)
    });
    shards.map(|shards| shards.ilog2() as u8).ok_or_else(|| {
        MapError(format!("`shards={value}`: a power of two from 4096 to 65536 is possible"))
    })
}

fn cluster_id(value: &str) -> Result<ClusterId, MapError> {
    let bad = || MapError(format!("`cluster={value}`: an id is 32 hexadecimal digits"));
    let digits = value.trim().as_bytes();
    if digits.len() != 32 {
        return Err(bad());
    }
    let mut id = [0; 16];
    for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
        let nibble = |digit: u8| char::from(digit).to_digit(16).ok_or_else(bad);
        *byte = (nibble(pair[0])? * 16 + nibble(pair[1])?) as u8;
    }
    Ok(ClusterId(id))
}

/// One node; id 0 if it carries none.
fn node(item: &str) -> Result<Node, MapError> {
    let bad = |cause: &str| {
        MapError(format!("`{item}`: {cause}; write [ID@]HOST:PORT [weight=N] [rdma=HOST:PORT]"))
    };
    let mut words = item.split_whitespace();
    let first = words.next().unwrap_or_default();
    let (id, address) = match first.split_once('@') {
        None => (0, first),
        Some((id, address)) => {
            let id = id.parse::<u16>().ok().filter(|id| *id > 0);
            (id.ok_or_else(|| bad("the id is no number from 1 to 65535"))?, address)
        }
    };
    check_address(address).map_err(bad)?;
    let (mut weight, mut rdma) = (WEIGHT, address);
    for word in words {
        match word.split_once('=') {
            Some(("weight", value)) => {
                weight = value.parse().map_err(|_| bad("the weight is no number"))?;
            }
            Some(("rdma", value)) => {
                check_address(value).map_err(bad)?;
                rdma = value;
            }
            _ => return Err(bad("there is more than a node")),
        }
    }
    let addresses = [(TransportKind::Rdma, rdma), (TransportKind::Tcp, address)]
        .map(|(transport, text)| Address { transport, text: text.to_owned() });
    Ok(Node { id: NodeId(id), weight, addresses: addresses.into() })
}

fn check_address(address: &str) -> Result<(), &'static str> {
    let (host, port) = address.rsplit_once(':').ok_or("there is no port")?;
    if host.is_empty() {
        return Err("there is no host");
    }
    if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) {
        return Err("an IPv6 address stands in brackets, as [::1]:7000");
    }
    match port.parse::<u16>() {
        Ok(1..) => Ok(()),
        _ => Err("the port is no number from 1 to 65535"),
    }
}

/// The nodes ascending by id, numbered if they carried no ids.
fn numbered(mut nodes: Vec<Node>) -> Result<Vec<Node>, MapError> {
    let (with, without): (Vec<&Node>, Vec<&Node>) = nodes.iter().partition(|node| node.id.0 > 0);
    if let (Some(with), Some(without)) = (with.first(), without.first()) {
        return Err(MapError(format!(
            "node `{}` has an id and `{}` has none; write an id for all nodes or for none",
            tcp_address(with),
            tcp_address(without)
        )));
    }
    if with.is_empty() {
        (1..).zip(&mut nodes).for_each(|(id, node)| node.id = NodeId(id));
    }
    nodes.sort_by_key(|node| node.id);
    let mut addresses: Vec<(TransportKind, &str)> = nodes
        .iter()
        .flat_map(|node| &node.addresses)
        .map(|address| (address.transport, address.text.as_str()))
        .collect();
    addresses.sort_unstable();
    match addresses.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(MapError(format!("address {} belongs to two nodes", pair[0].1))),
        None => Ok(nodes),
    }
}

/// How the list names a node: where it listens with TCP.
#[must_use]
pub fn tcp_address(node: &Node) -> &str {
    node.address(TransportKind::Tcp).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_and_a_file_say_the_same() {
        let list = parse("a:7000,b:7000 weight=150").unwrap();
        let file = parse("# ours\n2@b:7000 weight=150 # large\n\n1@a:7000\n").unwrap();
        assert_eq!(list, file);
        assert_eq!(
            list.nodes.iter().map(|node| (node.id.0, node.weight)).collect::<Vec<_>>(),
            [(1, 100), (2, 150)]
        );
        assert_eq!((list.shards_log2, list.chunk_size, list.cluster), (12, 1 << 20, None));
    }

    #[test]
    fn settings_stand_among_the_nodes() {
        let list = parse("[::1]:1,shards=8192,chunk=64k,cluster=000102030405060708090a0b0c0d0eFF");
        let list = list.unwrap();
        assert_eq!((list.shards_log2, list.chunk_size), (13, 65_536));
        assert_eq!(list.cluster.unwrap().to_string(), "000102030405060708090a0b0c0d0eff");
        assert_eq!(list.nodes[0].address(TransportKind::Tcp), Some("[::1]:1"));
    }

    #[test]
    fn a_node_listens_with_rdma_where_it_does_with_tcp_unless_told_otherwise() {
        let list = parse("a:1, b:1 rdma=b-ib:2").unwrap();
        let addresses = |kind| list.nodes.iter().map(move |node| node.address(kind).unwrap());
        assert_eq!(addresses(TransportKind::Tcp).collect::<Vec<_>>(), ["a:1", "b:1"]);
        assert_eq!(addresses(TransportKind::Rdma).collect::<Vec<_>>(), ["a:1", "b-ib:2"]);
        assert_eq!(list.nodes[0].addresses[0].transport, TransportKind::Rdma, "best first");
    }

    #[test]
    fn more_nodes_mean_more_shards_within_the_limits() {
        let shards = [1, 4, 5, 9, 64, 1_024].map(shards_log2_default);
        assert_eq!(shards, [12, 12, 13, 14, 16, 16]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, part) in [
            ("", "0 nodes"),
            ("a", "there is no port"),
            (":7000", "there is no host"),
            ("a:0", "the port is no number"),
            ("a:70000", "the port is no number"),
            ("::1:7000", "brackets"),
            ("0@a:1", "the id is no number"),
            ("x@a:1", "the id is no number"),
            ("1@a:1,b:2", "for all nodes or for none"),
            ("1@a:1,1@b:2", "nodes 1 and 1"),
            ("a:1,a:1", "address a:1 belongs to two nodes"),
            ("a:1 weight=0", "weight 0"),
            ("a:1 weight=x", "the weight is no number"),
            ("a:1 fast", "more than a node"),
            ("a:1 rdma=b", "there is no port"),
            ("a:1 rdma=c:1,b:1 rdma=c:1", "address c:1 belongs to two nodes"),
            ("a:1,shards=5000", "power of two"),
            ("a:1,chunk=3M", "chunk size"),
            ("a:1,chunk=x", "chunk=1M"),
            ("a:1,cluster=12", "32 hexadecimal digits"),
            ("a:1,colour=red", "`colour=red`"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text:?} gives {error:?}");
        }
    }

    #[test]
    fn a_file_and_a_list_are_told_apart() {
        assert!(is_list("a:1") && is_list("1@[::1]:1,b:2"));
        assert!(!is_list("nodes") && !is_list("/etc/sealfs/nodes") && !is_list("./a:b"));
    }

    #[test]
    fn bytes_have_units() {
        let read = ["7", "4K", "2m", "1G", "3T", " 5 "].map(bytes);
        assert_eq!(read, [7, 4_096, 2 << 20, 1 << 30, 3 << 40, 5].map(Some));
        for bad in ["", "K", "-1", "1.5G", "1X", "99999999999999999999", "99999999T"] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
    }
}
