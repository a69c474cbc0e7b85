//! Counts in several threads, and checks the sums; then the same through the shared library that is
//! named, which is closed while the threads go on, and still have slots of its.

use std::ffi::CString;
use std::time::{Duration, Instant};
use uses_counters::{count, count_too, counted};

fn main() {
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for n in 0..50_000 {
                    if n % 2 == 0 { count(3) } else { count_too(3) }
                }
            });
        }
    });
    assert_eq!(counted(), (200_000, 600_000));
    if let Some(library) = std::env::args().nth(1) {
        close_it_under_them(&library);
    }
}

/// Threads whose last window was in a library that is closed: the kernel may look at its
/// descriptor whenever it likes.
fn close_it_under_them(library: &str) {
    let path = CString::new(library).expect("a path has no NUL");
    for _ in 0..5 {
        // SAFETY: the library's constructors are Rust's, which has none.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(!handle.is_null(), "{library} cannot be loaded");
        // SAFETY: the handle is open.
        let count = unsafe { libc::dlsym(handle, c"count".as_ptr()) };
        assert!(!count.is_null());
        // SAFETY: `count` has this type.
        let count = unsafe { std::mem::transmute::<*mut libc::c_void, extern "C" fn(u64)>(count) };
        // SAFETY: the handle is open.
        let take = unsafe { libc::dlsym(handle, c"take_slot".as_ptr()) };
        assert!(!take.is_null());
        // SAFETY: `take_slot` has this type.
        let take =
            unsafe { std::mem::transmute::<*mut libc::c_void, extern "C" fn() -> i32>(take) };
        let closed = std::sync::Barrier::new(5);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    (0..1000).for_each(|_| count(1));
                    // Given back by code of the library, after it was closed.
                    assert_eq!(take(), 0);
                    closed.wait();
                    closed.wait();
                    // Preempted again and again, with the old descriptor in the area.
                    let start = Instant::now();
                    while start.elapsed() < Duration::from_millis(20) {
                        std::thread::yield_now();
                    }
                });
            }
            closed.wait();
            // SAFETY: nobody calls into it any more.
            unsafe { libc::dlclose(handle) };
            closed.wait();
        });
    }
}
