//! A node as its clients see it: real files, real sockets, one process.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use sealfs_proto::{
    Address, Errno, Ino, New, NodeId, Reply, Request, ShardId, TransportKind, Who, limits, nodes,
};
use sealfs_ring::{Owner, Poll as Waiting, Pool, Ring, now};
use sealfs_server::{Choice, Config, Fatal, Server, StartError};
use sealfs_server_core::Durability;
use sealfs_tcp::Tcp;
use sealfs_transport::{
    Answer, Arena, Ask, Bulk, CallError, Calls, Identity, Key, Me, Options, Slice,
};

const NODE: NodeId = NodeId(1);
const KEY: [u8; 32] = [5; 32];

fn config(data: &Path, cores: usize) -> Config {
    Config {
        data: data.to_owned(),
        listen: "127.0.0.1:0".into(),
        transport: Choice::Tcp,
        rdma_device: None,
        rdma_listen: String::new(),
        poll: Waiting::default(),
        id: NODE,
        nodes: nodes::parse("127.0.0.1:7000").unwrap(),
        key: Key::new(KEY),
        cores: vec![None; cores],
        durability: Durability::Process,
        volume_len: Some(256 << 20),
        memory: 16 << 20,
        only_uid: None,
        lease_ms: limits::LEASE_MS,
        adopt: false,
    }
}

fn stop(server: Server) -> Result<(), Fatal> {
    server.stopper().stop();
    server.wait()
}

fn refusal(config: Config) -> String {
    let refused: Result<Server, StartError> = Server::start(config);
    refused.unwrap_err().to_string()
}

/// One endpoint of a client.
struct Client {
    ring: Ring,
    tcp: Tcp,
    calls: Calls,
    pool: Pool,
}

impl Client {
    fn new(server: &Server, key: [u8; 32], session_seed: u64) -> Self {
        let ring = Ring::new(sealfs_ring::Config::default()).unwrap();
        let identity = Identity { key: Key::new(key), serves: None };
        let tcp = Tcp::new(&ring, sealfs_tcp::Config::new(identity.into()));
        let me = Me::Client { endpoint: 0, session_seed };
        let options = Options { timeout_ms: 10_000, ..Options::default() };
        let calls = Calls::new(Box::new(tcp.clone()), me, options);
        let text = server.local_addr().to_string();
        calls.set_peer(NODE, vec![Address { transport: TransportKind::Tcp, text }]);
        Self { ring, tcp, calls, pool: Pool::new(16 << 20).unwrap() }
    }

    fn ask(&self, ask: Ask) -> Result<Answer, CallError> {
        let mut call = pin!(self.calls.call(NODE, ask));
        loop {
            let deadline = self.calls.turn(now().mono);
            if let Poll::Ready(answer) = call.as_mut().poll(&mut Context::from_waker(Waker::noop()))
            {
                return answer;
            }
            self.calls.flush(now().mono);
            let wait = deadline.map_or(20_000_000_000, |at| at.0.saturating_sub(now().mono.0));
            self.ring.enter(Some(Duration::from_nanos(wait))).unwrap();
            while let Some(completion) = self.ring.next() {
                assert_eq!(completion.owner, Owner::Tcp);
                self.tcp.complete(completion);
            }
        }
    }

    fn reply(&self, ask: Ask) -> Reply {
        self.ask(ask).unwrap().reply
    }

    fn filled(&self, len: usize, byte: u8) -> Slice {
        let mut region = self.pool.take(len).unwrap();
        region.bytes_mut().fill(byte);
        region.freeze()
    }

    fn create(&self, name: &str) -> Ino {
        let request = Request::Create {
            who: Who::root(),
            dir: Ino::ROOT,
            name: name.into(),
            new: New::File,
            mode: 0o644,
            umask: 0,
            open: false,
        };
        match self.reply(Ask::change(ShardId(0), request)) {
            Reply::Entry(entry) => entry.ino,
            other => panic!("create gives an entry, not {other:?}"),
        }
    }

    fn lookup(&self, name: &str) -> Result<Ino, CallError> {
        let request = Request::Lookup { who: Who::root(), dir: Ino::ROOT, name: name.into() };
        match self.ask(Ask::read(ShardId(0), request))?.reply {
            Reply::Entry(entry) => Ok(entry.ino),
            other => panic!("lookup gives an entry, not {other:?}"),
        }
    }

    fn write(&self, ino: Ino, offset: u32, len: usize, byte: u8) {
        let request = Request::Write { ino, index: 0, offset };
        let bulk = Bulk::Send(vec![self.filled(len, byte)]);
        let reply = self.reply(Ask::change(ino.shard(), request).with_bulk(bulk));
        assert!(matches!(reply, Reply::Written { .. }), "{reply:?}");
    }

    fn read(&self, ino: Ino, offset: u32, length: u32) -> Vec<u8> {
        let request = Request::Read { ino, index: 0, offset, length };
        let room = self.pool.take(length as usize).unwrap();
        let answer = self.ask(Ask::read(ino.shard(), request).with_bulk(Bulk::Receive(room)));
        let answer = answer.unwrap();
        let region = answer.region.unwrap();
        region.bytes()[..answer.bulk_len as usize].to_vec()
    }
}

