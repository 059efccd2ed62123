//! Templates to documents.

use crate::error::{Error, Result};
use minijinja::Environment;
use serde_json::{Value, json};
use std::collections::BTreeMap;

use super::chart::Chart;

/// Every template, by name. Names that end in `.html` escape what is put into them.
const PAGES: [(&str, &str); 4] = [
    ("base.html", include_str!("pages/base.html")),
    ("parts.html", include_str!("pages/parts.html")),
    ("run.html", include_str!("pages/run.html")),
    ("runs.html", include_str!("pages/runs.html")),
];
const STYLE: &str = include_str!("pages/style.css");
const SCRIPT: &str = include_str!("pages/script.js");

/// By this a file is known as one of ours.
pub const MARK: &str = "<meta name=\"generator\" content=\"smolten ";

/// A whole document of the template `name`, with what all pages share.
///
/// # Errors
/// [`Error::Run`] when the template does not take `of_page`, which is a bug.
pub fn render(name: &str, charts: &[Chart], of_page: Value) -> Result<String> {
    let values: BTreeMap<&str, _> = charts.iter().map(|chart| (chart.id, &chart.values)).collect();
    let values = serde_json::to_string(&values).expect("plain data");
    let mut context = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "written": now(),
        "style": STYLE,
        "script": SCRIPT,
        // In a script element only this could end it.
        "values": values.replace('<', "\\u003c"),
        "charts": charts,
    });
    if let (Value::Object(context), Value::Object(of_page)) = (&mut context, of_page) {
        context.extend(of_page);
    }
    let mut environment = Environment::new();
    environment.set_undefined_behavior(minijinja::UndefinedBehavior::Strict);
    for (name, source) in PAGES {
        environment.add_template(name, source).map_err(bug)?;
    }
    environment
        .get_template(name)
        .and_then(|page| page.render(minijinja::value::Serde(&context)))
        .map_err(bug)
}

fn bug(error: minijinja::Error) -> Error {
    Error::run(format!("the report cannot be made: {error:#}"), "this is a bug of smolten: please report it")
}

/// The minute in UTC.
fn now() -> String {
    let t = time::OffsetDateTime::now_utc();
    format!("{}-{:02}-{:02} {:02}:{:02}", t.year(), u8::from(t.month()), t.day(), t.hour(), t.minute())
}
