//! What people get wrong, as changes of PTX text. A change never adds or removes a line, so that the lines of a
//! fault are those of the unchanged text.

use super::statement::Statement;
use super::values;
use cuda_emulator::fault::FaultKind::{self, *};

/// Line and what it becomes.
pub type Edit = (usize, String);

/// All ways to change a line (by its index): the edits of each. Takes the bytes of a stage, too.
type Apply = fn(&[String], usize, Option<u32>) -> Vec<Vec<Edit>>;

/// A way to get it wrong.
pub struct Operator {
    /// In the tables.
    pub name: &'static str,
    /// The diagnoses that name this fault.
    pub right: &'static [FaultKind],
    /// No rule of the machine need be broken: wrong numbers are a right diagnosis, too.
    pub numbers: bool,
    /// The diagnosis must name the very line.
    pub at_its_place: bool,
    /// Of the copies of a source line that the compiler makes in a kernel, this many are changed.
    pub copies: usize,
    /// What it does.
    pub apply: Apply,
}

/// A barrier that is missing or in the wrong place.
const UNORDERED: &[FaultKind] = &[Race, Uninitialised, InFlight];
/// A barrier that some pass and others do not.
const UNEQUAL: &[FaultKind] = &[Race, Uninitialised, InFlight, Deadlock, Barrier, Divergence];
/// Accesses to the wrong place.
const ASTRAY: &[FaultKind] = &[OutOfBounds, Uninitialised, Race, InFlight];
/// Loops that are too long or too short, which may hold barriers.
const BEYOND: &[FaultKind] =
    &[OutOfBounds, Misaligned, Uninitialised, Race, InFlight, Deadlock, Divergence, Barrier];

const fn operator(name: &'static str, right: &'static [FaultKind], apply: Apply) -> Operator {
    Operator { name, right, numbers: false, at_its_place: false, copies: usize::MAX, apply }
}

const fn or_numbers(operator: Operator) -> Operator {
    Operator { numbers: true, ..operator }
}

const fn at_its_place(operator: Operator) -> Operator {
    Operator { at_its_place: true, ..operator }
}

const fn some_copies(operator: Operator) -> Operator {
    Operator { copies: 16, ..operator }
}

/// All of them.
pub const OPERATORS: &[Operator] = &[
    operator("barrier dropped", UNEQUAL, |lines, at, _| drop_if(lines, at, |s| s.is_barrier())),
    at_its_place(operator("barrier skipped by a lane", &[Divergence], |lines, at, _| skip(lines, at, 31))),
    operator("barrier skipped by a warp", UNEQUAL, |lines, at, _| skip(lines, at, 32)),
    operator("barrier of fewer threads", UNEQUAL, fewer_threads),
    operator("another barrier", UNEQUAL, another_barrier),
    operator("warp barrier dropped", UNORDERED, |lines, at, _| drop_if(lines, at, |s| s.is(&["bar.warp"]))),
    at_its_place(operator("lane missing in a mask", &[Divergence], lane_missing)),
    operator("wait loosened", &[InFlight], wait_loosened),
    operator("wait dropped", &[InFlight], |lines, at, _| drop_if(lines, at, |s| s.is(&["cp.async.wait"]))),
    operator("commit dropped", &[InFlight], |lines, at, _| {
        drop_if(lines, at, |s| s.is(&["cp.async.commit"]))
    }),
    operator("barrier or wait too late", UNEQUAL, sync_later),
    operator("barrier or wait too early", UNEQUAL, sync_earlier),
    operator("copy to another place", ASTRAY, copy_moved),
    or_numbers(operator("copy dropped", &[Uninitialised], |lines, at, _| {
        drop_if(lines, at, |s| s.is(&["cp.async.c"]) && s.address().is_some())
    })),
    or_numbers(operator("store dropped", &[Uninitialised], |lines, at, _| {
        drop_if(lines, at, |s| s.is(&["st.", "red.", "atom."]) && !s.opcode.contains(".param"))
    })),
    or_numbers(operator(".trans lost", &[], trans_lost)),
    or_numbers(operator("wrong swizzle", ASTRAY, swizzle)),
    or_numbers(operator("comparison", BEYOND, comparison)),
    or_numbers(operator("bound off by one", BEYOND, bound)),
    or_numbers(operator("guard dropped", BEYOND, guard_dropped)),
    or_numbers(operator("condition inverted", BEYOND, values::condition_inverted)),
    or_numbers(operator("condition dropped", BEYOND, values::condition_dropped)),
    or_numbers(operator("clamp dropped", BEYOND, values::clamp_dropped)),
    or_numbers(operator("zero fill dropped", ASTRAY, values::zero_fill_dropped)),
    some_copies(or_numbers(operator("factor dropped", &[], values::factor_dropped))),
    some_copies(or_numbers(operator("factor changed", &[], values::factor_changed))),
    at_its_place(operator("misaligned vector", &[Misaligned, OutOfBounds], misaligned)),
    or_numbers(operator(
        "widened access",
        &[Misaligned, OutOfBounds, Uninitialised, Race, InFlight],
        widened,
    )),
    operator("shared memory too small", &[OutOfBounds, Race], shared_smaller),
];

