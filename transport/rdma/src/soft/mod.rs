//! Verbs inside one process, without a NIC: for tests and simulations of what lies above.
//!
//! A [`Network`] has hosts, each with one provider ([`SoftVerbs`]) and the address 192.0.2.n. Nothing moves but by
//! [`Network::step`], which does posted work of randomly chosen links: completions of different links come in any order, and
//! a read may end after messages that were posted behind it unless they are fenced, as a real device does.
//!
//! It is stricter than a device: a peer reaches only what is lent over the very link at that moment, reads only offers and
//! writes only room; anything else fails with [`Fault::RemoteAccess`]. Limits are small, so that they are met.
//!
//! On demand: work fails ([`Network::fail_next`]), hosts fall silent ([`Network::silence`]) and start again
//! ([`Network::start`]), lose each other ([`Network::cut`]), and give up who does not answer ([`Network::expire`]).

mod fabric;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

use sealfs_ring::{File, Pool};

use crate::verbs::{
    Access, Facts, Failure, Fault, Happening, Limits, Link, Loan, Remote, Verbs, Work,
};
use fabric::Fabric;

/// A network of hosts. A clone is the same network.
#[derive(Clone)]
pub struct Network(Rc<RefCell<Fabric>>);

/// One host's provider. Dropped, it is a process that was killed: its peers are told.
pub struct SoftVerbs {
    fabric: Rc<RefCell<Fabric>>,
    host: usize,
}

/// Names a host to [`Network`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host(usize);

/// Work by its kind, to have it fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// [`Work::Send`].
    Send,
    /// [`Work::Read`].
    Read,
    /// [`Work::Write`].
    Write,
    /// [`Work::Probe`].
    Probe,
}

impl Network {
    /// A network whose choices follow from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Rc::new(RefCell::new(Fabric::new(seed))))
    }

    /// A new host's provider.
    #[must_use]
    pub fn host(&self) -> SoftVerbs {
        self.start(self.add())
    }

    /// A new host on which nothing runs yet.
    #[must_use]
    pub fn add(&self) -> Host {
        Host(self.0.borrow_mut().add_host())
    }

    /// The provider of a process that starts on a host; the one before it is gone.
    #[must_use]
    pub fn start(&self, host: Host) -> SoftVerbs {
        self.0.borrow_mut().start(host.0);
        SoftVerbs { fabric: Rc::clone(&self.0), host: host.0 }
    }

    /// Does some of what was posted; whether there was anything to do.
    pub fn step(&self) -> bool {
        self.0.borrow_mut().step()
    }

    /// The next work of this kind that the host posts fails.
    pub fn fail_next(&self, host: Host, kind: Kind, fault: Fault) {
        self.0.borrow_mut().fail_next(host.0, kind, fault);
    }

    /// The host loses its power: nothing comes from it any more, and nobody is told.
    pub fn silence(&self, host: Host) {
        self.0.borrow_mut().silence(host.0);
    }

    /// Nothing passes between two hosts any more, until [`Network::heal`].
    pub fn cut(&self, one: Host, other: Host) {
        self.0.borrow_mut().cut(one.0, other.0);
    }

    /// What is under way between the two hosts, and was not given up, goes on.
    pub fn heal(&self, one: Host, other: Host) {
        self.0.borrow_mut().heal(one.0, other.0);
    }

    /// Devices give up: work for hosts that are silent or out of reach fails.
    pub fn expire(&self) {
        self.0.borrow_mut().expire();
    }

    /// Whether some host has something to poll.
    #[must_use]
    pub fn has_news(&self) -> bool {
        self.0.borrow().has_news()
    }

    /// Whether posted work waits for a host that is silent or out of reach.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        self.0.borrow().is_stuck()
    }

    /// The host may register so many bytes of memory from now on, what it has registered already included.
    pub fn limit_memory(&self, host: Host, bytes: u64) {
        self.0.borrow_mut().limit_memory(host.0, bytes);
    }

    /// Receive buffers of the host that are free, and messages that met none.
    #[must_use]
    pub fn buffers(&self, host: Host) -> (usize, u64) {
        self.0.borrow().buffers(host.0)
    }
}

impl SoftVerbs {
    /// Its name.
    #[must_use]
    pub const fn name(&self) -> Host {
        Host(self.host)
    }

    /// Its address, without a port.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.name().address()
    }
}

impl Host {
    /// Its address, without a port.
    #[must_use]
    pub fn address(self) -> SocketAddr {
        fabric::address_of(self.0)
    }
}

impl Verbs for SoftVerbs {
    fn listen(&mut self, address: SocketAddr, share: bool) -> Result<SocketAddr, Failure> {
        self.fabric.borrow_mut().listen(self.host, address, share)
    }

    fn resolve(&mut self, address: SocketAddr, _timeout_ms: u64) -> Result<Link, Failure> {
        Ok(self.fabric.borrow_mut().resolve(self.host, address))
    }

    fn connect(&mut self, link: Link, private: &[u8]) -> Result<(), Failure> {
        self.fabric.borrow_mut().connect(self.host, link, private);
        Ok(())
    }

    fn accept(&mut self, link: Link, private: &[u8]) -> Result<(), Failure> {
        self.fabric.borrow_mut().accept(link, private);
        Ok(())
    }

    fn destroy(&mut self, link: Link) -> Vec<(u64, Loan)> {
        self.fabric.borrow_mut().destroy(link)
    }

    fn post(&mut self, link: Link, chain: Vec<Work>) -> Result<(), Failure> {
        self.fabric.borrow_mut().post(link, chain);
        Ok(())
    }

    fn room(&self, link: Link) -> usize {
        self.fabric.borrow().room(link)
    }

    fn limits(&self, _link: Link) -> Limits {
        fabric::LIMITS
    }

    fn lend(&mut self, link: Link, token: u64, loan: Loan) -> Result<Remote, Loan> {
        self.fabric.borrow_mut().lend(link, token, loan)
    }

    fn reclaim(&mut self, link: Link, token: u64) -> Option<Loan> {
        self.fabric.borrow_mut().reclaim(link, token)
    }

    fn register(&mut self, pool: &Pool, access: Access) -> Result<(), Failure> {
        self.fabric.borrow_mut().register(self.host, pool, access)
    }

    fn is_registered(&self, bytes: &[u8]) -> bool {
        self.fabric.borrow().key(self.host, bytes, Access::Local).is_some()
    }

    fn poll(&mut self) -> Option<Happening> {
        self.fabric.borrow_mut().poll(self.host)
    }

    fn arm(&mut self) {}

    fn descriptors(&self) -> &[(u64, File)] {
        &[]
    }

    fn woken(&mut self, _number: u64) {}

    fn retry_ms(&self) -> Option<u64> {
        None
    }

    fn facts(&self, _link: Link) -> Facts {
        Facts {
            device: format!("soft{}", self.host),
            port: 1,
            gid: (0, "software".into()),
            mtu: 4_096,
            depth: fabric::LIMITS.depth,
        }
    }
}

impl Drop for SoftVerbs {
    fn drop(&mut self) {
        self.fabric.borrow_mut().remove_host(self.host);
    }
}
