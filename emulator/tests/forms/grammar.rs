//! Lines of grammar and the forms they stand for.

/// One form: its words, and its operands as letters of register files (see [`crate::lanewise`]).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Form {
    /// Opcode and modifiers, e.g. `add.sat.s32`.
    pub name: String,
    /// What follows.
    pub operands: Vec<String>,
}

impl Form {
    pub fn words(&self) -> Vec<&str> {
        self.name.split('.').collect()
    }

    pub fn text(&self) -> String {
        format!("{} {}", self.name, self.operands.join(" "))
    }
}

/// Replaces each `{a,b,}` by one of its alternatives, in all ways; they may be empty.
pub fn alternatives(line: &str) -> Vec<String> {
    let Some((before, rest)) = line.split_once('{') else { return vec![line.to_owned()] };
    let (choices, after) = rest.split_once('}').expect("a closing brace");
    let tails = alternatives(after);
    let each = |choice: &str| tails.iter().map(|tail| format!("{before}{choice}{tail}")).collect::<Vec<_>>();
    choices.split(',').flat_map(each).collect()
}

/// Forms of some lines, without repetitions.
pub fn expand<'a>(lines: impl IntoIterator<Item = &'a str>) -> Vec<Form> {
    let mut seen = std::collections::HashSet::new();
    let all = lines.into_iter().flat_map(alternatives).map(|text| {
        let mut parts = text.split_whitespace().map(str::to_owned);
        let name = parts.next().expect("an opcode");
        Form { name, operands: parts.collect() }
    });
    all.filter(|form| seen.insert(form.clone())).collect()
}

#[test]
fn lines_expand_in_all_ways() {
    let names: Vec<String> = expand(["a{.x,}{.y,.z} r"]).into_iter().map(|form| form.text()).collect();
    assert_eq!(names, ["a.x.y r", "a.x.z r", "a.y r", "a.z r"]);
}
