//! Matrix products of two operands for `benches/peers.py`, which loads this library to time them and torch.mm in turn, in one
//! process, on the same memory: `cargo build --release --example products`.

use half::bf16;
use rayon::ThreadPool;
use smolten::ops::linear::{self, Operand, Weight};
use smolten::ops::tile::Level;
use std::slice::{from_raw_parts, from_raw_parts_mut};
use std::sync::OnceLock;

/// What is multiplied, as a training step has it.
#[derive(Clone, Copy)]
#[repr(C)]
pub enum Layout {
    /// `x·wᵀ`: `a` `[m, k]`, `b` `[n, k]`, `out` `[m, n]`, rounded.
    Forward,
    /// `dy·w`: `a` `[m, k]`, `b` `[k, n]`, `out` `[m, n]`, rounded.
    InputGradient,
    /// `dyᵀ·x`: `a` `[k, m]`, `b` `[k, n]`, `out` `[m, n]` in fp32.
    WeightGradient,
}

/// A product in bf16 by the first call's number of threads, at the processor's best level.
///
/// # Safety
/// `a`, `b` and `out` hold as many elements as `layout` says, aligned, and nobody writes the first two or uses the last.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn product_bf16(
    threads: usize,
    layout: Layout,
    a: *const bf16,
    b: *const bf16,
    out: *mut u8,
    shape: &[usize; 3],
) {
    // SAFETY: as the caller promises.
    unsafe { product(threads, layout, a, b, out, *shape) };
}

/// The same in fp32.
///
/// # Safety
/// As there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn product_fp32(
    threads: usize,
    layout: Layout,
    a: *const f32,
    b: *const f32,
    out: *mut u8,
    shape: &[usize; 3],
) {
    // SAFETY: as the caller promises.
    unsafe { product(threads, layout, a, b, out, *shape) };
}

/// # Safety
/// As for [`product_bf16`].
unsafe fn product<E: Operand>(
    threads: usize,
    layout: Layout,
    a: *const E,
    b: *const E,
    out: *mut u8,
    [m, n, k]: [usize; 3],
) {
    // SAFETY: as the caller promises.
    let a = unsafe { from_raw_parts(a, m * k) };
    // SAFETY: likewise.
    let b = unsafe { from_raw_parts(b, k * n) };
    let level = Level::best();
    if let Layout::WeightGradient = layout {
        // SAFETY: likewise.
        let out = unsafe { from_raw_parts_mut(out.cast::<f32>(), m * n) };
        return pool(threads).install(|| linear::weight_gradient(level, a, b, out, n, false));
    }
    // SAFETY: likewise.
    let out = unsafe { from_raw_parts_mut(out.cast::<E>(), m * n) };
    pool(threads).install(|| match layout {
        Layout::Forward => linear::forward(level, a, Weight::Plain(b), None, out, k),
        _ => linear::input_gradient(level, a, b, None, out, n),
    });
}

/// Of the calling thread and others, as torch's is, so that no more threads are awake than there are cores.
fn pool(threads: usize) -> &'static ThreadPool {
    static POOL: OnceLock<ThreadPool> = OnceLock::new();
    let build = || {
        rayon::ThreadPoolBuilder::new().num_threads(threads).use_current_thread().build().expect("threads")
    };
    POOL.get_or_init(build)
}
