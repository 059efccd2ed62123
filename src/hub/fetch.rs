//! One file from the hub into the cache: in pieces where the connection is cut, whole and checked or not at all.

use super::listing::{CONNECTING, Failure, PATIENCE, RemoteFile, network, refusal};
use super::{Event, Observer, Repository, cache};
use crate::error::{Error, Result};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use ureq::http::{Response, Uri};
use ureq::{Agent, Body};

/// Cuts in a row, with nothing new between them, that are put up with.
const TRIES: u32 = 5;
/// Redirections that are followed.
const REDIRECTIONS: usize = 10;
/// Bytes written at a time.
const PIECE: usize = 1 << 17;

/// What a request for the rest of a file came to.
enum Outcome {
    /// It is all there.
    Whole,
    /// The connection ended early; what arrived is kept.
    Cut(String),
}

/// Fetches a file into its blob, going on where an earlier download was cut off.
///
/// The blob gets its name only when its size is right, and its SHA-256 where the hub gives one (large files).
///
/// # Errors
/// [`Error::Input`] when it cannot be had; [`Error::Io`] when the cache cannot be written.
pub fn file(
    repository: &Repository<'_>,
    commit: &str,
    file: &RemoteFile,
    what: &str,
    observer: Observer<'_>,
) -> Result<()> {
    let download = Download { repository, commit, file, what };
    let path = repository.incomplete(&file.blob);
    cache::make_folder_of(&path)?;
    let out = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let out = &mut out.map_err(Error::io("create", &path))?;
    let continued = download.length(out, &path)? > 0;
    download.whole(out, &path, observer)?;
    if let Err(error) = download.check(out, &path)? {
        out.set_len(0).map_err(Error::io("write", &path))?;
        if !continued {
            return Err(error);
        }
        // What lay there was of something else.
        download.whole(out, &path, observer)?;
        download.check(out, &path)??;
    }
    out.sync_all().map_err(Error::io("write", &path))?;
    let blob = repository.blob(&file.blob);
    std::fs::rename(&path, &blob).map_err(Error::io("write", &blob))
}

struct Download<'a> {
    repository: &'a Repository<'a>,
    commit: &'a str,
    file: &'a RemoteFile,
    what: &'a str,
}

