//! What fits into memory: the largest batch, and what to change where a run does not fit. Every answer is a plan made as
//! the run's own is, with no more than the same rows cut shorter.

use super::{Run, Trained};
use crate::arena::Plan;
use crate::backend;
use crate::dataset::Dataset;
use crate::error::Result;
use crate::model::Capacity;
use crate::recipe::{Compat, EmbeddingState, OptimizerKind, Recipe, Recompute};

/// Lengths that are proposed are multiples of this many tokens.
const LENGTH_STEP: usize = 32;

/// A way to make a run smaller.
#[derive(Clone)]
struct Change {
    recipe: Recipe,
    flags: String,
    price: &'static str,
}

/// A run and what its plans depend on.
pub(super) struct Fit<'a> {
    run: &'a Run,
    /// Tokens of the rows that are trained on, the longest first.
    lengths: Vec<usize>,
    /// Tokens below which more than half of a data set's rows would be cut, which the audit refuses.
    shortest: usize,
    limit: usize,
}

impl<'a> Fit<'a> {
    /// Within `limit` bytes.
    pub fn new(run: &'a Run, limit: u64) -> Self {
        let examples = run.batches.examples();
        let mut lengths: Vec<usize> = run.batches.chosen().iter().map(|&i| examples.tokens_of(i)).collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        let sets = [Some(&run.rows.data), run.rows.eval_data.as_ref()];
        let shortest = sets.into_iter().flatten().map(median).max().unwrap_or(0);
        Self { run, lengths, shortest, limit: usize::try_from(limit).unwrap_or(usize::MAX) }
    }

    /// The largest batch size whose plan fits, of as many rows as there are.
    pub fn largest_batch(&self) -> Result<Option<usize>> {
        let fits = |batch_size| self.fits(&Recipe { batch_size, ..self.run.recipe.clone() });
        if !fits(1)? {
            return Ok(None);
        }
        // `low` fits, `high` does not, or there are not so many rows.
        let (mut low, mut high) = (1, self.run.batches.num_rows() + 1);
        while high - low > 1 {
            let middle = usize::midpoint(low, high);
            if fits(middle)? {
                low = middle;
            } else {
                high = middle;
            }
        }
        Ok(Some(low))
    }

    /// What would make the run fit, the least costly first; one line each.
    pub fn remedies(&self) -> Result<String> {
        let mut single = Vec::new();
        for changes in self.changes(&self.run.recipe) {
            single.extend(self.first_that_fits(changes)?);
        }
        if single.is_empty() {
            single.extend(self.together()?);
        }
        let lines: Vec<String> = single.iter().map(|(change, bytes)| self.line(change, *bytes)).collect();
        Ok(if lines.is_empty() {
            "no change of the recipe that leaves half of the rows whole makes it fit: use a smaller model, or another device".to_owned()
        } else {
            format!("it would fit, each by itself, with\n    {}", lines.join("\n    "))
        })
    }

    fn line(&self, change: &Change, bytes: usize) -> String {
        format!("{}  ({} MiB; {})", change.flags, bytes >> 20, change.price)
    }

    /// Kinds of changes, the least costly kind first; within a kind the smallest change first.
    fn changes(&self, from: &Recipe) -> Vec<Vec<Change>> {
        let change = |flags: String, price, edit: &dyn Fn(&mut Recipe)| {
            let mut recipe = from.clone();
            edit(&mut recipe);
            Change { recipe, flags, price }
        };
        let mut kinds = Vec::new();
        if from.recompute == Recompute::None {
            let edit = |r: &mut Recipe| r.recompute = Recompute::NormSwiglu;
            kinds.push(vec![change("--set recompute=norm_swiglu".into(), "the same results, slower", &edit)]);
        }
        if from.compat != Compat::Off {
            return kinds; // all else is part of what is reproduced
        }
        let rows = from.batch_size * from.grad_accum;
        let smaller = (1..from.batch_size).rev().filter(|&size| rows.is_multiple_of(size)).map(|size| {
            let flags = format!("--batch-size {size} --grad-accum {}", rows / size);
            let edit = |r: &mut Recipe| (r.batch_size, r.grad_accum) = (size, rows / size);
            change(flags, "the same rows in each step, in more passes", &edit)
        });
        kinds.push(smaller.collect());
        if from.optimizer == OptimizerKind::AdamW {
            let edit = |r: &mut Recipe| r.optimizer = OptimizerKind::AdamW8bit;
            kinds.push(vec![change("--optimizer adamw_8bit".into(), "moments in 8 bits", &edit)]);
        } else if from.embedding_state == EmbeddingState::Fp32 && from.lora_rank == 0 {
            let edit = |r: &mut Recipe| r.embedding_state = EmbeddingState::EightBit;
            kinds.push(vec![change(
                "--set embedding_state=8bit".into(),
                "the embedding's moments too",
                &edit,
            )]);
        }
        if from.lora_rank == 0 {
            let edit = |r: &mut Recipe| r.lora_rank = 16;
            kinds.push(vec![change(
                "--set lora_rank=16".into(),
                "adapters are trained, the weights stay",
                &edit,
            )]);
        }
        let longest =
            self.lengths.first().copied().unwrap_or(0).max(self.run.longest_held_out()).min(from.max_length);
        let least = self.shortest.div_ceil(LENGTH_STEP).max(1);
        let shorter = (least..longest.div_ceil(LENGTH_STEP)).rev().map(|n| {
            let tokens = n * LENGTH_STEP;
            change(format!("--max-length {tokens}"), "longer rows are cut", &|r| r.max_length = tokens)
        });
        kinds.push(shorter.collect());
        kinds
    }

