//! What is no PTX, or PTX that is not read: the line and the message.

use cuda_emulator::ptx::{ParseError, parse};

const HEAD: &str = ".version 8.3\n.target sm_80\n.address_size 64\n";

fn check(text: &str, line: u32, message: &str) {
    let expected = ParseError { line, message: message.into() };
    assert_eq!(parse(text).unwrap_err(), expected, "{}", &text[..text.len().min(500)]);
}

/// Lines are counted from that of `text`, which is the fourth of the module.
fn in_module(text: &str, line: u32, message: &str) {
    check(&format!("{HEAD}{text}"), line + 3, message);
}

/// Lines are counted from that of `text`.
fn in_body(text: &str, line: u32, message: &str) {
    in_module(&format!(".entry k() {{ .reg .pred p; .reg .b32 r;\n{text}\n}}"), line + 1, message);
}

#[test]
fn heads() {
    check("", 1, "expected `.version`, found the end of the text");
    check("\u{7f}ELF\u{2}\u{1}", 1, "PTX has no character '\\u{7f}'");
    check(".target sm_80", 1, "expected `.version`, found `.target`");
    check(".version 8\n.target sm_80", 1, "expected a version, e.g. 8.0, found `8`");
    check(".version 8.99999999999", 1, "expected a version, e.g. 8.0, found `8.99999999999`");
    check(".version 8.0\n", 2, "expected `.target`, found the end of the text");
    check(".version 8.0\n.target compute_80", 2, "expected a target, e.g. sm_80, found `compute_80`");
    check(".version 8.0 .target sm_80,\n,", 2, "expected an option of the target, found `,`");
    check(".version 8.0 .target sm_80\n.address_size 32", 2, "addresses of 32 bits; only 64 are read");
}

#[test]
fn tokens() {
    in_module("\n/* \n", 2, "this comment has no end");
    in_module("/* \n\n */ x", 3, "expected a directive, found `x`");
    in_module("// \n\n x", 3, "expected a directive, found `x`");
    in_module(".file 1 \"a\n\"", 1, "this string has no end");
    in_module(".file 1 \"a", 1, "this string has no end");
    in_module("\n#include", 2, "PTX has no character '#'");
    in_module("\u{e9}", 1, "PTX has no character 'é'");
    in_body(". x;", 1, "expected a word after `.`");
    for number in
        ["08", "0x", "0xG", "0b2", "0f3F80000", "0f3F8000000", "0d3F800000", "1e", "1.5.2", "12a", "1e999"]
    {
        let found = if number == "1.5.2" { "1.5" } else { number };
        let error = parse(&format!("{HEAD}.entry k() {{\nmov.b32 1, {number};\n}}")).unwrap_err();
        let expected = match number {
            "1.5.2" => "expected `,` or `;`, found `.2`".to_string(),
            _ => format!("expected a number, found `{found}`"),
        };
        assert_eq!((error.line, error.message), (5, expected));
    }
    in_body("mov.b32 r, 18446744073709551616;", 1, "expected a number, found `18446744073709551616`");
    let long = "9".repeat(100);
    in_body(&format!("mov.b32 r, {long};"), 1, &format!("expected a number, found `{}...`", &long[..40]));
}

#[test]
fn modules() {
    in_module("\nmov", 2, "expected a directive, found `mov`");
    in_module(".foo", 1, "`.foo` isn't a directive that is read here");
    in_module(".alias f, g;", 1, "`.alias` isn't supported");
    in_module(".visible\n.file", 2, "expected a function or a variable, found `.file`");
    in_module(".file 1", 1, "expected a file's name, found the end of the text");
    in_module(".section .debug {\n", 2, "expected `}` after a section, found the end of the text");
    in_module(".section .debug { {", 1, "expected `}` after a section, found `{`");
    in_module(".pragma x;", 1, "expected a string, found `x`");
    in_module(".entry k() { ret; }\n}", 2, "expected a directive, found `}`");
}