/// The instruction of a line.
pub fn statement(lines: &[String], at: usize) -> Option<Statement<'_>> {
    Statement::of(&lines[at])
}

/// The one edit that makes this of a line.
pub fn replaced(at: usize, text: impl Into<String>) -> Vec<Vec<Edit>> {
    vec![vec![(at, text.into())]]
}

fn drop_if(lines: &[String], at: usize, which: fn(&Statement) -> bool) -> Vec<Vec<Edit>> {
    statement(lines, at).filter(which).map_or_else(Vec::new, |_| replaced(at, ""))
}

/// Predicated: threads skip it of whose index these bits are zero.
fn skip(lines: &[String], at: usize, bits: u32) -> Vec<Vec<Edit>> {
    let Some(s) = statement(lines, at).filter(|s| s.is_barrier() && s.guard.is_empty()) else {
        return vec![];
    };
    let skips = format!("mov.u32 %m, %tid.x; and.b32 %m, %m, {bits}; setp.ne.u32 %mp, %m, 0;");
    replaced(at, format!("{{ .reg .pred %mp; .reg .b32 %m; {skips} @%mp {} }}", s.text()))
}

fn fewer_threads(lines: &[String], at: usize, _: Option<u32>) -> Vec<Vec<Edit>> {
    let Some(s) = statement(lines, at).filter(|s| s.is_barrier() && s.operands.len() == 2) else {
        return vec![];
    };
    let Ok(threads) = s.operands[1].parse::<u32>() else { return vec![] };
    replaced(at, s.with_operand(1, &(threads - 32).to_string()))
}

/// Barriers of the whole block have no number to be mistaken.
fn another_barrier(lines: &[String], at: usize, _: Option<u32>) -> Vec<Vec<Edit>> {
    let Some(s) = statement(lines, at).filter(|s| s.is_barrier() && s.operands.len() == 2) else {
        return vec![];
    };
    let (number, text) = (s.operands[0], s.with_operand(0, "%m"));
    replaced(at, format!("{{ .reg .b32 %m; mov.u32 %m, {number}; add.u32 %m, %m, 1; {text} }}"))
}

/// The lowest one.
fn lane_missing(lines: &[String], at: usize, _: Option<u32>) -> Vec<Vec<Edit>> {
    let masked = |s: &Statement| s.is(&["shfl.sync", "vote.sync", "redux.sync", "match.", "bar.warp.sync"]);
    let Some(s) = statement(lines, at).filter(masked) else { return vec![] };
    let last = s.operands.len() - 1;
    let lowest = format!("mov.b32 %m, {}; add.u32 %n, %m, -1; and.b32 %m, %m, %n;", s.operands[last]);
    replaced(at, format!("{{ .reg .b32 %m, %n; {lowest} {} }}", s.with_operand(last, "%m")))
}

fn wait_loosened(lines: &[String], at: usize, _: Option<u32>) -> Vec<Vec<Edit>> {
    let Some(s) = statement(lines, at).filter(|s| s.is(&["cp.async.wait_group"])) else { return vec![] };
    let groups: u32 = s.operands[0].parse().expect("a number of groups");
    replaced(at, s.with_operand(0, &(groups + 1).to_string()))
}

fn is_label(line: &str) -> bool {
    line.trim_end().ends_with(':')
}

/// Whether a later branch goes to this label: the head of a loop.
fn is_loop(lines: &[String], at: usize) -> bool {
    let label = lines[at].trim().trim_end_matches(':');
    let goes = |line: &String| {
        Statement::of(line).is_some_and(|s| s.is(&["bra"]) && s.operands.first() == Some(&label))
    };
    lines[at..].iter().take_while(|line| *line != "}").any(goes)
}

