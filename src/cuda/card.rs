//! Cards by name, for plans on a machine that has none.

use crate::error::{Error, Result};
use serde::Deserialize;
use std::sync::LazyLock;

/// Bytes that a driver's context, the kernels and the pages they share leave of a card to nobody; a round figure above what
/// contexts are commonly seen to take.
const RESERVED: u64 = 768 << 20;

/// What is known of a card from `benches/reference/cards.toml`.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CardSpec {
    /// Without maker and family.
    pub name: String,
    memory_gb: u64,
    /// E.g. [8, 9].
    pub compute_capability: [u32; 2],
    /// Bandwidth of its memory.
    pub gb_per_s: f64,
    /// Dense peak of its tensor cores in bf16, or in fp16 before Ampere.
    pub tflops: f64,
    /// Where the figures are from.
    pub source: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Cards {
    card: Vec<CardSpec>,
}

static CARDS: LazyLock<Vec<CardSpec>> = LazyLock::new(|| {
    let text = include_str!("../../benches/reference/cards.toml");
    toml::from_str::<Cards>(text).unwrap_or_else(|e| panic!("benches/reference/cards.toml: {e}")).card
});

impl CardSpec {
    /// The card of that name; case, spaces, `NVIDIA` and `GeForce` make no difference.
    ///
    /// # Errors
    /// [`Error::Input`] with the names there are.
    pub fn find(name: &str) -> Result<&'static Self> {
        let wanted = plain(name);
        if let Some(card) = CARDS.iter().find(|card| plain(&card.name) == wanted) {
            return Ok(card);
        }
        let names = |begins: &str| {
            let fitting = CARDS.iter().filter(|card| plain(&card.name).starts_with(begins));
            fitting.map(|card| card.name.as_str()).collect::<Vec<_>>()
        };
        let found = match names(&wanted)[..] {
            [] => "no such card is in the table".to_owned(),
            _ if wanted.is_empty() => "it is empty".to_owned(),
            ref several => format!("it may be {}", several.join(" or ")),
        };
        Err(Error::input(
            format!("device_name={name}"),
            found,
            format!("name one of {}", names("").join(", ")),
        ))
    }

    /// Memory that a program gets.
    pub fn usable_bytes(&self) -> u64 {
        self.memory_gb * 1_000_000_000 - RESERVED
    }
}

fn plain(name: &str) -> String {
    let name: String = name.to_lowercase().chars().filter(char::is_ascii_alphanumeric).collect();
    let name = name.strip_prefix("nvidia").unwrap_or(&name);
    let families = ["geforce", "tesla"];
    families.iter().find_map(|family| name.strip_prefix(family)).unwrap_or(name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_are_found_by_name() {
        for name in ["RTX 4090", "NVIDIA GeForce RTX 4090", "rtx4090", "geforce-rtx-4090"] {
            assert_eq!(CardSpec::find(name).unwrap().compute_capability, [8, 9], "{name}");
        }
        for (name, part) in
            [("A100", "A100 40GB or A100 80GB"), ("Voodoo 2", "no such card"), ("", "it is empty")]
        {
            let error = CardSpec::find(name).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("name one of T4, A10,"), "{error}");
        }
        for card in CARDS.iter() {
            assert_eq!(CardSpec::find(&card.name).unwrap(), card);
            assert!(card.compute_capability >= [7, 5] && !card.source.is_empty(), "{card:?}");
            // The operations per byte of all of them lie in this range.
            assert!((50.0..500.0).contains(&(1000.0 * card.tflops / card.gb_per_s)), "{card:?}");
        }
        assert_eq!(CardSpec::find("T4").unwrap().usable_bytes(), 16_000_000_000 - (768 << 20));
    }
}
