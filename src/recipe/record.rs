//! A recipe read back from `run.json`, and what a resumed run may change of it.

use serde_json::Value as Json;
use toml::Value;

use super::keys::{Entry, KEYS};
use super::{Recipe, compat, keys};
use crate::error::{Error, Result};

/// Keys that do not touch what a run computes, so that a resumed run may set them anew.
const FREE: [&str; 10] = [
    "out",
    "device",
    "device_name",
    "threads",
    "sample_every",
    "sample_prompt",
    "save_every",
    "keep_checkpoints",
    "recompute",
    "cuda_graph",
];

impl Recipe {
    /// The recipe that a run recorded; `place` names the record, for messages.
    ///
    /// # Errors
    /// [`Error::Input`] when the object is no recipe of this version.
    pub fn from_record(record: &Json, place: &str) -> Result<Self> {
        let mut recipe = Self::default();
        keys::apply(&mut recipe, &layer(record, place)?)?;
        recipe.check()?;
        Ok(recipe)
    }

    /// `self` as recorded ← a recipe file, where one is named again ← `sets` ← `flags`, none of which may change what
    /// the run computes.
    ///
    /// # Errors
    /// As [`Recipe::resolve`]; [`Error::Input`] naming the first key that would change the run.
    pub fn resume(
        self,
        recipe: Option<&str>,
        sets: &[String],
        flags: &super::RecipeOverrides,
    ) -> Result<Self> {
        let recorded = serde_json::to_value(&self).expect("plain data");
        let mut layers = vec![layer(&recorded, "the recorded recipe")?];
        layers.extend(recipe.map(super::file_layer).transpose()?);
        layers.push(sets.iter().map(|s| keys::parse_set(s)).collect::<Result<Vec<_>>>()?);
        layers.push(flags.layer());
        let mut resumed = self;
        for layer in &layers {
            keys::apply(&mut resumed, layer)?;
        }
        compat::apply(&mut resumed, &layers)?;
        resumed.check()?;
        let now = serde_json::to_value(&resumed).expect("plain data");
        let changed = KEYS.iter().find(|&&key| !FREE.contains(&key) && now[key] != recorded[key]);
        match changed {
            None => Ok(resumed),
            Some(key) => Err(Error::input(
                format!("--resume with {key} = {}", now[key]),
                format!("the run was started with {key} = {}", recorded[key]),
                format!("leave {key} as it was, or start a new run; free to change are {}", FREE.join(", ")),
            )),
        }
    }
}

fn layer(record: &Json, place: &str) -> Result<Vec<Entry>> {
    let bad = |found: &str| Error::input(place, found, "the record is damaged: start a new run");
    let object = record.as_object().ok_or_else(|| bad("there is no recipe in it"))?;
    let entries = object.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| {
        let value = to_toml(value).ok_or_else(|| bad(&format!("`{key}` is {value}")))?;
        Ok(Entry { asked: format!("{place}, key \"{key}\""), key: key.clone(), value })
    });
    entries.collect()
}

fn to_toml(value: &Json) -> Option<Value> {
    Some(match value {
        Json::Bool(b) => Value::Boolean(*b),
        Json::Number(n) => n.as_i64().map(Value::Integer).or_else(|| n.as_f64().map(Value::Float))?,
        Json::String(s) => Value::String(s.clone()),
        Json::Array(list) => Value::Array(list.iter().map(to_toml).collect::<Option<_>>()?),
        Json::Null | Json::Object(_) => return None,
    })
}
