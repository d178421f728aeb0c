# Planes, the layout of the *planes* rung of conv2d.pyx: copies of the source's channels that hold their
# padding too. In them every tap of every output of a correlation is at one distance from the output's place,
# and there are no borders. A horizontal step of s would leave gaps between the elements that neighbouring
# outputs read; so the columns of a row are sorted into s parts, column q into place q // s of part q % s.

cdef enum:
    PLANE_BYTES = 128 << 10      # of planes in a unit: a part of L2

# One pair of axes. Its taps are listed in the order (channel, u, v), with the rows u from top to bottom.
cdef struct Phase:
    Axis h, w
    Py_ssize_t taps
    Py_ssize_t *tap              # of each tap, the distance in the planes
    Py_ssize_t weights           # where its packed weights begin

cdef struct Planes:
    Py_ssize_t channels                           # of the source, in a group
    Py_ssize_t height, width                      # of the source
    Py_ssize_t step_h, step_w
    Py_ssize_t low_h, low_w                       # the source's position of the planes' first element
    Py_ssize_t rows, columns                      # of the planes, without what fills up a row
    Py_ssize_t part_size, row_size, plane_size    # in elements
    Py_ssize_t bands, band_rows                   # band_rows outputs of each phase
    Py_ssize_t row_phases, column_phases
    Phase *phase


# ---- geometry ----------------------------------------------------------------------------------------------


cdef Planes *plan_planes(const Conv *conv, Py_ssize_t channels, Py_ssize_t height, Py_ssize_t width,
                         Py_ssize_t row_phases, Py_ssize_t column_phases, bint forward) except NULL:
    """The layout of the planes, and the taps of each phase. To be freed."""
    cdef Py_ssize_t phases = row_phases * column_phases, index
    cdef Py_ssize_t *tap
    cdef Phase *phase
    cdef Planes *plan = <Planes *> allocate(
        sizeof(Planes) + phases * (sizeof(Phase) + channels * conv.KH * conv.KW * sizeof(Py_ssize_t)))
    plan.phase = <Phase *> (plan + 1)
    plan.row_phases, plan.column_phases = row_phases, column_phases
    plan.channels, plan.height, plan.width = channels, height, width
    for index in range(phases):
        phase = plan.phase + index
        if forward:
            phase.h = forward_axis(conv.H, conv.OH, conv.KH, conv.stride_h, conv.pad_h, conv.dil_h)
            phase.w = forward_axis(conv.W, conv.OW, conv.KW, conv.stride_w, conv.pad_w, conv.dil_w)
        else:
            phase.h = input_grad_axis(index // column_phases, conv.H, conv.OH, conv.KH, conv.stride_h,
                                      conv.pad_h, conv.dil_h)
            phase.w = input_grad_axis(index % column_phases, conv.W, conv.OW, conv.KW, conv.stride_w,
                                      conv.pad_w, conv.dil_w)
    lay_out_planes(plan, conv)
    tap = <Py_ssize_t *> (plan.phase + phases)
    for index in range(phases):
        list_plane_taps(plan, plan.phase + index, tap)
        tap += plan.phase[index].taps
    return plan


