//! Best-fit decreasing bin packing (Johnson 1973): at most 11/9 of the fewest rows, plus 6/9.

use std::collections::BTreeSet;

/// Puts items of `lengths` into rows of `capacity`, longest first, each into the fullest row it still fits; O(n log n).
///
/// Items of equal length go in the order of their index, and of equally full rows the older one is taken. A row
/// lists its items by index; rows come in the order they were opened.
///
/// # Panics
/// If an item is longer than `capacity`: rows are truncated before they are packed.
pub fn best_fit_decreasing(lengths: &[usize], capacity: usize) -> Vec<Vec<usize>> {
    let mut items: Vec<usize> = (0..lengths.len()).collect();
    items.sort_by_key(|&i| std::cmp::Reverse(lengths[i])); // stable: ties keep the index order
    let mut rows: Vec<Vec<usize>> = Vec::new();
    let mut free = BTreeSet::new(); // (tokens left, row)
    for item in items {
        let length = lengths[item];
        assert!(length <= capacity, "item {item} has {length} tokens, a row holds {capacity}");
        let (left, row) = match free.range((length, 0)..).next().copied() {
            Some(best) => {
                free.remove(&best);
                best
            }
            None => {
                rows.push(Vec::new());
                (capacity, rows.len() - 1)
            }
        };
        rows[row].push(item);
        free.insert((left - length, row));
    }
    rows.iter_mut().for_each(|row| row.sort_unstable());
    rows
}
