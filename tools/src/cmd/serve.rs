//! `sealfs serve`.

use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use sealfs_server::{Server, Settings, Stopper};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::Failure;
use crate::log::{self, Log};
use crate::metrics::{Listener, Source};
use crate::notify::{READY, STOPPING, notify};
use crate::reload::Reloadable;

/// Runs a node in the foreground until SIGTERM or SIGINT, which finish what was begun (a second one ends at once). SIGHUP
/// reads --config again. Prints one line when it is ready.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Data directory, or a block device (a disk or a partition, which must be empty); formatted at the first start.
    #[arg(long, value_name = "DIR|DEVICE")]
    data: Option<PathBuf>,
    /// Where to listen; port 0 takes a free one.
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<String>,
    /// All nodes: a file, or a list `[ID@]HOST:PORT [weight=N], ...`. Fixed at the first start, but for addresses.
    #[arg(long, value_name = "FILE|LIST")]
    nodes: Option<String>,
    /// This node's id; else the node in the list with the address of --listen.
    #[arg(long)]
    id: Option<u16>,
    /// Processors to pin a thread to each: `0-3`, `0,2`.
    #[arg(long)]
    cores: Option<String>,
    /// How peers reach this node: tcp, rdma, or auto (both where there is RDMA).
    #[arg(long, value_name = "tcp|rdma|auto")]
    transport: Option<String>,
    /// The RDMA device; else whichever the route to a peer goes through.
    #[arg(long, value_name = "DEVICE")]
    rdma_device: Option<String>,
    /// What threads do while they wait: adaptive (the default: look for a moment if something is likely to come, then
    /// sleep), spin (never sleep; a processor each) or sleep.
    #[arg(long, value_name = "adaptive|spin|sleep")]
    poll: Option<String>,
    /// File with the key that all nodes and clients share (`sealfs key` makes one).
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// When a change counts as kept: process (survives the death of the process), power (synced before the reply) or
    /// scratch.
    #[arg(long)]
    durability: Option<String>,
    /// Size of the volume, at the first start: `100G`. Default: half of what is free, or the rest of a device.
    #[arg(long)]
    size: Option<String>,
    /// Buffers per core: `128M`.
    #[arg(long)]
    memory: Option<String>,
    /// The one user, beside root, whose programs are served; all others get EACCES. Default: everybody's.
    #[arg(long, value_name = "UID")]
    only_uid: Option<u32>,
    /// Seconds after which a silent client's session ends: at least 90. Default: 120.
    #[arg(long, value_name = "SECONDS")]
    lease: Option<u64>,
    /// Accepts a data directory or device that is a copy, whose original is gone for good.
    #[arg(long)]
    adopt: bool,
    /// Where Prometheus can scrape this node: http://ADDR:PORT/metrics. Default: nowhere.
    #[arg(long, value_name = "ADDR:PORT")]
    metrics: Option<String>,
    /// Settings as TOML, named as the flags; flags win.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Args {
    /// What the command line says, `filter` for `--log`, and the settings file.
    fn settings(self, filter: Option<String>) -> (Settings, Option<PathBuf>) {
        let flags = Settings {
            data: self.data,
            listen: self.listen,
            nodes: self.nodes,
            id: self.id,
            cores: self.cores,
            transport: self.transport,
            rdma_device: self.rdma_device,
            poll: self.poll,
            key: self.key,
            durability: self.durability,
            size: self.size,
            memory: self.memory,
            only_uid: self.only_uid,
            lease: self.lease,
            adopt: self.adopt.then_some(true),
            metrics: self.metrics,
            log: filter,
        };
        (flags, self.config)
    }
}

/// `filter`: `--log`, if it was given.
pub(crate) fn run(args: Args, filter: Option<String>, log: Log) -> Result<(), Failure> {
    let (flags, file) = args.settings(filter);
    let settings = match &file {
        Some(file) => flags.clone().over(Settings::from_file(file)?),
        None => flags.clone(),
    };
    log.set(settings.log.as_deref().unwrap_or(log::DEFAULT))?;
    let metrics = settings.metrics.as_deref().map(Listener::bind).transpose()?;
    let config = settings.clone().resolve()?;
    let (id, data) = (config.id, config.data.clone());
    log.detach()?;
    let running = Arc::new(Mutex::new(Running::default()));
    // Before the node's threads start: recovery may take long.
    let (signals, told) = (Signals::new([SIGTERM, SIGINT, SIGHUP])?, Arc::clone(&running));
    let signal_log = log.clone();
    thread::spawn(move || obey(signals, &told, &signal_log));
    let server = Server::start(config)?;
    let of_node = server.metrics();
    let source: Source = Arc::new(move |page| of_node.write(page).map_err(|late| late.to_string()));
    let endpoint = metrics.map(|metrics| metrics.serve(Source::clone(&source))).transpose()?;
    let shown =
        endpoint.as_ref().map(|one| format!(", metrics on http://{}/metrics", one.address()));
    let shown = shown.unwrap_or_default();
    let reloadable = Reloadable { flags, file, settings, log: log.clone(), source, endpoint };
    running.lock().unwrap_or_else(PoisonError::into_inner).begin(server.stopper(), reloadable);
    let mut out = std::io::stdout();
    let address = server.local_addr();
    let _ = writeln!(out, "node {id} is ready on {address}, data in {}{shown}", data.display());
    let _ = out.flush();
    notify(READY);
    let ended = server.wait();
    if let Err(fatal) = &ended {
        log.say(&format!("sealfs: node {id}: {}", fatal.reason));
    }
    log.settle();
    ended.or_else(|fatal| std::process::exit(i32::from(fatal.code)))
}

/// What signals are about.
#[derive(Default)]
struct Running {
    /// None: the node still starts.
    node: Option<(Stopper, Reloadable)>,
    /// Settings came that it could not take yet.
    is_reload_due: bool,
}

impl Running {
    fn begin(&mut self, stopper: Stopper, mut reloadable: Reloadable) {
        if self.is_reload_due {
            reloadable.reload();
        }
        self.node = Some((stopper, reloadable));
    }
}

/// Does what signals ask for, until the process ends. It does before it tells.
fn obey(mut signals: Signals, running: &Mutex<Running>, log: &Log) {
    let mut is_asked = false;
    for signal in signals.forever() {
        let mut running = running.lock().unwrap_or_else(PoisonError::into_inner);
        match (&mut running.node, signal) {
            (Some((_, reloadable)), SIGHUP) => reloadable.reload(),
            (None, SIGHUP) => running.is_reload_due = true,
            (None, _) => {
                // As safe as kill -9: nothing was served, and what it has read is still there.
                notify(STOPPING);
                tracing::info!(
                    signal,
                    "asked to end while it starts: the next start does it again"
                );
                log.settle();
                std::process::exit(0);
            }
            (Some((stopper, _)), _) if !is_asked => {
                is_asked = true;
                stopper.stop();
                notify(STOPPING);
                tracing::info!(
                    signal,
                    "asked to end: finishing what was begun; once more ends at once"
                );
            }
            _ => {
                // As safe as kill -9: what was acknowledged is in the journals.
                tracing::warn!(
                    signal,
                    "asked to end again: ending at once, the next start is as after a crash"
                );
                log.settle();
                std::process::exit(128 + signal);
            }
        }
    }
}
