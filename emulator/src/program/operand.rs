//! Operands: registers, constants in rows of their own, addresses of variables.

use super::lower::{Frame, Lowerer, Place, Result};
use super::op::Kind;
use super::registers::{CONSTANT, NO_REGISTER, Virtual};
use crate::ptx::ast::{Operand, Type};

/// A row that holds the same in all instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Constant {
    /// Bits.
    Bits(u64),
    /// Bytes of the parameters: offset, size, sign-extended.
    Param(u32, u8, bool),
    /// Special register.
    Special(Special),
}

/// Special registers that are constant while a block runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are PTX's")]
pub enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    LaneId,
    WarpId,
    NWarpId,
    SmId,
    NSmId,
    GridId,
    LanemaskEq,
    LanemaskLe,
    LanemaskLt,
    LanemaskGe,
    LanemaskGt,
    TotalSmem,
    DynamicSmem,
}

impl Lowerer<'_> {
    /// Where a variable lies.
    pub fn place(&self, frame: &Frame, name: &str) -> Result<Place> {
        let place = frame.places.get(name).or_else(|| self.places.get(name));
        place.copied().ok_or_else(|| format!("no variable {name}"))
    }

    /// Row of a constant of 32 bits.
    pub fn constant32(&mut self, constant: Constant) -> (Virtual, Kind) {
        let rows = &mut self.out.constants32;
        let row = *self.rows32.entry(constant).or_insert_with(|| {
            rows.push(constant);
            CONSTANT | u32::try_from(rows.len() - 1).expect("fewer constants than instructions")
        });
        (row, Kind::Use32)
    }

    /// Row of a constant of 64 bits.
    pub fn constant64(&mut self, constant: Constant) -> (Virtual, Kind) {
        let rows = &mut self.out.constants64;
        let row = *self.rows64.entry(constant).or_insert_with(|| {
            rows.push(constant);
            CONSTANT | u32::try_from(rows.len() - 1).expect("fewer constants than instructions")
        });
        (row, Kind::Use64)
    }

    /// An operand as a row of 32 bits.
    pub fn use32(&mut self, frame: &Frame, operand: &Operand) -> Result<(Virtual, Kind)> {
        let bits = match operand {
            Operand::Register(r) => {
                let (register, ty) = frame.registers[*r as usize];
                if ty == Type::Pred || ty.bytes() > 4 {
                    return Err(format!("{} is no register of up to 32 bits", frame.name(*r)));
                }
                return Ok((register, Kind::Use32));
            }
            Operand::Special(name) => {
                let special = Special::parse(name).ok_or_else(|| format!("{name} is not supported here"))?;
                return Ok(self.constant32(Constant::Special(special)));
            }
            Operand::Integer(bits) => u64::from(*bits as u32),
            Operand::F32(bits) => u64::from(*bits),
            Operand::F64(bits) => u64::from((f64::from_bits(*bits) as f32).to_bits()),
            Operand::Symbol(name, offset) => self.address_of(frame, name, *offset)? & 0xffff_ffff,
            other => return Err(format!("{other:?} is no 32-bit operand")),
        };
        Ok(self.constant32(Constant::Bits(bits)))
    }

    /// An operand as a row of 64 bits.
    pub fn use64(&mut self, frame: &Frame, operand: &Operand) -> Result<(Virtual, Kind)> {
        let bits = match operand {
            Operand::Register(r) => {
                let (register, ty) = frame.registers[*r as usize];
                if ty == Type::Pred || ty.bytes() != 8 {
                    return Err(format!("{} is no 64-bit register", frame.name(*r)));
                }
                return Ok((register, Kind::Use64));
            }
            Operand::Special(name) => {
                let special = Special::parse(name).ok_or_else(|| format!("{name} is not supported here"))?;
                return Ok(self.constant64(Constant::Special(special)));
            }
            Operand::Integer(bits) | Operand::F64(bits) => *bits,
            Operand::F32(bits) => u64::from(*bits),
            Operand::Symbol(name, offset) => self.address_of(frame, name, *offset)?,
            other => return Err(format!("{other:?} is no 64-bit operand")),
        };
        Ok(self.constant64(Constant::Bits(bits)))
    }

    /// Address of a variable in its own space.
    fn address_of(&self, frame: &Frame, name: &str, offset: i64) -> Result<u64> {
        let base = match self.place(frame, name)? {
            Place::Global(address) => address,
            Place::Shared(offset) | Place::Local(offset) | Place::Param(offset, _) => u64::from(offset),
        };
        Ok(base.wrapping_add_signed(offset))
    }

    /// A predicate operand, and whether it is complemented.
    pub fn use_pred(&self, frame: &Frame, operand: &Operand) -> Result<((Virtual, Kind), bool)> {
        match operand {
            Operand::Register(r) => match frame.registers[*r as usize] {
                (register, Type::Pred) => Ok(((register, Kind::UsePred), false)),
                _ => Err(format!("{} is no predicate", frame.name(*r))),
            },
            Operand::Not(inner) => self.use_pred(frame, inner).map(|(p, negated)| (p, !negated)),
            other => Err(format!("{other:?} is no predicate")),
        }
    }

    /// A destination: its file follows from the register's type. [`Operand::Sink`] gives no register.
    pub fn def(&self, frame: &Frame, operand: &Operand) -> Result<(Virtual, Kind)> {
        match operand {
            Operand::Register(r) => {
                let (register, ty) = frame.registers[*r as usize];
                let kind = match ty {
                    Type::Pred => Kind::DefPred,
                    ty if ty.bytes() == 16 => return Err("128-bit registers are not supported".into()),
                    ty if ty.bytes() == 8 => Kind::Def64,
                    _ => Kind::Def32,
                };
                Ok((register, kind))
            }
            Operand::Sink => Ok((NO_REGISTER, Kind::None)),
            other => Err(format!("{other:?} is no destination")),
        }
    }

    /// A destination of the given width: 16, 32, 64, or 0 for a predicate.
    pub fn def_of(&self, frame: &Frame, operand: &Operand, bits: u32) -> Result<(Virtual, Kind)> {
        let def = self.def(frame, operand)?;
        let want = match bits {
            0 => Kind::DefPred,
            64 => Kind::Def64,
            _ => Kind::Def32,
        };
        let fits = match (bits, frame.register_bytes(operand)) {
            (16 | 32, Some(bytes)) => 8 * bytes == u64::from(bits),
            _ => true,
        };
        if (def.1 == want && fits) || def.1 == Kind::None {
            return Ok(def);
        }
        Err("the destination has another size".into())
    }

    /// A source of the given width: 64, 32, or less. Rows of narrow registers have zeros above their bits, and so
    /// must constants.
    pub fn use_of(&mut self, frame: &Frame, operand: &Operand, bits: u32) -> Result<(Virtual, Kind)> {
        match operand {
            _ if bits == 64 => self.use64(frame, operand),
            Operand::Integer(value) if bits < 32 => {
                Ok(self.constant32(Constant::Bits(value & ((1 << bits) - 1))))
            }
            Operand::Register(r) if 8 * frame.registers[*r as usize].1.bytes() != u64::from(bits) => {
                Err(format!("{} has not {bits} bits", frame.name(*r)))
            }
            _ => self.use32(frame, operand),
        }
    }
}

