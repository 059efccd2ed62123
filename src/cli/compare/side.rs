//! One of the two models: what it is given, and what it makes of it.

use super::Matched;
use crate::cli::answers::{self, Answered};
use crate::cli::decoding::DecodingArguments;
use crate::cli::eval::losses;
use smolten::arena::Plan;
use smolten::backend;
use smolten::batch::Examples;
use smolten::error::{Error, Result};
use smolten::eval::{self, AnswerFigures, Exam, Rows};
use smolten::generate::{Answer, BatchDecoder};
use smolten::model::{Model, Purpose};
use smolten::pretrained::Pretrained;
use smolten::recipe::EngineChoice;
use smolten::template::Message;

/// Prompts and held-out rows in the tokens of one model.
pub struct Input {
    prompts: Vec<Vec<u32>>,
    /// A store of rows, and which of them were held out.
    held_out: Option<(Examples, Vec<usize>)>,
    /// Rows to answer.
    pub exam: Option<Exam>,
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
        let exam = match (&matched.held_out, &held_out, matched.questions) {
            (_, _, 0) => None,
            (Ok(rows), Some(encoded), most) => Some(rows.exam(own, tuned, encoded, most)?),
            (Err(why), ..) => return Err(Error::input("--answers", why, "name rows with --data")),
            (Ok(_), None, _) => None,
        };
        Ok(Self { prompts, held_out, exam, stop_ids })
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
    /// Figures about them, and the answers to questions.
    pub figures: AnswerFigures,
    /// Cost of the held-out rows.
    pub held_out: Option<Rows>,
    /// Answers to questions.
    pub answered: Option<Answered>,
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
        let questions = input.exam.as_ref().map(answers::prompts).unwrap_or_default();
        let prompts = [&input.prompts[..], &questions].concat();
        let limit = config.max_position_embeddings;
        let room = BatchDecoder::capacity(&prompts, decoding.max_new_tokens, limit);
        let rows = input.held_out.as_ref().map(|(examples, indices)| eval::capacity(examples, indices));
        let capacity = rows.map_or(room, |rows| rows.max(room));
        let mut plan = Plan::default();
        let engine = Model::plan(&mut plan, config, dtype, capacity, Purpose::Inference);
        let decoder = BatchDecoder::plan(&mut plan, &engine, room);
        let mut backend = backend::open(choice.device, &plan, dtype)?;
        engine.load(&mut *backend, |parameter, out| pretrained.weights.read(parameter, out))?;

        let how = decoding.continuation(&input.stop_ids);
        let mut answers = answers::all(&engine, &mut *backend, &decoder, &prompts, &how, name)?;
        let held_out = input
            .held_out
            .as_ref()
            .map(|(examples, indices)| losses(&engine, &mut *backend, examples, indices, capacity));
        let held_out = held_out.transpose()?;
        let figures = AnswerFigures::new(&answers);
        let to_questions = answers.split_off(input.prompts.len());
        let answered =
            input.exam.as_ref().map(|exam| Answered::new(exam, to_questions, pretrained)).transpose()?;
        let texts = answers.iter().map(|a| pretrained.tokenizer.decode(&a.ids, true));
        let texts = texts.collect::<Result<_>>()?;
        Ok(Self { model: model.to_owned(), texts, answers, figures, held_out, answered })
    }
}
