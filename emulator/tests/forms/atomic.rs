//! Atomics and reductions: the old values that the threads of a cell got, and what it holds at the end, must be those
//! of some order of the threads.

use crate::float::format;
use crate::grammar::Form;
use crate::harness::{Device, Job, kernel, words64};
use crate::integer::{int_type, number};
use crate::registers::{GUARD, REGISTERS, guard, sentinel, set, store, text};
use crate::soft::{F32, Format, Number, Rounding, sum};
use crate::values::{Kind, Random, half};

pub const LINES: &[&str] = &[
    "atom{,.global,.shared,.shared::cta}.{add,min,max}.{u32,s32} r [q] r",
    "atom{,.global,.shared,.shared::cta}.{add.u64,min.u64,min.s64,max.u64,max.s64} q [q] q",
    "atom{,.global,.shared,.shared::cta}.{and,or,xor}.b32 r [q] r",
    "atom{,.global,.shared,.shared::cta}.{and,or,xor}.b64 q [q] q",
    "atom{,.global,.shared,.shared::cta}.{inc,dec}.u32 r [q] r",
    "atom{,.global,.shared,.shared::cta}.exch.b32 r [q] r",
    "atom{,.global,.shared,.shared::cta}.exch.b64 q [q] q",
    "atom{,.global,.shared,.shared::cta}.cas.b16 h [q] h h",
    "atom{,.global,.shared,.shared::cta}.cas.b32 r [q] r r",
    "atom{,.global,.shared,.shared::cta}.cas.b64 q [q] q q",
    "atom{,.global,.shared,.shared::cta}.add.f32 r [q] r",
    "atom{,.global,.shared,.shared::cta}.add.f64 q [q] q",
    "atom{,.global,.shared,.shared::cta}.add.noftz.{f16,bf16} h [q] h",
    "atom{,.global,.shared,.shared::cta}.add.noftz.{f16x2,bf16x2} r [q] r",
    "atom{,.relaxed,.acquire,.release,.acq_rel}{,.cta,.cluster,.gpu,.sys}{,.global,.shared,.shared::cta}.{add.u32,min.s32} r [q] r",
    "atom.shared.{add.u32,min.s32,max.u32,add.f32,exch.b32} r [r] r",
    "atom.shared.cas.b32 r [r] r r",
    "atom.shared.{add.u64,min.s64} q [r] q",
    "atom{,.global,.shared,.shared::cta}.{add.u32,max.s32} _ [q] r",
    "atom{,.global,.shared,.shared::cta}.{add.u32,min.s32} r [q] #-7",
    "atom{,.global,.shared,.shared::cta}.cas.b16 h [q] h #-7",
    "red{,.global,.shared,.shared::cta}.{add,min,max}.{u32,s32} [q] r",
    "red{,.global,.shared,.shared::cta}.{add.u64,min.u64,min.s64,max.u64,max.s64} [q] q",
    "red{,.global,.shared,.shared::cta}.{and,or,xor}.b32 [q] r",
    "red{,.global,.shared,.shared::cta}.{and,or,xor}.b64 [q] q",
    "red{,.global,.shared,.shared::cta}.{inc,dec}.u32 [q] r",
    "red{,.global,.shared,.shared::cta}.add.f32 [q] r",
    "red{,.global,.shared,.shared::cta}.add.f64 [q] q",
    "red{,.global,.shared,.shared::cta}.add.noftz.{f16,bf16} [q] h",
    "red{,.global,.shared,.shared::cta}.add.noftz.{f16x2,bf16x2} [q] r",
    "red{,.relaxed,.release}{,.cta,.cluster,.gpu,.sys}{,.global,.shared,.shared::cta}.{add.u32,and.b32} [q] r",
    "red.shared.{add.u32,min.s32,add.f32} [r] r",
    "-red.{exch,cas}.b32 [q] r",
    "-red.cas.b32 [q] r r",
    "-atom.global.{v2,v4}.f32.add (r,r) [q] (r,r)",
    "-atom.global.{exch,cas}.b128 q [q] q",
    "-atom.add.s64 q [q] q",
    "-atom.{local,param,const}.add.u32 r [q] r",
    "-red.async.relaxed.cluster.shared::cluster.add.u32 [r] r",
];

