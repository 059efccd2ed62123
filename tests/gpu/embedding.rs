//! Embedding, forwards and backwards: the CPU's bits.

use super::common::real::values;
use super::{RUNGS, bits, filled, open, params, read, set_params, write};
use half::f16;
use smolten::arena::{Category, Plan, Tensor};
use smolten::backend::StepParams;
use smolten::cuda::{Cuda, Rung};
use smolten::dtype::{DType, Element};
use smolten::error::Error;
use smolten::ops::embedding;

/// Rows planned, rows in use, V, C: one row; ids that occur often; rows that no token has; a ragged width; no row.
const SHAPES: [[usize; 4]; 6] =
    [[1, 1, 8, 8], [5, 3, 16, 24], [140, 131, 5, 136], [40, 33, 300, 576], [9, 8, 3, 1016], [2, 0, 4, 16]];

/// What only the naive version takes.
const ODD_SHAPES: [[usize; 4]; 2] = [[40, 35, 11, 37], [200, 150, 7, 1]];

struct Case<E> {
    shape: [usize; 4],
    w: Tensor,
    x: Tensor,
    dw: Tensor,
    lists: [Tensor; 3],
    weights: Vec<E>,
    ids: Vec<u32>,
    by_id: Vec<u32>,
    id_starts: Vec<u32>,
}

impl<E: Element> Case<E> {
    fn new(plan: &mut Plan, shape: [usize; 4]) -> Self {
        let [rows, t, v, c] = shape;
        let mut of = |rows, cols, dtype| plan.tensor(Category::Activations, rows, cols, dtype);
        let ids: Vec<u32> = (0..t).map(|i| u32::try_from((i * i + i / 7) % v).unwrap()).collect();
        let mut by_id: Vec<u32> = (0..).take(t).collect();
        by_id.sort_by_key(|&p| ids[p as usize]);
        let differs =
            |&i: &u32| i == 0 || ids[by_id[i as usize] as usize] != ids[by_id[i as usize - 1] as usize];
        let mut id_starts: Vec<u32> = (0..).take(t).filter(differs).collect();
        id_starts.push(u32::try_from(t).unwrap());
        Self {
            shape,
            w: of(v, c, E::DTYPE),
            x: of(rows, c, DType::F32),
            dw: of(v, c, DType::F32),
            lists: [of(1, rows, DType::U32), of(1, rows, DType::U32), of(1, rows + 1, DType::U32)],
            weights: values(v * c, 1.0, 2),
            ids,
            by_id,
            id_starts,
        }
    }

    /// Entries that are not in use would lead far outside the arena.
    fn upload(&self, cuda: &mut Cuda, accumulate: u32) {
        write(cuda, self.w, &self.weights);
        for (list, entries) in self.lists.into_iter().zip([&self.ids, &self.by_id, &self.id_starts]) {
            write(cuda, list, &filled(list, entries, u32::MAX));
        }
        let distinct_ids = u32::try_from(self.id_starts.len() - 1).unwrap();
        let step = params(u32::try_from(self.shape[1]).unwrap(), bytemuck::Zeroable::zeroed());
        set_params(cuda, &StepParams { distinct_ids, accumulate, ..step });
    }

    fn check_forward(&self, cuda: &mut Cuda, rung: Rung) {
        let [_, t, _, c] = self.shape;
        self.upload(cuda, 0);
        write(cuda, self.x, &vec![7.0_f32; self.x.len()]);
        embedding::launch_forward(cuda, rung, self.lists[0], self.w, self.x).unwrap();
        let mut want = vec![7.0; self.x.len()];
        embedding::forward(&self.ids, &self.weights, &mut want[..t * c], c);
        assert_eq!(bits(&read(cuda, self.x)), bits(&want), "x of {:?}, {rung:?}", self.shape);
    }

    fn check_backward(&self, cuda: &mut Cuda, rung: Rung) {
        let [_, t, _, c] = self.shape;
        let (dx, before) = (values::<f32>(t * c, 1.0, 3), values::<f32>(self.dw.len(), 1.0, 4));
        for (tied, accumulate) in [(false, 0), (false, 1), (true, 0), (true, 1)] {
            let add = tied || accumulate == 1;
            let mut want = if add { before.clone() } else { vec![f32::NAN; before.len()] };
            self.upload(cuda, accumulate);
            write(cuda, self.x, &filled(self.x, &dx, f32::NAN));
            write(cuda, self.dw, &want);
            embedding::launch_backward(cuda, rung, self.lists, self.x, self.dw, tied).unwrap();
            embedding::backward(&self.ids, &self.by_id, &self.id_starts, &dx, &mut want, c, add);
            let got = read::<f32>(cuda, self.dw);
            assert_eq!(bits(&got), bits(&want), "dw of {:?}, {rung:?}, {tied}, {accumulate}", self.shape);
        }
    }
}

fn has_the_cpus_bits<E: Element>() {
    for shape in SHAPES.into_iter().chain(ODD_SHAPES) {
        let mut plan = Plan::default();
        let case = Case::<E>::new(&mut plan, shape);
        let mut cuda = open(&plan, E::DTYPE);
        for rung in RUNGS {
            if rung == Rung::Naive || !ODD_SHAPES.contains(&shape) {
                case.check_forward(&mut cuda, rung);
                case.check_backward(&mut cuda, rung);
            }
        }
    }
}

#[test]
fn embedding_has_the_cpus_bits() {
    in_each_type!(has_the_cpus_bits);
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut plan = Plan::default();
    let case = Case::<f16>::new(&mut plan, [4, 3, 8, 12]);
    let cuda = open(&plan, DType::F16);
    let refused = |result: smolten::error::Result<()>| match result {
        Err(Error::Unsupported { dim, .. }) => dim,
        Err(Error::Shape { arg, .. }) => arg,
        other => panic!("{other:?}"),
    };
    let [ids, by_id, id_starts] = case.lists;
    let forward = |rung, ids, x| refused(embedding::launch_forward(&cuda, rung, ids, case.w, x));
    assert_eq!(forward(Rung::Production, ids, case.x), "C");
    assert_eq!(forward(Rung::Naive, Tensor { cols: 3, ..ids }, case.x), "ids");
    assert_eq!(forward(Rung::Naive, ids, Tensor { dtype: DType::F16, ..case.x }), "x");
    let short = [ids, by_id, Tensor { cols: 4, ..id_starts }];
    assert_eq!(
        refused(embedding::launch_backward(&cuda, Rung::Naive, short, case.x, case.dw, true)),
        "id_starts"
    );
}
