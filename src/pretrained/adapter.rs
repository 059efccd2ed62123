//! An adapter's folder: the base it names, with the adapter and what lies beside that.

use super::{Parts, folder, license, stored};
use crate::error::{Error, Result};
use crate::hub::{self, Hub};
use crate::weights::{Adapter, AdapterSettings, is_adapter};
use std::path::{Path, PathBuf};

/// The base's parts with the adapter in its weights. Tokenizer, template and generation configuration are the
/// adapter's where they lie beside it, as PEFT and TRL leave them there, else the base's.
pub fn parts(folder: &Path, settings: &AdapterSettings) -> Result<Parts> {
    let base = base(folder, settings)?;
    let mut parts = stored(&base)?;
    let adapter = Adapter::open(folder, settings, &parts.config)?;
    parts.adapter = Some(format!("{}, merged into {}", adapter.description(), name(settings)));
    parts.weights = parts.weights.with_adapter(adapter);
    let card = license::of_folder(folder);
    if !card.is_empty() {
        parts.license = card;
    }
    folder::read_beside(folder, &mut parts)?;
    Ok(parts)
}

/// The id on the hub of an adapter's base, where `path` is the folder of an adapter and its base is not a path here.
/// [`Pretrained::open`](super::Pretrained::open) takes it from the hub's cache only.
///
/// # Errors
/// Those of [`AdapterSettings::of_folder`], and when the base is neither a path nor an id.
pub fn base_on_hub(path: &Path) -> Result<Option<String>> {
    let Some(settings) = AdapterSettings::of_folder(path)? else { return Ok(None) };
    Ok(match find(path, &settings)? {
        Base::Hub(id) => Some(id),
        Base::Path(_) => None,
    })
}

enum Base {
    Path(PathBuf),
    Hub(String),
}

/// A path as given, else one beside the adapter, else an id of the hub.
fn find(folder: &Path, settings: &AdapterSettings) -> Result<Base> {
    let given = Path::new(&settings.base);
    let beside = folder.join(given);
    if let Some(path) = [given, &beside].into_iter().find(|path| path.exists()) {
        return Ok(Base::Path(path.to_owned()));
    }
    let id = name(settings);
    if hub::is_id(&id) {
        return Ok(Base::Hub(id));
    }
    Err(Error::input(
        asked(settings),
        format!("the base {id} is not there, and this is no id of the hub"),
        "write there where the base lies: a path, absolute or from the adapter's folder, or org/name",
    ))
}

/// The base as the settings have it, with its revision.
fn name(settings: &AdapterSettings) -> String {
    match &settings.revision {
        Some(revision) if !settings.base.contains('@') => format!("{}@{revision}", settings.base),
        _ => settings.base.clone(),
    }
}

fn asked(settings: &AdapterSettings) -> String {
    format!("{}, \"base_model_name_or_path\"", settings.path.display())
}

/// Where the base lies.
fn base(folder: &Path, settings: &AdapterSettings) -> Result<PathBuf> {
    let path = match find(folder, settings)? {
        Base::Path(path) => path,
        Base::Hub(id) => {
            let cache = Hub { offline: true, ..Hub::from_env()? };
            cache.model(&id, &mut |_| ()).map_err(|_| {
                let found = format!("the base {id} is not whole in the hub's cache {}", cache.cache.display());
                let remedy = "fetch it (smolten's commands do, where --model names the adapter), or write there where it lies";
                Error::input(asked(settings), found, remedy)
            })?
        }
    };
    if is_adapter(&path) {
        let found = format!("the base {} is itself an adapter", path.display());
        let remedy = "merge that one first: smolten export --model BASE --out FOLDER --format hf, and write FOLDER there";
        return Err(Error::input(asked(settings), found, remedy));
    }
    Ok(path)
}
