//! `smolten eval`.

use super::{EngineArguments, fetch, with_threads};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use smolten::arena::Plan;
use smolten::backend;
use smolten::dataset::Audit;
use smolten::error::Result;
use smolten::eval::{self, Evaluation};
use smolten::model::{Model, Purpose};
use smolten::pretrained::Pretrained;
use smolten::recipe::{Recipe, RecipeOverrides};
use smolten::trainer::load_dataset;

/// Flags of `eval`.
#[derive(Args)]
pub struct EvalArguments {
    /// A Hugging Face folder, a .gguf file, or the id of a model on the hub: org/name[@revision]
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// Rows to run: a .jsonl, .json, .csv or .parquet file, the id of a data set on the hub, or builtin:reasoning
    #[arg(long, value_name = "DATA")]
    data: String,
    /// Which tokens count: completion, assistant (every assistant turn) or all [default: completion]
    #[arg(long, value_name = "TOKENS")]
    loss_on: Option<String>,
    /// Tokens kept of a row, from its start [default: 512]
    #[arg(long, value_name = "TOKENS")]
    max_length: Option<u64>,
    /// Print one JSON object: loss, perplexity, tokens, supervised_tokens, mean_token_accuracy
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArguments,
}

/// Opens model and rows, runs them once, and prints what they cost.
pub fn run(arguments: &EvalArguments) -> Result<()> {
    let flags = RecipeOverrides {
        model: Some(arguments.model.clone()),
        data: Some(arguments.data.clone()),
        loss_on: arguments.loss_on.clone(),
        max_length: arguments.max_length,
        ..arguments.engine.overrides()
    };
    // The same words, ranges and error texts as for a run.
    let recipe = Recipe::resolve(None, &[], &flags)?;
    with_threads(recipe.threads, || evaluate(&recipe, arguments.json))
}

fn evaluate(recipe: &Recipe, as_json: bool) -> Result<()> {
    let pretrained = Pretrained::open(&fetch::model(&recipe.model)?)?;
    let dtype = backend::precision(recipe.device, recipe.precision, &pretrained.config)?;
    let source = fetch::data(&recipe.data)?;
    let data = load_dataset(recipe, &source, &pretrained, &pretrained.template)?;
    let (examples, all) = (&data.examples, (0..data.examples.len()).collect::<Vec<_>>());
    let capacity = eval::capacity(examples, &all);
    let mut plan = Plan::default();
    let model = Model::plan(&mut plan, &pretrained.config, dtype, capacity, Purpose::Inference);
    let mut backend = backend::open(recipe.device, &plan, dtype)?;
    model.load(&mut *backend, |parameter, out| pretrained.weights.read(parameter, out))?;

    let bar = token_bar(data.audit.tokens);
    let batches = eval::micro_batches(examples, &all, capacity.tokens);
    let batches = batches.inspect(|batch| bar.inc(batch.tokens() as u64));
    let evaluation = eval::evaluate(&model, &mut *backend, batches)?;
    bar.finish_and_clear();
    if as_json {
        say!("{}", serde_json::to_string(&evaluation).expect("plain data"));
    } else {
        let megas = pretrained.config.num_parameters() as f64 / 1e6;
        say!("model: {} ({megas:.1} M parameters)", recipe.model);
        say!("data: {}: {}", recipe.data, describe(&data.audit));
        print(&evaluation);
    }
    Ok(())
}

/// A bar over tokens on standard error, where that is a terminal.
pub(super) fn token_bar(tokens: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30.green} {pos}/{len} tokens, {eta} left");
    ProgressBar::new(tokens as u64).with_style(style.expect("the template is well formed"))
}

fn describe(stats: &Audit) -> String {
    let share = 100.0 * stats.supervised_tokens as f64 / stats.tokens as f64;
    let mut text = format!("{} rows, {} tokens, {share:.0} % of them in the loss", stats.rows, stats.tokens);
    for (count, what) in [
        (stats.truncated, "rows cut to --max-length"),
        (stats.dropped, "rows left out, as nothing in them counts"),
    ] {
        if count > 0 {
            text += &format!("; {count} {what}");
        }
    }
    text
}

fn print(e: &Evaluation) {
    say!("loss: {:.4} nats a token, mean over {} tokens", e.loss, e.supervised_tokens);
    say!("perplexity: {:.2}", e.perplexity);
    say!("token accuracy: {:.1} % had the largest logit", 100.0 * e.mean_token_accuracy);
}
