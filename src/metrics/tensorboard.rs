//! The same records as event files for TensorBoard: `tensorboard/events.out.tfevents.SECONDS.smolten`.
//!
//! A file is a row of records: length (u64), its checksum, an `Event` of `tensorflow/core/util/event.proto`, its
//! checksum. The checksums are CRC-32C, masked as TFRecord has them. A run that goes on takes off the events that came
//! after its checkpoint and begins another file, whose first event tells a TensorBoard that has read them to drop them.

use crate::error::{Error, Result};
use crc::{CRC_32_ISCSI, Crc};
use serde_json::{Map, Value};
use std::fs::{File, OpenOptions};
use std::io::{BufReader, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

const CRC32C: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// The folder beside `metrics.jsonl`.
const FOLDER: &str = "tensorboard";
const PREFIX: &str = "events.out.tfevents.";
const SUFFIX: &str = ".smolten";

/// Fields of the messages in `event.proto`, `summary.proto` and `tensor.proto` (number × 8 + wire type).
mod tag {
    pub const EVENT_WALL_TIME: u8 = 1 << 3 | 1;
    pub const EVENT_STEP: u8 = 2 << 3;
    pub const EVENT_FILE_VERSION: u8 = 3 << 3 | 2;
    pub const EVENT_SUMMARY: u8 = 5 << 3 | 2;
    pub const EVENT_SESSION_LOG: u8 = 7 << 3 | 2;
    pub const SESSION_STATUS: u8 = 1 << 3;
    pub const SUMMARY_VALUE: u8 = 1 << 3 | 2;
    pub const VALUE_TAG: u8 = 1 << 3 | 2;
    pub const VALUE_SIMPLE: u8 = 2 << 3 | 5;
    pub const VALUE_TENSOR: u8 = 8 << 3 | 2;
    pub const VALUE_METADATA: u8 = 9 << 3 | 2;
    pub const METADATA_PLUGIN: u8 = 1 << 3 | 2;
    pub const METADATA_DATA_CLASS: u8 = 4 << 3;
    pub const PLUGIN_NAME: u8 = 1 << 3 | 2;
    pub const TENSOR_DTYPE: u8 = 1 << 3;
    pub const TENSOR_SHAPE: u8 = 2 << 3 | 2;
    pub const TENSOR_STRING: u8 = 8 << 3 | 2;
}
const SESSION_START: u8 = 1;
const DT_STRING: u8 = 7;
const DATA_CLASS_TENSOR: u8 = 2;

/// The file that the present sitting writes.
#[derive(Debug)]
pub(super) struct Events {
    file: File,
    path: PathBuf,
}

impl Events {
    /// Begins a file in the run's folder, `first` being the first step in it.
    pub fn begin(folder: &Path, first: usize) -> Result<Self> {
        let folder = folder.join(FOLDER);
        std::fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        let mut last = None;
        for (seconds, path) in files(&folder)? {
            cut(&path, first as u64).map_err(Error::io("write", &path))?;
            last = last.max(Some(seconds));
        }
        // TensorBoard reads the files in the order of their names.
        let seconds = last.map_or(0, |last| last + 1).max(now().as_secs());
        let path = folder.join(format!("{PREFIX}{seconds:010}{SUFFIX}"));
        let file = File::create_new(&path).map_err(Error::io("create", &path))?;
        let mut events = Self { file, path };
        events.append(0, &[tag::EVENT_FILE_VERSION], b"brain.Event:2")?;
        if last.is_some() {
            let start = [tag::SESSION_STATUS, SESSION_START];
            events.append(first as u64, &[tag::EVENT_SESSION_LOG], &start)?;
        }
        Ok(events)
    }

    /// Writes a record of `metrics.jsonl`: its numbers, or its text.
    pub fn write(&mut self, record: &Value) -> Result<()> {
        let empty = Map::new();
        let fields = record.as_object().unwrap_or(&empty);
        let mut summary = Vec::new();
        for (key, value) in fields {
            let name = match key.strip_prefix("eval_") {
                Some(name) => format!("eval/{name}"),
                None if key != "step" && fields.contains_key("loss") => format!("train/{key}"),
                None => continue,
            };
            if let Some(x) = number(key, value) {
                let value =
                    [&text(tag::VALUE_TAG, &name)[..], &[tag::VALUE_SIMPLE], &x.to_le_bytes()].concat();
                nested(&mut summary, tag::SUMMARY_VALUE, &value);
            }
        }
        if let Some(sample) = fields.get("sample").and_then(Value::as_str) {
            let prompt = fields.get("sample_prompt").and_then(Value::as_str).unwrap_or_default();
            nested(&mut summary, tag::SUMMARY_VALUE, &text_value("sample", &format!("{prompt}\n\n{sample}")));
        }
        let step = fields.get("step").and_then(Value::as_u64).unwrap_or_default();
        if summary.is_empty() { Ok(()) } else { self.append(step, &[tag::EVENT_SUMMARY], &summary) }
    }

    /// Has all events so far written to the disk.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(Error::io("write", &self.path))
    }

    /// Appends one event whole and at once, so that a TensorBoard that looks on sees it.
    fn append(&mut self, step: u64, what: &[u8], body: &[u8]) -> Result<()> {
        let mut event = vec![tag::EVENT_WALL_TIME];
        event.extend(now().as_secs_f64().to_le_bytes());
        event.push(tag::EVENT_STEP);
        varint(&mut event, step);
        event.extend(what);
        varint(&mut event, body.len() as u64);
        event.extend(body);
        let length = (event.len() as u64).to_le_bytes();
        let record = [&length[..], &checksum(&length), &event, &checksum(&event)].concat();
        self.file.write_all(&record).map_err(Error::io("write", &self.path))
    }
}

