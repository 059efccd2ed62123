//! Which files of a repository are needed.

use super::listing::RemoteFile;
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Small files of a model: those without which it cannot be opened first. Its card says its license.
const SMALL: [&str; 7] = [
    "config.json",
    "tokenizer.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "README.md",
];
const NECESSARY: usize = 2;

/// An adapter as PEFT stores it: a repository with these and no weights of its own is one. Its base is another.
const ADAPTER: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

/// Most names that a message lists.
const SHOWN: usize = 12;

/// The files of a model that are read here, the small ones first.
///
/// # Errors
/// [`Error::Input`] when its weights are no safetensors, or configuration or tokenizer is missing.
pub fn model_files(all: &[RemoteFile], what: &str) -> Result<Vec<RemoteFile>> {
    let has = |name: &str| all.iter().any(|f| f.path == name);
    let shard = |path: &str| {
        path.starts_with("model-")
            && path.ends_with(".safetensors")
            && path.contains("-of-")
            && !path.contains('/')
    };
    let sharded = !has(SINGLE) && has(INDEX);
    let by_size = |needed: &dyn Fn(&str) -> bool| {
        let mut files: Vec<RemoteFile> = all.iter().filter(|f| needed(&f.path)).cloned().collect();
        files.sort_by(|a, b| (a.size, &a.path).cmp(&(b.size, &b.path)));
        files
    };
    if !sharded && !has(SINGLE) {
        let is_adapter = ADAPTER.iter().all(|name| has(name));
        let needed = |path: &str| SMALL.contains(&path) || ADAPTER.contains(&path);
        return if is_adapter { Ok(by_size(&needed)) } else { Err(no_weights(all, what)) };
    }
    if let Some(missing) = SMALL[..NECESSARY].iter().find(|name| !has(name)) {
        let remedy = "use a model of the Llama family in the form of transformers, with tokenizer.json";
        return Err(Error::input(what, format!("it has no {missing}"), remedy));
    }
    let needed = |path: &str| {
        SMALL.contains(&path) || if sharded { path == INDEX || shard(path) } else { path == SINGLE }
    };
    Ok(by_size(&needed))
}

fn no_weights(all: &[RemoteFile], what: &str) -> Error {
    let mut ggufs: Vec<&str> =
        all.iter().map(|f| f.path.as_str()).filter(|p| p.to_ascii_lowercase().ends_with(".gguf")).collect();
    ggufs.sort_unstable();
    if ggufs.is_empty() {
        let remedy = "use a model that has them, or convert its folder with transformers (save_pretrained)";
        return Error::input(what, "it has no model.safetensors nor an index of such files", remedy);
    }
    let found = format!("it has no safetensors, but GGUF files: {}", list(&ggufs));
    let remedy = "fetch one of them (of type F32, F16, BF16, Q8_0, Q4_0 or Q4_1) and give its path";
    Error::input(what, found, remedy)
}

/// Whether a folder holds every file that opening a model, or an adapter beside its base, needs.
pub fn is_whole_model(folder: &Path) -> bool {
    let has = |name: &str| folder.join(name).is_file();
    let shards = || {
        let index = std::fs::read(folder.join(INDEX)).ok()?;
        let index: serde_json::Value = serde_json::from_slice(&index).ok()?;
        let files = index["weight_map"].as_object()?;
        Some(files.values().all(|file| file.as_str().is_some_and(has)))
    };
    let is_model = SMALL[..NECESSARY].iter().all(|name| has(name)) && (has(SINGLE) || shards() == Some(true));
    is_model || ADAPTER.iter().all(|name| has(name))
}

/// Splits of a data set, told by a word of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Split {
    Train,
    Other,
}

/// One file of rows: where it lies, and to which set of shards it belongs.
struct DataFile<'a> {
    path: &'a str,
    split: Option<Split>,
    /// The words of its path that name neither split, shard nor the usual folder `data`.
    set: String,
    /// Shards of its set, where its name says how many there are.
    of: Option<usize>,
}

/// The files of the train split among the paths of a data set, sorted.
///
/// Parquet before JSON before CSV; within the first of these that has any, the files with `train` as a word of their
/// path, else those that name no split at all. Shards (`-00000-of-00002`, `0000`) belong together.
///
/// # Errors
/// [`Error::Input`], with what was found, when there are no rows to learn from, when there are several sets of
/// them, or when shards are missing.
pub fn train_files(paths: &[&str], what: &str) -> Result<Vec<String>> {
    for endings in [&["parquet"][..], &["jsonl", "json"], &["csv"]] {
        let files: Vec<DataFile> = paths.iter().filter_map(|path| data_file(path, endings)).collect();
        if files.is_empty() {
            continue;
        }
        return one_set(files, what);
    }
    let remedy = "use a data set that has such files, or give the path of a local file";
    Err(Error::input(what, "it has no .parquet, .jsonl, .json or .csv file", remedy))
}

fn one_set(files: Vec<DataFile<'_>>, what: &str) -> Result<Vec<String>> {
    let all: Vec<&str> = files.iter().map(|f| f.path).collect();
    let wanted = if files.iter().any(|f| f.split == Some(Split::Train)) { Some(Split::Train) } else { None };
    let mut sets: BTreeMap<String, Vec<DataFile>> = BTreeMap::new();
    for file in files.into_iter().filter(|f| f.split == wanted) {
        sets.entry(file.set.clone()).or_default().push(file);
    }
    let fetch_one = "fetch the file that is meant and give its path";
    if sets.len() > 1 {
        let examples: Vec<&str> = sets.values().map(|files| files[0].path).collect();
        let found = format!("{} sets of rows could be meant: {}", sets.len(), list(&examples));
        return Err(Error::input(what, found, fetch_one));
    }
    let Some((_, mut files)) = sets.pop_first() else {
        return Err(Error::input(what, format!("it has no train split, only {}", list(&all)), fetch_one));
    };
    files.sort_by_key(|f| f.path);
    if let Some(of) = files[0].of.filter(|&of| of != files.len()) {
        let found = format!("{} of {of} files are there: {}", files.len(), list(&[files[0].path]));
        return Err(Error::input(what, found, "fetch the rest: with the hub in reach, or by hand"));
    }
    Ok(files.iter().map(|f| f.path.to_owned()).collect())
}

