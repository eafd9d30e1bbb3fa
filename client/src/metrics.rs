//! A mount's figures on the page that Prometheus scrapes.
//!
//! The mount's thread counts for itself and shares nothing; it is asked through a channel and a wake of its ring, and answers
//! between two turns of its loop. A mount that nobody scrapes pays for its counting alone.
//!
//! 1. A thread that does not answer in [`PATIENCE`] makes the scrape fail and nothing else.
//! 2. There is room for one question; who asks while it waits is told that the thread is late.
//!
//! docs/metrics.md lists what is written here.

use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

use sealfs_client_core::FsFigures;
use sealfs_metrics::Page;
use sealfs_ring::Wake;
use sealfs_transport::{PeerStatus, payload_of_process};

use crate::fuse::Counts;

/// Writes a running mount's figures; from any thread. A clone asks the same mount.
#[derive(Clone, Debug)]
pub struct MountMetrics {
    questions: SyncSender<Question>,
    wake: Wake,
}

/// The mount's thread has not answered: it is busy with one turn for a long time, or the mount has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the mount's thread has not answered: it is busy with one turn for a long time, or has ended"
)]
pub struct Late;

/// Where the answer goes.
pub(crate) type Question = Sender<Told>;

/// What the mount's thread tells.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) counts: Counts,
    pub(crate) in_flight: usize,
    pub(crate) fs: FsFigures,
    pub(crate) nodes: Vec<PeerStatus>,
    /// Bytes of its buffers, and how many are free.
    pub(crate) buffers: (usize, usize),
}

/// Both ends of a mount's box.
pub(crate) fn question_box(wake: Wake) -> (MountMetrics, Receiver<Question>) {
    let (questions, receiver) = sync_channel(1);
    (MountMetrics { questions, wake }, receiver)
}

impl MountMetrics {
    /// Adds the mount's families to the page; nothing if its thread is late. Blocks for two seconds at most.
    pub fn write(&self, page: &mut Page) -> Result<(), Late> {
        let (answer, receiver) = channel();
        self.questions.try_send(answer).map_err(|_| Late)?;
        self.wake.wake();
        let told = receiver.recv_timeout(PATIENCE).map_err(|_| Late)?;
        operations(page, &told);
        files(page, &told);
        nodes(page, &told.nodes);
        Ok(())
    }
}

fn operations(page: &mut Page, told: &Told) {
    let counts = &told.counts;
    let mut asked = page.counter(
        "sealfs_mount_operations_total",
        "Requests of the kernel that have arrived, by kind.",
    );
    for (name, count, _) in counts.each() {
        asked.sample(&[("kind", name)], count);
    }
    let mut errors = page.counter(
        "sealfs_mount_operation_errors_total",
        "Requests of the kernel that were answered with an error, by kind and errno; many are what programs expect.",
    );
    for (name, errno, count) in counts.errors() {
        errors.sample(&[("kind", name), ("errno", &errno.to_string())], count);
    }
    let mut took = page.histogram(
        "sealfs_mount_operation_seconds",
        "From reading a request of the kernel to its answer, by kind, in turns of the mount's loop.",
    );
    for (name, _, histogram) in counts.each().filter(|(_, _, histogram)| histogram.count() > 0) {
        took.durations(&[("kind", name)], histogram);
    }
    page.gauge(
        "sealfs_mount_operations_in_flight",
        "Requests of the kernel that are not answered.",
    )
    .sample(&[], told.in_flight);
    page.counter("sealfs_mount_read_bytes_total", "Bytes of files that the kernel was given.")
        .sample(&[], counts.read);
    page.counter("sealfs_mount_written_bytes_total", "Bytes of files that the kernel has written.")
        .sample(&[], counts.written);
    let mut payload = page.counter(
        "sealfs_mount_payload_bytes_total",
        "Bytes of payload that the mount has moved, by what was done to them.",
    );
    for (name, bytes) in payload_of_process().named() {
        payload.sample(&[("moved", name.trim_start_matches("payload_"))], bytes);
    }
    let (all, free) = told.buffers;
    page.gauge("sealfs_mount_buffer_bytes", "Memory for data in flight.").sample(&[], all);
    page.gauge("sealfs_mount_buffer_free_bytes", "Memory for data in flight that is free.")
        .sample(&[], free);
}

fn files(page: &mut Page, told: &Told) {
    let FsFigures { handles, files, dirty, locked, sessions_ended } = told.fs;
    page.gauge("sealfs_mount_open_files", "Open files, once for each open.").sample(&[], handles);
    page.gauge("sealfs_mount_known_files", "Files that are open, dirty or locked.")
        .sample(&[], files);
    page.gauge(
        "sealfs_mount_dirty_files",
        "Files whose size, times or space a node has yet to be told.",
    )
    .sample(&[], dirty);
    page.gauge("sealfs_mount_locked_files", "Files of which locks are held.").sample(&[], locked);
    page.counter(
        "sealfs_mount_sessions_ended_total",
        "Sessions with a node that it has ended, for the lease was over.",
    )
    .sample(&[], sessions_ended);
}

fn nodes(page: &mut Page, nodes: &[PeerStatus]) {
    let mut with = page.gauge(
        "sealfs_mount_node_info",
        "Always 1; with which transport the mount is connected to the node.",
    );
    for node in nodes {
        if let Some(transport) = node.connected {
            let labels = [("peer", &*node.node.to_string()), ("transport", &transport.to_string())];
            with.sample(&labels, 1_u64);
        }
    }
    let mut each = |is_counter, name, help, of: fn(&PeerStatus) -> u64| {
        let mut samples =
            if is_counter { page.counter(name, help) } else { page.gauge(name, help) };
        for node in nodes {
            samples.sample(&[("peer", &node.node.to_string())], of(node));
        }
    };
    each(
        false,
        "sealfs_mount_node_connected",
        "Whether the mount is connected to the node.",
        |node| u64::from(node.connected.is_some()),
    );
    each(
        true,
        "sealfs_mount_node_reconnects_total",
        "Connections to the node after the first one.",
        |node| node.reconnects,
    );
    each(
        true,
        "sealfs_mount_node_failures_total",
        "Connections to the node that could not be made or have ended by an error.",
        |node| node.failures,
    );
    each(
        true,
        "sealfs_mount_node_resends_total",
        "Calls to the node that were sent again.",
        |node| node.resent,
    );
    each(
        false,
        "sealfs_mount_node_calls_in_flight",
        "Calls to the node that are not answered.",
        |node| node.in_flight,
    );
}

/// A turn takes milliseconds. A scrape waits ten seconds, unless it is told otherwise.
const PATIENCE: Duration = Duration::from_secs(2);
