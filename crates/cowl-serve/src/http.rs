//! Metrics over HTTP: a thread for each reader, one request a connection.
//!
//! The sockets are plain blocking ones with a time limit. When there are too many readers, the one
//! that came first has to go, so that readers who stall keep nobody from the metrics.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::ServeError;
use crate::metrics::{MEDIA_TYPE, Metrics};

/// How long a client may send or take nothing.
const STEP_TIMEOUT: Duration = Duration::from_secs(2);

/// How long to leave readers waiting when the process is out of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Readers at a time.
const READERS_MAX: usize = 16;

/// How long a client may take for its request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(4);

/// How much of a request is read.
const HEAD_MAX: usize = 16 << 10;

/// Header lines of a request.
const HEADERS_MAX: usize = 64;

/// A bound socket.
pub(crate) struct MetricsListener {
    listener: TcpListener,
    address: SocketAddr,
}

/// Serves until it is dropped.
pub(crate) struct MetricsServer {
    stopping: Arc<AtomicBool>,
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
}

impl MetricsListener {
    pub(crate) fn bind(address: SocketAddr) -> Result<Self, ServeError> {
        let fail = ServeError::host("Could not listen for readers of metrics");
        let bound = TcpListener::bind(address).and_then(|listener| {
            let address = listener.local_addr()?;
            Ok(Self { listener, address })
        });
        bound.map_err(fail)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn serve(self, metrics: Metrics) -> Result<MetricsServer, ServeError> {
        let Self { listener, .. } = self;
        let clone = listener.try_clone();
        let clone = clone.map_err(ServeError::host("Could not share the socket of metrics"))?;
        let stopping = Arc::new(AtomicBool::new(false));
        let serve = {
            let stopping = Arc::clone(&stopping);
            move || accept(&listener, &metrics, &stopping)
        };
        let thread = std::thread::Builder::new().name("cowl-metrics".to_owned()).spawn(serve);
        let thread = thread.map_err(ServeError::host("Could not start the thread of metrics"))?;
        Ok(MetricsServer { stopping, listener: clone, thread: Some(thread) })
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        // Wakes the thread, which would wait for the next scrape.
        let woken = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        if let (Some(thread), Ok(())) = (self.thread.take(), woken) {
            let _panicked = thread.join();
        }
    }
}

/// A client that is being answered.
struct Reader {
    /// Its thread's own, closed when that ends.
    stream: Weak<TcpStream>,
    thread: JoinHandle<()>,
}

impl Reader {
    fn new(stream: TcpStream, metrics: &Metrics) -> io::Result<Self> {
        let (socket, metrics) = (Arc::new(stream), metrics.clone());
        let stream = Arc::downgrade(&socket);
        let answer = move || {
            if let Err(error) = serve(&socket, &metrics) {
                tracing::debug!(%error, "a reader of metrics was lost");
            }
        };
        let thread = std::thread::Builder::new().name("cowl-metrics".to_owned()).spawn(answer)?;
        Ok(Self { stream, thread })
    }

    /// Lets it go, whether it has its answer or not.
    fn end(self) {
        if let Some(stream) = self.stream.upgrade() {
            let _gone_already = stream.shutdown(Shutdown::Both);
        }
        let _panicked = self.thread.join();
    }
}

fn accept(listener: &TcpListener, metrics: &Metrics, stopping: &AtomicBool) {
    let mut readers = VecDeque::new();
    for stream in listener.incoming() {
        if stopping.load(Ordering::SeqCst) {
            break;
        }
        readers.retain(|reader: &Reader| !reader.thread.is_finished());
        if READERS_MAX <= readers.len()
            && let Some(first) = readers.pop_front()
        {
            first.end();
        }
        match stream.and_then(|stream| Reader::new(stream, metrics)) {
            Ok(reader) => readers.push_back(reader),
            // Out of descriptors or memory: the next try would fail as well.
            Err(_) => std::thread::sleep(ACCEPT_PAUSE),
        }
    }
    readers.into_iter().for_each(Reader::end);
}

fn serve(mut stream: &TcpStream, metrics: &Metrics) -> io::Result<()> {
    stream.set_read_timeout(Some(STEP_TIMEOUT))?;
    stream.set_write_timeout(Some(STEP_TIMEOUT))?;
    let until = Instant::now() + HEAD_TIMEOUT;
    let mut received = Vec::new();
    let answer = loop {
        if let Some(answer) = answer(&received, metrics) {
            break answer;
        }
        if HEAD_MAX <= received.len() || until <= Instant::now() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut bytes = [0; 4096];
        match stream.read(&mut bytes)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => received.extend_from_slice(&bytes[..count]),
        }
    };
    stream.write_all(answer.as_bytes())
}

/// The answer to a request, once its head is there.
fn answer(received: &[u8], metrics: &Metrics) -> Option<String> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let status = match request.parse(received) {
        Ok(status) => status,
        Err(_) => return Some(response("400 Bad Request", "", "this is no HTTP request\n")),
    };
    if status.is_partial() {
        return None;
    }
    let path = request.path.unwrap_or_default();
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    Some(match (request.method.unwrap_or_default(), path) {
        ("GET", "/metrics") => {
            let media_type = format!("Content-Type: {MEDIA_TYPE}\r\n");
            response("200 OK", &media_type, &metrics.to_text())
        }
        (_, "/metrics") => response("405 Method Not Allowed", "Allow: GET\r\n", ""),
        _ => response("404 Not Found", "", "metrics are at /metrics\n"),
    })
}

fn response(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}