/// The event files that runs of this program wrote into the folder, by their names' seconds.
fn files(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let entries = std::fs::read_dir(folder).map_err(Error::io("read", folder))?;
    let own = |path: PathBuf| {
        let name = path.file_name()?.to_str()?;
        Some((name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.parse().ok()?, path))
    };
    Ok(entries.filter_map(|entry| own(entry.ok()?.path())).collect())
}

/// Takes off what follows the first event of a step from `first` on, or a damaged or half record.
fn cut(path: &Path, first: u64) -> std::io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let size = file.metadata()?.len();
    let mut reader = BufReader::new(&file);
    let mut kept = 0;
    while let Some((bytes, is_version, step)) = next(&mut reader, size - kept)? {
        if step >= first && !is_version {
            break;
        }
        kept += bytes;
    }
    file.set_len(kept)
}

/// Bytes of the next record, whether it is the version, and its step; none when it is not whole.
fn next(reader: &mut impl Read, left: u64) -> std::io::Result<Option<(u64, bool, u64)>> {
    let mut whole = |bytes: &mut [u8]| match reader.read_exact(bytes) {
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(false),
        read => read.map(|()| true),
    };
    let mut head = [0; 12];
    if !whole(&mut head)? || head[8..] != checksum(&head[..8]) {
        return Ok(None);
    }
    let length = u64::from_le_bytes(head[..8].try_into().expect("eight bytes"));
    let Ok(room) = usize::try_from(length.min(left)) else { return Ok(None) };
    let (mut event, mut sum) = (vec![0; room], [0; 4]);
    if length > left || !whole(&mut event)? || !whole(&mut sum)? || sum != checksum(&event) {
        return Ok(None);
    }
    // As `append` writes it: the time, then the step.
    let Some([tag::EVENT_STEP, rest @ ..]) = event.get(9..) else { return Ok(None) };
    let (mut step, mut used) = (0, 0);
    for byte in rest.iter().take(10) {
        step |= u64::from(byte & 0x7f) << (7 * used).min(63);
        used += 1;
        if byte & 0x80 == 0 {
            break;
        }
    }
    Ok(Some((length + 16, rest.get(used) == Some(&tag::EVENT_FILE_VERSION), step)))
}

/// What TensorBoard draws for a field; null is what JSON has for a number that is not finite, or for memory that the
/// system does not tell.
#[allow(clippy::cast_possible_truncation, reason = "TensorBoard's scalars are f32")]
fn number(key: &str, value: &Value) -> Option<f32> {
    match value {
        Value::Null if key != "peak_memory_bytes" => Some(f32::NAN),
        _ => value.as_f64().map(|x| x as f32),
    }
}

