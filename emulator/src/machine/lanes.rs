//! Lane-wise instructions that are rare: one lane at a time.

use super::alu::logic;
use super::warp::Warp;
use crate::numeric::integer;
use crate::program::op::{CarryOp, Instr, Kind, NONE, Op, Reg};
use crate::traffic::active as lanes;

/// A register of a lane, zero-extended.
fn read(w: &Warp, register: Reg, kind: Kind, lane: usize) -> u64 {
    match kind {
        Kind::Use32 => u64::from(w.r[usize::from(register)].0[lane]),
        Kind::Use64 => w.q[usize::from(register)].0[lane],
        Kind::UsePred => u64::from(w.p[usize::from(register)] >> lane & 1),
        _ => 0,
    }
}

/// Executes an instruction one lane at a time; false if it is none of these.
pub fn by_lane(w: &mut Warp, i: &Instr, m: u32) -> bool {
    let sources = |w: &Warp, lane| [1, 2, 3].map(|k| read(w, i.r[k], i.kinds[k], lane));
    let mut v = [0u64; 32];
    match i.op {
        Op::Lanes(op) => lanes(m).for_each(|lane| v[lane] = op.apply(sources(w, lane))),
        Op::Join16 => {
            for lane in lanes(m) {
                v[lane] = (0..4).fold(0, |joined, k| {
                    let register = w.pool[i.wide as usize + k];
                    joined | u64::from(w.r[usize::from(register)].0[lane] & 0xffff) << (16 * k)
                });
            }
        }
        Op::Bfi { wide } => {
            let length = w.r[usize::from(w.pool[i.wide as usize])].0;
            for lane in lanes(m) {
                let [a, b, position] = sources(w, lane);
                let position = position as u32;
                v[lane] = if wide {
                    integer::bfi_b64(a, b, position, length[lane])
                } else {
                    u64::from(integer::bfi_b32(a as u32, b as u32, position, length[lane]))
                };
            }
        }
        Op::SetpLanes { function, combine, packed } => {
            let (mut first, mut second) = (0, 0);
            for lane in lanes(m) {
                let [a, b, c] = sources(w, lane);
                let found = function.apply([a, b, 0]) as u32;
                let (p, q) = (found & 1, if packed { found >> 1 & 1 } else { !found & 1 });
                let (p, q) = match combine {
                    Some((op, negated)) => {
                        let c = c as u32 & 1 ^ u32::from(negated);
                        (logic(op, p, c), logic(op, q, c))
                    }
                    None => (p, q),
                };
                first |= p << lane;
                second |= q << lane;
            }
            w.set_pred(i.r[0], first, m);
            w.set_pred(w.pool[i.wide as usize], second, m);
            return true;
        }
        Op::Carry(op, wide) => {
            carry(w, i, op, wide, m);
            return true;
        }
        _ => return false,
    }
    if i.kinds[0] == Kind::Def64 {
        w.set64(i.r[0], &v, m);
    } else {
        w.set32(i.r[0], &v.map(|v| v as u32), m);
    }
    true
}

fn carry(w: &mut Warp, i: &Instr, op: CarryOp, wide: bool, m: u32) {
    let [reads, sets] = [0, 1].map(|k| w.pool[i.wide as usize + k]);
    let bits = if wide { 64 } else { 32 };
    let mut v = [0u64; 32];
    let mut out = 0u32;
    for lane in lanes(m) {
        let [a, b, c] = [1, 2, 3].map(|k| u128::from(read(w, i.r[k], i.kinds[k], lane)));
        let carry = if reads == NONE { 0 } else { u128::from(w.p[usize::from(reads)] >> lane & 1) };
        let low = |x: u128| x & ((1 << bits) - 1);
        let signed = |x: u128| (x << (128 - bits)) as i128 >> (128 - bits);
        let sum = match op {
            CarryOp::Add => a + b + carry,
            // The flag is the borrow.
            CarryOp::Sub => a.wrapping_sub(b).wrapping_sub(carry) & ((2 << bits) - 1),
            CarryOp::MadLo => low(a * b) + c + carry,
            CarryOp::MadHi { signed: false } => ((a * b) >> bits) + c + carry,
            CarryOp::MadHi { signed: true } => low(((signed(a) * signed(b)) >> bits) as u128) + c + carry,
        };
        v[lane] = low(sum) as u64;
        out |= ((sum >> bits & 1) as u32) << lane;
    }
    if wide {
        w.set64(i.r[0], &v, m)
    } else {
        w.set32(i.r[0], &v.map(|v| v as u32), m)
    }
    w.set_pred(sets, out, m);
}
