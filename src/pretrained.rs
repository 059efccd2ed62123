//! A model on disk: a Hugging Face folder or a GGUF file, opened and checked as a whole.

mod adapter;
mod folder;
mod license;

pub use adapter::base_on_hub;

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::template::ChatTemplate;
use crate::tokenizer::Tokenizer;
use crate::weights::{AdapterSettings, Weights};
use folder::SpecialTokens;
use serde_json::{Value, json};
use std::path::Path;

/// Everything of a model but the memory it runs in. The weights are open, not read.
pub struct Pretrained {
    /// Dimensions and special tokens; `tie_word_embeddings` as the stored tensors mean it.
    pub config: ModelConfig,
    /// `config.json` as found (an empty object for GGUF), so that saving keeps keys this program does not know.
    pub config_json: Value,
    /// `generation_config.json` as found, with the special tokens of this model.
    pub generation_config: Option<Value>,
    /// `tokenizer_config.json` as found (an empty object for GGUF).
    pub tokenizer_config: Value,
    /// Open weights.
    pub weights: Weights,
    /// Text to ids and back.
    pub tokenizer: Tokenizer,
    /// Conversations to text; its source is what saving writes.
    pub template: ChatTemplate,
    /// First token of a text, as the vocabulary spells it.
    pub bos_token: Option<String>,
    /// End of a turn or text.
    pub eos_token: Option<String>,
    /// Filler.
    pub pad_token: Option<String>,
    /// Token for what the vocabulary lacks; byte-level vocabularies never need it.
    pub unk_token: Option<String>,
    /// Ids at which generation stops: those of the generation configuration (else of the configuration), and the
    /// tokenizer's end token.
    pub stop_ids: Vec<u32>,
    /// The model had no chat template, so ChatML and its tokens were set.
    pub chatml_was_set: bool,
    /// What the model's card or file says of its license: `license`, and `license_name` and `license_link` where it is
    /// none of the usual ones.
    pub license: Vec<(&'static str, String)>,
    /// What to tell the user about the model, one line each.
    pub description: Vec<String>,
}

/// The parts that a folder and a GGUF file give differently.
struct Parts {
    config: ModelConfig,
    config_json: Value,
    generation_config: Option<Value>,
    tokenizer_config: Value,
    weights: Weights,
    /// What is merged into them.
    adapter: Option<String>,
    tokenizer: Tokenizer,
    tokens: SpecialTokens,
    template: Option<String>,
    license: Vec<(&'static str, String)>,
}

impl Pretrained {
    /// Opens a model folder, a `.gguf` file, or the folder of an adapter as PEFT writes it, whose base is opened with
    /// the adapter merged into its weights; a base on the hub must be in the hub's cache ([`base_on_hub`]).
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Input`] when there is no model, it is damaged or not supported, its parts do not fit
    /// one another, or it has neither a chat template nor the tokens of ChatML.
    pub fn open(path: &Path) -> Result<Self> {
        let parts = match AdapterSettings::of_folder(path)? {
            Some(settings) => adapter::parts(path, &settings)?,
            None => stored(path)?,
        };
        Self::assemble(parts, path)
    }

    fn assemble(parts: Parts, path: &Path) -> Result<Self> {
        let Parts { mut config, config_json, mut generation_config, tokenizer_config, weights, .. } = parts;
        let Parts { adapter, tokenizer, mut tokens, template, license, .. } = parts;
        config.tie_word_embeddings = weights.head_is_tied(&config);
        let unknown = weights.check(&config)?;
        check_vocabulary(&tokenizer, &config, path)?;
        let chatml_was_set = template.is_none();
        let template = match template {
            Some(source) => {
                let text = |token: &Option<String>| token.clone().unwrap_or_default();
                ChatTemplate::new(&source, &text(&tokens.bos), &text(&tokens.eos))?
            }
            None => set_chatml(&tokenizer, &mut tokens, &mut config, &mut generation_config, path)?,
        };
        let id = |token: &Option<String>| token.as_deref().and_then(|t| tokenizer.id(t));
        let mut stop_ids = folder::stop_ids(generation_config.as_ref(), &config);
        stop_ids.extend(id(&tokens.eos).filter(|id| !stop_ids.contains(id)));
        let mut description = vec![format!("weights: {}", weights.description())];
        description.extend(adapter.map(|text| format!("adapter: {text}")));
        if chatml_was_set {
            description.push(
                "chat template: the model has none, so plain ChatML is set: <|im_start|> begins a turn, <|im_end|> \
                 ends it and pads"
                    .to_owned(),
            );
        }
        if !unknown.is_empty() {
            description.push(format!("ignored tensors that are no parameters: {}", unknown.join(", ")));
        }
        Ok(Self {
            config,
            config_json,
            generation_config,
            tokenizer_config,
            weights,
            tokenizer,
            template,
            bos_token: tokens.bos,
            eos_token: tokens.eos,
            pad_token: tokens.pad,
            unk_token: tokens.unk,
            stop_ids,
            chatml_was_set,
            license,
            description,
        })
    }
}

/// The parts of a model folder or a `.gguf` file.
fn stored(path: &Path) -> Result<Parts> {
    let is_gguf = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    if path.is_dir() {
        return folder::parts(path);
    }
    if path.is_file() && is_gguf {
        return gguf_parts(path);
    }
    let found = if path.exists() { "neither a folder nor a .gguf file" } else { "there is no such file" };
    let remedy = "give a Hugging Face model folder, a .gguf file, or a model of the hub as org/name";
    Err(Error::input(format!("model {}", path.display()), found, remedy))
}

/// Every id the tokenizer can give must have a row in the embedding.
fn check_vocabulary(tokenizer: &Tokenizer, config: &ModelConfig, path: &Path) -> Result<()> {
    let needed = tokenizer.vocab_size();
    if needed <= config.vocab_size {
        return Ok(());
    }
    Err(Error::input(
        format!("model {}", path.display()),
        format!("the tokenizer has {needed} tokens, the embedding {} rows", config.vocab_size),
        "take tokenizer and weights from one model: growing the vocabulary is not supported",
    ))
}

/// ChatML for a model without template: its template, its tokens, and the ids in both configurations.
fn set_chatml(
    tokenizer: &Tokenizer,
    tokens: &mut SpecialTokens,
    config: &mut ModelConfig,
    generation_config: &mut Option<Value>,
    path: &Path,
) -> Result<ChatTemplate> {
    let (start, end) = ("<|im_start|>", "<|im_end|>");
    let id = |token| {
        tokenizer.id(token).ok_or_else(|| {
            Error::input(
                format!("model {}", path.display()),
                format!("it has no chat template, and its vocabulary lacks {token}, which ChatML needs"),
                "put a chat_template.jinja into the folder, or use the instruct version of the model: growing the \
                 vocabulary is not supported",
            )
        })
    };
    let (start_id, end_id) = (id(start)?, id(end)?);
    tokens.bos = Some(start.to_owned());
    tokens.eos = Some(end.to_owned());
    tokens.pad = Some(end.to_owned());
    config.bos_token_id = Some(start_id);
    config.eos_token_ids = vec![end_id];
    config.pad_token_id = Some(end_id);
    if let Some(Value::Object(generation)) = generation_config {
        for (key, id) in [("bos_token_id", start_id), ("eos_token_id", end_id), ("pad_token_id", end_id)] {
            generation.insert(key.to_owned(), json!(id));
        }
    }
    Ok(ChatTemplate::chatml())
}

fn gguf_parts(path: &Path) -> Result<Parts> {
    let file = Gguf::open(path)?;
    let config = ModelConfig::from_gguf(&file)?;
    let tokenizer = Tokenizer::from_gguf(&file)?;
    let template = file.string("tokenizer.chat_template")?.map(str::to_owned);
    let unk = file.integer("tokenizer.ggml.unknown_token_id")?.and_then(|id| u32::try_from(id).ok());
    let token = |id: Option<u32>| id.and_then(|id| tokenizer.token(id));
    let tokens = SpecialTokens {
        bos: token(config.bos_token_id),
        eos: token(config.eos_token_ids.first().copied()),
        pad: token(config.pad_token_id),
        unk: token(unk),
    };
    Ok(Parts {
        license: license::of_gguf(&file)?,
        config,
        config_json: json!({}),
        generation_config: None,
        tokenizer_config: json!({}),
        weights: Weights::from_gguf(file)?,
        adapter: None,
        tokenizer,
        tokens,
        template,
    })
}
