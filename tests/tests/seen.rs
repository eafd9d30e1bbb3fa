//! What can be seen of sealfs from outside, and told to it: metrics with Debian's Prometheus and promtool, signals, settings
//! that change while a node runs, the log. As root on Debian; `ci/test.sh` installs what is needed.

#[path = "seen/drain.rs"]
mod drain;
#[path = "seen/prometheus.rs"]
mod prometheus;
#[path = "seen/reload.rs"]
mod reload;
#[path = "seen/scrape.rs"]
mod scrape;
#[path = "seen/shell.rs"]
mod shell;
#[path = "seen/signals.rs"]
mod signals;
