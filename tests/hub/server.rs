//! A hub on this machine: the listing, files with hashes, redirection of large files to another host (another port),
//! ranges, tokens; and what goes wrong on the way.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A request that arrived.
#[derive(Clone, Debug)]
pub struct Request {
    /// It came to the host of large files, not to the hub.
    pub elsewhere: bool,
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
}

/// What is wrong with the host of large files; each holds for all requests until it is changed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    None,
    /// The connection ends after so many bytes.
    Cut(usize),
    /// As `Cut`, but only so often; then 503 for good.
    CutThenDown(usize),
    /// One bit of the first byte is wrong.
    Damage,
    /// Ranges are not known: always the whole file.
    NoRanges,
    /// An answer of 206 that begins at byte 0 whatever was asked.
    WrongRange,
    /// Bytes come slowly.
    Slow,
}

/// What the hub holds and how it behaves.
pub struct State {
    /// Contents by `models/org/name` or `datasets/org/name`, then by path.
    pub repositories: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// What replaces the listing's entry of a path.
    pub listed: BTreeMap<String, Value>,
    pub requests: Vec<Request>,
    pub fault: Fault,
    /// Status and error code for every request that does not carry the token.
    pub closed: Option<(u16, &'static str)>,
    elsewhere: String,
}

pub struct Server {
    pub url: String,
    state: Arc<Mutex<State>>,
}

pub const TOKEN: &str = "hf_secret";
const REVISIONS: [&str; 3] = ["main", "v1.0", COMMIT];

fn is_large(path: &str) -> bool {
    [".safetensors", ".parquet", ".bin", ".gguf"].iter().any(|ending| path.ends_with(ending))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Name of the blob: as on the hub 64 digits for a large file, 40 for a small one (there git's SHA-1).
pub fn hash(path: &str, content: &[u8]) -> String {
    let digits = hex(&Sha256::digest(content));
    if is_large(path) { digits } else { digits[..40].to_owned() }
}

fn unescaped(path: &str) -> String {
    let mut parts = path.split('%');
    let mut bytes = parts.next().unwrap().as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(&part[..2], 16).unwrap());
        bytes.extend(part[2..].bytes());
    }
    String::from_utf8(bytes).unwrap()
}

impl Server {
    pub fn start() -> Self {
        let hub = TcpListener::bind("127.0.0.1:0").unwrap();
        let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State {
            repositories: BTreeMap::new(),
            listed: BTreeMap::new(),
            requests: Vec::new(),
            fault: Fault::None,
            closed: None,
            elsewhere: url(&elsewhere),
        }));
        let server = Self { url: url(&hub), state: Arc::clone(&state) };
        for (listener, elsewhere) in [(hub, false), (elsewhere, true)] {
            let state = Arc::clone(&state);
            thread::spawn(move || {
                for stream in listener.incoming() {
                    let state = Arc::clone(&state);
                    thread::spawn(move || serve(stream.unwrap(), elsewhere, &state));
                }
            });
        }
        server
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn put(&self, repository: &str, files: &[(&str, &[u8])]) {
        let files = files.iter().map(|(path, content)| (path.to_string(), content.to_vec())).collect();
        self.state().repositories.insert(repository.to_owned(), files);
    }

    /// The requests since the last call.
    pub fn take_requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state().requests)
    }

    /// The ranges asked for at the host of large files since the last call.
    pub fn take_ranges(&self) -> Vec<Option<String>> {
        self.take_requests().into_iter().filter(|r| r.elsewhere).map(|r| r.range).collect()
    }
}

fn serve(mut stream: TcpStream, elsewhere: bool, state: &Mutex<State>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let Some(Ok(first)) = lines.next() else { return };
    let path = first.split(' ').nth(1).unwrap().to_owned();
    let mut request = Request { elsewhere, path, range: None, authorization: None };
    for line in lines.map_while(Result::ok).take_while(|l| !l.is_empty()) {
        let (name, value) = line.split_once(": ").unwrap();
        match name.to_ascii_lowercase().as_str() {
            "range" => request.range = Some(value.to_owned()),
            "authorization" => request.authorization = Some(value.to_owned()),
            _ => {}
        }
    }
    let reply = {
        let mut state = state.lock().unwrap();
        state.requests.push(request.clone());
        if elsewhere { state.large_file(&request) } else { state.hub(&request) }
    };
    // The client may have left.
    let _ = reply.send(&mut stream);
}

struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Bytes of the body that are sent.
    sent: usize,
    slow: bool,
}

