//! The order of rows that compat runs take: torch's, exactly. Fixture: tests/fixtures/make_randperm.py.

use serde_json::Value;
use sha2::{Digest, Sha256};
use smolten::batch::{BatchOptions, Batches, Example, Examples, Order, Window};
use std::path::Path;

fn cases() -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/randperm.json");
    let file: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    file["cases"].as_array().unwrap().clone()
}

fn number(case: &Value, key: &str) -> u64 {
    case[key].as_u64().unwrap()
}

fn list(value: &Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(|v| usize::try_from(v.as_u64().unwrap()).unwrap()).collect()
}

#[test]
fn torchs_permutation_is_exact() {
    let cases = cases();
    assert!(cases.len() > 30);
    for case in &cases {
        let (n, seed) = (usize::try_from(number(case, "n")).unwrap(), number(case, "seed"));
        let order = Order::TorchRandperm(seed).of_epoch(n, 0);
        match case.get("order") {
            Some(want) => assert_eq!(order, list(want), "n {n}, seed {seed}"),
            None => {
                assert_eq!(order[..16], list(&case["head"]), "n {n}, seed {seed}");
                let bytes: Vec<u8> =
                    order.iter().flat_map(|&i| u32::try_from(i).unwrap().to_le_bytes()).collect();
                let hash: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
                assert_eq!(hash, case["sha256"].as_str().unwrap(), "n {n}, seed {seed}");
            }
        }
    }
}

/// The reference run: 251 rows at 2 × 4 from seed 3407. Epoch 0 has the order of seed 3407, epoch 1 that of 3408; step
/// 32 holds the three rows left over.
#[test]
fn the_reference_run_takes_rows_as_torch_did() {
    let cases = cases();
    let order_of = |seed: u64| {
        let case = cases.iter().find(|c| number(c, "n") == 251 && number(c, "seed") == seed).unwrap();
        list(&case["order"])
    };
    let example = |i: u32| Example { ids: vec![i, 1], supervised: vec![false, true] };
    let options =
        BatchOptions { batch_size: 2, grad_accum: 4, packing: None, order: Order::TorchRandperm(3407) };
    let batches = Batches::new(Examples::from_examples((0..251).map(example)), (0..251).collect(), options);
    let windows: Vec<Window> = batches.windows(0).take(60).collect();
    let rows = |window: &Window| -> Vec<Vec<usize>> {
        let of =
            |batch: &smolten::batch::MicroBatch| batch.ids.iter().step_by(2).map(|&i| i as usize).collect();
        window.micro_batches.iter().map(of).collect()
    };
    let taken: Vec<usize> = windows[..32].iter().flat_map(rows).flatten().collect();
    assert_eq!(taken, order_of(3407));
    let sizes = |w: &Window| rows(w).iter().map(Vec::len).collect::<Vec<_>>();
    assert!(windows[..31].iter().all(|w| sizes(w) == [2, 2, 2, 2]));
    assert_eq!(sizes(&windows[31]), [2, 1]);
    let taken: Vec<usize> = windows[32..].iter().flat_map(rows).flatten().collect();
    assert_eq!(taken, order_of(3408)[..28 * 8]);
    // 475 rows in 60 steps, as the reference's count of floating-point operations has it.
    assert_eq!(windows.iter().map(|w| sizes(w).iter().sum::<usize>()).sum::<usize>(), 475);
    // A run that resumes at any step goes on in the same order.
    assert_eq!(batches.windows(33).next().unwrap(), windows[33]);
}

#[test]
fn the_other_orders() {
    assert_eq!(Order::AsGiven.of_epoch(4, 3), [0, 1, 2, 3]);
    assert_eq!(Order::Shuffled(3407).of_epoch(10, 1), smolten::batch::permutation(10, 3407, 1));
    assert_eq!(Order::TorchRandperm(3407).of_epoch(251, 1), Order::TorchRandperm(3408).of_epoch(251, 0));
}
