//! As much of HTTP/1.1 (RFC 9112) as a scrape needs: one path, one answer per connection.
//!
//! Blocking sockets and a thread per connection, for there are a few scrapes a minute, and their time must not be the time of
//! threads that serve.
//!
//! 1. At most [`CONNECTIONS_MAX`] connections are open. One more ends the oldest of those for which no page is being made at
//!    the moment: who holds connections keeps nobody out. At most [`THREADS_MAX`] threads are at it, those that are just
//!    ending among them; a connection beyond them is told 503 and closed.
//! 2. A request has [`REQUEST_MAX`] to arrive, and a connection lives for [`PATIENCE`] at most, however slowly its peer sends
//!    or reads.
//! 3. Of a request at most [`HEAD_LEN_MAX`] bytes are kept. Bodies are not read.
//! 4. Nothing that a peer sends ends a thread other than its own, or is written to the log.
//! 5. When an [`Endpoint`] is dropped its port is free.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::Failure;

/// Makes the page; an error is what a scrape is told instead.
pub(super) type Make = Arc<dyn Fn() -> Result<String, String> + Send + Sync>;

/// A bound address.
pub(super) struct Listener {
    socket: TcpListener,
    address: SocketAddr,
}

/// A thread that accepts.
pub(super) struct Endpoint {
    socket: Arc<TcpListener>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    pub(super) fn bind(address: &str) -> Result<Self, Failure> {
        let bound = TcpListener::bind(address).and_then(|socket| {
            let address = socket.local_addr()?;
            Ok(Self { socket, address })
        });
        bound.map_err(|error| {
            format!("cannot offer metrics on {address}: {error}; write --metrics ADDR:PORT with a free port").into()
        })
    }

    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn serve(self, make: Make) -> Result<Endpoint, Failure> {
        let socket = Arc::new(self.socket);
        let accepting = Arc::clone(&socket);
        let thread = thread::Builder::new()
            .name("metrics".into())
            .spawn(move || accept(&accepting, &make))
            .map_err(|error| format!("cannot start a thread for metrics: {error}"))?;
        Ok(Endpoint { socket, address: self.address, thread: Some(thread) })
    }
}

