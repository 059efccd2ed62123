//! `ldmatrix`, `stmatrix` and `mma`: places of the elements by the ISA's tables, values that are whole numbers.

use crate::grammar::{Form, expand};
use crate::harness::{Device, Job, kernel, words32};
use crate::registers::{REGISTERS, check, text};
use crate::soft::{BF16, Exact, F16, F32, Format, Rounding};
use crate::values::Random;

pub const LOADS: &[&str] = &[
    "ldmatrix.sync.aligned.m8n8.x1{,.trans}{.shared,.shared::cta}.b16 r {[r],[q]}",
    "ldmatrix.sync.aligned.m8n8.x2{,.trans}{.shared,.shared::cta}.b16 (r,r) {[r],[q]}",
    "ldmatrix.sync.aligned.m8n8.x4{,.trans}{.shared,.shared::cta}.b16 (r,r,r,r) {[r],[q]}",
    "ldmatrix.sync.aligned.x4{,.trans}.m8n8.shared.b16 (r,r,r,r) [r]",
    "-ldmatrix.sync.aligned.m8n16.x1.shared.b8x16.b6x16_p32 r [r]",
    "-ldmatrix.sync.aligned.m16n16.x1.trans.shared.b8 (r,r) [r]",
    "-stmatrix.sync.aligned.m8n8.{x1.trans.shared.b16,x1.shared.b16} [r] r",
];

pub const STORES: &[&str] = &[
    "stmatrix.sync.aligned.m8n8.x1{,.trans}{.shared,.shared::cta}.b16 {[r],[q]} r",
    "stmatrix.sync.aligned.m8n8.x2{,.trans}{.shared,.shared::cta}.b16 {[r],[q]} (r,r)",
    "stmatrix.sync.aligned.m8n8.x4{,.trans}{.shared,.shared::cta}.b16 {[r],[q]} (r,r,r,r)",
];

/// Rows of 16 bytes in shared memory, and a word's worth of the registers of each lane.
const ROWS: usize = 40;

/// The row of shared memory whose address a lane gives: all different.
fn row_of(lane: usize) -> usize {
    (lane * 11 + 5) % ROWS
}

/// Rows go from the input to shared memory; fragments from the input to `%m0` and on, or to the output.
fn kernel_of(device: &Device, form: &Form, matrices: usize) -> String {
    let store = form.name.starts_with("stmatrix");
    let mut body = format!(
        "{REGISTERS}.reg .b32 %at, %own;\n.shared .align 16 .b8 rows[{}];\nmov.b32 %own, rows;\nmul.lo.u32 %t, %thread, 4;\n\
         add.u32 %own, %own, %t;\nmul.wide.u32 %w, %thread, 4;\nadd.u64 %in, %in, %w;\nadd.u64 %out, %out, %w;\n",
        16 * ROWS
    );
    for k in (0..16 * ROWS).step_by(128) {
        body += &format!("ld.global.b32 %t, [%in+{k}];\nst.shared.b32 [%own+{k}], %t;\n");
    }
    body += &format!(
        "bar.sync 0;\nmad.lo.u32 %t, %thread, 11, 5;\nrem.u32 %t, %t, {ROWS};\nmul.lo.u32 %t, %t, 16;\n\
         mov.b32 %at, rows;\nadd.u32 %at, %at, %t;\n"
    );
    let prefix = if store { 'd' } else { 's' };
    body += &format!("mov.b32 %{prefix}r0, %at;\ncvt.u64.u32 %{prefix}q0, %at;\n");
    if store {
        for k in 0..matrices {
            body += &format!("ld.global.b32 %sr{k}, [%in+{}];\n", 16 * ROWS + 128 * k);
        }
    }
    body += &format!("{}\nbar.sync 0;\n", text(form));
    if !store {
        for k in 0..matrices {
            body += &format!("st.global.b32 [%out+{}], %dr{k};\n", 128 * k);
        }
        return kernel(device.capability, "", &body);
    }
    for k in (0..16 * ROWS).step_by(128) {
        body += &format!("ld.shared.b32 %t, [%own+{k}];\nst.global.b32 [%out+{k}], %t;\n");
    }
    kernel(device.capability, "", &body)
}

/// Half `half` of a lane's register of a matrix: its row and column.
fn cell(lane: usize, half: usize, transposed: bool) -> (usize, usize) {
    let (row, column) = (lane / 4, lane % 4 * 2 + half);
    if transposed { (column, row) } else { (row, column) }
}

