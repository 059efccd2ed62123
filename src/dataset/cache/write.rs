//! Writing a token file, example by example, beside its place.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use bytemuck::{Zeroable, bytes_of, cast_slice};
use sha2::{Digest, Sha256};

use super::{ALIGNMENT, Header, Key, MAGIC, PADDING, VERSION};
use crate::batch::Origin;
use crate::dataset::Audit;
use crate::dataset::encode::EncodedRow;
use crate::error::{Error, Result};

/// Start and end of the names of files that are being written.
const PART: [&str; 2] = [".smolten-", ".part"];

/// A token file in the making. Ids go straight into it; the other arrays into files of their own that have no name,
/// and behind the ids in the end, as only then their places are known. Memory holds a few buffers.
pub(in crate::dataset) struct Writer {
    folder: PathBuf,
    /// Name of the file while it is written; `None` for one that has none any more.
    part: Option<PathBuf>,
    file: BufWriter<File>,
    hasher: Sha256,
    /// Bytes of the file, from its start.
    written: u64,
    supervised: BufWriter<File>,
    offsets: BufWriter<File>,
    origins: BufWriter<File>,
    header: Header,
}

impl Writer {
    /// A file that will be renamed into `folder`, which is created.
    ///
    /// # Errors
    /// [`Error::Io`] with the action `create` or `write`, as from every method.
    pub fn in_folder(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        remove_orphans(folder);
        let (part, file) = loop {
            let (part, file) = create(folder)?;
            // The lock tells that somebody still writes the file. Whoever took it before, or took the name away,
            // took the file for an orphan; the next name is tried.
            let locked = file.try_lock().is_ok();
            if locked && part.exists() {
                break (part, file);
            }
        };
        Self::new(folder, Some(part), file)
    }

    /// A file without a name, in the system's folder for such.
    ///
    /// # Errors
    /// As [`Writer::in_folder`].
    pub fn unnamed() -> Result<Self> {
        let folder = std::env::temp_dir();
        let file = unnamed(&folder)?;
        Self::new(&folder, None, file)
    }

    fn new(folder: &Path, part: Option<PathBuf>, file: File) -> Result<Self> {
        let side = || unnamed(folder).map(BufWriter::new);
        let mut writer = Self {
            supervised: side()?,
            offsets: side()?,
            origins: side()?,
            folder: folder.to_owned(),
            part,
            file: BufWriter::with_capacity(1 << 20, file),
            hasher: Sha256::new(),
            written: 0,
            header: Header { magic: MAGIC, version: VERSION, ..Header::zeroed() },
        };
        let begun = writer.begin();
        begun.map_err(Error::io("write", folder))?;
        Ok(writer)
    }

    /// Room for the header, and the offset of the first example.
    fn begin(&mut self) -> io::Result<()> {
        self.file.write_all(bytes_of(&Header::zeroed()))?;
        self.written = Header::BYTES;
        self.offsets.write_all(bytes_of(&0u64))
    }

    /// Appends an example.
    ///
    /// # Errors
    /// As [`Writer::in_folder`].
    pub fn push(&mut self, row: &EncodedRow, origin: Origin) -> Result<()> {
        let folder = self.folder.clone();
        self.push_row(row, origin).map_err(Error::io("write", folder))
    }

    fn push_row(&mut self, row: &EncodedRow, origin: Origin) -> io::Result<()> {
        self.put(cast_slice(&row.ids))?;
        let flags: Vec<u8> = row.supervised.iter().map(|&s| u8::from(s)).collect();
        self.supervised.write_all(&flags)?;
        self.header.tokens += row.ids.len() as u64;
        self.header.examples += 1;
        self.offsets.write_all(bytes_of(&self.header.tokens))?;
        self.origins.write_all(bytes_of(&origin))
    }

    /// Into the file itself, and into the digest.
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.written += bytes.len() as u64;
        self.file.write_all(bytes)
    }

    /// Completes the file, makes sure that the disk has it, and puts it at `name` in its folder; one without a name
    /// keeps none. Gives the file, open to be read.
    ///
    /// # Errors
    /// As [`Writer::in_folder`]; then nothing is left behind.
    pub fn finish(mut self, name: &str, key: &Key, audit: &Audit<Origin>) -> Result<File> {
        let folder = self.folder.clone();
        self.complete(name, key, audit).map_err(Error::io("write", folder))
    }

    fn complete(&mut self, name: &str, key: &Key, audit: &Audit<Origin>) -> io::Result<File> {
        for side in ["supervised", "offsets", "origins"] {
            self.append(side)?;
        }
        let audit = serde_json::to_vec(audit).expect("counts and places are plain data");
        self.pad()?;
        self.put(&audit)?;
        self.header.key = *key;
        self.header.audit_bytes = audit.len() as u64;
        self.hasher.update(self.header.counted());
        self.header.digest = self.hasher.finalize_reset().into();
        self.file.seek(SeekFrom::Start(0))?;
        let header = self.header;
        self.file.write_all(bytes_of(&header))?;
        self.file.flush()?;
        let file = self.file.get_ref();
        if let Some(part) = &self.part {
            file.sync_all()?;
            std::fs::rename(part, self.folder.join(name))?;
            File::open(&self.folder)?.sync_all()?;
            self.part = None;
        }
        file.try_clone()
    }

    /// Copies one of the other arrays behind what is there.
    fn append(&mut self, side: &str) -> io::Result<()> {
        self.pad()?;
        let side = match side {
            "supervised" => &mut self.supervised,
            "offsets" => &mut self.offsets,
            _ => &mut self.origins,
        };
        side.flush()?;
        let mut side = side.get_ref().try_clone()?;
        side.rewind()?;
        let mut buffer = vec![0; 1 << 16];
        loop {
            match side.read(&mut buffer)? {
                0 => return Ok(()),
                n => self.put(&buffer[..n])?,
            }
        }
    }

    fn pad(&mut self) -> io::Result<()> {
        let missing = self.written.next_multiple_of(ALIGNMENT) - self.written;
        self.put(&PADDING[..usize::try_from(missing).expect("below the alignment")])
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(part) = &self.part {
            let _ = std::fs::remove_file(part); // a file left over is removed by the next run
        }
    }
}

/// A new file of a name that nobody else has.
fn create(folder: &Path) -> Result<(PathBuf, File)> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    loop {
        let [start, end] = PART;
        let (process, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = folder.join(format!("{start}{process}-{number}{end}"));
        match OpenOptions::new().read(true).write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((path, file)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(Error::io("create", &path)(e)),
        }
    }
}

/// A new file that goes when it is closed, however the program ends.
fn unnamed(folder: &Path) -> Result<File> {
    let (path, file) = create(folder)?;
    match std::fs::remove_file(&path) {
        // Another run took it for an orphan and has taken its name already.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(file),
        removed => removed.map(|()| file).map_err(Error::io("create", &path)),
    }
}

/// Removes the files of runs that were killed while they wrote: those that nobody holds a lock on.
fn remove_orphans(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with(PART[0])
            && name.ends_with(PART[1])
            && let Ok(file) = File::open(&path)
            && file.try_lock().is_ok()
        {
            let _ = std::fs::remove_file(&path);
        }
    }
}
