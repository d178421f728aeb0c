# How an elementwise function walks over arrays of any strides, which broadcast to the shape of its output.
#
# The output is C-contiguous. Neighbouring dimensions that are one to every operand are merged: what is left
# are *columns* (the innermost dimension), *rows*, and outer dimensions. The work is cut into tiles of rows and
# columns. Where an operand's tile lies in one piece, or is made of long rows that do, the function reads it in
# place. Otherwise (a transposed view, short rows that lie apart, a column that is broadcast) it is copied into a
# buffer in the first-level cache, which holds it for the next tile too if that is the same: a short row that is
# broadcast to a matrix is copied once.

cdef enum:
    MAX_DIMS = 64  # NumPy's own limit
    MAX_INPUTS = 4
    BUFFER_DOUBLES = 1024  # 8 KB, the buffer of an operand: some of them fit the first-level cache
    WIDE = 64  # columns from which on a function is called for each row where that spares a copy of numbers,
    WIDE_VIEW = 128  # of rows that lie apart,
    WIDE_BROADCAST = 1024  # of a row that is broadcast: the copy serves many tiles
    UNBUFFERED = 8  # tiles are so many times larger where nothing is copied
    TRANSPOSED_COLUMNS = 64  # as many cache lines are read in turns

ctypedef void (*function)(void *out, const void *const *inputs, int numbers, Py_ssize_t n) noexcept nogil

cdef extern from *:
    """
    #include <string.h>
    #include "transpose.h"

    #define REAL unsigned char
    #define NAME(f) f##_u8
    #include "copy_tile.h"

    #define REAL float
    #define NAME(f) f##_f32
    #define TRANSPOSES
    #include "copy_tile.h"

    #define REAL double
    #define NAME(f) f##_f64
    #define TRANSPOSES
    #include "copy_tile.h"
    """
    void copy_tile_u8(unsigned char *to, Py_ssize_t to_row, const unsigned char *source, Py_ssize_t row,
                      Py_ssize_t column, Py_ssize_t rows, Py_ssize_t columns) noexcept nogil
    void copy_tile_f32(float *to, Py_ssize_t to_row, const float *source, Py_ssize_t row,
                       Py_ssize_t column, Py_ssize_t rows, Py_ssize_t columns) noexcept nogil
    void copy_tile_f64(double *to, Py_ssize_t to_row, const double *source, Py_ssize_t row,
                       Py_ssize_t column, Py_ssize_t rows, Py_ssize_t columns) noexcept nogil


cdef struct Operand:
    char *data
    Py_ssize_t itemsize
    Py_ssize_t strides[MAX_DIMS]  # in elements, the innermost first


cdef struct Tiling:
    int inputs, dims
    int arrays  # the inputs after so many are numbers, which the function reads in place
    bint takes_number  # whether one of the function's two inputs may be a number
    Operand operands[1 + MAX_INPUTS]  # the output, then the inputs
    Py_ssize_t sizes[MAX_DIMS]  # the innermost first
    Py_ssize_t rows, columns  # of a tile
    Py_ssize_t row_tiles, column_tiles, tiles  # their numbers


cdef struct Place:
    Py_ssize_t column, row, outer  # of a tile among the tiles: outer dimensions are counted as one


cdef int add_operand(Tiling *tiling, int at, cnp.ndarray array, cnp.ndarray out) except -1:
    """Operand ``at`` is ``array``, broadcast to the shape of ``out``: its strides, the innermost first."""
    cdef Operand *operand = &tiling.operands[at]
    cdef int leading = cnp.PyArray_NDIM(out) - cnp.PyArray_NDIM(array), d
    cdef Py_ssize_t size, stride
    operand.data = <char *>cnp.PyArray_DATA(array)
    operand.itemsize = cnp.PyArray_ITEMSIZE(array)
    for d in range(cnp.PyArray_NDIM(out)):
        size = stride = 0
        if d >= leading:
            size = cnp.PyArray_DIM(array, d - leading)
            stride = cnp.PyArray_STRIDE(array, d - leading) // operand.itemsize
        if d >= leading and size != 1 and size != cnp.PyArray_DIM(out, d) or leading < 0:
            raise ValueError(
                f"kernel input of shape {(<object>array).shape} does not broadcast to "
                f"{(<object>out).shape}"
            )
        operand.strides[cnp.PyArray_NDIM(out) - 1 - d] = stride if size > 1 else 0
    return 0


cdef void add_number(Tiling *tiling, int at, void *number, Py_ssize_t itemsize, int dims) noexcept:
    """Operand ``at`` is a number, broadcast."""
    cdef int d
    tiling.operands[at].data = <char *>number
    tiling.operands[at].itemsize = itemsize
    for d in range(dims):
        tiling.operands[at].strides[d] = 0