/// What a path says, if it is one of rows in a file with one of the endings.
fn data_file<'a>(path: &'a str, endings: &[&str]) -> Option<DataFile<'a>> {
    /// What tools leave beside the rows.
    const RECORDS: [&str; 6] =
        ["dataset_infos", "dataset_info", "dataset_dict", "state", "package", "config"];
    let lower = path.to_ascii_lowercase();
    let (stem, ending) = lower.rsplit_once('.')?;
    let name = stem.rsplit('/').next().unwrap_or(stem);
    if !endings.contains(&ending) || RECORDS.contains(&name) || lower.split('/').any(|p| p.starts_with('.')) {
        return None;
    }
    let words: Vec<&str> = stem.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).collect();
    let number = |w: &str| w.parse::<usize>().ok();
    let of = words.iter().rposition(|&w| w == "of").and_then(|at| Some((at, number(words.get(at + 1)?)?)));
    let mut split = None;
    let mut set = Vec::new();
    for (i, word) in words.iter().enumerate() {
        match *word {
            "train" | "training" => split = Some(Split::Train),
            "test" | "testing" | "eval" | "evaluation" | "validation" | "valid" | "val" | "dev" => {
                split = split.or(Some(Split::Other));
            }
            "data" | "default" if path.contains('/') && set.is_empty() => {}
            // The number of a shard, `-of-` and what is behind it.
            _ if of.is_some_and(|(at, _)| i + 1 >= at) => {}
            _ if i + 1 == words.len() && number(word).is_some() => {}
            word => set.push(word),
        }
    }
    Some(DataFile { path, split, set: set.join("/"), of: of.map(|(_, n)| n) })
}

/// The first names of a list.
fn list(names: &[&str]) -> String {
    let mut text = names[..names.len().min(SHOWN)].join(", ");
    if names.len() > SHOWN {
        text += &format!(" and {} more", names.len() - SHOWN);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Paths of a repository, separated by blanks, and the files to be taken.
    #[test]
    fn the_train_split_is_found_whatever_its_folder() {
        for (paths, want) in [
            ("README.md data/train-00000-of-00001.parquet", "data/train-00000-of-00001.parquet"),
            (
                "data/test-00000-of-00001.parquet d/train-1-of-2.parquet d/train-0-of-2.parquet",
                "d/train-0-of-2.parquet d/train-1-of-2.parquet",
            ),
            ("Deepthink-Reasoning.parquet .gitattributes", "Deepthink-Reasoning.parquet"),
            (
                "default/train/0000.parquet default/train/0001.parquet default/test/0000.parquet",
                "default/train/0000.parquet default/train/0001.parquet",
            ),
            ("train.jsonl test.jsonl", "train.jsonl"),
            ("en/train.json validation.json", "en/train.json"),
            ("train.csv train.jsonl train.parquet", "train.parquet"),
            ("train.csv train.jsonl", "train.jsonl"),
            ("dataset_infos.json rows.csv", "rows.csv"),
            ("0001.parquet 0000.parquet", "0000.parquet 0001.parquet"),
            (
                "p/train-00001-of-00002-abc.parquet p/train-00000-of-00002-012.parquet p/unsupervised.parquet",
                "p/train-00000-of-00002-012.parquet p/train-00001-of-00002-abc.parquet",
            ),
            ("data.jsonl", "data.jsonl"),
            ("data/data.jsonl .cache/train.jsonl", "data/data.jsonl"),
            ("Train/Rows.PARQUET Val/Rows.PARQUET", "Train/Rows.PARQUET"),
            // A word that only begins like a split names none.
            ("training_v2/rows.csv trainers.csv", "training_v2/rows.csv"),
        ] {
            let paths: Vec<&str> = paths.split(' ').collect();
            assert_eq!(train_files(&paths, "data set o/n").unwrap().join(" "), want, "{paths:?}");
        }
    }

    #[test]
    fn what_is_not_clear_is_refused_with_what_was_found() {
        for (paths, words) in [
            (
                "main/train-0-of-1.parquet socratic/train-0-of-1.parquet",
                &["2 sets", "main/train", "socratic/"][..],
            ),
            (
                "data/train_sft-0-of-1.parquet data/train_gen-0-of-1.parquet",
                &["2 sets", "train_sft", "train_gen"],
            ),
            ("a.jsonl b.jsonl", &["2 sets", "a.jsonl", "b.jsonl"]),
            ("data/test.parquet train.csv", &["no train split", "data/test.parquet"]),
            ("README.md image.png", &["no .parquet", ".csv"]),
            ("data/train-00000-of-00003.parquet data/train-00002-of-00003.parquet", &["2 of 3"]),
        ] {
            let paths: Vec<&str> = paths.split(' ').collect();
            let error = train_files(&paths, "data set o/n").unwrap_err();
            let text = error.to_string();
            assert_eq!(error.exit_code(), 2, "{text}");
            assert!(
                text.contains("data set o/n") && words.iter().all(|w| text.contains(w)),
                "{paths:?}: {text}"
            );
        }
    }
}
