//! A running mount: its thread from start to end.
//!
//! ```text
//! Mount::start            the mount's thread
//!   spawns ------------>  learn the map, connect, stat the root of the cluster
//!                         mount(2)
//!   stats the mount <---  serve until the kernel ends the mount (ENODEV)
//!   returns               answer what is in flight, settle, leave the sessions
//! Mount::wait joins ----> ends
//! ```
//! 1. Until the cluster's root has answered nothing is mounted: a wrong address or key leaves no trace.
//! 2. A signal that ends programs finds nothing mounted, or unmounts.
//! 3. The thread ends only after what programs were told is done has reached the nodes, or their timeout has passed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

use sealfs_client_core::{Fs, Options};
use sealfs_net::{FileError, read_key};
use sealfs_proto::{Address, ClusterMap, Ino};
use sealfs_ring::{Op, Owner};
use sealfs_transport::{Instant, Key, PayloadBytes, payload_of_process};

use crate::fuse::{Files, Kernel, RETRY_MS, Session, Tells, Turn};
use crate::link::{Link, learn_map};
use crate::metrics::{MountMetrics, Question, Told, question_box};
use crate::point::{self, InUse};
use crate::status::encode_page;
use crate::sys::Signals;
use crate::{Consistency, LogControl, MountOptions};

/// What to mount where.
#[derive(Clone, Debug)]
pub struct MountConfig {
    /// Addresses of some or all nodes; the map is learned from the first that answers.
    pub nodes: Vec<Address>,
    /// What the mount table shows as the source: the nodes as the user has named them.
    pub source: String,
    /// An existing directory.
    pub mountpoint: PathBuf,
    /// The rest; `options.key` must be set.
    pub options: MountOptions,
    /// Pin the thread to this processor.
    pub pin: Option<usize>,
    /// The program's log, if its filter may be changed through the mount.
    pub log: Option<Arc<dyn LogControl>>,
}

/// Why a mount could not be made or undone; the text names the thing, the cause and the next step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct MountError(pub String);

impl From<FileError> for MountError {
    fn from(error: FileError) -> Self {
        Self(error.to_string())
    }
}

/// A mount of this process. Dropping it does not unmount.
#[derive(Debug)]
pub struct Mount {
    mountpoint: PathBuf,
    metrics: MountMetrics,
    thread: JoinHandle<Result<(), MountError>>,
}

impl Mount {
    /// Connects, mounts, and returns when the mount has answered a stat of its root; fails within half a minute with
    /// everything undone. Must be called while the process has one thread: from here on SIGTERM, SIGINT and SIGHUP are
    /// blocked in all of them. They end the process while nothing is mounted, and else unmount: lazily, so that files which are open
    /// stay usable until they are closed.
    pub fn start(config: MountConfig) -> Result<Self, MountError> {
        let path = config.options.key.as_ref().ok_or_else(|| {
            MountError("no key is named; give --key FILE, the key of the cluster's nodes".into())
        })?;
        let key = read_key(path)?;
        let mountpoint = config.mountpoint.clone();
        let (sender, mounted) = mpsc::sync_channel(1);
        let place = Place::default();
        unmount_on_signals(&place)?;
        let thread = thread::Builder::new()
            .name("sealfs".into())
            .spawn(move || run(&config, &key, &place, &sender))
            .map_err(|error| MountError(format!("cannot start a thread: {error}")))?;
        let Ok(metrics) = mounted.recv() else {
            // The thread has ended, for it holds the sender until the mount is made.
            return Err(outcome(thread).err().unwrap_or_else(|| {
                MountError(format!("{} was unmounted at once", mountpoint.display()))
            }));
        };
        let mountpoint = fs::canonicalize(&mountpoint).unwrap_or(mountpoint);
        match fs::metadata(&mountpoint) {
            Ok(root) => {
                set_readahead(&root);
                Ok(Self { mountpoint, metrics, thread })
            }
            Err(error) => {
                let shown = mountpoint.display();
                let error = MountError(format!("the mount at {shown} does not answer: {error}"));
                point::detach(&mountpoint, InUse::IsLeft)?;
                outcome(thread)?;
                Err(error)
            }
        }
    }

