//! The model card of a finished run: `README.md`, for people and for the hub.

use super::{Run, State};
use crate::backend;
use crate::checkpoint::write_beside;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::hub;
use crate::metrics::processor;
use crate::report::may_be_none;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

/// Begins the last line of a card, which holds the hash of the lines before it: a card whose hash is another one was
/// edited.
const MARK: &str = "<!-- written by smolten, which leaves an edited card alone; sha256 of the text above: ";
const END: &str = " -->\n";

/// Writes the card into the run's folder; where it is, unless a card of somebody's own is there and stays.
///
/// # Errors
/// [`Error::Io`] when the disk does not take it.
pub(super) fn write(run: &Run, state: &State, folder: &Path) -> Result<Option<PathBuf>> {
    let path = folder.join("README.md");
    match std::fs::read(&path) {
        Ok(found) if !is_own(&found) => return Ok(None),
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("read", &path)(e)),
        _ => {}
    }
    let history = History::read(&folder.join("metrics.jsonl"))?;
    let mut text = front_matter(run);
    let about =
        [introduction(run), results(run, state), samples(&history), data(run), training(run, &history)?];
    about.iter().for_each(|part| text += part);
    text += &usage(run);
    text += &limits(run, state);
    text = format!("{text}{MARK}{}{END}", hash(&text));
    write_beside(&path, |file| file.write_all(text.as_bytes())).map(|()| Some(path))
}

/// Whether the card is as this program wrote it.
fn is_own(card: &[u8]) -> bool {
    let text = String::from_utf8_lossy(card);
    let parts = text.rsplit_once(MARK);
    parts.is_some_and(|(above, rest)| rest.strip_suffix(END) == Some(&hash(above)))
}

