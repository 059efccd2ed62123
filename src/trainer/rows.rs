//! The rows of a run: which are trained on, and which are held out.

use crate::batch::{Examples, Order, Origin, split};
use crate::dataset::{DataSource, Dataset, Encoder, FieldNames, Question, cache_folder, load, questions};
use crate::error::Result;
use crate::pretrained::Pretrained;
use crate::recipe::{Compat, Recipe};
use crate::template::ChatTemplate;
use std::path::PathBuf;

/// What a recipe names, found on this machine.
#[derive(Clone, Debug)]
pub struct Sources {
    /// A model's folder or file.
    pub model: PathBuf,
    /// Rows to learn from.
    pub data: DataSource,
    /// Held-out rows of their own.
    pub eval_data: Option<DataSource>,
}

impl Sources {
    /// For a recipe that names files only.
    ///
    /// # Errors
    /// [`Error::Input`](crate::error::Error::Input) when the data are of no known kind.
    pub fn local(recipe: &Recipe) -> Result<Self> {
        Ok(Self {
            model: (&recipe.model).into(),
            data: DataSource::local(&recipe.data)?,
            eval_data: recipe.eval_data.as_deref().map(DataSource::local).transpose()?,
        })
    }
}

/// All rows of a run, tokenised.
#[derive(Debug)]
pub struct Rows {
    /// The data set that is trained on; some of it may be held out.
    pub data: Dataset,
    /// A data set of held-out rows.
    pub eval_data: Option<Dataset>,
    /// Examples of `data` that are trained on.
    pub trained: Vec<usize>,
    /// Examples of `eval_data`, or else of `data`, that are held out.
    pub held_out: Vec<usize>,
    /// The token that rows are filled up with, where they are.
    pad: Option<u32>,
}

impl Rows {
    /// Tokenises the data, or finds them in the cache.
    ///
    /// # Errors
    /// [`Error::Input`](crate::error::Error::Input) for data that cannot be read, that teach nothing, or that the
    /// audit refuses.
    pub fn load(recipe: &Recipe, sources: &Sources, pretrained: &Pretrained) -> Result<Self> {
        let read = |source| load_dataset(recipe, source, pretrained, &pretrained.template);
        let data = read(&sources.data)?;
        data.audit.refuse(&recipe.allow)?;
        let eval_data = sources.eval_data.as_ref().map(read).transpose()?;
        let all = data.examples.len();
        let (trained, held_out) = match &eval_data {
            Some(eval_data) => ((0..all).collect(), (0..eval_data.examples.len()).collect()),
            None => split(all, recipe.eval_share, recipe.seed),
        };
        let pad = Encoder::new(recipe, pretrained).pad_with;
        Ok(Self { data, eval_data, trained, held_out, pad })
    }

    /// How many tokens of these examples only fill up: the run of pads at the end of each.
    pub(super) fn padded_tokens(&self, examples: &[usize]) -> usize {
        let Some(pad) = self.pad else { return 0 };
        let filled = |&i: &usize| self.data.examples.ids(i).iter().rev().take_while(|&&id| id == pad).count();
        examples.iter().map(filled).sum()
    }

    /// The examples that `held_out` indexes.
    pub fn held_out_examples(&self) -> &Examples {
        &self.eval_data.as_ref().unwrap_or(&self.data).examples
    }
}

/// A data set as the recipe makes tokens of it, for this model, in conversations as `template` writes them.
///
/// # Errors
/// As [`load`].
pub fn load_dataset(
    recipe: &Recipe,
    source: &DataSource,
    pretrained: &Pretrained,
    template: &ChatTemplate,
) -> Result<Dataset> {
    let encoder = Encoder { template, ..Encoder::new(recipe, pretrained) };
    load(source, &encoder, &FieldNames::new(recipe), cache_folder().as_deref())
}

/// Examples of such a data set as questions, of the rows that ask something.
///
/// # Errors
/// As [`questions`].
pub fn load_questions(
    recipe: &Recipe,
    source: &DataSource,
    pretrained: &Pretrained,
    template: &ChatTemplate,
    origins: &[Origin],
) -> Result<Vec<Question>> {
    let encoder = Encoder { template, ..Encoder::new(recipe, pretrained) };
    questions(source, &encoder, &FieldNames::new(recipe), origins)
}

/// The order of the rows in each epoch.
pub(crate) fn order(recipe: &Recipe) -> Order {
    match (recipe.compat, recipe.shuffle) {
        (Compat::Trl017, _) => Order::TorchRandperm(recipe.seed),
        (Compat::Off, true) => Order::Shuffled(recipe.seed),
        (Compat::Off, false) => Order::AsGiven,
    }
}
