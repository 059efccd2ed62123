//! Intervals against SciPy's bootstrap and statsmodels' Wilson intervals.
//!
//! Fixture and what it holds: tests/fixtures/make_intervals.py.

use serde_json::Value;
use smolten::eval::{Interval, RowLoss, loss_difference, mean_loss_interval};

fn fixture() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/intervals.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn counts(value: &Value) -> Vec<usize> {
    let count = |x: &Value| usize::try_from(x.as_u64().unwrap()).unwrap();
    value.as_array().unwrap().iter().map(count).collect()
}

/// Each end between the quantiles that chance allows.
fn assert_ends(got: Option<Interval>, want: &Value, what: &str) {
    let got = got.unwrap();
    for (end, name) in [(got.low, "low"), (got.high, "high")] {
        let band = numbers(&want[name]);
        assert!((band[0]..=band[1]).contains(&end), "{what}, {name}: {end}, want {band:?}");
    }
    let value = want["value"].as_f64().unwrap();
    assert!(got.low <= value && value <= got.high, "{what}: {got:?} is not about {value}");
}

#[test]
fn bootstraps_over_rows_are_those_of_scipy() {
    let fixture = fixture();
    let cases = fixture["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 4);
    for case in cases {
        let tokens = counts(&case["tokens"]);
        let [a, b] = ["a", "b"].map(|side| -> Vec<RowLoss> {
            let losses = numbers(&case[side]);
            losses.into_iter().zip(&tokens).map(|(loss, &tokens)| RowLoss { loss, tokens }).collect()
        });
        let what = format!("{} rows", a.len());
        assert_ends(mean_loss_interval(&a), &case["loss_a"], &format!("{what}, a"));
        assert_ends(mean_loss_interval(&b), &case["loss_b"], &format!("{what}, b"));
        assert_ends(loss_difference(&a, &b), &case["difference"], &format!("{what}, difference"));
    }
    // The bands must be narrower than what they are to tell apart.
    let difference = |i: usize| loss_difference_holds_zero(&cases[i]["difference"]);
    assert_eq!((difference(1), difference(3)), (true, false));
}

fn loss_difference_holds_zero(difference: &Value) -> bool {
    numbers(&difference["low"])[0] <= 0.0 && numbers(&difference["high"])[1] >= 0.0
}

#[test]
fn shares_have_the_intervals_of_statsmodels() {
    let fixture = fixture();
    let cases = fixture["wilson"].as_array().unwrap();
    assert_eq!(cases.len(), 9);
    for case in cases {
        let (of, want) = (counts(&case["of"]), numbers(&case["interval"]));
        let got = Interval::wilson(of[0], of[1]);
        for (got, want) in [got.low, got.high].into_iter().zip(want) {
            // A dozen roundings of numbers up to 1, and differences of two of them.
            assert!((got - want).abs() <= 32.0 * f64::EPSILON, "{of:?}: {got}, want {want}");
        }
    }
}