fn hash(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What `metrics.jsonl` has of all sittings of the run.
#[derive(Default)]
struct History {
    tokens: f64,
    seconds: f64,
    peak_memory_bytes: u64,
    /// Step, prompt and answer of the first and the last sample.
    samples: Option<[(u64, String, String); 2]>,
}

impl History {
    fn read(path: &Path) -> Result<Self> {
        let mut history = Self::default();
        for line in BufReader::new(File::open(path).map_err(Error::io("read", path))?).lines() {
            let line: serde_json::Value = serde_json::from_str(&line.map_err(Error::io("read", path))?)
                .map_err(|e| Error::run(format!("{} is damaged: {e}", path.display()), "start a new run"))?;
            history.tokens += line["tokens"].as_f64().unwrap_or_default();
            history.seconds += line["step_seconds"].as_f64().unwrap_or_default();
            let peak = line["peak_memory_bytes"].as_u64().unwrap_or_default();
            history.peak_memory_bytes = history.peak_memory_bytes.max(peak);
            let text = |key: &str| line[key].as_str().map(str::to_owned);
            if let (Some(step), Some(prompt), Some(answer)) =
                (line["step"].as_u64(), text("sample_prompt"), text("sample"))
            {
                let sample = (step, prompt, answer);
                let first = history.samples.take().map_or_else(|| sample.clone(), |[first, _]| first);
                history.samples = Some([first, sample]);
            }
        }
        Ok(history)
    }
}

/// What the hub reads: only what is known to be so.
fn front_matter(run: &Run) -> String {
    let adapters = run.recipe.lora_rank > 0;
    let (library, relation) = if adapters { ("peft", "adapter") } else { ("transformers", "finetune") };
    let mut text = format!("---\nlibrary_name: {library}\npipeline_tag: text-generation\n");
    let (model, data) = (&run.recipe.model, &run.recipe.data);
    for (key, value) in &run.pretrained.license {
        put(&mut text, format_args!("{key}: \"{value}\"\n"));
    }
    if let Some(id) = id(model) {
        put(&mut text, format_args!("base_model: \"{id}\"\nbase_model_relation: {relation}\n"));
    }
    let sets: Vec<&str> =
        [Some(data), run.recipe.eval_data.as_ref()].into_iter().flatten().filter_map(|d| id(d)).collect();
    if !sets.is_empty() {
        text += "datasets:\n";
        sets.iter().for_each(|id| put(&mut text, format_args!("- \"{id}\"\n")));
    }
    let lora = if adapters { "- lora\n" } else { "" };
    text + "tags:\n- smolten\n- sft\n" + lora + "---\n\n"
}

fn introduction(run: &Run) -> String {
    let (model, data) = (code(&name(&run.recipe.model)), code(&name(&run.recipe.data)));
    let weights = run.pretrained.description.first().map_or(String::new(), |line| code(line));
    let millions = |n: usize| n as f64 / 1e6;
    let all = millions(run.pretrained.config.num_parameters());
    let what = match run.recipe.lora() {
        None => format!("All {all:.1} M parameters of {model} were trained further on {data}"),
        Some(lora) => format!(
            "Beside the {all:.1} M parameters of {model}, which stay as they are, {:.2} M of adapters (LoRA of rank {}) were \
             trained on {data}",
            millions(run.trained_parameters()),
            lora.rank
        ),
    };
    format!(
        "# {model}, fine-tuned on {data}\n\n{what} with smolten {}. What it started from: {weights}.\n\n",
        env!("SMOLTEN_VERSION"),
    )
}

fn results(run: &Run, state: &State) -> String {
    let mut text = "## Results\n\n".to_owned();
    put(
        &mut text,
        format_args!(
            "Training loss (nats per learnt token): {:.4} at the first step, {:.4} at the last of {}.\n\n",
            state.first_loss, state.last_loss, state.step
        ),
    );
    let Some((before, after)) = state.evaluations else {
        return text
            + "No rows were held out, so nothing here says how it does on text that it has not seen.\n\n";
    };
    let verdict = if may_be_none(state.change) {
        "Other rows of the same kind might show no change."
    } else if after.loss < before.loss {
        "It is lower: some of what was learnt holds for rows like these."
    } else {
        "It is not lower: the rows that were trained on were memorised."
    };
    let change = state.change.map_or(String::new(), |[low, high]| {
        format!(" Over these rows it changed by {low:+.4} to {high:+.4} (95 %, bootstrap over rows).")
    });
    put(
        &mut text,
        format_args!(
            "| {} held-out rows, {} learnt tokens | before | after |\n| --- | --- | --- |\n| loss, nats per token | \
             {:.4} | {:.4} |\n| most likely token right | {:.1} % | {:.1} % |\n\nThe held-out loss stands for one split of \
             one data set. {verdict}{change}\n\n",
            run.rows.held_out.len(),
            after.supervised_tokens,
            before.loss,
            after.loss,
            100.0 * before.mean_token_accuracy,
            100.0 * after.mean_token_accuracy,
        ),
    );
    if let Some((step, loss)) = state.best.filter(|(step, _)| *step < state.step) {
        put(
            &mut text,
            format_args!(
                "It was lowest, {loss:.4}, after step {step}; the weights here are those of the last step.\n\n"
            ),
        );
    }
    text
}

fn samples(history: &History) -> String {
    let Some([first, last]) = &history.samples else { return String::new() };
    let mut text = format!(
        "## Before and after\n\nThe likeliest tokens, cut after a few dozen. Asked:\n\n{}",
        fence("text", &first.1)
    );
    for (step, _, answer) in [first, last] {
        put(&mut text, format_args!("After {step} steps:\n\n{}", fence("text", answer)));
    }
    text
}

fn data(run: &Run) -> String {
    let mut text = "## Data\n\n".to_owned();
    let (recipe, rows) = (&run.recipe, &run.rows);
    let sets = [(Some(&recipe.data), Some(&rows.data)), (recipe.eval_data.as_ref(), rows.eval_data.as_ref())];
    for (asked, set) in sets.into_iter().filter_map(|(asked, set)| asked.zip(set)) {
        let audit = &set.audit;
        put(
            &mut text,
            format_args!(
                "{}: {} rows, {} tokens, {:.1} % of them learnt; the longest row has {} tokens. Cut to {} tokens: {}. \
                 Cut before the end of their turn: {}. Left out, with nothing to learn: {}. Copies of an earlier row: \
                 {}.\n\n",
                code(&name(asked)),
                audit.rows,
                audit.tokens,
                100.0 * audit.supervised_share,
                audit.longest,
                audit.max_length,
                audit.truncated,
                audit.lost_turn_ends,
                audit.dropped,
                audit.duplicates,
            ),
        );
        set.sha256.iter().for_each(|hash| put(&mut text, format_args!("- SHA-256 {}\n", code(hash))));
        text += "\n";
    }
    if rows.eval_data.is_none() && !rows.held_out.is_empty() {
        put(&mut text, format_args!("{} of these rows were held out.\n\n", rows.held_out.len()));
    }
    text
}

fn training(run: &Run, history: &History) -> Result<String> {
    let (device, _) = backend::describe(run.recipe.device)?;
    let precision = match run.dtype {
        DType::BF16 => "bf16",
        DType::F16 => "fp16",
        _ => "fp32",
    };
    let mut text = "## Training\n\n".to_owned();
    put(
        &mut text,
        format_args!(
            "{} steps of {} × {} rows, computed in {precision} on {} ({}, {} threads): {:.0} tokens in {:.0} s of steps, {:.0} \
             tokens/s, {} MiB of memory at the peak. All of it is in `run.json` and `metrics.jsonl`. The recipe, for \
             `smolten train recipe.toml`:\n\n",
            run.total_steps,
            run.recipe.grad_accum,
            run.recipe.batch_size,
            code(&device),
            code(&processor()),
            rayon::current_num_threads(),
            history.tokens,
            history.seconds,
            history.tokens / history.seconds,
            history.peak_memory_bytes >> 20,
        ),
    );
    Ok(text + &fence("toml", &recipe(run)))
}

/// The recipe as a file, without what only this machine has.
fn recipe(run: &Run) -> String {
    let mut recipe = serde_json::to_value(&run.recipe).expect("plain data");
    let keys = recipe.as_object_mut().expect("an object");
    keys.retain(|key, value| !value.is_null() && !["out", "device", "threads"].contains(&key.as_str()));
    for key in ["model", "data", "eval_data"] {
        if let Some(value) = keys.get_mut(key) {
            *value = name(value.as_str().unwrap_or_default()).into();
        }
    }
    toml::to_string(&recipe).expect("a recipe is TOML")
}

fn usage(run: &Run) -> String {
    let mut messages = Vec::new();
    if let Some(system) = &run.recipe.system {
        messages.push(serde_json::json!({ "role": "system", "content": system }));
    }
    messages.push(serde_json::json!({ "role": "user", "content": run.recipe.sample_prompt }));
    let messages = serde_json::Value::from(messages);
    let (library, class) = match run.recipe.lora_rank {
        0 => ("from transformers import AutoModelForCausalLM, AutoTokenizer", "AutoModelForCausalLM"),
        _ => (
            "from peft import AutoPeftModelForCausalLM  # finds the base by adapter_config.json\nfrom transformers import \
             AutoTokenizer",
            "AutoPeftModelForCausalLM",
        ),
    };
    let python = format!(
        "{library}\n\nfolder = \".\"  # this folder, or its id on the \
         hub\ntokenizer = AutoTokenizer.from_pretrained(folder)\nmodel = \
         {class}.from_pretrained(folder)\nmessages = {messages}\ninputs = \
         tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors=\"pt\", \
         return_dict=True)\nanswer = model.generate(**inputs, max_new_tokens=128, do_sample=False)\nprint(tokenizer.decode(\
         answer[0, inputs[\"input_ids\"].shape[1]:], skip_special_tokens=True))"
    );
    format!(
        "## Use\n\n{}With smolten: `smolten generate --model FOLDER --chat`; for llama.cpp and Ollama: `smolten export \
         --model FOLDER --out model.gguf`.\n\n",
        fence("python", &python)
    )
}

fn limits(run: &Run, state: &State) -> String {
    let mut text = "## Limits\n\n".to_owned();
    let rows = run.rows.trained.len();
    let passes = state.step as f64 / run.steps_per_epoch as f64;
    put(
        &mut text,
        format_args!(
            "- It was trained on {rows} rows, {passes:.1} times each: that teaches a manner more than facts.\n- Nothing \
             but the figures above was measured: no benchmark, no test for harmful, biased or false answers.\n- What is \
             known of the model it started from, its license and its limits too, goes for this one.\n"
        ),
    );
    text
}

/// The id on the hub that was asked for, without its revision.
fn id(asked: &str) -> Option<&str> {
    hub::is_id(asked).then(|| asked.split('@').next().unwrap_or(asked))
}

/// A name that says nothing of the machine: the id on the hub, else the last part of the path.
fn name(asked: &str) -> String {
    if hub::is_id(asked) {
        return asked.to_owned();
    }
    Path::new(asked).file_name().map_or_else(|| asked.to_owned(), |name| name.to_string_lossy().into_owned())
}

/// A short text that Markdown leaves as it is, on one line.
fn code(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() || c == '|' { ' ' } else { c }).collect();
    let ticks = "`".repeat(longest_run(&text) + 1);
    if text.contains('`') { format!("{ticks} {text} {ticks}") } else { format!("{ticks}{text}{ticks}") }
}