cdef void merge_dims(Tiling *tiling, cnp.ndarray out) noexcept:
    """Merge the dimensions of ``out`` where every operand steps through two as through one."""
    cdef int d, k, kept = 0
    cdef Py_ssize_t size
    cdef bint same
    for d in range(cnp.PyArray_NDIM(out)):
        size = cnp.PyArray_DIM(out, cnp.PyArray_NDIM(out) - 1 - d)
        if size == 1:
            continue
        same = kept > 0
        for k in range(1 + tiling.inputs):
            same = same and (
                tiling.operands[k].strides[d] == tiling.operands[k].strides[kept - 1] * tiling.sizes[kept - 1]
            )
        if same:
            tiling.sizes[kept - 1] *= size
            continue
        tiling.sizes[kept] = size
        for k in range(1 + tiling.inputs):
            tiling.operands[k].strides[kept] = tiling.operands[k].strides[d]
        kept += 1
    for d in range(kept, 2):  # there are always columns and rows
        tiling.sizes[d] = 1
        for k in range(1 + tiling.inputs):
            tiling.operands[k].strides[d] = 0
    tiling.dims = max(kept, 2)


cdef inline bint is_number(const Tiling *tiling, int at, Py_ssize_t columns) noexcept nogil:
    """Whether operand ``at`` is, for each row of a tile, a number that the function may take as it is."""
    return tiling.takes_number and at > 0 and tiling.operands[at].strides[0] == 0 and columns >= WIDE


cdef inline bint is_row(const Operand *operand, Py_ssize_t columns) noexcept nogil:
    """Whether its rows are one piece each, and long enough for the function to be called for each where it lies."""
    return operand.strides[0] == 1 and columns >= (WIDE_VIEW if operand.strides[1] else WIDE_BROADCAST)


