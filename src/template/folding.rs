//! What compiling a template may grow to: the library works constant expressions out while it compiles, before any
//! fuel is charged, so that `'x' * 999999999` takes a gigabyte at once.

/// Bytes that the constants of one tag may grow to.
const LIMIT: u64 = 32 << 20;

/// The first tag of a template whose constants could grow beyond any use, if there is one.
///
/// A constant of a tag is at most as long as the tag times the product of all its whole numbers, each plus one (which
/// also covers sums of them); powers are not bounded so, and no chat template needs any.
pub fn overgrown(source: &str) -> Option<&str> {
    let mut rest = source;
    while let Some(start) = rest.find("{{").into_iter().chain(rest.find("{%")).min() {
        let tag = &rest[start + 2..];
        let close = if rest[start..].starts_with("{{") { "}}" } else { "%}" };
        let (code, length) = without_strings(tag, close);
        if code.contains("**") || (code.contains('*') && growth(&code) > LIMIT / (length as u64).max(1)) {
            return Some(tag[..length].trim());
        }
        rest = &tag[length..];
    }
    None
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
    use super::overgrown;

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
            assert!(overgrown(bad).is_some(), "{bad}");
        }
        for good in [
            "{{ '-' * 40 }}",
            "{{ loop.index0 * 2 }} 99999999 * 99999999 {{ '2024072600000 * 9' }}",
            "{% for m in messages[1:] %}{{ '**' ~ m.content ~ '**' }}{% endfor %}",
            "no tag at all, { or {# '* 999999999 #}",
        ] {
            assert_eq!(overgrown(good), None, "{good}");
        }
    }
}
