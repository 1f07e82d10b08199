//! What a block of the bundled mimalloc occupies, from what was asked for. Pure.
//!
//! mimalloc serves a request from the smallest of its size classes that fits: the words up to 8 in steps of two, then four
//! classes for each power of two up to 128 KiB, beyond that whole pages, the larger the coarser. See `mi_bin` and
//! `_mi_os_good_alloc_size`:
//! <https://github.com/python/cpython/blob/v3.13.0/Objects/mimalloc/page-queue.c#L62-L101>,
//! <https://github.com/python/cpython/blob/v3.13.0/Objects/mimalloc/os.c#L75-L84>.
//! Exact for release builds but for blocks over 16 MiB, which have a segment of their own and can be some pages larger; a
//! build with assertions adds padding that is not known here.

/// Bytes of a word.
const WORD: u64 = 8;
/// The largest request that has a class: `MI_MEDIUM_OBJ_SIZE_MAX`.
const LARGEST_CLASS: u64 = 128 << 10;
/// Up to these sizes, in these steps.
const STEPS: [(u64, u64); 4] = [
    (512 << 10, 4 << 10),
    (2 << 20, 64 << 10),
    (8 << 20, 256 << 10),
    (32 << 20, 1 << 20),
];
/// The step of what is larger.
const LARGEST_STEP: u64 = 4 << 20;

/// Bytes that a block occupies which was asked for with `requested` bytes.
pub(super) fn occupied(requested: u64) -> u64 {
    if requested > LARGEST_CLASS {
        let step = STEPS
            .iter()
            .find(|(below, _)| requested < *below)
            .map_or(LARGEST_STEP, |(_, step)| *step);
        return requested.checked_next_multiple_of(step).unwrap_or(requested);
    }
    let words = requested.div_ceil(WORD);
    let class = match words {
        0 | 1 => 1,
        2..=8 => words.next_multiple_of(2),
        // The top three bits of the number before it make the class.
        _ => {
            let last = words - 1;
            let step = 1 << (last.ilog2() - 2);
            (last / step + 1) * step
        }
    };
    class * WORD
}

/// What a reallocation leaves: a block that stays where it is keeps its class.
pub(super) fn reallocated(old: Option<u64>, moved: bool, requested: u64) -> u64 {
    match old {
        Some(size) if !moved => size,
        _ => occupied(requested),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(requested: u64, expected: u64) {
        assert_eq!(occupied(requested), expected, "{requested} bytes");
    }

    /// `MI_PAGE_QUEUES_EMPTY`, the table from which mimalloc itself takes the classes, in words:
    /// <https://github.com/python/cpython/blob/v3.13.0/Objects/mimalloc/init.c#L43-L56>.
    const CLASSES: [u64; 48] = [
        10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448,
        512, 640, 768, 896, 1024, 1280, 1536, 1792, 2048, 2560, 3072, 3584, 4096, 5120, 6144, 7168, 8192,
        10240, 12288, 14336, 16384, 20480, 24576, 28672, 32768,
    ];

    #[test]
    fn a_request_occupies_the_smallest_class_that_holds_it() {
        for (requested, expected) in [
            (0, 8),
            (8, 8),
            (9, 16),
            (17, 32),
            (33, 48),
            (49, 64),
            (64, 64),
            (65, 80),
        ] {
            check(requested, expected);
        }
        let mut last = 8;
        for class in CLASSES.into_iter().filter(|class| class * WORD <= LARGEST_CLASS) {
            check(class * WORD, class * WORD);
            check(last * WORD + 1, class * WORD);
            last = class;
        }
    }

    #[test]
    fn large_requests_occupy_whole_pages() {
        check((128 << 10) + 1, 132 << 10);
        check((512 << 10) - 1, 512 << 10);
        check(512 << 10, 512 << 10);
        check((512 << 10) + 1, 576 << 10);
        check((2 << 20) + 1, (2 << 20) + (256 << 10));
        check((9 << 20) + 1, 10 << 20);
        check((33 << 20) + 1, 36 << 20);
        check(u64::MAX, u64::MAX);
    }

    #[test]
    fn a_block_that_does_not_move_keeps_its_class() {
        assert_eq!(reallocated(Some(128), false, 70), 128);
        assert_eq!(reallocated(Some(128), true, 30), 32);
        assert_eq!(reallocated(None, false, 70), 80);
    }
}
