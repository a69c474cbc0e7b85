//! Names that another process has chosen, before a terminal gets to see them.

/// What a terminal acts on, or shows as something else than it is: controls (ESC, U+009B), marks
/// that turn the direction of writing, and characters of no width.
fn is_unprintable(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

/// The text with `?` for each of them.
pub(crate) fn printable(text: &str) -> String {
    text.replace(is_unprintable, "?")
}

/// JSON that says the same without any of them: they can only be in its strings, where they are
/// escaped.
pub(crate) fn escape(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for character in json.chars() {
        if is_unprintable(character) {
            let units = &mut [0; 2];
            out.extend(character.encode_utf16(units).iter().map(|unit| format!("\\u{unit:04x}")));
        } else {
            out.push(character);
        }
    }
    out
}