fn matrices(device: &Device, form: &Form, turn: u64) -> Result<(), String> {
    let words = form.words();
    let count =
        words.iter().find_map(|word| word.strip_prefix('x')?.parse().ok()).expect("a number of matrices");
    let (store, transposed) = (words[0] == "stmatrix", words.contains(&"trans"));
    let mut random = Random::new(turn);
    let halves: Vec<u16> = (0..8 * ROWS + 64 * count).map(|_| random.next() as u16).collect();
    let input: Vec<u8> = halves.iter().flat_map(|x| x.to_le_bytes()).collect();
    let output_bytes = if store { 16 * ROWS } else { 128 * count };
    let job = Job::line(1, 32, &input, output_bytes);
    let text = kernel_of(device, form, count);
    let (got, _) =
        device.run(&text, &job, turn).map_err(|fault| format!("{}: {fault}\n{text}", form.text()))?;
    let got: Vec<u16> = got.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
    let mut want = if store { halves[..8 * ROWS].to_vec() } else { vec![0; 64 * count] };
    for matrix in 0..count {
        for (lane, half) in (0..64).map(|k| (k / 2, k % 2)) {
            let (row, column) = cell(lane, half, transposed);
            let shared = 8 * row_of(8 * matrix + row) + column;
            let fragment = 64 * matrix + 2 * lane + half;
            match store {
                true => want[shared] = halves[8 * ROWS + fragment],
                false => want[fragment] = halves[shared],
            }
        }
    }
    if got == want { Ok(()) } else { Err(format!("{}: {got:x?}, not {want:x?}", form.text())) }
}

#[test]
fn matrices_come_from_shared_memory() {
    check(LOADS, matrices);
}

#[test]
fn matrices_go_to_shared_memory() {
    let device = Device::new(90);
    for (turn, form) in (0..).zip(expand(STORES.iter().copied())) {
        matrices(&device, &form, turn).unwrap();
    }
}

pub const PRODUCTS: &[&str] = &[
    "mma.sync.aligned.m16n8k16.row.col.f32.{f16.f16,bf16.bf16}.f32 (r,r,r,r) (r,r,r,r) (r,r) (r,r,r,r)",
    "mma.sync.aligned.m16n8k8.row.col.f32.{f16.f16,bf16.bf16}.f32 (r,r,r,r) (r,r) r (r,r,r,r)",
    "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 (r,r) (r,r,r,r) (r,r) (r,r)",
    "mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16 (r,r) (r,r) r (r,r)",
    "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 (r,r,r,r) (r,r,r,r) (r,r) (r,r,r,r)",
    "mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 (r,r,r,r) (r,r) r (r,r,r,r)",
    "mma.sync.aligned.m16n8k16.row.col{,.satfinite}.s32.{s8,u8}.{s8,u8}.s32 (r,r,r,r) (r,r) r (r,r,r,r)",
    "mma.sync.aligned.m16n8k32.row.col{,.satfinite}.s32.{s8,u8}.{s8,u8}.s32 (r,r,r,r) (r,r,r,r) (r,r) (r,r,r,r)",
    "-mma.sync.aligned.m16n8k32.row.col.s32.{s4,u4}.s8.s32 (r,r,r,r) (r,r,r,r) (r,r) (r,r,r,r)",
    "-mma.sync.aligned.m8n8k4.{row.col,col.row}.f32.f16.f16.f32 (r,r,r,r,r,r,r,r) (r,r) (r,r) (r,r,r,r,r,r,r,r)",
    "-mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 (q,q) q q (q,q)",
    "-mma.sync.aligned.m16n8k16.row.col.{f16.f16.f16.f32,f32.f16.f16.f16} (r,r) (r,r,r,r) (r,r) (r,r,r,r)",
    "-mma.sync.aligned.m16n8k32.row.col.f32.{e4m3,e5m2}.e4m3.f32 (r,r,r,r) (r,r,r,r) (r,r) (r,r,r,r)",
    "-mma.sp.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 (r,r,r,r) (r,r) (r,r) (r,r,r,r)",
];

/// Registers of an operand.
fn count(operand: &str) -> usize {
    operand.chars().filter(|c| *c == 'r').count()
}

/// Elements of a register, and the format they have; `None` for integers.
fn element(word: &str) -> (usize, Option<Format>) {
    match word {
        "f16" => (2, Some(F16)),
        "bf16" => (2, Some(BF16)),
        "s8" | "u8" => (4, None),
        "s32" => (1, None),
        _ => (1, Some(F32)),
    }
}

/// Row and column in A, B or C of element `e` of register `k` of a lane, by the figures of the ISA: rows come in
/// groups of eight lanes' quads; along k a quad's lanes have neighbouring elements of one register.
fn place(matrix: usize, lane: usize, k: usize, e: usize, per: usize) -> (usize, usize) {
    let (group, quad) = (lane / 4, lane % 4);
    match matrix {
        // Registers 0 and 2 are of the upper rows, 2 and 3 of the right half.
        0 => (group + 8 * (k % 2), quad * per + e + 4 * per * (k / 2)),
        1 => (quad * per + e + 4 * per * k, group),
        // C has two columns a lane, in one register or two.
        _ if per == 2 => (group + 8 * k, quad * 2 + e),
        _ => (group + 8 * (k / 2), quad * 2 + k % 2),
    }
}

