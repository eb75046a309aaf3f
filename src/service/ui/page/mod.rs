//! The files that a browser loads. They hold no secret, and need nothing from other hosts.

/// A file of the page.
pub(in crate::service) struct File {
    pub(in crate::service) path: &'static str,
    /// Its media type.
    pub(in crate::service) kind: &'static str,
    pub(in crate::service) text: &'static str,
}

macro_rules! files {
    ($($path:literal $kind:literal $name:literal;)*) => {
        /// All of them.
        pub(in crate::service) const FILES: &[File] =
            &[$(File { path: $path, kind: $kind, text: include_str!($name) },)*];
    };
}

files! {
    "/" "text/html; charset=utf-8" "index.html";
    "/ui/style.css" "text/css; charset=utf-8" "style.css";
    "/ui/app.js" "text/javascript; charset=utf-8" "app.js";
    "/ui/server.js" "text/javascript; charset=utf-8" "server.js";
    "/ui/dom.js" "text/javascript; charset=utf-8" "dom.js";
    "/ui/charts.js" "text/javascript; charset=utf-8" "charts.js";
    "/ui/overview.js" "text/javascript; charset=utf-8" "overview.js";
    "/ui/evaluators.js" "text/javascript; charset=utf-8" "evaluators.js";
    "/ui/evaluator.js" "text/javascript; charset=utf-8" "evaluator.js";
    "/ui/upload.js" "text/javascript; charset=utf-8" "upload.js";
    "/ui/tenants.js" "text/javascript; charset=utf-8" "tenants.js";
    "/ui/pool.js" "text/javascript; charset=utf-8" "pool.js";
}

/// What a page of this server may do: nothing but load these files, and ask this server.
pub(in crate::service) const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
