//! Constructs of PTX and the exact trees of them, written by hand from the ISA.

use cuda_emulator::ptx::ast::*;
use cuda_emulator::ptx::parse;

const HEAD: &str = ".version 8.3\n.target sm_80\n.address_size 64\n";

fn module(rest: &str) -> Module {
    parse(&format!("{HEAD}{rest}")).unwrap()
}

/// The only function of a module, its body given; the brace is in line 4, the body starts in line 5.
fn function(body: &str) -> Function {
    module(&format!(".entry k() {{\n{body}\n}}")).functions.remove(0)
}

/// The only instruction after some registers, whose indices go by first use.
fn instruction(text: &str) -> Instruction {
    const REGISTERS: &str = ".reg .pred p, q; .reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .f32 %f<9>;";
    let mut function = function(&format!("{REGISTERS} .shared .b32 s[4]; .local .b8 depot[8];\n{text}"));
    assert_eq!(function.instructions.len(), 1, "{text}");
    function.instructions.remove(0)
}

fn operands(text: &str) -> Vec<Operand> {
    instruction(text).operands
}

fn register(index: u32) -> Operand {
    Operand::Register(index)
}

fn at(base: Operand, offset: i64) -> Operand {
    Operand::Address(Box::new(base), offset)
}

fn symbol(name: &str, offset: i64) -> Operand {
    Operand::Symbol(name.into(), offset)
}

fn variable(name: &str, space: Space, align: u64, element: Type, count: Option<u64>) -> Variable {
    Variable { name: name.into(), space, align, element, count, init: Vec::new(), line: 4 }
}

#[test]
fn module_directives() {
    let text = "// c\n/* c\n */ .version 8.10 .target sm_90a, debug .address_size 64\n\
        .file 1 \"a.cu\" .file 2 \"b.cu\", 17, 0x20 .pragma \"a\", \"b\";\n\
        .section .debug_abbrev { .b8 1, 2 \n.b32 .debug_line+4\n$L__x: .b64 $L__y }\n\
        .section .debug_macinfo { }\n.extern .func (.param .b32 _) f (.param .b64 _);";
    let expected = Module {
        version: (8, 10),
        target: "90a".into(),
        files: vec![(1, "a.cu".into()), (2, "b.cu".into())],
        variables: vec![],
        functions: vec![],
    };
    assert_eq!(parse(text), Ok(expected));
}

#[test]
fn variables_of_the_module() {
    let found = module(
        ".visible .global .align 8 .b8 a[3][5], b; .extern .shared .align 16 .b8 x[]; .shared .v2 .f32 v[3]; .weak \
         .const .v4 .u16 w; .common .global .align 1 .u64 u; .global .f16x2 h; .global .b128 q;",
    )
    .variables;
    let expected = vec![
        variable("a", Space::Global, 8, Type::B8, Some(15)),
        variable("b", Space::Global, 8, Type::B8, Some(1)),
        variable("x", Space::Shared, 16, Type::B8, None),
        variable("v", Space::Shared, 8, Type::F32, Some(6)),
        variable("w", Space::Const, 8, Type::U16, Some(4)),
        variable("u", Space::Global, 8, Type::U64, Some(1)),
        variable("h", Space::Global, 4, Type::F16x2, Some(1)),
        variable("q", Space::Global, 16, Type::B128, Some(1)),
    ];
    assert_eq!(found, expected);
}