/// Behind the access to shared memory that follows, or a wait behind a barrier and the other way round.
fn sync_later(lines: &[String], at: usize, _: Option<u32>) -> Vec<Vec<Edit>> {
    let Some(sync) = statement(lines, at).filter(Statement::is_sync) else { return vec![] };
    // Labels that lanes have gone to which did not come by: behind all of them, they are together again.
    let mut open: Vec<&str> = Vec::new();
    let mut passed = false;
    for next in at + 1..lines.len() {
        let line = lines[next].trim();
        if is_label(line) {
            if is_loop(lines, next) {
                return vec![];
            }
            open.retain(|label| *label != line.trim_end_matches(':'));
        }
        if let Some(s) = statement(lines, next) {
            if s.is(&["ret", "exit"]) || (s.is(&["bra"]) && s.guard.is_empty()) {
                return vec![];
            }
            if s.is(&["bra"]) {
                open.push(s.operands[0]);
            }
            passed |= s.is_shared() || s.is_sync_unlike(&sync);
        }
        if passed && open.is_empty() {
            return vec![vec![(at, String::new()), (next, format!("{line} {}", lines[at].trim()))]];
        }
    }
    vec![]
}

/// Before the access to shared memory that comes before it, or a wait before a barrier and the other way round. An
/// access that writes no register is moved behind it instead: between them may stand what the barrier needs.
fn sync_earlier(lines: &[String], at: usize, _: Option<u32>) -> Vec<Vec<Edit>> {
    let Some(sync) = statement(lines, at).filter(Statement::is_sync) else { return vec![] };
    for before in (0..at).rev() {
        let line = lines[before].trim();
        let Some(s) = statement(lines, before) else {
            if is_label(line) || line == "{" {
                return vec![];
            }
            continue;
        };
        if s.is(&["bra", "ret", "exit"]) {
            return vec![];
        }
        if s.is_sync_unlike(&sync) || (s.is_shared() && s.is(&["st.", "cp.async"])) {
            return vec![vec![(before, String::new()), (at, format!("{} {line}", lines[at].trim()))]];
        }
        if s.is_shared() {
            return vec![vec![(before, format!("{} {line}", lines[at].trim())), (at, String::new())]];
        }
    }
    vec![]
}

fn copy_moved(lines: &[String], at: usize, stage: Option<u32>) -> Vec<Vec<Edit>> {
    let Some(s) = statement(lines, at).filter(|s| s.is(&["cp.async.c"])) else { return vec![] };
    let Some(to) = s.address() else { return vec![] };
    [Some(16), stage].into_iter().flatten().map(|by| vec![(at, s.moved(to, by))]).collect()
}

fn trans_lost(lines: &[String], at: usize, _: Option<u32>) -> Vec<Vec<Edit>> {
    let Some(s) = statement(lines, at).filter(|s| s.opcode.contains(".trans")) else { return vec![] };
    replaced(at, s.with_opcode(&s.opcode.replace(".trans", "")))
}

fn swizzle(lines: &[String], at: usize, _: Option<u32>) -> Vec<Vec<Edit>> {
    let Some(s) = statement(lines, at).filter(|s| s.is(&["xor.b32", "xor.b64"])) else { return vec![] };
    let or = s.with_opcode(&s.opcode.replace("xor", "or"));
    vec![vec![(at, or)], vec![(at, s.with_operand(2, "0"))]]
}

/// Of whole numbers.
fn is_comparison(s: &Statement) -> bool {
    let kind = s.opcode.rsplit('.').next().unwrap_or_default();
    s.is(&["setp."]) && kind.starts_with(['s', 'u']) && s.operands.len() == 3
}

/// With equal numbers or without, of floats also where one is no number.
fn comparison(lines: &[String], at: usize, _: Option<u32>) -> Vec<Vec<Edit>> {
    let compares = |s: &Statement| s.is(&["setp."]) && s.operands.len() == 3;
    let Some(s) = statement(lines, at).filter(compares) else { return vec![] };
    let swaps = [("lt", "le"), ("gt", "ge"), ("ltu", "leu"), ("gtu", "geu")];
    let mut parts: Vec<&str> = s.opcode.split('.').collect();
    let Some((a, b)) = swaps.iter().find(|(a, b)| [*a, *b].contains(&parts[1])) else { return vec![] };
    parts[1] = if parts[1] == *a { b } else { a };
    replaced(at, s.with_opcode(&parts.join(".")))
}

