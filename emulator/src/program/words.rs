//! Modifiers of an arithmetic instruction.

use super::lower::Result;
use crate::numeric::half::HalfMode;
use crate::numeric::{MinMax, Mode, Round};

/// Modifiers of which an instruction has at most one.
const EXCLUSIVE: &[&[&str]] = &[
    &["rn", "rz", "rm", "rp", "rna", "rni", "rzi", "rmi", "rpi", "approx", "full"],
    &["lo", "hi", "wide"],
    &["sat", "relu"],
];

/// Modifiers of an arithmetic instruction, besides its types.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Words {
    pub round: Option<Round>,
    /// `.rni` and the like.
    pub integral: bool,
    pub ftz: bool,
    pub sat: bool,
    pub relu: bool,
    pub satfinite: bool,
    pub approx: bool,
    pub full: bool,
    pub nan: bool,
    pub xorsign: bool,
    pub hi: bool,
    pub wide: bool,
    pub cc: bool,
}

impl Words {
    /// Reads modifiers; those in `types` are left out.
    pub fn parse(modifiers: &[&str]) -> Result<Self> {
        if let Some(group) =
            EXCLUSIVE.iter().find(|group| 1 < modifiers.iter().filter(|m| group.contains(m)).count())
        {
            return Err(format!("only one of {group:?} is possible"));
        }
        let mut words = Self::default();
        for &word in modifiers {
            match word {
                "rn" => words.round = Some(Round::Nearest),
                "rz" => words.round = Some(Round::Zero),
                "rm" => words.round = Some(Round::Down),
                "rp" => words.round = Some(Round::Up),
                "rna" => words.round = Some(Round::NearestAway),
                "rni" => (words.round, words.integral) = (Some(Round::Nearest), true),
                "rzi" => (words.round, words.integral) = (Some(Round::Zero), true),
                "rmi" => (words.round, words.integral) = (Some(Round::Down), true),
                "rpi" => (words.round, words.integral) = (Some(Round::Up), true),
                "ftz" => words.ftz = true,
                "sat" => words.sat = true,
                "relu" => words.relu = true,
                "satfinite" => words.satfinite = true,
                "approx" => words.approx = true,
                "full" => words.full = true,
                "NaN" => words.nan = true,
                "xorsign" => words.xorsign = true,
                "abs" if words.xorsign => {}
                "hi" => words.hi = true,
                "lo" => {}
                "wide" => words.wide = true,
                "cc" => words.cc = true,
                "noftz" => {}
                other => return Err(format!(".{other} is not supported")),
            }
        }
        Ok(words)
    }

    pub fn mode(self) -> Mode {
        Mode { round: self.round.unwrap_or(Round::Nearest), ftz: self.ftz, saturate: self.sat }
    }

    pub fn half(self) -> HalfMode {
        HalfMode { ftz: self.ftz, saturate: self.sat, relu: self.relu }
    }

    pub fn min_max(self) -> MinMax {
        MinMax { ftz: self.ftz, nan: self.nan, xorsign_abs: self.xorsign }
    }

    /// Rounded to nearest, nothing else.
    pub fn plain(self) -> bool {
        matches!(self.round, None | Some(Round::Nearest))
            && self == Self { round: self.round, ..Self::default() }
    }
}
