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

    /// Replaces the field at an offset, which is of type `F`.
    pub(crate) fn set<F: Copy>(&self, offset: usize, value: F) {
        assert!(
            offset.is_multiple_of(align_of::<F>()) && offset + size_of::<F>() <= size_of::<T>()
        );
        // SAFETY: within the allocation and aligned, by the assertion. A C thread that reads the
        // field meanwhile sees the old value or the new one, as with libibverbs.
        unsafe { self.0.byte_add(offset).cast::<F>().write_volatile(value) }
    }
}

impl<T> Drop for Face<T> {
    fn drop(&mut self) {
        // SAFETY: made by `Box::into_raw` and freed nowhere else; the caller destroyed the object
        // and by the rules of verbs uses its structure no more.
        drop(unsafe { Box::from_raw(self.0) });
    }
}
