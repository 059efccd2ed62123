//! A text by the model as it is between two steps: how it changes shows sooner than in any loss.

use crate::arena::Plan;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::generate::{Continuation, Decoder, Sampling};
use crate::model::{Capacity, Model};
use crate::pretrained::Pretrained;
use crate::template::Message;

/// Tokens of a sample.
const TOKENS: usize = 48;

/// The prompt that is asked again and again, with room for its answers.
#[derive(Clone)]
pub(super) struct Sampler {
    prompt: Vec<u32>,
    decoder: Option<Decoder>,
}

impl Sampler {
    /// The prompt as one user turn.
    ///
    /// # Errors
    /// [`Error::Input`] when the template refuses it or it leaves no room for an answer.
    pub fn new(pretrained: &Pretrained, prompt: &str, system: Option<&str>) -> Result<Self> {
        let mut messages: Vec<Message> = system.iter().map(|text| Message::new("system", *text)).collect();
        messages.push(Message::new("user", prompt));
        let text = pretrained.template.render(&messages, true)?;
        let prompt = pretrained.tokenizer.encode(&text, false)?;
        let limit = pretrained.config.max_position_embeddings;
        if prompt.len() >= limit {
            let found = format!("{} tokens, and the model's context holds {limit}", prompt.len());
            return Err(Error::input("key `sample_prompt`", found, "shorten it, or set sample_every to 0"));
        }
        Ok(Self { prompt, decoder: None })
    }

    /// Positions that a model needs for prompt and answer.
    pub fn widen(&self, capacity: Capacity, limit: usize) -> Capacity {
        Capacity { positions: capacity.positions.max((self.prompt.len() + TOKENS).min(limit)), ..capacity }
    }

    /// Reserves the cache.
    pub fn plan(&mut self, plan: &mut Plan, model: &Model) {
        self.decoder = Some(Decoder::plan(plan, model, self.prompt.len() + TOKENS));
    }

    /// The answer, always the likeliest token.
    pub fn sample(
        &self,
        model: &Model,
        backend: &mut dyn Backend,
        pretrained: &Pretrained,
    ) -> Result<String> {
        let mut decoder = self.decoder.clone().expect("planned before the run");
        let how = Continuation {
            sampling: Sampling::GREEDY,
            max_new_tokens: TOKENS,
            stop_ids: &pretrained.stop_ids,
        };
        let (ids, _) = decoder.generate(model, backend, &self.prompt, &how, |_| Ok(()))?;
        pretrained.tokenizer.decode(&ids, true)
    }
}
