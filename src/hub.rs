//! Models and data sets of the Hugging Face hub, fetched into the cache that other tools use too.
//!
//! The layout is that of Python's `huggingface_hub` (`models--org--name/{blobs,refs,snapshots}`, locks in `.locks`):
//! what transformers fetched is found here and the other way round. The crate `hf-hub` (0.5, the last one whose client
//! needs no asynchronous runtime) gives the cache's layout, the addresses and the request for a repository's listing.
//! Its download of a file is not used: it sends the token on to the host that a file is redirected to, takes an
//! answer to a range request for the rest of the file whatever the answer was, and compares neither size nor hash.
//! `fetch.rs` does that part.

mod cache;
mod fetch;
mod listing;
mod select;

pub use select::train_files;

use crate::error::{Error, Result};
use cache::Snapshot;
use hf_hub::api::sync::{Api, ApiBuilder};
use hf_hub::{Cache, Repo, RepoType};
use listing::{Listing, RemoteFile};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What happens while something is fetched.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// Files that the cache lacks are about to be fetched.
    Start {
        /// `model org/name` or `data set org/name`.
        what: &'a str,
        /// How many.
        files: usize,
        /// Their sizes, in bytes.
        bytes: u64,
        /// Bytes of them that an earlier, cut-off download left.
        present: u64,
    },
    /// So many bytes more have arrived.
    Received(u64),
    /// All files are there.
    Finished,
    /// Something worth a line.
    Notice(&'a str),
}

/// Takes what happens, in order.
pub type Observer<'a> = &'a mut dyn FnMut(Event);

/// Whether `text` names something of the hub: `org/name` or `org/name@revision`, and no path that exists here.
///
/// What ends as a file of a model or of data does is a path, also when there is no such file.
pub fn is_id(text: &str) -> bool {
    Id::parse(text).is_some() && !Path::new(text).exists()
}

/// [`Hub::model`] with what the environment says.
///
/// # Errors
/// Those of [`Hub::from_env`] and [`Hub::model`].
pub fn model(name: &str, observer: Observer<'_>) -> Result<PathBuf> {
    if is_id(name) { Hub::from_env()?.model(name, observer) } else { Ok(PathBuf::from(name)) }
}

/// [`Hub::data`] with what the environment says.
///
/// # Errors
/// Those of [`Hub::from_env`] and [`Hub::data`].
pub fn data(id: &str, observer: Observer<'_>) -> Result<Vec<PathBuf>> {
    Hub::from_env()?.data(id, observer)
}

/// Name and revision of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Id {
    name: String,
    revision: String,
}

impl Id {
    fn parse(text: &str) -> Option<Self> {
        const FILES: [&str; 9] =
            [".gguf", ".safetensors", ".bin", ".jsonl", ".json", ".csv", ".parquet", ".toml", ".txt"];
        let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (org, rest) = name.split_once('/')?;
        let part = |s: &str| {
            s.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
                && s.len() <= 96
                && s.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        // A revision becomes a path below refs/, so it must not lead out of there.
        let revision_is_plain = revision.split('/').all(|s| !s.is_empty() && !s.starts_with('.'))
            && revision.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c));
        let a_file = FILES.iter().any(|ending| rest.to_ascii_lowercase().ends_with(ending));
        let plain = part(org) && part(rest) && !name.contains("..") && !name.contains("--") && !a_file;
        (plain && revision_is_plain).then(|| Self { name: name.to_owned(), revision: revision.to_owned() })
    }

    /// Whether the revision is a commit, which never changes.
    fn is_commit(&self) -> bool {
        listing::is_hash(&self.revision, &[40])
    }
}

/// Where things are fetched from, and where they are kept.
pub struct Hub {
    /// Address of the hub; `None`: the public one.
    pub endpoint: Option<String>,
    /// Folder with `models--org--name`, `datasets--org--name`, ….
    pub cache: PathBuf,
    /// Token for private and gated repositories. Sent to the endpoint only.
    pub token: Option<String>,
    /// Use the cache only.
    pub offline: bool,
    /// Wait before a download that was cut off goes on; doubled each time nothing arrived in between.
    pub retry_wait: Duration,
}

