//! Shuffles, votes, matches and reductions of a warp, by the ISA's formulas; whole warps, parts of one with a member
//! mask each, and under a guard.

use crate::grammar::Form;
use crate::harness::{Device, Job, kernel, words64};
use crate::integer::{int_type, number};
use crate::registers::{GUARD, REGISTERS, check, guard, letters, sentinel, set, store, text};
use crate::values::{Kind, Random};

pub const LINES: &[&str] = &[
    "shfl.sync.{up,down,bfly,idx}.b32 {r,r|p} r {r,#3} {r,#0x1f,#0x1c03,#0} r",
    "shfl.sync.{up,down,bfly,idx}.b32 {r,r|p} r r r #-1",
    "vote.sync.{all,any,uni}.pred p {p,!p,#1,#0} {r,#-1}",
    "vote.sync.ballot.b32 r {p,!p,#1} {r,#-1}",
    "match.any.sync.b32 r r {r,#-1}",
    "match.any.sync.b64 r q {r,#-1}",
    "match.all.sync.b32 {r,r|p} r {r,#-1}",
    "match.all.sync.b64 {r,r|p} q {r,#-1}",
    "redux.sync.{add,min,max}.{u32,s32} r r {r,#-1}",
    "redux.sync.{and,or,xor}.b32 r r {r,#-1}",
    "activemask.b32 r",
    "-redux.sync.{min,max}{,.abs}{,.NaN}.f32 r r r",
    "-elect.sync r|p r",
    "-shfl.{up,down,bfly,idx}.b32 r r r r",
    "-vote.{all,any,uni}.pred p p",
    "-redux.sync.mul.u32 r r r",
];

const THREADS: usize = 1024;
/// A shuffle from a lane that does not execute it.
const UNDEFINED: u64 = 0x7fff_dead;
/// Words of a thread: sources, and the member mask under the guard.
const WORDS: usize = 5;

fn kernel_of(device: &Device, form: &Form) -> String {
    let mut body = format!(
        "{REGISTERS}{GUARD}mul.wide.u32 %w, %thread, {};\nadd.u64 %in, %in, %w;\nmul.wide.u32 %w, %thread, 32;\n\
         add.u64 %out, %out, %w;\n",
        8 * WORDS
    );
    let sources: Vec<char> = form.operands[1..].iter().flat_map(|operand| letters(operand)).collect();
    for (k, letter) in sources.iter().enumerate() {
        let at = 8 * position(form, k);
        body += &match letter {
            'r' => format!("ld.global.b32 %sr{k}, [%in+{at}];\n"),
            'q' => format!("ld.global.b64 %sq{k}, [%in+{at}];\n"),
            _ => format!("ld.global.b32 %g0, [%in+{at}];\nsetp.ne.u32 %sp{k}, %g0, 0;\n"),
        };
    }
    let outputs: Vec<char> = letters(&form.operands[0]).collect();
    for run in 0..2 {
        outputs.iter().enumerate().for_each(|(k, &letter)| body += &set(letter, k));
        if run == 1 && form.operands.len() > 1 {
            body += &format!("ld.global.b32 %sr{}, [%in+{}];\n", sources.len().max(1) - 1, 8 * (WORDS - 1));
        }
        body += &format!("{}{}\n", ["", "@%g "][run], text(form));
        for (k, &letter) in outputs.iter().enumerate() {
            // The second one is a predicate.
            body += &store(letter, 'd', k, 16 * run + 8 * k);
        }
        if form.operands.last().is_some_and(|operand| operand == "#-1") {
            break; // needs all lanes
        }
    }
    kernel(device.capability, "", &body)
}

/// The word of a thread that goes to its source `k`: the operand's place.
fn position(form: &Form, k: usize) -> usize {
    let places = form.operands[1..].iter().enumerate().filter(|(_, operand)| !operand.starts_with('#'));
    places.map(|(place, _)| place).nth(k).expect("a source")
}

/// Sources of all threads. Warps are of four sorts: random, all alike, few values, partitioned in three.
fn sources(form: &Form, turn: u64) -> Vec<[u64; WORDS]> {
    let mut random = Random::new(turn);
    let mut rows = Vec::new();
    for warp in 0..THREADS / 32 {
        let alike = Kind::Integer(64).random(&mut random);
        let assigned: Vec<usize> = (0..32).map(|_| random.below(3)).collect();
        for lane in 0..32 {
            let mut row = [0; WORDS];
            let value = match warp % 4 {
                0 => random.next(),
                1 => alike,
                2 => alike ^ (random.below(3) as u64) << 31,
                _ => {
                    if random.below(40) == 0 {
                        alike ^ 1 << 40
                    } else {
                        alike
                    }
                }
            };
            row[0] = value;
            if form.name.starts_with("shfl") {
                row[1] = Kind::Amount.random(&mut random);
                row[2] = [0x1f, 0, 0x1c03, 0x181f, random.next() & 0xffff_ffff][random.below(5)];
            }
            if form.operands.get(1).is_some_and(|operand| operand.ends_with('p')) {
                row[0] = value >> 7 & 1;
            }
            let mine = |other: &usize| warp % 4 != 3 || assigned[*other] == assigned[lane];
            let mask = (0..32usize).filter(mine).fold(0, |mask, other| mask | 1u64 << other);
            let first = (32 * warp) as u64;
            let active = (0..32).filter(|l| guard(first + l)).fold(0, |active, l| active | 1u64 << l);
            row[form.operands.len().saturating_sub(2)] = if form.operands.len() > 1 { mask } else { 0 };
            row[WORDS - 1] = mask & active;
            rows.push(row);
        }
    }
    rows
}