cdef void choose_tile(Tiling *tiling) noexcept:
    """The size of a tile, and with it the number of tiles."""
    cdef Py_ssize_t buffer = BUFFER_DOUBLES, columns = tiling.sizes[0], rows = tiling.sizes[1], outer = 1
    cdef bint copied = False, transposed = False, has_number = False
    cdef bint by_rows = False  # an operand before is one of rows: run_tiles then calls the function for each
    cdef int k, d
    cdef Operand *operand
    if tiling.operands[0].itemsize != 8:
        buffer = 2 * BUFFER_DOUBLES
    for k in range(1 + tiling.inputs):
        operand = &tiling.operands[k]
        if operand.itemsize == 8:
            buffer = BUFFER_DOUBLES
        if is_number(tiling, k, columns) and not has_number:
            has_number, by_rows = True, operand.strides[1] != 0
        elif is_row(operand, columns):
            by_rows = by_rows or (rows > 1 and operand.strides[1] != columns)
        elif operand.strides[0] != 1 or (rows > 1 and operand.strides[1] != columns and not by_rows):
            copied = True
        transposed = transposed or (operand.strides[0] > operand.strides[1] > 0 and columns > 1 and rows > 1)
    if not copied:
        buffer *= UNBUFFERED
    tiling.columns = min(columns, TRANSPOSED_COLUMNS if transposed else buffer)
    tiling.rows = max(1, min(rows, buffer // tiling.columns))
    if tiling.columns < columns and not transposed:
        tiling.rows = 1  # so that the output's tile is one piece
    tiling.column_tiles = ceil_divide(columns, tiling.columns)
    tiling.row_tiles = ceil_divide(rows, tiling.rows)
    for d in range(2, tiling.dims):
        outer *= tiling.sizes[d]
    tiling.tiles = tiling.column_tiles * tiling.row_tiles * outer


cdef void copy_tile(
    char *to, Py_ssize_t to_row, const Operand *operand, const char *source, Py_ssize_t rows,
    Py_ssize_t columns,
) noexcept nogil:
    cdef Py_ssize_t row = operand.strides[1], column = operand.strides[0]
    if operand.itemsize == 4:
        copy_tile_f32(<float *>to, to_row, <const float *>source, row, column, rows, columns)
    elif operand.itemsize == 8:
        copy_tile_f64(<double *>to, to_row, <const double *>source, row, column, rows, columns)
    else:
        copy_tile_u8(<unsigned char *>to, to_row, <const unsigned char *>source, row, column, rows, columns)


cdef Place place_of(const Tiling *tiling, Py_ssize_t tile) noexcept nogil:
    cdef Place place
    cdef Py_ssize_t rows = tile // tiling.column_tiles
    place.column = tile % tiling.column_tiles
    place.row, place.outer = rows % tiling.row_tiles, rows // tiling.row_tiles
    return place


cdef inline void advance(Place *place, const Tiling *tiling) noexcept nogil:
    """To the next tile: without a division, which takes as long as dozens of elements."""
    place.column += 1
    if place.column == tiling.column_tiles:
        place.column = 0
        place.row += 1
        if place.row == tiling.row_tiles:
            place.row = 0
            place.outer += 1


cdef inline char *begin_of(const Operand *operand, const Tiling *tiling, const Place *place) noexcept nogil:
    """Where the operand's part of a tile begins."""
    cdef Py_ssize_t outer = place.outer, offset
    cdef int d
    offset = place.column * tiling.columns * operand.strides[0] + place.row * tiling.rows * operand.strides[1]
    for d in range(2, tiling.dims):
        offset += outer % tiling.sizes[d] * operand.strides[d]
        outer //= tiling.sizes[d]
    return operand.data + offset * operand.itemsize


cdef void run_tiles(const Tiling *tiling, function f, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Compute the tiles ``begin`` to ``end``."""
    cdef double buffers[MAX_INPUTS][BUFFER_DOUBLES]
    cdef const char *held[MAX_INPUTS]  # what each buffer holds: where it was copied from, how many rows
    cdef Py_ssize_t held_rows[MAX_INPUTS]
    cdef Py_ssize_t held_columns[MAX_INPUTS]
    cdef const void *inputs[MAX_INPUTS]
    cdef Py_ssize_t steps[MAX_INPUTS]
    cdef Py_ssize_t tile, rows, columns, row
    cdef Place place = place_of(tiling, begin)
    cdef const Operand *operand
    cdef const Operand *out = &tiling.operands[0]
    cdef char *to
    cdef int k, numbers
    cdef bint whole
    for k in range(MAX_INPUTS):
        held[k] = NULL
    for tile in range(begin, end):
        columns = min(tiling.columns, tiling.sizes[0] - place.column * tiling.columns)
        rows = min(tiling.rows, tiling.sizes[1] - place.row * tiling.rows)
        to = begin_of(out, tiling, &place)
        whole = rows == 1 or columns == out.strides[1]
        numbers = 0
        for k in range(tiling.inputs):
            operand = &tiling.operands[1 + k]
            inputs[k] = begin_of(operand, tiling, &place)
            steps[k] = operand.strides[1]
            if k >= tiling.arrays:
                continue
            if is_number(tiling, 1 + k, columns) and numbers == 0:
                numbers = 1 << k
                whole = whole and (rows == 1 or steps[k] == 0)
                continue
            if operand.strides[0] != 1 and columns > 1 or (
                whole and rows > 1 and steps[k] != columns and not is_row(operand, columns)
            ):
                if held[k] != inputs[k] or held_rows[k] < rows or held_columns[k] != columns:
                    held[k], held_rows[k], held_columns[k] = <const char *>inputs[k], rows, columns
                    copy_tile(<char *>buffers[k], columns, operand, held[k], rows, columns)
                inputs[k] = <const void *>buffers[k]
                steps[k] = columns
            whole = whole and (rows == 1 or steps[k] == columns)
        advance(&place, tiling)
        if whole:
            f(to, inputs, numbers, rows * columns)
            continue
        for row in range(rows):
            f(to, inputs, numbers, columns)
            to += out.strides[1] * out.itemsize
            for k in range(tiling.inputs):
                inputs[k] = <const char *>inputs[k] + steps[k] * tiling.operands[1 + k].itemsize


cdef void copy_tiles(const Tiling *tiling, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Copy the tiles ``begin`` to ``end`` of the only input to the output.

    Transposed tiles go through a buffer: rows of the output are then written in whole cache lines. Where they
    are a multiple of a page apart, few of their lines fit the first-level cache at a time.
    """
    cdef double buffer[BUFFER_DOUBLES]
    cdef Py_ssize_t tile, rows, columns
    cdef Place place = place_of(tiling, begin)
    cdef const Operand *out = &tiling.operands[0]
    cdef const Operand *operand = &tiling.operands[1]
    cdef const char *source
    cdef char *to
    cdef Operand buffered
    buffered.data, buffered.itemsize, buffered.strides[0] = <char *>buffer, out.itemsize, 1
    for tile in range(begin, end):
        columns = min(tiling.columns, tiling.sizes[0] - place.column * tiling.columns)
        rows = min(tiling.rows, tiling.sizes[1] - place.row * tiling.rows)
        source, to = begin_of(operand, tiling, &place), begin_of(out, tiling, &place)
        advance(&place, tiling)
        if operand.strides[1] == 1 and operand.strides[0] > 1:
            buffered.strides[1] = columns
            copy_tile(buffered.data, columns, operand, source, rows, columns)
            copy_tile(to, out.strides[1], &buffered, buffered.data, rows, columns)
        else:
            copy_tile(to, out.strides[1], operand, source, rows, columns)
