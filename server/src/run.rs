//! A running node: one pinned thread per core, how they start together, and how they stop.
//!
//! ```text
//! main:   directory, arena > threads ──────────> wakes to all ──────────────> address, one by one ──> ready
//! core:                     ring ───────> wake        recover ─> recovered          listen, loop ──> ended
//! ```
//! 1. No core serves before every core has recovered: what one of them refuses stops the node before it answers anybody.
//! 2. The superblock says `clean` only after all cores have ended in order and everything is on the device.
//! 3. When one core cannot go on, none does.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use sealfs_net::Choice;
use sealfs_proto::{ClusterMap, limits};
use sealfs_ring::{Pool, Wake, bind_listener};
use sealfs_server_core::{Config as CoreConfig, CoreId, Mail};
use sealfs_transport::{Identity, Serves};

use crate::Config;
use crate::core_thread::{CoreThread, Report};
use crate::datadir::{DataDir, Wanted};
use crate::mailbox::{self, BOX_LEN};
use crate::metrics::{self, NodeMetrics};
use crate::recover::{self, CoreFiles};
use crate::store;

/// A node that could not start: names the thing, the cause and the next step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StartError(pub String);

/// The environment is beyond repair (a failed journal write, say): the process must end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Fatal {
    /// Exit code of the process: [`Fatal::DISK`] or [`Fatal::BUG`].
    pub code: u8,
    /// What happened.
    pub reason: String,
}

impl Fatal {
    /// The data directory can no longer be written (EX_IOERR of sysexits.h).
    pub const DISK: u8 = 74;
    /// A thread of the node has ended without a reason (EX_SOFTWARE of sysexits.h).
    pub const BUG: u8 = 70;
}

/// A running node. Dropping it stops it and waits.
#[derive(Debug)]
pub struct Server {
    local_addr: SocketAddr,
    stopper: Stopper,
    reports: Receiver<Report>,
    threads: Vec<JoinHandle<()>>,
    metrics: NodeMetrics,
    dir: DataDir,
}

impl Server {
    /// Opens (or formats) the data directory, recovers it and starts the cores. Returns when the node is ready: recovered
    /// and listening on every core.
    pub fn start(config: Config) -> Result<Self, StartError> {
        let address = probe(&config.listen, config.transport != Choice::Rdma)?;
        let cores = u16::try_from(config.cores.len()).expect("Settings::resolve has checked them");
        let cluster = cluster_map(&config);
        let mut dir = DataDir::open(
            &config.data,
            &Wanted {
                map: &cluster,
                node: config.id,
                volume_len: config.volume_len,
                cores,
                adopt: config.adopt,
            },
        )?;
        let was_clean = dir.last_run().clean;
        if !was_clean {
            tracing::info!(
                "the last run was not stopped in order; what it acknowledged is in the journals"
            );
        }
        let map = Arc::new(dir.superblock().map.clone());
        // Placing the shards is the costly part: once for all cores.
        let of_node = CoreConfig {
            durability: config.durability,
            in_memory: store::is_in_memory(&config.data),
            only_uid: config.only_uid,
            lease_ms: config.lease_ms,
            losses: dir.losses(),
            volume_blocks: dir.superblock().volume_len / u64::from(limits::BLOCK_SIZE),
            ..CoreConfig::new(Arc::clone(&map), config.id, CoreId(0), cores)
        };
        let core_config =
            |core: u16, cores: u16| CoreConfig { core: CoreId(core), cores, ..of_node.clone() };
        if dir.superblock().journal_cores != cores {
            recover::convert(&mut dir, cores, core_config)?;
        }

        let serves = Serves { node: config.id, map: Arc::clone(&map) };
        let network = sealfs_net::Config {
            identity: Arc::new(Identity { key: config.key.clone(), serves: Some(serves) }),
            choice: config.transport,
            rdma_device: config.rdma_device.clone(),
        };
        let pools = Pool::parts(config.memory, usize::from(cores))
            .map_err(|error| StartError(error.to_string()))?;
        let mut start = Starting::new(cores);
        let mut asks = Vec::new();
        let boxes = mailbox::boxes::<Mail>(cores, BOX_LEN);
        for (core, (boxes, pool)) in (0..cores).zip(boxes.into_iter().zip(pools)) {
            let (ask, questions) = metrics::question_box();
            asks.push(ask);
            let thread = CoreThread {
                config: core_config(core, cores),
                processor: config.cores[usize::from(core)],
                pool,
                poll: config.poll,
                network: network.clone(),
                rdma_listen: config.rdma_listen.clone(),
                files: CoreFiles::of(&dir, core)?,
                boxes,
                questions,
            };
            start.spawn(thread)?;
        }
        let local_addr = start.run(&address, &mut dir)?;
        let metrics = NodeMetrics::new(config.id, was_clean, asks, start.stopper.wakes().clone());
        Ok(Self {
            local_addr,
            metrics,
            stopper: start.stopper.clone(),
            reports: start.reports.clone(),
            threads: std::mem::take(&mut start.threads),
            dir,
        })
    }

