//! The file of a tokenised data set: a header, then flat arrays that are used where they lie.
//!
//! ```text
//! 0     header, 128 bytes, see Header
//! 128   ids, u32 per token
//!       supervised, u8 per token: 1 where it is in the loss
//!       offsets, u64: example i is tokens offsets[i]..offsets[i + 1]; one more than examples
//!       origins, two u64 per example: file and line or row
//!       audit, JSON
//! ```
//! Numbers are little endian; every array begins at a multiple of 64 bytes, with zeros before it. The places of the
//! arrays follow from the counts in the header, so a file cannot point anywhere. A SHA-256 over everything else is
//! the last field of the header. Nothing of a file is used before it, and every number that is used as an index, has
//! been checked.

mod write;

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use memmap2::Mmap;
use sha2::{Digest, Sha256};

pub(super) use write::Writer;

use super::Audit;
use crate::batch::{Arrays, Examples, Origin};

#[cfg(target_endian = "big")]
compile_error!("token caches are mapped in the machine's byte order, which must be little endian");

/// First bytes of every such file.
const MAGIC: [u8; 8] = *b"smoltok\n";

/// Of this layout; to be raised with it, and where the same inputs give other tokens than before.
pub(super) const VERSION: u64 = 1;

/// Before an array, as many as it takes.
const PADDING: [u8; 64] = [0; 64];

/// What array starts are multiples of.
const ALIGNMENT: u64 = PADDING.len() as u64;

/// Bytes read at a time while a file is checked; a multiple of 4.
const PIECE: usize = 1 << 20;

/// What a cached data set was made from.
pub(super) type Key = [u8; 32];

/// The first 128 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: u64,
    key: Key,
    tokens: u64,
    examples: u64,
    audit_bytes: u64,
    reserved: [u8; 24],
    /// SHA-256 of what follows the header, and then of the header up to here.
    digest: [u8; 32],
}

impl Header {
    const BYTES: u64 = size_of::<Self>() as u64;

    /// What the digest covers of the header.
    fn counted(&self) -> &[u8] {
        let bytes = bytemuck::bytes_of(self);
        &bytes[..bytes.len() - self.digest.len()]
    }
}

/// Bytes of the arrays and of the audit, from the file's start; `None` where they exceed what a file can hold.
fn layout(header: &Header) -> Option<[Range<u64>; 5]> {
    let mut end = Header::BYTES;
    let mut next = |bytes: Option<u64>| {
        let start = end.checked_next_multiple_of(ALIGNMENT)?;
        end = start.checked_add(bytes?)?;
        Some(start..end)
    };
    Some([
        next(header.tokens.checked_mul(4))?,
        next(Some(header.tokens))?,
        next(header.examples.checked_add(1).and_then(|n| n.checked_mul(8)))?,
        next(header.examples.checked_mul(16))?,
        next(Some(header.audit_bytes))?,
    ])
}

/// What the numbers in a file must keep to, besides one another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Ids lie below this.
    pub vocab_size: usize,
    /// No example has more tokens.
    pub max_length: usize,
    /// Origins name files below this.
    pub num_files: usize,
}

/// A data set as its file holds it.
pub(super) struct Opened {
    pub examples: Examples,
    pub audit: Audit<Origin>,
}

/// Why a file is not used.
pub(super) type Damage = String;

/// Reads a file once from end to end, in pieces, and maps it when all of it is as it was written.
///
/// # Errors
/// What is wrong with the file.
pub(super) fn open(file: &File, key: &Key, limits: Limits) -> Result<Opened, Damage> {
    let unreadable = |e: io::Error| format!("it cannot be read: {e}");
    let length = file.metadata().map_err(unreadable)?.len();
    let mut reader = BufReader::with_capacity(PIECE, file);
    let mut header = Header::zeroed();
    reader.rewind().map_err(unreadable)?;
    reader.read_exact(bytemuck::bytes_of_mut(&mut header)).map_err(|_| "it is cut short".to_owned())?;
    if header.magic != MAGIC || header.version != VERSION {
        return Err("it is no cache of this version".to_owned());
    }
    if header.key != *key {
        return Err("it is the cache of other data".to_owned());
    }
    let sections = layout(&header).ok_or("its counts are impossible")?;
    if length != sections[4].end {
        return Err(format!("it has {length} bytes where {} belong", sections[4].end));
    }
    let audit = verify(&mut reader, &header, &sections, limits)?;
    map(file, &sections, &audit, limits).map(|examples| Opened { examples, audit })
}

