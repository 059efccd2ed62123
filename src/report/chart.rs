//! A chart as its page takes it: paths for the lines, and as text all that is text, so that it keeps its size on a
//! phone. A picture is a square of [`SIDE`] that the page stretches.

use super::scale::{From, Scale, Tick};
use super::series::Series;
use super::words::{figure, grouped};
use serde::Serialize;
use serde_json::{Value, json};
use std::fmt::Write;

const SIDE: f64 = 1000.0;
/// Values that have a dot each, at most.
const DOTS: usize = 60;
/// Distance of two labels at the right end, in percent of the height.
const LABEL_GAP: f64 = 10.0;

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// A line through every value.
    Plain,
    /// The same, behind others.
    Thin,
    /// A line through the means.
    Strong,
    /// A line with a dot at every value.
    Dots,
}

/// One line of a chart.
#[derive(Clone, Debug)]
pub struct Line<'a> {
    /// For its label and the read-out.
    pub name: String,
    /// Number of its colour.
    pub colour: usize,
    /// How it is drawn.
    pub style: Style,
    /// Whether its name stands at its end.
    pub labelled: bool,
    /// Its values.
    pub series: &'a Series,
}

/// What is common to the charts of a page.
#[derive(Clone, Copy, Debug)]
pub struct Axis {
    /// Steps.
    pub steps: Scale,
    /// Ticks of the steps.
    pub ticks: usize,
}

/// A line of the picture.
#[derive(Clone, Debug, Serialize)]
struct Shape {
    class: String,
    d: String,
}

/// A name at the right end of a line.
#[derive(Clone, Debug, Serialize)]
struct Label {
    colour: usize,
    /// From the top, in percent.
    at: f64,
    name: String,
    value: String,
}

/// A level with its name.
#[derive(Clone, Debug, Serialize)]
struct Level {
    at: f64,
    name: String,
}

/// A chart, ready for its template.
#[derive(Clone, Debug, Serialize)]
pub struct Chart {
    /// Name in the page.
    pub id: &'static str,
    /// What is drawn.
    pub title: &'static str,
    /// For those who do not see it.
    pub alt: String,
    /// What the read-out shows at first.
    pub latest: String,
    /// What the picture cannot show.
    pub notes: Vec<String>,
    x: Vec<Tick>,
    y: Vec<Tick>,
    x_ends: (f64, f64),
    shapes: Vec<Shape>,
    labels: Vec<Label>,
    levels: Vec<Level>,
    #[serde(skip)]
    steps: Scale,
    #[serde(skip)]
    scale: Scale,
    /// Names and values for the read-out.
    #[serde(skip)]
    pub values: Vec<Value>,
}

