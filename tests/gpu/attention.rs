//! Attention: forward, backward and over a cache, against real numbers with counted roundings.
//!
//! Both rungs are held to the bounds of the production rung: its sums go in steps of eight terms (tensor cores), its
//! softmax runs along the keys in tiles and its exponentials are powers of two. The CPU code's plain sums and exact
//! shift lose less everywhere.

mod host;
mod reference;

use super::linear::has_tensor_cores;
use super::{common, open, read, set_params};
use common::real::{Real, assert_allowed, assert_within};
use half::{bf16, f16};
use host::{Buffers, Forward, Host, POSITIONS, SENTINEL, Shape, read_used, sentinels, step, write_used};
use reference::{reference, reference_gradient};
use smolten::arena::{Category, Plan, Tensor};
use smolten::backend::{Backend, BatchBuffers, CachedSequence, KvCache, Part, RopeTable};
use smolten::cuda::{Cuda, Rung};
use smolten::dtype::{DType, Element};
use smolten::error::{Error, Result};
use smolten::ops::attention::Heads;
use smolten::ops::attention_launch::{self, AttentionBackward};

/// One token; lengths around the edges of tiles; many tiny sequences and empty ones.
const SHAPES: [Shape; 7] = [
    (3, 3, 64, &[1]),
    (3, 3, 64, &[65, 1, 3]),
    (3, 1, 64, &[130]),
    (4, 1, 16, &[63, 1, 64, 65, 130, 2]),
    (1, 4, 32, &[64, 0, 65]),
    (4, 1, 16, &[1, 2, 1, 0, 3, 1, 1, 2, 1, 5, 0, 1, 1, 1, 7, 1, 2, 3, 1, 1, 1, 2, 9, 1, 1, 2, 1, 17, 1, 0]),
    (2, 1, 32, &[]),
];

fn rungs(dtype: DType) -> &'static [Rung] {
    if has_tensor_cores(dtype) { &super::RUNGS } else { &super::RUNGS[..1] }
}

fn check<E: Element>() {
    for shape in SHAPES {
        let host = Host::<E>::new(shape);
        let mut plan = Plan::default();
        let buffers = Buffers::new(&mut plan, &host);
        let mut cuda = open(&plan, E::DTYPE);
        host.upload(&mut cuda, &buffers);
        let (want_out, want_lse) = reference(&host);
        let on_the_cpu = Forward::on_the_cpu(&host);
        let (want_delta, want_gradient) = reference_gradient(&host, &on_the_cpu);
        for &rung in rungs(E::DTYPE) {
            let name = |what| format!("{what} of {shape:?}, {rung:?}");
            let (out, lse) = host.forward(&mut cuda, rung, &buffers);
            assert_allowed(&name("out"), &out, &want_out);
            assert_allowed(&name("lse"), &lse, &want_lse);
            let (delta, gradient) = host.backward(&mut cuda, rung, &buffers, &on_the_cpu);
            assert_allowed(&name("delta"), &delta, &want_delta);
            let width = host.heads.qkv_width();
            let (q, k) = (host.heads.width(), host.heads.kv_heads * host.heads.head_dim);
            for (part, columns) in [("dq", 0..q), ("dk", q..q + k), ("dv", q + k..width)] {
                let of = |i: &usize| columns.contains(&(i % width));
                let got: Vec<E> = (0..gradient.len()).filter(of).map(|i| gradient[i]).collect();
                let want: Vec<Real> = (0..gradient.len()).filter(of).map(|i| want_gradient[i]).collect();
                if host.tokens() == 1 && part != "dv" {
                    // The gradient of a softmax over one key is zero: no size to hold the bounds against.
                    assert_within(&name(part), &got, &want);
                } else {
                    assert_allowed(&name(part), &got, &want);
                }
            }
        }
    }
}

#[test]
fn attention_in_f32() {
    check::<f32>();
}

#[test]
fn attention_in_bf16() {
    check::<bf16>();
}

#[test]
fn attention_in_f16() {
    check::<f16>();
}