/// Threads of a launch, four to a cell of eight bytes.
const THREADS: usize = 64;
const CELLS: usize = 16;

/// An atomic's operation on (old, b, c).
struct Operation {
    name: String,
    ty: String,
    /// Sums of f32 in global memory take subnormals for zeros.
    flush: bool,
}

impl Operation {
    fn bits(&self) -> u32 {
        match (int_type(&self.ty), format(&self.ty)) {
            (Some((bits, _)), _) => bits,
            (_, Some(f)) if self.ty.ends_with("x2") => 2 * f.bits(),
            (_, f) => f.expect("a type").bits(),
        }
    }

    fn kind(&self) -> Kind {
        match half(&self.ty).or_else(|| format(&self.ty)) {
            Some(f) if self.ty.ends_with("x2") => Kind::Packed(f),
            Some(f) => Kind::Float(f),
            None => Kind::Integer(self.bits()),
        }
    }

    fn apply(&self, old: u64, b: u64, c: u64) -> u64 {
        if let Kind::Packed(f) = self.kind() {
            return self.add(f, old & 0xffff, b & 0xffff) | self.add(f, old >> 16, b >> 16) << 16;
        }
        if let Kind::Float(f) = self.kind() {
            return self.add(f, old, b);
        }
        let (bits, signed) = int_type(&self.ty).expect("an integer");
        let value = |x| number(x, bits, signed);
        let smaller = value(old) < value(b);
        let result = match self.name.as_str() {
            "add" => old.wrapping_add(b),
            "and" => old & b,
            "or" => old | b,
            "xor" => old ^ b,
            "min" => {
                if smaller {
                    old
                } else {
                    b
                }
            }
            "max" => {
                if smaller {
                    b
                } else {
                    old
                }
            }
            "inc" => {
                if old >= b {
                    0
                } else {
                    old + 1
                }
            }
            "dec" => {
                if old == 0 || old > b {
                    b
                } else {
                    old - 1
                }
            }
            "exch" => b,
            "cas" => {
                if old == b {
                    c
                } else {
                    old
                }
            }
            other => unreachable!("{other}"),
        };
        result & u64::MAX >> (64 - bits)
    }

    fn add(&self, f: Format, a: u64, b: u64) -> u64 {
        let flush = |x: u64| if self.flush && f == F32 { f.flush(x) } else { x };
        let (a, b) = (flush(a), flush(b));
        match (f.decode(a), f.decode(b)) {
            (Number::Finite(x), Number::Finite(y)) => {
                flush(f.round(sum(x, y, Rounding::Nearest), Rounding::Nearest))
            }
            (Number::Nan, _) if f.bits() == 64 => a | 1 << 51,
            (_, Number::Nan) if f.bits() == 64 => b | 1 << 51,
            (Number::Nan, _) | (_, Number::Nan) => f.nan,
            (Number::Infinite(x), Number::Infinite(y)) if x != y => f.nan,
            (Number::Infinite(_), _) => a,
            _ => b,
        }
    }
}

/// All orders of so many things.
fn orders(count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![vec![]];
    }
    let shorter = orders(count - 1);
    let insert = |order: &Vec<usize>, at| {
        let mut longer = order.clone();
        longer.insert(at, count - 1);
        longer
    };
    shorter.iter().flat_map(|order| (0..count).map(move |at| insert(order, at))).collect()
}

/// A cell's value before and after, and what each of its threads had and got.
struct Cell {
    before: u64,
    after: u64,
    threads: Vec<(u64, u64, Option<u64>)>,
}