impl Chart {
    /// Draws lines; the later ones lie on top.
    pub fn new(id: &'static str, title: &'static str, lines: &[Line<'_>], from: From, axis: Axis) -> Self {
        let all: Vec<&Series> = lines.iter().map(|line| line.series).collect();
        let (scale, spike) = Scale::values(&all, from);
        let steps = axis.steps;
        let mut chart = Self {
            id,
            title,
            alt: described(title, lines),
            latest: String::new(),
            notes: Vec::new(),
            x: steps.step_ticks(axis.ticks),
            y: scale.ticks(axis.ticks),
            x_ends: steps.ends(),
            shapes: Vec::new(),
            labels: Vec::new(),
            levels: Vec::new(),
            steps,
            scale,
            values: lines.iter().map(|line| values(line)).collect(),
        };
        if let Some((step, value)) = spike {
            chart.notes.push(format!(
                "beyond the picture: up to {} at step {}",
                figure(value),
                grouped(step as u64)
            ));
        }
        for line in lines {
            chart.draw(line);
        }
        chart.labels = spread(std::mem::take(&mut chart.labels));
        chart
    }

    fn draw(&mut self, line: &Line<'_>) {
        let Line { colour, style, series, .. } = line;
        let (path, dots) = self.path(series, *style);
        // Of values that were joined the mean is a line of its own.
        let behind = *style == Style::Plain && !series.is_whole();
        let class = match style {
            Style::Plain if behind => "thin",
            Style::Plain => "plain",
            Style::Thin => "thin",
            Style::Strong | Style::Dots => "strong",
        };
        self.shapes.push(Shape { class: format!("{class} c{colour}"), d: path });
        if behind {
            let (means, _) = self.path(series, Style::Strong);
            self.shapes.push(Shape { class: format!("plain c{colour}"), d: means });
        }
        if !dots.is_empty() {
            self.shapes.push(Shape { class: format!("dots c{colour}"), d: dots });
        }
        if let Some((_, value)) = series.last().filter(|_| line.labelled) {
            let at = 100.0 * (1.0 - self.scale.share(value).clamp(0.0, 1.0));
            let label = Label { colour: *colour, at, name: line.name.clone(), value: figure(value) };
            self.labels.push(label);
        }
    }

    /// The line, and the dots on it: those that were asked for, and those of values that stand alone.
    fn path(&self, series: &Series, style: Style) -> (String, String) {
        let (mut path, mut dots) = (String::new(), String::new());
        let runs = series.buckets().split(|b| b.finite == 0).filter(|run| !run.is_empty());
        for run in runs {
            let points: Vec<(usize, f64)> = run
                .iter()
                .flat_map(|b| {
                    let mean = b.mean().unwrap_or(f64::NAN);
                    match style {
                        Style::Strong if b.finite > 1 => [Some((b.last, mean)), None],
                        _ if b.low.0 < b.high.0 => [Some(b.low), Some(b.high)],
                        _ if b.low.0 > b.high.0 => [Some(b.high), Some(b.low)],
                        _ => [Some(b.low), None],
                    }
                })
                .flatten()
                .collect();
            for (i, &(step, value)) in points.iter().enumerate() {
                let (x, y) = (SIDE * self.steps.share(step as f64), SIDE * (1.0 - self.scale.share(value)));
                let letter = if i == 0 { 'M' } else { 'L' };
                write!(path, "{letter}{x:.1} {y:.1}").expect("text takes text");
                if points.len() == 1 || (style == Style::Dots && series.buckets().len() <= DOTS) {
                    // A stroke without length, whose round ends keep their form when the picture is stretched.
                    write!(dots, "M{x:.1} {y:.1}h0").expect("text takes text");
                }
            }
        }
        (path, dots)
    }

    /// A level across the picture, where it lies in it.
    pub fn level(&mut self, value: f64, name: String) {
        let share = self.scale.share(value);
        if (0.0..=1.0).contains(&share) {
            let y = SIDE * (1.0 - share);
            self.shapes.push(Shape { class: "level".to_owned(), d: format!("M0 {y:.1}H{SIDE}") });
            self.levels.push(Level { at: 100.0 * (1.0 - share), name });
        }
    }

    /// Marks at the bottom, where values of `series` are missing.
    pub fn mark_missing(&mut self, series: &Series) {
        let mut d = String::new();
        for bucket in series.buckets().iter().filter(|b| b.missing > 0) {
            let x = SIDE * self.steps.share(bucket.first as f64);
            write!(d, "M{x:.1} {SIDE}v-60").expect("text takes text");
        }
        if !d.is_empty() {
            self.shapes.push(Shape { class: "missing".to_owned(), d });
        }
    }
}

/// What a reader hears who does not see the lines.
fn described(title: &str, lines: &[Line<'_>]) -> String {
    let one = |line: &Line<'_>| {
        let first = line.series.buckets().iter().find(|b| b.finite > 0)?;
        let (step, last) = line.series.last()?;
        let (from, at) = (figure(first.mean()?), first.first);
        Some(format!("{}: {from} at step {at}, {} at step {step}", line.name, figure(last)))
    };
    let said: Vec<String> = lines.iter().filter_map(one).collect();
    if said.is_empty() { format!("{title}: no values yet") } else { format!("{title}. {}", said.join("; ")) }
}

/// Steps and values of a line for the read-out. Null stands for what is not finite.
fn values(line: &Line<'_>) -> Value {
    let buckets = line.series.buckets();
    let steps: Vec<usize> = buckets.iter().map(|b| b.last).collect();
    let values: Vec<Option<f64>> = buckets.iter().map(|b| b.mean().map(short)).collect();
    json!({ "name": line.name, "steps": steps, "values": values, "means": !line.series.is_whole() })
}

/// To five digits, which is all that is shown.
fn short(x: f64) -> f64 {
    format!("{x:.4e}").parse().unwrap_or(x)
}

/// Moves labels apart that would lie on one another.
fn spread(mut labels: Vec<Label>) -> Vec<Label> {
    labels.sort_by(|a, b| a.at.total_cmp(&b.at));
    for i in 1..labels.len() {
        labels[i].at = labels[i].at.max(labels[i - 1].at + LABEL_GAP);
    }
    let mut floor = 100.0;
    for label in labels.iter_mut().rev() {
        label.at = label.at.min(floor);
        floor = label.at - LABEL_GAP;
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(last: usize) -> Axis {
        Axis { steps: Scale::steps(0, last), ticks: 5 }
    }

    fn drawn(values: &[f64], style: Style) -> Chart {
        let mut series = Series::default();
        values.iter().enumerate().for_each(|(i, &v)| series.push(i + 1, v));
        let line = Line { name: "train".into(), colour: 0, style, labelled: true, series: &series };
        Chart::new("loss", "Loss", &[line], From::Data, axis(values.len()))
    }

    #[test]
    fn a_line_goes_through_its_values() {
        let chart = drawn(&[1.0, 3.0, 2.0], Style::Thin);
        // 5 % of the range above and below: 3 at 5/110 from the top.
        assert_eq!(chart.shapes[0].d, "M333.3 954.5L666.7 45.5L1000.0 500.0");
        assert_eq!((chart.labels[0].at.round(), chart.labels[0].value.as_str()), (50.0, "2.000"));
        assert_eq!(chart.alt, "Loss. train: 1.000 at step 1, 2.000 at step 3");
    }

    #[test]
    fn gaps_stay_gaps_and_lone_values_are_dots() {
        let chart = drawn(&[1.0, f64::NAN, 3.0, 2.0], Style::Thin);
        assert_eq!(chart.shapes[0].d.matches('M').count(), 2);
        assert_eq!(chart.shapes[1].class, "dots c0");
        assert_eq!(chart.shapes[1].d, "M250.0 954.5h0");
        assert_eq!(chart.values[0]["values"][1], Value::Null);
        assert!(drawn(&[f64::NAN], Style::Dots).alt.ends_with("no values yet"));
    }

    #[test]
    fn a_line_never_turns_back() {
        let mut series = Series::default();
        // Three times what a series holds one by one, so that low and high are parts of one bucket, in either order.
        (1..=3072).for_each(|i| series.push(i, [1.0, 2.0, 3.0, 2.0, 0.5][i % 5]));
        let line =
            Line { name: "train".into(), colour: 0, style: Style::Thin, labelled: false, series: &series };
        let chart = Chart::new("loss", "Loss", &[line], From::Data, axis(3072));
        let points = chart.shapes[0].d.trim_start_matches('M').split('L');
        let x: Vec<f64> = points.map(|p| p.split(' ').next().unwrap().parse().unwrap()).collect();
        assert_eq!(x.len(), 2 * series.buckets().len());
        assert!(x.windows(2).all(|w| w[0] <= w[1]));
    }

    #[test]
    fn labels_keep_apart_and_inside() {
        let of = |at| Label { colour: 0, at, name: String::new(), value: String::new() };
        let at: Vec<f64> = spread(vec![of(99.0), of(98.0), of(5.0), of(97.0)]).iter().map(|l| l.at).collect();
        assert_eq!(at, [5.0, 80.0, 90.0, 100.0]);
    }

    #[test]
    fn what_lies_outside_is_said() {
        let mut values = vec![2.0; 100];
        values[40] = 5e8;
        values[7] = 2.5;
        let chart = drawn(&values, Style::Thin);
        assert_eq!(chart.notes, ["beyond the picture: up to 5.00e8 at step 41"]);
        assert!(chart.shapes[0].d.contains(" -1000.0"), "the line leaves the picture at its top");
    }
}
