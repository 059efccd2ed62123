//! How the work is shared: whole heads of sequences as long as these keep every thread busy, then parts of them.

use crate::ops::tile::SIDE;
use std::ops::Range;

/// What a task computes of its head, in blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Share {
    /// All of it.
    Whole,
    /// What belongs to some queries.
    Queries(Range<usize>),
    /// What belongs to some keys.
    Keys(Range<usize>),
}

/// Work on one kv head of one sequence, and on the query heads that share it.
#[derive(Clone, Debug)]
pub struct Task {
    /// First row of the sequence.
    pub first: usize,
    /// Rows of the sequence.
    pub rows: usize,
    /// The kv head.
    pub kv: usize,
    /// What is to be computed.
    pub share: Share,
}

impl Task {
    /// Blocks of the sequence.
    fn blocks(&self) -> usize {
        self.rows.div_ceil(SIDE)
    }
    /// Rows of the sequence that lie in `blocks`.
    pub fn clip(&self, blocks: &Range<usize>) -> Range<usize> {
        blocks.start * SIDE..self.rows.min(blocks.end * SIDE)
    }
    /// Blocks of queries to go through.
    pub fn queries(&self) -> Range<usize> {
        match &self.share {
            Share::Whole => 0..self.blocks(),
            Share::Queries(queries) => queries.clone(),
            Share::Keys(keys) => keys.start..self.blocks(),
        }
    }
    /// Blocks of keys to go through.
    pub fn keys(&self) -> Range<usize> {
        match &self.share {
            Share::Whole => 0..self.blocks(),
            Share::Queries(queries) => 0..queries.end,
            Share::Keys(keys) => keys.clone(),
        }
    }
}

/// Pairs of blocks of which a part has at least so many.
const LEAST: usize = 16;

/// Whole heads, the largest first, while they fit into a thread's share of the work; the others in parts, a quarter of
/// such a share each, as `cut` makes them from the number of blocks and the least number of pairs.
pub fn tasks(
    cu_seqlens: &[u32],
    kv_heads: usize,
    threads: usize,
    cut: fn(usize, usize) -> Vec<Share>,
) -> Vec<Task> {
    let mut heads: Vec<Task> = cu_seqlens
        .windows(2)
        .map(|w| (w[0] as usize, (w[1] - w[0]) as usize))
        .filter(|&(_, rows)| rows > 0)
        .flat_map(|(first, rows)| (0..kv_heads).map(move |kv| Task { first, rows, kv, share: Share::Whole }))
        .collect();
    heads.sort_by_key(|task| std::cmp::Reverse(task.rows));
    let pairs = |task: &Task| task.blocks() * (task.blocks() + 1) / 2;
    let total: usize = heads.iter().map(pairs).sum();
    let (most, least) = (total / threads + total / threads / 8, (total / threads / 4).max(LEAST));
    let mut loads = vec![0; threads];
    let (mut whole, mut parts) = (Vec::new(), Vec::new());
    for task in heads {
        let cost = pairs(&task);
        match loads.iter_mut().min() {
            Some(load) if *load + cost > most && cost > least => {
                let shares = cut(task.blocks(), least).into_iter();
                parts.extend(shares.map(|share| Task { share, ..task.clone() }));
            }
            Some(load) => {
                *load += cost;
                whole.push(task);
            }
            None => {}
        }
    }
    whole.append(&mut parts);
    whole
}

/// Parts of the queries.
pub fn by_queries(blocks: usize, least: usize) -> Vec<Share> {
    ranges((0..blocks).map(|query| query + 1), least).map(Share::Queries).collect()
}

/// Parts of the keys and, since those give no complete gradients of queries, parts of the queries.
pub fn by_queries_and_keys(blocks: usize, least: usize) -> Vec<Share> {
    let keys = ranges((0..blocks).map(|key| blocks - key), least).map(Share::Keys);
    keys.chain(by_queries(blocks, least)).collect()
}

/// Adjoining ranges that have at least `least` together, but for the last.
fn ranges(costs: impl Iterator<Item = usize>, least: usize) -> impl Iterator<Item = Range<usize>> {
    let (mut ranges, mut start, mut sum, mut end) = (Vec::new(), 0, 0, 0);
    for cost in costs {
        (sum, end) = (sum + cost, end + 1);
        if sum >= least {
            ranges.push(start..end);
            (start, sum) = (end, 0);
        }
    }
    if start < end {
        ranges.push(start..end);
    }
    ranges.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: [u32; 6] = [0, 512, 512, 513, 700, 4000];

    /// How often the tasks write each block of queries and of keys of kv head 1 of the sequence that begins at `first`.
    fn writes(tasks: &[Task], first: usize, blocks: usize) -> [Vec<usize>; 2] {
        let mut counts = [vec![0; blocks], vec![0; blocks]];
        for task in tasks.iter().filter(|task| task.first == first && task.kv == 1) {
            if !matches!(task.share, Share::Keys(_)) {
                task.queries().for_each(|query| counts[0][query] += 1);
            }
            if !matches!(task.share, Share::Queries(_)) {
                task.keys().for_each(|key| counts[1][key] += 1);
            }
        }
        counts
    }

    #[test]
    fn every_block_is_written_once() {
        for threads in [1, 2, 3, 7, 64, 1000] {
            let tasks = tasks(&BOUNDS, 3, threads, by_queries_and_keys);
            for (first, rows) in [(0, 512), (512, 1), (513, 187), (700, 3300)] {
                let blocks = usize::div_ceil(rows, SIDE);
                assert_eq!(writes(&tasks, first, blocks), [vec![1; blocks], vec![1; blocks]], "{threads}");
            }
        }
    }

    /// One after the other to whoever is free, no thread gets much more than its share.
    #[test]
    fn threads_get_nearly_the_same() {
        for (bounds, threads) in [(&[0, 512, 1024][..], 2), (&[0, 512], 2), (&[0, 2048], 16), (&BOUNDS, 4)] {
            let tasks = tasks(bounds, 3, threads, by_queries);
            let mut loads = vec![0; threads];
            for task in &tasks {
                let load = loads.iter_mut().min().unwrap();
                *load += task.queries().map(|query| query + 1).sum::<usize>();
            }
            let (most, total) = (loads.iter().max().unwrap(), loads.iter().sum::<usize>());
            assert!(most * threads * 100 <= total * 125, "{loads:?}");
        }
    }

    #[test]
    fn heads_stay_whole_where_that_keeps_threads_busy() {
        let whole = |threads| {
            let tasks = tasks(&[0, 512, 1024], 3, threads, by_queries_and_keys);
            tasks.iter().filter(|task| task.share == Share::Whole).count()
        };
        assert_eq!([1, 2, 3, 6, 12].map(whole), [6, 6, 6, 6, 0]);
    }
}
