//! Objects of engines, whose drop may panic.
//!
//! The pool drops them wherever it makes room: in the call of whoever needs it. What is wrong with one plugin's object must
//! not reach that caller, nor keep what else is dropped beside it.

use std::{
    mem::forget,
    ops::{Deref, DerefMut},
    panic::{AssertUnwindSafe, catch_unwind},
};

use crate::error::panic_text;

/// An object of an engine. A panic of its drop ends here, and is logged.
pub(crate) struct Contained<T: ?Sized>(Option<Box<T>>);

impl<T: ?Sized> From<Box<T>> for Contained<T> {
    fn from(object: Box<T>) -> Self {
        Self(Some(object))
    }
}

impl<T: ?Sized> Deref for Contained<T> {
    type Target = T;

    fn deref(&self) -> &T {
        let Some(object) = &self.0 else { unreachable!("taken by its drop alone") };
        object
    }
}

impl<T: ?Sized> DerefMut for Contained<T> {
    fn deref_mut(&mut self) -> &mut T {
        let Some(object) = &mut self.0 else { unreachable!("taken by its drop alone") };
        object
    }
}

impl<T: ?Sized> Drop for Contained<T> {
    fn drop(&mut self) {
        let object = self.0.take();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(object))) {
            tracing::error!(panic = panic_text(&*panic), "an engine's object panicked when it was dropped");
            // What it panicked with may panic, too.
            forget(panic);
        }
    }
}