    /// Where it is mounted, without symbolic links.
    #[must_use]
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Asks for the mount's figures, from any thread.
    #[must_use]
    pub fn metrics(&self) -> MountMetrics {
        self.metrics.clone()
    }

    /// Waits until the mount has ended (`sealfs umount`, umount(8), or [`Mount::unmount`] from another thread).
    pub fn wait(self) -> Result<(), MountError> {
        outcome(self.thread)
    }

    /// Unmounts; `force`: see [`unmount`]. [`Mount::wait`] returns when everything has been flushed.
    pub fn unmount(&self, force: bool) -> Result<(), MountError> {
        point::detach(&self.mountpoint, in_use(force))
    }
}

/// Unmounts any sealfs mount by its path, also one whose client is dead; as root or, for one's own mounts, through
/// fusermount3. `force`: even while files are open; programs that use them or wait for a node get an error at once. What
/// write(2) has acknowledged is kept all the same, what was changed through mappings and not written back is lost.
pub fn unmount(mountpoint: &Path, force: bool) -> Result<(), MountError> {
    let path = std::path::absolute(mountpoint)
        .map_err(|error| MountError(format!("{}: {error}", mountpoint.display())))?;
    // The mount itself is asked nothing if it can be helped: it may not answer.
    let path =
        if point::is_mounted(&path) { path } else { fs::canonicalize(&path).unwrap_or(path) };
    if !point::is_mounted(&path) {
        return Err(MountError(format!(
            "no sealfs is mounted at {}; /proc/mounts shows where",
            path.display()
        )));
    }
    point::detach(&path, in_use(force))
}

const fn in_use(force: bool) -> InUse {
    if force { InUse::IsEnded } else { InUse::Stays }
}

fn outcome(thread: JoinHandle<Result<(), MountError>>) -> Result<(), MountError> {
    thread.join().unwrap_or_else(|_| Err(MountError("the mount's thread has panicked".into())))
}

/// Where it is mounted, as soon as it is. Locked while it is being mounted, so that a signal finds either nothing or all.
type Place = Arc<Mutex<Option<PathBuf>>>;

/// Blocks the signals that end a mount, in this thread and all that it will start, and has one wait for them. By their usual
/// effect they would end the thread that answers the kernel while another one waits for such an answer, for ever.
fn unmount_on_signals(place: &Place) -> Result<(), MountError> {
    // SIGHUP, which says that a terminal is gone or that settings are new, is nothing to a mount: it has no file of them.
    Signals::of(&[libc::SIGHUP]).block();
    let ends = Signals::of(&[libc::SIGTERM, libc::SIGINT]);
    ends.block();
    let place = Arc::clone(place);
    let watch = move || {
        loop {
            let signal = ends.wait();
            let place = place.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(mountpoint) = place.as_deref() else { std::process::exit(128 + signal) };
            if let Err(error) = point::detach(mountpoint, InUse::IsLeft) {
                tracing::error!("{error}");
            }
            tracing::info!(signal, "asked to end; unmounted {}", mountpoint.display());
        }
    };
    // Its thread ends with the process.
    let spawned = thread::Builder::new().name("sealfs-signals".into()).spawn(watch);
    spawned.map(drop).map_err(|error| MountError(format!("cannot start a thread: {error}")))
}

