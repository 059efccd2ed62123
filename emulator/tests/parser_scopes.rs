//! Names, labels and places of a function's scopes: what each stands for where it is used.

use cuda_emulator::ptx::ast::*;
use cuda_emulator::ptx::parse;
use std::sync::Arc;

const HEAD: &str = ".version 8.3\n.target sm_80\n.address_size 64\n";

fn module(rest: &str) -> Module {
    parse(&format!("{HEAD}{rest}")).unwrap()
}

/// The only function of a module, its body given; the brace is in line 4, the body starts in line 5.
fn function(body: &str) -> Function {
    module(&format!(".entry k() {{\n{body}\n}}")).functions.remove(0)
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

#[test]
fn registers_of_nested_scopes() {
    let body = ".reg .b32 %r<3>, t; mov.b32 t, %r0;\n{ .reg .f32 t; .reg .b64 %r<2>;\n mov.b32 t, %r2; mov.b32 %r1, t;\n \
        { .reg .pred t; @t mov.b32 %r2, %r1; }\n}\n{ .reg .b32 t; mov.b32 t, %r1; }\nmov.b32 t, t;";
    let found = function(body);
    assert_eq!(found.register_names, ["t", "%r0", "t$1", "%r2", "%r1", "t$2", "t$3", "%r1$1"]);
    use Type::{B32, B64, F32, Pred};
    assert_eq!(found.registers, [B32, B32, F32, B32, B64, Pred, B32, B32]);
    let pairs: Vec<_> = found.instructions.iter().map(|i| i.operands.clone()).collect();
    let expected = [[0, 1], [2, 3], [4, 2], [3, 4], [6, 7], [0, 0]].map(|pair| pair.map(register).to_vec());
    assert_eq!(pairs, expected);
    assert_eq!(found.instructions[3].guard, Some(Guard { register: 5, negated: false }));
}

#[test]
fn variables_of_scopes() {
    let text = ".global .b8 g;\n.entry k(.param .b32 a) {\n .shared .b8 g[2], k;\n .local .b16 a;\n\
        { .param .b32 x; .param .align 8 .b8 y[9]; st.param.b32 [x+4], a; }\n\
        { .param .b64 x; .const .b32 y = 5; ld.param.b64 x, [y]; }\n mov.b64 g, k;\n}";
    let found = module(text);
    let function = &found.functions[0];
    let names: Vec<_> = function.variables.iter().map(|v| (v.name.as_str(), v.space, v.line)).collect();
    let expected = [
        ("g$1", Space::Shared, 6),
        ("k$1", Space::Shared, 6),
        ("a$1", Space::Local, 7),
        ("x", Space::Param, 8),
        ("y", Space::Param, 8),
        ("x$1", Space::Param, 9),
    ];
    assert_eq!(names, expected);
    assert_eq!(function.params[0].name, "a");
    let globals: Vec<_> = found.variables.iter().map(|v| (v.name.as_str(), v.space, v.init.len())).collect();
    assert_eq!(globals, [("g", Space::Global, 0), ("k$y", Space::Const, 1)]);
    let operands: Vec<_> = function.instructions.iter().map(|i| i.operands.clone()).collect();
    let expected = [
        vec![at(symbol("x", 0), 4), symbol("a$1", 0)],
        vec![symbol("x$1", 0), at(symbol("k$y", 0), 0)],
        vec![symbol("g$1", 0), symbol("k$1", 0)],
    ];
    assert_eq!(operands, expected);
}

#[test]
fn branches() {
    let found = function(
        ".reg .pred p;\n bra END;\nL: { bra L; { bra L; bra.uni END; } L: ret; }\n@p bra L;\n\
         { L: ret; bra L; }\n{ bra L; }\nEND:",
    );
    let target = |i: &Instruction| match i.operands.as_slice() {
        [Operand::Target(index)] => Some(*index),
        _ => None,
    };
    let targets: Vec<_> = found.instructions.iter().map(target).collect();
    let expected = [Some(9), Some(4), Some(4), Some(9), None, Some(1), None, Some(6), Some(1)];
    assert_eq!(targets, expected);
    let labels =
        [("L", 1), ("L$1", 4), ("L$2", 6), ("END", 9)].map(|(name, index)| (name.to_string(), index));
    assert_eq!(found.labels, labels);
}

#[test]
fn branch_tables() {
    let found = function(
        ".reg .b32 r;\nts: .branchtargets A, B, A;\n brx.idx r, ts;\nA: ret;\n\
         { brx.idx.uni r, ts; ts: .branchtargets A, B; A: ret; }\nB:",
    );
    assert_eq!(found.instructions[0].operands, [register(0), Operand::Targets(vec![1, 4, 1])]);
    assert_eq!(found.instructions[2].operands, [register(0), Operand::Targets(vec![3, 4])]);
}

#[test]
fn locations() {
    let found = function(
        "ret;\n.loc 1 10 3\nret;\n.loc 2 5 1, function_name $L__info_string0, inlined_at 1 10 3\nret;\n\
         .loc 3 7 9, function_name $L__info_string0+12, inlined_at 2 5 1\nret;\n\
         .loc 1 0 3\nret;\n.loc 4 1 1, function_name $x, inlined_at 9 9 9\nret;\n\
         .loc 2 5 1, function_name $x, inlined_at 4 1 1\nret;",
    );
    let place = |file, line, inlined_at: Option<&Location>| Location {
        file,
        line,
        inlined_at: inlined_at.map(|l| Arc::new(l.clone())),
    };
    let a = place(1, 10, None);
    let b = place(2, 5, Some(&a));
    let c = place(3, 7, Some(&b));
    let d = place(4, 1, Some(&place(9, 9, None)));
    let e = place(2, 5, Some(&d));
    let expected = [None, Some(a), Some(b), Some(c), None, Some(d), Some(e)];
    let places: Vec<_> = found.instructions.iter().map(|i| i.location.clone()).collect();
    assert_eq!(places, expected);
    let text = format!("{HEAD}.entry a() {{ .loc 1 1 1\nret; }} .entry b() {{ ret; }}");
    assert_eq!(parse(&text).unwrap().functions[1].instructions[0].location, None, "of another function");
}

#[test]
fn a_range_hides_a_register_of_an_outer_scope() {
    let found = function(
        ".reg .b32 %r1; mov.b32 %r1, 0;\n{ .reg .f32 %r<2>; mov.f32 %r1, 0f00000000; { mov.f32 %r1, %r1; } }\n\
         mov.b32 %r1, 0;",
    );
    assert_eq!(found.registers, [Type::B32, Type::F32]);
    let first: Vec<_> = found.instructions.iter().map(|i| i.operands[0].clone()).collect();
    assert_eq!(first, [0, 1, 1, 0].map(register));
}

#[test]
fn a_chain_of_locations_has_an_end() {
    let found = function(&".loc 1 1 1, function_name $x, inlined_at 1 1 1\nret;\n".repeat(1000));
    let mut place = found.instructions[999].location.as_ref();
    let mut calls = 0;
    while let Some(outer) = place.and_then(|place| place.inlined_at.as_deref()) {
        place = Some(outer);
        calls += 1;
    }
    assert!((40..=64).contains(&calls), "{calls}");
}