impl Endpoint {
    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        // Ends the wait of accept(2).
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Accepts until the socket is shut down.
fn accept(socket: &TcpListener, make: &Make) {
    let open = Arc::new(Mutex::new(Open::default()));
    loop {
        let stream = match socket.accept() {
            Ok((stream, _)) => stream,
            // The socket was shut down.
            Err(error) if error.kind() == ErrorKind::InvalidInput => return,
            // Out of descriptors, or the peer has gone again: others may still come.
            Err(_) => {
                thread::sleep(PAUSE);
                continue;
            }
        };
        let Some(place) = Place::take(&open, &stream) else {
            let mut peer = Peer::new(stream, PAUSE);
            let _ = peer.send(&Response::error(503, "too many connections"), true);
            continue;
        };
        let make = Arc::clone(make);
        let begun = thread::Builder::new().name("scrape".into()).spawn(move || {
            // Whoever goes away in between needs no answer.
            let _ = answer(Peer::new(stream, REQUEST_MAX), &place, &make);
        });
        if begun.is_err() {
            thread::sleep(PAUSE);
        }
    }
}

/// What is open.
#[derive(Default)]
struct Open {
    /// The oldest first.
    connections: Vec<Arc<Connection>>,
    threads: usize,
}

struct Connection {
    stream: TcpStream,
    /// Its page is being made.
    is_served: AtomicBool,
}

/// One of the connections that may be open.
struct Place {
    open: Arc<Mutex<Open>>,
    connection: Arc<Connection>,
}

impl Place {
    fn take(open: &Arc<Mutex<Open>>, stream: &TcpStream) -> Option<Self> {
        let stream = stream.try_clone().ok()?;
        let connection = Arc::new(Connection { stream, is_served: AtomicBool::new(false) });
        let mut all = lock(open);
        if all.threads == THREADS_MAX {
            return None;
        }
        if all.connections.len() == CONNECTIONS_MAX {
            let is_idle = |one: &Arc<Connection>| !one.is_served.load(Ordering::Acquire);
            let oldest = all.connections.iter().position(is_idle)?;
            // Its thread ends with it.
            let _ = all.connections.remove(oldest).stream.shutdown(Shutdown::Both);
        }
        all.connections.push(Arc::clone(&connection));
        all.threads += 1;
        drop(all);
        Some(Self { open: Arc::clone(open), connection })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = lock(&self.open);
        all.connections.retain(|other| !Arc::ptr_eq(other, &self.connection));
        all.threads -= 1;
    }
}

fn lock(open: &Mutex<Open>) -> MutexGuard<'_, Open> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

fn answer(mut peer: Peer, place: &Place, make: &Make) -> io::Result<()> {
    let (response, with_body) = match peer.head() {
        Ok(head) => {
            place.connection.is_served.store(true, Ordering::Release);
            let response = respond(&head, make);
            place.connection.is_served.store(false, Ordering::Release);
            peer.until = peer.begun + PATIENCE;
            response
        }
        Err(Unread::TooLong) => (Response::error(431, "the request's head is too long"), true),
        Err(Unread::Late) => (Response::error(408, "the request came too slowly"), true),
        Err(Unread::Gone) => return Ok(()),
    };
    peer.send(&response, with_body)
}

/// The answer to a request, and whether its body is sent.
fn respond(head: &[u8], make: &Make) -> (Response, bool) {
    let bad = || (Response::error(400, "this is no HTTP/1 request"), true);
    let Ok(head) = std::str::from_utf8(head) else { return bad() };
    let line = head.split("\r\n").next().unwrap_or_default();
    let words: Vec<&str> = line.split(' ').collect();
    let [method, target, version] = words[..] else { return bad() };
    if !version.starts_with("HTTP/1.") {
        return bad();
    }
    let with_body = method != "HEAD";
    let path = target.split('?').next().unwrap_or_default();
    let response = match (method, path) {
        ("GET" | "HEAD", "/metrics") => match make() {
            Ok(page) => Response { status: 200, kind: PAGE_KIND, body: page },
            Err(cause) => Response::error(503, &cause),
        },
        ("GET" | "HEAD", _) => Response::error(404, "there is /metrics and nothing else"),
        _ => Response::error(405, "GET /metrics is all that there is"),
    };
    (response, with_body)
}

struct Response {
    status: u16,
    kind: &'static str,
    body: String,
}

impl Response {
    fn error(status: u16, text: &str) -> Self {
        Self { status, kind: "text/plain; charset=utf-8", body: format!("{text}\n") }
    }

    fn head(&self) -> String {
        let reason = match self.status {
            200 => "OK",
            400 => "Bad Request",
            404 => "Not Found",
            405 => "Method Not Allowed",
            408 => "Request Timeout",
            431 => "Request Header Fields Too Large",
            _ => "Service Unavailable",
        };
        let Self { status, kind, body } = self;
        let allow = if *status == 405 { "Allow: GET, HEAD\r\n" } else { "" };
        format!(
            "HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{allow}Connection: close\r\n\r\n",
            body.len()
        )
    }
}

/// Why there is no request.
enum Unread {
    TooLong,
    Late,
    Gone,
}

/// The other end, until its time is over.
struct Peer {
    stream: TcpStream,
    begun: Instant,
    until: Instant,
}

impl Peer {
    fn new(stream: TcpStream, patience: Duration) -> Self {
        let begun = Instant::now();
        Self { stream, begun, until: begun + patience }
    }

