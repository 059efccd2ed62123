//! Which tokens of a row are learnt.

use std::ops::Range;

use super::{Encoder, Row};
use crate::error::{Error, Result};
use crate::recipe::LossOn;
use crate::template::Message;

/// A row as tokens, before it is cut.
pub(super) struct Tokenised {
    pub ids: Vec<u32>,
    /// Tokens that are learnt: ranges in rising order, apart from one another.
    pub learnt: Vec<Range<usize>>,
    /// A part of the conversation, tokenised alone, is not how the whole begins.
    pub boundary_mismatch: bool,
    /// Whether the tokens of a conversation decode to its text again, where that was asked.
    pub round_trip: Option<bool>,
}

impl Tokenised {
    fn whole(ids: Vec<u32>) -> Self {
        let learnt = std::iter::once(0..ids.len()).collect();
        Self { ids, learnt, boundary_mismatch: false, round_trip: None }
    }
}

/// A conversation as the model sees it.
struct Conversation {
    turns: Vec<Message>,
    /// Turns before those that may be learnt.
    prompt: usize,
    ids: Vec<u32>,
}

impl Encoder<'_> {
    /// The tokens of a row, and which are learnt; `check` also decodes those of a conversation again.
    pub(super) fn tokenise(&self, row: &Row, check: bool) -> Result<Tokenised> {
        match row {
            Row::Text(_) if self.loss_on == LossOn::Assistant => Err(Error::input(
                "an assistant turn to learn",
                "the row is running text, without turns",
                "learn all of it with --loss-on all",
            )),
            Row::Text(text) => {
                let mut ids = self.tokenizer.encode(text, true)?;
                if ids.last().copied() != self.eos {
                    ids.extend(self.eos);
                }
                Ok(Tokenised::whole(ids))
            }
            Row::Completion { prompt, completion } => self.conversation(prompt, completion, check),
            Row::Messages(messages) if self.loss_on != LossOn::Completion => {
                self.conversation(&[], messages, check)
            }
            Row::Messages(messages) => match messages.iter().rposition(|m| m.role == "assistant") {
                Some(last) => self.conversation(&messages[..last], &messages[last..=last], check),
                None => Err(no_assistant()),
            },
        }
    }

    fn conversation(&self, prompt: &[Message], completion: &[Message], check: bool) -> Result<Tokenised> {
        let all: Vec<Message> = prompt.iter().chain(completion).cloned().collect();
        let turns = self.turns(&all);
        let prompt_turns = turns.len() - completion.len();

        let tagged = self.loss_on == LossOn::Assistant && self.template.marks_generation();
        let (text, parts) = match tagged {
            true => self.template.render_generation(&turns)?,
            false => (self.template.render(&turns, false)?, Vec::new()),
        };
        let (ids, offsets) = match tagged {
            true => self.tokenizer.encode_with_offsets(&text)?,
            false => (self.tokenizer.encode(&text, false)?, Vec::new()),
        };
        let whole = Conversation { turns, prompt: prompt_turns, ids };
        let round_trip = match check {
            true => Some(self.tokenizer.decode(&whole.ids, false)? == text),
            false => None,
        };
        let mut tokenised = match self.loss_on {
            LossOn::All => Tokenised::whole(whole.ids),
            LossOn::Completion => self.completion(whole)?,
            LossOn::Assistant if tagged => self.tagged(whole, &parts, &offsets)?,
            LossOn::Assistant => self.assistant_turns(whole)?,
        };
        tokenised.round_trip = round_trip;
        Ok(tokenised)
    }

    /// The turns as the model sees them: behind the system turn, where they bring none of their own.
    pub(super) fn turns(&self, turns: &[Message]) -> Vec<Message> {
        let own = turns.first().is_some_and(|m| m.role == "system");
        let system = self.system.filter(|_| !own).map(|text| Message::new("system", text));
        system.into_iter().chain(turns.iter().map(|m| self.stripped(m))).collect()
    }

    /// Contents without white space around them, as Python's `str.strip` takes it off, where that is asked for.
    fn stripped(&self, message: &Message) -> Message {
        let white = |c: char| c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}');
        match self.strip {
            true => Message::new(&message.role, message.content.trim_matches(white)),
            false => message.clone(),
        }
    }

    /// Everything after the prompt, which ends where its ids and those of the whole part.
    fn completion(&self, whole: Conversation) -> Result<Tokenised> {
        let (from, boundary_mismatch) = self.common(&whole, whole.prompt, true)?;
        let learnt = std::iter::once(from..whole.ids.len()).collect();
        Ok(Tokenised { ids: whole.ids, learnt, boundary_mismatch, round_trip: None })
    }

    /// How many first tokens the whole shares with its first `turns` turns alone, and whether those go on otherwise.
    fn common(
        &self,
        whole: &Conversation,
        turns: usize,
        add_generation_prompt: bool,
    ) -> Result<(usize, bool)> {
        let text = self.template.render(&whole.turns[..turns], add_generation_prompt)?;
        // The template writes every special token itself, so the tokenizer adds none.
        let alone = self.tokenizer.encode(&text, false)?;
        let common = alone.iter().zip(&whole.ids).take_while(|(a, b)| a == b).count();
        Ok((common, common < alone.len()))
    }

    /// Each assistant turn from where an answer would begin to where the conversation up to it ends.
    ///
    /// Renders and tokenises twice per turn, but no turn that begins behind the cut.
    fn assistant_turns(&self, whole: Conversation) -> Result<Tokenised> {
        let (mut learnt, mut boundary_mismatch) = (Vec::new(), false);
        let is_assistant = |&turn: &usize| whole.turns[turn].role == "assistant";
        let mut turns = (whole.prompt..whole.turns.len()).filter(is_assistant).peekable();
        if turns.peek().is_none() {
            return Err(no_assistant());
        }
        for turn in turns {
            let (from, begins_otherwise) = self.common(&whole, turn, true)?;
            boundary_mismatch |= begins_otherwise;
            if from >= self.max_length {
                break;
            }
            let (to, ends_otherwise) = match turn + 1 == whole.turns.len() {
                true => (whole.ids.len(), false),
                false => self.common(&whole, turn + 1, false)?,
            };
            boundary_mismatch |= ends_otherwise;
            // Where tokens merge across a boundary, the later turn may seem to begin in the earlier one.
            let from = from.max(learnt.last().map_or(0, |last: &Range<usize>| last.end));
            if from < to {
                learnt.push(from..to);
            }
        }
        Ok(Tokenised { ids: whole.ids, learnt, boundary_mismatch, round_trip: None })
    }

    /// Every token that overlaps a generation tag's part of the text, as transformers' `assistant_masks`; none of
    /// the prompt's.
    fn tagged(
        &self,
        whole: Conversation,
        parts: &[Range<usize>],
        offsets: &[Range<usize>],
    ) -> Result<Tokenised> {
        if !whole.turns[whole.prompt..].iter().any(|m| m.role == "assistant") {
            return Err(no_assistant());
        }
        let (from, boundary_mismatch) = match whole.prompt {
            0 => (0, false),
            turns => self.common(&whole, turns, true)?,
        };
        let mut learnt: Vec<Range<usize>> = Vec::new();
        let mut parts = parts.iter().peekable();
        for (token, offset) in offsets.iter().enumerate() {
            while parts.next_if(|part| offset.start >= part.end).is_some() {}
            let inside = parts.peek().is_some_and(|part| offset.end > part.start);
            match learnt.last_mut() {
                Some(last) if inside && last.end == token => last.end += 1,
                _ if inside && token >= from => learnt.push(token..token + 1),
                _ => {}
            }
        }
        Ok(Tokenised { ids: whole.ids, learnt, boundary_mismatch, round_trip: None })
    }
}

fn no_assistant() -> Error {
    Error::input(
        "an assistant turn to learn",
        "no message has the role \"assistant\"",
        "add one, or learn every token with --loss-on all",
    )
}
