//! What engines and guests say, cut to what is shown of it.

use std::fmt::Write;

/// The most that is kept of what an engine says, in bytes.
const MAX_REASON: usize = 4096;

/// The most that is kept of a guest's own error message, in bytes. Many are JSON, which a cut breaks.
pub(super) const MAX_MESSAGE: usize = 64 << 10;

pub(super) fn shorten(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_REASON)].to_owned()
}

pub(super) fn first_line(text: &str) -> String {
    shorten(text.lines().next().unwrap_or_default())
}

/// A guest's own message: whole, or cut with a mark that says so.
pub(super) fn message_of(text: &str) -> String {
    message_from(text, text.len())
}

/// The same of its beginning, and how long it is.
pub(super) fn message_from(beginning: &str, length: usize) -> String {
    let mut message = beginning[..beginning.floor_char_boundary(MAX_MESSAGE)].to_owned();
    if message.len() < length {
        // A `String` takes everything.
        let _ = write!(message, "… (cut; {length} bytes in all)");
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_is_cut_between_characters() {
        assert_eq!(shorten(&"é".repeat(4000)).len(), 4096);
        assert_eq!(shorten(&format!("x{}", "é".repeat(4000))).len(), 4095);
    }

    #[test]
    fn a_guests_message_is_whole_or_says_that_it_is_cut() {
        let whole = "é".repeat(32 << 10);
        assert_eq!(message_of(&whole), whole);
        let cut = format!("{}… (cut; 65539 bytes in all)", &whole[..65_534]);
        assert_eq!(message_of(&format!("x{whole}xx")), format!("x{cut}"));
    }
}