/// A text, set off as code so that TensorBoard's Markdown leaves it as it is.
fn text_value(name: &str, content: &str) -> Vec<u8> {
    let content: Vec<String> = content.lines().map(|line| format!("    {line}")).collect();
    let mut metadata = Vec::new();
    nested(&mut metadata, tag::METADATA_PLUGIN, &text(tag::PLUGIN_NAME, "text"));
    metadata.extend([tag::METADATA_DATA_CLASS, DATA_CLASS_TENSOR]);
    let mut tensor = vec![tag::TENSOR_DTYPE, DT_STRING, tag::TENSOR_SHAPE, 0]; // a scalar
    tensor.extend(text(tag::TENSOR_STRING, &content.join("\n")));
    let mut value = text(tag::VALUE_TAG, name);
    nested(&mut value, tag::VALUE_METADATA, &metadata);
    nested(&mut value, tag::VALUE_TENSOR, &tensor);
    value
}

fn text(tag: u8, content: &str) -> Vec<u8> {
    let mut out = Vec::new();
    nested(&mut out, tag, content.as_bytes());
    out
}

fn nested(out: &mut Vec<u8>, tag: u8, content: &[u8]) {
    out.push(tag);
    varint(out, content.len() as u64);
    out.extend(content);
}

#[allow(clippy::cast_possible_truncation, reason = "seven bits at a time")]
fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// TFRecord's: rotated and shifted, as a checksum of bytes that hold their own checksum would tell nothing.
fn checksum(bytes: &[u8]) -> [u8; 4] {
    CRC32C.checksum(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

fn now() -> std::time::Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Steps of all events but versions, file by file in the order of their names.
    fn steps(folder: &Path) -> Vec<Vec<u64>> {
        let mut files = files(&folder.join(FOLDER)).unwrap();
        files.sort();
        let read = |(_, path): &(u64, PathBuf)| {
            let bytes = std::fs::read(path).unwrap();
            let (mut reader, mut found) = (&bytes[..], Vec::new());
            while let Some((_, is_version, step)) = next(&mut reader, bytes.len() as u64).unwrap() {
                found.extend((!is_version).then_some(step));
            }
            assert!(reader.is_empty(), "what remains is whole");
            found
        };
        files.iter().map(read).collect()
    }

    #[test]
    fn checksums_are_those_of_the_specification() {
        // RFC 3720, B.4: 32 bytes of zeros; the first length of every TensorBoard file with this version.
        assert_eq!(CRC32C.checksum(&[0; 32]), 0x8a91_36aa);
        assert_eq!(checksum(&24u64.to_le_bytes()), [0xa3, 0x7f, 0x4b, 0x22]);
    }

    #[test]
    fn a_run_that_goes_on_takes_off_what_came_after() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = Events::begin(folder.path(), 0).unwrap();
        events.write(&json!({"step": 0, "eval_loss": 3.0})).unwrap();
        for step in 1..=300 {
            events.write(&json!({"step": step, "loss": 2.0})).unwrap();
        }
        events.write(&json!({"step": 128, "sample_prompt": "?", "sample": "!"})).unwrap();
        // A half record, as of a process that was killed.
        let path = events.path.clone();
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 3]).unwrap();
        let mut events = Events::begin(folder.path(), 129).unwrap();
        events.write(&json!({"step": 129, "loss": 2.0})).unwrap();
        let first: Vec<u64> = (0..=128).collect();
        assert_eq!(
            steps(folder.path()),
            [first.clone(), vec![129, 129]],
            "the second file begins with a mark"
        );
        Events::begin(folder.path(), 129).unwrap();
        assert_eq!(steps(folder.path()), [first, vec![], vec![129]]);
        Events::begin(folder.path(), 0).unwrap();
        assert_eq!(steps(folder.path()), [vec![], vec![], vec![], vec![0]]);
    }

    #[test]
    fn damage_ends_what_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = Events::begin(folder.path(), 0).unwrap();
        (1..=3).for_each(|step| events.write(&json!({"step": step, "loss": 2.0})).unwrap());
        let good = std::fs::read(&events.path).unwrap();
        let record = (good.len() - 42) / 3;
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            std::fs::write(&events.path, &bad).unwrap();
            cut(&events.path, 9).unwrap();
            let kept = std::fs::read(&events.path).unwrap().len();
            assert_eq!(kept, if at < 42 { 0 } else { at - (at - 42) % record }, "byte {at}");
        }
    }

    #[test]
    fn numbers_that_are_not_finite_stay_so_and_unknown_ones_are_left_out() {
        assert!(number("grad_norm", &Value::Null).unwrap().is_nan());
        assert_eq!(number("peak_memory_bytes", &Value::Null), None);
        assert_eq!(number("tokens", &json!(16_777_217)), Some(16_777_216.0));
    }
}
