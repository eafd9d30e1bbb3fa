//! From `host:port` to socket addresses, by the system's resolver.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};

/// Addresses that were looked up. Numbers need no look-up; names block until the resolver answers.
#[derive(Debug, Default)]
pub(crate) struct Resolver {
    known: BTreeMap<String, Vec<SocketAddr>>,
}

/// Names kept; more than the nodes of a cluster are not asked for.
const KNOWN_MAX: usize = 2 * sealfs_proto::limits::NODES_MAX;

impl Resolver {
    /// The addresses of `text`, at least one. The error says what to do.
    pub(crate) fn look_up(&mut self, text: &str) -> io::Result<Vec<SocketAddr>> {
        if let Ok(address) = text.parse() {
            return Ok(vec![address]);
        }
        if let Some(known) = self.known.get(text) {
            return Ok(known.clone());
        }
        let found: Vec<SocketAddr> = text
            .to_socket_addrs()
            .map_err(|error| {
                let cause = match error.kind() {
                    io::ErrorKind::InvalidInput => "not HOST:PORT".to_owned(),
                    _ => format!("{error}; check the name (`getent hosts NAME`)"),
                };
                io::Error::new(error.kind(), cause)
            })?
            .collect();
        if found.is_empty() {
            return Err(io::Error::other("the name has no address"));
        }
        if self.known.len() < KNOWN_MAX {
            self.known.insert(text.to_owned(), found.clone());
        }
        Ok(found)
    }

    /// Asks the resolver again next time.
    pub(crate) fn forget(&mut self, text: &str) {
        self.known.remove(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_found_and_nonsense_is_explained() {
        let mut resolver = Resolver::default();
        assert_eq!(resolver.look_up("127.0.0.1:9").unwrap(), ["127.0.0.1:9".parse().unwrap()]);
        let local = resolver.look_up("localhost:9").unwrap();
        assert!(local.iter().all(|address| address.ip().is_loopback() && address.port() == 9));
        assert_eq!(resolver.look_up("localhost:9").unwrap(), local);
        assert!(resolver.look_up("nonsense").unwrap_err().to_string().contains("HOST:PORT"));
    }
}
