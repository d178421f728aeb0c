// The order in which blocks make the tiles of a matrix, so that those at work at one time share what they
// load.
#pragma once

struct TilePlace {
    int row, column;  // counted in tiles
};

// The place of tile `number` of rows x columns. Row by row, a wave of blocks would take few rows of the left
// matrix, but all columns of the right one; so `group` rows are made together, column by column: a wave's
// part is nearer to a square, and more of what it loads is in the L2 cache.
__device__ __forceinline__ TilePlace tile_place(int number, int rows, int columns, int group) {
    const int first = number / (group * columns) * group;
    const int height = min(rows - first, group);
    number -= first * columns;
    return {first + number % height, number / height};
}
