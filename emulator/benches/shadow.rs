//! Nanoseconds of a warp's access in the shadow of shared memory: `cargo bench -p cuda-emulator --bench shadow`.

use cuda_emulator::shadow::{Access, Shadow};
use std::hint::black_box;
use std::time::Instant;

const BYTES: usize = 32 * 1024;
const ROUNDS: u32 = 400;

/// The best of several means, in nanoseconds per call, of `access` on tiles all over the memory.
fn measure(name: &str, tile: u32, mut prepare: impl FnMut(&mut Shadow), access: impl Fn(&mut Shadow, u32)) {
    let mut shadow = Shadow::new();
    shadow.begin_block(BYTES, 256);
    let tiles = u32::try_from(BYTES).expect("small") / tile;
    let every: [u32; 32] = std::array::from_fn(|lane| u32::try_from(lane * 16).expect("small"));
    for at in (0..BYTES).step_by(512) {
        let at = u32::try_from(at).expect("small");
        shadow.write(0, u32::MAX, &every.map(|a| a + at), 16, Access::Weak).expect("first write");
    }
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        shadow.block_barrier();
        prepare(&mut shadow);
        let start = Instant::now();
        for at in 0..tiles {
            access(black_box(&mut shadow), black_box(at * tile));
        }
        best = best.min(start.elapsed().as_secs_f64() * 1e9 / f64::from(tiles));
    }
    println!("{name:44} {best:7.1} ns");
}

fn lanes(at: u32, stride: u32) -> [u32; 32] {
    let mut addresses = [0; 32];
    for (lane, address) in (0..).zip(&mut addresses) {
        *address = at + stride * lane;
    }
    addresses
}

fn read(shadow: &mut Shadow, warp: u32, addresses: &[u32; 32], bytes: u32) {
    shadow.read(warp, u32::MAX, addresses, bytes, Access::Weak).expect("ordered");
}

fn write(shadow: &mut Shadow, warp: u32, addresses: &[u32; 32], bytes: u32) {
    shadow.write(warp, u32::MAX, addresses, bytes, Access::Weak).expect("ordered");
}

/// Every tile of `rows` rows read by one warp.
fn read_all_rows(shadow: &mut Shadow, warp: u32) {
    for at in (0..u32::try_from(BYTES).expect("small")).step_by(512) {
        shadow.read_rows(warp, &lanes(at, 16)).expect("ordered");
    }
}

fn main() {
    let idle = |_: &mut Shadow| {};
    for bytes in [2, 4, 8, 16] {
        let tile = 32 * bytes;
        measure(&format!("read {bytes} contiguous"), tile, idle, |s, at| {
            read(s, 1, &lanes(at, bytes), bytes)
        });
        measure(&format!("write {bytes} contiguous"), tile, idle, |s, at| {
            write(s, 1, &lanes(at, bytes), bytes)
        });
    }
    let swizzled = |at: u32| lanes(at, 4).map(|a| a ^ 12);
    measure("read 4 swizzled", 128, idle, |s, at| read(s, 1, &swizzled(at), 4));
    measure("write 4 swizzled", 128, idle, |s, at| write(s, 1, &swizzled(at), 4));
    measure("read 4 strided by 16", 512, idle, |s, at| read(s, 1, &lanes(at, 16), 4));
    measure("read 4, all lanes the same", 128, idle, |s, at| read(s, 1, &[at; 32], 4));
    measure("read 4, 8 lanes the same", 128, idle, |s, at| read(s, 1, &lanes(at, 4).map(|a| a & !31), 4));
    measure(
        "read 4, of own write",
        128,
        |s| (0..256).for_each(|t| write(s, 1, &lanes(t * 128, 4), 4)),
        |s, at| {
            read(s, 1, &lanes(at, 4), 4);
        },
    );
    measure("write, bar.warp.sync, read 4", 128, idle, |s, at| {
        write(s, 1, &lanes(at, 4), 4);
        s.warp_barrier(1, u32::MAX);
        read(s, 1, &swizzled(at), 4);
        s.warp_barrier(1, u32::MAX);
    });
    measure(
        "read 4, second warp",
        128,
        |s| (0..256).for_each(|t| read(s, 0, &lanes(t * 128, 4), 4)),
        |s, at| {
            read(s, 1, &lanes(at, 4), 4);
        },
    );
    measure("ldmatrix x4", 512, idle, |s, at| s.read_rows(1, &lanes(at, 16)).expect("ordered"));
    measure(
        "ldmatrix x4, second warp",
        512,
        |s| read_all_rows(s, 0),
        |s, at| {
            s.read_rows(1, &lanes(at, 16)).expect("ordered");
        },
    );
    let two = |s: &mut Shadow| (0..2).for_each(|warp| read_all_rows(s, warp));
    measure("ldmatrix x4, third warp", 512, two, |s, at| {
        s.read_rows(2, &lanes(at, 16)).expect("ordered");
    });
    measure(
        "ldmatrix x4, again",
        512,
        |s| read_all_rows(s, 1),
        |s, at| {
            s.read_rows(1, &lanes(at, 16)).expect("ordered");
        },
    );
    measure("cp.async 16 issued and completed", 512, idle, |s, at| {
        s.issue_async(1, u32::MAX, &lanes(at, 16), 16).expect("ordered");
        s.complete_async(1, u32::MAX, &lanes(at, 16), 16).expect("issued");
    });
    measure("atomics on one word", 128, idle, |s, at| {
        s.write(1, u32::MAX, &[at; 32], 4, Access::Strong).expect("ordered");
    });
    measure("begin_block of 32 KB", 128, idle, |s, _| s.begin_block(BYTES, 256));
}
