// QPIPE_SANITIZED: built with AddressSanitizer or ThreadSanitizer, by gcc or clang.
#pragma once

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define QPIPE_SANITIZED 1
#endif
#elif defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define QPIPE_SANITIZED 1
#endif
