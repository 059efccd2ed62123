//! Chat templates: the Jinja of Hugging Face tokenizers, rendered as transformers' `apply_chat_template` does.

mod environment;

use crate::error::{Error, Result};
use minijinja::value::Serde;
use minijinja::{Environment, Value, context};

/// ChatML without a system turn: what a base model gets.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] \
     + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`; what else a template knows.
    pub role: String,
    /// The text of the turn.
    pub content: String,
}

impl Message {
    /// A turn.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A compiled template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Compiles a template; `bos` and `eos` are the tokens it may name, empty where the model has none.
    ///
    /// # Errors
    /// [`Error::Input`] with the line, when it is no template.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self> {
        let environment = environment::with_template(source).map_err(|e| {
            Error::input(
                "chat template",
                describe(&e),
                "correct it, or take chat_template.jinja of another model",
            )
        })?;
        Ok(Self { environment, source: source.to_owned(), bos: bos.to_owned(), eos: eos.to_owned() })
    }

    /// ChatML without a system turn, with `<|im_start|>` and `<|im_end|>`.
    pub fn chatml() -> Self {
        Self::new(CHATML, "<|im_start|>", "<|im_end|>").expect("the template is a constant and tested")
    }

    /// The template's text, as it is written to `chat_template.jinja`.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The conversation as one text. `add_generation_prompt` adds what precedes an answer.
    ///
    /// # Errors
    /// [`Error::Input`] when the template refuses the conversation or fails on it.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        // A token the model lacks is not defined at all, as in transformers.
        let token = |text: &str| if text.is_empty() { Value::UNDEFINED } else { Value::from(text) };
        let context = context! {
            messages => Serde(messages),
            add_generation_prompt,
            // transformers passes these two even when there are none.
            tools => (),
            documents => (),
            bos_token => token(&self.bos),
            eos_token => token(&self.eos),
        };
        let template = self.environment.get_template(environment::NAME).expect("new() compiled it");
        template.render(context).map_err(|e| {
            let roles: Vec<_> = messages.iter().map(|m| m.role.as_str()).collect();
            Error::input(
                format!("chat template, conversation [{}]", roles.join(", ")),
                describe(&e),
                "change the conversation (roles, their order) to what the model's template accepts",
            )
        })
    }
}

/// The message of a template error, with its line and what lies behind it.
fn describe(error: &minijinja::Error) -> String {
    let mut text = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    if let Some(line) = error.line() {
        text = format!("line {line}: {text}");
    }
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}
