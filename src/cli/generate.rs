//! `smolten generate`.

use super::decoding::DecodingArguments;
use super::{EngineArguments, fetch, with_threads};
use clap::Args;
use serde_json::json;
use smolten::arena::Plan;
use smolten::backend;
use smolten::error::{Error, Result};
use smolten::generate::{Generator, StopReason};
use smolten::pretrained::Pretrained;
use smolten::recipe::{EngineChoice, Precision};
use smolten::template::Message;
use std::io::{BufRead, IsTerminal, Write};

/// Positions that a chat has room for, where the model allows.
const CHAT_POSITIONS: usize = 4096;

/// Flags of `generate`.
#[derive(Args)]
pub struct GenerateArguments {
    /// A Hugging Face folder, an adapter of PEFT, a .gguf file, or the id of a model on the hub: org/name[@revision]
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// The user's turn; with --raw the text itself
    #[arg(long, value_name = "TEXT", required_unless_present = "chat", conflicts_with = "chat")]
    prompt: Option<String>,
    /// Talk turn by turn: one line of standard input is one turn, the end of input ends the chat
    #[arg(long)]
    chat: bool,
    /// System turn put first
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    system: Option<String>,
    /// Continue the prompt as it is, without the model's chat template
    #[arg(long, conflicts_with = "chat")]
    raw: bool,
    #[command(flatten)]
    decoding: DecodingArguments,
    /// Print one JSON object: prompt_ids, new_ids, text, stop_reason
    #[arg(long, conflicts_with = "chat")]
    json: bool,
    #[command(flatten)]
    engine: EngineArguments,
}

struct Session {
    pretrained: Pretrained,
    generator: Generator,
    decoding: DecodingArguments,
}

/// Opens the model and answers the prompt, or holds the chat.
pub fn run(arguments: &GenerateArguments) -> Result<()> {
    let choice = EngineChoice::resolve(&arguments.engine.overrides())?;
    with_threads(choice.threads, || generate(arguments, choice))
}

fn generate(arguments: &GenerateArguments, choice: EngineChoice) -> Result<()> {
    let pretrained = Pretrained::open(&fetch::model(&arguments.model)?)?;
    let prompt = match &arguments.prompt {
        Some(text) if arguments.raw => Some(pretrained.tokenizer.encode(text, true)?),
        Some(text) => {
            let mut messages = system_turn(arguments);
            messages.push(Message::new("user", text));
            Some(encode_chat(&pretrained, &messages)?)
        }
        None => None,
    };
    let limit = pretrained.config.max_position_embeddings;
    let positions = match &prompt {
        Some(ids) if ids.is_empty() => {
            return Err(Error::input("--prompt", "it is empty", "give some text to continue"));
        }
        Some(ids) if ids.len() >= limit => {
            let found = format!("{} tokens, and the model's context holds {limit}", ids.len());
            return Err(Error::input("--prompt", found, "shorten it"));
        }
        Some(ids) => limit.min(ids.len() + arguments.decoding.max_new_tokens),
        None => limit.min(CHAT_POSITIONS),
    };
    let mut session = open(arguments, choice, pretrained, positions)?;
    match prompt {
        Some(ids) => session.answer(&ids, arguments.json).map(|_| ()),
        None => session.chat(system_turn(arguments)),
    }
}

fn system_turn(arguments: &GenerateArguments) -> Vec<Message> {
    arguments.system.iter().map(|text| Message::new("system", text)).collect()
}

fn encode_chat(pretrained: &Pretrained, messages: &[Message]) -> Result<Vec<u32>> {
    pretrained.tokenizer.encode(&pretrained.template.render(messages, true)?, false)
}

fn open(
    arguments: &GenerateArguments,
    choice: EngineChoice,
    pretrained: Pretrained,
    positions: usize,
) -> Result<Session> {
    let EngineChoice { device, precision, .. } = choice;
    let (config, weights) = (&pretrained.config, &pretrained.weights);
    let dtype = backend::precision(device, precision, config)?;
    let open = |plan: &Plan| backend::open(device, plan, dtype);
    let keeps = precision == Precision::Auto && weights.are_q8_0(config) && backend::multiplies_q8_0(device)?;
    let generator = if keeps {
        eprintln!("weights: Q8_0, kept in memory as they are in the file; --precision widens them");
        Generator::of_q8_0(config, dtype, positions, open, weights)?
    } else {
        Generator::new(config, dtype, positions, open, |parameter, out| weights.read(parameter, out))?
    };
    Ok(Session { pretrained, generator, decoding: arguments.decoding })
}

impl Session {
    /// Answers, printing the text as it comes, or all as JSON at the end.
    fn answer(&mut self, prompt: &[u32], as_json: bool) -> Result<String> {
        let tokenizer = &self.pretrained.tokenizer;
        let mut stream = tokenizer.decode_stream(true);
        let show = |text: &str| {
            if !as_json {
                // A closed pipe ends the printing, not the answer.
                let mut out = std::io::stdout();
                let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
            }
        };
        let how = self.decoding.continuation(&self.pretrained.stop_ids);
        let (new_ids, stop_reason) = self.generator.generate(prompt, &how, |id| {
            show(&stream.push(id)?);
            Ok(())
        })?;
        show(&stream.finish()?);
        show("\n");
        let text = tokenizer.decode(&new_ids, true)?;
        if as_json {
            let answer =
                json!({ "prompt_ids": prompt, "new_ids": new_ids, "text": text, "stop_reason": stop_reason });
            say!("{answer}");
        } else if stop_reason == StopReason::Length && std::io::stderr().is_terminal() {
            eprintln!("(cut at {} tokens: --max-new-tokens)", new_ids.len());
        }
        Ok(text)
    }

    /// One line, one turn, until the input ends or the context is full.
    fn chat(&mut self, mut messages: Vec<Message>) -> Result<()> {
        let interactive = std::io::stdin().is_terminal();
        let mut lines = std::io::stdin().lock().lines();
        loop {
            if interactive {
                let mut out = std::io::stdout();
                let _ = out.write_all(b"> ").and_then(|()| out.flush());
            }
            let Some(line) = lines.next() else { return Ok(()) };
            let line = line.map_err(Error::io("read", "standard input"))?;
            if line.trim().is_empty() {
                continue;
            }
            messages.push(Message::new("user", line));
            let ids = encode_chat(&self.pretrained, &messages)?;
            if ids.len() >= self.generator.positions() {
                let found =
                    format!("{} tokens, and there is room for {}", ids.len(), self.generator.positions());
                return Err(Error::input("this chat", found, "start a new one"));
            }
            let text = self.answer(&ids, false)?;
            messages.push(Message::new("assistant", text));
        }
    }
}