impl Frame<'_> {
    /// Name of a register, for messages.
    pub fn name(&self, register: u32) -> &str {
        &self.function.register_names[register as usize]
    }

    /// Bytes of an operand that is a register; `None` for others, 0 for a predicate.
    pub fn register_bytes(&self, operand: &Operand) -> Option<u64> {
        match operand {
            Operand::Register(r) => Some(self.registers[*r as usize].1.bytes()),
            _ => None,
        }
    }
}

impl Special {
    fn parse(name: &str) -> Option<Self> {
        let (name, axis) = match name.rsplit_once('.') {
            Some((name, "x")) => (name, 0),
            Some((name, "y")) => (name, 1),
            Some((name, "z")) => (name, 2),
            Some(_) => return None,
            None => (name, 0),
        };
        Some(match name {
            "%tid" => Self::Tid(axis),
            "%ntid" => Self::Ntid(axis),
            "%ctaid" => Self::Ctaid(axis),
            "%nctaid" => Self::Nctaid(axis),
            "%laneid" => Self::LaneId,
            "%warpid" => Self::WarpId,
            "%nwarpid" => Self::NWarpId,
            "%smid" => Self::SmId,
            "%nsmid" => Self::NSmId,
            "%gridid" => Self::GridId,
            "%lanemask_eq" => Self::LanemaskEq,
            "%lanemask_le" => Self::LanemaskLe,
            "%lanemask_lt" => Self::LanemaskLt,
            "%lanemask_ge" => Self::LanemaskGe,
            "%lanemask_gt" => Self::LanemaskGt,
            "%total_smem_size" => Self::TotalSmem,
            "%dynamic_smem_size" => Self::DynamicSmem,
            _ => return None,
        })
    }
}
