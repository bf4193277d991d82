// Rows of arrays: taken by number, and put into another order where they lie. A thread takes Unit's bytes at once.

struct alignas(16) Sixteen { uint64 x[2]; };

template <class Unit> DEVICE void take_rows(Unit *out, const Unit *array, const int *rows, int units) {
    const int64 i = (int64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < units) out[(int64)blockIdx.z * units + i] = array[(int64)rows[blockIdx.z] * units + i];
}

// grid: (units to move of a row's head, heads, groups). A row's new place is in its own group of rows.
template <class Unit> DEVICE void reorder_rows(
    Unit *array, const int *rows, int heads, int units, int stride, int group
) {
    DYNAMIC_SHARED(Sixteen, staged);
    Unit *mine = (Unit *)staged + threadIdx.x;
    const int64 i = (int64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= units) return;
    const int first = blockIdx.z * group;
    array += (int64)blockIdx.y * stride + i;
    const int64 row = (int64)heads * stride;
    for (int j = 0; j < group; ++j)
        if (rows[first + j] != first + j) mine[j * blockDim.x] = array[rows[first + j] * row];
    for (int j = 0; j < group; ++j)
        if (rows[first + j] != first + j) array[(first + j) * row] = mine[j * blockDim.x];
}

#define ROWS(bytes, Unit)                                                                                              \
    extern "C" __global__ void __launch_bounds__(256) take_rows_##bytes(                                               \
        Unit *out, const Unit *array, const int *rows, int units                                                       \
    ) {                                                                                                                \
        take_rows(out, array, rows, units);                                                                            \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256) reorder_rows_##bytes(                                            \
        Unit *array, const int *rows, int heads, int units, int stride, int group                                      \
    ) {                                                                                                                \
        reorder_rows(array, rows, heads, units, stride, group);                                                        \
    }

ROWS(16, Sixteen)
ROWS(8, uint64)
ROWS(4, uint32)
ROWS(2, unsigned short)
ROWS(1, uint8)