fn in_some_order(operation: &Operation, cell: &Cell) -> bool {
    orders(cell.threads.len()).iter().any(|order| {
        let end = order.iter().try_fold(cell.before, |old, &k| {
            let (b, c, got) = cell.threads[k];
            got.is_none_or(|got| got == old).then(|| operation.apply(old, b, c))
        });
        end == Some(cell.after)
    })
}

/// Where the cells of a form can be.
fn places(form: &Form) -> Vec<&'static str> {
    let words = form.words();
    let shared = words.iter().any(|word| word.starts_with("shared"));
    match (words.contains(&"global"), shared) {
        (true, _) => vec!["global"],
        (_, true) => vec!["shared"],
        _ => vec!["global", "shared"],
    }
}

/// The cells are in the output, after the threads' results, or in shared memory, from where they go there. An address
/// is that of a part of a cell of `bytes` bytes.
fn kernel_of(device: &Device, form: &Form, place: &str, bytes: u32, guarded: bool) -> String {
    let generic = places(form).len() > 1;
    let mut body = format!(
        "{REGISTERS}.shared .align 16 .b8 cells[128];\n.reg .b64 %at, %cell;\n.reg .pred %first;\n{GUARD}\
         setp.lt.u32 %first, %thread, {CELLS};\nand.b32 %t, %thread, {};\nmul.wide.u32 %w, %t, 8;\n\
         add.u64 %at, %out, %w;\nadd.u64 %at, %at, {};\nmov.b64 %cell, cells;\nadd.u64 %cell, %cell, %w;\n\
         add.u64 %w, %in, %w;\nld.global.b64 %w, [%w];\n@%first st.global.b64 [%at], %w;\n\
         @%first st.shared.b64 [%cell], %w;\nbar.sync 0;\nmul.wide.u32 %w, %thread, 16;\nadd.u64 %in, %in, %w;\n\
         mul.wide.u32 %w, %thread, 8;\nadd.u64 %out, %out, %w;\n",
        CELLS - 1,
        8 * THREADS,
    );
    // A reduction's address is its first operand, an atomic's its first source.
    let (prefix, first) = if form.words()[0] == "red" { ('d', 0) } else { ('s', 1) };
    for k in 0..2 {
        let (to, from) = (first + k, 8 * CELLS + 8 * k);
        body += &format!("ld.global.b64 %sq{to}, [%in+{from}];\nld.global.b32 %sr{to}, [%in+{from}];\n");
        body += &format!("ld.global.b16 %sh{to}, [%in+{from}];\n");
    }
    let start = match (place, generic) {
        ("shared", true) => "cvta.shared.u64 %w, %cell;\n",
        ("shared", false) => "mov.b64 %w, %cell;\n",
        _ => "mov.b64 %w, %at;\n",
    };
    let parts = 8 / bytes - 1;
    body += &format!("{start}and.b32 %t, %t, {parts};\nmul.wide.u32 %{prefix}q0, %t, {bytes};\n");
    body += &format!("add.u64 %{prefix}q0, %{prefix}q0, %w;\ncvt.u32.u64 %{prefix}r0, %{prefix}q0;\n");
    let letter = result(form);
    let store = letter.map(|letter| store(letter, 'd', 0, 0)).unwrap_or_default();
    body += &letter.map(|letter| set(letter, 0)).unwrap_or_default();
    let guard = if guarded { "@%g " } else { "" };
    body += &format!("{guard}{}\n{store}bar.sync 0;\n", text(form));
    if place == "shared" {
        body += "ld.shared.b64 %w, [%cell];\n@%first st.global.b64 [%at], %w;\n";
    }
    kernel(device.capability, "", &body)
}

/// The letter of a destination.
fn result(form: &Form) -> Option<char> {
    form.operands[0].chars().next().filter(|c| matches!(c, 'h' | 'r' | 'q'))
}

/// Cells before, and the operands of every thread.
struct Trial {
    operation: Operation,
    before: Vec<u64>,
    operands: Vec<[u64; 2]>,
}

