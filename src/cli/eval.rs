//! `smolten eval`.

use super::answers::{self, Answered};
use super::{EngineArguments, fetch, with_threads};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use smolten::arena::Plan;
use smolten::backend::{self, Backend};
use smolten::batch::Examples;
use smolten::dataset::{Audit, Question};
use smolten::error::Result;
use smolten::eval::{self, Exam, FinalAnswer, Interval, RESAMPLES, Rows};
use smolten::generate::{BatchDecoder, Continuation, Sampling};
use smolten::model::{Capacity, Model, Purpose};
use smolten::pretrained::Pretrained;
use smolten::recipe::{Recipe, RecipeOverrides};
use smolten::trainer::load_dataset;

/// What the figures are, under the flags.
const FIGURES: &str = "\
Intervals are at 95 %. Those of loss and perplexity are a bootstrap over rows (percentile, 10000 samples, always the
same ones), as the tokens of a row hang together; those of right answers are Wilson's.

An answer, in a response and in the model's text alike, is what stands behind the last ####; without one, in the last
\\boxed{}; without one, the last number. Numbers are right when their exact values are equal, however they are written
($1,000.00, 1000, 50 %, 1/2, \\frac{1}{2}, 0.5, 5e-1); anything else in a box when it is the same text.";

/// Flags of `eval`.
#[derive(Args)]
#[command(after_help = FIGURES)]
pub struct EvalArguments {
    /// A Hugging Face folder, an adapter of PEFT, a .gguf file, or the id of a model on the hub: org/name[@revision]
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
    /// Also answer the first N rows, greedily, and count the answers that are right
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    answers: Option<u64>,
    /// Tokens at most in an answer
    #[arg(long, value_name = "N", default_value_t = 256, requires = "answers")]
    max_new_tokens: usize,
    /// Print one JSON object: loss, perplexity, tokens, supervised_tokens, mean_token_accuracy, rows, intervals, answers
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
    with_threads(recipe.threads, || evaluate(&recipe, arguments))
}

fn evaluate(recipe: &Recipe, arguments: &EvalArguments) -> Result<()> {
    let pretrained = Pretrained::open(&fetch::model(&recipe.model)?)?;
    let dtype = backend::precision(recipe.device, recipe.precision, &pretrained.config)?;
    let source = fetch::data(&recipe.data)?;
    let data = load_dataset(recipe, &source, &pretrained, &pretrained.template)?;
    let (examples, all) = (&data.examples, (0..data.examples.len()).collect::<Vec<_>>());
    let most = arguments.answers.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    let exam = most.map(|most| {
        answers::exam(recipe, &source, &pretrained, &pretrained.template, (examples, &all), most)
    });
    let exam = exam.transpose()?;
    let prompts = exam.as_ref().map(answers::prompts).unwrap_or_default();
    let limit = pretrained.config.max_position_embeddings;
    let room = exam.as_ref().map(|_| BatchDecoder::capacity(&prompts, arguments.max_new_tokens, limit));
    let capacity = eval::capacity(examples, &all);
    let capacity = room.map_or(capacity, |room| capacity.max(room));
    let mut plan = Plan::default();
    let model = Model::plan(&mut plan, &pretrained.config, dtype, capacity, Purpose::Inference);
    let decoder = room.map(|room| BatchDecoder::plan(&mut plan, &model, room));
    let mut backend = backend::open(recipe.device, &plan, dtype)?;
    model.load(&mut *backend, |parameter, out| pretrained.weights.read(parameter, out))?;

    let rows = losses(&model, &mut *backend, examples, &all, capacity)?;
    let how = Continuation {
        sampling: Sampling::GREEDY,
        max_new_tokens: arguments.max_new_tokens,
        stop_ids: &pretrained.stop_ids,
    };
    let answered = match (&exam, &decoder) {
        (Some(exam), Some(decoder)) => {
            let answers = answers::all(&model, &mut *backend, decoder, &prompts, &how, "questions")?;
            Some(Answered::new(exam, answers, &pretrained)?)
        }
        _ => None,
    };
    if arguments.json {
        let answered = exam.as_ref().zip(answered.as_ref());
        say!("{}", document(&rows, answered, arguments.max_new_tokens));
        return Ok(());
    }
    let megas = pretrained.config.num_parameters() as f64 / 1e6;
    say!("model: {} ({megas:.1} M parameters)", recipe.model);
    say!("data: {}: {}", recipe.data, describe(&data.audit));
    print(&rows);
    if let Some(answered) = &answered {
        say!("{}", answers::lines(&answered.accuracy, &answered.figures()).join("\n"));
        say!("  decoding: greedy, up to {} new tokens", arguments.max_new_tokens);
    }
    Ok(())
}

/// The rows at `indices` through the model, with a bar.
pub(super) fn losses(
    model: &Model,
    backend: &mut dyn Backend,
    examples: &Examples,
    indices: &[usize],
    capacity: Capacity,
) -> Result<Rows> {
    let bar = token_bar(indices.iter().map(|&i| examples.tokens_of(i)).sum());
    let batches = eval::micro_batches(examples, indices, capacity.tokens);
    let batches = batches.inspect(|batch| bar.inc(batch.tokens() as u64));
    let rows = eval::evaluate_rows(model, backend, batches)?;
    bar.finish_and_clear();
    Ok(rows)
}

/// A bar over tokens on standard error, where that is a terminal.
fn token_bar(tokens: usize) -> ProgressBar {
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

fn print(rows: &Rows) {
    let e = &rows.evaluation;
    let between = |interval: Option<Interval>, places: usize| {
        let text = |i: Interval| format!(" (95 % interval {:.places$} to {:.places$})", i.low, i.high);
        interval.map(text).unwrap_or_default()
    };
    let of_loss = between(rows.loss_interval, 4);
    say!("loss: {:.4} nats a token{of_loss}, mean over {} tokens", e.loss, e.supervised_tokens);
    say!("perplexity: {:.2}{}", e.perplexity, between(rows.perplexity_interval, 2));
    say!("token accuracy: {:.1} % had the largest logit", 100.0 * e.mean_token_accuracy);
    match rows.loss_interval {
        Some(_) => {
            say!("intervals: bootstrap over the {} rows, {RESAMPLES} samples{}", rows.count, few(rows.count))
        }
        None => say!("intervals: none, as a single row shows no spread"),
    }
}

/// A word of caution where it is due.
pub(super) fn few(rows: usize) -> &'static str {
    /// Rows from which percentile intervals hold about what they promise.
    const ENOUGH: usize = 20;
    if rows < ENOUGH { "; of so few rows they are somewhat too narrow" } else { "" }
}

/// Everything as one JSON object.
fn document(rows: &Rows, answered: Option<(&Exam, &Answered)>, max_new_tokens: usize) -> Value {
    let mut document = json!(rows);
    if let Some((exam, answered)) = answered {
        let mut answers = json!(answered.accuracy);
        merge(&mut answers, json!(answered.figures()));
        answers["max_new_tokens"] = max_new_tokens.into();
        let question = |(i, (question, reference)): (usize, &(Question, FinalAnswer))| {
            let mut one = json!({ "place": question.place, "reference": answers::found(Some(reference)) });
            merge(&mut one, answered.document(i));
            one
        };
        answers["questions"] = exam.questions.iter().enumerate().map(question).collect();
        document["answers"] = answers;
    }
    document
}

/// The fields of `more` behind those of `object`.
fn merge(object: &mut Value, more: Value) {
    if let (Some(object), Value::Object(more)) = (object.as_object_mut(), more) {
        object.extend(more);
    }
}
