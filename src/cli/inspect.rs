//! `smolten inspect`.

use super::{EngineArguments, fetch, tokens, with_threads};
use clap::Args;
use serde_json::json;
use smolten::dataset::{
    Audit, Count, Dataset, Encoder, FieldNames, LabelledToken, cache_folder, load, read_row,
};
use smolten::error::Result;
use smolten::pretrained::Pretrained;
use smolten::recipe::{EngineChoice, Recipe, RecipeOverrides};
use smolten::template::Message;

/// Characters of the histogram's longest bar.
const BAR: usize = 40;

/// Flags of `inspect`.
#[derive(Args)]
pub struct InspectArguments {
    /// A Hugging Face folder, an adapter of PEFT, a .gguf file, or the id of a model on the hub: org/name[@revision]
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// Rows to inspect: a .jsonl, .json, .csv or .parquet file, the id of a data set on the hub, or builtin:reasoning
    #[arg(long, value_name = "DATA", required_unless_present = "text")]
    data: Option<String>,
    /// Row to show: the line (.jsonl, .csv) or row that messages name; of several files, counted over all [default:
    /// the first]
    #[arg(long, value_name = "N", conflicts_with = "text")]
    row: Option<u64>,
    /// Tokens kept of a row, from its start [default: 512]
    #[arg(long, value_name = "TOKENS", conflicts_with = "text")]
    max_length: Option<u64>,
    /// Which tokens are learnt: completion, assistant (every assistant turn) or all [default: completion]
    #[arg(long, value_name = "TOKENS", conflicts_with = "text")]
    loss_on: Option<String>,
    /// Recipe keys that change how rows become tokens: prompt_field, response_field, system, compat
    #[arg(long, value_name = "KEY=VALUE", conflicts_with = "text")]
    set: Vec<String>,
    /// A text to tokenise, instead of data
    #[arg(long, value_name = "TEXT", conflicts_with = "data")]
    text: Option<String>,
    /// Put the text through the chat template, as a user's turn that awaits its answer
    #[arg(long, requires = "text", conflicts_with = "data")]
    chat: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArguments,
}

impl InspectArguments {
    fn overrides(&self) -> RecipeOverrides {
        RecipeOverrides {
            model: Some(self.model.clone()),
            data: self.data.clone(),
            max_length: self.max_length,
            loss_on: self.loss_on.clone(),
            ..self.engine.overrides()
        }
    }
}

/// Shows a row and the audit of a data set, or the tokens of a text.
pub fn run(arguments: InspectArguments) -> Result<()> {
    match &arguments.text {
        Some(text) => {
            EngineChoice::resolve(&arguments.overrides())?;
            inspect_text(&arguments, text)
        }
        None => {
            let recipe = Recipe::resolve(None, &arguments.set, &arguments.overrides())?;
            with_threads(recipe.threads, || inspect_data(&arguments, &recipe))
        }
    }
}

fn inspect_text(arguments: &InspectArguments, text: &str) -> Result<()> {
    let Pretrained { tokenizer, template, .. } = Pretrained::open(&fetch::model(&arguments.model)?)?;
    let ids = if arguments.chat {
        tokenizer.encode(&template.render(&[Message::new("user", text)], true)?, false)?
    } else {
        tokenizer.encode(text, true)?
    };
    if arguments.json {
        let spelt: Vec<_> = ids.iter().map(|&id| tokenizer.token(id)).collect();
        say!("{}", json!({ "ids": ids, "tokens": spelt }));
    } else {
        ids.iter().for_each(|&id| say!("{id:>8}  {:?}", tokenizer.piece(id)));
        say!("{} tokens", ids.len());
    }
    Ok(())
}

