//! The prompts that both models answer.

use serde_json::Value;
use smolten::error::{Error, Result};
use std::path::Path;

const BUNDLED: &str = include_str!("../../../data/prompts.txt");

/// One prompt and where it was found.
pub struct Prompt {
    /// `file:line`, for messages.
    pub place: String,
    /// The user's turn.
    pub text: String,
}

/// The prompts of a file, one a line or, in a `.jsonl` file, one object with a field "prompt" a line; or the bundled
/// ones. Empty lines are passed over.
pub fn read(file: Option<&Path>) -> Result<Vec<Prompt>> {
    let Some(path) = file else {
        return lines("bundled prompts", BUNDLED.as_bytes(), |_, line| Ok(line.to_owned()));
    };
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    let name = path.display().to_string();
    let is_jsonl = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("jsonl"));
    if is_jsonl { lines(&name, &bytes, field) } else { lines(&name, &bytes, |_, line| Ok(line.to_owned())) }
}

fn lines(name: &str, bytes: &[u8], text: impl Fn(&str, &str) -> Result<String>) -> Result<Vec<Prompt>> {
    let mut prompts = Vec::new();
    for (i, line) in bytes.split(|&b| b == b'\n').enumerate() {
        let place = format!("{name}:{}", i + 1);
        let line = std::str::from_utf8(line)
            .map_err(|e| {
                let found = format!("byte {} of the line is not UTF-8", e.valid_up_to());
                Error::input(&place, found, "save the file as UTF-8 text")
            })?
            .trim_start_matches('\u{feff}')
            .trim();
        if !line.is_empty() {
            prompts.push(Prompt { text: text(&place, line)?, place });
        }
    }
    if prompts.is_empty() {
        return Err(Error::input(name, "the file holds no prompt", "write one prompt a line"));
    }
    Ok(prompts)
}

/// The "prompt" of one JSON object.
fn field(place: &str, line: &str) -> Result<String> {
    let remedy = "write one object a line, as {\"prompt\": \"…\"}";
    let value: Value =
        serde_json::from_str(line).map_err(|e| Error::input(place, format!("not JSON: {e}"), remedy))?;
    let object = value.as_object().ok_or_else(|| Error::input(place, "not a JSON object", remedy))?;
    let asked = format!("{place}, field \"prompt\"");
    match object.get("prompt") {
        Some(Value::String(text)) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
        Some(Value::String(_)) => Err(Error::input(asked, "it is empty", remedy)),
        Some(other) => Err(Error::input(asked, format!("{other}, which is not text"), remedy)),
        None => {
            let keys: Vec<&str> = object.keys().map(String::as_str).collect();
            Err(Error::input(asked, format!("there is none; the fields are {}", keys.join(", ")), remedy))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundled_prompts_begin_with_the_references() {
        let prompts = read(None).unwrap();
        assert_eq!(prompts[0].text, "Explain AGI in simple terms?");
        assert!((6..=8).contains(&prompts.len()));
    }
}
