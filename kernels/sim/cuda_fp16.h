// #include <cuda_fp16.h> on the simulator: __half, 1 sign bit, 5 of exponent and 10 of mantissa.
#pragma once
#define __CUDA_FP16_H__  // as the toolkit has it: what else is compiled may ask whether these types are there
#include "float16.h"

using __half = sim::Float16<sim::Half>;
using __half2 = sim::Float16x2<sim::Half>;
using half = __half;
using half2 = __half2;

__forceinline__ __half __float2half(float x) { return x; }
__forceinline__ __half __float2half_rn(float x) { return x; }
__forceinline__ __half __float2half_rz(float x) { return sim::toward_zero<sim::Half>(x); }
__forceinline__ __half __float2half_ru(float x) { return sim::up<sim::Half>(x); }
__forceinline__ __half __float2half_rd(float x) { return sim::down<sim::Half>(x); }
__forceinline__ __half __double2half(double x) { return x; }
__forceinline__ float __half2float(__half x) { return x; }

__forceinline__ unsigned short __half_as_ushort(__half x) { return x.pattern; }
__forceinline__ short __half_as_short(__half x) { return short(x.pattern); }
__forceinline__ __half __ushort_as_half(unsigned short pattern) { return __half::of_bits(pattern); }
__forceinline__ __half __short_as_half(short pattern) { return __half::of_bits(pattern); }

// To integers: rounded to nearest (rn), toward zero (rz), up (ru) or down (rd), and clamped to the type.
#define SIM_INTEGER(name, T)                                                                   \
    __forceinline__ __half __##name##2half_rn(T x) { return x; }                               \
    __forceinline__ T __half2##name##_rn(__half x) { return sim::saturate<T>(rintf(x)); }      \
    __forceinline__ T __half2##name##_rz(__half x) { return sim::saturate<T>(truncf(x)); }     \
    __forceinline__ T __half2##name##_ru(__half x) { return sim::saturate<T>(ceilf(x)); }      \
    __forceinline__ T __half2##name##_rd(__half x) { return sim::saturate<T>(floorf(x)); }
SIM_INTEGER(int, int)
SIM_INTEGER(uint, unsigned)
SIM_INTEGER(short, short)
SIM_INTEGER(ushort, unsigned short)
SIM_INTEGER(ll, long long)
SIM_INTEGER(ull, unsigned long long)
#undef SIM_INTEGER

__forceinline__ __half2 make_half2(__half low, __half high) { return {low, high}; }
__forceinline__ __half2 __halves2half2(__half low, __half high) { return {low, high}; }
__forceinline__ __half2 __half2half2(__half x) { return {x, x}; }
__forceinline__ __half2 __float2half2_rn(float x) { return {x, x}; }
__forceinline__ __half2 __floats2half2_rn(float low, float high) { return {low, high}; }
__forceinline__ __half2 __float22half2_rn(float2 pair) { return {pair.x, pair.y}; }
__forceinline__ float2 __half22float2(__half2 pair) { return make_float2(pair.x, pair.y); }

__forceinline__ __half __low2half(__half2 pair) { return pair.x; }
__forceinline__ __half __high2half(__half2 pair) { return pair.y; }
__forceinline__ __half2 __low2half2(__half2 pair) { return {pair.x, pair.x}; }
__forceinline__ __half2 __high2half2(__half2 pair) { return {pair.y, pair.y}; }
__forceinline__ __half2 __lows2half2(__half2 a, __half2 b) { return {a.x, b.x}; }
__forceinline__ __half2 __highs2half2(__half2 a, __half2 b) { return {a.y, b.y}; }
