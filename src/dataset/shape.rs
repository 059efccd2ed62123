//! Which fields of a row are the conversation; the first row decides for all.

use super::cell::{Cell, Object};
use super::{FieldNames, Row};
use crate::error::{Error, Result};
use crate::template::Message;

/// Pairs of field names, in the order they are looked for.
const PAIRS: [(&str, &str); 4] =
    [("prompt", "response"), ("prompt", "completion"), ("instruction", "output"), ("question", "answer")];

/// The fields a row is made of.
#[derive(Clone, Debug)]
enum Shape {
    Pair { prompt: String, response: String, lists: bool },
    Messages,
    Text,
}

/// Holds rows to the shape of the first.
pub(super) struct Shaper<'a> {
    fields: &'a FieldNames,
    shape: Option<Shape>,
}

impl<'a> Shaper<'a> {
    pub fn new(fields: &'a FieldNames) -> Self {
        Self { fields, shape: None }
    }

    /// The next row; `place` is where it stands, for messages.
    pub fn row(&mut self, place: &str, object: Object) -> Result<Row> {
        let shape = match &self.shape {
            Some(shape) => shape,
            None => self.shape.insert(detect(place, &object, self.fields)?),
        };
        let mut fields = Fields { place, object };
        Ok(match shape {
            Shape::Text => Row::Text(fields.text("text")?),
            Shape::Messages => Row::Messages(fields.messages("messages")?),
            Shape::Pair { prompt, response, lists: true } => {
                Row::Completion { prompt: fields.messages(prompt)?, completion: fields.messages(response)? }
            }
            Shape::Pair { prompt, response, lists: false } => {
                let mut user = fields.text(prompt)?;
                if prompt == "instruction"
                    && let Some(input) = fields.optional_text("input")?
                {
                    user = format!("{user}\n\n{input}");
                }
                let completion = vec![Message::new("assistant", fields.text(response)?)];
                Row::Completion { prompt: vec![Message::new("user", user)], completion }
            }
        })
    }
}

fn detect(place: &str, object: &Object, fields: &FieldNames) -> Result<Shape> {
    let has = |name: &str| object.iter().any(|(n, _)| n == name);
    let named = fields.prompt.is_some() || fields.response.is_some();
    // A name the recipe gives stands for that half of every pair.
    let pairs = PAIRS.iter().map(|&(prompt, response)| {
        (fields.prompt.as_deref().unwrap_or(prompt), fields.response.as_deref().unwrap_or(response))
    });
    if let Some((prompt, response)) =
        pairs.into_iter().find(|(prompt, response)| has(prompt) && has(response))
    {
        let lists = object.iter().any(|(name, cell)| name == prompt && matches!(cell, Cell::List(_)));
        return Ok(Shape::Pair { prompt: prompt.to_owned(), response: response.to_owned(), lists });
    }
    if !named && has("messages") {
        return Ok(Shape::Messages);
    }
    if !named && has("text") {
        return Ok(Shape::Text);
    }
    let asked = match (&fields.prompt, &fields.response) {
        (None, None) => "fields of a known name".to_owned(),
        (Some(prompt), None) => format!("field \"{prompt}\" as prompt_field, and a response"),
        (None, Some(response)) => format!("field \"{response}\" as response_field, and a prompt"),
        (Some(prompt), Some(response)) => {
            format!("fields \"{prompt}\" and \"{response}\", as the recipe names them")
        }
    };
    Err(Error::input(
        format!("{place}, {asked}"),
        format!("the fields are {}", names(object)),
        "a row holds prompt + response, prompt + completion, instruction + output, question + answer, messages, \
         or text; name other fields with the recipe keys prompt_field and response_field",
    ))
}

fn names(object: &Object) -> String {
    let quoted: Vec<_> = object.iter().map(|(name, _)| format!("\"{name}\"")).collect();
    if quoted.is_empty() { "none".to_owned() } else { quoted.join(", ") }
}

/// The fields of one row, taken out by name.
struct Fields<'a> {
    place: &'a str,
    object: Object,
}

impl Fields<'_> {
    fn error(&self, field: &str, found: String, want: &str) -> Error {
        let remedy = format!("{want} is needed in every row; correct this one or take it out");
        Error::input(format!("{}, field \"{field}\"", self.place), found, remedy)
    }

    fn take(&mut self, field: &str, want: &str) -> Result<Cell> {
        match self.object.iter().position(|(name, _)| name == field) {
            Some(at) => Ok(std::mem::replace(&mut self.object[at].1, Cell::Other("null".to_owned()))),
            None => {
                let found = format!("the row has no such field; it has {}", names(&self.object));
                Err(self.error(field, found, want))
            }
        }
    }

    fn text(&mut self, field: &str) -> Result<String> {
        const WANT: &str = "text that is not empty";
        match self.take(field, WANT)? {
            Cell::Text(text) if !text.trim().is_empty() => Ok(text),
            other => Err(self.error(field, other.describe(), WANT)),
        }
    }

    /// `None` where the field is missing, null or empty.
    fn optional_text(&mut self, field: &str) -> Result<Option<String>> {
        match self.object.iter().find(|(name, _)| name == field) {
            None => Ok(None),
            Some((_, Cell::Text(text))) if text.trim().is_empty() => Ok(None),
            Some((_, Cell::Other(what))) if what == "null" => Ok(None),
            Some(_) => self.text(field).map(Some),
        }
    }

    fn messages(&mut self, field: &str) -> Result<Vec<Message>> {
        const WANT: &str = "a list of messages, each with a role and a content,";
        match self.take(field, WANT)? {
            Cell::List(list) if !list.is_empty() => {
                let of_item = |(i, cell)| self.message(&format!("{field}[{i}]"), cell);
                list.into_iter().enumerate().map(of_item).collect()
            }
            other => Err(self.error(field, other.describe(), WANT)),
        }
    }

    fn message(&self, field: &str, cell: Cell) -> Result<Message> {
        let Cell::Object(object) = cell else {
            return Err(self.error(field, cell.describe(), "an object with role and content"));
        };
        let mut inner = Fields { place: self.place, object };
        let mut part = |name: &str| match inner.take(name, "text") {
            Ok(Cell::Text(text)) => Ok(text),
            Ok(other) => Err(self.error(&format!("{field}.{name}"), other.describe(), "text")),
            Err(_) => {
                let found = format!("the message has no such field; it has {}", names(&inner.object));
                Err(self.error(&format!("{field}.{name}"), found, "text"))
            }
        };
        Ok(Message::new(part("role")?, part("content")?))
    }
}
