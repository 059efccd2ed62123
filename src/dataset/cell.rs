//! One value of a row, whichever format it was read from.

use parquet::record::Field;
use serde_json::Value;

/// The fields of a row or of a message, in the file's order.
pub(super) type Object = Vec<(String, Cell)>;

/// A value as far as rows can use it.
#[derive(Clone, Debug)]
pub(super) enum Cell {
    Text(String),
    List(Vec<Cell>),
    Object(Object),
    /// Anything else, described for a message: `null`, `the number 5`.
    Other(String),
}

impl Cell {
    /// For a message: what was found instead of what was asked.
    pub fn describe(&self) -> String {
        match self {
            Self::Text(text) if text.trim().is_empty() => "empty text".to_owned(),
            Self::Text(_) => "text".to_owned(),
            Self::List(list) if list.is_empty() => "an empty list".to_owned(),
            Self::List(_) => "a list".to_owned(),
            Self::Object(_) => "an object".to_owned(),
            Self::Other(what) => what.clone(),
        }
    }
}

/// The fields of a JSON object.
pub(super) fn from_json_object(map: serde_json::Map<String, Value>) -> Object {
    map.into_iter().map(|(name, value)| (name, value.into())).collect()
}

impl From<Value> for Cell {
    fn from(value: Value) -> Self {
        match value {
            Value::String(text) => Self::Text(text),
            Value::Array(list) => Self::List(list.into_iter().map(Self::from).collect()),
            Value::Object(map) => Self::Object(from_json_object(map)),
            Value::Number(number) => Self::Other(format!("the number {number}")),
            Value::Null | Value::Bool(_) => Self::Other(value.to_string()),
        }
    }
}

/// The fields of a parquet row or struct.
pub(super) fn from_parquet_row(row: parquet::record::Row) -> Object {
    row.into_columns().into_iter().map(|(name, field)| (name, field.into())).collect()
}

impl From<Field> for Cell {
    fn from(field: Field) -> Self {
        match field {
            Field::Str(text) => Self::Text(text),
            // Old writers store text without saying that it is.
            Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
                Ok(text) => Self::Text(text.to_owned()),
                Err(_) => Self::Other(format!("{} bytes that are not UTF-8", bytes.len())),
            },
            Field::ListInternal(list) => {
                Self::List(list.elements().iter().cloned().map(Self::from).collect())
            }
            Field::Group(row) => Self::Object(from_parquet_row(row)),
            Field::MapInternal(_) => Self::Other("a map".to_owned()),
            Field::Null => Self::Other("null".to_owned()),
            other => Self::Other(format!("the value {other}")),
        }
    }
}