impl Reply {
    fn new(status: u16, headers: Vec<(&'static str, String)>, body: Vec<u8>) -> Self {
        let sent = body.len();
        Self { status, headers, body, sent, slow: false }
    }

    fn error(status: u16, code: &str) -> Self {
        Self::new(status, vec![("X-Error-Code", code.to_owned())], b"{\"error\": \"...\"}".to_vec())
    }

    fn send(&self, stream: &mut TcpStream) -> std::io::Result<()> {
        write!(stream, "HTTP/1.1 {} x\r\nContent-Length: {}\r\n", self.status, self.body.len())?;
        for (name, value) in &self.headers {
            write!(stream, "{name}: {value}\r\n")?;
        }
        write!(stream, "Connection: close\r\n\r\n")?;
        for piece in self.body[..self.sent].chunks(8192) {
            stream.write_all(piece)?;
            if self.slow {
                thread::sleep(Duration::from_millis(20));
            }
        }
        stream.flush()
    }
}

impl State {
    fn hub(&self, request: &Request) -> Reply {
        if let Some((status, code)) = self.closed
            && request.authorization.as_deref() != Some(&format!("Bearer {TOKEN}"))
        {
            return Reply::error(status, code);
        }
        let path = request.path.trim_start_matches('/');
        if let Some(rest) = path.strip_prefix("api/") {
            let (repository, rest) = rest.split_once("/revision/").expect("a revision is always named");
            let (revision, query) = rest.split_once('?').expect("the query that asks for sizes");
            assert_eq!(query, "blobs=true");
            return self.listing(repository, &revision.replace("%2F", "/"));
        }
        let (repository, rest) = path.split_once("/resolve/").expect("a file");
        let (revision, file) = rest.split_once('/').unwrap();
        assert_eq!(revision, COMMIT, "files are asked for at the commit of the listing");
        let name = if repository.starts_with("datasets/") {
            repository.to_owned()
        } else {
            format!("models/{repository}")
        };
        let file = &unescaped(file);
        let content = &self.repositories[&name][file];
        let etag = format!("\"{}\"", hash(file, content));
        let mut headers = vec![("X-Repo-Commit", COMMIT.to_owned()), ("ETag", etag.clone())];
        if !is_large(file) {
            return Reply::new(200, headers, content.clone());
        }
        headers.push(("X-Linked-Size", content.len().to_string()));
        headers.push(("X-Linked-ETag", etag));
        headers.push(("Location", format!("{}/{name}/{file}", self.elsewhere)));
        Reply::new(302, headers, Vec::new())
    }

    fn listing(&self, repository: &str, revision: &str) -> Reply {
        let Some(files) = self.repositories.get(repository) else { return Reply::error(404, "RepoNotFound") };
        if !REVISIONS.contains(&revision) {
            return Reply::error(404, "RevisionNotFound");
        }
        let sibling = |(path, content): (&String, &Vec<u8>)| {
            let (size, hash) = (content.len(), hash(path, content));
            let mut entry = json!({"rfilename": path, "size": size, "blobId": hash[..40]});
            if is_large(path) {
                entry["lfs"] = json!({"sha256": hash, "size": size, "pointerSize": 130});
            }
            self.listed.get(path).cloned().unwrap_or(entry)
        };
        let siblings: Vec<Value> = files.iter().map(sibling).collect();
        let json = json!({"id": repository, "sha": COMMIT, "siblings": siblings, "private": false});
        Reply::new(200, vec![("Content-Type", "application/json".to_owned())], json.to_string().into_bytes())
    }

    fn large_file(&mut self, request: &Request) -> Reply {
        let (repository, file) = {
            let mut parts = request.path.trim_start_matches('/').splitn(4, '/');
            let mut part = || parts.next().unwrap();
            (format!("{}/{}/{}", part(), part(), part()), part().to_owned())
        };
        let mut content = self.repositories[&repository][&file].clone();
        let total = content.len();
        let asked = request.range.as_ref().map(|range| {
            range.strip_prefix("bytes=").and_then(|r| r.strip_suffix('-')).unwrap().parse::<usize>().unwrap()
        });
        let start = asked.filter(|_| self.fault != Fault::NoRanges).unwrap_or(0);
        if start >= total {
            return Reply::error(416, "");
        }
        if self.fault == Fault::Damage {
            content[0] ^= 1;
        }
        let part = content.split_off(start);
        let shown = if self.fault == Fault::WrongRange { start + 1 } else { start };
        let range = ("Content-Range", format!("bytes {shown}-{}/{total}", total - 1));
        let partial = start > 0;
        let mut reply =
            Reply::new(if partial { 206 } else { 200 }, if partial { vec![range] } else { Vec::new() }, part);
        match self.fault {
            Fault::Cut(n) => reply.sent = reply.sent.min(n),
            Fault::CutThenDown(0) => return Reply::error(503, ""),
            Fault::CutThenDown(n) => {
                reply.sent = reply.sent.min(n);
                self.fault = Fault::CutThenDown(0);
            }
            Fault::Slow => reply.slow = true,
            _ => {}
        }
        reply
    }
}
