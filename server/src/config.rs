//! What `sealfs serve` is told: settings from flags and a TOML file, and the checked configuration they make.
//!
//! [`Settings`] holds words as a person wrote them; [`Settings::resolve`] turns them into a [`Config`], reading the nodes
//! file and the key file on the way. Every refusal names the setting, the cause and the next step.

use std::fs;
use std::path::{Path, PathBuf};

use sealfs_net::{Choice, FileError, read_key, read_nodes};
use sealfs_proto::nodes::{self, NodeList};
use sealfs_proto::{NodeId, TransportKind, limits};
use sealfs_ring::Poll;
use sealfs_server_core::Durability;
use sealfs_transport::Key;
use serde::Deserialize;

/// What a person says, on the command line or in a file; nothing is required and nothing is checked yet. Field names are
/// the flags' names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// Data directory, or block device.
    pub data: Option<PathBuf>,
    /// `ADDR:PORT` to listen on; port 0 takes a free one. Default: this node's address in the list.
    pub listen: Option<String>,
    /// The nodes: a list, or the path of a file that holds one, see [`sealfs_proto::nodes`].
    pub nodes: Option<String>,
    /// This node's id; else the node of the list whose address is `listen`.
    pub id: Option<u16>,
    /// Processors to pin a thread to, one each: `0-3`, `0,2,4`. Default: up to four threads, not pinned.
    pub cores: Option<String>,
    /// `tcp`, `rdma`, or `auto` (default) for both where there is RDMA.
    pub transport: Option<String>,
    /// The RDMA device. Default: whichever the route to a peer goes through.
    pub rdma_device: Option<String>,
    /// `adaptive` (default), `spin` or `sleep`: what threads do while they wait.
    pub poll: Option<String>,
    /// Path of the key file.
    pub key: Option<PathBuf>,
    /// `process` (default), `power` or `scratch`.
    pub durability: Option<String>,
    /// Bytes of the volume, at format: `100G`. Default: half of what is free, or the rest of a device.
    pub size: Option<String>,
    /// Bytes of buffers per core: `128M`.
    pub memory: Option<String>,
    /// The one user, beside root, whose programs are served. Default: everybody's.
    pub only_uid: Option<u32>,
    /// Seconds after which a silent client's session ends.
    pub lease: Option<u64>,
    /// Accepts a data directory or device that is a copy, whose original is gone for good.
    pub adopt: Option<bool>,
    /// `ADDR:PORT` where the node's metrics can be scraped; the program that runs the node offers them.
    pub metrics: Option<String>,
    /// What is logged, as `--log`.
    pub log: Option<String>,
}

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Data directory, or block device.
    pub data: PathBuf,
    /// Where to listen, `host:port`.
    pub listen: String,
    /// Which transports it listens with, and reaches other nodes with.
    pub transport: Choice,
    /// The RDMA device; `None`: whichever the route goes through.
    pub rdma_device: Option<String>,
    /// What threads do while they wait.
    pub poll: Poll,
    /// Where to listen with RDMA, `host:port`.
    pub rdma_listen: String,
    /// This node.
    pub id: NodeId,
    /// All nodes; `id` is one of them.
    pub nodes: NodeList,
    /// The cluster's shared key.
    pub key: Key,
    /// One thread each; the processor to pin it to, or `None`: not pinned. Never empty.
    pub cores: Vec<Option<usize>>,
    /// When a change counts as kept.
    pub durability: Durability,
    /// Bytes of the volume at format; `None`: half of what is free, or the rest of a device.
    pub volume_len: Option<u64>,
    /// Bytes of buffers per core.
    pub memory: usize,
    /// The one user, beside root, whose programs are served; `None`: everybody's.
    pub only_uid: Option<u32>,
    /// A session that has sent nothing for so long has ended, milliseconds.
    pub lease_ms: u64,
    /// Accepts a data directory or device that is a copy.
    pub adopt: bool,
}

/// Settings that make no configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

impl From<FileError> for ConfigError {
    fn from(error: FileError) -> Self {
        Self(error.to_string())
    }
}

