//! What the parts of a run's page say.

use super::chart::{Axis, Chart, Line, Style};
use super::history::{History, Sample};
use super::record::{DataRecord, Record, text};
use super::scale::{From, Scale};
use super::series::Bucket;
use super::words::{self, duration, figure, grouped, mib, quoted};
use crate::recipe::Recipe;
use serde::Serialize;
use serde_json::Value;

/// Rows of a table of steps.
const ROWS: usize = 40;

/// A number with what it is.
#[derive(Serialize)]
pub struct Figure {
    what: &'static str,
    value: String,
    unit: &'static str,
    more: String,
}

/// The numbers that stand first.
pub fn figures(history: &History, record: &Record) -> Vec<Figure> {
    let of = |what, value: Option<String>, unit, more| {
        let unit = if value.is_some() { unit } else { "" };
        Figure { what, value: value.unwrap_or_else(|| "–".to_owned()), unit, more }
    };
    let h = history;
    let best = h.best.map_or(String::new(), |(step, loss)| {
        format!("; lowest {} after step {}", words::loss(loss), grouped(step as u64))
    });
    let held_out = match h.held_out_ends() {
        Some((before, _)) => format!("{} before{best}", words::loss(before)),
        None if h.held_out.last().is_some() => "before the first step".to_owned(),
        None => "no rows are held out".to_owned(),
    };
    let first = h.loss.buckets().first().filter(|b| b.first == 1 && b.last == 1).and_then(Bucket::mean);
    let first = first.map_or(String::new(), |loss| format!("; {} at the first step", words::loss(loss)));
    let (last_loss, rate) = (h.smoothed.last(), h.tokens as f64 / h.step_seconds);
    let planned = record.planned_bytes();
    let mut figures = vec![
        of("Held-out loss", h.held_out.last().map(|(_, l)| words::loss(l)), "", held_out),
        of("Training loss", last_loss.map(|(_, l)| words::loss(l)), "", format!("smoothed{first}")),
        of(
            "Tokens per second",
            rate.is_finite().then(|| grouped(words::whole(rate))),
            "",
            format!("{} tokens in all", grouped(h.tokens)),
        ),
        of("Peak memory", h.peak_memory_bytes.map(number_of_mib), "MiB", format!("{} planned", mib(planned))),
    ];
    let evaluations = if h.eval_seconds > 0.0 {
        format!("and {} of evaluations", duration(h.eval_seconds))
    } else {
        String::new()
    };
    figures.push(of("Time of the steps", (h.steps > 0).then(|| duration(h.step_seconds)), "", evaluations));
    figures
}

fn number_of_mib(bytes: u64) -> String {
    grouped(bytes.div_ceil(1 << 20))
}

/// What the losses say, in a few sentences.
pub fn loss_said(history: &History) -> String {
    let smoothed = format!("The strong line is smoothed over about {} steps.", history.span);
    let Some((before, after)) = history.held_out_ends() else {
        return format!("In nats, a mean over the tokens that are learnt. {smoothed}");
    };
    let risen = match history.best {
        Some((step, best)) if best < after => {
            format!(
                " It was lowest after step {}, {}, and has risen since.",
                grouped(step as u64),
                words::loss(best)
            )
        }
        _ => String::new(),
    };
    let verdict = words::verdict(before, after, history.change);
    let sure = |i: usize| {
        let ends = history.intervals[i].map(|ends| ends.map(words::loss));
        ends.map_or(String::new(), |[low, high]| format!(" ({low} to {high})"))
    };
    let change = history.change.map_or(String::new(), |[low, high]| {
        format!(
            " Over the same rows it has changed by {low:+.4} to {high:+.4}; intervals are at 95 %, of rows drawn again and again."
        )
    });
    let ends = [before, after].map(words::loss);
    format!(
        "Held-out loss: {}{} before, {}{} now, {verdict}.{change}{risen} {smoothed}",
        ends[0],
        sure(0),
        ends[1],
        sure(1)
    )
}

