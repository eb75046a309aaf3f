//! What engines and guests say, cut to what is shown of it.

/// The most that is kept of one message, in bytes.
pub(super) const MAX_MESSAGE: usize = 4096;

pub(super) fn shorten(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_MESSAGE)].to_owned()
}

pub(super) fn first_line(text: &str) -> String {
    shorten(text.lines().next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_is_cut_between_characters() {
        assert_eq!(shorten(&"é".repeat(4000)).len(), 4096);
        assert_eq!(shorten(&format!("x{}", "é".repeat(4000))).len(), 4095);
    }
}
