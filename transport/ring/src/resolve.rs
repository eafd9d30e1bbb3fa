//! From `host:port` to socket addresses, by the system's resolver.
//!
//! The resolver blocks, perhaps for half a minute, and the endpoint's thread serves everybody else meanwhile. So it is
//! asked on that thread only once per name, when an endpoint begins; after that a thread of its own asks, and what was
//! known before serves until it has answered.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Addresses that were looked up. Numbers need no look-up.
#[derive(Debug, Default)]
pub struct Resolver(Arc<Mutex<Names>>);

#[derive(Debug, Default)]
struct Names {
    /// What the resolver said last; once a name had addresses, the last ones.
    known: BTreeMap<String, Found>,
    /// Names about which it is being asked.
    asked: BTreeSet<String>,
}

type Found = Result<Vec<SocketAddr>, String>;

/// Names kept; more than the nodes of a cluster are not asked for.
const KNOWN_MAX: usize = 2 * sealfs_proto::limits::NODES_MAX;

impl Resolver {
    /// The addresses of `text`, at least one. The error says what to do. Blocks when a name is asked for the first time.
    pub fn look_up(&self, text: &str) -> io::Result<Vec<SocketAddr>> {
        if let Ok(address) = text.parse() {
            return Ok(vec![address]);
        }
        let known = self.names().known.get(text).cloned();
        let found = known.unwrap_or_else(|| {
            let found = ask(text);
            self.names().learn(text, found.clone());
            found
        });
        if found.is_err() {
            self.refresh(text);
        }
        found.map_err(io::Error::other)
    }

    /// Has the resolver asked again, for what it said leads nowhere. Does not wait for it.
    pub fn refresh(&self, text: &str) {
        let is_name = text.parse::<SocketAddr>().is_err();
        if !is_name || !self.names().asked.insert(text.to_owned()) {
            return;
        }
        let (resolver, name) = (Self(Arc::clone(&self.0)), text.to_owned());
        let asking = move || {
            let found = ask(&name);
            let mut names = resolver.names();
            names.learn(&name, found);
            names.asked.remove(&name);
        };
        if let Err(error) = thread::Builder::new().name("sealfs-names".into()).spawn(asking) {
            tracing::warn!(%error, "cannot look up {text} anew: no thread can be started");
            self.names().asked.remove(text);
        }
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        // Nothing that holds it panics half way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Names {
    fn learn(&mut self, text: &str, found: Found) {
        let had_addresses = matches!(self.known.get(text), Some(Ok(_)));
        let has_room = self.known.len() < KNOWN_MAX || self.known.contains_key(text);
        if has_room && (found.is_ok() || !had_addresses) {
            self.known.insert(text.to_owned(), found);
        }
    }
}

fn ask(text: &str) -> Found {
    let found = text.to_socket_addrs().map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput => "not HOST:PORT".to_owned(),
        _ => format!("{error}; check the name (`getent hosts NAME`)"),
    })?;
    let found: Vec<SocketAddr> = found.collect();
    if found.is_empty() { Err("the name has no address".to_owned()) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_found_and_nonsense_is_explained() {
        let resolver = Resolver::default();
        assert_eq!(resolver.look_up("127.0.0.1:9").unwrap(), ["127.0.0.1:9".parse().unwrap()]);
        let local = resolver.look_up("localhost:9").unwrap();
        assert!(local.iter().all(|address| address.ip().is_loopback() && address.port() == 9));
        assert_eq!(resolver.look_up("localhost:9").unwrap(), local);
        assert!(resolver.look_up("nonsense").unwrap_err().to_string().contains("HOST:PORT"));
    }

    #[test]
    fn what_was_known_serves_until_there_is_better() {
        let resolver = Resolver::default();
        let old: Vec<SocketAddr> = vec!["127.0.0.9:9".parse().unwrap()];
        resolver.names().learn("name:9", Ok(old.clone()));
        resolver.names().learn("name:9", Err("the resolver is away".into()));
        assert_eq!(resolver.look_up("name:9").unwrap(), old, "it is not asked on this thread");
        resolver.names().learn("localhost:9", Ok(old.clone()));
        resolver.refresh("localhost:9");
        while resolver.names().asked.contains("localhost:9") {
            thread::yield_now();
        }
        assert_ne!(resolver.look_up("localhost:9").unwrap(), old);
    }
}