/// The charts; the first is of the losses.
pub fn charts(history: &History, record: &Record) -> Vec<Chart> {
    let h = history;
    let first = if h.held_out.buckets().first().is_some_and(|b| b.first == 0) { 0 } else { 1 };
    let axis = |ticks| Axis { steps: Scale::steps(first, h.steps.max(first)), ticks };
    let line = |name: &str, colour, style, labelled, series| Line {
        name: name.to_owned(),
        colour,
        style,
        labelled,
        series,
    };
    let mut losses = vec![
        line("step's loss", 0, Style::Thin, false, &h.loss),
        line("training", 0, Style::Strong, true, &h.smoothed),
    ];
    if h.held_out.last().is_some() {
        losses.push(line("held-out", 1, Style::Dots, true, &h.held_out));
    }
    let mut loss = Chart::new("loss", "Loss", &losses, From::Data, axis(6));
    loss.mark_missing(&h.grad_norm);
    if h.skipped > 0 {
        let steps = if h.skipped == 1 { "step was" } else { "steps were" };
        loss.notes.push(format!("{} {steps} skipped, the gradient not being finite (red marks)", h.skipped));
    }
    let one = |id, title, series, from, unit: &str| {
        let mut chart = Chart::new(id, title, &[line(title, 0, Style::Plain, false, series)], from, axis(4));
        chart.latest = series.last().map_or(String::new(), |(_, value)| format!("{}{unit}", figure(value)));
        chart
    };
    let mut norm = one("norm", "Gradient norm", &h.grad_norm, From::Wide, "");
    if let Some(clip) = record.recipe.get("clip").and_then(Value::as_f64).filter(|clip| *clip > 0.0) {
        norm.level(clip, format!("clipped to {clip}"));
    }
    norm.mark_missing(&h.grad_norm);
    vec![
        loss,
        one("rate", "Learning rate", &h.learning_rate, From::Zero, ""),
        norm,
        one("speed", "Tokens per second", &h.tokens_per_second, From::Zero, ""),
        one("seconds", "Seconds of a step", &h.seconds, From::Zero, " s"),
    ]
}

/// A table for the templates.
#[derive(Serialize)]
pub struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(head: &[&str], rows: Vec<Vec<String>>) -> Self {
        Self { head: head.iter().map(|&h| h.to_owned()).collect(), rows }
    }
}

fn steps_of(b: &Bucket) -> String {
    let [first, last] = [b.first, b.last].map(|step| grouped(step as u64));
    if b.first == b.last { first } else { format!("{first} to {last}") }
}

fn mean(b: &Bucket, word: fn(f64) -> String) -> String {
    word(b.mean().unwrap_or(f64::NAN))
}

/// Losses of steps, of many together where there are many.
pub fn loss_table(history: &History) -> Table {
    let (losses, smoothed) = (history.loss.rows(ROWS), history.smoothed.rows(ROWS));
    let rows = losses.iter().zip(&smoothed).map(|(b, s)| {
        vec![
            steps_of(b),
            mean(b, words::loss),
            words::loss(b.low.1),
            words::loss(b.high.1),
            mean(s, words::loss),
        ]
    });
    Table::new(&["step", "loss", "lowest", "highest", "smoothed"], rows.collect())
}

/// Held-out losses.
pub fn eval_table(history: &History) -> Table {
    let (losses, accuracies) = (history.held_out.rows(ROWS), history.held_out_accuracy.rows(ROWS));
    let rows = losses.iter().zip(&accuracies).map(|(b, a)| {
        let accuracy = a.mean().map_or("–".to_owned(), |a| format!("{:.1} %", 100.0 * a));
        vec![steps_of(b), mean(b, words::loss), accuracy]
    });
    Table::new(&["after step", "held-out loss", "token accuracy"], rows.collect())
}