#[test]
fn initializers() {
    let bits = |list: &[u64]| list.iter().map(|b| Initializer::Bits(*b)).collect::<Vec<_>>();
    let address = |name: &str, offset| Initializer::Address(name.into(), offset);
    let f = |x: f32| u64::from(x.to_bits());
    let cases: [(&str, u64, Vec<Initializer>); 19] = [
        (".b8 x[4] = {1, 2}", 4, bits(&[1, 2])),
        (".b8 x[] = {1, 2, 3}", 3, bits(&[1, 2, 3])),
        (".s16 x[2][3] = {{-1}, {2, 3}}", 6, bits(&[0xFFFF, 0, 0, 2, 3])),
        (".s16 x[][3] = {{1, 2, 3}, {4}}", 6, bits(&[1, 2, 3, 4])),
        (".v2 .u32 x[2] = {{1}, {2, 3}}", 4, bits(&[1, 0, 2, 3])),
        (".b32 x[2][2][2] = {{{1}}, {{2, 3}, {4}}}", 8, bits(&[1, 0, 0, 0, 2, 3, 4])),
        (".u8 x = 300", 1, bits(&[44])),
        (".b8 x[3] = {0xFF, 017, 0b101U}", 3, bits(&[255, 15, 5])),
        (".u64 x = 0xFFFFFFFFFFFFFFFF", 1, bits(&[u64::MAX])),
        (".b64 x[2] = {-1, ~0}", 2, bits(&[u64::MAX, u64::MAX])),
        (".u32 x = (1 + 2) * 3 - 1 << 2", 1, bits(&[32])),
        (
            ".f32 x[4] = {0f3F800000, 1.5, -0f3F800000, -2.5e-1}",
            4,
            bits(&[f(1.0), f(1.5), f(-1.0), f(-0.25)]),
        ),
        (".f32 x = 0.1", 1, bits(&[f(0.1)])),
        (".f64 x[3] = {0d400921FB54442D18, 0.1, 1e3}", 3, {
            bits(&[0x4009_21FB_5444_2D18, 0.1f64.to_bits(), 1000f64.to_bits()])
        }),
        (".b32 x = 0f3F800000", 1, bits(&[0x3F80_0000])),
        (".u64 x[2] = {other, generic(other)}", 2, vec![address("other", 0), address("other", 0)]),
        (".u64 x = generic(other)+4", 1, vec![address("other", 4)]),
        (".u64 x = other-8", 1, vec![address("other", -8)]),
        (".u64 x[2] = {7, other}", 2, vec![Initializer::Bits(7), address("other", 0)]),
    ];
    for (text, count, expected) in cases {
        let found = module(&format!(".global .b32 other;\n.global {text};")).variables.remove(1);
        assert_eq!((found.count, found.init, found.line), (Some(count), expected, 5), "{text}");
    }
}

#[test]
fn entries() {
    let found = module(
        ".visible .entry k(.param .u64 .ptr .global .align 32 a, .param .align 8 .b8 b[16],\n .param .b16 c)\n\
         .maxntid 256, 2 .minnctapersm 2 .maxnreg 64 .noreturn .pragma \"x\"; { }\n\
         .entry l .reqntid 32 { ret; } .entry m();",
    )
    .functions;
    let mut c = variable("c", Space::Param, 2, Type::B16, Some(1));
    c.line = 5;
    let k = Function {
        name: "k".into(),
        is_entry: true,
        returns: vec![],
        params: vec![
            variable("a", Space::Param, 8, Type::U64, Some(1)),
            variable("b", Space::Param, 8, Type::B8, Some(16)),
            c,
        ],
        max_threads: Some(MaxThreads { size: [256, 2, 1], exact: false }),
        registers: vec![],
        register_names: vec![],
        variables: vec![],
        labels: vec![],
        instructions: vec![],
        line: 4,
    };
    assert_eq!(found.len(), 2, "a declaration has no place in the tree");
    assert_eq!(found[0], k);
    assert_eq!(found[1].max_threads, Some(MaxThreads { size: [32, 1, 1], exact: true }));
    assert_eq!((found[1].name.as_str(), found[1].line, found[1].instructions.len()), ("l", 7, 1));
}

#[test]
fn device_functions() {
    let found = module(
        ".func (.param .b32 out) g (.param .b32 _); .extern .func vprintf ();\n\
         .func f () { .reg .b32 r; call.uni (r), g, (r, 3);\n call vprintf; ret; }\n\
         .func (.param .b32 out) g (.param .b32 x) { ret; }",
    );
    let names: Vec<_> =
        found.functions.iter().map(|f| (f.name.as_str(), f.is_entry, f.params.len())).collect();
    assert_eq!(names, [("f", false, 0), ("g", false, 1)]);
    assert_eq!(found.functions[0].instructions[1].operands, [symbol("vprintf", 0)]);
    assert_eq!(
        found.functions[1].returns,
        [Variable { line: 7, ..variable("out", Space::Param, 4, Type::B32, Some(1)) }]
    );
}