cdef void lay_out_planes(Planes *plan, const Conv *conv) noexcept nogil:
    """Planes that hold what any phase reads, and bands of which the planes fit into the cache."""
    cdef bint is_float = conv.dtype == cnp.NPY_FLOAT32
    cdef Py_ssize_t item = sizeof(float) if is_float else sizeof(double)
    cdef Py_ssize_t high_h, high_w, reach_h, reach_w, index, rows
    cdef Py_ssize_t slack = LANES_f32 if is_float else LANES_f64     # a vector may reach past the last column
    plan.step_h, plan.step_w = plan.phase[0].h.step, plan.phase[0].w.step
    plan.low_h = plan.low_w = 1
    high_h = high_w = 0                                              # empty intervals
    for index in range(plan.row_phases * plan.column_phases):
        widen(&plan.phase[index].h, &plan.low_h, &high_h)
        widen(&plan.phase[index].w, &plan.low_w, &high_w)
    reach_h, reach_w = max(0, high_h - plan.low_h), max(0, high_w - plan.low_w)
    # Phase 0 has the most outputs.
    plan.columns = (plan.phase[0].w.outputs - 1) * plan.step_w + reach_w + 1
    plan.part_size = ceil_divide(plan.columns, plan.step_w) + slack
    plan.row_size = plan.part_size * plan.step_w
    rows = PLANE_BYTES // item // max(1, plan.channels * plan.row_size)
    rows = max(1, (rows - reach_h) // plan.step_h)
    if conv.N * conv.groups < 2 * conv.threads:
        rows = min(rows, ceil_divide(plan.phase[0].h.outputs * conv.N * conv.groups, 2 * conv.threads))
    plan.bands = ceil_divide(plan.phase[0].h.outputs, max(1, rows))
    plan.band_rows = ceil_divide(plan.phase[0].h.outputs, plan.bands)
    plan.rows = (plan.band_rows - 1) * plan.step_h + reach_h + 1
    plan.plane_size = plan.rows * plan.row_size


cdef inline void widen(const Axis *axis, Py_ssize_t *low, Py_ssize_t *high) noexcept nogil:
    """Lets ``low`` to ``high`` take in the places that output 0 of an axis reads."""
    cdef Py_ssize_t last = axis.first_offset + (axis.taps - 1) * axis.offset_step
    if axis.taps == 0:
        return
    if low[0] > high[0]:
        low[0] = high[0] = last
    low[0] = min(low[0], axis.first_offset, last)
    high[0] = max(high[0], axis.first_offset, last)


cdef void list_plane_taps(const Planes *plan, Phase *phase, Py_ssize_t *tap) noexcept nogil:
    cdef Py_ssize_t c, u, v, row, column
    phase.tap, phase.taps = tap, plan.channels * phase.h.taps * phase.w.taps
    for c in range(plan.channels):
        for u in range(phase.h.taps):
            row = phase.h.first_offset + from_top(&phase.h, u) * phase.h.offset_step - plan.low_h
            for v in range(phase.w.taps):
                column = phase.w.first_offset + v * phase.w.offset_step - plan.low_w
                tap[0] = c * plan.plane_size + row * plan.row_size \
                    + column % plan.step_w * plan.part_size + column // plan.step_w
                tap += 1


cdef inline Py_ssize_t from_top(const Axis *axis, Py_ssize_t u) noexcept nogil:
    """The u-th tap in the order of their places."""
    return u if axis.offset_step >= 0 else axis.taps - 1 - u


cdef void copy_planes(const Planes *plan, const real *source, Py_ssize_t first_output,
                      real *planes) noexcept nogil:
    """What the outputs from row ``first_output`` on read. What lies behind the columns stays as it is; so do
    rows of padding where there is one band, for they are the same each time, and zero from the start."""
    cdef Py_ssize_t c, r, first = first_output * plan.step_h + plan.low_h
    for c in range(plan.channels):
        for r in range(plan.rows):
            if 0 <= first + r < plan.height:
                copy_plane_row(plan, source + (c * plan.height + first + r) * plan.width, planes)
            elif plan.bands > 1:
                memset(planes, 0, plan.row_size * sizeof(real))
            planes += plan.row_size


cdef inline void copy_plane_row(const Planes *plan, const real *source, real *row) noexcept nogil:
    """The columns that exist; the others of a row are zero from the start."""
    cdef Py_ssize_t first = max(0, -plan.low_w), last = min(plan.columns, plan.width - plan.low_w)
    cdef Py_ssize_t part, place, begin, end, step = plan.step_w
    if first >= last:
        return
    if step == 1:
        copy_elements(last - first, source + (first + plan.low_w), row + first)
        return
    if step == 2:
        split_row(last - first, source + (first + plan.low_w), row + first % 2 * plan.part_size + first // 2,
                  row + (first + 1) % 2 * plan.part_size + (first + 1) // 2)
        return
    for part in range(step):
        begin = ceil_divide(first - part, step) if first > part else 0
        end = ceil_divide(last - part, step) if last > part else 0
        for place in range(begin, end):
            row[place] = source[place * step + (part + plan.low_w)]
        row += plan.part_size
