//! Threads that stay awake from one operation to the next.
//!
//! A token is some 150 operations of a few microseconds each, and a training step some 700 after each of which a thread
//! waits for another. Waking one that fell asleep meanwhile takes longer than many of them: 4 % of a step.

use rayon::{Scope, Yield};
use std::sync::atomic::{AtomicBool, Ordering};

/// Looks for work that find none before the thread goes back to what it may be waiting for.
const TRIES: usize = 16;

/// Tells the threads that they may sleep, however the work ends.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Runs `work`, during which the other threads of its pool look for parts of it without a pause.
pub fn awake<R>(work: impl FnOnce() -> R) -> R {
    let (done, own) = (AtomicBool::new(false), rayon::current_thread_index());
    rayon::in_place_scope(|scope| {
        let done = &done;
        scope.spawn_broadcast(move |scope, context| {
            // The thread of `work` looks by itself while it waits.
            if own != Some(context.index()) {
                look_for_work(scope, done);
            }
        });
        let _done = Done(done);
        work()
    })
}

/// A few looks, and then a job that goes on with them. The thread may have come here while it waited for a part of the work,
/// whose end it would never see in a loop until all is done.
fn look_for_work<'scope>(scope: &Scope<'scope>, done: &'scope AtomicBool) {
    let mut found = false;
    for _ in 0..TRIES {
        if done.load(Ordering::Acquire) {
            return;
        }
        found = rayon::yield_now() == Some(Yield::Executed);
        if found {
            break;
        }
        std::hint::spin_loop();
    }
    if !found {
        // Others may have the processor.
        std::thread::yield_now();
    }
    scope.spawn(|scope| look_for_work(scope, done));
}

#[cfg(test)]
mod tests {
    use super::awake;
    use rayon::prelude::*;
    use std::sync::mpsc;
    use std::time::Duration;

    /// Work of several callers on the same threads, each of which takes parts of all: none may wait for the end of what it is
    /// itself a part of.
    #[test]
    fn callers_do_not_wait_for_each_other() {
        ends(4, 2000);
    }

    #[test]
    fn a_caller_does_not_wait_for_itself() {
        ends(1, 20_000);
    }

    fn ends(callers: u32, times: u32) {
        let (done, all_done) = mpsc::channel();
        for _ in 0..callers {
            let done = done.clone();
            std::thread::spawn(move || {
                let sums =
                    (0..times).map(|i| awake(|| (0..64).into_par_iter().map(|j: u32| i + j).sum::<u32>()));
                let _ = done.send(sums.fold(0, u32::wrapping_add));
            });
        }
        for _ in 0..callers {
            let sum = all_done.recv_timeout(Duration::from_secs(60)).expect("no thread waits for itself");
            assert_eq!(sum, (0..times).map(|i| 64 * i + 2016).fold(0, u32::wrapping_add));
        }
    }
}
