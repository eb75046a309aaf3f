//! Settings that are a word or a path.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Declares an enum of words, and of one variant that holds a path: any other text.
macro_rules! word_or_path {
    ($(#[$meta:meta])* $name:ident {
        $($(#[$doc:meta])* $variant:ident = $word:literal,)*
    } or {
        $(#[$path_doc:meta])* $path:ident,
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(from = "String", into = "String")]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$doc])* $variant,)*
            $(#[$path_doc])*
            $path(PathBuf),
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                match text.as_str() {
                    $($word => $name::$variant,)*
                    _ => $name::$path(text.into()),
                }
            }
        }

        impl From<$name> for String {
            fn from(setting: $name) -> Self {
                match setting {
                    $($name::$variant => $word.to_owned(),)*
                    $name::$path(path) => path.to_string_lossy().into_owned(),
                }
            }
        }
    };
}

word_or_path! {
    /// Where the `direct` engine keeps compiled code.
    CodeCache {
        /// Nowhere.
        Off = "off",
        /// In the process's memory.
        #[default]
        Memory = "memory",
    } or {
        /// In a folder of mode 0700. It is created if it does not exist.
        Folder,
    }
}

word_or_path! {
    /// Where the `direct` engine compiles.
    CompileWorkers {
        /// In processes of the running program, if it can become them, else in this process.
        #[default]
        Auto = "auto",
        /// In this process.
        Off = "off",
    } or {
        /// In processes of this program.
        Program,
    }
}