#[test]
fn variables() {
    in_module(".global .b8 a;\n.shared .b8 b, a;", 2, "`a` is declared twice");
    in_module(".global .b8 f; .func f() { }", 1, "`f` is declared twice");
    in_module(".global a;", 1, "expected a type, found `a`");
    in_module(".global .align\n3 .b8 a;", 1, "alignment 3 isn't a power of two up to 2^20");
    in_module(".global .align 0 .b8 a;", 1, "alignment 0 isn't a power of two up to 2^20");
    in_module(".global .pred a;", 1, "`.pred` has no meaning in this declaration");
    in_module(".global .attribute(.managed) .b8 a;", 1, "`.attribute` has no meaning in this declaration");
    in_module(".global .b8 .b8 a;", 1, "`.b8` has no meaning in this declaration");
    in_module(".global .b8 a[];", 1, "`a` has no size");
    in_module(".global .b8 a[2][];", 1, "expected the size of a dimension, found `]`");
    in_module(".global .b8 a[0];", 1, "an array has at least one element");
    in_module(".global .b8 a[4\n;", 2, "expected `]`, found `;`");
    in_module(".global .b8 a b;", 1, "expected `,` or `;`, found `b`");
    let too_many = "has more than 1099511627776 bytes";
    in_module(".global .b8 a[0xFFFFFFFFFFFFFFFF];", 1, &format!("`a` {too_many}"));
    in_module(".global .b64 a[0x2000000000000000];", 1, &format!("`a` {too_many}"));
    in_module(".global .b8 a[0x100000000][0x100000000];", 1, &format!("`a` {too_many}"));
    in_module(".shared .b8 a[232449];", 1, "`a` has more than 232448 bytes");
    in_module(".const .b8 a[65537];", 1, "`a` has more than 65536 bytes");
    in_body(".local .b32 a[131073];", 1, "`a` has more than 524288 bytes");
    in_module(".local .b8 a;", 1, "variables in .local and .param belong into a function");
    let linker = "variables of other modules aren't supported: there is no linker";
    in_module(".extern .global .b8 a;", 1, linker);
    let dims = "[1]".repeat(257);
    in_module(&format!(".global .b8 a{dims};"), 1, "more than 256 dimensions");
}

#[test]
fn initializers() {
    in_module(".shared .b8 a = 1;", 1, "only variables in .global and .const have an initial value");
    in_module(".global .b8 a[2] = {1, 2,\n3};", 2, "more initial values than elements");
    in_module(".global .b8 a[2] = 1;", 1, "expected `{` around the initial values of an array, found `1`");
    in_module(".global .b8 a = {1};", 1, "expected an initial value, found `{`");
    in_module(".global .b8 a[2] = {1 2};", 1, "expected `,` or `}`, found `2`");
    in_module(
        ".global .b8 a[2] = \"a\";",
        1,
        "expected `{` around the initial values of an array, found `\"a\"`",
    );
    in_module(".global .u64 a = b;", 1, "expected a variable declared before, found `b`");
    in_module(".func f(); .global .u64 a = f;", 1, "expected a variable declared before, found `f`");
    in_module(".global .u64 a = generic(1);", 1, "expected a variable declared before, found `1`");
    in_module(".global .b8 a; .global .u32 b = a;", 1, "an address needs an element of 64 bits");
    in_module(".global .f32 a = 1;", 1, "an integer as the initial value of a floating-point element");
    let float = "a floating-point number as the initial value of an element of another type";
    in_module(".global .b16 a = 0f3F800000;", 1, float);
    in_module(".global .b32 a = 1.0;", 1, float);
    let padding = "initial values leave out more than 1000000 elements within arrays";
    in_module(".global .b8 a[2][1000002] = {{1}, {2}};", 1, padding);
    in_module(".global .b8 a[3][0x7FFFFFFF][0x7FFFFFFFFFFF] = {{{1}}, {{2}}};", 1, padding);
}

#[test]
fn functions() {
    in_module(".entry k(.param .b32)", 1, "expected the name of a variable, found `)`");
    in_module(".entry k(.reg .b32 a)", 1, "expected `.param`, found `.reg`");
    in_module(".entry k(.param .b32 a .param .b32 b)", 1, "expected `,` or `)`, found `.param`");
    in_module(".entry k(.param .b8 a[])", 1, "`a` has no size");
    in_module(".entry k(.param .b8 a[32765]) { }", 1, "`a` has more than 32764 bytes");
    let bytes = "the parameters have more than 32764 bytes";
    in_module(".entry k(.param .b8 a[32757], .param .b64 b) { }", 1, bytes);
    in_module(".entry k(.param .b32 a, .param .b32 a) { }", 1, "`a` is declared twice in a scope");
    in_module(".entry k()\n.foo { }", 2, "`.foo` isn't a directive that is read before a function's body");
    let cluster = "`.reqnctapercluster` isn't a directive that is read before a function's body";
    in_module(".entry k() .reqnctapercluster 2 { }", 1, cluster);
    in_module(".entry k() .maxntid x { }", 1, "expected a number of threads, found `x`");
    in_module(".entry k() ret;", 1, "expected `{` or `;`, found `ret`");
    in_module(".func f() { }\n.func f() { }", 2, "`f` is declared twice");
    let body = "expected `;` after the declaration of a function of another module, found `{`";
    in_module(".extern .func f() { }", 1, body);
    in_module(".func () () { }", 1, "expected the name of a function, found `(`");
    in_module(".func (.reg .v2 .f32 a) f { }", 1, "expected the type of registers, found `.v2`");
}

