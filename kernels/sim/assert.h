// #include <assert.h> on the simulator: a false assertion ends the launch with an error, not the process.
//
// As in C, what NDEBUG says is read anew each time the file is included.
#include "runtime.h"

#undef assert
#ifdef NDEBUG
#define assert(...) ((void)0)
#else
#define assert(...) \
    ((__VA_ARGS__) ? (void)0 : sim_fail("assertion `%s` failed at %s:%d", #__VA_ARGS__, __FILE__, __LINE__))
#endif