impl Hub {
    /// As Python's `huggingface_hub` reads the environment: `HF_ENDPOINT`; the cache is `HF_HUB_CACHE`, else
    /// `HF_HOME/hub`, else `~/.cache/huggingface/hub` (or below `XDG_CACHE_HOME`); the token is `HF_TOKEN`, else what
    /// `HF_TOKEN_PATH` or `HF_HOME/token` holds; `HF_HUB_OFFLINE=1` keeps to the cache.
    ///
    /// # Errors
    /// [`Error::Input`] when neither these nor `HOME` say where the cache is.
    pub fn from_env() -> Result<Self> {
        Self::from_variables(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn from_variables(get: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let path = |name: &str| get(name).map(PathBuf::from);
        let home = path("HF_HOME")
            .or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface")))
            .or_else(|| Some(path("HOME")?.join(".cache/huggingface")));
        let nowhere = || {
            let remedy = "set HF_HOME to the folder that the hub's cache shall lie in";
            Error::input("the hub's cache", "neither HF_HOME nor HOME is set", remedy)
        };
        let cache = match (path("HF_HUB_CACHE"), &home) {
            (Some(cache), _) => cache,
            (None, Some(home)) => home.join("hub"),
            (None, None) => return Err(nowhere()),
        };
        let cache = std::path::absolute(&cache).map_err(Error::io("find", &cache))?;
        let token_file = path("HF_TOKEN_PATH").or_else(|| Some(home?.join("token")));
        let token = get("HF_TOKEN").or_else(|| std::fs::read_to_string(token_file?).ok());
        let offline = get("HF_HUB_OFFLINE")
            .is_some_and(|value| ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str()));
        Ok(Self {
            endpoint: get("HF_ENDPOINT").map(|url| url.trim_end_matches('/').to_owned()),
            cache,
            token: token.map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()),
            offline,
            retry_wait: Duration::from_millis(500),
        })
    }

    /// The folder of a model `org/name[@revision]`: of its files those that opening it reads
    /// (configuration, tokenizer, template, safetensors), fetched as far as the cache lacks them.
    ///
    /// # Errors
    /// [`Error::Input`] when it does not exist, must not be read, holds no safetensors, or cannot be fetched;
    /// [`Error::Io`] when the cache cannot be written.
    pub fn model(&self, id: &str, observer: Observer<'_>) -> Result<PathBuf> {
        let id = self.parse(id, "model")?;
        let what = describe("model", &id);
        let repository = self.repository(&id, RepoType::Model)?;
        if (self.offline || id.is_commit())
            && let Some(snapshot) = repository.cached().filter(|s| select::is_whole_model(&s.folder))
        {
            return Ok(snapshot.folder);
        }
        let listing = match self.listing(&repository, &what, observer)? {
            Found::Online(listing) => listing,
            Found::Cached(snapshot) if select::is_whole_model(&snapshot.folder) => return Ok(snapshot.folder),
            Found::Cached(snapshot) => return Err(incomplete(&what, &snapshot.folder)),
        };
        let files = select::model_files(&listing.files, &what)?;
        let snapshot = repository.fetch_all(&listing, &files, &what, observer)?;
        Ok(snapshot.folder)
    }

    /// The files of the train split of a data set `org/name[@revision]`, in order; see [`train_files`].
    ///
    /// # Errors
    /// [`Error::Input`] when it does not exist, must not be read, has no train split that is clear, or cannot be
    /// fetched; [`Error::Io`] when the cache cannot be written.
    pub fn data(&self, id: &str, observer: Observer<'_>) -> Result<Vec<PathBuf>> {
        let id = self.parse(id, "data set")?;
        let what = describe("data set", &id);
        let repository = self.repository(&id, RepoType::Dataset)?;
        let (snapshot, names) = match self.listing(&repository, &what, observer)? {
            Found::Online(listing) => {
                let names: Vec<&str> = listing.files.iter().map(|f| f.path.as_str()).collect();
                let names = train_files(&names, &what)?;
                let files: Vec<RemoteFile> =
                    listing.files.iter().filter(|f| names.contains(&f.path)).cloned().collect();
                (repository.fetch_all(&listing, &files, &what, observer)?, names)
            }
            Found::Cached(snapshot) => {
                let names = snapshot.files()?;
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                let names = train_files(&names, &what)?;
                (snapshot, names)
            }
        };
        Ok(names.iter().map(|name| snapshot.folder.join(name)).collect())
    }

    fn parse(&self, text: &str, kind: &str) -> Result<Id> {
        Id::parse(text).ok_or_else(|| {
            let remedy = "write it as org/name, or org/name@revision";
            Error::input(format!("{kind} {text}"), "this is no id of the hub", remedy)
        })
    }

    fn repository(&self, id: &Id, kind: RepoType) -> Result<Repository<'_>> {
        let cache = Cache::new(self.cache.clone());
        let mut builder = ApiBuilder::from_cache(cache.clone())
            .with_token(self.token.clone())
            .with_user_agent("smolten", env!("CARGO_PKG_VERSION"));
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint.clone());
        }
        let api = builder.build().map_err(|e| Error::run(format!("the hub's client: {e}"), "report this"))?;
        let repo = Repo::with_revision(id.name.clone(), kind, id.revision.clone());
        Ok(Repository { hub: self, id: id.clone(), kind, api, repo, cache })
    }

    /// The repository's files; where the hub is not to be asked or does not answer, what the cache holds of it.
    fn listing(&self, repository: &Repository<'_>, what: &str, observer: Observer<'_>) -> Result<Found> {
        let cached = repository.cached();
        if self.offline {
            return cached.map(Found::Cached).ok_or_else(|| {
                let found =
                    format!("HF_HUB_OFFLINE is set, and it is not in the cache {}", self.cache.display());
                Error::input(what, found, "unset HF_HUB_OFFLINE to fetch it, or give a path")
            });
        }
        match (listing::request(repository, what), cached) {
            (Ok(listing), _) => Ok(Found::Online(listing)),
            (Err(listing::Failure::Unreachable(found)), Some(snapshot)) => {
                observer(Event::Notice(&format!("{found}; the copy in the cache is used")));
                Ok(Found::Cached(snapshot))
            }
            (Err(failure), _) => Err(failure.into_error(what)),
        }
    }
}