/// In the way that another comparison would not do: `a < b + 1` is `a <= b`.
fn bound(lines: &[String], at: usize, _: Option<u32>) -> Vec<Vec<Edit>> {
    let Some(s) = statement(lines, at).filter(is_comparison) else { return vec![] };
    let kind = s.opcode.rsplit('.').next().unwrap_or_default();
    let steps: &[i32] = match s.opcode.split('.').nth(1) {
        Some("lt" | "ge") => &[-1],
        Some("le" | "gt") => &[1],
        _ => &[-1, 1],
    };
    let (bits, text) = (&kind[1..], s.with_operand(2, "%m"));
    let by = |step: &i32| {
        let moved = format!("mov.b{bits} %m, {}; add.{kind} %m, %m, {step};", s.operands[2]);
        vec![(at, format!("{{ .reg .b{bits} %m; {moved} {text} }}"))]
    };
    steps.iter().map(by).collect()
}

/// The predicate of an access, or a branch around what follows it.
fn guard_dropped(lines: &[String], at: usize, _: Option<u32>) -> Vec<Vec<Edit>> {
    let Some(s) = statement(lines, at).filter(|s| !s.guard.is_empty()) else { return vec![] };
    if s.is(&["bra"]) {
        let label = s.operands[0];
        let forward =
            lines[at..].iter().any(|line| is_label(line) && line.trim().trim_end_matches(':') == label);
        return if forward { replaced(at, "") } else { vec![] };
    }
    if s.is(&["ld.", "st.", "atom.", "red.", "cp.async"]) {
        return replaced(at, Statement { guard: "", ..s }.text());
    }
    vec![]
}

/// By half of an access. Of a copy, both addresses.
fn misaligned(lines: &[String], at: usize, _: Option<u32>) -> Vec<Vec<Edit>> {
    let Some(s) = statement(lines, at) else { return vec![] };
    let Some(address) = s.address() else { return vec![] };
    let bytes = match s.shape() {
        _ if s.is(&["ldmatrix", "stmatrix"]) => 16,
        _ if s.is(&["cp.async.c"]) => s.operands[2].parse().expect("a size"),
        Some((elements, bits)) if elements > 1 && s.is_access() => elements * bits / 8,
        _ => return vec![],
    };
    let mut mutants = replaced(at, s.moved(address, bytes / 2));
    if s.is(&["cp.async.c"]) {
        mutants.push(vec![(at, s.moved(address + 1, bytes / 2))]);
    }
    mutants
}

/// From two elements to four; stores from one to two also. Loads of one more would do no harm where there is one.
fn widened(lines: &[String], at: usize, _: Option<u32>) -> Vec<Vec<Edit>> {
    let Some(s) = statement(lines, at).filter(Statement::is_access) else { return vec![] };
    let is_store = s.is(&["st."]);
    let (Some((elements, bits)), Some((rest, kind))) = (s.shape(), s.opcode.rsplit_once('.')) else {
        return vec![];
    };
    if elements > 2 || (elements == 1 && !is_store) || elements * bits * 2 > 128 {
        return vec![];
    }
    let opcode = match rest.strip_suffix(".v2") {
        Some(rest) => format!("{rest}.v4.{kind}"),
        None => format!("{rest}.v2.{kind}"),
    };
    let value = usize::from(is_store);
    let old = s.operands[value].trim_matches(['{', '}']);
    let more = if is_store { old } else { "%m, %n" };
    let wider = Statement { opcode: &opcode, ..s.clone() }.with_operand(value, &format!("{{{old}, {more}}}"));
    replaced(at, format!("{{ .reg .b{} %m, %n; {wider} }}", bits.max(16)))
}

/// By 4 bytes, where a kernel uses it.
fn shared_smaller(lines: &[String], at: usize, _: Option<u32>) -> Vec<Vec<Edit>> {
    let sized = || {
        let line = lines[at].trim().strip_prefix(".shared")?.strip_suffix("];")?;
        let (declaration, size) = line.rsplit_once('[')?;
        let name = declaration.split_whitespace().last()?;
        let is_used = lines.iter().filter_map(|line| Statement::of(line)).any(|s| s.text().contains(name));
        Some((declaration, size.parse::<u32>().ok().filter(|_| is_used)?))
    };
    sized().map_or_else(Vec::new, |(declaration, size)| {
        replaced(at, format!(".shared{declaration}[{}];", size - 4))
    })
}