/// The mount's thread.
fn run(
    config: &MountConfig,
    key: &Key,
    place: &Place,
    mounted: &mpsc::SyncSender<MountMetrics>,
) -> Result<(), MountError> {
    // Its system calls are not to be interrupted.
    Signals::all().block();
    if let Some(processor) = config.pin {
        sealfs_ring::pin(processor).map_err(|error| MountError(error.to_string()))?;
    }
    let map = learn_map(key, &config.options.network, &config.nodes, START_MS)?;
    let client = Client::connect(key.clone(), &map, &config.options)?;
    let mountpoint = fs::canonicalize(&config.mountpoint);
    let device = {
        let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
        let device = point::attach(&config.mountpoint, &config.source, &config.options)?;
        *place = Some(mountpoint.unwrap_or_else(|_| config.mountpoint.clone()));
        device
    };
    // Nobody hears it if `start` has gone, which then unmounts.
    let (metrics, questions) = question_box(client.link.ring.wake());
    let _ = mounted.send(metrics);
    let served = client.serve(Kernel::new(device), config, &questions);
    let ended = match served {
        Ok(()) => client.finish(&config.options),
        Err(error) => {
            abandon(client, &config.mountpoint);
            Err(error)
        }
    };
    let PayloadBytes { copied, framed, .. } = payload_of_process();
    tracing::info!("the mount has ended; payload: {copied} bytes copied, {framed} bytes in frames");
    ended
}

/// The loop itself has failed. The entry in the mount table is removed by another thread, for that may wait for answers
/// of this one until the device is closed.
fn abandon(client: Client, mountpoint: &Path) {
    let mountpoint = mountpoint.to_owned();
    let detaching = thread::spawn(move || point::detach(&mountpoint, InUse::IsLeft));
    drop(client);
    if let Ok(Err(error)) = detaching.join() {
        tracing::error!("{error}");
    }
}

/// A mount's thread, connected.
struct Client {
    link: Link,
    fs: Fs,
}

impl Client {
    /// Connects, and has the root of the cluster answer.
    fn connect(key: Key, map: &ClusterMap, options: &MountOptions) -> Result<Self, MountError> {
        let link = Link::new(key, &options.network, options.timeout_ms, options.memory)?;
        link.calls.set_map(map);
        let arena = Rc::new(link.pool.clone());
        let behaviour = match options.consistency {
            Consistency::CloseToOpen => Options::default(),
            Consistency::Strict => Options::strict(),
        };
        let fs = Fs::new(link.calls.clone(), link.tasks.spawner(), arena, map, behaviour);
        let client = Self { link, fs };
        let fs = client.fs.clone();
        let until = sealfs_ring::now().mono.after_ms(START_MS);
        match client.block_on(until, async move { fs.stat(Ino::ROOT).await })? {
            Some(Ok(_)) => Ok(client),
            Some(Err(errno)) => Err(client.no_root(&format!("it answers {errno}"))),
            None => Err(client.no_root(&format!("no answer in {} s", START_MS / 1_000))),
        }
    }

    fn no_root(&self, cause: &str) -> MountError {
        let mut text = format!("the root directory's node: {cause}");
        for peer in self.link.calls.peers() {
            if let Some(error) = peer.last_error {
                text.push_str(&format!("; node {}: {error}", peer.node));
            }
        }
        text.push_str("; `sealfs status` shows which nodes are reached");
        MountError(text)
    }

