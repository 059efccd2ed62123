//! Reading and checking the value of each recipe key.

use std::collections::BTreeMap;

use toml::{Spanned, Value};

use super::Recipe;
use super::choice::Choice;
use crate::config::LoraTarget;
use crate::error::{Error, Result};

/// Every key a recipe may hold, in the order of [`Recipe`]'s fields.
pub const KEYS: [&str; 46] = [
    "model",
    "data",
    "eval_data",
    "out",
    "steps",
    "epochs",
    "batch_size",
    "grad_accum",
    "max_length",
    "lr",
    "warmup",
    "scheduler",
    "optimizer",
    "betas",
    "eps",
    "weight_decay",
    "clip",
    "loss_on",
    "packing",
    "shuffle",
    "seed",
    "eval_share",
    "eval_every",
    "sample_every",
    "sample_prompt",
    "save_every",
    "keep_checkpoints",
    "allow",
    "compat",
    "precision",
    "device",
    "device_name",
    "threads",
    "save_dtype",
    "prompt_field",
    "response_field",
    "system",
    "embedding_state",
    "recompute",
    "cuda_graph",
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
    "lora_rslora",
    "lora_targets",
    "neftune_alpha",
];

/// Largest whole number a count may be.
const MAX_COUNT: i64 = u32::MAX as i64;

/// One key as it was given.
pub(super) struct Entry {
    /// Where: `run.toml:3, key "lr"`, `--set lr=1`, `--lr`.
    pub asked: String,
    /// The key.
    pub key: String,
    /// Its value.
    pub value: Value,
}

/// What is wrong with a value: what was found, and what is allowed.
pub(super) struct Bad {
    found: String,
    allowed: String,
}

/// The entries of a recipe in the order of their lines.
pub(super) fn parse_file(name: &str, text: &str) -> Result<Vec<Entry>> {
    let line_of = |byte: usize| 1 + text.as_bytes().iter().take(byte).filter(|&&b| b == b'\n').count();
    let table: BTreeMap<Spanned<String>, Value> = toml::from_str(text).map_err(|e| {
        let line = line_of(e.span().map_or(0, |s| s.start));
        let found = format!("{}: `{}`", e.message(), text.lines().nth(line - 1).unwrap_or_default().trim());
        Error::input(
            format!("{name}:{line}"),
            found,
            "write each line as key = value, in TOML, and each key once",
        )
    })?;
    let mut entries: Vec<_> = table.into_iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    let entry = |(key, value): (Spanned<String>, Value)| {
        let asked = format!("{name}:{}, key \"{}\"", line_of(key.span().start), key.get_ref());
        Entry { asked, key: key.into_inner(), value }
    };
    Ok(entries.into_iter().map(entry).collect())
}

/// `key=value`: the value is TOML where it parses as such, else plain text.
pub(super) fn parse_set(text: &str) -> Result<Entry> {
    let asked = format!("--set {text}");
    let Some((key, raw)) = text.split_once('=') else {
        return Err(Error::input(asked, "there is no `=`", "write --set key=value, e.g. --set clip=0.5"));
    };
    let value = toml::from_str::<toml::Table>(&format!("v = {raw}"));
    let value = value.ok().filter(|table| table.len() == 1).and_then(|mut table| table.remove("v"));
    let value = value.unwrap_or_else(|| Value::String(raw.to_owned()));
    Ok(Entry { asked, key: key.trim().to_owned(), value })
}

/// Sets the keys of one layer; `epochs` without `steps` in it undoes the `steps` of the layers before.
pub(super) fn apply(recipe: &mut Recipe, layer: &[Entry]) -> Result<()> {
    if layer.iter().any(|e| e.key == "epochs") {
        recipe.steps = None;
    }
    for Entry { asked, key, value } in layer {
        if !KEYS.contains(&key.as_str()) {
            return Err(unknown(asked, key));
        }
        set(recipe, key, value).map_err(|bad| Error::input(asked, bad.found, bad.allowed))?;
    }
    Ok(())
}

