//! Handles: numbers that are looked up, never followed.

use super::errors::{Error, Result};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Locks. Data behind a lock is whole whenever a panic may strike, so a poisoned one is used on.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All objects of one kind. A handle is given once: a stale one stays unknown.
pub(super) struct Registry<T> {
    next: AtomicU64,
    objects: Mutex<HashMap<u64, Arc<T>>>,
}

impl<T> Registry<T> {
    /// Handles start at `kind << 40`: none looks like null, a default stream or device memory, and none of
    /// one kind is one of another.
    pub(super) fn new(kind: u64) -> Self {
        Self { next: AtomicU64::new(kind << 40), objects: Mutex::default() }
    }

    /// A handle for an object to come.
    pub(super) fn reserve(&self) -> u64 {
        self.next.fetch_add(16, Ordering::Relaxed)
    }

    /// Enters an object under a reserved handle.
    pub(super) fn insert(&self, handle: u64, object: T) -> Arc<T> {
        let object = Arc::new(object);
        lock(&self.objects).insert(handle, object.clone());
        object
    }

    /// Enters the object that `make` builds for its handle.
    pub(super) fn add(&self, make: impl FnOnce(u64) -> T) -> u64 {
        let handle = self.reserve();
        self.insert(handle, make(handle));
        handle
    }

    pub(super) fn find(&self, handle: u64) -> Option<Arc<T>> {
        lock(&self.objects).get(&handle).cloned()
    }

    pub(super) fn find_by(&self, which: impl Fn(&T) -> bool) -> Option<Arc<T>> {
        lock(&self.objects).values().find(|object| which(object)).cloned()
    }

    pub(super) fn get(&self, handle: u64) -> Result<Arc<T>> {
        self.find(handle).ok_or(Error::INVALID_HANDLE)
    }

    pub(super) fn remove(&self, handle: u64) -> Result<Arc<T>> {
        lock(&self.objects).remove(&handle).ok_or(Error::INVALID_HANDLE)
    }

    /// Takes out all that `keep` refuses.
    pub(super) fn retain(&self, keep: impl Fn(&T) -> bool) -> Vec<Arc<T>> {
        lock(&self.objects).extract_if(|_, object| !keep(object)).map(|(_, object)| object).collect()
    }
}
