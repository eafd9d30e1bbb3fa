//! What can be seen of sealfs from outside, with the tools that administrators use: Debian's Prometheus and promtool, bash,
//! man, systemd-analyze. As root on Debian; `ci/test.sh` installs them.

#[path = "seen/prometheus.rs"]
mod prometheus;
#[path = "seen/scrape.rs"]
mod scrape;