#[test]
fn a_probe_moves_bytes_both_ways_and_touches_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(config(dir.path(), 1)).unwrap();
    let client = Client::new(&server, KEY, 1);
    let probe = |length| Ask::read(ShardId(0), Request::Probe { length });
    let sent = client.ask(probe(0).with_bulk(Bulk::Send(vec![client.filled(1 << 20, 7)]))).unwrap();
    assert!(matches!(sent.reply, Reply::Clock(_)), "{:?}", sent.reply);
    let mut room = client.pool.take(1 << 20).unwrap();
    room.bytes_mut().fill(7);
    let got = client.ask(probe(1 << 20).with_bulk(Bulk::Receive(room))).unwrap();
    assert_eq!(got.bulk_len, 1 << 20);
    assert!(got.region.unwrap().bytes().iter().all(|byte| *byte == 0));
    let small = client.pool.take(4_096).unwrap();
    let refused = client.ask(probe(4_097).with_bulk(Bulk::Receive(small)));
    assert_eq!(refused.unwrap_err(), CallError::Errno(Errno::EPROTO));
}

#[test]
fn a_node_answers_and_stops_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(config(&dir.path().join("data"), 2)).unwrap();
    let client = Client::new(&server, KEY, 1);
    match client.reply(Ask::read(ShardId(0), Request::Status)) {
        Reply::Status(status) => {
            assert_eq!((status.node, status.cores, status.shards), (NODE, 2, 4_096));
        }
        other => panic!("status gives a status, not {other:?}"),
    }
    stop(server).unwrap();
}

/// Processor time of each thread of a core in this process, nanoseconds (the first number of schedstat), by thread.
fn cores_cpu_ns() -> BTreeMap<String, u64> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let of_cores = tasks.filter_map(|task| {
        let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
        let times = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        let nanos = times.split(' ').next()?.parse().ok()?;
        let id = task.file_name().to_string_lossy().into_owned();
        name.starts_with("core ").then_some((id, nanos))
    });
    of_cores.collect()
}

/// Side by side, for the same time: ratios, since nobody knows how busy the machine is.
#[test]
fn a_node_without_work_leaves_its_processor_to_others_unless_it_is_to_spin() {
    let mut nodes = Vec::new();
    for poll in [Waiting::Sleep, Waiting::Adaptive, Waiting::Spin] {
        let before = cores_cpu_ns();
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(Config { poll, ..config(&dir.path().join("data"), 1) }).unwrap();
        let client = Client::new(&server, KEY, 1);
        let ino = client.create("file");
        client.write(ino, 0, 10_000, 7);
        assert!(client.read(ino, 0, 10_000).iter().all(|byte| *byte == 7), "{poll} serves");
        let own = cores_cpu_ns().into_keys().find(|id| !before.contains_key(id)).unwrap();
        nodes.push((own, server, dir));
    }
    let times = || nodes.iter().map(|(own, ..)| cores_cpu_ns()[own]).collect::<Vec<_>>();
    let before = times();
    // The one that spins has had its share of the processor when it has used that much.
    let mut after = times();
    for _ in 0..2_000 {
        if after[2] - before[2] > 300_000_000 {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
        after = times();
    }
    let used: Vec<u64> = before.iter().zip(&after).map(|(before, after)| after - before).collect();
    assert!(used[0] < used[2] / 10 && used[1] < used[2] / 10, "sleep, adaptive, spin: {used:?} ns");
}

#[test]
fn what_was_written_is_there_after_restarts_with_other_numbers_of_cores() {
    let dir = tempfile::tempdir().unwrap();
    for (round, cores) in [1, 2, 2, 3, 1].into_iter().enumerate() {
        let server = Server::start(config(dir.path(), cores)).unwrap();
        let client = Client::new(&server, KEY, round as u64 + 1);
        for before in 0..round {
            let ino = client.lookup(&format!("file {before}")).unwrap();
            let bytes = client.read(ino, 5_000, 100_000);
            assert!(bytes.len() == 100_000 && bytes.iter().all(|byte| *byte == before as u8 + 1));
            assert_eq!(client.read(ino, 4_990, 10), [0; 10]);
        }
        let ino = client.create(&format!("file {round}"));
        client.write(ino, 5_000, 100_000, round as u8 + 1);
        stop(server).unwrap();
    }
}

#[test]
fn a_node_that_is_dropped_stops_and_starts_again() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(config(dir.path(), 2)).unwrap();
    let ino = Client::new(&server, KEY, 1).create("kept");
    drop(server);
    let server = Server::start(config(dir.path(), 2)).unwrap();
    assert_eq!(Client::new(&server, KEY, 2).lookup("kept"), Ok(ino));
}

#[test]
fn a_client_with_another_key_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(config(dir.path(), 1)).unwrap();
    let error = Client::new(&server, [6; 32], 1).lookup("x").unwrap_err().to_string();
    assert!(error.contains("key"), "{error}");
}

#[test]
fn a_port_or_a_directory_in_use_is_refused_and_nothing_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(config(&dir.path().join("data"), 1)).unwrap();
    let other = dir.path().join("other");
    let listen = server.local_addr().to_string();
    let error = refusal(Config { listen: listen.clone(), ..config(&other, 1) });
    assert!(error.contains(&listen) && error.contains("another process"), "{error}");
    assert!(!other.exists());
    let error = refusal(config(&dir.path().join("data"), 1));
    assert!(error.contains("in use by process"), "{error}");
    let error = refusal(Config { listen: "no-such-host.invalid:1".into(), ..config(&other, 1) });
    assert!(error.contains("no-such-host.invalid"), "{error}");
    stop(server).unwrap();
}