    /// What is left of its time; an error if there is none.
    fn left(&self) -> io::Result<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
    }

    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        self.stream.read(bytes)
    }

    /// The request's head, up to the empty line.
    fn head(&mut self) -> Result<Vec<u8>, Unread> {
        let mut head = Vec::new();
        let mut bytes = [0; 1_024];
        loop {
            match self.read(&mut bytes) {
                Ok(0) => return Err(Unread::Gone),
                Ok(len) => {
                    // The end may lie across two reads.
                    let from = head.len().saturating_sub(END.len() - 1);
                    head.extend_from_slice(&bytes[..len]);
                    if head[from..].windows(END.len()).any(|window| window == END) {
                        return Ok(head);
                    }
                    if head.len() > HEAD_LEN_MAX {
                        return Err(Unread::TooLong);
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if is_late(&error) => return Err(Unread::Late),
                Err(_) => return Err(Unread::Gone),
            }
        }
    }

    fn send(&mut self, response: &Response, with_body: bool) -> io::Result<()> {
        // Who was late with the request is told so all the same.
        self.until = self.until.max(Instant::now() + PAUSE);
        let head = response.head();
        for mut bytes in
            [head.as_bytes(), response.body.as_bytes()].into_iter().take(1 + usize::from(with_body))
        {
            while !bytes.is_empty() {
                self.stream.set_write_timeout(Some(self.left()?))?;
                match self.stream.write(bytes) {
                    Ok(0) => return Err(ErrorKind::WriteZero.into()),
                    Ok(len) => bytes = &bytes[len..],
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        self.stream.shutdown(Shutdown::Write)?;
        // Closing with bytes unread would reset the connection, and the peer might lose the answer.
        let (mut bytes, mut unread) = ([0; 4_096], UNREAD_MAX);
        while unread > 0 {
            let len = self.read(&mut bytes)?;
            if len == 0 {
                break;
            }
            unread = unread.saturating_sub(len);
        }
        Ok(())
    }
}

fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// A few servers that scrape and a person who looks.
const CONNECTIONS_MAX: usize = 8;
/// Threads of connections that were ended in favour of others end at once, but not before.
const THREADS_MAX: usize = 4 * CONNECTIONS_MAX;
/// Who scrapes sends its request with the connection's first packet.
const REQUEST_MAX: Duration = Duration::from_secs(1);
/// A scrape waits ten seconds unless it is told otherwise.
const PATIENCE: Duration = Duration::from_secs(5);
/// For what must not take long: telling somebody that there is no time for him.
const PAUSE: Duration = Duration::from_millis(50);
/// Prometheus sends 300 bytes.
const HEAD_LEN_MAX: usize = 8 * 1_024;
/// Bytes that are read from a peer who was answered.
const UNREAD_MAX: usize = 64 * 1_024;
const END: &[u8] = b"\r\n\r\n";
const PAGE_KIND: &str = "text/plain; version=0.0.4; charset=utf-8";

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(make: impl Fn() -> Result<String, String> + Send + Sync + 'static) -> Endpoint {
        Listener::bind("127.0.0.1:0").unwrap().serve(Arc::new(make)).unwrap()
    }

    fn ask(endpoint: &Endpoint, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(endpoint.address()).unwrap();
        stream.write_all(request).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn there_is_one_path_and_everything_else_is_an_error() {
        let endpoint = endpoint(|| Ok("a 1\n".into()));
        for (request, status, end) in [
            ("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 200, "\r\n\r\na 1\n"),
            ("GET /metrics?x=1 HTTP/1.0\r\n\r\n", 200, "\r\n\r\na 1\n"),
            ("HEAD /metrics HTTP/1.1\r\n\r\n", 200, "Connection: close\r\n\r\n"),
            ("GET / HTTP/1.1\r\n\r\n", 404, "/metrics and nothing else\n"),
            ("POST /metrics HTTP/1.1\r\n\r\nbody", 405, "\n"),
            ("GET /metrics SPDY/3\r\n\r\n", 400, "\n"),
            ("\r\n\r\n", 400, "\n"),
            ("GET  /metrics HTTP/1.1\r\n\r\n", 400, "\n"),
        ] {
            let response = ask(&endpoint, request.as_bytes());
            assert!(
                response.starts_with(&format!("HTTP/1.1 {status} ")),
                "{request:?}: {response}"
            );
            assert!(response.ends_with(end), "{request:?}: {response}");
        }
        let long = [b"GET /metrics HTTP/1.1\r\nX: ".as_slice(), &[b'a'; 2 * HEAD_LEN_MAX]].concat();
        assert!(ask(&endpoint, &long).starts_with("HTTP/1.1 431 "));
        assert!(ask(&endpoint, b"\xff\xfe\r\n\r\n").starts_with("HTTP/1.1 400 "));
    }

    #[test]
    fn a_page_that_cannot_be_made_is_an_error_with_its_cause() {
        let endpoint = endpoint(|| Err("core 1 has not answered".into()));
        let response = ask(&endpoint, b"GET /metrics HTTP/1.1\r\n\r\n");
        assert!(
            response.starts_with("HTTP/1.1 503 ")
                && response.ends_with("core 1 has not answered\n")
        );
    }

    #[test]
    fn who_holds_connections_keeps_nobody_out() {
        let endpoint = endpoint(|| Ok("a 1\n".into()));
        let silent: Vec<TcpStream> =
            (0..CONNECTIONS_MAX).map(|_| TcpStream::connect(endpoint.address()).unwrap()).collect();
        let answered = ask(&endpoint, b"GET /metrics HTTP/1.1\r\n\r\n");
        assert!(answered.starts_with("HTTP/1.1 200 "), "{answered}");
        // One of them has made room without a word; the others are told that they were too slow.
        let ends = silent.into_iter().map(|mut stream| {
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        });
        let ends: Vec<String> = ends.collect();
        assert_eq!(ends.iter().filter(|end| end.is_empty()).count(), 1, "{ends:?}");
        assert_eq!(
            ends.iter().filter(|end| end.starts_with("HTTP/1.1 408 ")).count(),
            CONNECTIONS_MAX - 1,
            "{ends:?}"
        );
    }

    #[test]
    fn who_is_being_answered_makes_no_room() {
        let (begun, begins) = std::sync::mpsc::channel();
        let (go, may_go) = std::sync::mpsc::channel::<()>();
        let may_go = Mutex::new(may_go);
        let endpoint = endpoint(move || {
            begun.send(()).unwrap();
            let _ = may_go.lock().unwrap().recv();
            Ok("a 1\n".into())
        });
        thread::scope(|scope| {
            let request = b"GET /metrics HTTP/1.1\r\n\r\n";
            let busy: Vec<_> =
                (0..CONNECTIONS_MAX).map(|_| scope.spawn(|| ask(&endpoint, request))).collect();
            busy.iter().for_each(|_| begins.recv().unwrap());
            let refused = ask(&endpoint, request);
            drop(go);
            assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
            for answer in busy {
                assert!(answer.join().unwrap().starts_with("HTTP/1.1 200 "));
            }
        });
    }

    #[test]
    fn a_peer_that_does_not_read_is_left_behind() {
        let endpoint = endpoint(|| Ok("a".repeat(64 << 20)));
        let mut stream = TcpStream::connect(endpoint.address()).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
        thread::sleep(PATIENCE + PAUSE);
        // What lies in the sockets can still be read, then the connection is over.
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        assert!(bytes.len() < 64 << 20);
    }

    #[test]
    fn the_port_is_free_when_it_has_ended() {
        let endpoint = endpoint(|| Ok(String::new()));
        let address = endpoint.address().to_string();
        let taken = Listener::bind(&address).err().unwrap().to_string();
        assert!(taken.contains(&address) && taken.contains("--metrics"), "{taken}");
        drop(endpoint);
        assert!(Listener::bind(&address).is_ok());
    }
}