    /// Where it listens; with port 0 the port that the system chose.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// A handle that stops the node, from any thread.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Asks for the node's figures, from any thread.
    #[must_use]
    pub fn metrics(&self) -> NodeMetrics {
        self.metrics.clone()
    }

    /// Waits until the node has stopped: asked to by a [`Stopper`], or because it cannot go on.
    pub fn wait(mut self) -> Result<(), Fatal> {
        self.end()
    }

    fn end(&mut self) -> Result<(), Fatal> {
        let mut result = Ok(());
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                let reason = "a core's thread has panicked".to_owned();
                result = Err(Fatal { code: Fatal::BUG, reason });
            }
        }
        for report in self.reports.try_iter() {
            if let Report::Ended(Err(fatal)) = report {
                result = Err(fatal);
            }
        }
        result?;
        let clean = self.dir.set_clean();
        clean.map_err(|error| Fatal { code: Fatal::DISK, reason: error.to_string() })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.stopper.stop();
            if let Err(fatal) = self.end() {
                tracing::error!(%fatal, "the node has not stopped in order");
            }
        }
    }
}

/// Stops a node.
#[derive(Clone)]
pub struct Stopper(Arc<Shared>);

struct Shared {
    phase: AtomicU8,
    /// Which cores have nothing left to do.
    idle: Vec<AtomicBool>,
    wakes: Mutex<Vec<Wake>>,
}

/// What a core's loop is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Serve.
    Run,
    /// Finish what was begun, and help the other cores to.
    Drain,
    /// End now: all have finished, or one of them cannot go on.
    End,
}

impl Stopper {
    fn new(cores: u16) -> Self {
        let idle = (0..cores).map(|_| AtomicBool::new(false)).collect();
        Self(Arc::new(Shared { phase: AtomicU8::new(0), idle, wakes: Mutex::default() }))
    }

    /// Asks the node to stop: what was acknowledged is synced, then [`Server::wait`] returns. Does not wait.
    pub fn stop(&self) {
        self.go_to(Phase::Drain);
    }

    /// Ends all cores at once.
    pub(crate) fn end(&self) {
        self.go_to(Phase::End);
    }

    /// Notes whether `core` has nothing left to do; all cores end when none has.
    pub(crate) fn set_idle(&self, core: CoreId, idle: bool) {
        self.0.idle[usize::from(core.0)].store(idle, Ordering::SeqCst);
        if self.0.idle.iter().all(|idle| idle.load(Ordering::SeqCst)) {
            self.end();
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        match self.0.phase.load(Ordering::Acquire) {
            0 => Phase::Run,
            1 => Phase::Drain,
            _ => Phase::End,
        }
    }

    fn go_to(&self, phase: Phase) {
        self.0.phase.fetch_max(phase as u8, Ordering::AcqRel);
        self.wakes().iter().for_each(Wake::wake);
    }

    /// Never held while anything waits, and no holder can panic between two states.
    fn wakes(&self) -> MutexGuard<'_, Vec<Wake>> {
        self.0.wakes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Stopper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stopper({:?})", self.phase())
    }
}

/// The threads while they come up. Dropped halfway, it ends them.
struct Starting {
    stopper: Stopper,
    report: Sender<Report>,
    reports: Receiver<Report>,
    wakes: Vec<Sender<Vec<Wake>>>,
    addresses: Vec<Sender<SocketAddr>>,
    threads: Vec<JoinHandle<()>>,
}

impl Starting {
    fn new(cores: u16) -> Self {
        let (report, reports) = unbounded();
        Self {
            stopper: Stopper::new(cores),
            report,
            reports,
            wakes: Vec::new(),
            addresses: Vec::new(),
            threads: Vec::new(),
        }
    }