impl Trial {
    fn new(form: &Form, place: &str, turn: u64) -> Self {
        let words = form.words();
        let names = ["add", "and", "or", "xor", "min", "max", "inc", "dec", "exch", "cas"];
        let name = (*words.iter().find(|word| names.contains(word)).expect("an operation")).to_owned();
        let ty = (*words.last().expect("a type")).to_owned();
        let operation = Operation { name, ty, flush: place == "global" };
        let (kind, mut random) = (operation.kind(), Random::new(turn));
        let special = kind.special();
        let mut value = || match random.below(3) {
            0 => kind.random(&mut random),
            _ => special[random.below(special.len())],
        };
        let mut trial = Self { operation, before: vec![0x0123_4567_89ab_cdef; CELLS], operands: Vec::new() };
        for cell in 0..CELLS {
            let (old, shift) = trial.part(cell, trial.before[cell]);
            trial.before[cell] ^= (old ^ value()) << shift;
        }
        let constant = form.operands.last().is_some_and(|operand| operand == "#-7");
        let minus = 7u64.wrapping_neg() & trial.mask();
        for thread in 0..THREADS {
            let cell = thread % CELLS;
            let (mut b, mut c) = (value(), value());
            // Every other comparison is with what is there.
            if trial.operation.name == "cas" {
                b = if (thread / CELLS).is_multiple_of(2) {
                    trial.part(cell, trial.before[cell]).0
                } else {
                    b
                };
                c = if constant { minus } else { c };
            } else if constant {
                b = minus;
            }
            trial.operands.push([b, c]);
        }
        trial
    }

    fn bytes(&self) -> u32 {
        self.operation.bits() / 8
    }

    fn mask(&self) -> u64 {
        u64::MAX >> (64 - self.operation.bits())
    }

    /// The part of a cell's word that is operated on, and where it starts.
    fn part(&self, cell: usize, word: u64) -> (u64, u32) {
        let shift = self.operation.bits() * (cell as u32 % (8 / self.bytes()));
        (word >> shift & self.mask(), shift)
    }

    fn input(&self) -> Vec<u8> {
        self.before.iter().chain(self.operands.as_flattened()).flat_map(|x| x.to_le_bytes()).collect()
    }
}

fn check(device: &Device, form: &Form, place: &str, guarded: bool, turn: u64) -> Result<(), String> {
    let trial = Trial::new(form, place, turn);
    let input = trial.input();
    let job = Job::line(1, THREADS, &input, 8 * (THREADS + CELLS));
    let text = kernel_of(device, form, place, trial.bytes(), guarded);
    let (got, _) = device.run(&text, &job, turn).map_err(|fault| format!("{}: {fault}", form.text()))?;
    let got = words64(&got);
    for cell in 0..CELLS {
        let (before, after) = (trial.before[cell], got[THREADS + cell]);
        let ((old, shift), (new, _)) = (trial.part(cell, before), trial.part(cell, after));
        let mut threads = Vec::new();
        for thread in (cell..THREADS).step_by(CELLS) {
            let [b, c] = trial.operands[thread];
            if !guarded || guard(thread as u64) {
                threads.push((b, c, result(form).map(|_| got[thread])));
            } else if result(form).is_some_and(|letter| got[thread] != sentinel(letter, 0)) {
                return Err(format!(
                    "{} {place}: {:x} in a lane that takes no part",
                    form.text(),
                    got[thread]
                ));
            }
        }
        let found = Cell { before: old, after: new, threads };
        if (before ^ after) & !(trial.mask() << shift) != 0 || !in_some_order(&trial.operation, &found) {
            return Err(format!("{} {place}: {old:x} became {new:x} by {:x?}", form.text(), found.threads));
        }
    }
    Ok(())
}

#[test]
fn atomics_happen_in_some_order() {
    crate::registers::check(LINES, |device, form, turn| {
        for place in places(form) {
            for round in 0..4 {
                check(device, form, place, round % 2 == 1, 4 * turn + round)?;
            }
        }
        Ok(())
    });
}
