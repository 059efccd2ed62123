//! Tokens on the screen: in colour on a terminal, else in brackets.

use smolten::dataset::Label;
use std::io::IsTerminal;

/// Whether standard output takes colours.
fn colour() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Tokens side by side; line ends are shown, and continue indented.
pub fn painted(tokens: &[(String, Label)]) -> String {
    paint(tokens, colour())
}

/// What colours or brackets mean; `cut` tells whether there may be tokens that were cut off.
pub fn legend(cut: bool) -> String {
    let (text, more) = if colour() {
        (
            "\x1b[90mgrey: read\x1b[0m, \x1b[32mgreen: learnt\x1b[0m, · between tokens",
            ", \x1b[9;31mred: cut off\x1b[0m",
        )
    } else {
        ("[[…]]: learnt; the rest is read only", "; <<…>>: cut off")
    };
    format!("{text}{}", if cut { more } else { "" })
}

fn paint(tokens: &[(String, Label)], colour: bool) -> String {
    let mut text = String::new();
    for run in tokens.chunk_by(|a, b| a.1 == b.1) {
        let pieces: Vec<&str> = run.iter().map(|(t, _)| t.as_str()).collect();
        // A mark between tokens shows where they end.
        let joined = if colour { pieces.join("\x1b[2m·\x1b[22m") } else { pieces.concat() };
        let joined = joined.replace('\n', "⏎\n    ");
        text += &match (colour, run[0].1) {
            (true, Label::Supervised) => format!("\x1b[32m{joined}\x1b[0m"),
            (true, Label::Masked) => format!("\x1b[90m{joined}\x1b[0m"),
            (true, Label::Truncated) => format!("\x1b[9;31m{joined}\x1b[0m"),
            (false, Label::Supervised) => format!("[[{joined}]]"),
            (false, Label::Masked) => joined,
            (false, Label::Truncated) => format!("<<{joined}>>"),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_show_with_and_without_colour() {
        let tokens = [("a", Label::Masked), ("b", Label::Masked), ("c\n", Label::Supervised)];
        let tokens = tokens.into_iter().chain([("d", Label::Truncated)]).map(|(t, l)| (t.to_owned(), l));
        let tokens: Vec<_> = tokens.collect();
        assert_eq!(paint(&tokens, false), "ab[[c⏎\n    ]]<<d>>");
        let coloured = "\x1b[90ma\x1b[2m·\x1b[22mb\x1b[0m\x1b[32mc⏎\n    \x1b[0m\x1b[9;31md\x1b[0m";
        assert_eq!(paint(&tokens, true), coloured);
    }
}
