//! A node's figures on the page that Prometheus scrapes.
//!
//! ```text
//! whoever scrapes                       each core
//!   question in its box, wake --------> between two turns: a copy of its figures
//!   adds the copies up, writes <------- answer
//! ```
//! Cores count for themselves and share nothing; they are asked, and answer between two turns. A scrape so costs each core
//! one copy, and a node that nobody scrapes pays for its counting alone.
//!
//! 1. A core that does not answer in [`PATIENCE`] makes the scrape fail and nothing else: a page never mixes what some cores
//!    have counted with what others have not.
//! 2. Each core has room for one question; who asks while one waits there is told that the core is late.
//!
//! docs/metrics.md lists what is written here.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use sealfs_metrics::{Histogram, Page};
use sealfs_proto::{NodeId, limits};
use sealfs_ring::Wake;
use sealfs_server_core::{
    BlockFigures, CoreFigures, Counted, Counters, PutOff, Queues, RequestKind, VolumeOp,
};
use sealfs_transport::{PeerStatus, payload_of_process};

/// Writes a running node's figures; from any thread. A clone asks the same node.
#[derive(Clone, Debug)]
pub struct NodeMetrics {
    node: NodeId,
    /// The run before this one was stopped in order.
    was_clean: bool,
    cores: Vec<Asking>,
}

/// A node that does not tell its figures.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("core {core} has not answered: it is busy with one turn for a long time, or has ended")]
pub struct Late {
    core: usize,
}

/// One core's box.
#[derive(Clone, Debug)]
struct Asking {
    questions: Sender<Question>,
    wake: Wake,
}

/// Where the answer goes.
pub(crate) type Question = Sender<Told>;

/// What a core's thread tells.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) core: CoreFigures,
    /// How long its turns have taken.
    pub(crate) turns: Histogram,
    /// Bytes of its buffers, and how many are free.
    pub(crate) buffers: (usize, usize),
}

/// A core's end of its box.
pub(crate) fn question_box() -> (Sender<Question>, Receiver<Question>) {
    bounded(1)
}

impl NodeMetrics {
    /// Of a node whose cores have these boxes and rings.
    pub(crate) fn new(
        node: NodeId,
        was_clean: bool,
        boxes: Vec<Sender<Question>>,
        wakes: Vec<Wake>,
    ) -> Self {
        let cores = boxes.into_iter().zip(wakes);
        let cores = cores.map(|(questions, wake)| Asking { questions, wake }).collect();
        Self { node, was_clean, cores }
    }

    /// Adds the node's families to the page; nothing if a core is late. Blocks for two seconds at most.
    pub fn write(&self, page: &mut Page) -> Result<(), Late> {
        let told = self.ask()?;
        let mut counters = Counters::default();
        told.iter().for_each(|told| counters.merge(&told.core.counters));
        requests(page, &counters);
        queues(page, &told);
        cores(page, &told);
        peers(page, &told);
        journal(page, &counters, &told);
        volume(page, &counters);
        space(page, &counters, &told);
        sessions(page, &counters, &told);
        page.gauge(
            "sealfs_node_last_run_clean",
            "Whether the run before this one was stopped in order, or this one is the first.",
        )
        .sample(&[], self.was_clean);
        let node = self.node.0.to_string();
        page.gauge("sealfs_node_info", "Always 1; which node this is.")
            .sample(&[("node", &node)], 1_u64);
        Ok(())
    }

    fn ask(&self) -> Result<Vec<Told>, Late> {
        let until = Instant::now() + PATIENCE;
        let mut answers = Vec::new();
        for (core, asking) in self.cores.iter().enumerate() {
            let (answer, receiver) = bounded(1);
            asking.questions.try_send(answer).map_err(|_| Late { core })?;
            asking.wake.wake();
            answers.push(receiver);
        }
        let answers = answers.into_iter().enumerate();
        answers
            .map(|(core, answer)| answer.recv_deadline(until).map_err(|_| Late { core }))
            .collect()
    }
}

