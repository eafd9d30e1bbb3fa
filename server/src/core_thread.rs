//! One core's thread: its ring and ports, its recovery, and the loop.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use sealfs_metrics::Histogram;
use sealfs_net::Net;
use sealfs_proto::TransportKind;
use sealfs_ring::{Owner, Poll, Pool, Ring, Wake, now, pin};
use sealfs_server_core::{Config, Core, CoreId, Mail, Ports};
use sealfs_transport::{Arena, Instant, Now};

use crate::datadir::random_number;
use crate::disk::RingDisk;
use crate::mailbox::{Boxes, Channels};
use crate::metrics::{Question, Told};
use crate::recover::CoreFiles;
use crate::run::Phase;
use crate::{Fatal, StartError, Stopper};

/// What a core's thread is made of.
pub(crate) struct CoreThread {
    /// Which core, of what.
    pub(crate) config: Config,
    /// The processor to pin it to.
    pub(crate) processor: Option<usize>,
    /// Its part of the node's arena.
    pub(crate) pool: Pool,
    /// What it does while it waits.
    pub(crate) poll: Poll,
    /// Who the node is in handshakes, and over which transports.
    pub(crate) network: sealfs_net::Config,
    /// Where it listens with RDMA.
    pub(crate) rdma_listen: String,
    /// Its files.
    pub(crate) files: CoreFiles,
    /// Its mail.
    pub(crate) boxes: Boxes<Mail>,
    /// Who wants to know its figures.
    pub(crate) questions: Receiver<Question>,
}

/// How far a core's thread is.
#[derive(Debug)]
pub(crate) enum Report {
    /// It has a ring, which this wakes.
    Ring(CoreId, Wake),
    /// It has read its part of the data directory.
    Recovered,
    /// It runs, and listens here.
    Listens(SocketAddr),
    /// It serves.
    Ready,
    /// It could not start, and has ended.
    Failed(StartError),
    /// It has ended.
    Ended(Result<(), Fatal>),
}

/// The loop's parts.
struct Loop {
    id: CoreId,
    listens: SocketAddr,
    ring: Ring,
    disk: RingDisk,
    net: Net,
    core: Core,
    pool: Pool,
    questions: Receiver<Question>,
    /// How long its turns have taken.
    turns: Histogram,
}

impl CoreThread {
    /// The thread's whole life.
    pub(crate) fn run(
        self,
        report: &Sender<Report>,
        wakes: &Receiver<Vec<Wake>>,
        address: &Receiver<SocketAddr>,
        stopper: &Stopper,
    ) {
        let core = self.config.core;
        // Nobody takes reports any more when another core has failed to start.
        let tell = |what| drop(report.send(what));
        let looping = match self.start(report, wakes, address) {
            Ok(Some(looping)) => looping,
            Ok(None) => return,
            Err(error) => return tell(Report::Failed(error)),
        };
        tell(Report::Listens(looping.listens));
        let ended = looping.run(stopper, || tell(Report::Ready));
        if let Err(fatal) = &ended {
            tracing::error!(core = core.0, %fatal, "the node cannot go on");
            stopper.end();
        }
        tell(Report::Ended(ended));
    }

