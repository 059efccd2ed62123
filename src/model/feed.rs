//! From a micro-batch on the host to its buffers on the device.

use super::{Capacity, Model};
use crate::arena::{Category, Plan, Tensor};
use crate::backend::{Backend, BatchBuffers, StepParams};
use crate::batch::{MicroBatch, NO_TARGET};
use crate::dtype::DType;
use crate::error::{Error, Result};

/// Reserves the buffers.
pub(super) fn plan(plan: &mut Plan, capacity: Capacity) -> BatchBuffers {
    let mut list = |n| plan.tensor(Category::Batch, 1, n, DType::U32);
    let t = capacity.tokens;
    BatchBuffers {
        ids: list(t),
        positions: list(t),
        cu_seqlens: list(capacity.sequences + 1),
        targets: list(t),
        loss_rows: list(t),
        by_id: list(t),
        id_starts: list(t + 1),
    }
}

/// What a micro-batch says beyond its tokens: which rows are in the loss, and its tokens sorted by id.
pub struct Feed<'a> {
    batch: &'a MicroBatch,
    loss_rows: Vec<u32>,
    by_id: Vec<u32>,
    id_starts: Vec<u32>,
}

impl<'a> Feed<'a> {
    /// Works the lists out; host work that needs no device.
    pub fn new(batch: &'a MicroBatch) -> Self {
        let tokens = 0..u32::try_from(batch.tokens()).expect("MicroBatch holds at most 2^32 tokens");
        let in_loss = |&t: &u32| batch.targets[t as usize] != NO_TARGET;
        let mut by_id: Vec<u32> = tokens.clone().collect();
        by_id.sort_by_key(|&t| batch.ids[t as usize]); // stable: equal ids keep their order
        let new_id = |&i: &u32| {
            i == 0 || batch.ids[by_id[i as usize] as usize] != batch.ids[by_id[i as usize - 1] as usize]
        };
        let id_starts = tokens.clone().filter(new_id).chain([tokens.end]).collect();
        Self { batch, loss_rows: tokens.filter(in_loss).collect(), by_id, id_starts }
    }
}

impl Model {
    /// Copies the micro-batch to the device and sets the counts; `params` holds the rest.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when it is larger than the plan.
    pub fn feed(&self, backend: &mut dyn Backend, feed: &Feed<'_>, params: &mut StepParams) -> Result<()> {
        let (batch, b) = (feed.batch, &self.batch);
        let lists: [(Tensor, &[u32]); 7] = [
            (b.ids, &batch.ids),
            (b.positions, &batch.positions),
            (b.cu_seqlens, &batch.cu_seqlens),
            (b.targets, &batch.targets),
            (b.loss_rows, &feed.loss_rows),
            (b.by_id, &feed.by_id),
            (b.id_starts, &feed.id_starts),
        ];
        let longest = batch.positions.iter().max().map_or(0, |&p| p as usize + 1);
        let fits = longest <= self.capacity.positions && lists.iter().all(|(t, list)| list.len() <= t.len());
        if !fits {
            return Err(Error::Unsupported {
                op: "feed",
                dim: "micro-batch",
                got: format!("{} tokens, longest sequence {longest}", batch.tokens()),
                rule: "no more than was planned for",
            });
        }
        for (tensor, list) in lists {
            backend.upload(tensor, bytemuck::cast_slice(list))?;
        }
        let count = |n: usize| u32::try_from(n).expect("checked against the plan");
        params.tokens = count(batch.tokens());
        params.sequences = count(batch.cu_seqlens.len() - 1);
        params.supervised = count(feed.loss_rows.len());
        params.distinct_ids = count(feed.id_starts.len() - 1);
        backend.set_params(params)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_sorted_by_id_and_then_by_position() {
        let batch = MicroBatch {
            ids: vec![7, 3, 7, 9, 3],
            positions: vec![0, 1, 2, 0, 1],
            cu_seqlens: vec![0, 3, 5],
            targets: vec![NO_TARGET, 7, NO_TARGET, 3, NO_TARGET],
        };
        let feed = Feed::new(&batch);
        assert_eq!(feed.loss_rows, [1, 3]);
        assert_eq!(feed.by_id, [1, 4, 0, 2, 3]);
        assert_eq!(feed.id_starts, [0, 2, 4, 5]);
    }
}