    fn block_on<T: 'static>(
        &self,
        until: Instant,
        future: impl Future<Output = T> + 'static,
    ) -> Result<Option<T>, MountError> {
        self.link.block_on(until, Some(&self.fs), future)
    }

    /// Answers the kernel until it ends the mount, and then what is in flight for a while.
    fn serve(
        &self,
        kernel: Kernel,
        config: &MountConfig,
        questions: &mpsc::Receiver<Question>,
    ) -> Result<(), MountError> {
        let options = &config.options;
        let device = kernel.device().try_clone().map(sealfs_ring::File::new);
        let device = device.map_err(|error| MountError(format!("/dev/fuse: {error}")))?;
        let (calls, network) = (self.link.calls.clone(), options.network.clone());
        let memory = options.memory as u64;
        let status = Box::new(move |skip| encode_page(&calls, &network, memory, skip));
        let tells = Tells { status, log: config.log.clone() };
        let files = Files::new(self.fs.clone(), kernel.clone(), options.consistency, tells);
        let mut session = Session::new(kernel, files, self.link.tasks.spawner(), options.memory);
        let (mut polled, mut ended) = (false, None);
        loop {
            let now = sealfs_ring::now().mono;
            // While the poll waits there is nothing to read.
            let turn = if polled { Turn::Drained } else { session.turn(&self.link.pool, now) };
            session.watch(now);
            let retry = turn == Turn::Starved || session.is_watching();
            let wanted = [
                self.link.run(now, Some(&self.fs)),
                (turn == Turn::More).then_some(now),
                retry.then(|| now.after_ms(RETRY_MS)),
                ended,
            ];
            while let Ok(question) = questions.try_recv() {
                // Whoever has asked may have lost patience.
                let _ = question.send(self.told(&session));
            }
            match turn {
                Turn::Ended => {
                    let until = *ended.get_or_insert(now.after_ms(FINISH_MS));
                    if session.in_flight() == 0 || now >= until {
                        return Ok(());
                    }
                }
                Turn::Drained if !polled => {
                    let (file, events) = (device.clone(), libc::POLLIN as u32);
                    self.link.ring.submit(Owner::Fuse, 0, Op::Poll { file, events });
                    polled = true;
                }
                _ => {}
            }
            let deadline = wanted.into_iter().flatten().min();
            self.link.enter(deadline, |_| polled = false)?;
        }
    }

    /// The mount as it stands.
    fn told(&self, session: &Session<Files>) -> Told {
        Told {
            counts: session.counts(),
            in_flight: session.in_flight(),
            fs: self.fs.figures(),
            nodes: self.link.calls.peers(),
            buffers: self.link.pool.room(),
        }
    }

    /// Brings what is not settled yet to the nodes, and says good-bye. A node that is dead may keep that from happening;
    /// what programs were told is durable is so all the same. It syncs no devices: a thousand clients that end with their
    /// job would each have every node sync everything.
    fn finish(&self, options: &MountOptions) -> Result<(), MountError> {
        let wait =
            if options.timeout_ms == 0 { FINISH_MS } else { options.timeout_ms.min(FINISH_MS) };
        let fs = self.fs.clone();
        let until = sealfs_ring::now().mono.after_ms(wait);
        let unsettled = |cause: &str| {
            Err(MountError(format!(
                "unmounted, but size, times or space of files that were written last may be old: {cause}"
            )))
        };
        match self.block_on(until, async move { fs.leave().await })? {
            Some(Ok(())) => Ok(()),
            Some(Err(errno)) => unsettled(&format!("a node answered {errno}")),
            None => unsettled(&format!("no answer in {} s", wait / 1_000)),
        }
    }
}

/// The kernel reads ahead 128 KiB unless it is told otherwise, and FUSE cannot ask for more: a quarter of a chunk's request
/// at a time. Only root may write there; without it reads are as good as requests of 128 KiB can be.
fn set_readahead(root: &fs::Metadata) {
    let (major, minor) = (libc::major(root.dev()), libc::minor(root.dev()));
    let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(error) = fs::write(&path, READAHEAD_KIB.to_string()) {
        tracing::debug!(path, %error, "readahead stays as it is");
    }
}

/// How long the start may take: to learn the map, and then to reach the root, milliseconds each.
const START_MS: u64 = 10_000;
/// How long the end may take, milliseconds.
const FINISH_MS: u64 = 30_000;
/// Memory for data in flight unless told otherwise: some 180 requests of 1 MiB, half of what a program of many threads keeps
/// busy on a fast network. It is address space until it is used; with RDMA it is pinned.
pub const POOL_LEN: usize = 256 << 20;
/// Four requests in flight for a program that reads one file from end to end.
const READAHEAD_KIB: u32 = 4_096;