fn unknown(asked: &str, key: &str) -> Error {
    let nearest = KEYS.iter().min_by_key(|known| edit_distance(key, known)).expect("there are keys");
    let found = format!("unknown key `{key}`; the nearest known one is `{nearest}`");
    Error::input(asked, found, format!("the keys are {}", KEYS.join(", ")))
}

pub(super) fn set(recipe: &mut Recipe, key: &str, value: &Value) -> std::result::Result<(), Bad> {
    match key {
        "model" => recipe.model = text(value)?,
        "data" => recipe.data = text(value)?,
        "eval_data" => recipe.eval_data = Some(text(value)?),
        "out" => recipe.out = Some(text(value)?.into()),
        "steps" => recipe.steps = Some(count(value, 1)?),
        "epochs" => recipe.epochs = number(value, "a number above 0", |x| x > 0.0)?,
        "batch_size" => recipe.batch_size = count(value, 1)?,
        "grad_accum" => recipe.grad_accum = count(value, 1)?,
        "max_length" => recipe.max_length = count(value, 2)?,
        "lr" => recipe.lr = number(value, "a number of 0 or more", |x| x >= 0.0)?,
        "warmup" => recipe.warmup = warmup(value)?,
        "scheduler" => recipe.scheduler = choice(value)?,
        "optimizer" => recipe.optimizer = choice(value)?,
        "betas" => recipe.betas = betas(value)?,
        "eps" => recipe.eps = number(value, "a number above 0", |x| x > 0.0)?,
        "weight_decay" => recipe.weight_decay = number(value, "a number of 0 or more", |x| x >= 0.0)?,
        "clip" => recipe.clip = number(value, "a number of 0 or more (0 turns clipping off)", |x| x >= 0.0)?,
        "loss_on" => recipe.loss_on = choice(value)?,
        "packing" => recipe.packing = flag(value)?,
        "shuffle" => recipe.shuffle = flag(value)?,
        "seed" => recipe.seed = integer(value, 0, i64::MAX)?.unsigned_abs(),
        "eval_share" => {
            recipe.eval_share = number(value, "a number from 0 to 0.5", |x| (0.0..=0.5).contains(&x))?;
        }
        "eval_every" => recipe.eval_every = count(value, 0)?,
        "sample_every" => recipe.sample_every = count(value, 0)?,
        "sample_prompt" => recipe.sample_prompt = text(value)?,
        "save_every" => recipe.save_every = count(value, 0)?,
        "keep_checkpoints" => recipe.keep_checkpoints = count(value, 1)?,
        "allow" => recipe.allow = choices(value)?,
        "compat" => recipe.compat = choice(value)?,
        "precision" => recipe.precision = choice(value)?,
        "device" => {
            let device = text(value)?.parse();
            recipe.device = device.map_err(|()| bad(value, "auto, cpu, cuda or cuda:N"))?;
        }
        "device_name" => recipe.device_name = Some(text(value)?),
        "threads" => recipe.threads = Some(count(value, 1)?),
        "save_dtype" => recipe.save_dtype = choice(value)?,
        "prompt_field" => recipe.prompt_field = Some(text(value)?),
        "response_field" => recipe.response_field = Some(text(value)?),
        "system" => recipe.system = Some(text(value)?),
        "embedding_state" => recipe.embedding_state = choice(value)?,
        "recompute" => recipe.recompute = choice(value)?,
        "cuda_graph" => recipe.cuda_graph = flag(value)?,
        "lora_rank" => recipe.lora_rank = count(value, 0)?,
        "lora_alpha" => recipe.lora_alpha = Some(number(value, "a number above 0", |x| x > 0.0)?),
        "lora_dropout" => {
            recipe.lora_dropout =
                number(value, "a number from 0 up to, not including, 1", |x| (0.0..1.0).contains(&x))?;
        }
        "lora_rslora" => recipe.lora_rslora = flag(value)?,
        "lora_targets" => recipe.lora_targets = lora_targets(value)?,
        "neftune_alpha" => {
            recipe.neftune_alpha = number(value, "a number of 0 or more (0 adds none)", |x| x >= 0.0)?;
        }
        _ => unreachable!("apply looked the key up in KEYS"),
    }
    Ok(())
}

