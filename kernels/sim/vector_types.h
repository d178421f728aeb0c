// The vector types of CUDA C++: float2 .. double4, with make_float2(x, y) and so on.
#pragma once

// Members are assigned one by one, so that each is a store of its own to whoever watches memory accesses.
#define SIM_VECTOR2(T, name, alignment)         \
    struct alignas(alignment) name {            \
        T x, y;                                 \
    };                                          \
    inline name make_##name(T x, T y) {         \
        name v;                                 \
        v.x = x, v.y = y;                       \
        return v;                               \
    }

#define SIM_VECTOR3(T, name)                    \
    struct name {                               \
        T x, y, z;                              \
    };                                          \
    inline name make_##name(T x, T y, T z) {    \
        name v;                                 \
        v.x = x, v.y = y, v.z = z;              \
        return v;                               \
    }

#define SIM_VECTOR4(T, name, alignment)         \
    struct alignas(alignment) name {            \
        T x, y, z, w;                           \
    };                                          \
    inline name make_##name(T x, T y, T z, T w) { \
        name v;                                 \
        v.x = x, v.y = y, v.z = z, v.w = w;     \
        return v;                               \
    }

SIM_VECTOR2(float, float2, 8)
SIM_VECTOR2(double, double2, 16)
SIM_VECTOR2(int, int2, 8)
SIM_VECTOR2(unsigned, uint2, 8)
SIM_VECTOR2(long long, longlong2, 16)
SIM_VECTOR3(float, float3)
SIM_VECTOR3(double, double3)
SIM_VECTOR3(int, int3)
SIM_VECTOR4(float, float4, 16)
SIM_VECTOR4(double, double4, 16)
SIM_VECTOR4(int, int4, 16)
SIM_VECTOR4(unsigned, uint4, 16)
SIM_VECTOR4(unsigned char, uchar4, 4)

#undef SIM_VECTOR2
#undef SIM_VECTOR3
#undef SIM_VECTOR4
