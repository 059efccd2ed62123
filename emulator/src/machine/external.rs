//! Functions that CUDA's runtime brings and PTX only names: `printf` and the failure of `assert`.

use super::Stop;
use super::block::Core;
use super::warp::Warp;
use super::window;
use crate::fault::FaultKind;
use crate::program::op::Space;
use crate::traffic::active as lanes;
use std::fmt::Write;

/// Longest string that is read.
const MOST: u64 = 4096;

impl Core<'_> {
    /// Up to 8 bytes of a thread's local memory.
    fn local_value(&self, warp: &Warp, lane: usize, at: u64, bytes: usize) -> u64 {
        let size = self.launch.kernel.local_bytes as usize;
        let mut value = [0; 8];
        let start = usize::try_from(at).unwrap_or(usize::MAX);
        if start.saturating_add(bytes) <= size {
            let from = lane * size + start;
            value[..bytes].copy_from_slice(&warp.local[from..from + bytes]);
        }
        u64::from_le_bytes(value)
    }

    /// The string at a generic address, up to its NUL.
    fn string(&self, address: u64) -> String {
        let mut bytes = Vec::new();
        let mut hint = 0;
        while (bytes.len() as u64) < MOST {
            let at = address.wrapping_add(bytes.len() as u64);
            let Some((allocation, offset)) = self.launch.view.locate(&mut hint, at, 1) else { break };
            let [byte] = allocation.load::<1>(offset);
            if byte == 0 {
                break;
            }
            bytes.push(byte);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub(super) fn assert_fail(&self, warp: &Warp, params: [u32; 4], m: u32) -> Box<Stop> {
        let lane = m.trailing_zeros() as usize;
        let value = |k: usize, bytes| self.local_value(warp, lane, u64::from(params[k]), bytes);
        let (message, file) = (self.string(value(0, 8)), self.string(value(1, 8)));
        let (line, function) = (value(2, 4), self.string(value(3, 8)));
        let message = format!("assertion `{message}` failed in {function}, {file}:{line}");
        self.stop(FaultKind::Assert, warp.id, Some(lane), message)
    }

    /// `vprintf(format, arguments)`: prints for each lane, returns the number of arguments.
    pub(super) fn printf(
        &mut self,
        warp: &mut Warp,
        params: [u32; 3],
        m: u32,
    ) -> std::result::Result<(), Box<Stop>> {
        let size = self.launch.kernel.local_bytes as usize;
        for lane in lanes(m) {
            let format = self.string(self.local_value(warp, lane, u64::from(params[0]), 8));
            let arguments = self.local_value(warp, lane, u64::from(params[1]), 8);
            let local = (window::space(arguments) == Space::Local).then(|| arguments - window::LOCAL);
            let (text, count) = self.formatted(warp, lane, &format, local);
            print!("{text}");
            let result = lane * size + params[2] as usize;
            if params[2] as usize + 4 <= size {
                warp.local[result..result + 4].copy_from_slice(&count.to_le_bytes());
            }
        }
        Ok(())
    }

    /// C's conversions, as far as Rust has them: flags other than width and precision are dropped.
    fn formatted(&self, warp: &Warp, lane: usize, format: &str, mut at: Option<u64>) -> (String, u32) {
        let (mut text, mut count) = (String::new(), 0);
        let mut next = |bytes: usize| {
            let Some(place) = at else { return 0 };
            let place = place.next_multiple_of(bytes as u64);
            at = Some(place + bytes as u64);
            self.local_value(warp, lane, place, bytes)
        };
        let mut rest = format.chars().peekable();
        while let Some(c) = rest.next() {
            if c != '%' {
                text.push(c);
                continue;
            }
            let mut spec = String::new();
            while let Some(c) = rest.next_if(|c| "-+ #0123456789.hlzjt".contains(*c)) {
                spec.push(c);
            }
            let long = spec.contains(['l', 'z', 'j', 't']);
            let numbers: String = spec.chars().filter(|c| c.is_ascii_digit() || *c == '.').collect();
            let (width, precision) = numbers.split_once('.').unwrap_or((&numbers, ""));
            let (width, precision) = (width.parse().unwrap_or(0), precision.parse().unwrap_or(6usize));
            let conversion = rest.next().unwrap_or('%');
            count += u32::from(conversion != '%');
            let width: usize = width;
            let written = match conversion {
                '%' => write!(text, "%"),
                'd' | 'i' if long => write!(text, "{:width$}", next(8) as i64),
                'd' | 'i' => write!(text, "{:width$}", next(4) as u32 as i32),
                'u' => write!(text, "{:width$}", next(if long { 8 } else { 4 })),
                'x' => write!(text, "{:width$x}", next(if long { 8 } else { 4 })),
                'X' => write!(text, "{:width$X}", next(if long { 8 } else { 4 })),
                'c' => write!(text, "{}", (next(4) as u8) as char),
                'p' => write!(text, "{:#x}", next(8)),
                'e' => write!(text, "{:width$.precision$e}", f64::from_bits(next(8))),
                'f' | 'g' => write!(text, "{:width$.precision$}", f64::from_bits(next(8))),
                's' => {
                    let string = self.string(next(8));
                    write!(text, "{string:width$}")
                }
                other => write!(text, "%{other}"),
            };
            if written.is_err() {
                break;
            }
        }
        (text, count)
    }
}
