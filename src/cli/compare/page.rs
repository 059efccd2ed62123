//! Two texts on one page, in as many columns as there is room for.

use std::io::IsTerminal;
use std::process::{Command, Stdio};

/// Columns from which the texts stand side by side.
const SIDE_BY_SIDE: usize = 100;

/// Columns of a page that is no terminal.
const FILE: usize = 80;

/// Columns of standard output: those of the terminal, or of a file.
pub fn width() -> usize {
    if !std::io::stdout().is_terminal() {
        return FILE;
    }
    let told = std::env::var("COLUMNS").ok().and_then(|text| text.trim().parse().ok());
    told.or_else(terminal_columns).unwrap_or(FILE).clamp(20, 200)
}

/// What `stty size` says of the controlling terminal: rows and columns.
fn terminal_columns() -> Option<usize> {
    let terminal = std::fs::File::open("/dev/tty").ok()?;
    let said = Command::new("stty").arg("size").stdin(terminal).stderr(Stdio::null()).output().ok()?;
    let columns = String::from_utf8(said.stdout).ok()?.split_whitespace().nth(1)?.parse().ok()?;
    (columns > 0).then_some(columns)
}

/// Both texts with their headings: side by side where `width` allows, else one under the other.
pub fn pair(left: (&str, &str), right: (&str, &str), width: usize) -> String {
    if width < SIDE_BY_SIDE {
        let one = |(heading, text): (&str, &str)| {
            let lines = wrap(text, width - 2);
            let lines: String = lines.iter().map(|line| format!("  {line}\n")).collect();
            wrap(&format!("{heading}:"), width).join("\n") + "\n" + &lines
        };
        return format!("{}\n{}", one(left), one(right));
    }
    let column = (width - 3) / 2;
    let lines = |(heading, text): (&str, &str)| {
        let mut lines = wrap(heading, column);
        lines.push("─".repeat(column));
        lines.extend(wrap(text, column));
        lines
    };
    let (left, right) = (lines(left), lines(right));
    let empty = String::new();
    let row = |i: usize| {
        let (l, r) = (left.get(i).unwrap_or(&empty), right.get(i).unwrap_or(&empty));
        let fill = " ".repeat(column - columns(l));
        format!("{l}{fill} │ {r}").trim_end().to_owned() + "\n"
    };
    (0..left.len().max(right.len())).map(row).collect()
}

/// Lines of at most `width` columns, broken at spaces where there are any. Control characters are left out.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.trim_end().split('\n') {
        let paragraph: String = paragraph.replace('\t', "    ").chars().filter(|c| !c.is_control()).collect();
        let mut line = String::new();
        for word in paragraph.split_inclusive(' ') {
            let mut word = word;
            if columns(&line) + columns(word.trim_end()) > width && !line.is_empty() {
                lines.push(std::mem::take(&mut line).trim_end().to_owned());
            }
            while columns(word.trim_end()) > width {
                let (head, tail) = cut(word, width);
                lines.push(head.to_owned());
                word = tail;
            }
            line += word;
        }
        lines.push(line.trim_end().to_owned());
    }
    lines
}

/// As much of the beginning as fits `width`, but at least one character; and the rest.
fn cut(word: &str, width: usize) -> (&str, &str) {
    let mut taken = 0;
    let end = word.char_indices().skip(1).find(|&(at, c)| {
        taken += columns(&word[..at]) - taken;
        taken + wide(c) > width
    });
    word.split_at(end.map_or(word.len(), |(at, _)| at))
}

/// Columns that a terminal gives a text.
fn columns(text: &str) -> usize {
    text.chars().map(wide).sum()
}

/// Two for characters of East Asia and pictures, none for marks that join the one before, else one.
fn wide(c: char) -> usize {
    match u32::from(c) {
        0x300..=0x36f | 0x200b..=0x200f | 0xfe00..=0xfe0f => 0,
        0x1100..=0x115f | 0x2e80..=0xa4cf | 0xac00..=0xd7a3 | 0xf900..=0xfaff | 0xfe30..=0xfe6f => 2,
        0xff00..=0xff60 | 0xffe0..=0xffe6 | 0x1f300..=0x1f64f | 0x1f900..=0x1f9ff | 0x2_0000..=0x3_fffd => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "First, the sum.\n\n  2 + 2 = 4, which everybody knows.\nabcdefghijklmnopqrstuvwxyz\x1b[31m";

    #[test]
    fn lines_keep_to_the_width_and_lose_no_word() {
        for width in [1, 2, 7, 20, 80] {
            let lines = wrap(TEXT, width);
            assert!(lines.iter().all(|l| columns(l) <= width), "{width}: {lines:?}");
            let letters =
                |s: &str| s.chars().filter(|c| !c.is_whitespace() && !c.is_control()).collect::<String>();
            assert_eq!(letters(&lines.concat()), letters(TEXT), "{width}");
        }
        assert_eq!(wrap("a b\n\nc", 80), ["a b", "", "c"]);
        assert_eq!(wrap("one two three", 8), ["one two", "three"]);
        assert_eq!(wrap("日本語", 4), ["日本", "語"]);
        assert_eq!(wrap("", 10), [""]);
    }

    #[test]
    fn texts_stand_side_by_side_only_where_there_is_room() {
        let narrow = pair(("base", "yes"), ("tuned", "no"), 40);
        assert_eq!(narrow, "base:\n  yes\n\ntuned:\n  no\n");
        let wide = pair(("base", TEXT), ("tuned", "no\nnot"), 120);
        let lines: Vec<&str> = wide.lines().collect();
        assert!(lines[0].starts_with("base ") && lines[0].ends_with("│ tuned"), "{wide}");
        assert!(lines[3].ends_with("│ not") && lines.iter().all(|l| columns(l) <= 120), "{wide}");
        let bar = |l: &&str| l.chars().position(|c| c == '│');
        assert!(lines.iter().all(|l| bar(l) == Some(59)), "{wide}");
    }
}
