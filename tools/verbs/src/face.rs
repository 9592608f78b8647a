//! What a C caller holds of an object: a structure of verbs.h, made here, known by its address.
#![allow(unsafe_code)]

/// A structure that C code reads through the pointer it was given. It lives until the face is
/// dropped, and is never a Rust reference once it was given out.
#[derive(Debug)]
pub(crate) struct Face<T>(*mut T);

// SAFETY: the pointer is only handed out and, on drop, freed; what is behind it is C's.
unsafe impl<T> Send for Face<T> {}

impl<T> Face<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Box::into_raw(Box::new(value)))
    }

    pub(crate) fn as_ptr(&self) -> *mut T {
        self.0
    }

    /// The address that the object is known by.
    pub(crate) fn address(&self) -> usize {
        self.0.addr()
    }

    /// Replaces one field.
    pub(crate) fn set<F>(&self, field: impl FnOnce(*mut T) -> *mut F, value: F) {
        let place = field(self.0);
        let range = self.address()..self.address() + size_of::<T>();
        assert!(range.contains(&place.addr()) && range.end - place.addr() >= size_of::<F>());
        // SAFETY: within the allocation by the assertion; alignment is the field's own. A C thread
        // that reads the field meanwhile sees the old value or the new one, as with libibverbs.
        unsafe { place.write_volatile(value) }
    }
}

impl<T> Drop for Face<T> {
    fn drop(&mut self) {
        // SAFETY: made by `Box::into_raw` and freed nowhere else; the caller destroyed the object
        // and by the rules of verbs uses its structure no more.
        drop(unsafe { Box::from_raw(self.0) });
    }
}