fn requests(page: &mut Page, counters: &Counters) {
    let mut arrived = page.counter(
        "sealfs_node_requests_total",
        "Requests of clients and other nodes that have arrived, by kind.",
    );
    for kind in RequestKind::ALL {
        arrived.sample(&[("kind", kind.name())], counters.arrived(*kind));
    }
    let mut errors = page.counter(
        "sealfs_node_request_errors_total",
        "Requests that were answered with an error, by kind and errno.",
    );
    for ((kind, errno), count) in &counters.errors {
        errors.sample(&[("kind", kind.name()), ("errno", &errno.to_string())], *count);
    }
    let mut put_off = page.counter(
        "sealfs_node_requests_put_off_total",
        "Answers that a request was not executed and is to come again or is over, by reason.",
    );
    for why in PutOff::ALL {
        put_off.sample(&[("reason", why.name())], counters.put_off(why));
    }
    let mut answered = page.histogram(
        "sealfs_node_request_seconds",
        "From a request's arrival to its answer, by kind, in turns of the core's loop.",
    );
    for kind in RequestKind::ALL {
        let histogram = counters.answered(*kind);
        if histogram.count() > 0 {
            answered.durations(&[("kind", kind.name())], histogram);
        }
    }
    page.counter("sealfs_node_read_bytes_total", "Bytes of files that were read by clients.")
        .sample(&[], counters.of(Counted::BytesRead));
    page.counter("sealfs_node_written_bytes_total", "Bytes of files that clients have written.")
        .sample(&[], counters.of(Counted::BytesWritten));
    let mut payload = page.counter(
        "sealfs_node_payload_bytes_total",
        "Bytes of payload that the node has moved, by what was done to them.",
    );
    for (name, bytes) in payload_of_process().named() {
        payload.sample(&[("moved", name.trim_start_matches("payload_"))], bytes);
    }
}

fn queues(page: &mut Page, told: &[Told]) {
    let mut gauge = |name, help, of: fn(&Queues) -> usize| {
        let sum: usize = told.iter().map(|told| of(&told.core.queues)).sum();
        page.gauge(name, help).sample(&[], sum);
    };
    gauge(
        "sealfs_node_requests_in_flight",
        "Requests that are not answered, waits for locks left out.",
        |queues| queues.in_service,
    );
    gauge(
        "sealfs_node_requests_parked",
        "Requests that wait for a key which a change over several shards holds, or for a cut.",
        |queues| queues.parked,
    );
    gauge("sealfs_node_answers_unwritten", "Answers that wait for the journal.", |queues| {
        queues.unwritten
    });
    gauge("sealfs_node_writes_starved", "Requests whose payload waits for memory.", |queues| {
        queues.starved
    });
    gauge("sealfs_node_lock_waits", "Requests that wait for a lock.", |queues| queues.lock_waits);
    gauge(
        "sealfs_node_mail_unsent",
        "Messages between the node's cores for which the receiver's box was full.",
        |queues| queues.unsent_mail,
    );
    gauge(
        "sealfs_node_errands",
        "Questions between the node's cores without an answer.",
        |queues| queues.errands,
    );
    gauge("sealfs_node_disk_operations", "Operations of volume and journal in flight.", |queues| {
        queues.disk
    });
    gauge(
        "sealfs_node_cores_paused",
        "Cores that hold clients back, for they have too much to do.",
        |queues| usize::from(queues.paused),
    );
    let buffers = told.iter().map(|told| told.buffers);
    let (all, free) = buffers.fold((0, 0), |(all, free), one| (all + one.0, free + one.1));
    page.gauge("sealfs_node_buffer_bytes", "Memory for payload.").sample(&[], all);
    page.gauge("sealfs_node_buffer_free_bytes", "Memory for payload that is free.")
        .sample(&[], free);
}

fn cores(page: &mut Page, told: &[Told]) {
    page.gauge("sealfs_node_cores", "Threads that serve.").sample(&[], told.len());
    let mut turns = Histogram::default();
    told.iter().for_each(|told| turns.merge(&told.turns));
    page.histogram(
        "sealfs_node_turn_seconds",
        "How long turns of the cores' loops take, waiting left out.",
    )
    .durations(&[], &turns);
    let mut busy = page.counter(
        "sealfs_node_core_busy_seconds_total",
        "Time that a core has spent in turns of its loop.",
    );
    for (core, told) in told.iter().enumerate() {
        let time = sealfs_metrics::Value::Nanoseconds(told.turns.sum_ns());
        busy.sample(&[("core", &core.to_string())], time);
    }
}

