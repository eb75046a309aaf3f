//! Closed sets of words: what clients, labels and scripts call the variants of an enum.

/// Declares an enum whose variants have one word each.
macro_rules! words {
    ($(#[$meta:meta])* $visibility:vis enum $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        $visibility enum $name { $($(#[$doc])* $variant,)* }

        impl $name {
            /// Every one, in declaration order.
            #[allow(dead_code, reason = "some sets are only listed by tests")]
            $visibility const ALL: &[$name] = &[$($name::$variant,)*];

            /// The word: lower case, underscores.
            #[must_use]
            $visibility const fn as_str(self) -> &'static str {
                match self { $($name::$variant => $word,)* }
            }
        }
    };
}

pub(crate) use words;
