//! Threads that are done with their own share help others with theirs.
//!
//! Cores differ: some are built slower, some are shared with other work. Two that did 65 and 75 GFLOP/s took 8 % longer
//! over equal halves than the two together would have needed.

use super::sweep::Stage;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// What each thread is at.
pub(super) struct Board<T: 'static> {
    slots: Vec<Slot<T>>,
}

struct Slot<T: 'static> {
    /// Work that others may take parts of. What it points to stays until it is taken back and no helper is left.
    lent: Mutex<Option<NonNull<Stage<'static, T>>>>,
    helpers: AtomicUsize,
    /// A thread is in its share: it may still lend something.
    running: AtomicBool,
}

// SAFETY: what is lent is used through shared references alone.
unsafe impl<T> Sync for Board<T> where Stage<'static, T>: Sync {}

impl<T> Board<T> {
    /// For so many shares.
    pub(super) fn new(shares: usize) -> Self {
        let slot = |_| Slot {
            lent: Mutex::new(None),
            helpers: AtomicUsize::new(0),
            running: AtomicBool::new(false),
        };
        Self { slots: (0..shares).map(slot).collect() }
    }

    /// Does a share.
    pub(super) fn share(&self, own: usize, work: impl FnOnce()) {
        let running = &self.slots[own].running;
        running.store(true, Ordering::Release);
        let _ended = OnDrop(|| running.store(false, Ordering::Release));
        work();
    }

    /// Works on `stage`, of which others may take parts meanwhile. They have ended theirs when this returns.
    pub(super) fn lend(&self, own: usize, stage: &Stage<'_, T>, work: impl FnOnce()) {
        let slot = &self.slots[own];
        slot.lend(Some(NonNull::from(stage).cast()));
        let _taken_back = OnDrop(|| {
            slot.lend(None);
            while slot.helpers.load(Ordering::Acquire) > 0 {
                std::hint::spin_loop();
            }
        });
        work();
    }

    /// Gives `help` what others lend, until none of them is in a share. Waits for none that has not begun: this thread may
    /// be the one that will.
    pub(super) fn help(&self, mut help: impl FnMut(&Stage<'_, T>)) {
        let mut waits = 0;
        loop {
            let mut running = false;
            for slot in &self.slots {
                running |= slot.running.load(Ordering::Acquire);
                if let Some(stage) = slot.join() {
                    let _left = OnDrop(|| {
                        slot.helpers.fetch_sub(1, Ordering::Release);
                    });
                    // SAFETY: it stays until this helper has left.
                    help(unsafe { stage.as_ref() });
                }
            }
            if !running {
                return;
            }
            waits += 1;
            if waits % 64 == 0 {
                // The other may need this processor.
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
    }
}

impl<T> Slot<T> {
    fn lend(&self, stage: Option<NonNull<Stage<'static, T>>>) {
        *self.lent.lock().unwrap_or_else(PoisonError::into_inner) = stage;
    }

    /// What is lent, with a helper more.
    fn join(&self) -> Option<NonNull<Stage<'static, T>>> {
        let lent = self.lent.lock().unwrap_or_else(PoisonError::into_inner);
        // While it cannot be taken back.
        lent.inspect(|_| {
            self.helpers.fetch_add(1, Ordering::Relaxed);
        })
    }
}

/// Also where work panics.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::product::{Epilogue, Pairing, Strip, Threads, product};
    use crate::ops::tile::{Level, Matrix};
    use std::collections::HashSet;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Mutex;
    use std::thread::{ThreadId, current, sleep};
    use std::time::Duration;

    /// Rows, columns, inner dimension of which two threads get half of the rows each.
    const ROWS: [usize; 3] = [512, 64, 64];
    /// Of which they get half of the columns each, in two groups.
    const COLUMNS: [usize; 3] = [256, 1536, 640];

    /// Counts the blocks of each row, and by whom they are stored; checks the sums; lets `before` know of row and column.
    struct Watch<F, const BY_BLOCK: bool> {
        rows: Mutex<Vec<(usize, HashSet<ThreadId>)>>,
        k: usize,
        before: F,
    }

    impl<F: Fn(usize, usize) + Sync, const BY_BLOCK: bool> Epilogue for Watch<F, BY_BLOCK> {
        const BLOCK_BY_BLOCK: bool = BY_BLOCK;

        #[inline(always)]
        fn store<const NATIVE: bool>(&self, strip: Strip<'_>) {
            (self.before)(strip.row, strip.firsts[0][0]);
            let (count, by) = &mut self.rows.lock().unwrap()[strip.row];
            *count += strip.firsts.len();
            by.insert(current().id());
            for i in 0..strip.firsts.len() {
                let (firsts, halves) = strip.block(i);
                for (first, half) in firsts.into_iter().zip(halves) {
                    let right = (first..).zip(half).all(|(column, x)| *x == (self.k * column) as f32);
                    assert!(right, "columns {first}.. of row {}: {half:?}", strip.row);
                }
            }
        }
    }

    /// Ones by the numbers of the columns, on two threads: sums below 2²⁴, so exact.
    fn watched<const BY_BLOCK: bool>(
        [m, n, k]: [usize; 3],
        before: impl Fn(usize, usize) + Sync,
    ) -> Vec<(usize, HashSet<ThreadId>)> {
        let (a, b) = (vec![1.0f32; m * k], (0..k * n).map(|i| (i % n) as f32).collect::<Vec<_>>());
        let watch = Watch::<_, BY_BLOCK> { rows: Mutex::new(vec![Default::default(); m]), k, before };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        pool.install(|| {
            let (a, b) = (Matrix::new(&a, m, k), Matrix::new(&b, k, n));
            product(Level::best(), a, b, None, Pairing::ADJOINING, Threads::All, &watch);
        });
        let rows = watch.rows.into_inner().unwrap();
        assert!(rows.iter().all(|(count, _)| *count == n / 32), "{rows:?}");
        rows
    }

    fn a_slow_thread_is_helped_of<const BY_BLOCK: bool>() {
        let slow = |row, _| {
            if row == 0 {
                sleep(Duration::from_millis(100))
            }
        };
        let rows = watched::<BY_BLOCK>(ROWS, slow);
        // The last rows of the half that the other thread had not begun with.
        assert_ne!(rows[0].1, rows[ROWS[0] / 2 - 1].1);
    }

    #[test]
    fn a_slow_thread_is_helped() {
        a_slow_thread_is_helped_of::<true>();
        a_slow_thread_is_helped_of::<false>();
    }

    /// Before what it reads is packed anew.
    #[test]
    fn a_slow_helper_is_waited_for() {
        let owner = Mutex::new(None);
        let slow = |row, column| {
            if column >= COLUMNS[1] / 2 || row % 32 > 0 {
                return;
            }
            let owned = *owner.lock().unwrap().get_or_insert(current().id()) == current().id();
            // The owner until the other is there, and then that one.
            if row == 0 || !owned {
                sleep(Duration::from_millis(if owned { 3 } else { 20 }));
            }
        };
        let rows = watched::<true>(COLUMNS, slow);
        assert!(rows.iter().any(|(_, by)| by.len() == 2), "nobody helped");
    }

    /// And does not hang.
    #[test]
    fn a_panic_passes_through() {
        let run = || watched::<true>(ROWS, |row, _| assert!(row > 0, "the first row"));
        assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
    }
}
