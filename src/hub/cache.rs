//! The cache on disk: blobs by their hash, snapshots that link to them, revisions that name a snapshot.

use super::listing::{RemoteFile, is_hash};
use super::{Event, Observer, Repository};
use crate::error::{Error, Result};
use std::fs::{File, TryLockError, create_dir_all};
use std::path::{Component, Path, PathBuf};

/// The folder of one commit.
pub struct Snapshot {
    pub folder: PathBuf,
}

impl Snapshot {
    /// Paths of all files below it, sorted, with `/` between the parts.
    pub fn files(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let mut folders = vec![PathBuf::new()];
        while let Some(below) = folders.pop() {
            let folder = self.folder.join(&below);
            for entry in std::fs::read_dir(&folder).map_err(Error::io("read", &folder))? {
                let entry = entry.map_err(Error::io("read", &folder))?;
                let path = below.join(entry.file_name());
                if entry.path().is_dir() {
                    folders.push(path);
                } else if let (true, Some(text)) = (entry.path().exists(), path.to_str()) {
                    found.push(text.to_owned());
                }
            }
        }
        found.sort();
        Ok(found)
    }
}

impl Repository<'_> {
    fn root(&self) -> PathBuf {
        self.cache.path().join(self.repo.folder_name())
    }

    pub fn blob(&self, hash: &str) -> PathBuf {
        self.cache.repo(self.repo.clone()).blob_path(hash)
    }

    /// Where a blob lies until it is whole.
    pub fn incomplete(&self, hash: &str) -> PathBuf {
        self.blob(hash).with_file_name(format!("{hash}.incomplete"))
    }

    /// Bytes that are there of a blob that is not whole.
    pub fn present(&self, file: &RemoteFile) -> u64 {
        let length = self.incomplete(&file.blob).metadata().map_or(0, |m| m.len());
        length.min(file.size)
    }

    pub fn snapshot(&self, commit: &str) -> Snapshot {
        Snapshot { folder: self.cache.repo(self.repo.clone()).pointer_path(commit) }
    }

    /// The snapshot that the revision names, if there is one.
    pub fn cached(&self) -> Option<Snapshot> {
        let commit = if self.id.is_commit() {
            self.id.revision.clone()
        } else {
            std::fs::read_to_string(self.reference()).ok()?.trim().to_owned()
        };
        let snapshot = is_hash(&commit, &[40]).then(|| self.snapshot(&commit))?;
        snapshot.folder.is_dir().then_some(snapshot)
    }

    fn reference(&self) -> PathBuf {
        self.root().join("refs").join(&self.id.revision)
    }

    /// Lets the revision name the commit. A reader sees the old name or the new one, never half of it.
    pub fn point_to(&self, commit: &str) -> Result<()> {
        let path = self.reference();
        if self.id.is_commit() || std::fs::read_to_string(&path).is_ok_and(|old| old == commit) {
            return Ok(());
        }
        make_folder_of(&path)?;
        let name = path.file_name().expect("a revision ends in a name").to_string_lossy();
        let beside = path.with_file_name(format!(".{name}.{}.part", std::process::id()));
        let written = std::fs::write(&beside, commit).and_then(|()| std::fs::rename(&beside, &path));
        written.map_err(Error::io("write", &path))
    }

    /// Puts a link to the file's blob into the snapshot.
    pub fn link(&self, snapshot: &Snapshot, file: &RemoteFile) -> Result<()> {
        let link = snapshot.folder.join(&file.path);
        make_folder_of(&link)?;
        let up = Path::new(&file.path).components().filter(|c| matches!(c, Component::Normal(_))).count() + 1;
        let target: PathBuf = std::iter::repeat_n("..", up).collect();
        let target = target.join("blobs").join(&file.blob);
        if !link.exists() && link.is_symlink() {
            // It led to a blob that was removed; where it leads to now is told anew.
            std::fs::remove_file(&link).map_err(Error::io("remove", &link))?;
        }
        match std::os::unix::fs::symlink(&target, &link) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            other => other.map_err(Error::io("link", &link)),
        }
    }

    /// Waits until no other process fetches the file, and keeps others waiting as long as the value lives.
    ///
    /// The lock is that of `huggingface_hub`. Where the file system has none, two processes may fetch the same file
    /// at once; then its hash tells whether they got in each other's way.
    pub fn lock(&self, file: &RemoteFile, observer: Observer<'_>) -> Result<File> {
        let name = format!("{}.lock", file.blob);
        let path = self.cache.path().join(".locks").join(self.repo.folder_name()).join(name);
        make_folder_of(&path)?;
        let lock = File::options().write(true).create(true).truncate(false).open(&path);
        let lock = lock.map_err(Error::io("create", &path))?;
        let waited = match lock.try_lock() {
            Ok(()) => Ok(()),
            Err(TryLockError::WouldBlock) => {
                let text = format!("another process is fetching {}; waiting for it", file.path);
                observer(Event::Notice(&text));
                lock.lock()
            }
            Err(TryLockError::Error(e)) => Err(e),
        };
        match waited {
            Err(e) if e.kind() != std::io::ErrorKind::Unsupported => Err(Error::io("lock", &path)(e)),
            _ => Ok(lock),
        }
    }
}

/// Creates the folder that a file is to lie in.
pub fn make_folder_of(path: &Path) -> Result<()> {
    let folder = path.parent().expect("a path below the cache");
    create_dir_all(folder).map_err(Error::io("create", folder))
}
