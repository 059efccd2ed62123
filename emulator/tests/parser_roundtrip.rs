//! Instructions printed back and read again are the same: of the fixtures, and of all files in the folders that
//! `EMULATOR_PTX_SAMPLES` names (separated by colons).

use cuda_emulator::ptx::ast::{Function, Initializer, Module, Operand, Type, Variable};
use cuda_emulator::ptx::parse;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::PathBuf;

fn type_name(element: Type) -> String {
    format!("{element:?}").to_lowercase()
}

fn write_variable(out: &mut String, variable: &Variable) {
    let space = format!("{:?}", variable.space).to_lowercase();
    let Variable { name, align, count, init, .. } = variable;
    let prefix = if count.is_none() { ".extern " } else { "" };
    write!(out, "{prefix}.{space} .align {align} .{} {name}", type_name(variable.element)).unwrap();
    match count {
        Some(1) if init.len() < 2 => {}
        Some(count) => write!(out, "[{count}]").unwrap(),
        None => out.push_str("[]"),
    }
    let is_number = |v: &Initializer| matches!(v, Initializer::Bits(_));
    if !init.is_empty() {
        let float = matches!(variable.element, Type::F32 | Type::F64) && init.iter().all(is_number);
        let values = init.iter().map(|value| match value {
            Initializer::Bits(bits) if float && variable.element == Type::F32 => format!("0f{bits:08X}"),
            Initializer::Bits(bits) if float => format!("0d{bits:016X}"),
            Initializer::Bits(bits) => bits.to_string(),
            Initializer::Address(name, offset) => format!("generic({name})+{offset}"),
        });
        let values: Vec<_> = values.collect();
        let list = values.join(", ");
        let one = *count == Some(1);
        if one { write!(out, " = {list}").unwrap() } else { write!(out, " = {{{list}}}").unwrap() }
    }
}

fn write_formals(out: &mut String, function: &Function, formals: &[Variable]) {
    out.push('(');
    for (i, formal) in formals.iter().enumerate() {
        out.push_str(if i == 0 { "" } else { ", " });
        if function.register_names.contains(&formal.name) {
            write!(out, ".reg .{} {}", type_name(formal.element), formal.name).unwrap();
        } else {
            write_variable(out, formal);
        }
    }
    out.push(')');
}

fn write_function(out: &mut String, function: &Function) {
    if function.is_entry {
        write!(out, ".entry {} ", function.name).unwrap();
    } else {
        out.push_str(".func ");
        if !function.returns.is_empty() {
            write_formals(out, function, &function.returns);
        }
        write!(out, "{} ", function.name).unwrap();
    }
    write_formals(out, function, &function.params);
    if let Some(max) = function.max_threads {
        let [x, y, z] = max.size;
        write!(out, ".{} {x}, {y}, {z}", if max.exact { "reqntid" } else { "maxntid" }).unwrap();
    }
    out.push_str("\n{\n");
    let formals: BTreeSet<_> =
        function.returns.iter().chain(&function.params).map(|v| v.name.as_str()).collect();
    for (name, element) in function.register_names.iter().zip(&function.registers) {
        if !formals.contains(name.as_str()) {
            writeln!(out, ".reg .{} {name};", type_name(*element)).unwrap();
        }
    }
    for variable in &function.variables {
        write_variable(out, variable);
        out.push_str(";\n");
    }
    let mut labels = function.labels.iter().peekable();
    for index in 0..=function.instructions.len() {
        while let Some((name, _)) = labels.next_if(|(_, i)| *i as usize == index) {
            writeln!(out, "{name}:").unwrap();
        }
        let Some(instruction) = function.instructions.get(index) else { break };
        let text = function.text_of(instruction);
        if let Some(Operand::Targets(_)) = instruction.operands.last() {
            let (rest, table) = text.split_once('{').unwrap();
            let table = table.strip_suffix("};").unwrap();
            writeln!(out, "table__{index}: .branchtargets {table};\n{rest}table__{index};").unwrap();
        } else {
            writeln!(out, "{text}").unwrap();
        }
    }
    assert!(labels.next().is_none(), "labels beyond the end");
    out.push_str("}\n");
}

fn symbols<'a>(operand: &'a Operand, out: &mut BTreeSet<&'a str>) {
    match operand {
        Operand::Symbol(name, _) => drop(out.insert(name)),
        Operand::Address(inner, _) | Operand::Not(inner) => symbols(inner, out),
        Operand::Vector(list) | Operand::List(list) => list.iter().for_each(|o| symbols(o, out)),
        _ => {}
    }
}

