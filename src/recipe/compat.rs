//! What `compat` fixes, and which flags contradict it.

use toml::Value;

use super::keys::{Entry, set};
use super::{Compat, Recipe};
use crate::error::{Error, Result};

/// The keys that TRL 0.17's run fixes: pads and prompts are learnt, one row a row, no row held out, a new order every
/// epoch, 8-bit state for every matrix, all weights trained and no noise.
const TRL_0_17: [(&str, &str); 8] = [
    ("loss_on", "\"all\""),
    ("packing", "false"),
    ("shuffle", "true"),
    ("eval_share", "0"),
    ("optimizer", "\"adamw_8bit\""),
    ("embedding_state", "\"8bit\""),
    ("lora_rank", "0"),
    ("neftune_alpha", "0"),
];

/// Sets the fixed keys. The layer that names `compat`, and those after it, may not say otherwise.
pub(super) fn apply(recipe: &mut Recipe, layers: &[Vec<Entry>]) -> Result<()> {
    if recipe.compat == Compat::Off {
        return Ok(());
    }
    let from = layers.iter().rposition(|layer| layer.iter().any(|e| e.key == "compat")).unwrap_or(0);
    let later = || layers[from..].iter().flatten();
    for (key, text) in TRL_0_17 {
        let value: toml::Table = toml::from_str(&format!("v = {text}")).expect("a constant");
        let with = |value: &Value| {
            let mut recipe = Recipe::default();
            set(&mut recipe, key, value).ok().expect("applied before");
            recipe
        };
        let fixed = with(&value["v"]);
        if let Some(entry) = later().find(|e| e.key == key && with(&e.value) != fixed) {
            return Err(contradicts(entry, &format!("{key} = {text}")));
        }
        set(recipe, key, &value["v"]).ok().expect("a constant");
    }
    match later().find(|e| e.key == "system") {
        Some(entry) => Err(contradicts(entry, "no system turn")),
        None => {
            recipe.system = None;
            Ok(())
        }
    }
}

fn contradicts(entry: &Entry, rule: &str) -> Error {
    Error::input(
        &entry.asked,
        format!("it contradicts compat = \"trl-0.17\", which means {rule}"),
        format!("leave out {} or compat", entry.key),
    )
}
