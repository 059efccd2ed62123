//! Registers to the bytes that are stored and back.

use super::warp::Warp;
use crate::program::op::{Access, Instr, NONE};

/// One element of up to 8 bytes, zero-extended.
#[inline(always)]
fn element<const N: usize>(data: &[u8; N], at: usize, bytes: usize) -> u64 {
    let mut value = [0; 8];
    value[..bytes].copy_from_slice(&data[at..at + bytes]);
    u64::from_le_bytes(value)
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
            let mut v = [0u64; 32];
            for lane in 0..32 {
                let x = element(&data[lane], k * bytes, bytes);
                v[lane] = if access.sign_to != 0 { sign_extend(x, bytes) } else { x };
            }
            warp.set64(register, &v, m);
            continue;
        }
        let mut v = [0u32; 32];
        match bytes {
            4 => {
                for lane in 0..32 {
                    v[lane] = element(&data[lane], k * 4, 4) as u32;
                }
            }
            2 => {
                for lane in 0..32 {
                    v[lane] = element(&data[lane], k * 2, 2) as u32;
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
            v = v.map(|x| sign_extend(u64::from(x), bytes) as u32 & keep);
        }
        warp.set32(register, &v, m);
    }
}

fn sign_extend(x: u64, bytes: usize) -> u64 {
    let shift = 64 - 8 * bytes;
    ((x << shift) as i64 >> shift) as u64
}

/// Source registers to the bytes to store.
#[inline(always)]
pub fn gather<const N: usize>(warp: &Warp, i: &Instr, access: &Access, data: &mut [[u8; N]; 32]) {
    let bytes = usize::from(access.bytes);
    for k in 0..usize::from(access.count) {
        let register = usize::from(warp.pool[i.wide as usize + k]);
        if access.wide_value {
            for lane in 0..32 {
                let value = warp.q[register].0[lane].to_le_bytes();
                data[lane][k * bytes..(k + 1) * bytes].copy_from_slice(&value[..bytes]);
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
