//! `.loc` directives.

use super::ParseError;
use super::ast::Location;
use super::cursor::Cursor;
use std::collections::HashMap;
use std::sync::Arc;

/// Inlined calls around a place that are kept.
const MAX_INLINED: usize = 64;

/// The places of a function so far.
///
/// A directive names one call around its place. Compilers write the directive of that call's own place before it,
/// with the call around that, so the whole chain is found by the last directive for the place of the call.
#[derive(Default)]
pub(super) struct Locations {
    current: Option<Location>,
    /// By file, line and column; with the number of calls around it.
    latest: HashMap<[u32; 3], (Arc<Location>, usize)>,
}

impl Locations {
    /// Where the next instruction comes from.
    pub fn current(&self) -> Option<Location> {
        self.current.clone()
    }

    /// Reads what stands after `.loc`.
    pub fn read(&mut self, cursor: &mut Cursor<'_>) -> Result<(), ParseError> {
        let place = read_place(cursor)?;
        let mut outer = None;
        while cursor.eat(',')? {
            match cursor.word("`function_name` or `inlined_at`")? {
                "function_name" => {
                    cursor.word("a label of .debug_str")?;
                    cursor.offset()?;
                }
                "inlined_at" => outer = Some(read_place(cursor)?),
                other => return Err(cursor.error(format!("`.loc` has no attribute `{other}`"))),
            }
        }
        let around = outer.map(|[file, line, column]| {
            let known = self.latest.get(&[file, line, column]).filter(|(_, calls)| *calls < MAX_INLINED);
            known.cloned().unwrap_or_else(|| (Arc::new(Location { file, line, inlined_at: None }), 0))
        });
        let [file, line, _] = place;
        let calls = around.as_ref().map_or(0, |(_, calls)| calls + 1);
        let location = Location { file, line, inlined_at: around.map(|(outer, _)| outer) };
        self.latest.insert(place, (Arc::new(location.clone()), calls));
        // Compilers give line 0 to code that comes from no line.
        self.current = (line != 0).then_some(location);
        Ok(())
    }
}

fn read_place(cursor: &mut Cursor<'_>) -> Result<[u32; 3], ParseError> {
    Ok([cursor.u32("a file's index")?, cursor.u32("a line")?, cursor.u32("a column")?])
}
