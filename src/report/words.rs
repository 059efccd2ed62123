//! Numbers, times and commands as people read them.

use std::time::Duration;

/// `1 min 20 s`, `45 s`, `2 h 5 min`; a dash for what is no number.
pub fn duration(seconds: f64) -> String {
    if seconds.is_nan() {
        return "–".to_owned();
    }
    let d = Duration::from_secs_f64(seconds.clamp(0.0, 1e9));
    let s = d.as_secs();
    match s {
        0..60 => format!("{} s", s.max(1)),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        _ => format!("{} h {} min", s / 3600, s / 60 % 60),
    }
}

/// Whether a change with this interval may be none; not where nothing is known.
pub fn may_be_none(change: Option<[f64; 2]>) -> bool {
    // An end that is NaN rules nothing out.
    change.is_some_and(|[low, high]| !(low > 0.0 || high < 0.0))
}

/// What two held-out losses say, with the interval of their difference where it is known.
pub fn verdict(before: f64, after: f64, change: Option<[f64; 2]>) -> &'static str {
    if may_be_none(change) {
        "no difference was seen: over other rows of this kind there might be none"
    } else if after < before {
        "lower: what was learnt holds for rows not trained on"
    } else {
        "not lower: the rows were memorised; fewer steps or a smaller --lr may help"
    }
}

/// `1,234,567`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(c);
    }
    text
}

/// Bytes in MiB, rounded up.
pub fn mib(bytes: u64) -> String {
    format!("{} MiB", grouped(bytes.div_ceil(1 << 20)))
}

/// Four digits that count: `1.234`, `1,234`, `2.00e-4`; a dash for what is not finite.
pub fn figure(x: f64) -> String {
    let size = x.abs();
    match size {
        _ if !x.is_finite() => "–".to_owned(),
        0.0 => "0".to_owned(),
        1e7.. | ..1e-2 => format!("{x:.2e}"),
        1e3.. => format!("{}{}", if x < 0.0 { "-" } else { "" }, grouped(whole(size))),
        ..1.0 => format!("{x:.4}"),
        ..10.0 => format!("{x:.3}"),
        ..100.0 => format!("{x:.2}"),
        _ => format!("{x:.1}"),
    }
}

/// The nearest whole number, where it is none below 0.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
pub fn whole(x: f64) -> u64 {
    x.round() as u64
}

/// A loss, to four places.
pub fn loss(x: f64) -> String {
    match x {
        _ if !x.is_finite() => "–".to_owned(),
        _ if x.abs() < 1e4 => format!("{x:.4}"),
        _ => format!("{x:.3e}"),
    }
}

/// A word of a command line as a shell takes it.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "_-./:@%+=,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        let words = ["1 s", "59 s", "1 min 1 s", "2 h 5 min", "–"];
        assert_eq!([0.2, 59.9, 61.0, 7500.0, f64::NAN].map(duration), words);
    }

    #[test]
    fn figures_have_four_digits() {
        let figures = [0.0, 2e-4, 0.05, 0.5, 1.0, 9.9996, 12.345, 123.45, 1234.5, -2000.0, 3.2e9, f64::NAN];
        let words = [
            "0", "2.00e-4", "0.0500", "0.5000", "1.000", "10.000", "12.35", "123.5", "1,235", "-2,000",
            "3.20e9", "–",
        ];
        assert_eq!(figures.map(figure), words);
        assert_eq!([12.34567, 3e7, f64::INFINITY].map(loss), ["12.3457", "3.000e7", "–"]);
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn words_survive_a_shell() {
        assert_eq!(quoted("runs/a-b_c.1"), "runs/a-b_c.1");
        assert_eq!(quoted("my run's"), "'my run'\\''s'");
        assert_eq!((quoted(""), quoted("$HOME")), ("''".to_owned(), "'$HOME'".to_owned()));
    }
}