/// Everything else of the steps.
pub fn step_table(history: &History) -> Table {
    let h = history;
    let columns = [&h.learning_rate, &h.grad_norm, &h.tokens_per_second, &h.seconds].map(|s| s.rows(ROWS));
    let rows = (0..columns[0].len()).map(|i| {
        let values = columns.iter().map(|column| mean(&column[i], figure));
        std::iter::once(steps_of(&columns[0][i])).chain(values).collect()
    });
    let head = ["step", "learning rate", "gradient norm", "tokens per second", "seconds"];
    Table::new(&head, rows.collect())
}

/// A text by the model and when that was.
#[derive(Serialize)]
pub struct Text {
    when: String,
    text: String,
}

/// The prompt, its first and last answer, and those between. Empty where there is none.
pub fn texts(history: &History) -> (String, Vec<Text>, Vec<Text>) {
    let Some(last) = history.samples.last() else { return Default::default() };
    let mut texts: Vec<Text> =
        history.samples.iter().filter(|s| s.prompt == last.prompt).map(Text::of).collect();
    let between = if texts.len() > 2 { texts.drain(1..texts.len() - 1).collect() } else { Vec::new() };
    (last.prompt.clone(), texts, between)
}

impl Text {
    fn of(sample: &Sample) -> Self {
        let when = match sample.step {
            0 => "Before the first step".to_owned(),
            1 => "After 1 step".to_owned(),
            n => format!("After {} steps", grouped(n as u64)),
        };
        let text = sample.text.trim();
        Self { when, text: if text.is_empty() { "(an empty answer)" } else { text }.to_owned() }
    }
}

/// A bar of memory.
#[derive(Serialize)]
pub struct Memory {
    what: String,
    class: &'static str,
    left: f64,
    width: f64,
    mib: String,
}

/// What was planned, each category beginning where the one before ends, and what was measured, on one scale.
pub fn memory(history: &History, record: &Record) -> Vec<Memory> {
    let (planned, peak) = (record.planned_bytes(), history.peak_memory_bytes);
    let whole = planned.max(peak.unwrap_or(0)).max(1) as f64;
    let bar = |what: &str, class, from: u64, bytes: u64| Memory {
        what: what.replace('_', " "),
        class,
        left: percent(from as f64 / whole),
        width: percent(bytes as f64 / whole),
        mib: number_of_mib(bytes),
    };
    let mut bars = Vec::new();
    let mut from = 0;
    for (category, bytes) in &record.planned_memory_bytes {
        let bytes = bytes.as_u64().unwrap_or(0);
        bars.push(bar(category, "", from, bytes));
        from += bytes;
    }
    bars.push(bar("planned in all", "total", 0, planned));
    bars.extend(peak.map(|peak| bar("measured peak", "measured", 0, peak)));
    bars
}

/// Of 100, to a hundredth.
fn percent(share: f64) -> f64 {
    (share * 1e4).round() / 100.0
}

/// What was measured, and of what.
pub fn memory_said(history: &History, record: &Record) -> String {
    let of = if record.device == "CPU" {
        "the largest resident memory of the whole process, the program and what it read of its files included"
    } else {
        "what was taken of the device's memory"
    };
    match history.peak_memory_bytes {
        Some(_) => format!("In MiB. Planned before the first step; measured is {of}."),
        None => "In MiB, as planned before the first step. Nothing was measured yet.".to_owned(),
    }
}

/// A data set.
#[derive(Serialize)]
pub struct Set {
    name: String,
    said: String,
    learnt: String,
    learnt_share: f64,
    lengths: Vec<Length>,
    findings: Vec<String>,
    counts: Vec<[String; 4]>,
}

#[derive(Serialize)]
struct Length {
    range: String,
    rows: String,
    width: f64,
    class: &'static str,
}

/// The audits of what was trained on, and of held-out rows of their own.
pub fn sets(record: &Record) -> Vec<Set> {
    let mut sets = Vec::from_iter(set(&record.data, record.key("data")));
    sets.extend(record.eval_data.as_ref().and_then(|data| set(data, record.key("eval_data"))));
    sets
}