#[test]
fn bodies() {
    in_body("mov.u32 r, %r99;", 1, "`%r99` isn't declared here");
    in_body("{ .reg .b32 t; }\nmov.u32 t, 1;", 2, "`t` isn't declared here");
    in_body("mov.u32 r, %foo;", 1, "`%foo` isn't declared here");
    in_body("mov.u32 r, %laneid.x;", 1, "expected `,` or `;`, found `.x`");
    in_body("mov.u32 r, 1", 2, "expected `,` or `;`, found `}`");
    in_body("mov.u32 r 1;", 1, "expected `,` or `;`, found `1`");
    in_body("mov.u32 r,, 1;", 1, "expected an operand, found `,`");
    in_body("mov.u32 r, {r, {r}};", 1, "expected an operand, found `{`");
    in_body("mov.u32 r, (r);", 1, "expected an integer, found `r`");
    in_body("call k, (r, (r));", 1, "expected an integer, found `r`");
    in_body("mov.u32 r, (1;", 1, "expected `)`, found `;`");
    in_body("mov.u32 {r;", 1, "expected `,` or `}`, found `;`");
    in_body("mov.u32 r|1, r;", 1, "expected a register or `_` after `|`");
    in_body("mov.u32 r, !k;", 1, "expected a register after `!`");
    in_body("ld.b32 r, [r;", 1, "expected `]`, found `;`");
    in_body("ld.b32 r, [r + r];", 1, "expected an offset, found `r`");
    in_body("ld.b32 r, [];", 1, "expected a register, a variable or an integer, found `]`");
    in_body("ld.b32 r, [%laneid];", 1, "an address can't start with `%laneid`");
    in_body("@r ret;", 1, "expected a predicate, found `r`");
    in_body("@!7 ret;", 1, "expected a predicate, found `7`");
    in_body("@p;", 1, "expected an opcode, found `;`");
    in_body("ret; ;", 1, "expected an instruction or `}`, found `;`");
    in_body(".foo\n1;", 1, "`.foo` isn't a directive that is read in a function");
    in_body("\n.reg .b32 r;", 2, "`r` is declared twice in a scope");
    in_body(".reg .b32 %r<4>; .reg .b64 %r<2>;", 1, "`%r` is declared twice in a scope");
    in_body(".reg .v2 .b32 v;", 1, "expected the type of registers, found `.v2`");
    in_body(".reg .b32 %r<1000000>;", 1, "more than 1000000 registers in a function");
    in_body(".reg .b32 %r<4294967296>;", 1, "expected a number of registers, found `4294967296`");
    in_body(".loc 1 2 3, x 4", 1, "`.loc` has no attribute `x`");
    in_body(".loc 1 2", 2, "expected a column, found `}`");
    in_module(".entry k() {\n{ }\n", 3, "expected an instruction or `}`, found the end of the text");
}

#[test]
fn labels() {
    in_body("bra\nL;", 2, "label `L` isn't declared here");
    in_body("bra L; bra M;\n L: ret;", 1, "label `M` isn't declared here");
    in_body("bra L;\n{ L: }", 1, "label `L` isn't declared here");
    in_body("{ L: ret; }\n{ bra L; }", 2, "label `L` isn't declared here");
    in_body("L: ret;\nL: ret;", 2, "`L` is declared twice in a scope");
    in_body("bra L, r; L:", 1, "expected `;` after the label, found `,`");
    in_body("bra 7;", 1, "expected a label, found `7`");
    in_body("t: .branchtargets L;\nbrx.idx r, t;", 1, "label `L` isn't declared here");
    in_body("L: brx.idx r, L;", 1, "label `L` isn't that of a `.branchtargets`");
    in_body("L: t: .branchtargets L; bra t;", 1, "label `t` is that of a `.branchtargets`");
    in_body("t: .branchtargets L M;", 1, "expected `,` or `;`, found `M`");
    in_body("t: .callprototype (.param .b32 _) _ ();", 1, "indirect calls aren't supported");
    in_body("t: .calltargets k;", 1, "indirect calls aren't supported");
    let targets = "L, ".repeat(1000);
    let body = format!("L: t: .branchtargets {targets}L;\n{}", "brx.idx r, t;\n".repeat(1000));
    in_body(&body, 1001, "more than 1000000 targets of `brx.idx` in a module");
}

#[test]
fn nesting() {
    let nested =
        |open: &str, count: usize, close: &str| format!("{}{}", open.repeat(count), close.repeat(count));
    let fine = format!("{HEAD}.entry k() {}", nested("{", 256, "}"));
    assert!(parse(&fine).is_ok());
    for count in [257, 1_000_000] {
        in_module(&format!(".entry k() {}", "{".repeat(count)), 1, "more than 256 scopes within each other");
        let message = "more than 256 parentheses and signs within each other";
        in_body(&format!("mov.b32 r, {}1;", "(".repeat(count)), 1, message);
        in_body(&format!("mov.b32 r, {}1;", "- ~".repeat(count)), 1, message);
        in_body(&format!("ld.b32 r, [r+{}1];", "-".repeat(count)), 1, message);
        in_body(&format!("mov.b32 r, {}", "{".repeat(count)), 1, "expected an operand, found `{`");
        in_module(
            &format!(".global .b8 a[1] = {}", "{".repeat(count)),
            1,
            "expected an initial value, found `{`",
        );
    }
    let dims = "[1]".repeat(256);
    let deep = format!("{HEAD}.global .b8 a{dims} = {};", nested("{", 256, "}"));
    assert!(parse(&deep).is_ok());
}