fn write_module(module: &Module) -> String {
    let mut out =
        format!(".version {}.{}\n.target sm_{}\n", module.version.0, module.version.1, module.target);
    for (index, name) in &module.files {
        writeln!(out, ".file {index} \"{name}\"").unwrap();
    }
    let globals: BTreeSet<_> = module.variables.iter().map(|v| v.name.as_str()).collect();
    for variable in &module.variables {
        write_variable(&mut out, variable);
        out.push_str(";\n");
    }
    // Functions of other modules, of which the tree has only the names; and those called before their body.
    let mut outside = BTreeSet::new();
    for function in &module.functions {
        for instruction in &function.instructions {
            let mut found = BTreeSet::new();
            instruction.operands.iter().for_each(|operand| symbols(operand, &mut found));
            let own = function.variables.iter().chain(&function.params).chain(&function.returns);
            let own: BTreeSet<_> = own.map(|v| v.name.as_str()).collect();
            outside.extend(found.into_iter().filter(|n| !own.contains(n) && !globals.contains(n)));
        }
    }
    for name in outside {
        writeln!(out, ".func {name}();").unwrap();
    }
    module.functions.iter().for_each(|function| write_function(&mut out, function));
    out
}

/// Without what only the place in the text decides.
fn placeless(mut module: Module) -> Module {
    for variable in &mut module.variables {
        variable.line = 0;
    }
    for function in &mut module.functions {
        function.line = 0;
        let Function { returns, params, variables, .. } = function;
        returns.iter_mut().chain(params).chain(variables).for_each(|v| v.line = 0);
        for instruction in &mut function.instructions {
            instruction.line = 0;
            instruction.location = None;
        }
    }
    module
}

fn check(name: &str, text: &str) -> Module {
    let module = parse(text).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert!(!module.functions.is_empty(), "{name} has no function");
    let printed = write_module(&module);
    let again = parse(&printed).unwrap_or_else(|e| panic!("{name} printed back: {e}\n{printed}"));
    let (module, again) = (placeless(module), placeless(again));
    for (a, b) in module.functions.iter().zip(&again.functions) {
        for (x, y) in a.instructions.iter().zip(&b.instructions) {
            assert_eq!(x, y, "{name}: {}", a.text_of(x));
        }
    }
    assert!(module == again, "{name}: another tree from the text printed back\n{printed}");
    module
}

/// Instructions of a compiler's text, counted without a parser: pieces between semicolons of which a line starts
/// with a small letter or `@`.
fn instruction_count(text: &str) -> usize {
    let lines = text.lines().map(|line| line.split("//").next().unwrap());
    let code: String = lines.flat_map(|line| [line, "\n"]).collect();
    let starts = |line: &str| {
        let line = line.trim_start_matches(['{', '}', ' ', '\t']);
        let line = line.split_once(": ").map_or(line, |(_, rest)| rest);
        line.starts_with(|c: char| c.is_ascii_lowercase() || c == '@')
    };
    code.split(';').filter(|piece| piece.lines().any(starts)).count()
}

#[test]
fn fixtures() {
    check("hand.ptx", include_str!("fixtures/hand.ptx"));
    for (name, text) in
        [("nvcc.ptx", include_str!("fixtures/nvcc.ptx")), ("triton.ptx", include_str!("fixtures/triton.ptx"))]
    {
        let module = check(name, text);
        let instructions: usize = module.functions.iter().map(|f| f.instructions.len()).sum();
        assert_eq!(instructions, instruction_count(text), "{name}");
    }
}

#[test]
fn samples() {
    let folders = std::env::var("EMULATOR_PTX_SAMPLES").unwrap_or_default();
    let (mut bytes, mut files, mut seconds) = (0, 0, 0.0);
    for folder in folders.split(':').filter(|folder| !folder.is_empty()) {
        let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut paths: Vec<PathBuf> = paths.filter(|p| p.extension().is_some_and(|e| e == "ptx")).collect();
        paths.sort();
        for path in paths {
            let text = std::fs::read_to_string(&path).unwrap();
            let module = check(&path.display().to_string(), &text);
            let instructions: usize = module.functions.iter().map(|f| f.instructions.len()).sum();
            assert_eq!(instructions, instruction_count(&text), "{}", path.display());
            let start = std::time::Instant::now();
            for _ in 0..20 {
                std::hint::black_box(parse(std::hint::black_box(&text)).unwrap());
            }
            seconds += start.elapsed().as_secs_f64();
            bytes += 20 * text.len();
            files += 1;
        }
    }
    if files > 0 {
        println!("{files} files, {:.1} MB/s", bytes as f64 / 1e6 / seconds);
    }
}