impl Settings {
    /// Reads a TOML file. An unknown field is refused, naming it and those that exist.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let text = read_text("configuration file", path, "give --config an existing file")?;
        toml::from_str(&text).map_err(|error| {
            ConfigError(format!("configuration file {}: {}", path.display(), error))
        })
    }

    /// These settings where they say something, else those of `below` (flags over a file).
    #[must_use]
    pub fn over(self, below: Self) -> Self {
        Self {
            data: self.data.or(below.data),
            listen: self.listen.or(below.listen),
            nodes: self.nodes.or(below.nodes),
            id: self.id.or(below.id),
            cores: self.cores.or(below.cores),
            transport: self.transport.or(below.transport),
            rdma_device: self.rdma_device.or(below.rdma_device),
            poll: self.poll.or(below.poll),
            key: self.key.or(below.key),
            durability: self.durability.or(below.durability),
            size: self.size.or(below.size),
            memory: self.memory.or(below.memory),
            only_uid: self.only_uid.or(below.only_uid),
            lease: self.lease.or(below.lease),
            adopt: self.adopt.or(below.adopt),
            metrics: self.metrics.or(below.metrics),
            log: self.log.or(below.log),
        }
    }

    /// Checks everything, reads the nodes file and the key file, and finds the node's own id.
    pub fn resolve(self) -> Result<Config, ConfigError> {
        let data = required(self.data, "data", "DIR|DEVICE, where this node keeps its data")?;
        let nodes = required(self.nodes, "nodes", "FILE|LIST, all nodes of the cluster")?;
        let key = required(self.key, "key", "FILE, the key that the cluster's machines share")?;
        let nodes = read_nodes(&nodes)?;
        let (id, listen) = own_place(&nodes, self.id, self.listen)?;
        let transport = self.transport.as_deref().unwrap_or("auto").parse::<Choice>();
        let transport = transport.map_err(|error| ConfigError(error.to_string()))?;
        let poll = self.poll.as_deref().unwrap_or("adaptive").parse::<Poll>();
        let rdma_listen = rdma_listen(&nodes, id, &listen);
        let volume_len = self.size.map(|size| volume_len(&size)).transpose()?;
        let memory = self.memory.map_or(Ok(MEMORY), |memory| {
            let memory = nodes::bytes(&memory).and_then(|memory| usize::try_from(memory).ok());
            memory.filter(|memory| *memory >= MEMORY_MIN).ok_or_else(|| {
                ConfigError("memory: write at least 16M, as --memory 128M (per core)".into())
            })
        })?;
        let lease_ms = match self.lease {
            None => limits::LEASE_MS,
            Some(lease) if lease.saturating_mul(1_000) < limits::LEASE_MS_MIN => {
                return Err(ConfigError(format!(
                    "lease: {lease} s are too few: write at least {}, so that clients whose operations wait for a node keep \
                     their locks",
                    limits::LEASE_MS_MIN / 1_000
                )));
            }
            Some(lease) => lease.saturating_mul(1_000),
        };
        Ok(Config {
            data,
            listen,
            transport,
            rdma_device: self.rdma_device,
            poll: poll.map_err(ConfigError)?,
            rdma_listen,
            id,
            nodes,
            key: read_key(&key)?,
            cores: self.cores.map_or_else(|| Ok(cores_default()), |cores| parse_cores(&cores))?,
            durability: parse_durability(self.durability.as_deref())?,
            volume_len,
            memory,
            only_uid: self.only_uid,
            lease_ms,
            adopt: self.adopt.unwrap_or(false),
        })
    }
}

fn required<T>(value: Option<T>, name: &str, what: &str) -> Result<T, ConfigError> {
    value.ok_or_else(|| {
        ConfigError(format!(
            "{name}: not given; add --{name} {what} (or `{name} = ...` in the configuration file)"
        ))
    })
}

fn read_text(what: &str, path: &Path, next: &str) -> Result<String, ConfigError> {
    fs::read_to_string(path).map_err(|error| {
        ConfigError(format!("cannot read {what} {}: {error}; {next}", path.display()))
    })
}

/// Which node this is, and where it listens.
fn own_place(
    list: &NodeList,
    id: Option<u16>,
    listen: Option<String>,
) -> Result<(NodeId, String), ConfigError> {
    let known = || {
        let known: Vec<String> = list
            .nodes
            .iter()
            .take(8)
            .map(|node| format!("{}@{}", node.id, nodes::tcp_address(node)))
            .collect();
        known.join(", ")
    };
    let node = match (id, &listen) {
        (Some(id), _) => list.nodes.iter().find(|node| node.id.0 == id).ok_or_else(|| {
            ConfigError(format!("id {id}: no such node in the list ({})", known()))
        })?,
        (None, None) => {
            return required(None, "id", "N, which of the nodes this is (or --listen its address)");
        }
        (None, Some(listen)) => {
            let found = list.nodes.iter().find(|node| nodes::tcp_address(node) == listen);
            found.ok_or_else(|| {
                ConfigError(format!(
                    "listen {listen}: this address is none of the nodes' ({}); add --id N to say which node this is",
                    known()
                ))
            })?
        }
    };
    Ok((node.id, listen.unwrap_or_else(|| nodes::tcp_address(node).to_owned())))
}