/// A text set off so that nothing in it ends it.
fn fence(language: &str, text: &str) -> String {
    let text: String = text.chars().filter(|c| !c.is_control() || "\n\t".contains(*c)).collect();
    let ticks = "`".repeat((longest_run(&text) + 1).max(3));
    format!("{ticks}{language}\n{}\n{ticks}\n\n", text.trim_end())
}

/// Backticks in a row.
fn longest_run(text: &str) -> usize {
    text.split(|c| c != '`').map(str::len).max().unwrap_or(0)
}

fn put(text: &mut String, more: std::fmt::Arguments<'_>) {
    text.write_fmt(more).expect("a string takes it");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edited_card_is_told_apart() {
        let above = "# A\n";
        let card = format!("{above}{MARK}{}{END}", hash(above));
        assert!(is_own(card.as_bytes()));
        for edited in [
            card.replace("# A", "# B"),
            card.clone() + "more",
            card.replace("sha256", "SHA256"),
            above.into(),
        ] {
            assert!(!is_own(edited.as_bytes()), "{edited}");
        }
        assert!(!is_own(b"") && !is_own(b"\xff\xfe"));
    }

    #[test]
    fn text_does_not_break_out() {
        assert_eq!(fence("text", "a\n```\nb"), "````text\na\n```\nb\n````\n\n");
        assert_eq!(fence("text", "a\x1b[1m\r\n````"), "`````text\na[1m\n````\n`````\n\n");
        assert_eq!(code("a``b\n# c"), "``` a``b # c ```");
        assert_eq!(code("plain"), "`plain`");
    }

    #[test]
    fn names_say_nothing_of_the_machine() {
        assert_eq!(name("/home/somebody/models/tiny.gguf"), "tiny.gguf");
        assert_eq!(name("models/run-1/"), "run-1");
        assert_eq!(
            (name("org/model@main").as_str(), id("org/model@main")),
            ("org/model@main", Some("org/model"))
        );
        assert_eq!(
            (name("builtin:reasoning").as_str(), id("builtin:reasoning")),
            ("builtin:reasoning", None)
        );
    }
}