/// What a lane's operands are: constants too.
fn operand(form: &Form, place: usize, row: &[u64; WORDS]) -> u64 {
    let text = &form.operands[1 + place];
    match text.as_str() {
        "!p" => 1 - row[place],
        "#-1" => 0xffff_ffff,
        text => match text.strip_prefix('#') {
            None => row[place],
            Some(constant) => constant
                .strip_prefix("0x")
                .map_or_else(|| constant.parse(), |hex| u64::from_str_radix(hex, 16))
                .expect("a number"),
        },
    }
}

/// Source lane of a shuffle, and whether it is in range.
fn shuffled(mode: &str, lane: i64, b: u64, c: u64) -> (i64, bool) {
    let [b, clamp, segment] = [b & 31, c & 31, c >> 8 & 31].map(|x| x as i64);
    let most = (lane & segment) | (clamp & !segment & 31);
    let (from, inside) = match mode {
        "up" => (lane - b, lane - b >= most),
        "down" => (lane + b, lane + b <= most),
        "bfly" => (lane ^ b, lane ^ b <= most),
        _ => {
            let from = (lane & segment) | (b & !segment & 31);
            (from, from <= most)
        }
    };
    if inside { (from, true) } else { (lane, false) }
}

/// Results of a lane whose warp's values are `v`, with its member mask; `None` where nothing is defined.
fn results(form: &Form, warp: &[[u64; WORDS]], lane: usize, mask: u64, active: u64) -> Option<[u64; 2]> {
    let words = form.words();
    let members: Vec<usize> = (0..32).filter(|l| mask >> l & 1 == 1).collect();
    let value = |l: usize| operand(form, 0, &warp[l]);
    match words[0] {
        "shfl" => {
            let (b, c) = (operand(form, 1, &warp[lane]), operand(form, 2, &warp[lane]));
            let (from, inside) = shuffled(words[2], lane as i64, b, c);
            let from = from as usize;
            if active >> from & 1 == 0 {
                return Some([UNDEFINED, u64::from(inside)]);
            }
            (mask >> from & 1 == 1).then(|| [value(from) & 0xffff_ffff, u64::from(inside)])
        }
        "vote" => {
            let ballot = members.iter().filter(|&&l| value(l) == 1).fold(0, |ballot, l| ballot | 1u64 << l);
            Some([
                match words[2] {
                    "all" => u64::from(ballot == mask),
                    "any" => u64::from(ballot != 0),
                    "uni" => u64::from(ballot == 0 || ballot == mask),
                    _ => ballot,
                },
                0,
            ])
        }
        "match" => {
            let bits = if words[3] == "b64" { u64::MAX } else { 0xffff_ffff };
            let same = |l: &&usize| (value(**l) ^ value(lane)) & bits == 0;
            let alike = members.iter().filter(same).fold(0, |alike, l| alike | 1u64 << l);
            let all = alike == mask;
            Some(if words[1] == "all" { [if all { mask } else { 0 }, u64::from(all)] } else { [alike, 0] })
        }
        "activemask" => Some([active, 0]),
        _ => {
            let (bits, signed) = int_type(words[3]).expect("an integer");
            let numbers = members.iter().map(|&l| number(value(l), bits, signed));
            let result = match words[2] {
                "add" => numbers.sum(),
                "min" => numbers.min().expect("members"),
                "max" => numbers.max().expect("members"),
                "and" => numbers.fold(-1, |x, y| x & y),
                "or" => numbers.fold(0, |x, y| x | y),
                _ => numbers.fold(0, |x, y| x ^ y),
            };
            Some([result as u64 & 0xffff_ffff, 0])
        }
    }
}

fn run(device: &Device, form: &Form, turn: u64) -> Result<(), String> {
    let rows = sources(form, turn);
    let input: Vec<u8> = rows.iter().flatten().flat_map(|x| x.to_le_bytes()).collect();
    let job = Job::line(THREADS / 128, 128, &input, 32 * THREADS);
    let text = kernel_of(device, form);
    let (got, _) =
        device.run(&text, &job, turn).map_err(|fault| format!("{}: {fault}\n{text}", form.text()))?;
    let outputs: Vec<char> = letters(&form.operands[0]).collect();
    let whole = form.operands.last().is_some_and(|operand| operand == "#-1");
    for (thread, got) in words64(&got).chunks_exact(4).enumerate() {
        let (warp, lane) = (&rows[thread / 32 * 32..thread / 32 * 32 + 32], thread % 32);
        let first = (thread - lane) as u64;
        let guarded = (0..32).filter(|l| guard(first + l)).fold(0, |active, l| active | 1u64 << l);
        for (run, active) in [(0, 0xffff_ffff), (1, guarded)].into_iter().take(if whole { 1 } else { 2 }) {
            let mask = match (run, form.operands.len()) {
                _ if whole => 0xffff_ffff,
                (0, operands) => rows[thread][operands.max(2) - 2],
                _ => rows[thread][WORDS - 1],
            };
            let want = if active >> lane & 1 == 1 {
                results(form, warp, lane, mask, active)
            } else {
                Some([sentinel(outputs[0], thread as u64), sentinel('p', thread as u64)])
            };
            let Some(want) = want else { continue };
            let got = &got[2 * run..2 * run + outputs.len()];
            if got != &want[..outputs.len()] {
                let row = rows[thread];
                return Err(format!(
                    "{} run {run}, thread {thread} of {row:x?}: {got:x?}, not {want:x?}",
                    form.text()
                ));
            }
        }
    }
    Ok(())
}

#[test]
fn lanes_work_together() {
    check(LINES, run);
}