/// A sequence sees nothing of its neighbours and of where its tiles lie in the grid, so packing changes no bit of it.
fn packing_changes_no_bit<E: Element>() {
    const LENGTHS: &[usize] = &[70, 1, 65];
    let together = Host::<E>::new((2, 1, 16, LENGTHS));
    let (q, wide, heads) = (together.heads.width(), together.heads.qkv_width(), together.heads.heads);
    for &rung in rungs(E::DTYPE) {
        let all = run(&together, rung);
        let mut first = 0;
        for &n in LENGTHS {
            let of = |width: usize| first * width..(first + n) * width;
            let (lengths, heads_of) = (vec![n], together.heads);
            let (qkv, dout) = (together.qkv[of(wide)].to_vec(), together.dout[of(q)].to_vec());
            let (cos, sin) = (together.cos.clone(), together.sin.clone());
            let alone = run(&Host { heads: heads_of, lengths, qkv, dout, cos, sin }, rung);
            assert_eq!(alone[0], all[0][of(q)], "out, {rung:?}");
            assert_eq!(alone[1], all[1][of(heads)], "lse, {rung:?}");
            assert_eq!(alone[2], all[2][of(wide)], "gradient, {rung:?}");
            first += n;
        }
    }
}

/// Bits of output, log-sum-exp and gradient; the same twice.
fn run<E: Element>(host: &Host<E>, rung: Rung) -> [Vec<u32>; 3] {
    let mut plan = Plan::default();
    let buffers = Buffers::new(&mut plan, host);
    let mut cuda = open(&plan, E::DTYPE);
    host.upload(&mut cuda, &buffers);
    let bits = |x: &[E]| x.iter().map(|x| x.to_f32().to_bits()).collect::<Vec<_>>();
    let [once, twice] = [(), ()].map(|()| {
        let (out, lse) = host.forward(&mut cuda, rung, &buffers);
        let of_lse = lse.iter().map(|x| x.to_bits()).collect();
        let forward = Forward { out, lse };
        let (_, gradient) = host.backward(&mut cuda, rung, &buffers, &forward);
        [bits(&forward.out), of_lse, bits(&gradient)]
    });
    assert!(once == twice, "not the same bits twice");
    once
}

#[test]
fn packing_and_repetition_change_no_bit() {
    packing_changes_no_bit::<f32>();
    packing_changes_no_bit::<f16>();
}

/// A sequence in calls of so many tokens: a prompt of more than a tile, single tokens, several at once, and on to more keys
/// than a block has threads.
const CALLS: [usize; 6] = [66, 1, 1, 4, 1, 60];

/// Each call leaves its keys and values behind those of the calls before, nothing behind them, and the output that the
/// whole sequence has in these rows.
fn over_a_cache<E: Element>() {
    for (group, kv_heads, head_dim) in [(3, 1, 64), (4, 1, 16), (1, 2, 128), (2, 1, 40)] {
        let host = Host::<E>::new((group, kv_heads, head_dim, &[133]));
        let (want, _) = reference(&host);
        let mut plan = Plan::default();
        let b = Buffers::new(&mut plan, &host);
        let mut cuda = open(&plan, E::DTYPE);
        for rung in super::RUNGS {
            b.cache.into_iter().for_each(|t| write_used::<E>(&mut cuda, t, &[]));
            let mut past = 0;
            for tokens in CALLS {
                call(&mut cuda, rung, &host, &b, past, tokens, &want);
                past += tokens;
            }
        }
    }
}

/// One call, after `past` tokens.
fn call<E: Element>(
    cuda: &mut Cuda,
    rung: Rung,
    host: &Host<E>,
    b: &Buffers,
    past: usize,
    tokens: usize,
    want: &[Real],
) {
    let (wide, q) = (host.heads.qkv_width(), host.heads.width());
    let (end, kv) = (past + tokens, host.heads.kv_heads * host.heads.head_dim);
    write_used(cuda, b.of.qkv, &host.qkv[past * wide..end * wide]);
    sentinels::<E>(cuda, b.of.out);
    set_params(cuda, &step(tokens, 1));
    attention_launch::cached(cuda, rung, host.heads, past, b.of.qkv, b.cache, b.of.out).unwrap();
    let out = read_used::<E>(cuda, b.of.out, tokens);
    let name = format!("{tokens} after {past} of {:?}, {rung:?}", host.heads);
    assert_allowed(&name, &out, &want[past * q..end * q]);
    for (cache, column) in b.cache.into_iter().zip([q, q + kv]) {
        let cache = read::<E>(cuda, cache);
        let appended = host.qkv.chunks(wide).take(end).flat_map(|row| &row[column..][..kv]);
        assert!(cache.iter().zip(appended).all(|(a, b)| a.to_f32() == b.to_f32()), "{name}: keys or values");
        assert!(cache[end * kv..].iter().all(|x| x.to_f32().is_nan()), "{name}: written behind the end");
    }
}

