// #include <cuda_bf16.h> on the simulator: __nv_bfloat16, the upper half of a float.
#pragma once
#include "float16.h"

using __nv_bfloat16 = sim::Float16<sim::Bfloat16>;
using __nv_bfloat162 = sim::Float16x2<sim::Bfloat16>;
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

__forceinline__ __nv_bfloat16 __float2bfloat16(float x) { return x; }
__forceinline__ __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
__forceinline__ __nv_bfloat16 __float2bfloat16_rz(float x) { return sim::toward_zero<sim::Bfloat16>(x); }
__forceinline__ __nv_bfloat16 __float2bfloat16_ru(float x) { return sim::up<sim::Bfloat16>(x); }
__forceinline__ __nv_bfloat16 __float2bfloat16_rd(float x) { return sim::down<sim::Bfloat16>(x); }
__forceinline__ __nv_bfloat16 __double2bfloat16(double x) { return x; }
__forceinline__ __nv_bfloat16 __int2bfloat16_rn(int x) { return x; }
__forceinline__ float __bfloat162float(__nv_bfloat16 x) { return x; }
__forceinline__ int __bfloat162int_rn(__nv_bfloat16 x) { return sim::saturate<int>(rintf(x)); }
__forceinline__ int __bfloat162int_rz(__nv_bfloat16 x) { return sim::saturate<int>(truncf(x)); }

__forceinline__ unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.pattern; }
__forceinline__ short __bfloat16_as_short(__nv_bfloat16 x) { return short(x.pattern); }
__forceinline__ __nv_bfloat16 __ushort_as_bfloat16(unsigned short pattern) { return __nv_bfloat16::of_bits(pattern); }
__forceinline__ __nv_bfloat16 __short_as_bfloat16(short pattern) { return __nv_bfloat16::of_bits(pattern); }

__forceinline__ __nv_bfloat162 make_bfloat162(__nv_bfloat16 low, __nv_bfloat16 high) { return {low, high}; }
__forceinline__ __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 low, __nv_bfloat16 high) { return {low, high}; }
__forceinline__ __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 x) { return {x, x}; }
__forceinline__ __nv_bfloat162 __float2bfloat162_rn(float x) { return {x, x}; }
__forceinline__ __nv_bfloat162 __floats2bfloat162_rn(float low, float high) { return {low, high}; }
__forceinline__ __nv_bfloat162 __float22bfloat162_rn(float2 pair) { return {pair.x, pair.y}; }
__forceinline__ float2 __bfloat1622float2(__nv_bfloat162 pair) { return make_float2(pair.x, pair.y); }

__forceinline__ __nv_bfloat16 __low2bfloat16(__nv_bfloat162 pair) { return pair.x; }
__forceinline__ __nv_bfloat16 __high2bfloat16(__nv_bfloat162 pair) { return pair.y; }
__forceinline__ __nv_bfloat162 __low2bfloat162(__nv_bfloat162 pair) { return {pair.x, pair.x}; }
__forceinline__ __nv_bfloat162 __high2bfloat162(__nv_bfloat162 pair) { return {pair.y, pair.y}; }
__forceinline__ __nv_bfloat162 __lows2bfloat162(__nv_bfloat162 a, __nv_bfloat162 b) { return {a.x, b.x}; }
__forceinline__ __nv_bfloat162 __highs2bfloat162(__nv_bfloat162 a, __nv_bfloat162 b) { return {a.y, b.y}; }
