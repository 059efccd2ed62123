//! `smolten compare`: two models, the same prompts, template, decoding and seed; of runs' records see `overlay`.

mod difference;
mod held_out;
mod page;
mod prompts;
mod report;
mod side;

use super::decoding::DecodingArguments;
use super::{EngineArguments, fetch, overlay, with_threads};
use clap::Args;
use held_out::{HeldOut, Record};
use prompts::Prompt;
use side::{Input, Side};
use smolten::error::Result;
use smolten::pretrained::Pretrained;
use smolten::recipe::EngineChoice;
use std::path::PathBuf;

/// What the figures are, under the flags.
const FIGURES: &str = "\
Figures, over all answers of a model:
  ended the turn    answers that the model ended itself, within --max-new-tokens
  mean new tokens   without the token that ends the turn
  repeated 4-grams  of all runs of four tokens, the share that stood earlier in the same answer
  held-out loss     mean over the tokens in the loss, as smolten eval has it
  right answers     of the rows asked with --answers, as smolten eval has it
Differences come with an interval at 95 %, a paired bootstrap over rows; where it holds 0, none was seen.";

/// Flags of `compare`.
#[derive(Args)]
#[command(after_help = FIGURES)]
pub struct CompareArguments {
    /// Instead of two models: folders of runs, whose figures, recipes and losses are compared, on the screen and in a
    /// page
    #[arg(value_name = "RUN", num_args = 2.., conflicts_with_all = ["base", "tuned", "prompts", "data", "json"])]
    runs: Vec<PathBuf>,
    /// Where the page of the runs goes [default: compare.html]
    #[arg(long, value_name = "FILE", requires = "runs")]
    out: Option<PathBuf>,
    /// The model before: a Hugging Face folder, a .gguf file, or the id of a model on the hub: org/name[@revision]
    #[arg(long, value_name = "MODEL", required_unless_present = "runs")]
    base: Option<String>,
    /// The model after, named alike; its chat template is used for both
    #[arg(long, value_name = "MODEL", required_unless_present = "runs")]
    tuned: Option<String>,
    /// Prompts, one a line, or a .jsonl file with a field "prompt" [default: the bundled ones]
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Rows for the held-out loss [default: those that the tuned model's run held out, from its run.json]
    #[arg(long, value_name = "DATA")]
    data: Option<String>,
    /// Also answer the first N of these rows, and count the answers that are right
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    answers: Option<u64>,
    /// Print one JSON object: prompts, answers and figures of both models, and their difference
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    decoding: DecodingArguments,
    #[command(flatten)]
    engine: EngineArguments,
}

/// What both models are given.
struct Matched {
    prompts: Vec<Prompt>,
    /// Turn that the tuned model was trained with.
    system: Option<String>,
    decoding: DecodingArguments,
    /// Whether the base model's own template is that of the tuned one, which both get.
    same_template: bool,
    /// Whether both read a text as the same tokens.
    same_tokens: bool,
    /// The held-out rows, or why there are none.
    held_out: std::result::Result<HeldOut, String>,
    /// How many of them are asked as questions.
    questions: usize,
}

/// Opens both models and checks everything, then runs one after the other and prints both.
pub fn run(arguments: &CompareArguments) -> Result<()> {
    if !arguments.runs.is_empty() {
        return overlay::run(&arguments.runs, arguments.out.as_deref());
    }
    let choice = EngineChoice::resolve(&arguments.engine.overrides())?;
    with_threads(choice.threads, || compare(arguments, choice))
}

fn compare(arguments: &CompareArguments, choice: EngineChoice) -> Result<()> {
    let CompareArguments { base: Some(base), tuned: Some(tuned), data, .. } = arguments else {
        unreachable!("the command line asks for both, or for runs");
    };
    let prompts = prompts::read(arguments.prompts.as_deref())?;
    let places = [fetch::model(base)?, fetch::model(tuned)?];
    let models = [Pretrained::open(&places[0])?, Pretrained::open(&places[1])?];
    let [of_base, of_tuned] = &models;
    let record = Record::find(&places[1])?;
    let held_out = match data {
        Some(data) => Ok(HeldOut::of_data(data, record.as_ref(), tuned)?),
        None => HeldOut::of_run(record.as_ref(), tuned),
    };
    let matched = Matched {
        prompts,
        system: record.as_ref().and_then(|r| r.recipe.system.clone()),
        decoding: arguments.decoding,
        same_template: of_base.template.source() == of_tuned.template.source(),
        same_tokens: of_base.tokenizer.to_json()? == of_tuned.tokenizer.to_json()?,
        held_out,
        questions: arguments.answers.map_or(0, |n| usize::try_from(n).unwrap_or(usize::MAX)),
    };
    // Whatever is wrong with prompts or rows shows before any weight is read.
    let inputs = matched.inputs(&models)?;
    if !arguments.json {
        say!("base:  {base}\ntuned: {tuned}");
        say!("{}", report::conditions(&matched));
    }
    let [base_input, tuned_input] = &inputs;
    let base = Side::run(base, "base", of_base, base_input, &matched.decoding, choice)?;
    let tuned = Side::run(tuned, "tuned", of_tuned, tuned_input, &matched.decoding, choice)?;
    if arguments.json {
        say!("{}", report::document(&matched, tuned_input.exam.as_ref(), &base, &tuned));
    } else {
        say!("{}", report::page(&matched, &base, &tuned, page::width()));
    }
    Ok(())
}

impl Matched {
    /// The same for both, in the tokens of each: of the base model, and of the tuned one.
    fn inputs(&self, models: &[Pretrained; 2]) -> Result<[Input; 2]> {
        let [base, tuned] = models;
        let rows = |own: &Pretrained| self.held_out.as_ref().ok().map(|h| h.encode(own, tuned)).transpose();
        let of_tuned = rows(tuned)?;
        let of_base = if self.same_tokens { of_tuned.clone() } else { rows(base)? };
        Ok([Input::new(self, base, tuned, tuned, of_base)?, Input::new(self, tuned, base, tuned, of_tuned)?])
    }
}