#[test]
fn functions_must_be_declared_before_a_call() {
    let text = format!("{HEAD}.func f () {{ call g; }} .func g () {{ ret; }}");
    assert_eq!(parse(&text).unwrap_err().message, "`g` isn't declared here");
}

#[test]
fn register_parameters() {
    let function =
        module(".func (.reg .b32 y) g (.reg .pred p, .reg .b32 x, .param .b64 w) {\n@p mov.b32 y, x;\n}")
            .functions
            .remove(0);
    assert_eq!(function.returns, [variable("y", Space::Param, 4, Type::B32, Some(1))]);
    let params = [
        variable("p", Space::Param, 1, Type::Pred, Some(1)),
        variable("x", Space::Param, 4, Type::B32, Some(1)),
        variable("w", Space::Param, 8, Type::B64, Some(1)),
    ];
    assert_eq!(function.params, params);
    assert_eq!(function.registers, [Type::B32, Type::Pred, Type::B32]);
    assert_eq!(function.register_names, ["y", "p", "x"]);
    let expected = Instruction {
        guard: Some(Guard { register: 1, negated: false }),
        opcode: "mov".into(),
        modifiers: vec!["b32".into()],
        operands: vec![register(0), register(2)],
        line: 5,
        location: None,
    };
    assert_eq!(function.instructions, [expected]);
}

#[test]
fn an_instruction() {
    let expected = Instruction {
        guard: Some(Guard { register: 0, negated: true }),
        opcode: "ld".into(),
        modifiers: ["global", "L2::128B", "v2", "u32"].map(String::from).into(),
        operands: vec![Operand::Vector(vec![register(1), Operand::Sink]), at(register(2), 16)],
        line: 6,
        location: None,
    };
    assert_eq!(instruction("@!p ld.global.L2::128B.v2.u32 {%r8, _}, [%rd1+16];"), expected);
    let stored = instruction("st.shared::cta.b32 [s], 0;");
    assert_eq!((stored.opcode.as_str(), stored.modifiers), ("st", vec!["shared::cta".into(), "b32".into()]));
    let no_operand = instruction("bar.warp.sync;");
    assert!(no_operand.operands.is_empty() && no_operand.guard.is_none());
}

#[test]
fn constants() {
    let integers: [(&str, u64); 22] = [
        ("0", 0),
        ("7U", 7),
        ("0x1fU", 31),
        ("0XFF", 255),
        ("017", 15),
        ("0b101", 5),
        ("-1", u64::MAX),
        ("-128", 128u64.wrapping_neg()),
        ("~0", u64::MAX),
        ("!0", 1),
        ("!3", 0),
        ("- -3", 3),
        ("WARP_SZ", 32),
        ("WARP_SZ-1", 31),
        ("(1 + 2) * 3", 9),
        ("1 | 2 + 3 * 4 << 1", 1 | 28),
        ("6 & 3 ^ 1", 3),
        ("1 | 3 ^ 1", 3),
        ("10 - 3 - 2", 5),
        ("1 << 64", 0),
        ("-9223372036854775808", 1 << 63),
        ("18446744073709551615", u64::MAX),
    ];
    for (text, value) in integers {
        let found = operands(&format!("mov.b64 %rd1, {text};"));
        assert_eq!(found, [register(0), Operand::Integer(value)], "{text}");
    }
    let floats = [
        ("0f3F800000", Operand::F32(0x3F80_0000)),
        ("0Fff800000", Operand::F32(0xFF80_0000)),
        ("-0f3F800000", Operand::F32(0xBF80_0000)),
        ("0dBFF0000000000000", Operand::F64(0xBFF0_0000_0000_0000)),
        ("-0D0000000000000000", Operand::F64(1 << 63)),
        ("2.0", Operand::F64(2f64.to_bits())),
        ("1.", Operand::F64(1f64.to_bits())),
        ("-2.5e-1", Operand::F64((-0.25f64).to_bits())),
        ("1e+3", Operand::F64(1000f64.to_bits())),
    ];
    for (text, value) in floats {
        assert_eq!(operands(&format!("mov.f32 %f1, {text};")), [register(0), value], "{text}");
    }
}