fn set(data: &DataRecord, name: String) -> Option<Set> {
    let audit = data.audit.as_ref()?;
    let counts = audit.counts().into_iter();
    let counts =
        counts.map(|c| [c.what.into(), grouped(c.count as u64), c.note, c.places.join(", ")]).collect();
    let histogram = audit.histogram();
    let most = histogram.iter().map(|bin| bin.rows).max().unwrap_or(0).max(1);
    let lengths = histogram.into_iter().map(|bin| Length {
        range: bin.range,
        rows: grouped(bin.rows as u64),
        width: percent(bin.rows as f64 / most as f64),
        class: if bin.rows == 0 {
            "none"
        } else if bin.cut {
            "cut"
        } else {
            ""
        },
    });
    let held_out = match data.held_out_rows {
        0 => String::new(),
        n => format!(", {} of them held out", grouped(n as u64)),
    };
    let lost = match audit.lost_turn_ends {
        0 => String::new(),
        n => format!(", {} of which lost the end of their turn", grouped(n as u64)),
    };
    Some(Set {
        said: format!(
            "{name}: {} rows{held_out}, {} tokens; {} rows cut to {} tokens{lost}; {} dropped.",
            grouped(audit.rows as u64),
            grouped(audit.tokens as u64),
            grouped(audit.truncated as u64),
            grouped(audit.max_length as u64),
            grouped(audit.dropped as u64),
        ),
        name,
        learnt: format!("{:.1} %", 100.0 * audit.supervised_share),
        learnt_share: percent(audit.supervised_share),
        lengths: lengths.collect(),
        findings: audit.findings().into_iter().map(|(_, said)| said).collect(),
        counts,
    })
}

/// The recipe's keys and values.
#[derive(Serialize)]
pub struct Keys {
    /// Those that are not as they are by default.
    set: Vec<(String, String)>,
    defaults: Vec<(String, String)>,
}

/// The recipe, apart by whether anything was asked.
pub fn recipe(record: &Record) -> Keys {
    let usual = serde_json::to_value(Recipe::default()).expect("plain data");
    let (set, defaults): (Vec<_>, Vec<_>) =
        record.recipe.iter().partition(|(key, value)| usual.get(key.as_str()) != Some(value));
    let words = |keys: Vec<(&String, &Value)>| keys.into_iter().map(|(k, v)| (k.clone(), text(v))).collect();
    Keys { set: words(set), defaults: words(defaults) }
}

/// Hashes of data and model.
pub fn hashes(record: &Record) -> Vec<(String, String)> {
    let of = |key: &str, data: &DataRecord| {
        let name = record.key(key);
        data.sha256.iter().map(|hash| (name.clone(), hash.clone())).collect::<Vec<_>>()
    };
    let mut hashes = of("data", &record.data);
    hashes.extend(record.eval_data.iter().flat_map(|data| of("eval_data", data)));
    hashes.extend(record.model.sha256.iter().map(|(file, hash)| (file.clone(), text(hash))));
    hashes
}

/// What can be done with the run in `folder`.
pub fn commands(folder: &str, record: &Record, finished: bool) -> Vec<(&'static str, String)> {
    let (out, model) = (quoted(folder), quoted(&record.key("model")));
    if !finished {
        return vec![("Go on where it was cut off", format!("smolten train --resume --out {out}"))];
    }
    let gguf = quoted(&format!("{}/model.gguf", folder.trim_end_matches('/')));
    vec![
        (
            "The same prompts before and after, and the held-out loss",
            format!("smolten compare --base {model} --tuned {out}"),
        ),
        ("Talk to it", format!("smolten generate --model {out} --chat")),
        ("For llama.cpp and Ollama", format!("smolten export --model {out} --out {gguf} --type q8_0")),
        ("Beside another run", format!("smolten compare {out} OTHER_RUN")),
    ]
}