fn peers(page: &mut Page, told: &[Told]) {
    let clients: usize = told.iter().map(|told| told.core.client_connections).sum();
    page.gauge("sealfs_node_client_connections", "Connections of clients.").sample(&[], clients);
    let nodes: usize = told.iter().map(|told| told.core.node_connections).sum();
    page.gauge(
        "sealfs_node_node_connections",
        "Connections that other nodes have made to this one.",
    )
    .sample(&[], nodes);
    let mut with = page.gauge(
        "sealfs_node_peer_info",
        "Always 1; with which transport cores are connected to another node.",
    );
    let peers = || told.iter().flat_map(|told| &told.core.nodes);
    let known: BTreeSet<_> =
        peers().filter_map(|peer| Some((peer.node, peer.connected?.to_string()))).collect();
    for (node, transport) in known {
        with.sample(&[("peer", &node.to_string()), ("transport", &transport)], 1_u64);
    }
    // By node, over the cores; all of them know the same nodes.
    let mut all: Vec<(PeerStatus, u64)> = Vec::new();
    for peer in peers() {
        let connected = u64::from(peer.connected.is_some());
        match all.iter_mut().find(|(known, _)| known.node == peer.node) {
            Some((sum, connections)) => {
                *connections += connected;
                sum.reconnects += peer.reconnects;
                sum.failures += peer.failures;
                sum.resent += peer.resent;
                sum.in_flight += peer.in_flight;
            }
            None => all.push((peer.clone(), connected)),
        }
    }
    let mut each = |is_counter, name, help, of: fn(&(PeerStatus, u64)) -> u64| {
        let mut samples =
            if is_counter { page.counter(name, help) } else { page.gauge(name, help) };
        for peer in &all {
            samples.sample(&[("peer", &peer.0.node.to_string())], of(peer));
        }
    };
    each(
        false,
        "sealfs_node_peer_connections",
        "Connections of this node's cores to another node; they connect when they have something to ask.",
        |peer| peer.1,
    );
    each(
        true,
        "sealfs_node_peer_reconnects_total",
        "Connections to another node after each core's first one.",
        |peer| peer.0.reconnects,
    );
    each(
        true,
        "sealfs_node_peer_failures_total",
        "Connections to another node that could not be made or have ended by an error.",
        |peer| peer.0.failures,
    );
    each(
        true,
        "sealfs_node_peer_resends_total",
        "Calls to another node that were sent again.",
        |peer| peer.0.resent,
    );
    each(
        false,
        "sealfs_node_peer_calls_in_flight",
        "Calls to another node that are not answered.",
        |peer| peer.0.in_flight,
    );
}

fn journal(page: &mut Page, counters: &Counters, told: &[Told]) {
    page.counter("sealfs_node_journal_bytes_total", "Bytes appended to the journals.")
        .sample(&[], counters.of(Counted::JournalBytes));
    page.histogram(
        "sealfs_node_journal_append_seconds",
        "From handing a batch of records to a journal until it was written.",
    )
    .durations(&[], &counters.appends);
    page.histogram(
        "sealfs_node_journal_sync_seconds",
        "From asking for a journal's sync until it was on the device.",
    )
    .durations(&[], &counters.syncs);
    let behind: u64 = told.iter().map(|told| told.core.journal_behind).sum();
    page.gauge(
        "sealfs_node_journal_unsnapshotted_bytes",
        "Bytes of the journals that no snapshot contains.",
    )
    .sample(&[], behind);
    page.counter(
        "sealfs_node_snapshots_total",
        "Rounds of snapshots, after each of which a journal was cut.",
    )
    .sample(&[], counters.of(Counted::SnapshotRounds));
    let losses = told.iter().map(|told| told.core.losses).max().unwrap_or(0);
    page.counter(
        "sealfs_node_power_losses_total",
        "Starts since the data was formatted that found power lost.",
    )
    .sample(&[], losses);
}

