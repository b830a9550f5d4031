//! EROFS metadata images, written and read over bytes; no I/O