/// Digest and ids, piece by piece; the audit.
fn verify(
    reader: &mut impl Read,
    header: &Header,
    sections: &[Range<u64>; 5],
    limits: Limits,
) -> Result<Audit<Origin>, Damage> {
    let mut hasher = Sha256::new();
    let mut buffer: Vec<u32> = vec![0; PIECE / 4];
    let (mut at, mut audit, mut large) = (Header::BYTES, Vec::new(), None);
    while at < sections[4].end {
        // Pieces end where sections do, so that each is of one kind.
        let ends =
            sections.iter().flat_map(|s| [s.start, s.end]).find(|&end| end > at).expect("before the end");
        let bytes = usize::try_from(ends - at).map_or(PIECE, |n| n.min(PIECE));
        let piece = &mut bytemuck::cast_slice_mut::<u32, u8>(&mut buffer)[..bytes];
        reader.read_exact(piece).map_err(|e| format!("it cannot be read: {e}"))?;
        hasher.update(&*piece);
        if sections[0].contains(&at) {
            large = large.max(buffer[..bytes / 4].iter().max().copied());
        } else if sections[4].contains(&at) {
            audit.extend_from_slice(&bytemuck::cast_slice::<u32, u8>(&buffer)[..bytes]);
        }
        at += bytes as u64;
    }
    hasher.update(header.counted());
    if <[u8; 32]>::from(hasher.finalize()) != header.digest {
        return Err("its checksum differs".to_owned());
    }
    if large.is_some_and(|id| id as usize >= limits.vocab_size) {
        return Err("it holds ids that are no tokens".to_owned());
    }
    let audit: Audit<Origin> =
        serde_json::from_slice(&audit).map_err(|e| format!("its audit is not understood: {e}"))?;
    let fits = audit.examples as u64 == header.examples && audit.tokens as u64 == header.tokens;
    let known = audit.places.values().flatten().all(|o| o.file < limits.num_files as u64);
    if fits && known { Ok(audit) } else { Err("its audit is of other data".to_owned()) }
}

/// Maps the arrays of a file that was checked, and checks what they say of one another.
fn map(
    file: &File,
    sections: &[Range<u64>; 5],
    audit: &Audit<Origin>,
    limits: Limits,
) -> Result<Examples, Damage> {
    let bytes = |s: &Range<u64>| Some(usize::try_from(s.start).ok()?..usize::try_from(s.end).ok()?);
    let [ids, supervised, offsets, origins, _] = sections.each_ref().map(bytes);
    let arrays =
        (|| Some(Arrays { offsets: offsets?, origins: origins?, ids: ids?, supervised: supervised? }))();
    // SAFETY: the mapping is private and read-only. The file is one of this program's own folder, where files are
    // written beside, renamed and never written again; a mapped one that is replaced or removed stays as it was.
    // That nobody truncates it meanwhile is out of the program's hands, as with every mapped model file.
    let map = unsafe { Mmap::map(file) }.map_err(|e| format!("it cannot be mapped: {e}"))?;
    let examples = arrays.and_then(|arrays| Examples::from_map(map, arrays));
    let examples = examples.ok_or("its offsets contradict one another")?;
    // A shorter one has nothing to learn, and was left out.
    let fits = |i| {
        let known = examples.origin(i).file < limits.num_files as u64;
        (2..=limits.max_length).contains(&examples.tokens_of(i)) && known
    };
    match audit.examples > 0 && (0..examples.len()).all(fits) {
        true => Ok(examples),
        false => Err("it holds examples that cannot be".to_owned()),
    }
}
