//! Texts that are almost PTX, or hardly. `EMULATOR_FUZZ_CASES` sets their number, `EMULATOR_FUZZ_SEED` the first.
//!
//! The parser must return: no panic, no overflow of a stack far smaller than a thread's own, and no tree whose
//! size is out of proportion to the text.

use cuda_emulator::ptx::ast::{Module, Operand};
use cuda_emulator::ptx::parse;
use std::time::{Duration, Instant};

const SAMPLES: [&str; 3] = [
    include_str!("fixtures/nvcc.ptx"),
    include_str!("fixtures/triton.ptx"),
    include_str!("fixtures/hand.ptx"),
];

/// Steele, Lea and Flood's SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap()
    }

    fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }
}

/// Words, blanks and single marks of a text, cut by nothing but the class of the characters.
fn pieces(text: &str) -> Vec<&str> {
    let class = |c: char| match c {
        c if c.is_alphanumeric() || c == '_' || c == '$' || c == '%' => 0,
        c if c.is_whitespace() => 1,
        _ => 2,
    };
    let mut pieces = Vec::new();
    let mut start = 0;
    for ((i, a), (j, b)) in text.char_indices().zip(text.char_indices().skip(1)) {
        if class(a) != class(b) || class(a) == 2 {
            pieces.push(&text[start..j]);
            start = j;
        }
        debug_assert!(i < j);
    }
    pieces.push(&text[start..]);
    pieces
}

const SOUP: [&str; 64] = [
    ".version 8.0\n",
    ".target sm_80\n",
    ".entry",
    ".func",
    ".reg",
    ".pred",
    ".b32",
    ".b64",
    ".f32",
    ".v4",
    ".align",
    ".param",
    ".shared",
    ".global",
    ".const",
    ".local",
    ".extern",
    ".visible",
    ".loc",
    ".file",
    ".section",
    ".pragma",
    ".maxntid",
    ".branchtargets",
    ".ptr",
    "generic",
    "inlined_at",
    "function_name",
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    "<",
    ">",
    ",",
    ";",
    ":",
    "=",
    "+",
    "-",
    "*",
    "~",
    "!",
    "|",
    "&",
    "^",
    "@",
    "_",
    "%r",
    "%r1",
    "x",
    "L",
    "bra",
    "brx",
    "call",
    "WARP_SZ",
    "0",
    "4",
    "0xFFFFFFFFFFFFFFFF",
    "0f3F800000",
    "1e9",
    "\"s\"",
];

fn soup(random: &mut Random) -> String {
    let mut text = String::from(if random.below(8) == 0 { "" } else { ".version 8.0\n.target sm_80\n" });
    if random.below(2) == 0 {
        text.push_str(".entry k(.param .b32 x) { .reg .b32 %r<9>; .reg .pred p; ");
    }
    for _ in 0..random.below(120) {
        let piece = random.pick(&SOUP);
        for _ in 0..if random.below(40) == 0 { random.below(400) } else { 1 } {
            text.push_str(piece);
            text.push_str(if random.below(16) == 0 { "" } else { " " });
        }
    }
    text
}

