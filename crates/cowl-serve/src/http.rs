//! Metrics over HTTP: one thread, one client at a time, one request a connection.
//!
//! The sockets are plain blocking ones with a time limit, so that a client that stalls delays the
//! next reader and nothing else.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::ServeError;
use crate::metrics::{MEDIA_TYPE, Metrics};

/// How long a client may send or take nothing.
const STEP_TIMEOUT: Duration = Duration::from_secs(2);

/// How long to leave readers waiting when the process is out of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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

fn accept(listener: &TcpListener, metrics: &Metrics, stopping: &AtomicBool) {
    for stream in listener.incoming() {
        if stopping.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else {
            // Out of descriptors or memory: the next try would fail as well.
            std::thread::sleep(ACCEPT_PAUSE);
            continue;
        };
        if let Err(error) = serve(stream, metrics) {
            tracing::debug!(%error, "a reader of metrics was lost");
        }
    }
}

fn serve(mut stream: TcpStream, metrics: &Metrics) -> io::Result<()> {
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