impl Download<'_> {
    fn asked(&self) -> String {
        format!("{}, file {}", self.what, self.file.path)
    }

    fn length(&self, out: &File, path: &Path) -> Result<u64> {
        Ok(out.metadata().map_err(Error::io("read", path))?.len())
    }

    /// Fetches until all bytes are there.
    fn whole(&self, out: &mut File, path: &Path, observer: Observer<'_>) -> Result<()> {
        let mut failures = 0;
        let mut wait = self.repository.hub.retry_wait;
        loop {
            let before = self.length(out, path)?;
            let found = match self.rest(out, path, before, observer)? {
                Outcome::Whole => return Ok(()),
                Outcome::Cut(found) => found,
            };
            if self.length(out, path)? > before {
                (failures, wait) = (0, self.repository.hub.retry_wait);
            }
            failures += 1;
            if failures == TRIES {
                return Err(self.given_up(&found));
            }
            std::thread::sleep(wait);
            wait *= 2;
        }
    }

    /// Asks for what is missing behind the first `start` bytes and appends what arrives.
    fn rest(&self, out: &mut File, path: &Path, start: u64, observer: Observer<'_>) -> Result<Outcome> {
        let size = self.file.size;
        if start == size {
            return Ok(Outcome::Whole);
        }
        let start = if start > size { 0 } else { start };
        let mut response = match self.get(start)? {
            Ok(response) => response,
            Err(found) => return Ok(Outcome::Cut(found)),
        };
        // Only an answer that begins where this file ends may be appended to it.
        let start = if response.status() == 206 && range_start(&response) == Some(start) { start } else { 0 };
        if response.status() == 206 && start == 0 && range_start(&response) != Some(0) {
            let found = "the answer is another part of the file than was asked for";
            return Err(Error::input(self.asked(), found, "check HF_ENDPOINT and proxies, or try later"));
        }
        if self.length(out, path)? > start {
            out.set_len(start).map_err(Error::io("write", path))?;
        }
        out.seek(SeekFrom::Start(start)).map_err(Error::io("write", path))?;
        let mut body = response.body_mut().as_reader();
        let mut piece = vec![0; PIECE];
        let mut at = start;
        loop {
            let read = match body.read(&mut piece) {
                Ok(0) if at == size => return Ok(Outcome::Whole),
                Ok(0) => return Ok(Outcome::Cut("the connection ended early".to_owned())),
                Ok(n) => n,
                Err(e) => return Ok(Outcome::Cut(e.to_string())),
            };
            at += read as u64;
            if at > size {
                out.set_len(0).map_err(Error::io("write", path))?;
                return Err(self.damaged(&format!("more than the {size} bytes that the hub lists arrive")));
            }
            out.write_all(&piece[..read]).map_err(|e| self.not_written(path, e))?;
            observer(Event::Received(read as u64));
        }
    }

    /// The answer for the bytes from `start` on. The token goes to the hub itself only: large files lie elsewhere,
    /// at addresses that need none.
    ///
    /// The inner error says why it may help to ask again.
    fn get(&self, start: u64) -> Result<std::result::Result<Response<Body>, String>> {
        let config = Agent::config_builder().max_redirects(0).max_redirects_will_error(false);
        let config = config.http_status_as_error(false).timeout_connect(Some(CONNECTING));
        let agent = config.timeout_recv_response(Some(PATIENCE)).timeout_per_read(Some(PATIENCE)).build();
        let agent = Agent::new_with_config(agent);
        let mut url = self.url();
        let hub = authority(&url);
        for _ in 0..REDIRECTIONS {
            // A compressed answer would have other bytes at other places.
            let mut request = agent.get(&url).header("Accept-Encoding", "identity");
            if start > 0 {
                request = request.header("Range", format!("bytes={start}-"));
            }
            if let Some(token) = self.repository.hub.token.as_ref().filter(|_| authority(&url) == hub) {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            let response = match request.call() {
                Ok(response) => response,
                Err(e) => return Ok(Err(network(&e))),
            };
            let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok());
            match response.status().as_u16() {
                200 | 206 => return Ok(Ok(response)),
                301 | 302 | 303 | 307 | 308 => {
                    let to = header("location").and_then(|to| redirected(&url, to));
                    url = to.ok_or_else(|| self.damaged("it is redirected to no address"))?;
                }
                status @ (408 | 416 | 429 | 500..) => return Ok(Err(format!("the server answers {status}"))),
                status => {
                    let code = header("x-error-code").unwrap_or("");
                    return Err(refusal(self.repository, &self.asked(), status, code));
                }
            }
        }
        Err(self.damaged("it is redirected without end"))
    }

    fn url(&self) -> String {
        let Repository { id, kind, api, .. } = self.repository;
        let at_commit = hf_hub::Repo::with_revision(id.name.clone(), *kind, self.commit.to_owned());
        api.repo(at_commit).url(&escaped(&self.file.path))
    }

    /// Compares the hash, where the blob's name is one of the content alone. The inner error is a wrong hash.
    fn check(&self, out: &mut File, path: &Path) -> Result<Result<()>> {
        if self.file.blob.len() != 64 {
            return Ok(Ok(()));
        }
        out.seek(SeekFrom::Start(0)).map_err(Error::io("read", path))?;
        let mut hash = Sha256::new();
        let mut piece = vec![0; PIECE];
        loop {
            match out.read(&mut piece).map_err(Error::io("read", path))? {
                0 => break,
                n => hash.update(&piece[..n]),
            }
        }
        let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if found == self.file.blob {
            return Ok(Ok(()));
        }
        Ok(Err(self.damaged(&format!("its SHA-256 is {found}, and the hub lists {}", self.file.blob))))
    }

    fn damaged(&self, found: &str) -> Error {
        let remedy =
            "what arrived is thrown away: try again; if it stays so, look at proxies and HF_ENDPOINT";
        Error::input(self.asked(), found, remedy)
    }

    fn given_up(&self, found: &str) -> Error {
        let kept = format!("{found}, {TRIES} times in a row");
        match Failure::Unreachable(kept).into_error(&self.asked()) {
            Error::Input { asked, found, remedy } => Error::Input {
                asked,
                found,
                remedy: format!("what arrived is kept and continued next time; {remedy}"),
            },
            other => other,
        }
    }

    fn not_written(&self, path: &Path, error: std::io::Error) -> Error {
        if error.kind() != std::io::ErrorKind::StorageFull {
            return Error::io("write", path)(error);
        }
        let folder = self.repository.hub.cache.display();
        let found = format!("the disk of {folder} is full; the file has {} bytes", self.file.size);
        let remedy = "make room there, or set HF_HOME to a folder on another disk; what arrived is kept";
        Error::input(self.asked(), found, remedy)
    }
}

/// Scheme, host and port of an address.
fn authority(url: &str) -> Option<(String, String)> {
    let uri: Uri = url.parse().ok()?;
    Some((uri.scheme_str()?.to_owned(), uri.authority()?.as_str().to_ascii_lowercase()))
}

/// The address that a `Location` means, which may leave out scheme and host.
fn redirected(from: &str, to: &str) -> Option<String> {
    if to.starts_with("http://") || to.starts_with("https://") {
        return Some(to.to_owned());
    }
    let (scheme, host) = authority(from)?;
    (to.starts_with('/') && !to.starts_with("//")).then(|| format!("{scheme}://{host}{to}"))
}

/// First byte of the part that an answer holds, from `Content-Range: bytes 5-9/10`.
fn range_start(response: &Response<Body>) -> Option<u64> {
    let range = response.headers().get("content-range")?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

/// A path within a URL: what is neither plain nor a slash as `%XX`.
fn escaped(path: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~/".contains(&b);
    path.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_joined_and_compared() {
        let from = "https://hub.example/org/name/resolve/main/a";
        assert_eq!(redirected(from, "/b?c=1").unwrap(), "https://hub.example/b?c=1");
        assert_eq!(redirected(from, "http://other.example/b").unwrap(), "http://other.example/b");
        assert_eq!(redirected(from, "b"), None);
        assert_eq!(authority(from), authority("https://HUB.example/x"));
        assert_ne!(authority(from), authority("http://hub.example/x"));
        assert_ne!(authority(from), authority("https://hub.example:8443/x"));
        assert_ne!(authority(from), authority("https://hub.example.evil/x"));
        assert_eq!(escaped("data/a b#1é.parquet"), "data/a%20b%231%C3%A9.parquet");
    }
}
