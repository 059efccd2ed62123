//! What a repository holds, as the hub tells it.

use super::Repository;
use crate::error::Error;
use serde_json::Value;
use std::path::{Component, Path};
use std::time::Duration;

/// No answer is waited for longer.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// A connection that takes longer is given up.
pub const CONNECTING: Duration = Duration::from_secs(15);
/// Longest listing that is read, in bytes: a million files.
const LARGEST: u64 = 256 << 20;

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Path within the repository, plain: it leads nowhere else.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Name in the cache: the SHA-256 of a large file, git's SHA-1 of a small one.
    pub blob: String,
}

/// A repository at one commit.
#[derive(Debug)]
pub struct Listing {
    pub commit: String,
    pub files: Vec<RemoteFile>,
}

/// Why there is no listing.
pub enum Failure {
    /// The hub does not answer; the text says how so.
    Unreachable(String),
    /// It answers, and that is final.
    Final(Error),
}

impl Failure {
    pub fn into_error(self, what: &str) -> Error {
        match self {
            Self::Final(error) => error,
            Self::Unreachable(found) => {
                let remedy = "check the network (HTTPS_PROXY, HF_ENDPOINT), or give the path of a local copy; \
                              HF_HUB_OFFLINE=1 keeps to what the cache holds";
                Error::input(what, found, remedy)
            }
        }
    }
}

/// Whether a text is a hexadecimal hash of one of the lengths.
pub fn is_hash(text: &str, lengths: &[usize]) -> bool {
    lengths.contains(&text.len()) && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Asks for the files of the repository at its revision, with sizes and hashes.
pub fn request(repository: &Repository<'_>, what: &str) -> Result<Listing, Failure> {
    let request = repository.api.repo(repository.repo.clone()).info_request().query("blobs", "true");
    let request = request.config().http_status_as_error(false);
    let request = request.timeout_connect(Some(CONNECTING)).timeout_recv_response(Some(PATIENCE));
    let mut response = request.timeout_per_read(Some(PATIENCE)).build().call().map_err(unreachable)?;
    let status = response.status().as_u16();
    let code = response.headers().get("x-error-code").and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
    match status {
        200 => {}
        500.. => return Err(Failure::Unreachable(format!("the hub answers with status {status}"))),
        _ => return Err(Failure::Final(refusal(repository, what, status, &code))),
    }
    let json = response.body_mut().with_config().limit(LARGEST).read_json::<Value>();
    match json {
        Ok(json) => parse(&json).ok_or_else(|| Failure::Final(no_listing(what))),
        Err(ureq::Error::Json(_)) => Err(Failure::Final(no_listing(what))),
        Err(e) => Err(unreachable(e)),
    }
}

fn unreachable(error: ureq::Error) -> Failure {
    Failure::Unreachable(format!("the hub cannot be reached: {}", network(&error)))
}

/// A network error without the library's manner of speaking.
pub fn network(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Io(e) => e.to_string(),
        ureq::Error::HostNotFound => "its name is not known (no network?)".to_owned(),
        ureq::Error::Timeout(_) => "no answer in time".to_owned(),
        other => other.to_string(),
    }
}

fn no_listing(what: &str) -> Error {
    let remedy =
        "set HF_ENDPOINT to a hub (or unset it for the public one), or give the path of a local copy";
    Error::input(what, "the server's answer is no listing with sizes and hashes, as the hub gives it", remedy)
}

/// The listing of an answer. `None` when it is none, or names a path or a hash that no hub gives.
fn parse(json: &Value) -> Option<Listing> {
    let commit = json["sha"].as_str().filter(|sha| is_hash(sha, &[40]))?.to_owned();
    let file = |sibling: &Value| {
        let path = sibling["rfilename"].as_str()?;
        let plain = Path::new(path).components().all(|c| matches!(c, Component::Normal(_)));
        let large = &sibling["lfs"];
        let (size, blob) = match large["sha256"].as_str() {
            Some(sha256) => (&large["size"], sha256),
            None => (&sibling["size"], sibling["blobId"].as_str()?),
        };
        let known = plain && !path.is_empty() && is_hash(blob, &[40, 64]);
        known.then_some(RemoteFile { path: path.to_owned(), size: size.as_u64()?, blob: blob.to_owned() })
    };
    let files = json["siblings"].as_array()?.iter().map(file).collect::<Option<_>>()?;
    Some(Listing { commit, files })
}

/// What a status other than success means. (The hub answers 401 also for what does not exist.)
pub fn refusal(repository: &Repository<'_>, what: &str, status: u16, code: &str) -> Error {
    let token = repository.hub.token.is_some();
    let (found, remedy) = match (status, code) {
        (_, "RevisionNotFound") => (
            format!("it has no revision `{}`", repository.id.revision),
            "name a branch, a tag or a commit of it, or leave @revision away for the newest",
        ),
        (_, "GatedRepo") | (403, _) => (
            "access to it is restricted".to_owned(),
            "accept its terms on its page of the hub, then set HF_TOKEN to a token of that account",
        ),
        (401, _) if token => (
            "the hub has no such thing, or the token (HF_TOKEN) does not open it".to_owned(),
            "check the name, upper and lower case too, and the token",
        ),
        (401 | 404, _) => (
            "the hub has no such thing, or it is private; nor is there such a path here".to_owned(),
            "check the name, upper and lower case too; for a private one set HF_TOKEN; a local copy is given by \
             its path",
        ),
        (429, _) => (
            "the hub was asked too often".to_owned(),
            "wait some minutes; with HF_TOKEN set the limit is higher",
        ),
        _ => (format!("the hub answers with status {status}"), "try later, or give the path of a local copy"),
    };
    Error::input(what, found, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_listing_that_leads_elsewhere_is_none() {
        let (commit, small, large) = ("c".repeat(40), "a".repeat(40), "b".repeat(64));
        let of = |path: &str, blob: &str| json!({"sha": commit, "siblings": [{"rfilename": path, "size": 3, "blobId": blob}]});
        let file = RemoteFile { path: "a/b.json".into(), size: 3, blob: small.clone() };
        assert_eq!(parse(&of("a/b.json", &small)).unwrap().files, [file]);
        let lfs = json!({"rfilename": "m", "size": 9, "blobId": small, "lfs": {"sha256": large, "size": 7}});
        let listing = parse(&json!({"sha": commit, "siblings": [lfs]})).unwrap();
        assert_eq!((listing.files[0].size, &listing.files[0].blob), (7, &large));
        for (path, blob) in [
            ("../x", small.as_str()),
            ("/etc/x", &small),
            ("a/../../x", &small),
            ("", &small),
            ("x", "../../x"),
            ("x", ""),
        ] {
            assert!(parse(&of(path, blob)).is_none(), "{path} {blob}");
        }
        assert!(parse(&json!({"sha": "../..", "siblings": []})).is_none());
        assert!(parse(&json!({"sha": commit})).is_none());
    }
}
