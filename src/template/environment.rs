//! What Hugging Face templates may rely on beyond plain Jinja.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use serde::Serialize;
use time::OffsetDateTime;

/// The one template's name; without an extension nothing is escaped.
pub const NAME: &str = "chat";

/// Instructions and bytes that one rendering may take: a template comes with a model, and may loop without end or make
/// much of little.
const FUEL: u64 = 40_000_000;

/// An environment that holds the compiled template, and whether that has generation tags.
pub fn with_template(source: &str) -> Result<(Environment<'static>, bool), Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_unknown_method_callback(python_method);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(64);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", tojson);
    environment.add_filter("indent", indent);
    environment.add_filter("format", format);
    environment.add_filter(GENERATION, generation);
    // Jinja reads every kind of line end as \n.
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let (source, marks_generation) = with_generation_blocks(&source);
    environment.add_template_owned(NAME, source)?;
    Ok((environment, marks_generation))
}

/// Methods of Python's strings, lists and dictionaries.
fn python_method(
    state: &mut State,
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    match (method, value.as_str(), arguments) {
        // The library knows two of Python's line ends.
        ("splitlines", Some(text), []) => Ok(split_lines(text).into_iter().map(Value::from).collect()),
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, arguments),
    }
}

/// `str.splitlines()`: no line follows a last line end.
fn split_lines(text: &str) -> Vec<&str> {
    const ENDS: [char; 10] =
        ['\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}'];
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(ENDS) {
        lines.push(&rest[..at]);
        let end = if rest[at..].starts_with("\r\n") {
            2
        } else {
            rest[at..].chars().next().map_or(0, char::len_utf8)
        };
        rest = &rest[at + end..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

fn raise_exception(message: String) -> Result<String, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// The local time, or UTC where the zone is not known, in the format of C's `strftime`.
fn strftime_now(format: &str) -> Result<String, Error> {
    let wrong =
        |e: &dyn std::fmt::Display| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {e}"));
    let format = time::format_description::parse_strftime_owned(format).map_err(|e| wrong(&e))?;
    let now = OffsetDateTime::now_local().unwrap_or_else(|_| OffsetDateTime::now_utc());
    now.format(&format).map_err(|e| wrong(&e))
}

/// Refuses a width that would make a long text of a short template.
fn check_width(width: usize) -> Result<(), Error> {
    const WIDEST: usize = 256;
    if width <= WIDEST {
        return Ok(());
    }
    let message = format!("an indent of {width} spaces; {WIDEST} is the most");
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// The library's filter, with a limit on widths and precisions; none may come from the arguments.
fn format(
    state: &mut State,
    text: Value,
    arguments: Rest<minijinja::value::ValueOrKwargs>,
) -> Result<Value, Error> {
    for spec in text.as_str().unwrap_or_default().split('%').skip(1) {
        let spec: String = spec.chars().take_while(|c| !c.is_alphabetic()).collect();
        check_width(if spec.contains('*') { usize::MAX } else { 0 })?;
        for number in spec.split(|c: char| !c.is_ascii_digit()).filter(|n| !n.is_empty()) {
            check_width(number.parse().unwrap_or(usize::MAX))?;
        }
    }
    minijinja::filters::format(state, &text, arguments)
}

/// The library's filter, with a limit on the width, for which it charges no fuel.
fn indent(
    text: minijinja::value::StringInput<'_>,
    width: Option<usize>,
    first: Option<bool>,
    blank: Option<bool>,
    options: Kwargs,
) -> Result<Value, Error> {
    let named: Option<usize> = options.get("width")?;
    check_width(width.or(named).unwrap_or(0))?;
    minijinja::filters::indent(text, width, first, blank, options)
}

/// `json.dumps(value, ensure_ascii=False, indent=…)`: Python's spacing, nothing escaped for HTML.
fn tojson(value: Value, arguments: Rest<Value>, options: Kwargs) -> Result<Value, Error> {
    if !arguments.is_empty() {
        return Err(Error::new(ErrorKind::TooManyArguments, "tojson takes indent by name"));
    }
    let indent: Option<usize> = options.get("indent")?;
    options.assert_all_used()?;
    check_width(indent.unwrap_or(0))?;
    let mut bytes = Vec::new();
    let written = match indent {
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, Spaced)),
        Some(width) => {
            let spaces = " ".repeat(width);
            let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, formatter))
        }
    };
    written.map_err(|e| Error::new(ErrorKind::BadSerialization, format!("tojson: {e}")))?;
    Ok(Value::from(String::from_utf8(bytes).expect("serde_json writes UTF-8")))
}

/// `", "` and `": "` between the parts, as Python writes JSON on one line.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}

/// Variable of a rendering that wants to know what the generation tags hold: two characters, which enclose each part.
pub const MARKS: &str = "__generation_marks";

/// The block that stands for a generation tag.
const GENERATION: &str = "__generation";

/// Puts [`MARKS`] around what a generation tag holds, where there are any.
fn generation(state: &State, body: String) -> String {
    match state.lookup(MARKS).as_ref().and_then(Value::as_str) {
        Some(marks) => {
            let (start, end) = marks.split_at(marks.chars().next().map_or(0, char::len_utf8));
            [start, &body, end].concat()
        }
        None => body,
    }
}

/// transformers' own tag `{% generation %}`, which marks the assistant's tokens, as a filter block in a scope of its
/// own. Whether there is such a tag.
fn with_generation_blocks(source: &str) -> (String, bool) {
    let mut out = String::with_capacity(source.len());
    let (mut rest, mut found) = (source, false);
    while let Some((before, after)) = rest.split_once("{%") {
        let Some((tag, after)) = after.split_once("%}") else { break };
        let name = tag.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        // The outer tag keeps the left whitespace control, the inner one the right.
        let tag = match name {
            "generation" => {
                found = true;
                tag.replace(name, &format!("with %}}{{% filter {GENERATION}"))
            }
            "endgeneration" => tag.replace(name, "endfilter %}{% endwith"),
            _ => tag.to_owned(),
        };
        out.extend([before, "{%", &tag, "%}"]);
        rest = after;
    }
    (out + rest, found)
}
