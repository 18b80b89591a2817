// toml++. Some of its assertions fail on hostile documents ("[[[["), which its next line refuses as
// it should; in optimised builds it tells the compiler that they cannot fail. So it has none here.
#pragma once

#define TOML_ASSERT(expression) static_assert(true)
#ifdef NDEBUG
#undef NDEBUG  // else its assertions are assumptions
#include <toml++/toml.h>
#define NDEBUG
#else
#include <toml++/toml.h>
#endif