    /// Brings the core up; `None`: another one has failed.
    fn start(
        self,
        report: &Sender<Report>,
        wakes: &Receiver<Vec<Wake>>,
        address: &Receiver<SocketAddr>,
    ) -> Result<Option<Loop>, StartError> {
        let failed = |error: std::io::Error| StartError(error.to_string());
        let id = self.config.core;
        if let Some(processor) = self.processor {
            pin(processor).map_err(failed)?;
        }
        let config = sealfs_ring::Config { poll: self.poll, ..sealfs_ring::Config::default() };
        let ring = Ring::new(config).map_err(failed)?;
        let pool = self.pool;
        // Every core does so before the first of them registers the arena: nobody goes on before all have their rings.
        if self.network.choice.may_be_rdma() {
            pool.populate();
        }
        drop(report.send(Report::Ring(id, ring.wake())));
        let Ok(wakes) = wakes.recv() else { return Ok(None) };

        let (recovery, segments) = self.files.recover(self.config)?;
        let CoreFiles { store, volume, .. } = self.files;
        drop(report.send(Report::Recovered));
        let Ok(address) = address.recv() else { return Ok(None) };

        let disk = RingDisk::new(ring.clone(), id.0, store, &volume, segments)?;
        let unable = |error: sealfs_net::NetError| StartError(error.to_string());
        let net = Net::new(&ring, &pool, self.network).map_err(unable)?;
        if net.kinds().contains(&TransportKind::Rdma) {
            // Its pages are pinned already.
            ring.register(&pool);
        }
        let listens = net.listen(&address.to_string(), &self.rdma_listen, true).map_err(unable)?;
        let arena: Rc<dyn Arena> = Rc::new(pool.clone());
        let ports = Ports {
            transport: Box::new(net.clone()),
            disk: Box::new(disk.clone()),
            mailbox: Box::new(Channels::new(self.boxes, wakes)),
            arena,
        };
        let core = recovery.finish(ports, now(), random_number()?);
        let (questions, turns) = (self.questions, Histogram::default());
        Ok(Some(Loop { id, listens, ring, disk, net, core, pool, questions, turns }))
    }
}

impl Loop {
    /// Enters the ring, hands completions to their ports, turns the core; until the node stops.
    fn run(mut self, stopper: &Stopper, ready: impl FnOnce()) -> Result<(), Fatal> {
        let mut ready = Some(ready);
        // The first turn happens at once: recovery has left work.
        let mut deadline = Some(Instant::default());
        let (mut patience, mut was_idle) = (None, false);
        let mut ended = now().mono;
        loop {
            let now = self.take_completions(ended, deadline)?;
            let turned = self.core.turn(now);
            deadline = turned.map_err(|fatal| Fatal { code: Fatal::DISK, reason: fatal.0 })?;
            ended = sealfs_ring::now().mono;
            self.turns.add(ended.0.saturating_sub(now.mono.0));
            self.tell_figures();
            if self.disk.has_completions() {
                deadline = Some(now.mono);
            }
            if self.core.is_ready()
                && let Some(ready) = ready.take()
            {
                ready();
            }
            match stopper.phase() {
                Phase::Run => {}
                Phase::End => return Ok(()),
                Phase::Drain => {
                    let end = *patience.get_or_insert_with(|| {
                        self.core.stop();
                        now.mono.after_ms(DRAIN_MS)
                    });
                    // Twice: what the last turn has answered has been handed to the network by then.
                    let is_idle = self.core.is_idle();
                    stopper.set_idle(self.id, is_idle && was_idle);
                    if is_idle && !was_idle {
                        deadline = Some(now.mono);
                    }
                    was_idle = is_idle;
                    if now.mono >= end {
                        stopper.end();
                    }
                    deadline = Some(deadline.map_or(end, |deadline| deadline.min(end)));
                }
            }
        }
    }

    /// Tells its figures to whoever has asked.
    fn tell_figures(&self) {
        // Nothing but two loads as long as nobody asks.
        while !self.questions.is_empty() {
            let Ok(question) = self.questions.try_recv() else { return };
            let (core, turns, buffers) = (self.core.figures(), self.turns, self.pool.room());
            // Whoever has asked may have lost patience.
            let _ = question.send(Told { core, turns, buffers });
        }
    }

    /// Waits, from `present` on, for completions until `deadline`, and hands them to their ports; when the wait has ended.
    fn take_completions(&self, present: Instant, deadline: Option<Instant>) -> Result<Now, Fatal> {
        let wait =
            deadline.map(|deadline| Duration::from_nanos(deadline.0.saturating_sub(present.0)));
        self.net.enter(&self.ring, wait).map_err(|error| Fatal {
            code: Fatal::BUG,
            reason: format!("io_uring_enter failed: {error}"),
        })?;
        let now = now();
        while let Some(completion) = self.ring.next() {
            match completion.owner {
                Owner::Disk => self.disk.on_completion(completion),
                Owner::Tcp | Owner::Rdma => self.net.complete(completion),
                Owner::Fuse => unreachable!("a node submits nothing for these"),
            }
        }
        Ok(now)
    }
}

/// Requests that wait for something else (a lock, a dead node) are not waited for longer than this.
const DRAIN_MS: u64 = 5_000;
