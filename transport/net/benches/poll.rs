//! What the three ways of waiting cost and bring: round trips over TCP on this machine, between two threads.
//!
//! `cargo bench -p sealfs-net --no-default-features [-- MICROSECONDS-BETWEEN-CALLS]`
//!
//! The ways take turns in short rounds, so that whatever else the machine does concerns all of them. Compared are medians
//! over the rounds; figures are ratios to `sleep`.
#![allow(clippy::print_stdout, reason = "a benchmark talks on its streams")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use sealfs_net::{Choice, Config, Net};
use sealfs_proto::{
    Address, ClusterId, ClusterMap, Epoch, Node, NodeId, Reply, Request, ShardId, Status,
    TransportKind, encode,
};
use sealfs_ring::{Poll, Pool, Ring, Wake, now};
use sealfs_transport::tasks::Tasks;
use sealfs_transport::{Ask, Calls, Event, Identity, Key, Me, Options, Serves};

const ROUNDS: usize = 15;
const CALLS: usize = 400;
const NODE: NodeId = NodeId(1);

fn main() {
    let word = std::env::args().filter(|word| !word.starts_with('-')).nth(1);
    let pause = Duration::from_micros(word.and_then(|word| word.parse().ok()).unwrap_or(0));
    let ways = [Poll::Sleep, Poll::Adaptive, Poll::Spin];
    let mut results: [Vec<(f64, f64)>; 3] = Default::default();
    for _ in 0..ROUNDS {
        for (way, results) in ways.iter().zip(&mut results) {
            results.push(round(*way, pause));
        }
    }
    let (latency, cpu): (Vec<f64>, Vec<f64>) = results
        .iter()
        .map(|rounds| {
            let of = |which: fn(&(f64, f64)) -> f64| median(rounds.iter().map(which).collect());
            (of(|round| round.0), of(|round| round.1))
        })
        .unzip();
    println!("{CALLS} calls, {} us between two, {ROUNDS} rounds", pause.as_micros());
    println!("poll       round trip          processor time of a call, both ends");
    for (at, way) in ways.iter().enumerate() {
        println!(
            "{way:9}  {:7.1} us ({:4.2})  {:7.1} us ({:4.2})",
            latency[at],
            latency[at] / latency[0],
            cpu[at],
            cpu[at] / cpu[0],
            way = way.to_string()
        );
    }
}

/// One round: the median round trip, and the processor time of a call, in microseconds.
fn round(poll: Poll, pause: Duration) -> (f64, f64) {
    let (sender, started) = channel();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let server = thread::spawn(move || serve(poll, &sender, &stopped));
    let (address, wake) = started.recv().expect("the server starts");
    let client = thread::spawn(move || call(poll, pause, address));
    let (trips, client) = client.join().expect("the client ends");
    stop.store(true, Ordering::Release);
    wake.wake();
    let server = server.join().expect("the server ends");
    (median(trips), (client + server) / CALLS as f64)
}

fn identity(serves: bool) -> Arc<Identity> {
    let map = ClusterMap {
        cluster: ClusterId([1; 16]),
        epoch: Epoch(1),
        shards_log2: 12,
        chunk_size: 1 << 20,
        nodes: vec![Node { id: NODE, weight: 1, addresses: vec![] }],
    };
    let serves = serves.then(|| Serves { node: NODE, map: Arc::new(map) });
    Arc::new(Identity { key: Key::new([1; 32]), serves })
}

fn open(poll: Poll, serves: bool) -> (Ring, Net) {
    let ring = Ring::new(sealfs_ring::Config { poll, ..sealfs_ring::Config::default() });
    let ring = ring.expect("this kernel has io_uring");
    let pool = Pool::new(1 << 20).expect("there is memory");
    let config = Config { identity: identity(serves), choice: Choice::Tcp, rdma_device: None };
    let net = Net::new(&ring, &pool, config).expect("TCP is there");
    (ring, net)
}

fn serve(poll: Poll, started: &Sender<(SocketAddr, Wake)>, stop: &AtomicBool) -> f64 {
    let (ring, net) = open(poll, true);
    let address = net.listen("127.0.0.1:0", "", false).expect("a port is free");
    let calls =
        Calls::new(Box::new(net.clone()), Me::Node { node: NODE, endpoint: 0 }, Options::default());
    let _ = started.send((address, ring.wake()));
    let mut begun = None;
    while !stop.load(Ordering::Acquire) {
        calls.turn(now().mono);
        while let Some(event) = calls.next_served() {
            match event {
                Event::Proven { conn, .. } => calls.admit(conn, Ok(())),
                Event::Request { conn, header, .. } => {
                    // The handshake is not counted, the same for all.
                    begun.get_or_insert_with(cpu_us);
                    calls.reply(conn, header.token, Status::Ok, encode(&Reply::Done), Vec::new());
                }
                _ => {}
            }
        }
        turn(&ring, &net, calls.flush(now().mono));
    }
    cpu_us() - begun.unwrap_or(0.0)
}

fn call(poll: Poll, pause: Duration, address: SocketAddr) -> (Vec<f64>, f64) {
    let (ring, net) = open(poll, false);
    let calls = Calls::new(
        Box::new(net.clone()),
        Me::Client { endpoint: 0, session_seed: 1 },
        Options::default(),
    );
    let text = address.to_string();
    calls.set_peer(NODE, vec![Address { transport: TransportKind::Tcp, text }]);
    let tasks = Tasks::new();
    let (sender, answers) = channel();
    let mut trips = Vec::with_capacity(CALLS);
    let mut begun = 0.0;
    for number in 0..=CALLS {
        if number == 1 {
            begun = cpu_us();
        }
        let start = Instant::now();
        let (sender, call) =
            (sender.clone(), calls.call(NODE, Ask::read(ShardId(0), Request::Ping)));
        tasks.spawn(async move {
            let _ = sender.send(call.await.is_ok());
        });
        loop {
            calls.turn(now().mono);
            tasks.run_ready();
            if answers.try_recv() == Ok(true) {
                break;
            }
            turn(&ring, &net, calls.flush(now().mono));
        }
        if number > 0 {
            trips.push(start.elapsed().as_secs_f64() * 1e6);
        }
        if !pause.is_zero() {
            // Something else comes so much later, a program's next call perhaps.
            let _ = net.enter(&ring, Some(pause));
            while let Some(done) = ring.next() {
                net.complete(done);
            }
        }
    }
    (trips, cpu_us() - begun)
}

fn turn(ring: &Ring, net: &Net, deadline: Option<sealfs_transport::Instant>) {
    let now = now().mono;
    let wait = deadline.map(|deadline| Duration::from_nanos(deadline.0.saturating_sub(now.0)));
    net.enter(ring, wait).expect("the ring works");
    while let Some(done) = ring.next() {
        net.complete(done);
    }
}

/// Processor time of this thread, microseconds: the first number of schedstat, in nanoseconds.
fn cpu_us() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos: f64 =
        text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or_default();
    nanos / 1e3
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
