// What the kernels of layer and group norm share.
#pragma once

#include "rows.cuh"

// Which weight and bias belong to an element: of its column, or of its channel.
struct Layout {
    long long groups, channels, area;
};
