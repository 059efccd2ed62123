//! Registers to the bytes that are stored and back.

use super::warp::Warp;
use crate::program::op::{Access, Instr, NONE};

/// One element of `B` bytes, up to 8, zero-extended.
#[inline(always)]
fn element<const N: usize, const B: usize>(data: &[u8; N], at: usize) -> u64 {
    let mut value = [0; 8];
    value[..B].copy_from_slice(&data[at..at + B]);
    u64::from_le_bytes(value)
}

/// An element of every lane to a 64-bit row.
#[inline(always)]
fn elements<const N: usize, const B: usize>(data: &[[u8; N]; 32], at: usize, signed: bool) -> [u64; 32] {
    let mut v = [0u64; 32];
    for lane in 0..32 {
        let x = element::<N, B>(&data[lane], at);
        v[lane] = if signed { sign_extend(x, B) } else { x };
    }
    v
}

/// Loaded bytes to the destination registers.
#[inline(always)]
pub fn spread<const N: usize>(warp: &mut Warp, i: &Instr, access: &Access, m: u32, data: &[[u8; N]; 32]) {
    let bytes = usize::from(access.bytes);
    for k in 0..usize::from(access.count) {
        let register = warp.pool[i.wide as usize + k];
        if register == NONE {
            continue;
        }
        if access.wide_value {
            let (at, signed) = (k * bytes, access.sign_to != 0);
            let v = match bytes {
                8 => elements::<N, 8>(data, at, signed),
                4 => elements::<N, 4>(data, at, signed),
                2 => elements::<N, 2>(data, at, signed),
                _ => elements::<N, 1>(data, at, signed),
            };
            warp.set64(register, &v, m);
            continue;
        }
        let mut v = [0u32; 32];
        match bytes {
            4 => {
                for lane in 0..32 {
                    v[lane] = element::<N, 4>(&data[lane], k * 4) as u32;
                }
            }
            2 => {
                for lane in 0..32 {
                    v[lane] = element::<N, 2>(&data[lane], k * 2) as u32;
                }
            }
            _ => {
                for lane in 0..32 {
                    v[lane] = u32::from(data[lane][k]);
                }
            }
        }
        if access.sign_to != 0 && bytes < 4 {
            let keep = if access.sign_to == 16 { 0xffff } else { u32::MAX };
            for x in &mut v {
                *x = sign_extend(u64::from(*x), bytes) as u32 & keep;
            }
        }
        warp.set32(register, &v, m);
    }
}

fn sign_extend(x: u64, bytes: usize) -> u64 {
    let shift = 64 - 8 * bytes;
    ((x << shift) as i64 >> shift) as u64
}

/// The low `B` bytes of a 64-bit row to every lane's bytes.
#[inline(always)]
fn parts<const N: usize, const B: usize>(row: &[u64; 32], at: usize, data: &mut [[u8; N]; 32]) {
    for lane in 0..32 {
        data[lane][at..at + B].copy_from_slice(&row[lane].to_le_bytes()[..B]);
    }
}

/// Source registers to the bytes to store.
#[inline(always)]
pub fn gather<const N: usize>(warp: &Warp, i: &Instr, access: &Access, data: &mut [[u8; N]; 32]) {
    let bytes = usize::from(access.bytes);
    for k in 0..usize::from(access.count) {
        let register = usize::from(warp.pool[i.wide as usize + k]);
        if access.wide_value {
            let row = &warp.q[register].0;
            match bytes {
                8 => parts::<N, 8>(row, k * 8, data),
                4 => parts::<N, 4>(row, k * 4, data),
                2 => parts::<N, 2>(row, k * 2, data),
                _ => parts::<N, 1>(row, k, data),
            }
            continue;
        }
        let row = &warp.r[register].0;
        match bytes {
            4 => {
                for lane in 0..32 {
                    data[lane][k * 4..k * 4 + 4].copy_from_slice(&row[lane].to_le_bytes());
                }
            }
            2 => {
                for lane in 0..32 {
                    data[lane][k * 2..k * 2 + 2].copy_from_slice(&row[lane].to_le_bytes()[..2]);
                }
            }
            _ => {
                for lane in 0..32 {
                    data[lane][k] = row[lane].to_le_bytes()[0];
                }
            }
        }
    }
}