/// Cuts off the text, or changes some of its pieces or bytes.
fn mutated(random: &mut Random, samples: &[Vec<&str>]) -> String {
    let sample = random.below(samples.len());
    let mut list = samples[sample].clone();
    for _ in 0..1 + random.below(4) {
        let (at, other) = (random.below(list.len()), random.below(list.len()));
        match random.below(8) {
            0 => drop(list.remove(at)),
            1 => list.insert(at, list[other]),
            2 => list.swap(at, other),
            3 => list[at] = random.pick(&SOUP),
            4 => {
                list[at] = {
                    let from = random.below(samples.len());
                    random.pick(&samples[from])
                }
            }
            5 => drop(list.drain(at..(at + random.below(60)).min(list.len()))),
            6 => {
                let run: Vec<_> = list[at..(at + random.below(60)).min(list.len())].to_vec();
                let other = other.min(list.len());
                list.splice(other..other, run);
            }
            _ if random.below(4) == 0 => list.truncate(at + 1),
            _ => {}
        }
        if list.is_empty() {
            list.push("");
        }
    }
    let mut bytes = list.concat().into_bytes();
    if random.below(3) == 0 && !bytes.is_empty() {
        for _ in 0..1 + random.below(3) {
            let at = random.below(bytes.len());
            bytes[at] ^= 1 << random.below(8);
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Elements of all lists of a tree.
fn size(module: &Module) -> usize {
    let operands = |o: &Operand| match o {
        Operand::Vector(list) | Operand::List(list) => list.len(),
        Operand::Targets(list) => list.len(),
        _ => 1,
    };
    let functions = module.functions.iter().map(|f| {
        let instructions = f.instructions.iter().map(|i| {
            assert!(f.text_of(i).ends_with(';'));
            1 + i.modifiers.len() + i.operands.iter().map(operands).sum::<usize>()
        });
        let lists = f.registers.len() + f.register_names.len() + f.variables.len() + f.labels.len();
        1 + lists + f.params.len() + f.returns.len() + instructions.sum::<usize>()
    });
    let variables = module.variables.iter().map(|v| 1 + v.init.len());
    functions.sum::<usize>() + variables.sum::<usize>() + module.files.len()
}

/// Indices of a tree are inside their lists.
fn check_tree(module: &Module, text: &str) {
    for f in &module.functions {
        assert_eq!(f.registers.len(), f.register_names.len());
        for i in &f.instructions {
            assert!(i.guard.is_none_or(|g| (g.register as usize) < f.registers.len()), "{text}");
            let target = |t: &u32| *t as usize <= f.instructions.len();
            assert!(
                i.operands.iter().all(|o| match o {
                    Operand::Register(r) => (*r as usize) < f.registers.len(),
                    Operand::Target(t) => target(t),
                    Operand::Targets(list) => list.iter().all(target),
                    _ => true,
                }),
                "{text}"
            );
        }
    }
    let padding = if text.contains("={") || text.contains("= {") { 1_000_000 } else { 0 };
    assert!(size(module) <= text.len() + padding, "{} elements from {text}", size(module));
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |v| v.parse().expect("a number"))
}

fn fuzz() {
    let (cases, seed) = (number("EMULATOR_FUZZ_CASES", 20_000), number("EMULATOR_FUZZ_SEED", 1));
    let samples: Vec<_> = SAMPLES.iter().map(|text| pieces(text)).collect();
    let (mut fine, mut slowest, mut bytes) = (0u64, Duration::ZERO, 0);
    let mut messages = std::collections::HashSet::new();
    let start = Instant::now();
    for case in seed..seed + cases {
        let mut random = Random(case);
        let text = if random.below(5) == 0 { soup(&mut random) } else { mutated(&mut random, &samples) };
        let before = Instant::now();
        let parsed =
            std::panic::catch_unwind(|| parse(&text)).unwrap_or_else(|_| panic!("seed {case}:\n{text}"));
        slowest = slowest.max(before.elapsed());
        bytes += text.len();
        match parsed {
            Ok(module) => {
                check_tree(&module, &text);
                fine += 1;
            }
            Err(error) => {
                let lines = text.bytes().filter(|b| *b == b'\n').count() + 1;
                assert!((1..=lines).contains(&(error.line as usize)), "seed {case}: {error}\n{text}");
                messages.insert(error.message.split('`').next().unwrap().to_string());
            }
        }
    }
    println!(
        "{cases} texts, {:.0} MB, {fine} parsed, {} kinds of messages, slowest {slowest:?}, {:?} in all",
        bytes as f64 / 1e6,
        messages.len(),
        start.elapsed()
    );
    // Texts that all fail at their head, or never fail, would test nothing.
    assert!(cases < 1000 || fine > cases / 100 && fine < cases / 2 && messages.len() > 30);
}

#[test]
fn mutated_texts_and_soups() {
    let thread = std::thread::Builder::new().stack_size(256 << 10).spawn(fuzz).unwrap();
    thread.join().unwrap();
}

/// The body of a function, of a piece repeated so often.
type Body = Box<dyn Fn(usize) -> String>;

/// Ten times the text takes about ten times as long, whatever it repeats.
#[test]
fn time_is_linear() {
    let repeat = |piece: &'static str| move |n: usize| piece.repeat(n);
    let numbered =
        |piece: &'static str| move |n: usize| (0..n).map(|i| piece.replace('#', &i.to_string())).collect();
    let texts: [(&str, Body); 13] = [
        ("instructions", Box::new(repeat("add.s32 %r1, %r2, [x+4];\n"))),
        ("scopes of one name", Box::new(repeat("{ .reg .b32 t; .shared .b8 s; mov.b32 t, s; }\n"))),
        ("labels of one name", Box::new(repeat("{ bra L; L: }\n"))),
        ("backward branches", Box::new(numbered("L#: bra L0;\n"))),
        ("forward branches", Box::new(repeat("{ bra END; }\n"))),
        ("names like unique ones", Box::new(numbered(".reg .b32 t$#; { .reg .b32 t; mov.b32 t, t$#; }\n"))),
        ("nested inlining", Box::new(repeat(".loc 1 1 1, function_name $x, inlined_at 1 1 1\nret;\n"))),
        (
            "inlining of many places",
            Box::new(numbered(".loc 1 # 1, function_name $x, inlined_at 1 # 1\nret;\n")),
        ),
        ("a long vector", Box::new(|n| format!("mov.b32 {{{}}}, 1;", "x,".repeat(n)))),
        ("a long expression", Box::new(|n| format!("mov.b32 %r1, 1{};", "+1*1".repeat(n)))),
        ("references out of deep scopes", {
            let open: String = (0..250).map(|_| "{ .reg .b32 %r<1>; ").collect();
            Box::new(move |n| format!("{open}{}{}", "bra END; mov.b32 %r8, 1;".repeat(n), "}".repeat(250)))
        }),
        ("comments", Box::new(repeat("/**/ // \n"))),
        ("declared registers", Box::new(numbered(".reg .b32 a#<3>;\n"))),
    ];
    for (name, body) in &texts {
        let text = |n: usize| {
            let head = ".version 8.0\n.target sm_80\n.entry k(.param .b32 x) { .reg .b32 %r<9>;";
            format!("{head}\n{}\nEND: }}", body(n))
        };
        let (small, large) = (text(2_000), text(20_000));
        // The small text ten times, so that on a busy machine both are interrupted as often.
        let seconds = |text: &str, times: usize| {
            let start = Instant::now();
            (0..times).for_each(|_| drop(parse(text).unwrap_or_else(|e| panic!("{name}: {e}"))));
            start.elapsed().as_secs_f64()
        };
        // Quadratic time is ten times as much; caches get some of that. The shortest of several runs says what the work
        // takes.
        let mut best = [f64::INFINITY; 2];
        let start = Instant::now();
        let linear = (0..100).take_while(|_| start.elapsed().as_secs() < 5).any(|_| {
            best = [best[0].min(seconds(&small, 10)), best[1].min(seconds(&large, 1))];
            best[1] < 3.0 * best[0]
        });
        assert!(linear, "{name}: {} s, then {} s", best[0], best[1]);
    }
}