#[test]
fn addresses() {
    let cases = [
        ("[%rd1]", at(register(0), 0)),
        ("[ %rd1 + 0 ]", at(register(0), 0)),
        ("[%rd1-8]", at(register(0), -8)),
        ("[%rd1+-512]", at(register(0), -512)),
        ("[%rd1+4-8+0x10]", at(register(0), 12)),
        ("[%rd1-8+4]", at(register(0), -4)),
        ("[s]", at(symbol("s", 0), 0)),
        ("[s+4]", at(symbol("s", 0), 4)),
        ("[123]", at(Operand::Integer(123), 0)),
        ("[8+4]", at(Operand::Integer(12), 0)),
    ];
    for (text, address) in cases {
        assert_eq!(operands(&format!("prefetch.L1 {text};")), [address], "{text}");
    }
}

#[test]
fn other_operands() {
    let cases = [
        ("mov.u32 %r1, %tid.x;", vec![register(0), Operand::Special("%tid.x".into())]),
        ("mov.u32 %r1, %laneid;", vec![register(0), Operand::Special("%laneid".into())]),
        ("mov.u64 %rd1, s+4;", vec![register(0), symbol("s", 4)]),
        ("mov.u64 %rd1, s - 4;", vec![register(0), symbol("s", -4)]),
        ("mov.u64 %rd1, depot;", vec![register(0), symbol("depot", 0)]),
        ("mov.u64 %rd1, k;", vec![register(0), symbol("k", 0)]),
        ("setp.eq.s32 p|q, %r1, 0;", {
            vec![Operand::Pair(register(0).into(), register(1).into()), register(2), Operand::Integer(0)]
        }),
        ("shfl.sync.up.b32 %r1|_, %r1;", {
            vec![Operand::Pair(register(0).into(), Operand::Sink.into()), register(0)]
        }),
        ("selp.b32 %r1, 1, 2, !p;", {
            vec![register(0), Operand::Integer(1), Operand::Integer(2), Operand::Not(register(1).into())]
        }),
        ("atom.add.u32 _, [%rd1], 1;", vec![Operand::Sink, at(register(0), 0), Operand::Integer(1)]),
        ("st.v2.f32 [%rd1], {%f1, 0f00000000};", {
            vec![at(register(0), 0), Operand::Vector(vec![register(1), Operand::F32(0)])]
        }),
        ("call (%r1), k, (s, 3, %r2);", {
            let arguments = vec![symbol("s", 0), Operand::Integer(3), register(1)];
            vec![Operand::List(vec![register(0)]), symbol("k", 0), Operand::List(arguments)]
        }),
        ("call k, ();", vec![symbol("k", 0), Operand::List(vec![])]),
    ];
    for (text, expected) in cases {
        assert_eq!(operands(text), expected, "{text}");
    }
}

#[test]
fn text_of_an_instruction() {
    let cases = [
        "@!p ld.global.v2.u32 {%r8, _}, [%rd1-16];",
        "setp.eq.s32 p|q, %r1, -5;",
        "selp.f32 %f1, 0f3F800000, 0d4000000000000000, !p;",
        "mov.u64 %rd1, s+4;",
        "call.uni (%r1), k, (s, 3);",
        "mov.u32 %r1, %tid.x;",
        "ld.b32 %r1, [12];",
        "ret;",
    ];
    for text in cases {
        let function = function(&format!(
            ".reg .pred p, q; .reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .f32 %f<9>; .shared .b32 s;\n{text}"
        ));
        assert_eq!(function.text_of(&function.instructions[0]), text);
    }
    let branch = function("bra L;\n{ bra L; L: }\nret;\nL:");
    let texts: Vec<_> = branch.instructions.iter().map(|i| branch.text_of(i)).collect();
    // The inner label is the first that the text declares, so it keeps its name.
    assert_eq!(texts, ["bra L$1;", "bra L;", "ret;"]);
    let table = function(".reg .b32 r; t: .branchtargets A, B; brx.idx r, t; A: ret; B:");
    assert_eq!(table.text_of(&table.instructions[0]), "brx.idx r, {A, B};");
}
