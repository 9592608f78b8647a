//! Taking a mutex whose last holder may have panicked.
//!
//! What the library's mutexes guard is changed in single steps, each of which leaves it true, or is
//! set whole; so a panic elsewhere is no reason to refuse it.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, whatever became of the last holder. Blocks while somebody has it.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
