//! `report.html`: what a run's page holds, when it is written, and that it changes nothing of the run; and runs laid
//! over one another. Made-up pages stay in the build's folder, where `tests/external/check_report.py` opens them in
//! Chromium.

mod overlay;
mod pages;
mod written;

#[allow(dead_code, reason = "shared between tests")]
#[path = "../common/runs.rs"]
mod runs;

/// No address, and no number that is none.
pub fn assert_self_contained(page: &str) {
    for address in
        ["http://", "https://", "src=\"", "url(", "@import", "<iframe", "<object", "fetch(", "XMLHttp"]
    {
        assert!(!page.contains(address), "{address}");
    }
    assert_eq!(page.matches("href=").count(), 1, "the empty icon alone");
    assert!(page.contains("default-src 'none'"), "and the browser is told so");
    let drawn = page.split("<script").next().unwrap();
    for odd in ["NaN", "inf%", "infinity", "undefined"] {
        assert!(!drawn.contains(odd), "{odd}");
    }
    assert_eq!((page.matches("<script").count(), page.matches("</script").count()), (2, 2));
    for tag in ["main", "section", "figure", "details", "table", "svg", "div", "dl"] {
        let open = page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
        assert_eq!(open, page.matches(&format!("</{tag}>")).count(), "{tag}");
    }
}

/// The part of a page from `from` to `to`.
pub fn part<'a>(page: &'a str, from: &str, to: &str) -> &'a str {
    let start = page.find(from).unwrap_or_else(|| panic!("`{from}` is not in the page"));
    &page[start..start + page[start..].find(to).unwrap()]
}
