//! The license that a model's own files state, for the card of what is made from it.

use crate::error::Result;
use crate::gguf::Gguf;
use std::path::Path;

/// Keys of a model card that say it, and of a GGUF file.
const KEYS: [(&str, &str); 3] = [
    ("license", "general.license"),
    ("license_name", "general.license.name"),
    ("license_link", "general.license.link"),
];

/// From the front matter of the folder's `README.md`: a card is there for people, so one that is missing or cannot be
/// read says nothing.
pub fn of_folder(folder: &Path) -> Vec<(&'static str, String)> {
    let card = std::fs::read_to_string(folder.join("README.md")).unwrap_or_default();
    of_card(&card)
}

fn of_card(card: &str) -> Vec<(&'static str, String)> {
    let mut lines = card.trim_start_matches('\u{feff}').lines().map(str::trim_end);
    if lines.next() != Some("---") {
        return Vec::new();
    }
    let front: Vec<&str> = lines.by_ref().take_while(|line| *line != "---").collect();
    if lines.next().is_none() && !card.trim_end().ends_with("---") {
        return Vec::new(); // it has no end
    }
    let value = |key: &str| {
        let text = front.iter().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?.trim();
        let text = text.split(" #").next().unwrap_or_default().trim_end();
        let quoted = |quote| text.strip_prefix(quote)?.strip_suffix(quote);
        Some(quoted('"').or_else(|| quoted('\'')).unwrap_or(text).to_owned())
    };
    stated(KEYS.map(|(key, _)| (key, value(key))))
}

/// From the metadata of a GGUF file.
///
/// # Errors
/// Those of [`Gguf::string`].
pub fn of_gguf(file: &Gguf) -> Result<Vec<(&'static str, String)>> {
    let [a, b, c] = KEYS.map(|(key, name)| Ok((key, file.string(name)?.map(str::to_owned))));
    Ok(stated([a?, b?, c?]))
}

/// What is plain text of one line; nothing unless the license itself is.
fn stated(found: [(&'static str, Option<String>); 3]) -> Vec<(&'static str, String)> {
    let plain = |text: &String| {
        !text.is_empty()
            && !text.starts_with(['[', '{', '|', '>', '&', '*', '!', '"', '\''])
            && text.bytes().all(|b| (b' '..=b'~').contains(&b) && !b"\"\\".contains(&b))
    };
    let found: Vec<_> =
        found.into_iter().filter_map(|(key, text)| Some((key, text.filter(plain)?))).collect();
    if found.first().is_some_and(|(key, _)| *key == "license") { found } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_matter_says_it() {
        for (card, want) in [
            ("---\nlicense: apache-2.0\n---\n", &[("license", "apache-2.0")][..]),
            ("---\ntags:\n- a\nlicense: 'mit' # as is\n---\n# x\nlicense: gpl\n", &[("license", "mit")]),
            (
                "\u{feff}---\r\nlicense: other\r\nlicense_name: \"mine\"\r\n---\r\n",
                &[("license", "other"), ("license_name", "mine")],
            ),
            ("license: mit\n", &[]),
            ("---\nlicense: mit\n", &[]),
            ("---\nlicense:\n- mit\n---\n", &[]),
            ("---\nlicense: [mit, gpl]\n---\n", &[]),
            ("---\nlicense_name: mine\n---\n", &[]),
            ("---\n license: mit\n---\n", &[]),
            ("", &[]),
        ] {
            let got = of_card(card);
            let got: Vec<_> = got.iter().map(|(key, text)| (*key, text.as_str())).collect();
            assert_eq!(got, want, "{card:?}");
        }
    }
}