/// A whole number as one of so many elements of a register.
fn whole(per: usize, f: Option<Format>, x: i64) -> u32 {
    let Some(f) = f else { return x as u32 & u32::MAX >> (32 - 32 / per) };
    let exact = Exact { negative: x < 0, significand: u128::from(x.unsigned_abs()), exponent: 0 };
    u32::try_from(f.round(exact, Rounding::Nearest)).expect("at most 32 bits")
}

fn product(device: &Device, form: &Form, turn: u64) -> Result<(), String> {
    let words = form.words();
    let types = &words[words.len() - 4..];
    let (per, _) = element(types[1]);
    let (per_c, of_c) = element(types[0]);
    let registers: Vec<usize> = form.operands.iter().map(|operand| count(operand)).collect();
    let mut random = Random::new(turn);
    // Sums below 2^11 are exact even in f16: 16 products of at most 81 and 200 more.
    let mut matrices = [[[0i64; 32]; 32]; 3];
    for (k, limit) in [9, 9, 200].into_iter().enumerate() {
        let least = if types[k + 1] == "u8" { 0 } else { limit as i64 };
        matrices[k].iter_mut().flatten().for_each(|x| *x = random.below(2 * limit + 1) as i64 - least);
    }
    let mut body = format!(
        "{REGISTERS}.reg .b32 %m<16>;\nmul.wide.u32 %w, %thread, 4;\nadd.u64 %in, %in, %w;\nadd.u64 %out, %out, %w;\n"
    );
    let (mut input, mut lists, mut next) = (Vec::new(), vec![list('d', 0, registers[0])], 0);
    for (matrix, &registers) in registers[1..].iter().enumerate() {
        let (per, f) = element(types[matrix + 1]);
        lists.push(list('m', next, registers));
        for k in 0..registers {
            body += &format!("ld.global.b32 %m{next}, [%in+{}];\n", 128 * next);
            next += 1;
            for lane in 0..32 {
                let part = |e| {
                    let (row, column) = place(matrix, lane, k, e, per);
                    whole(per, f, matrices[matrix][row][column]) << (32 / per * e)
                };
                input.extend((0..per).fold(0, |word, e| word | part(e)).to_le_bytes());
            }
        }
    }
    body += &format!("{} {};\n", form.name, lists.join(", "));
    (0..registers[0]).for_each(|k| body += &format!("st.global.b32 [%out+{}], %dr{k};\n", 128 * k));
    let text = kernel(device.capability, "", &body);
    let job = Job::line(1, 32, &input, 128 * registers[0]);
    let (got, _) =
        device.run(&text, &job, turn).map_err(|fault| format!("{}: {fault}\n{text}", form.text()))?;
    let depth = registers[1] * 32 * per / 16;
    for (at, got) in words32(&got).into_iter().enumerate() {
        let part = |e| {
            let (row, column) = place(2, at % 32, at / 32, e, per_c);
            let dot: i64 = (0..depth).map(|k| matrices[0][row][k] * matrices[1][k][column]).sum();
            whole(per_c, of_c, dot + matrices[2][row][column]) << (32 / per_c * e)
        };
        let want = (0..per_c).fold(0, |word, e| word | part(e));
        if got != want {
            return Err(format!(
                "{}: register {} of lane {}: {got:x}, not {want:x}",
                form.text(),
                at / 32,
                at % 32
            ));
        }
    }
    Ok(())
}

/// `{%m3,%m4}`; results are `%dr0` and on.
fn list(prefix: char, first: usize, count: usize) -> String {
    let letter = if prefix == 'd' { "r" } else { "" };
    let names: Vec<String> = (first..first + count).map(|k| format!("%{prefix}{letter}{k}")).collect();
    if count == 1 { names[0].clone() } else { format!("{{{}}}", names.join(",")) }
}

#[test]
fn products_of_whole_numbers() {
    check(PRODUCTS, |device, form, turn| {
        (0..8).try_for_each(|round| product(device, form, 8 * turn + round))
    });
}

#[test]
fn turing_has_one_shape() {
    let device = Device::new(75);
    for form in expand(PRODUCTS.iter().filter(|line| !line.starts_with('-')).copied()) {
        let has = form.name.contains("m16n8k8") && form.name.contains(".f16.f16");
        assert_eq!(device.decodes(REGISTERS, &text(&form)), has, "{}", form.text());
        if has {
            product(&device, &form, 1).unwrap();
        }
    }
}