fn volume(page: &mut Page, counters: &Counters) {
    let mut took = page.histogram(
        "sealfs_node_volume_seconds",
        "From handing an operation of the volume to the system until it was done, by operation, in turns of the core's loop.",
    );
    for op in VolumeOp::ALL {
        took.durations(&[("operation", op.name())], counters.volume(op));
    }
}

fn space(page: &mut Page, counters: &Counters, told: &[Told]) {
    let blocks = |of: fn(&BlockFigures) -> u64| told.iter().map(move |told| of(&told.core.space));
    let block = u64::from(limits::BLOCK_SIZE);
    let capacity = blocks(|space| space.total).max().unwrap_or(0) * block;
    let used = blocks(|space| space.used).sum::<u64>() * block;
    let unsynced = blocks(|space| space.unsynced).sum::<u64>() * block;
    let dirty = blocks(|space| space.dirty).sum::<u64>() * block;
    let reserve = blocks(|space| space.reserve).sum::<u64>() * block;
    for (name, help, bytes) in [
        ("sealfs_node_space_bytes", "Size of the volume.", capacity),
        ("sealfs_node_space_used_bytes", "Bytes of the volume that hold data of files.", used),
        (
            "sealfs_node_space_free_bytes",
            "Bytes of the volume that hold no data; the reserve is among them.",
            capacity.saturating_sub(used),
        ),
        (
            "sealfs_node_space_reserve_bytes",
            "Bytes kept back for overwriting and removing when the volume is full.",
            reserve,
        ),
        (
            "sealfs_node_space_dirty_bytes",
            "Bytes that were written and that the device may not have yet.",
            dirty,
        ),
        (
            "sealfs_node_space_unsynced_bytes",
            "Bytes that were freed and can be used again after the next sync.",
            unsynced,
        ),
    ] {
        page.gauge(name, help).sample(&[], bytes);
    }
    let inodes: u64 = told.iter().map(|told| told.core.inodes).sum();
    page.gauge("sealfs_node_inodes", "Files, directories and other inodes of this node.")
        .sample(&[], inodes);
    let shards: usize = told.iter().map(|told| told.core.shards).sum();
    page.gauge("sealfs_node_shards", "Shards of this node.").sample(&[], shards);
    page.counter(
        "sealfs_node_inodes_reclaimed_total",
        "Inodes that were freed after their last unlink.",
    )
    .sample(&[], counters.of(Counted::InodesReclaimed));
    page.counter(
        "sealfs_node_bad_blocks_total",
        "Reads that found a block whose checksum is wrong; each was answered with EIO.",
    )
    .sample(&[], counters.of(Counted::BadBlocks));
}

fn sessions(page: &mut Page, counters: &Counters, told: &[Told]) {
    let alive = told.iter().map(|told| told.core.sessions).max().unwrap_or(0);
    page.gauge("sealfs_node_sessions", "Clients whose lease lives.").sample(&[], u64::from(alive));
    page.counter(
        "sealfs_node_sessions_ended_total",
        "Sessions that have ended, by a farewell or with their lease.",
    )
    .sample(&[], counters.of(Counted::SessionsEnded));
    let opens: usize = told.iter().map(|told| told.core.opens).sum();
    page.gauge("sealfs_node_open_files", "Files of this node that are open, once for each client.")
        .sample(&[], opens);
    let locks: usize = told.iter().map(|told| told.core.locks).sum();
    page.gauge("sealfs_node_locks", "Locks that are held.").sample(&[], locks);
    page.counter(
        "sealfs_node_transactions_total",
        "Parts of changes over several shards that this node was asked for.",
    )
    .sample(&[], counters.of(Counted::Transactions));
    page.counter(
        "sealfs_node_transactions_retried_total",
        "Changes over several shards that were begun anew because another one held a key.",
    )
    .sample(&[], counters.of(Counted::TransactionsRetried));
    page.counter(
        "sealfs_node_transactions_half_lost_total",
        "Changes over several shards of which a loss of power has taken a part.",
    )
    .sample(&[], counters.of(Counted::TransactionsHalfLost));
}

/// A turn takes milliseconds. A scrape waits ten seconds, unless it is told otherwise.
const PATIENCE: Duration = Duration::from_secs(2);
