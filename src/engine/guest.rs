//! What a host function has of the guest that calls it.
//!
//! What differs from call to call reaches a host function as the *context* of the call: one value, by its type.
//! Considered and not taken: a context type as a parameter of pool and evaluator (every signature would have it, and one
//! pool could serve one type only), an argument of every host function (most need none), and a task-local of the
//! embedder's (on `extism` a guest runs on another thread). A context that is missing or of another type is an error rather
//! than `None`: a function that needs one cannot go on, and `?` says why; one that does not need it says `.ok()`.

use std::{
    any::{Any, type_name},
    fmt,
    sync::Arc,
};

/// What an evaluation gives the host functions that serve it, of any type: see
/// [`Evaluator::evaluate_with`](crate::Evaluator::evaluate_with).
pub type CallContext = Arc<dyn Any + Send + Sync>;

/// Why a host function failed. The guest's call ends with it.
///
/// Any error becomes one by `?`, with its own text and without those of its sources. **The caller of the evaluation sees
/// the text**: where an error may tell what is not for the caller, make one with [`new`](Self::new).
///
/// (So that this conversion can exist, it does not implement [`std::error::Error`] itself.)
#[derive(Debug, Clone)]
pub struct HostFunctionError {
    message: String,
    /// The guest's memory had no room for a block. extism does not say so.
    pub(super) is_out_of_memory: bool,
}

impl HostFunctionError {
    /// A failure with a message, which the caller of the evaluation sees.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), is_out_of_memory: false }
    }
}

impl fmt::Display for HostFunctionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl<E: std::error::Error> From<E> for HostFunctionError {
    fn from(error: E) -> Self {
        Self::new(error.to_string())
    }
}

/// The guest that calls a host function: its Extism memory, its error, and the context of its evaluation.
///
/// The memory is in blocks: each is named by the offset that PDKs pass as a pointer.
pub trait Guest: Send {
    /// Copies the block at `offset` out of the guest. Offset 0 is the empty block.
    ///
    /// # Errors
    ///
    /// When no block begins there.
    fn read(&mut self, offset: u64) -> Result<Vec<u8>, HostFunctionError>;

    /// Allocates a block in the guest, fills it and returns its offset.
    ///
    /// # Errors
    ///
    /// When the guest's memory is exhausted.
    fn write(&mut self, bytes: &[u8]) -> Result<u64, HostFunctionError>;

    /// Sets the guest's error, as the guest itself can, and lets it go on. Unless the guest clears it or sets another, the
    /// evaluation then fails as [`GuestError`](crate::Error::GuestError) with this message. An empty one clears the error.
    ///
    /// # Errors
    ///
    /// When the guest's memory is exhausted.
    fn set_error(&mut self, message: &str) -> Result<(), HostFunctionError>;

    /// The context of the evaluation, whatever its type: see [`context`](#method.context).
    fn any_context(&self) -> Option<CallContext>;
}

impl dyn Guest + '_ {
    /// The context that the evaluation was given by [`evaluate_with`](crate::Evaluator::evaluate_with). Keep it no longer
    /// than the call: it is to be dropped when the evaluation ends.
    ///
    /// # Errors
    ///
    /// When the evaluation has no context or one of another type, and while an initialiser runs, which belongs to no
    /// evaluation.
    pub fn context<T: Send + Sync + 'static>(&self) -> Result<Arc<T>, HostFunctionError> {
        let wanted = type_name::<T>();
        let missing = || HostFunctionError::new(format!("the call has no context, and a {wanted} is needed"));
        let other = |_| HostFunctionError::new(format!("the call's context is not the {wanted} that is needed"));
        self.any_context().ok_or_else(missing)?.downcast().map_err(other)
    }
}
