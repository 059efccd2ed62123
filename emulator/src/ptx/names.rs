//! Names of a function: registers and variables by scope, each under a name of its own.

use super::ast::{Function, Type};
use std::collections::{HashMap, HashSet};

/// What a name means where it is used.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Name {
    /// Index of a register.
    Register(u32),
    /// Unique name of a variable or parameter.
    Variable(String),
    /// A register that has not been used yet.
    Unused(Type),
}

/// Registers `prefix0` to `prefix<count - 1>`.
#[derive(Clone, Copy)]
struct Range {
    element: Type,
    count: u32,
}

/// Names of the module: of variables and functions, those of other modules too.
#[derive(Default)]
pub(super) struct Globals {
    names: HashSet<String>,
    /// For a name that functions repeat, the last number known to make the name of something global. So the search
    /// for a free one takes linear time over all functions.
    suffixes: HashMap<String, u32>,
}

impl Globals {
    pub fn contains(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// False if there is one already.
    #[must_use]
    pub fn insert(&mut self, name: &str) -> bool {
        self.names.insert(name.to_string())
    }
}

/// A stack of scopes. A name maps to its declarations from the outermost scope to the innermost, so that a look-up
/// costs the same in any depth.
#[derive(Default)]
pub(super) struct Names<'a> {
    names: HashMap<&'a str, Vec<(usize, Name)>>,
    ranges: HashMap<&'a str, Vec<(usize, Range)>>,
    /// Of every open scope, what has been declared in it.
    scopes: Vec<Declared<'a>>,
    /// Every unique name so far, and how often it was asked for.
    taken: HashMap<String, u32>,
}

#[derive(Default)]
struct Declared<'a> {
    names: Vec<&'a str>,
    ranges: Vec<&'a str>,
}

impl<'a> Names<'a> {
    pub fn open_scope(&mut self) {
        self.scopes.push(Declared::default());
    }

    pub fn close_scope(&mut self) {
        let declared = self.scopes.pop().unwrap_or_default();
        for name in declared.names {
            self.names.get_mut(name).map(Vec::pop);
        }
        for prefix in declared.ranges {
            self.ranges.get_mut(prefix).map(Vec::pop);
        }
    }

    pub fn depth(&self) -> usize {
        self.scopes.len()
    }

    /// Declares in the innermost scope; false if the scope has that name already.
    #[must_use]
    pub fn declare(&mut self, name: &'a str, meaning: Name) -> bool {
        let depth = self.depth();
        let stack = self.names.entry(name).or_default();
        if stack.last().is_some_and(|(d, _)| *d == depth) {
            return false;
        }
        stack.push((depth, meaning));
        self.scopes[depth - 1].names.push(name);
        true
    }

    /// Declares registers with numbers in the innermost scope; false if it has some of that prefix already.
    #[must_use]
    pub fn declare_range(&mut self, prefix: &'a str, element: Type, count: u32) -> bool {
        let depth = self.depth();
        let stack = self.ranges.entry(prefix).or_default();
        if stack.last().is_some_and(|(d, _)| *d == depth) {
            return false;
        }
        stack.push((depth, Range { element, count }));
        self.scopes[depth - 1].ranges.push(prefix);
        true
    }

    /// What `name` means here. A register gets its place in `function` at its first use.
    pub fn resolve(&mut self, name: &'a str, function: &mut Function, globals: &mut Globals) -> Option<Name> {
        let found = self.names.get(name).and_then(|stack| stack.last());
        let depth = found.map_or(0, |(depth, _)| *depth);
        if depth < self.depth()
            && let Some((range_depth, element)) = self.member(name)
            && range_depth > depth
        {
            let meaning = self.register(name, element, function, globals);
            self.names.entry(name).or_default().push((range_depth, meaning.clone()));
            self.scopes[range_depth - 1].names.push(name);
            return Some(meaning);
        }
        match found? {
            (_, Name::Unused(element)) => {
                let meaning = self.register(name, *element, function, globals);
                if let Some((_, last)) = self.names.get_mut(name).and_then(|stack| stack.last_mut()) {
                    *last = meaning.clone();
                }
                Some(meaning)
            }
            (_, meaning) => Some(meaning.clone()),
        }
    }

    /// Depth and type of the range that `name` belongs to.
    fn member(&self, name: &str) -> Option<(usize, Type)> {
        let prefix = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let digits = &name[prefix.len()..];
        let ranges = self.ranges.get(prefix)?;
        let leading_zero = digits.len() > 1 && digits.starts_with('0');
        let number: u32 = digits.parse().ok().filter(|_| !leading_zero)?;
        let (depth, range) = ranges.iter().rev().find(|(_, range)| number < range.count)?;
        Some((*depth, range.element))
    }

    fn register(
        &mut self,
        name: &str,
        element: Type,
        function: &mut Function,
        globals: &mut Globals,
    ) -> Name {
        // MAX_REGISTERS keeps the number far below 2^32.
        let index = u32::try_from(function.registers.len()).unwrap_or(u32::MAX);
        function.registers.push(element);
        function.register_names.push(self.unique(name, globals));
        Name::Register(index)
    }

    /// A name that nothing else in the function has, nor in the module: `name`, else `name$1` and so on.
    pub fn unique(&mut self, name: &str, globals: &mut Globals) -> String {
        if !self.taken.contains_key(name) && !globals.contains(name) {
            self.taken.insert(name.to_string(), 0);
            return name.to_string();
        }
        let in_function = self.taken.get(name).copied().unwrap_or(0);
        let mut number = in_function.max(globals.suffixes.get(name).copied().unwrap_or(0));
        loop {
            number += 1;
            let candidate = format!("{name}${number}");
            if globals.contains(&candidate) {
                globals.suffixes.insert(name.to_string(), number);
            } else if !self.taken.contains_key(&candidate) {
                self.taken.insert(name.to_string(), number);
                self.taken.insert(candidate.clone(), 0);
                return candidate;
            }
        }
    }
}
