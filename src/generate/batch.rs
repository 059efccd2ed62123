//! Several texts at once: each weight that comes from memory is used for all of them.
//!
//! A decoding step takes as long as the weights take from memory, and a few rows more cost it little. Prompts, whose
//! lengths differ, go through the model alone; then the texts go on together, a token of each in a step. A text that ends
//! leaves the batch, and the next prompt takes its place.

use super::room::Room;
use super::sampling::Sampler;
use super::{Answer, Continuation, PREFILL, StopReason};
use crate::arena::Plan;
use crate::backend::{Backend, CachedSequence};
use crate::error::Result;
use crate::model::{Capacity, Model};
use crate::ops::awake::awake;
use crate::ops::linear::few;

/// Caches of several sequences.
#[derive(Clone, Debug)]
pub struct BatchDecoder {
    room: Room,
    slots: usize,
}

/// A text that is being written.
struct Stream {
    /// Which of the prompts it continues.
    prompt: usize,
    prompt_tokens: usize,
    ids: Vec<u32>,
    sampler: Sampler,
}

impl BatchDecoder {
    /// Texts at a time. Up to this many rows a product of the CPU adds up as it does for one, so a text does not depend
    /// on the others in any bit, and is the one that [`super::Decoder`] writes.
    pub const SLOTS: usize = few::MOST_ROWS;

    /// What a model must have room for to continue `prompts`, in a context of `limit` tokens.
    pub fn capacity(prompts: &[Vec<u32>], max_new_tokens: usize, limit: usize) -> Capacity {
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let positions = limit.min(longest.saturating_add(max_new_tokens));
        let sequences = Self::SLOTS.min(prompts.len());
        Capacity { tokens: PREFILL.min(positions).max(sequences), sequences, positions }
    }

    /// Plans caches for a model that has such room.
    pub fn plan(plan: &mut Plan, model: &Model, capacity: Capacity) -> Self {
        let slots = capacity.sequences;
        Self { room: Room::plan(plan, model, capacity.positions, slots), slots }
    }

    /// Continues every prompt, each from the same seed; `on_token` is called for each new token, whose text it may
    /// be.
    ///
    /// # Errors
    /// [`Error::Input`](crate::error::Error::Input) for an empty or too long prompt; those of the backend.
    pub fn generate(
        &self,
        model: &Model,
        backend: &mut dyn Backend,
        prompts: &[Vec<u32>],
        how: &Continuation<'_>,
        on_token: impl FnMut(),
    ) -> Result<Vec<Answer>> {
        prompts.iter().try_for_each(|prompt| self.room.expect(prompt))?;
        awake(|| self.answers(model, backend, prompts, how, on_token))
    }

    fn answers(
        &self,
        model: &Model,
        backend: &mut dyn Backend,
        prompts: &[Vec<u32>],
        how: &Continuation<'_>,
        mut on_token: impl FnMut(),
    ) -> Result<Vec<Answer>> {
        let mut answers: Vec<Option<Answer>> = vec![None; prompts.len()];
        let mut slots: Vec<Option<Stream>> = (0..self.slots).map(|_| None).collect();
        let mut waiting = 0..prompts.len();
        loop {
            for (slot, place) in slots.iter_mut().enumerate() {
                while place.is_none()
                    && let Some(next) = waiting.next()
                {
                    let mut stream = Stream::new(next, &prompts[next], how);
                    let end = match stream.end_by_length(how, &self.room) {
                        None => {
                            let mut logits = self.prefill(model, backend, &stream.ids, slot)?;
                            stream.take(&mut logits, how, &self.room, &mut on_token)
                        }
                        end => end,
                    };
                    match end {
                        Some(end) => answers[next] = Some(stream.answer(end)),
                        None => *place = Some(stream),
                    }
                }
            }
            if slots.iter().all(Option::is_none) {
                return Ok(answers
                    .into_iter()
                    .map(|answer| answer.expect("every prompt was taken"))
                    .collect());
            }
            let mut logits = self.step(model, backend, &slots)?;
            let mut rows = logits.chunks_exact_mut(model.config.vocab_size);
            for place in &mut slots {
                let Some(stream) = place else { continue };
                let logits = rows.next().expect("a row for each stream");
                if let Some(end) = stream.take(logits, how, &self.room, &mut on_token) {
                    answers[stream.prompt] = Some(stream.answer(end));
                    *place = None;
                }
            }
        }
    }

    /// A prompt into its place; the logits behind it.
    fn prefill(
        &self,
        model: &Model,
        backend: &mut dyn Backend,
        ids: &[u32],
        slot: usize,
    ) -> Result<Vec<f32>> {
        for (i, chunk) in ids.chunks(self.room.chunk).enumerate() {
            let sequence = CachedSequence { slot, past: i * self.room.chunk };
            self.room.extend(model, backend, chunk, &[sequence])?;
        }
        self.room.logits(model, backend, 1)
    }

    /// The last token of every stream; the logits behind each.
    fn step(&self, model: &Model, backend: &mut dyn Backend, slots: &[Option<Stream>]) -> Result<Vec<f32>> {
        let streams = || slots.iter().enumerate().filter_map(|(slot, s)| Some((slot, s.as_ref()?)));
        let sequences: Vec<_> =
            streams().map(|(slot, s)| CachedSequence { slot, past: s.ids.len() - 1 }).collect();
        let ids: Vec<u32> = streams().map(|(_, s)| s.ids[s.ids.len() - 1]).collect();
        self.room.extend(model, backend, &ids, &sequences)?;
        self.room.logits(model, backend, ids.len())
    }
}

impl Stream {
    fn new(prompt: usize, ids: &[u32], how: &Continuation<'_>) -> Self {
        Self { prompt, prompt_tokens: ids.len(), ids: ids.to_vec(), sampler: Sampler::new(how.sampling) }
    }

    fn end_by_length(&self, how: &Continuation<'_>, room: &Room) -> Option<StopReason> {
        let full =
            self.ids.len() - self.prompt_tokens >= how.max_new_tokens || self.ids.len() >= room.positions;
        full.then_some(StopReason::Length)
    }

    /// Draws the next token; why the text ends, if it does.
    fn take(
        &mut self,
        logits: &mut [f32],
        how: &Continuation<'_>,
        room: &Room,
        on_token: &mut impl FnMut(),
    ) -> Option<StopReason> {
        let next = self.sampler.next(logits, &self.ids);
        if how.stop_ids.contains(&next) {
            return Some(StopReason::Stop);
        }
        self.ids.push(next);
        on_token();
        self.end_by_length(how, room)
    }

    fn answer(&mut self, stop_reason: StopReason) -> Answer {
        Answer { ids: self.ids.split_off(self.prompt_tokens), stop_reason }
    }
}
