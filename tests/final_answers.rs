//! The answer that a text ends in: hard cases by hand, and every reference of GSM8K's training rows where their file is.

use serde_json::Value;
use smolten::eval::{FinalAnswer, Rule};
use std::path::PathBuf;

/// Text, the rule that fires, and what is found.
const FOUND: [(&str, Rule, &str); 43] = [
    // GSM8K: a line of its own, the last one; not a heading, not a calculation.
    ("48/2 = 24\n48+24 = 72\n#### 72", Rule::Hashes, "72"),
    ("#### 10,000", Rule::Hashes, "10,000"),
    ("#### -3.5", Rule::Hashes, "-3.5"),
    ("#### \u{2212}3", Rule::Hashes, "-3"),
    ("#### $1,234.50 dollars", Rule::Hashes, "$1,234.50"),
    ("####72.", Rule::Hashes, "72"),
    ("the end #### **18**", Rule::Hashes, "18"),
    ("#### 3\nNo, wait.\n#### 4\nThere are 5 of them.", Rule::Hashes, "4"),
    ("#### 1. First\nadd 2\n#### 2. Second\nso it is 9.", Rule::LastNumber, "9"),
    ("#### 3 + 4 = 7", Rule::LastNumber, "7"),
    ("#### Step\nIt is 8", Rule::LastNumber, "8"),
    ("#### 5\n\\boxed{6}", Rule::Hashes, "5"),
    // A box: the last that is closed, whatever is in it.
    ("so \\boxed{42}", Rule::Boxed, "42"),
    ("\\boxed{1} or rather \\boxed{2}, of 3", Rule::Boxed, "2"),
    ("\\boxed{7} and \\boxed{8", Rule::Boxed, "7"),
    ("\\boxed{\\frac{3}{4}}", Rule::Boxed, "\\frac{3}{4}"),
    ("\\boxed{\\boxed{5}}", Rule::Boxed, "5"),
    ("\\boxed{12\\text{ cm}}", Rule::Boxed, "12"),
    ("\\boxed{\\text{ B }}", Rule::Boxed, "B"),
    ("\\boxed{ x + 1 }", Rule::Boxed, "x + 1"),
    ("\\boxed{\\{1, 2\\}}", Rule::Boxed, "\\{1, 2\\}"),
    ("\\boxed{\\}}", Rule::Boxed, "\\}"),
    ("\\boxed{(3, 4)}", Rule::Boxed, "(3, 4)"),
    ("\\boxed{50\\%}", Rule::Boxed, "50%"),
    // The last number, which is not a part of something else.
    ("The answer is 12.", Rule::LastNumber, "12"),
    ("It costs $1,000,000.00!", Rule::LastNumber, "$1,000,000.00"),
    ("from 3 to 5", Rule::LastNumber, "5"),
    ("a range of 3-5", Rule::LastNumber, "5"),
    ("it fell to -5", Rule::LastNumber, "-5"),
    ("(4) - 5", Rule::LastNumber, "5"),
    ("f(4)-5", Rule::LastNumber, "5"),
    ("1, 2, 3", Rule::LastNumber, "3"),
    ("the pair (3,14)", Rule::LastNumber, "14"),
    ("1,234,56", Rule::LastNumber, "56"),
    ("7 of H2O and x_3 and y^2 and z^{4}", Rule::LastNumber, "7"),
    ("10km", Rule::LastNumber, "10"),
    ("half of it: 1/2 cup", Rule::LastNumber, "1/2"),
    ("1.5 × 10^6 people", Rule::LastNumber, "1.5 × 10^6"),
    ("1.5e6", Rule::LastNumber, "1.5e6"),
    ("3 eggs", Rule::LastNumber, "3"),
    ("5/0", Rule::LastNumber, "0"),
    ("the year 12/25/2020", Rule::LastNumber, "2020"),
    ("٣ or 3", Rule::LastNumber, "3"),
];