fn bad(value: &Value, allowed: &str) -> Bad {
    let kind = match value {
        Value::String(_) => "text",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a fraction",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "an array",
        Value::Table(_) => "a table",
    };
    let found = match value {
        Value::Table(_) => "a table".to_owned(),
        _ => format!("{value} ({kind})"),
    };
    Bad { found, allowed: format!("allowed: {allowed}") }
}

fn text(value: &Value) -> std::result::Result<String, Bad> {
    match value.as_str() {
        Some(s) if !s.trim().is_empty() => Ok(s.to_owned()),
        _ => Err(bad(value, "text in quotes, not empty")),
    }
}

fn flag(value: &Value) -> std::result::Result<bool, Bad> {
    value.as_bool().ok_or_else(|| bad(value, "true or false"))
}

fn integer(value: &Value, least: i64, most: i64) -> std::result::Result<i64, Bad> {
    let in_range = value.as_integer().filter(|n| (least..=most).contains(n));
    in_range.ok_or_else(|| bad(value, &format!("a whole number from {least} to {most}")))
}

fn count(value: &Value, least: i64) -> std::result::Result<usize, Bad> {
    Ok(usize::try_from(integer(value, least, MAX_COUNT)?).expect("0 to 2^32 fits usize"))
}

/// A finite number that `holds`; whole numbers are numbers too.
fn number(value: &Value, allowed: &str, holds: fn(f64) -> bool) -> std::result::Result<f64, Bad> {
    let number = match value {
        Value::Float(x) => Some(*x),
        Value::Integer(n) => Some(*n as f64),
        _ => None,
    };
    number.filter(|&x| x.is_finite() && holds(x)).ok_or_else(|| bad(value, allowed))
}

fn warmup(value: &Value) -> std::result::Result<f64, Bad> {
    number(value, "a whole number of steps, or a share of all steps from 0 up to 1", |x| {
        (0.0..1.0).contains(&x) || (x >= 1.0 && x.fract() == 0.0 && x <= MAX_COUNT as f64)
    })
}

fn betas(value: &Value) -> std::result::Result<[f64; 2], Bad> {
    let allowed = "two numbers from 0 up to, not including, 1, e.g. [0.9, 0.999]";
    match value.as_array().map(Vec::as_slice) {
        Some([a, b]) => {
            let beta = |v| number(v, allowed, |x| (0.0..1.0).contains(&x)).map_err(|_| bad(value, allowed));
            Ok([beta(a)?, beta(b)?])
        }
        _ => Err(bad(value, allowed)),
    }
}

fn choice<T: Choice>(value: &Value) -> std::result::Result<T, Bad> {
    let found = value.as_str().and_then(|word| T::ALL.iter().find(|(w, _)| *w == word));
    let words: Vec<_> = T::ALL.iter().map(|(word, _)| *word).collect();
    found.map(|(_, v)| *v).ok_or_else(|| bad(value, &words.join(", ")))
}

/// A list of words.
fn choices<T: Choice>(value: &Value) -> std::result::Result<Vec<T>, Bad> {
    let words: Vec<_> = T::ALL.iter().map(|(word, _)| *word).collect();
    let allowed = format!("a list of any of {}", words.join(", "));
    let list = value.as_array().ok_or_else(|| bad(value, &allowed))?;
    list.iter().map(|word| choice(word).map_err(|_| bad(value, &allowed))).collect()
}

/// Each once, in the order in which a layer has them.
fn lora_targets(value: &Value) -> std::result::Result<Vec<LoraTarget>, Bad> {
    let mut targets: Vec<LoraTarget> = choices(value)?;
    targets.sort_unstable();
    targets.dedup();
    if targets.is_empty() { Err(bad(value, "at least one projection")) } else { Ok(targets) }
}

/// Levenshtein distance in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
