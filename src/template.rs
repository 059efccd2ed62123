//! Chat templates: the Jinja of Hugging Face tokenizers, rendered as transformers' `apply_chat_template` does.

mod environment;
mod limits;

use crate::error::{Error, Result};
use minijinja::value::Serde;
use minijinja::{Environment, Value, context};
use std::ops::Range;

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
    marks_generation: bool,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Compiles a template; `bos` and `eos` are the tokens it may name, empty where the model has none.
    ///
    /// # Errors
    /// [`Error::Input`] with the line, when it is no template.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self> {
        if let Some((what, tag)) = limits::refuse(source) {
            let found = format!("`{tag}` {what}");
            return Err(Error::input("chat template", found, "take chat_template.jinja of another model"));
        }
        let (environment, marks_generation) = environment::with_template(source).map_err(|e| {
            Error::input(
                "chat template",
                describe(&e),
                "correct it, or take chat_template.jinja of another model",
            )
        })?;
        let (source, bos, eos) = (source.to_owned(), bos.to_owned(), eos.to_owned());
        Ok(Self { environment, source, marks_generation, bos, eos })
    }

    /// ChatML without a system turn, with `<|im_start|>` and `<|im_end|>`.
    pub fn chatml() -> Self {
        Self::new(CHATML, "<|im_start|>", "<|im_end|>").expect("the template is a constant and tested")
    }

    /// The template's text, as it is written to `chat_template.jinja`.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The tokens it may name for the start of a text and the end of a turn; empty where the model has none.
    pub fn special_tokens(&self) -> [&str; 2] {
        [&self.bos, &self.eos]
    }

    /// Whether it marks the assistant's words with `{% generation %}` tags.
    pub fn marks_generation(&self) -> bool {
        self.marks_generation
    }

    /// Whether what it writes depends on the day.
    pub fn tells_the_time(&self) -> bool {
        self.source.contains("strftime_now")
    }

    /// The conversation as one text. `add_generation_prompt` adds what precedes an answer.
    ///
    /// # Errors
    /// [`Error::Input`] when the template refuses the conversation or fails on it.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.render_with(messages, add_generation_prompt, None)
    }

    /// The conversation as one text, and the parts of it, in bytes, that lie in `{% generation %}` tags.
    ///
    /// # Errors
    /// Those of [`ChatTemplate::render`]; [`Error::Input`] when the messages hold every character that could mark a
    /// part.
    pub fn render_generation(&self, messages: &[Message]) -> Result<(String, Vec<Range<usize>>)> {
        // Two characters that Unicode keeps for a program's own use, and that nothing here holds, enclose the parts.
        let held = |c: char| messages.iter().any(|m| m.content.contains(c) || m.role.contains(c));
        let mut private = ('\u{fdd0}'..='\u{fdef}').filter(|&c| !held(c) && !self.source.contains(c));
        let (Some(start), Some(end)) = (private.next(), private.next()) else {
            return Err(Error::input(
                "chat template",
                "the conversation holds all characters from U+FDD0 to U+FDEF, which mark a template's parts",
                "take those out: they stand for nothing in any text",
            ));
        };
        let marked = self.render_with(messages, false, Some(&format!("{start}{end}")))?;
        let mut text = String::with_capacity(marked.len());
        let (mut parts, mut from) = (Vec::new(), 0);
        for piece in marked.split_inclusive([start, end]) {
            let mark = piece.chars().next_back();
            text += piece.trim_end_matches([start, end]);
            if mark == Some(start) {
                from = text.len();
            } else if mark == Some(end) {
                parts.push(from..text.len());
            }
        }
        Ok((text, parts))
    }

    fn render_with(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        marks: Option<&str>,
    ) -> Result<String> {
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
            ..marks.map_or(Value::UNDEFINED, |marks| context! { __generation_marks => marks })
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