/// Where a listing came from.
enum Found {
    Online(Listing),
    Cached(Snapshot),
}

/// One repository and the means to read it.
struct Repository<'a> {
    hub: &'a Hub,
    id: Id,
    kind: RepoType,
    api: Api,
    repo: Repo,
    cache: Cache,
}

impl Repository<'_> {
    /// Fetches what the snapshot lacks, and lets the revision point to it once it is whole.
    fn fetch_all(
        &self,
        listing: &Listing,
        files: &[RemoteFile],
        what: &str,
        observer: Observer<'_>,
    ) -> Result<Snapshot> {
        let snapshot = self.snapshot(&listing.commit);
        let missing: Vec<&RemoteFile> =
            files.iter().filter(|f| !snapshot.folder.join(&f.path).exists()).collect();
        if missing.is_empty() {
            // The cache may be another's, to be read only.
            let _ = self.point_to(&listing.commit);
            return Ok(snapshot);
        }
        let to_fetch: Vec<&&RemoteFile> = missing.iter().filter(|f| !self.blob(&f.blob).exists()).collect();
        if !to_fetch.is_empty() {
            observer(Event::Start {
                what,
                files: to_fetch.len(),
                bytes: to_fetch.iter().map(|f| f.size).sum(),
                present: to_fetch.iter().map(|f| self.present(f)).sum(),
            });
        }
        for file in &missing {
            let _lock = self.lock(file, observer)?;
            if !self.blob(&file.blob).exists() {
                fetch::file(self, &listing.commit, file, what, observer)?;
            }
            self.link(&snapshot, file)?;
        }
        self.point_to(&listing.commit)?;
        observer(Event::Finished);
        Ok(snapshot)
    }
}

fn describe(kind: &str, id: &Id) -> String {
    match id.revision.as_str() {
        "main" => format!("{kind} {}", id.name),
        revision => format!("{kind} {}@{revision}", id.name),
    }
}

fn incomplete(what: &str, folder: &Path) -> Error {
    let found = format!("the cache holds only a part of it, in {}", folder.display());
    let remedy = "fetch it once with the hub in reach and HF_HUB_OFFLINE not set, or give a path";
    Error::input(what, found, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_told_from_paths() {
        for text in
            ["org/name", "HuggingFaceTB/SmolLM2-135M", "o_1/n.1-x", "org/name@v1.0", "org/name@refs/pr/3"]
        {
            assert!(is_id(text), "{text}");
        }
        for text in [
            "name",
            "a/b/c",
            "/org/name",
            "./name/x",
            "../x/y",
            "org/",
            "/name",
            "org/name@",
            "org/name@../x",
            "org/name@a//b",
            "org/name@/etc",
            "src/hub.rs",
            "src/hub",
            "data/rows.jsonl",
            "models/x.GGUF",
            "o g/n",
            "org/na--me",
            "org/na..me",
            "builtin:reasoning",
            "org/name@a b",
            "-o/n",
            "",
        ] {
            assert!(!is_id(text), "{text}");
        }
        assert_eq!(Id::parse("a/b@c/d").unwrap(), Id { name: "a/b".into(), revision: "c/d".into() });
    }

    #[test]
    fn the_environment_is_read_as_python_does() {
        let hub = |pairs: &[(&str, &str)]| {
            Hub::from_variables(|name| pairs.iter().find(|p| p.0 == name).map(|p| p.1.to_owned()))
        };
        let cache = |pairs: &[(&str, &str)]| hub(pairs).unwrap().cache;
        assert_eq!(cache(&[("HOME", "/h")]), Path::new("/h/.cache/huggingface/hub"));
        assert_eq!(cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
        assert_eq!(cache(&[("HF_HOME", "/f"), ("XDG_CACHE_HOME", "/x")]), Path::new("/f/hub"));
        assert_eq!(cache(&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")]), Path::new("/c"));
        assert_eq!(hub(&[]).err().unwrap().exit_code(), 2);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), " secret\n").unwrap();
        let home = folder.path().to_str().unwrap();
        assert_eq!(hub(&[("HF_HOME", home)]).unwrap().token.as_deref(), Some("secret"));
        let both = hub(&[("HF_HOME", home), ("HF_TOKEN", "mine"), ("HF_HUB_OFFLINE", "True")]).unwrap();
        assert_eq!((both.token.as_deref(), both.offline), (Some("mine"), true));
        assert!(!hub(&[("HF_HOME", home), ("HF_HUB_OFFLINE", "0")]).unwrap().offline);
    }
}