    /// The smallest change of a kind whose plan fits, with its bytes.
    fn first_that_fits(&self, mut changes: Vec<Change>) -> Result<Option<(Change, usize)>> {
        // Each needs less than the one before it.
        let (mut low, mut high) = (0, changes.len());
        while low < high {
            let middle = usize::midpoint(low, high);
            if self.fits(&changes[middle].recipe)? {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        if low == changes.len() {
            return Ok(None);
        }
        let change = changes.swap_remove(low);
        let bytes = self.bytes(&change.recipe)?;
        Ok(Some((change, bytes)))
    }

    /// The changes of all kinds one after the other, each to its end, until it fits.
    fn together(&self) -> Result<Option<(Change, usize)>> {
        let mut all =
            Change { recipe: self.run.recipe.clone(), flags: String::new(), price: "all of these together" };
        // A kind is gone once it was taken to its end.
        while let Some(changes) = self.changes(&all.recipe).into_iter().find(|changes| !changes.is_empty()) {
            let last = changes.last().cloned().expect("it is not empty");
            let fitting = self.first_that_fits(changes)?;
            let bytes = fitting.as_ref().map(|(_, bytes)| *bytes);
            let change = fitting.map_or(last, |(change, _)| change);
            all.recipe = change.recipe;
            all.flags = format!("{} {}", all.flags, change.flags).trim_start().to_owned();
            if let Some(bytes) = bytes {
                return Ok(Some((all, bytes)));
            }
        }
        Ok(None)
    }

    fn fits(&self, recipe: &Recipe) -> Result<bool> {
        Ok(self.bytes(recipe)? <= self.limit)
    }

    /// Bytes of the plan that the run would have with this recipe, or a little more: rows in the given order are taken to meet
    /// as unluckily as shuffled ones.
    fn bytes(&self, recipe: &Recipe) -> Result<usize> {
        let run = self.run;
        let cut = |tokens: usize| tokens.min(recipe.max_length);
        let held_out = cut(run.longest_held_out());
        let micro_batch = if recipe.packing {
            recipe.max_length * recipe.batch_size
        } else {
            self.lengths.iter().take(recipe.batch_size).map(|&tokens| cut(tokens)).sum()
        };
        let tokens = micro_batch.max(held_out);
        let positions = cut(self.lengths.first().copied().unwrap_or(0)).max(held_out);
        let mut capacity = Capacity { tokens, sequences: tokens, positions };
        let mut sampler = run.sampler.clone();
        if let Some(sampler) = &sampler {
            capacity = sampler.widen(capacity, run.pretrained.config.max_position_embeddings);
        }
        let mut plan = Plan::default();
        let trained = Trained::plan(&mut plan, recipe, &run.pretrained.config, run.dtype, capacity);
        if let Some(sampler) = &mut sampler {
            sampler.plan(&mut plan, &trained.model);
        }
        backend::plan_workspace(backend::Target::of(recipe)?, run.dtype, &mut plan)?;
        Ok(plan.bytes())
    }
}

/// The smallest number of tokens that at least half of the rows are not longer than.
fn median(data: &Dataset) -> usize {
    let mut lengths: Vec<usize> = (0..data.examples.len()).map(|i| data.examples.tokens_of(i)).collect();
    lengths.sort_unstable();
    lengths[(lengths.len() - 1) / 2]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::RecipeOverrides;
    use crate::trainer::Sources;
    use std::path::Path;

    fn prepared(data: &Path, sets: &[String]) -> Run {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-smollm.gguf");
        let mut all = vec![format!("model={}", model.display()), format!("data={}", data.display())];
        all.extend(["device=cpu", "precision=fp32"].map(str::to_owned));
        all.extend_from_slice(sets);
        let recipe = Recipe::resolve(None, &all, &RecipeOverrides::default()).unwrap();
        let sources = Sources::local(&recipe).unwrap();
        Run::prepare(recipe, sources).unwrap()
    }

    fn bytes(run: &Run) -> usize {
        run.planned_bytes()
    }

    /// Rows of 20 to 180 tokens or so.
    fn rows(folder: &Path) -> std::path::PathBuf {
        let path = folder.join("rows.jsonl");
        let line = |i: usize| {
            let words = "and so on ".repeat(i);
            format!("{{\"prompt\": \"Go on {i}\", \"response\": \"{words}\"}}\n")
        };
        std::fs::write(&path, (1..40).map(line).collect::<String>()).unwrap();
        path
    }

    /// `--batch-size 2 --set recompute=none` as `batch_size=2`, `recompute=none`.
    fn as_sets(flags: &str) -> Vec<String> {
        let words: Vec<&str> = flags.split_whitespace().collect();
        let pairs = words.chunks(2).map(|pair| match pair {
            ["--set", set] => (*set).to_owned(),
            [flag, value] => format!("{}={value}", flag.trim_start_matches("--").replace('-', "_")),
            other => panic!("{other:?}"),
        });
        pairs.collect()
    }

    /// What is proposed is prepared anew, tokens and all, and its real plan fits and has the bytes that were said.
    #[test]
    fn following_the_advice_works() {
        let folder = tempfile::tempdir().unwrap();
        let rows = rows(folder.path());
        let long = folder.path().join("long.jsonl");
        let row = format!("{{\"prompt\": \"Go on\", \"response\": \"{}\"}}\n", "on and on ".repeat(30));
        std::fs::write(&long, row).unwrap();
        let held_out = format!("eval_data={}", long.display());
        let short = folder.path().join("short.jsonl");
        let line = |i: usize| format!("{{\"prompt\": \"{i}\", \"response\": \"yes\"}}\n");
        std::fs::write(&short, (1..40).map(line).collect::<String>()).unwrap();
        let trained = format!("data={}", short.display());
        let (mut single, mut together, mut nothing) = (0, 0, 0);
        for base in [
            &["batch_size=8", "grad_accum=3", "recompute=none", "optimizer=adamw"][..],
            &["batch_size=4", "shuffle=false", "sample_every=0"],
            &["batch_size=3", "packing=true", "max_length=192"],
            &["batch_size=1", "grad_accum=1", "eval_share=0.4", "optimizer=adamw"],
            &["batch_size=2", "grad_accum=1", "optimizer=adamw", &trained, &held_out],
        ] {
            let base: Vec<String> = base.iter().map(|set| (*set).to_owned()).collect();
            let run = prepared(&rows, &base);
            let whole = bytes(&run);
            for limit in (1..20).map(|twentieths| whole * twentieths / 20) {
                let fit = Fit::new(&run, limit as u64);
                let text = fit.remedies().unwrap();
                let lines: Vec<&str> = text.lines().skip(1).collect();
                nothing += usize::from(lines.is_empty());
                for line in lines {
                    let (flags, about) = line.trim().split_once("  (").unwrap();
                    single += usize::from(!about.contains("together"));
                    together += usize::from(about.contains("together"));
                    let changed = prepared(&rows, &[&base[..], &as_sets(flags)].concat());
                    assert!(bytes(&changed) <= limit, "{base:?}, {flags}: {} of {limit}", bytes(&changed));
                    // Other kinds of change are told to the byte; shorter rows may fill packed ones less.
                    let said: usize = about.split(' ').next().unwrap().parse().unwrap();
                    assert!(bytes(&changed) >> 20 <= said, "{base:?}, {flags}: {about}");
                }
                if let Some(batch) = fit.largest_batch().unwrap() {
                    let sets = [&base[..], &[format!("batch_size={batch}")]].concat();
                    assert!(bytes(&prepared(&rows, &sets)) <= limit, "{base:?}: batch of {batch}");
                }
            }
        }
        assert!(single > 20 && together > 3 && nothing > 3, "{single}, {together}, {nothing}");
    }

    /// One row more is more than fits.
    #[test]
    fn the_largest_batch_is_the_largest() {
        let folder = tempfile::tempdir().unwrap();
        let rows = rows(folder.path());
        let run = prepared(&rows, &["eval_share=0".into(), "sample_every=0".into()]);
        for wanted in [1, 2, 7, 30] {
            let limit = bytes(&prepared(
                &rows,
                &["eval_share=0".into(), "sample_every=0".into(), format!("batch_size={wanted}")],
            ));
            assert_eq!(Fit::new(&run, limit as u64).largest_batch().unwrap(), Some(wanted));
            assert_eq!(
                Fit::new(&run, limit as u64 - 1).largest_batch().unwrap(),
                (wanted > 1).then(|| wanted - 1)
            );
        }
        assert_eq!(Fit::new(&run, u64::MAX).largest_batch().unwrap(), Some(39));
    }
}