fn inspect_data(arguments: &InspectArguments, recipe: &Recipe) -> Result<()> {
    let pretrained = Pretrained::open(&fetch::model(&recipe.model)?)?;
    let (source, fields) = (fetch::data(&recipe.data)?, FieldNames::new(recipe));
    let encoder = Encoder::new(recipe, &pretrained);
    let placed = read_row(&source, &fields, arguments.row)?;
    let place = source.place(placed.origin);
    let labelled = encoder.label(&placed.row).map_err(|e| e.at(&place))?;
    let ids: Vec<u32> = labelled.iter().map(|token| token.id).collect();
    let pieces = pretrained.tokenizer.pieces(&ids)?;
    if !arguments.json {
        // Before the audit: where that refuses the data, the row shows why.
        let painted: Vec<_> = pieces.iter().cloned().zip(labelled.iter().map(|t| t.label)).collect();
        say!("{place} ({}):\n    {}\n", tokens::legend(true), tokens::painted(&painted));
    }
    let dataset = load(&source, &encoder, &fields, cache_folder().as_deref())?;
    if arguments.json {
        let token =
            |(t, text): (&LabelledToken, &String)| json!({ "id": t.id, "text": text, "label": t.label });
        let tokens: Vec<_> = labelled.iter().zip(&pieces).map(token).collect();
        let row = json!({ "row": arguments.row.unwrap_or(placed.origin.number), "tokens": tokens });
        say!("{}", json!({ "audit": dataset.audit, "rows": [row] }));
        dataset.notes.iter().for_each(|note| eprintln!("note: {note}"));
    } else {
        dataset.notes.iter().for_each(|note| say!("note: {note}"));
        say!("{}", report(&source.name, &dataset));
    }
    Ok(())
}

/// The audit as text.
pub(super) fn report(name: &str, dataset: &Dataset) -> String {
    let a = &dataset.audit;
    let cached = if dataset.cached { " (tokens from the cache)" } else { "" };
    let mut text = format!("audit of {name}{cached}\n{}", table(a));
    text += &format!("\nlengths in tokens, before any cut\n{}", histogram(a));
    let findings = a.findings();
    if findings.is_empty() {
        return text + "\nfindings: none; a training run takes this data as it is";
    }
    text += "\nfindings, which stop a training run unless its recipe allows them";
    for (finding, what) in findings {
        let word = serde_json::to_value(finding).expect("a unit variant");
        text += &format!("\n  {}: {what}", word.as_str().unwrap_or_default());
    }
    text
}

fn table(a: &Audit) -> String {
    let mut text = String::new();
    for Count { what, count, note, places } in a.counts() {
        text += format!("  {what:<26}{count:>12}  {note:<12}  {}", places.join(", ")).trim_end();
        text.push('\n');
    }
    text
}

/// A bar for each bin from the first that holds rows to the last.
fn histogram(a: &Audit) -> String {
    let bins = a.histogram();
    let most = bins.iter().map(|bin| bin.rows).max().unwrap_or(0).max(1);
    let mut text = String::new();
    for bin in bins {
        text += format!("  {:>14} {:>8}  {}", bin.range, bin.rows, bar(bin.rows, most)).trim_end();
        text.push('\n');
    }
    text
}

/// A bar in eighths of a character; what is not nothing is seen.
fn bar(part: usize, most: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (8 * BAR * part).div_ceil(most);
    "█".repeat(eighths / 8) + EIGHTHS[eighths % 8]
}

#[cfg(test)]
mod tests {
    use super::*;
    use smolten::dataset::LengthBin;

    #[test]
    fn bars_are_as_long_as_their_counts() {
        assert_eq!(bar(0, 7), "");
        assert_eq!(bar(1, 1_000_000), "▏");
        assert_eq!(bar(7, 7), "█".repeat(BAR));
        assert_eq!(bar(1, 64), "▋");
    }

    #[test]
    fn the_histogram_leaves_out_empty_ends() {
        let bins = [(Some(16), 0), (Some(32), 4), (Some(64), 0), (None, 1)];
        let lengths = bins.map(|(up_to, rows)| LengthBin { up_to, rows }).to_vec();
        let text = histogram(&Audit { lengths, ..Audit::default() });
        let bars = ["█".repeat(BAR), "█".repeat(BAR / 4)];
        let want = format!(
            "        17 to 32        4  {}\n        33 to 64        0\n        above 64        1  {}\n",
            bars[0], bars[1]
        );
        assert_eq!(text, want);
    }
}
