//! One of the two models: what it is given, and what it makes of it.

use super::Matched;
use crate::cli::decoding::DecodingArguments;
use crate::cli::eval::token_bar;
use indicatif::{ProgressBar, ProgressStyle};
use smolten::arena::Plan;
use smolten::backend::{self, Backend};
use smolten::batch::Examples;
use smolten::error::{Error, Result};
use smolten::eval::{self, Answer, AnswerFigures, Evaluation};
use smolten::generate::Decoder;
use smolten::model::{Capacity, Model, Purpose};
use smolten::pretrained::Pretrained;
use smolten::recipe::EngineChoice;
use smolten::template::Message;

/// Tokens of a prompt that go through a model together.
const PREFILL: usize = 256;

/// Prompts and held-out rows in the tokens of one model.
pub struct Input {
    prompts: Vec<Vec<u32>>,
    /// A store of rows, and which of them were held out.
    held_out: Option<(Examples, Vec<usize>)>,
    /// Ends of a turn for either model, as this one has them.
    stop_ids: Vec<u32>,
}

impl Input {
    /// In the tokens of `own`; `other` is the other model, and the template that of `tuned`.
    pub fn new(
        matched: &Matched,
        own: &Pretrained,
        other: &Pretrained,
        tuned: &Pretrained,
        held_out: Option<(Examples, Vec<usize>)>,
    ) -> Result<Self> {
        let limit = own.config.max_position_embeddings;
        let mut prompts = Vec::new();
        for prompt in &matched.prompts {
            let mut turns: Vec<Message> =
                matched.system.iter().map(|text| Message::new("system", text)).collect();
            turns.push(Message::new("user", &prompt.text));
            let ids = own.tokenizer.encode(&tuned.template.render(&turns, true)?, false)?;
            if ids.is_empty() || ids.len() >= limit {
                let found = format!("{} tokens, and a model's context holds 1 to {limit}", ids.len());
                return Err(Error::input(&prompt.place, found, "shorten this prompt"));
            }
            prompts.push(ids);
        }
        let spelt = |id: &u32| own.tokenizer.id(&other.tokenizer.token(*id)?);
        let mut stop_ids = own.stop_ids.clone();
        stop_ids.extend(other.stop_ids.iter().filter_map(spelt));
        Ok(Self { prompts, held_out, stop_ids })
    }

    /// Room for the longest prompt and its answer, and for the held-out rows.
    fn capacity(&self, max_new_tokens: usize, limit: usize) -> Capacity {
        let longest = self.prompts.iter().map(Vec::len).max().unwrap_or(0);
        let positions = limit.min(longest.saturating_add(max_new_tokens));
        let rows = self.held_out.as_ref().map(|(examples, indices)| eval::capacity(examples, indices));
        let rows = rows.unwrap_or(Capacity { tokens: 0, sequences: 0, positions: 0 });
        Capacity {
            tokens: PREFILL.min(positions).max(rows.tokens),
            sequences: rows.sequences.max(1),
            positions: positions.max(rows.positions),
        }
    }
}

/// What one model made of its input.
pub struct Side {
    /// As it was named.
    pub model: String,
    /// The answers as text.
    pub texts: Vec<String>,
    /// The same as tokens.
    pub answers: Vec<Answer>,
    /// Figures about them.
    pub figures: AnswerFigures,
    /// Cost of the held-out rows.
    pub held_out: Option<Evaluation>,
}

impl Side {
    /// Loads the model, answers every prompt, runs the held-out rows, and lets go of the memory.
    pub fn run(
        model: &str,
        name: &str,
        pretrained: &Pretrained,
        input: &Input,
        decoding: &DecodingArguments,
        choice: EngineChoice,
    ) -> Result<Self> {
        let config = &pretrained.config;
        let dtype = backend::precision(choice.device, choice.precision, config)?;
        let capacity = input.capacity(decoding.max_new_tokens, config.max_position_embeddings);
        let mut plan = Plan::default();
        let engine = Model::plan(&mut plan, config, dtype, capacity, Purpose::Inference);
        // Each answer ends where the context does, whatever room the rows asked for.
        let decoder = Decoder::plan(&mut plan, &engine, config.max_position_embeddings);
        let mut backend = backend::open(choice.device, &plan, dtype)?;
        engine.load(&mut *backend, |parameter, out| pretrained.weights.read(parameter, out))?;

        let answers = answer(&engine, &mut *backend, decoder, name, input, decoding)?;
        let held_out = match &input.held_out {
            Some((examples, indices)) => {
                let bar = token_bar(indices.iter().map(|&i| examples.tokens_of(i)).sum());
                let batches = eval::micro_batches(examples, indices, capacity.tokens);
                let batches = batches.inspect(|batch| bar.inc(batch.tokens() as u64));
                let evaluation = eval::evaluate(&engine, &mut *backend, batches)?;
                bar.finish_and_clear();
                Some(evaluation)
            }
            None => None,
        };
        let texts = answers.iter().map(|a| pretrained.tokenizer.decode(&a.ids, true));
        let texts = texts.collect::<Result<_>>()?;
        let figures = AnswerFigures::new(&answers);
        Ok(Self { model: model.to_owned(), texts, answers, figures, held_out })
    }
}

/// The answer to every prompt, each from the same seed.
fn answer(
    model: &Model,
    backend: &mut dyn Backend,
    mut decoder: Decoder,
    name: &str,
    input: &Input,
    decoding: &DecodingArguments,
) -> Result<Vec<Answer>> {
    let style = ProgressStyle::with_template("{msg}: {pos} tokens, {per_sec}").expect("well formed");
    let how = decoding.continuation(&input.stop_ids);
    let mut answers = Vec::new();
    for (i, prompt) in input.prompts.iter().enumerate() {
        let bar = ProgressBar::no_length().with_style(style.clone());
        bar.set_message(format!("{name}: answer {} of {}", i + 1, input.prompts.len()));
        let (ids, stop_reason) = decoder.generate(model, backend, prompt, &how, |_| {
            bar.inc(1);
            Ok(())
        })?;
        bar.finish_and_clear();
        answers.push(Answer { ids, stop_reason });
    }
    Ok(answers)
}
