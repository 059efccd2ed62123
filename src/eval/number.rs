//! Numbers in text, exactly: as fractions of whole numbers, not as floats.

use num_bigint::BigInt;

/// Digits of a number, and its power of ten either way, beyond which it is no number a person wrote.
const MOST: usize = 1000;

const CURRENCIES: &str = "$€£¥₹";

/// An exact number.
#[derive(Clone, Debug)]
pub struct Number {
    numerator: BigInt,
    /// Above 0.
    denominator: BigInt,
}

impl PartialEq for Number {
    fn eq(&self, other: &Self) -> bool {
        &self.numerator * &other.denominator == &other.numerator * &self.denominator
    }
}

/// A text in which the many ways to write a minus, a space between thousands, and a fraction are one each.
pub struct Text(Vec<char>);

/// A number in it, and the characters that it takes.
pub type Found = (Number, std::ops::Range<usize>);

impl Text {
    /// Of any text, LaTeX or not.
    pub fn new(text: &str) -> Self {
        const LATEX: [(&str, &str); 9] = [
            ("{,}", ","),
            ("\\!", ""),
            ("\\,", "\u{2009}"),
            ("\\$", "$"),
            ("\\%", "%"),
            ("\\dfrac", "\\frac"),
            ("\\tfrac", "\\frac"),
            ("\\times", "×"),
            ("\\cdot", "×"),
        ];
        let mut text = text.to_owned();
        for (from, to) in LATEX {
            text = text.replace(from, to);
        }
        let one = |c| match c {
            // Hyphens, en dash, minus, small and full-width ones.
            '\u{2010}' | '\u{2011}' | '\u{2013}' | '\u{2212}' | '\u{fe63}' | '\u{ff0d}' => '-',
            '\u{a0}' | '\u{202f}' => '\u{2009}',
            c => c,
        };
        Self(text.chars().map(one).collect())
    }

    /// The number that begins at character `at`, sign and currency included.
    pub fn number_at(&self, at: usize) -> Option<Found> {
        let mut cursor = Cursor { text: &self.0, at };
        let mut sign = cursor.any_of("+-");
        if cursor.any_of(CURRENCIES).is_some() {
            cursor.spaces();
            sign = sign.or_else(|| cursor.any_of("+-"));
        }
        let mut number = cursor.fraction()?;
        if sign == Some('-') {
            number.numerator = -number.numerator;
        }
        let end = cursor.at;
        cursor.spaces();
        if cursor.any_of("%").is_none() && cursor.any_of(CURRENCIES).is_none() {
            cursor.at = end;
        }
        Some((number, at..cursor.at))
    }

    /// The last number that stands for itself: not a part of a word, an exponent, or an index.
    pub fn last_number(&self) -> Option<Found> {
        let (mut last, mut at) = (None, 0);
        while at < self.0.len() {
            match self.may_begin(at).then(|| self.number_at(at)).flatten() {
                Some(found) => {
                    at = found.1.end;
                    last = Some(found);
                }
                None => at += 1,
            }
        }
        last
    }

    fn may_begin(&self, at: usize) -> bool {
        let before = |n: usize| at.checked_sub(n).map(|i| self.0[i]);
        let Some(previous) = before(1) else { return true };
        let is_digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit());
        let goes_on = previous.is_alphanumeric()
            || "_^".contains(previous)
            || previous == '.' && is_digit(before(2))
            || previous == '{' && before(2).is_some_and(|c| "_^".contains(c));
        // A sign behind a value is an operation.
        let operates = "+-".contains(self.0[at]) && ")]}%".contains(previous);
        !goes_on && !operates
    }

    /// Characters as text.
    pub fn slice(&self, range: std::ops::Range<usize>) -> String {
        self.0[range].iter().collect()
    }

    /// How many characters there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

struct Cursor<'a> {
    text: &'a [char],
    at: usize,
}

