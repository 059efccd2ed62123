//! A tokenizer of single bytes, whose every token can be read off the text, and data sets of a few lines.

use smolten::dataset::{DataSource, Dataset, Encoder, FieldNames, load};
use smolten::error::Result;
use smolten::recipe::LossOn;
use smolten::template::ChatTemplate;
use smolten::tokenizer::Tokenizer;
use std::path::Path;

/// Ends a turn; the one merge is 256, `<|im_start|>` 257.
pub const EOS: u32 = 258;

/// Byte-level BPE with no merge but that of two newlines.
pub fn tokenizer() -> Tokenizer {
    // GPT-2's alphabet: printable bytes stand for themselves, the others for characters from 256 on.
    let printable = |b: &u8| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let mut shifted = 256u32..;
    let alphabet: Vec<char> = (0..=255u8)
        .map(|b| if printable(&b) { char::from(b) } else { char::from_u32(shifted.next().unwrap()).unwrap() })
        .collect();
    let newline = alphabet[usize::from(b'\n')];
    let double = format!("{newline}{newline}");
    let mut vocab: serde_json::Map<_, _> =
        alphabet.iter().enumerate().map(|(id, c)| (c.to_string(), id.into())).collect();
    vocab.insert(double, 256.into());
    let special = |id: u32, content: &str| {
        serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let json = serde_json::json!({
        "version": "1.0",
        "added_tokens": [special(257, "<|im_start|>"), special(EOS, "<|im_end|>")],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "model": {"type": "BPE", "vocab": vocab, "merges": [[newline, newline]]},
    });
    Tokenizer::from_json(json.to_string().as_bytes(), Path::new("test")).unwrap()
}

/// The lines as a file, encoded without a cache.
pub fn encode(lines: &[&str], encoder: &Encoder<'_>) -> Result<Dataset> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, lines.join("\n")).unwrap();
    load(&source(&path), encoder, &FieldNames::default(), None)
}

pub fn source(path: &Path) -> DataSource {
    DataSource::local(path.to_str().unwrap()).unwrap()
}

/// Tokenizer and template.
pub struct Setting {
    pub tokenizer: Tokenizer,
    pub template: ChatTemplate,
}

impl Setting {
    /// ChatML.
    pub fn new() -> Self {
        Self { tokenizer: tokenizer(), template: ChatTemplate::chatml() }
    }

    pub fn with_template(source: &str) -> Self {
        Self { template: ChatTemplate::new(source, "<|im_start|>", "<|im_end|>").unwrap(), ..Self::new() }
    }

    pub fn encoder(&self, loss_on: LossOn, max_length: usize) -> Encoder<'_> {
        let Self { tokenizer, template } = self;
        Encoder {
            tokenizer,
            template,
            eos: Some(EOS),
            loss_on,
            max_length,
            system: None,
            strip: false,
            pad_with: None,
        }
    }
}