/// The list's RDMA address if it names one of its own, else where it listens with TCP.
fn rdma_listen(list: &NodeList, id: NodeId, listen: &str) -> String {
    let node = list.nodes.iter().find(|node| node.id == id);
    let named = node.and_then(|node| node.address(TransportKind::Rdma));
    let own = named.filter(|named| node.map(nodes::tcp_address) != Some(*named));
    own.unwrap_or(listen).to_owned()
}

fn parse_durability(name: Option<&str>) -> Result<Durability, ConfigError> {
    match name {
        None | Some("process") => Ok(Durability::Process),
        Some("power") => Ok(Durability::Power),
        Some("scratch") => Ok(Durability::Scratch),
        Some(name) => Err(ConfigError(format!(
            "durability {name}: unknown; use --durability process, power or scratch"
        ))),
    }
}

fn volume_len(size: &str) -> Result<u64, ConfigError> {
    nodes::bytes(size)
        .filter(|len| *len >= VOLUME_LEN_MIN)
        .ok_or_else(|| ConfigError(format!("size {size}: write at least 256M, as --size 100G")))
}

/// `0-3`, `0,2,4-6`: processors that exist, each once.
fn parse_cores(text: &str) -> Result<Vec<Option<usize>>, ConfigError> {
    let wrong = |cause: &str| {
        ConfigError(format!(
            "cores {text}: {cause}; write processors as --cores 0-3 or --cores 0,2"
        ))
    };
    let number =
        |text: &str| text.trim().parse::<u16>().map_err(|_| wrong("not a list of numbers"));
    let mut cores: Vec<usize> = Vec::new();
    for item in text.split(',') {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(wrong("a range goes upwards"));
        }
        cores.extend((first..=last).map(usize::from));
    }
    let usable: Vec<usize> =
        core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect();
    if let Some(core) = cores.iter().find(|core| !usable.contains(core)) {
        return Err(wrong(&format!(
            "this process may not use processor {core}, only {}",
            usable.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
        )));
    }
    let mut once = cores.clone();
    once.sort_unstable();
    once.dedup();
    if once.len() != cores.len() {
        return Err(wrong("a processor is named twice"));
    }
    Ok(cores.into_iter().map(Some).collect())
}

fn cores_default() -> Vec<Option<usize>> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from).min(CORES_DEFAULT_MAX);
    vec![None; cores]
}

