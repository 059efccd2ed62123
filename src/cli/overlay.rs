//! `smolten compare RUN RUN…`: runs' records side by side, and laid over one another in a page.

use smolten::checkpoint::write_beside;
use smolten::error::{Error, Result};
use smolten::report::{FIGURES, RunRecord, differences, is_ours, overlay};
use std::path::{Path, PathBuf};

/// Where the page goes by default.
const PAGE: &str = "compare.html";

/// Characters of a value at most.
const CELL: usize = 32;

/// Reads every run first; then writes the page and prints its figures.
pub fn run(folders: &[PathBuf], out: Option<&Path>) -> Result<()> {
    let out = out.unwrap_or(Path::new(PAGE));
    if out.exists() && !is_ours(out) {
        return Err(Error::input(
            format!("--out {}", out.display()),
            "there is something that smolten did not write",
            "name another file, or move that away",
        ));
    }
    let runs = RunRecord::read_all(folders)?;
    let page = overlay(&runs)?;
    write_beside(out, |file| file.write_all(page.as_bytes()))?;
    let figures: Vec<Vec<String>> = runs.iter().map(RunRecord::figures).collect();
    let of = |i: usize| figures.iter().map(|f| f[i].clone()).collect();
    let mut rows: Vec<(String, Vec<String>)> =
        FIGURES.iter().enumerate().map(|(i, what)| ((*what).to_owned(), of(i))).collect();
    let different = differences(&runs);
    let split = rows.len();
    rows.extend(different);
    let lines = aligned(&rows);
    let (figures, keys) = lines.split_at(split);
    say!("{}", figures.join("\n"));
    if keys.is_empty() {
        say!("\nThe recipes are the same, and so are data, model and device.");
    } else {
        say!("\nWhere they differ:\n{}", keys.join("\n"));
    }
    say!("\npage: {} (open it in a browser)", out.display());
    Ok(())
}

/// A line a row, its values in columns.
fn aligned(rows: &[(String, Vec<String>)]) -> Vec<String> {
    let cell = |value: &String| match value.chars().count() {
        0 => "not set".to_owned(),
        n if n > CELL => value.chars().take(CELL - 1).chain(['…']).collect(),
        _ => value.clone(),
    };
    let rows: Vec<(&str, Vec<String>)> =
        rows.iter().map(|(name, values)| (name.as_str(), values.iter().map(cell).collect())).collect();
    let of = |text: &str| text.chars().count();
    let first = rows.iter().map(|(name, _)| of(name)).max().unwrap_or(0);
    let column = |i: usize| rows.iter().map(|(_, values)| of(&values[i])).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].1.len()).map(column).collect();
    let line = |(name, values): &(&str, Vec<String>)| {
        let cells = values.iter().zip(&widths).map(|(value, width)| format!("  {value:>width$}"));
        format!("{name:<first$}{}", cells.collect::<String>())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest() {
        let row = |name: &str, values: [&str; 2]| (name.to_owned(), values.map(str::to_owned).to_vec());
        let long = "x".repeat(99);
        let lines = aligned(&[row("run", ["a", "run-b"]), row("system", ["", &long])]);
        assert_eq!(lines[0], format!("run     {:>7}  {:>CELL$}", "a", "run-b"));
        assert_eq!(lines[1], format!("system  not set  {}…", "x".repeat(CELL - 1)));
    }
}
