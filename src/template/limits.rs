//! What a template may not do, as it comes with a model and is not to be trusted: grow or recurse without end where the
//! library's fuel does not see it.
//!
//! Constant expressions are worked out while a template is compiled, before any fuel is charged: `'x' * 999999999` takes
//! a gigabyte at once. And a namespace that holds itself makes printing it recurse until the stack ends.

/// Bytes that the constants of one tag may grow to.
const LIMIT: u64 = 32 << 20;

/// What is wrong with a template, and the tag, if anything is.
pub fn refuse(source: &str) -> Option<(&'static str, &str)> {
    let tags = tags(source);
    if let Some(tag) = tags.iter().find(|tag| tag.overgrown()) {
        return Some(("repeats a text beyond any use", tag.text));
    }
    let names: Vec<&str> = tags.iter().filter_map(Tag::namespace).collect();
    let tag = tags.iter().find(|tag| tag.lends(&names))?;
    Some(("uses a namespace as a value, which could come to hold itself", tag.text))
}

/// What stands between two braces.
struct Tag<'a> {
    text: &'a str,
    /// The same without what strings hold.
    code: String,
}

/// All tags of a template.
fn tags(source: &str) -> Vec<Tag<'_>> {
    let (mut tags, mut rest) = (Vec::new(), source);
    while let Some(start) = rest.find("{{").into_iter().chain(rest.find("{%")).min() {
        let close = if rest[start..].starts_with("{{") { "}}" } else { "%}" };
        let inside = &rest[start + 2..];
        let (code, length) = without_strings(inside, close);
        tags.push(Tag { text: inside[..length].trim(), code });
        rest = &inside[length..];
    }
    tags
}

impl Tag<'_> {
    /// A constant of a tag is at most as long as the tag times the product of all its whole numbers, each plus one
    /// (which also covers sums of them); powers are not bounded so, and no chat template repeats by one.
    fn overgrown(&self) -> bool {
        let length = (self.text.len() as u64).max(1);
        let repeats = self.code.replace("**", " ").contains('*');
        repeats && (self.code.contains("**") || growth(&self.code) > LIMIT / length)
    }

    /// The variable in `set NAME = namespace(…)`.
    fn namespace(&self) -> Option<&str> {
        let set = self.code.trim_start_matches(['-', '+']).trim_start().strip_prefix("set ")?;
        let (name, value) = set.split_once('=')?;
        value.trim_start().starts_with("namespace").then(|| name.trim())
    }

    /// Whether one of these namespaces, or one without a name, is used other than by its attributes.
    fn lends(&self, names: &[&str]) -> bool {
        let own = self.namespace();
        let mut before = ' ';
        let mut rest = self.code.as_str();
        let (mut own_uses, mut makers) = (0, 0);
        while let Some(start) = rest.find(|c: char| c.is_alphanumeric() || c == '_') {
            before = rest[..start].trim_end().chars().last().unwrap_or(before);
            let word = &rest[start..];
            let length = word.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(word.len());
            let (word, after) = word.split_at(length);
            let is_attribute = before == '.';
            if word == "namespace" && !is_attribute {
                makers += 1;
            } else if names.contains(&word) && !is_attribute && !after.trim_start().starts_with('.') {
                own_uses += 1;
            }
            before = 'x';
            rest = after;
        }
        // Its definition names a namespace once, and makes it once.
        let allowed = usize::from(own.is_some());
        own_uses > allowed || makers > allowed
    }
}

/// A tag's code with its string literals left out, and its length in the source, up to `close`.
fn without_strings(tag: &str, close: &str) -> (String, usize) {
    let mut code = String::new();
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in tag.char_indices() {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if tag[at..].starts_with(close) => return (code, at),
            None if c == '"' || c == '\'' => {
                quote = Some(c);
                code.push(' ');
            }
            None => code.push(c),
        }
    }
    (code, tag.len())
}

/// The product of the whole numbers in a piece of code, each plus one; what is no plain number counts as the largest.
fn growth(code: &str) -> u64 {
    let words = code.split(|c: char| !c.is_alphanumeric() && c != '_');
    let numbers = words.filter(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    let value = |word: &str| word.replace('_', "").parse::<u64>().unwrap_or(u64::MAX);
    numbers.fold(1, |product, word| product.saturating_mul(value(word).saturating_add(1)))
}

#[cfg(test)]
mod tests {
    use super::refuse;

    #[test]
    fn only_what_grows_is_refused() {
        for bad in [
            "{{ 'x' * 99999999 }}",
            "{% if a %}{{ 9999_9999 * ('x') }}{% endif %}",
            "{% set a = 'x' * (40000 + 40000) * 90000 %}",
            "{{ 'x' * 10 ** 9 }}",
            "{{ 'it\\'s' * 0x7fffffff }}",
            "{{ ('}}' ~ 'x') * 99999999 }}",
        ] {
            assert!(refuse(bad).is_some(), "{bad}");
        }
        for good in [
            "{{ '-' * 40 }}",
            "{{ 2 ** 3 }}",
            "{{ loop.index0 * 2 }} 99999999 * 99999999 {{ '2024072600000 * 9' }}",
            "{% for m in messages[1:] %}{{ '**' ~ m.content ~ '**' }}{% endfor %}",
            "no tag at all, { or {# '* 999999999 #}",
        ] {
            assert_eq!(refuse(good), None, "{good}");
        }
    }

    #[test]
    fn only_a_namespace_that_could_hold_itself_is_refused() {
        for bad in [
            "{% set ns = namespace() %}{% set ns.a = ns %}",
            "{%- set ns = namespace(a=1) -%}{% set m = [ns] %}{% set ns.a = m %}",
            "{% set a = namespace() %}{% for n in [a] %}{% set n.x = a %}{% endfor %}",
            "{% for n in [namespace()] %}{% set n.x = n %}{% endfor %}",
            "{% set ns = namespace(b=namespace()) %}",
        ] {
            assert!(refuse(bad).is_some(), "{bad}");
        }
        let good = "{%- set ns = namespace(first=true, text='ns') -%}{% set ns.text = ns.text ~ m.ns ~ 'ns' %}\
                    {% if not ns.first and namespaces %}{{ ns . text }}{% endif %}";
        assert_eq!(refuse(good), None);
    }
}
