//! Threads that stay awake from one operation to the next.
//!
//! A token is some 150 operations of a few microseconds each, and a training step some 700 after each of which a thread
//! waits for another. Waking one that fell asleep meanwhile takes longer than many of them: 4 % of a step.

use rayon::Yield;
use std::sync::atomic::{AtomicBool, Ordering};

/// Looks for work that find none before the thread lets others have its processor.
const TRIES: usize = 64;

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
        scope.spawn_broadcast(|_, context| {
            // The thread of `work` comes here while it waits for a part.
            if own != Some(context.index()) {
                look_for_work(&done);
            }
        });
        let _done = Done(&done);
        work()
    })
}

fn look_for_work(done: &AtomicBool) {
    let mut idle = 0;
    while !done.load(Ordering::Acquire) {
        if rayon::yield_now() == Some(Yield::Executed) {
            idle = 0;
        } else if idle < TRIES {
            idle += 1;
            std::hint::spin_loop();
        } else {
            std::thread::yield_now();
        }
    }
}