#[test]
fn attention_over_a_cache() {
    over_a_cache::<f32>();
    over_a_cache::<bf16>();
    over_a_cache::<f16>();
}

#[test]
fn what_does_not_fit_is_refused_before_the_launch() {
    let refused = |heads, result: &dyn Fn(&Cuda, Heads, &Buffers) -> Result<()>| {
        let host = Host::<f16> { heads, ..Host::new((1, 1, 16, &[2])) };
        let mut plan = Plan::default();
        let b = Buffers::new(&mut plan, &host);
        match result(&open(&plan, DType::F16), heads, &b) {
            Err(Error::Unsupported { dim, .. }) => dim,
            Err(Error::Shape { arg, .. }) => arg,
            other => panic!("{other:?}"),
        }
    };
    let forward = |rung, of: fn(AttentionBackward) -> AttentionBackward| {
        move |cuda: &Cuda, heads: Heads, b: &Buffers| {
            let a = of(b.of);
            attention_launch::forward(cuda, rung, heads, b.cu_seqlens, a.qkv, a.out, a.lse)
        }
    };
    let backward = |rung, of: fn(AttentionBackward) -> AttentionBackward| {
        move |cuda: &Cuda, heads: Heads, b: &Buffers| {
            attention_launch::backward(cuda, rung, heads, b.cu_seqlens, b.positions, b.rope, of(b.of))
        }
    };
    let heads = |heads, kv_heads, head_dim| Heads { heads, kv_heads, head_dim };
    let (production, naive) = (Rung::Production, Rung::Naive);
    assert_eq!(refused(heads(2, 1, 128), &forward(production, |a| a)), "head_dim");
    assert_eq!(refused(heads(2, 1, 128), &backward(production, |a| a)), "head_dim");
    assert_eq!(refused(heads(2, 1, 130), &forward(naive, |a| a)), "head_dim");
    assert_eq!(refused(heads(3, 2, 16), &forward(naive, |a| a)), "heads");
    let small = heads(2, 1, 16);
    assert_eq!(refused(small, &forward(naive, |a| AttentionBackward { qkv: a.out, ..a })), "qkv");
    assert_eq!(refused(small, &forward(naive, |a| AttentionBackward { lse: a.lse.head(1), ..a })), "lse");
    assert_eq!(refused(small, &backward(naive, |a| AttentionBackward { delta: a.out, ..a })), "delta");
    assert_eq!(refused(small, &backward(naive, |a| AttentionBackward { dqkv: a.qkv.head(1), ..a })), "dqkv");
    let shifted = |a: AttentionBackward| AttentionBackward {
        dout: Tensor { offset: a.dout.offset + 2, ..a.dout },
        ..a
    };
    assert_eq!(refused(small, &backward(production, shifted)), "dout");
    let cached = |past| {
        move |cuda: &Cuda, heads: Heads, b: &Buffers| {
            attention_launch::cached(cuda, production, heads, past, b.of.qkv, b.cache, b.of.out)
        }
    };
    assert_eq!(refused(small, &cached(POSITIONS + 1)), "positions");
    assert_eq!(refused(heads(2, 1, 12), &cached(0)), "head_dim");
}

