//! Models and data sets that are named by their id on the hub, fetched in front of the user.

use indicatif::{ProgressBar, ProgressStyle};
use smolten::dataset::{DataKind, DataSource};
use smolten::error::Result;
use smolten::hub::{self, Event, Observer};
use smolten::pretrained;
use smolten::recipe::Recipe;
use smolten::trainer::Sources;
use std::io::IsTerminal;
use std::path::PathBuf;

/// The model that `--model` names: a path as it is, or a hub id as the folder it was fetched into. If that is an adapter
/// whose base is on the hub, the base is fetched too.
pub fn model(text: &str) -> Result<PathBuf> {
    let path = shown(|observer| hub::model(text, observer))?;
    if let Some(base) = pretrained::base_on_hub(&path)? {
        shown(|observer| hub::model(&base, observer))?;
    }
    Ok(path)
}

/// The data set that `--data` names: a file, what is bundled, or a hub id whose files are fetched.
pub fn data(text: &str) -> Result<DataSource> {
    if !hub::is_id(text) {
        return DataSource::local(text);
    }
    let files = shown(|observer| hub::data(text, observer))?;
    Ok(DataSource { name: text.to_owned(), kind: DataKind::Files(files) })
}

/// All that a recipe names.
pub fn sources(recipe: &Recipe) -> Result<Sources> {
    Ok(Sources {
        model: model(&recipe.model)?,
        data: data(&recipe.data)?,
        eval_data: recipe.eval_data.as_deref().map(data).transpose()?,
    })
}

/// Shows on standard error what is fetched: a bar on a terminal, else lines.
fn shown<T>(work: impl FnOnce(Observer<'_>) -> Result<T>) -> Result<T> {
    let mut bar: Option<ProgressBar> = None;
    let result = work(&mut |event| match event {
        Event::Start { what, files, bytes, present } => {
            let plural = if files == 1 { "file" } else { "files" };
            let rest = match present {
                0 => String::new(),
                n => format!(", {} of them here already", megabytes(n)),
            };
            eprintln!("{what}: downloading {files} {plural}, {}{rest}", megabytes(bytes));
            if std::io::stderr().is_terminal() {
                let style = "{bar:30.green} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec}, {eta} left";
                let style = ProgressStyle::with_template(style).expect("the template is well formed");
                // From where it goes on, so that the rate counts what arrives now.
                bar = Some(ProgressBar::new(bytes).with_position(present).with_style(style));
            }
        }
        Event::Received(bytes) => bar.iter().for_each(|bar| bar.inc(bytes)),
        Event::Finished => bar.iter().for_each(ProgressBar::finish_and_clear),
        Event::Notice(text) => eprintln!("note: {text}"),
    });
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    result
}

/// `98.1 MB`, in units of a million bytes.
fn megabytes(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{} kB", bytes.div_ceil(1000)),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}