impl Cursor<'_> {
    fn peek(&self) -> Option<char> {
        self.text.get(self.at).copied()
    }

    fn any_of(&mut self, allowed: &str) -> Option<char> {
        let c = self.peek().filter(|&c| allowed.contains(c))?;
        self.at += 1;
        Some(c)
    }

    fn word(&mut self, word: &str) -> Option<()> {
        let end = self.at + word.chars().count();
        let there = self.text.get(self.at..end)?.iter().copied().eq(word.chars());
        there.then(|| self.at = end)
    }

    fn spaces(&mut self) {
        while self.any_of(" ").is_some() {}
    }

    /// What `read` finds; where it finds nothing, it has not moved.
    fn attempt<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        let at = self.at;
        let found = read(self);
        if found.is_none() {
            self.at = at;
        }
        found
    }

    /// `\frac{a}{b}`, `a/b` or `a`, without a sign.
    fn fraction(&mut self) -> Option<Number> {
        if self.word("\\frac{").is_some() {
            let numerator = self.decimal()?;
            self.word("}{")?;
            let number = over(numerator, self.decimal()?)?;
            self.word("}")?;
            return Some(number);
        }
        let numerator = self.decimal()?;
        let whole = numerator.clone();
        let quotient = self.attempt(|c| {
            c.spaces();
            c.any_of("/")?;
            c.spaces();
            over(numerator, c.decimal()?)
        });
        Some(quotient.unwrap_or(whole))
    }

    /// `1,234.5`, `.5`, `1.5e6`, `1.5 × 10^6`.
    fn decimal(&mut self) -> Option<Number> {
        let mut digits = self.digits();
        if (1..=3).contains(&digits.len()) {
            while let Some(group) = self.attempt(Self::group) {
                digits += &group;
            }
        }
        let whole = digits.len();
        digits += &self.attempt(Self::decimals).unwrap_or_default();
        let places = digits.len() - whole;
        if digits.is_empty() || digits.len() > MOST {
            return None;
        }
        let exponent = self.attempt(Self::exponent).or_else(|| self.attempt(Self::power_of_ten)).unwrap_or(0);
        let exponent = exponent - i64::try_from(places).ok()?;
        let power = BigInt::from(10).pow(u32::try_from(exponent.unsigned_abs()).ok()?);
        let mantissa: BigInt = digits.parse().ok()?;
        Some(match exponent >= 0 {
            true => Number { numerator: mantissa * power, denominator: 1.into() },
            false => Number { numerator: mantissa, denominator: power },
        })
    }

    fn digits(&mut self) -> String {
        std::iter::from_fn(|| self.any_of("0123456789")).collect()
    }

    /// Three digits, and no more, behind a comma or a narrow space.
    fn group(&mut self) -> Option<String> {
        self.any_of(",\u{2009}")?;
        Some(self.digits()).filter(|digits| digits.len() == 3)
    }

    fn decimals(&mut self) -> Option<String> {
        self.any_of(".")?;
        Some(self.digits()).filter(|digits| !digits.is_empty())
    }

    /// `e6`, and no letter or digit behind it.
    fn exponent(&mut self) -> Option<i64> {
        self.any_of("eE")?;
        let exponent = self.signed()?;
        self.peek().is_none_or(|c| !c.is_alphanumeric()).then_some(exponent)
    }

    /// `× 10^6`, `× 10^{6}`.
    fn power_of_ten(&mut self) -> Option<i64> {
        self.spaces();
        self.any_of("×x*")?;
        self.spaces();
        self.word("10^")?;
        let braced = self.any_of("{").is_some();
        let exponent = self.signed()?;
        if braced {
            self.any_of("}")?;
        }
        Some(exponent)
    }

    fn signed(&mut self) -> Option<i64> {
        let sign = self.any_of("+-");
        let exponent: i64 = self.digits().parse().ok().filter(|&e| e <= MOST as i64)?;
        Some(if sign == Some('-') { -exponent } else { exponent })
    }
}

/// None for a division by zero.
fn over(a: Number, b: Number) -> Option<Number> {
    let denominator = a.denominator * &b.numerator;
    (denominator != BigInt::ZERO).then(|| Number { numerator: a.numerator * b.denominator, denominator })
}
