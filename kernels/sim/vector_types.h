// The vector types of CUDA C++: char1 .. double4, with make_float2(x, y) and so on.
#pragma once
#include "runtime.h"

// Members are assigned one by one, so that each is a store of its own to whoever watches memory accesses.
// Two and four elements are aligned as a whole, so that they are loaded at once, up to 16 bytes.
#define SIM_VECTORS(T, name)                                          \
    struct name##1 {                                                  \
        T x;                                                          \
    };                                                                \
    struct alignas(2 * sizeof(T)) name##2 {                           \
        T x, y;                                                       \
    };                                                                \
    SIM_VECTOR3(T, name##3)                                           \
    struct alignas(sizeof(T) < 4 ? 4 * sizeof(T) : 16) name##4 {      \
        T x, y, z, w;                                                 \
    };                                                                \
    __forceinline__ name##1 make_##name##1(T x) {                     \
        name##1 v;                                                    \
        v.x = x;                                                      \
        return v;                                                     \
    }                                                                 \
    __forceinline__ name##2 make_##name##2(T x, T y) {                \
        name##2 v;                                                    \
        v.x = x, v.y = y;                                             \
        return v;                                                     \
    }                                                                 \
    __forceinline__ name##3 make_##name##3(T x, T y, T z) {           \
        name##3 v;                                                    \
        v.x = x, v.y = y, v.z = z;                                    \
        return v;                                                     \
    }                                                                 \
    __forceinline__ name##4 make_##name##4(T x, T y, T z, T w) {      \
        name##4 v;                                                    \
        v.x = x, v.y = y, v.z = z, v.w = w;                           \
        return v;                                                     \
    }

#define SIM_VECTOR3(T, name) \
    struct name {            \
        T x, y, z;           \
    };

SIM_VECTORS(signed char, char)
SIM_VECTORS(unsigned char, uchar)
SIM_VECTORS(short, short)
SIM_VECTORS(unsigned short, ushort)
SIM_VECTORS(int, int)
SIM_VECTORS(long, long)
SIM_VECTORS(unsigned long, ulong)
SIM_VECTORS(long long, longlong)
SIM_VECTORS(unsigned long long, ulonglong)
SIM_VECTORS(float, float)
SIM_VECTORS(double, double)

#undef SIM_VECTOR3
#define SIM_VECTOR3(T, name)  // uint3 is the type of threadIdx: runtime.h has it
SIM_VECTORS(unsigned, uint)

#undef SIM_VECTOR3
#undef SIM_VECTORS