/// The engine knows how many tokens there are, so a cache that cannot take them is refused.
#[test]
fn a_full_cache_is_refused() {
    let mut plan = Plan::default();
    let mut of = |rows, cols| plan.tensor(Category::Activations, rows, cols, DType::F16);
    let heads = Heads { heads: 2, kv_heads: 1, head_dim: 16 };
    let (qkv, out) = (of(4, heads.qkv_width()), of(4, heads.width()));
    let cache = KvCache { keys: of(16, 16), values: of(16, 16), slots: 2 };
    let mut engine = super::engine(&plan, DType::F16, Rung::Production);
    engine.set_params(&step(3, 1)).unwrap();
    let mut attend = |sequences: &[(usize, usize)]| {
        let sequences: Vec<_> = sequences.iter().map(|&(slot, past)| CachedSequence { slot, past }).collect();
        match engine.attention_cached(heads, &sequences, qkv, cache, out) {
            Ok(()) => "",
            Err(Error::Unsupported { dim, .. }) => dim,
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!(attend(&[(1, 5)]), "");
    assert_eq!(attend(&[(1, 6)]), "positions");
    assert_eq!(attend(&[(2, 0)]), "slot");
    assert_eq!(attend(&[(0, 0), (1, 0)]), "sequences");
    assert_eq!(attend(&[]), "sequences");
}

/// A call for one token of several, as when each is of another sequence, leaves what the others have alone. Three heads do not
/// fill the naive rung's block.
#[test]
fn a_call_for_one_token_touches_no_other() {
    let host = Host::<f16>::new((3, 1, 64, &[3]));
    let mut plan = Plan::default();
    let b = Buffers::new(&mut plan, &host);
    let mut cuda = open(&plan, DType::F16);
    for rung in super::RUNGS {
        host.upload(&mut cuda, &b);
        b.cache.into_iter().for_each(|t| write_used::<f16>(&mut cuda, t, &[]));
        sentinels::<f16>(&mut cuda, b.of.out);
        let [qkv, out] = [b.of.qkv, b.of.out].map(|t| t.rows(1, 1));
        attention_launch::cached(&cuda, rung, host.heads, 0, qkv, b.cache, out).unwrap();
        let out = read::<f16>(&cuda, b.of.out);
        let untouched = |row: &[f16]| row.iter().all(|&x| x == f16::from_f32(SENTINEL));
        let rows: Vec<bool> = out.chunks(b.of.out.cols).map(untouched).collect();
        assert_eq!(rows[..3], [true, false, true], "{rung:?}");
        for cache in b.cache {
            let rest = &read::<f16>(&cuda, cache)[cache.cols..];
            assert!(rest.iter().all(|x| x.is_nan()), "{rung:?}: written behind the token");
        }
    }
}

/// Attention captured once and replayed for micro-batches of other lengths: nothing in the launches knows them.
#[test]
fn a_recorded_pass_replays_with_other_sequences() {
    const BATCHES: [&[usize]; 3] = [&[70, 3], &[1, 1, 1, 1, 1], &[40, 66]];
    let hosts = BATCHES.map(|lengths| Host::<f16>::new((2, 1, 32, lengths)));
    let mut plan = Plan::default();
    let planned = Host::<f16>::new((2, 1, 32, &[107, 0, 0, 0]));
    let b = Buffers::new(&mut plan, &planned);
    let unused = plan.tensor(Category::Activations, 1, 1, DType::U32);
    let (ids, targets, loss_rows, by_id, id_starts) = (unused, unused, unused, unused, unused);
    let (positions, cu_seqlens) = (b.positions, b.cu_seqlens);
    let batch = BatchBuffers { ids, positions, cu_seqlens, targets, loss_rows, by_id, id_starts };
    let rope = RopeTable { cos: b.rope[0], sin: b.rope[1] };
    let pass = |engine: &mut dyn Backend| {
        engine.attention_forward(&batch, planned.heads, b.of.qkv, b.of.out, b.of.lse)?;
        engine.attention_backward(&batch, planned.heads, rope, b.of)
    };
    let engine = || super::engine(&plan, DType::F16, Rung::Production);
    let (mut direct, mut replayed) = (engine(), engine());
    replayed.run(Part::Train, &mut |b| pass(b)).unwrap(); // of no token
    for host in &hosts {
        let [direct, replayed] = [(&mut direct, false), (&mut replayed, true)].map(|(engine, replay)| {
            let mut upload = |t, bytes: &[u8]| engine.upload(t, bytes).unwrap();
            upload(cu_seqlens, bytemuck::cast_slice(&host.cu_seqlens()));
            upload(positions, bytemuck::cast_slice(&host.positions()));
            upload(rope.cos, bytemuck::cast_slice(&host.cos));
            upload(rope.sin, bytemuck::cast_slice(&host.sin));
            upload(b.of.qkv, bytemuck::cast_slice(&host.qkv));
            upload(b.of.dout, bytemuck::cast_slice(&host.dout));
            engine.set_params(&step(host.tokens(), host.lengths.len())).unwrap();
            if replay {
                engine.run(Part::Train, &mut |b| pass(b)).unwrap()
            } else {
                pass(engine).unwrap()
            }
            [b.of.out, b.of.lse, b.of.dqkv].map(|t| {
                let mut bytes = vec![0; t.bytes()];
                engine.download(t, &mut bytes).unwrap();
                bytes
            })
        });
        assert!(direct == replayed, "{:?}", host.lengths);
        assert!(direct[0].iter().any(|&x| x != 0), "there is an output");
    }
}
