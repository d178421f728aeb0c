"""Which x86-64 instruction-set levels this processor runs.

The one extension that is compiled without ``-march``: it must load on every machine, because it decides
which of the others may be loaded. The levels are those of the x86-64 psABI, in section 3.1.1
(https://gitlab.com/x86-psABIs/x86-64-ABI). ``__builtin_cpu_supports`` also asks whether the operating
system saves the wide registers, which the bare CPUID bits do not say.
"""

cdef extern from *:
    """
    #if defined(__x86_64__)
    #include <cpuid.h>

    /* Features without a portable name in __builtin_cpu_supports. LZCNT must be asked for by itself: a
       processor without it does not fault but runs the instruction as BSR, which gives another result. */
    static int has_f16c_movbe_lzcnt(void) {
        enum { MOVBE = 1u << 22, F16C = 1u << 29, LZCNT = 1u << 5 };
        unsigned int eax, ebx, ecx, edx;
        if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return 0;
        if ((ecx & (MOVBE | F16C)) != (MOVBE | F16C)) return 0;
        if (!__get_cpuid(0x80000001, &eax, &ebx, &ecx, &edx)) return 0;
        return (ecx & LZCNT) != 0;
    }

    /* The highest N such that the host runs all of x86-64-vN. */
    static int x86_64_level(void) {
        __builtin_cpu_init();
        if (!(__builtin_cpu_supports("ssse3") && __builtin_cpu_supports("sse4.1") &&
              __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt"))) return 1;
        if (!(__builtin_cpu_supports("avx") && __builtin_cpu_supports("avx2") &&
              __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
              __builtin_cpu_supports("fma") && has_f16c_movbe_lzcnt())) return 2;
        if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512vl"))) return 3;
        return 4;
    }
    #else
    static int x86_64_level(void) { return 0; }
    #endif
    """
    int x86_64_level() noexcept nogil


def host_levels():
    """The names of the levels that this processor runs, lowest first; ``("baseline",)`` off x86-64."""
    cdef int level = x86_64_level()
    if level == 0:
        return ("baseline",)
    return tuple(f"x86_64_v{n}" for n in range(2, level + 1))