/// 128 requests of 1 MiB in flight per core.
const MEMORY: usize = 128 << 20;
/// A core must be able to hold a few requests of 1 MiB.
const MEMORY_MIN: usize = 16 << 20;
/// The reserve takes 64 MiB, and every core must get a group to write to.
const VOLUME_LEN_MIN: u64 = 256 << 20;
/// A machine that runs jobs beside the node should keep most of its processors.
const CORES_DEFAULT_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn write_key(dir: &Path, bytes: &[u8], mode: u32) -> PathBuf {
        let path = dir.join("key");
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn usual(dir: &Path) -> Settings {
        Settings {
            data: Some(dir.join("data")),
            listen: Some("127.0.0.1:7002".into()),
            nodes: Some("127.0.0.1:7001,127.0.0.1:7002".into()),
            key: Some(write_key(dir, &[b'7'; 64], 0o600)),
            ..Settings::default()
        }
    }

    #[test]
    fn a_node_finds_itself_by_its_address_or_id() {
        let dir = tempfile::tempdir().unwrap();
        let config = usual(dir.path()).resolve().unwrap();
        assert_eq!((config.id, config.listen.as_str()), (NodeId(2), "127.0.0.1:7002"));
        let by_id = Settings { id: Some(1), listen: None, ..usual(dir.path()) }.resolve().unwrap();
        assert_eq!((by_id.id, by_id.listen.as_str()), (NodeId(1), "127.0.0.1:7001"));
        let both = Settings { id: Some(1), ..usual(dir.path()) }.resolve().unwrap();
        assert_eq!((both.id, both.listen.as_str()), (NodeId(1), "127.0.0.1:7002"));
    }

    #[test]
    fn nodes_may_stand_in_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nodes");
        fs::write(&path, "# two\n127.0.0.1:7001\n127.0.0.1:7002\n").unwrap();
        let settings = usual(dir.path());
        let file = Settings { nodes: Some(path.display().to_string()), ..settings.clone() };
        assert_eq!(file.resolve().unwrap().nodes, settings.resolve().unwrap().nodes);
    }

    #[test]
    fn a_file_gives_what_flags_leave_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sealfs.toml");
        fs::write(&path, "id = 3\ndurability = \"power\"\nsize = \"1G\"\n").unwrap();
        let flags = Settings { id: Some(1), ..Settings::default() };
        let settings = flags.over(Settings::from_file(&path).unwrap());
        assert_eq!((settings.id, settings.size.as_deref()), (Some(1), Some("1G")));
        assert_eq!(settings.durability.as_deref(), Some("power"));
    }

    #[test]
    fn any_file_is_settings_or_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sealfs.toml");
        let text = b"id = 3\nnodes = \"a:1\"\nsize = '1G'\nlease = 9\nadopt = true # x\n";
        for at in 0..text.len() {
            for byte in [0, b'\n', b'"', b'[', b'{', b'.', b'=', b'-', b'9', 0x80, 0xff] {
                let mut text = text.to_vec();
                text[at] = byte;
                fs::write(&path, &text).unwrap();
                match Settings::from_file(&path) {
                    Ok(settings) => {
                        let _ = settings.over(usual(dir.path())).resolve();
                    }
                    Err(error) => assert!(error.to_string().contains("sealfs.toml"), "{error}"),
                }
            }
        }
    }

    #[test]
    fn an_unknown_field_is_named_with_the_file_and_the_fields_that_exist() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sealfs.toml");
        fs::write(&path, "colour = \"red\"\n").unwrap();
        let error = Settings::from_file(&path).unwrap_err().to_string();
        for part in ["sealfs.toml", "unknown field `colour`", "`durability`", "`listen`"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn every_refusal_names_setting_cause_and_next_step() {
        let dir = tempfile::tempdir().unwrap();
        let base = usual(dir.path());
        let with = |change: fn(&mut Settings)| {
            let mut settings = base.clone();
            change(&mut settings);
            settings.resolve().unwrap_err().to_string()
        };
        for (error, parts) in [
            (with(|s| s.data = None), ["data: not given", "--data DIR"]),
            (with(|s| s.nodes = None), ["nodes: not given", "--nodes FILE|LIST"]),
            (with(|s| s.key = None), ["key: not given", "--key FILE"]),
            (with(|s| s.nodes = Some("a:7000,b".into())), ["nodes `a:7000,b`", "no port"]),
            (with(|s| s.nodes = Some("/none/nodes".into())), ["/none/nodes", "existing file"]),
            (with(|s| s.key = Some("/none/key".into())), ["/none/key", "sealfs key"]),
            (with(|s| s.listen = Some("c:1".into())), ["2@127.0.0.1:7002", "--id N"]),
            (with(|s| s.listen = None), ["id: not given", "--id N"]),
            (with(|s| s.id = Some(9)), ["id 9: no such node", "1@127.0.0.1:7001"]),
            (with(|s| s.transport = Some("x".into())), ["transport x", "use rdma, tcp or auto"]),
            (with(|s| s.durability = Some("x".into())), ["durability x", "process, power"]),
            (with(|s| s.poll = Some("x".into())), ["poll x", "use spin, adaptive or sleep"]),
            (with(|s| s.size = Some("1K".into())), ["size 1K", "at least 256M"]),
            (with(|s| s.memory = Some("x".into())), ["memory", "at least 16M"]),
            (with(|s| s.lease = Some(89)), ["lease", "at least 90"]),
            (with(|s| s.cores = Some("x".into())), ["cores x", "--cores 0-3"]),
            (with(|s| s.cores = Some("3-1".into())), ["upwards", "--cores 0-3"]),
            (with(|s| s.cores = Some("60000".into())), ["may not use processor 60000", "only 0"]),
            (with(|s| s.cores = Some("0,0".into())), ["named twice", "--cores 0-3"]),
        ] {
            parts.iter().for_each(|part| assert!(error.contains(part), "{part}: {error}"));
        }
    }

    #[test]
    fn cores_are_a_list_of_ranges() {
        assert_eq!(parse_cores("0").unwrap(), [Some(0)]);
        assert!(!cores_default().is_empty());
    }
}
