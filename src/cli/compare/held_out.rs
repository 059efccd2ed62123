//! Rows that the tuned model was not trained on.

use crate::cli::{answers, fetch};
use serde_json::{Value, json};
use smolten::batch::{Examples, split};
use smolten::dataset::content_hash;
use smolten::error::{Error, Result};
use smolten::eval::Exam;
use smolten::pretrained::Pretrained;
use smolten::recipe::{Recipe, RecipeOverrides};
use smolten::trainer::load_dataset;
use std::path::Path;

/// What a run left beside its model.
pub struct Record {
    /// The whole of `run.json`.
    json: Value,
    /// The recipe in it.
    pub recipe: Recipe,
}

impl Record {
    /// `run.json` in the tuned model's folder, where there is one.
    pub fn find(tuned: &Path) -> Result<Option<Self>> {
        let path = tuned.join("run.json");
        if !path.is_file() {
            return Ok(None);
        }
        let text = std::fs::read(&path).map_err(Error::io("read", &path))?;
        let place = path.display().to_string();
        let remedy = "the record is damaged: move it away, and name the held-out rows with --data";
        let json: Value = serde_json::from_slice(&text)
            .map_err(|e| Error::input(&place, format!("not JSON: {e}"), remedy))?;
        let recipe = Recipe::from_record(&json["recipe"], &place)?;
        Ok(Some(Self { json, recipe }))
    }

    /// The file whose rows were held out, and whether only a share of them was.
    fn source(&self) -> Option<(&str, bool)> {
        match &self.recipe.eval_data {
            Some(file) => Some((file, false)),
            None if self.json["data"]["held_out_rows"].as_u64() > Some(0) => Some((&self.recipe.data, true)),
            None => None,
        }
    }
}

/// Which rows, and how they become tokens.
pub struct HeldOut {
    /// Where the rows come from, for people.
    pub source: String,
    /// Says which tokens are in the loss, and how long a row may be.
    recipe: Recipe,
    data: String,
    /// Rows that were held out of a split, where the rows are a share of the data.
    split_rows: Option<u64>,
}

impl HeldOut {
    /// All rows of `data`, which become tokens as they did in the tuned model's run, where that is on record.
    pub fn of_data(data: &str, record: Option<&Record>, tuned: &str) -> Result<Self> {
        let recipe = match record {
            Some(record) => record.recipe.clone(),
            None => {
                let (model, data) = (Some(tuned.to_owned()), Some(data.to_owned()));
                Recipe::resolve(None, &[], &RecipeOverrides { model, data, ..RecipeOverrides::default() })?
            }
        };
        Ok(Self { source: format!("all rows of {data}"), recipe, data: data.to_owned(), split_rows: None })
    }

    /// The rows that the run held out; or why there are none.
    pub fn of_run(record: Option<&Record>, tuned: &str) -> std::result::Result<Self, String> {
        let record = record.ok_or_else(|| format!("there is no run.json in {tuned}"))?;
        let (file, shared) = record.source().ok_or("the run held no rows out")?;
        let key = if shared { "data" } else { "eval_data" };
        let found = fetch::data(file).and_then(|source| content_hash(&source));
        let found = found.map_err(|e| format!("the run's rows are not there: {e}"))?;
        if record.json[key]["sha256"] != json!(found) {
            return Err(format!("{file} has changed since the run, and its held-out rows are not known"));
        }
        let split_rows = if shared { record.json["data"]["held_out_rows"].as_u64() } else { None };
        let source = match split_rows {
            Some(rows) => format!("the {rows} rows of {file} that the run held out"),
            None => format!("all rows of {file}, the run's evaluation set"),
        };
        Ok(Self { source, recipe: record.recipe.clone(), data: file.to_owned(), split_rows })
    }

    /// The first `most` of these rows as questions, in the tokens of `pretrained` and the template of `tuned`.
    pub fn exam(
        &self,
        pretrained: &Pretrained,
        tuned: &Pretrained,
        (examples, indices): &(Examples, Vec<usize>),
        most: usize,
    ) -> Result<Exam> {
        let source = fetch::data(&self.data)?;
        answers::exam(&self.recipe, &source, pretrained, &tuned.template, (examples, indices), most)
    }

    /// The rows as tokens of `pretrained`, in the template of `tuned`: a store, and which of it were held out.
    pub fn encode(&self, pretrained: &Pretrained, tuned: &Pretrained) -> Result<(Examples, Vec<usize>)> {
        let source = fetch::data(&self.data)?;
        let examples = load_dataset(&self.recipe, &source, pretrained, &tuned.template)?.examples;
        let Some(rows) = self.split_rows else {
            let all = (0..examples.len()).collect();
            return Ok((examples, all));
        };
        let (_, held_out) = split(examples.len(), self.recipe.eval_share, self.recipe.seed);
        if held_out.len() as u64 == rows {
            return Ok((examples, held_out));
        }
        Err(Error::input(
            format!("held-out rows of {}", self.data),
            format!("the run held {rows} out, and splitting its rows again gives {}", held_out.len()),
            "name rows that the model was not trained on with --data",
        ))
    }
}