/// Texts that hold the same answer.
const EQUAL: [(&str, &str); 26] = [
    ("#### 72", "72.0"),
    ("#### 72", "it is 72."),
    ("#### 72", "+72"),
    ("#### 1000", "1,000"),
    ("#### 1000", "$1,000.00"),
    ("#### 1000", "1{,}000"),
    ("#### 1000", "1\\,000"),
    ("#### 1000", "1\u{202f}000 €"),
    ("#### 1000", "\\$1000"),
    ("#### 1000", "1e3"),
    ("#### 1000", "1 \\times 10^{3}"),
    ("#### 1000", "1 x 10^3"),
    ("#### 0.001", "1E-3"),
    ("#### 0.5", "1/2"),
    ("#### 0.5", ".5"),
    ("#### 0.5", "\\boxed{\\dfrac{1}{2}}"),
    ("#### 2/4", "\\boxed{\\frac{1}{2}}"),
    ("#### -1/3", "\\boxed{-\\frac{2}{6}}"),
    ("#### -5", "-$5"),
    ("#### -5", "$-5"),
    ("#### -5", "–5"),
    ("#### 50", "50%"),
    ("#### 007", "7"),
    ("#### 123456789012345678901234567890", "123,456,789,012,345,678,901,234,567,890.00"),
    ("\\boxed{x+1}", "\\boxed{ x+1 }"),
    ("\\boxed{B}", "\\boxed{\\text{B}}"),
];

/// Texts that do not. Some are the same number to a float.
const UNEQUAL: [(&str, &str); 12] = [
    ("#### 72", "73"),
    ("#### 72", "-72"),
    ("#### 72", "7.2"),
    ("#### 1000", "1,00"),
    ("#### 9007199254740993", "9007199254740992"),
    ("#### 0.1", "0.10000000000000000001"),
    ("#### 1/3", "0.3333333333333333333333"),
    ("#### 1e400", "1e401"),
    ("\\boxed{A}", "\\boxed{B}"),
    ("\\boxed{A}", "\\boxed{a}"),
    ("\\boxed{A}", "7"),
    ("#### 12", "\\boxed{12 or 13}"),
];

const NOTHING: [&str; 8] = ["", "none", "####", "#### four", "\\boxed{", "x_1, H2O", "...", "one half – two"];

fn find(text: &str) -> FinalAnswer {
    FinalAnswer::find(text).unwrap_or_else(|| panic!("nothing in {text:?}"))
}

#[test]
fn the_rule_that_fires_and_what_it_finds() {
    for (text, rule, want) in FOUND {
        let found = find(text);
        assert_eq!((found.rule, found.text.as_str()), (rule, want), "{text:?}");
    }
    for text in NOTHING {
        let found = FinalAnswer::find(text);
        assert!(found.is_none(), "{text:?}: {found:?}");
    }
}

#[test]
fn numbers_are_compared_by_their_exact_value() {
    for (a, b) in EQUAL {
        assert!(find(a).agrees(&find(b)) && find(b).agrees(&find(a)), "{a:?} and {b:?}");
    }
    for (a, b) in UNEQUAL {
        assert!(!find(a).agrees(&find(b)) && !find(b).agrees(&find(a)), "{a:?} and {b:?}");
    }
}

/// What nobody would write costs neither time nor memory.
#[test]
fn endless_numbers_are_none() {
    let long = "9".repeat(1_000_000);
    let cases = [long.clone(), format!("1e{long}"), "1e999999999".to_owned(), format!("\\boxed{{{long}}}")];
    let start = std::time::Instant::now();
    for text in cases {
        if let Some(found) = FinalAnswer::find(&text) {
            assert!(found.agrees(&found));
        }
    }
    let many = "\\boxed{".repeat(20_000) + &"}".repeat(10);
    FinalAnswer::find(&many);
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}

/// What is behind `####` in every reference is the number that is found.
#[test]
fn every_reference_of_gsm8k() {
    let path = std::env::var_os("SMOLTEN_TEST_GSM8K").map(PathBuf::from).filter(|path| path.is_file());
    let Some(path) = path else {
        eprintln!("skipped: SMOLTEN_TEST_GSM8K names no file of rows with a prompt and a response");
        return;
    };
    let text = std::fs::read_to_string(path).unwrap();
    let mut rows = 0;
    for line in text.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let response = row["response"].as_str().unwrap();
        let (_, behind) = response.rsplit_once("####").unwrap();
        let found = find(response);
        assert_eq!((found.rule, found.text.as_str()), (Rule::Hashes, behind.trim()), "{response}");
        // Read another way: all of them are whole numbers, some with commas.
        let plain = behind.trim().replace(',', "");
        let whole: i64 = plain.parse().unwrap_or_else(|_| panic!("{behind:?} is no whole number"));
        assert!(found.agrees(&find(&format!("it is {whole}"))), "{response}");
        assert!(!found.agrees(&find(&format!("it is {}", whole + 1))), "{response}");
        rows += 1;
    }
    assert_eq!(rows, text.lines().count());
    eprintln!("{rows} references");
}