    fn spawn(&mut self, core: CoreThread) -> Result<(), StartError> {
        let (wakes, take_wakes) = bounded(1);
        let (address, take_address) = bounded(1);
        let (report, stopper) = (self.report.clone(), self.stopper.clone());
        let thread = thread::Builder::new()
            .name(format!("core {}", core.config.core.0))
            .spawn(move || core.run(&report, &take_wakes, &take_address, &stopper))
            .map_err(|error| StartError(format!("cannot start a thread: {error}")))?;
        self.wakes.push(wakes);
        self.addresses.push(address);
        self.threads.push(thread);
        Ok(())
    }

    /// Takes the threads from ring to loop; gives the address on which all of them listen.
    fn run(&mut self, address: &SocketAddr, dir: &mut DataDir) -> Result<SocketAddr, StartError> {
        let cores = self.threads.len();
        let mut wakes: Vec<(CoreId, Wake)> = Vec::new();
        for _ in 0..cores {
            match self.next()? {
                Report::Ring(core, wake) => wakes.push((core, wake)),
                other => unreachable!("a core makes its ring first, not {other:?}"),
            }
        }
        wakes.sort_by_key(|(core, _)| *core);
        let wakes: Vec<Wake> = wakes.into_iter().map(|(_, wake)| wake).collect();
        self.stopper.wakes().clone_from(&wakes);
        self.wakes.iter().for_each(|core| drop(core.send(wakes.clone())));
        for _ in 0..cores {
            match self.next()? {
                Report::Recovered => {}
                other => unreachable!("a core recovers after it has its ring, not {other:?}"),
            }
        }
        dir.begin()?;
        // One after the other: with port 0 the first one learns which port the others share.
        let mut address = *address;
        for core in &self.addresses {
            // A core that is gone has told why, which `next` finds.
            let _ = core.send(address);
            match self.next()? {
                Report::Listens(bound) => address = bound,
                other => unreachable!("a core listens when it is told where, not {other:?}"),
            }
        }
        // Only now: cores that have started tell each other what space they use, and so wait for the last one.
        for _ in 0..cores {
            match self.next()? {
                Report::Ready => {}
                other => unreachable!("a core serves after it listens, not {other:?}"),
            }
        }
        dir.settle()?;
        Ok(address)
    }

    fn next(&self) -> Result<Report, StartError> {
        match self.reports.recv() {
            Ok(Report::Failed(error)) => Err(error),
            Ok(Report::Ended(Err(fatal))) => Err(StartError(fatal.reason)),
            Ok(report) => Ok(report),
            Err(_) => unreachable!("`self.report` keeps the queue open"),
        }
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        self.wakes.clear();
        self.addresses.clear();
        if !self.threads.is_empty() {
            self.stopper.end();
            self.threads.drain(..).for_each(|thread| drop(thread.join()));
        }
    }
}

/// The map that key and list make.
fn cluster_map(config: &Config) -> ClusterMap {
    let list = &config.nodes;
    let members: Vec<_> = list.nodes.iter().map(|node| (node.id, node.weight)).collect();
    let derived = || config.key.cluster_id(&members, 1 << list.shards_log2);
    list.map(list.cluster.unwrap_or_else(derived))
}

/// Looks the address up and, `with_tcp`, tries it, so that a port in use is reported before anything is touched. Without SO_REUSEPORT: with
/// it, a second node of the same user could share the port.
fn probe(listen: &str, with_tcp: bool) -> Result<SocketAddr, StartError> {
    let address = listen
        .to_socket_addrs()
        .map_err(|error| {
            StartError(format!("cannot listen on {listen}: {error}; write --listen ADDRESS:PORT"))
        })?
        .next()
        .ok_or_else(|| StartError(format!("cannot listen on {listen}: the name has no address")))?;
    if !with_tcp {
        return Ok(address);
    }
    // The kernel lets go of a killed process's io_uring, and so of its sockets, a moment after the process is gone: a node
    // that is started again at once finds its own port still taken.
    let patience = Instant::now() + PORT_PATIENCE;
    loop {
        match bind_listener(&address, LISTEN_BACKLOG, false) {
            Ok((_, bound)) => return Ok(bound),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < patience => {
                thread::sleep(PORT_RETRY);
            }
            Err(error) => return Err(StartError(error.to_string())),
        }
    }
}

/// How long a taken port may be our own predecessor's.
const PORT_PATIENCE: Duration = Duration::from_secs(3);
/// Between two looks at a taken port; nothing tells when it becomes free.
const PORT_RETRY: Duration = Duration::from_millis(20);

/// Connections that wait to be accepted, per core.
const LISTEN_BACKLOG: u16 = 1_024;
