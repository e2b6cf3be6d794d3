// copy and fill: moving elements between any two layouts, with a cast where the dtypes differ.
#include "families.h"
#include "loops.h"
#include "transpose.h"

namespace needle::NEEDLE_TARGET {

namespace {

constexpr int64_t grain_bytes = 131072;
constexpr int64_t short_columns = 64;  // rows of fewer are short

// ---- blocks of items that are only moved

#if defined(__AVX2__)
// Lane index[i] of a, or, from the number of lanes on, of b.
template <class Item>
inline Vec<Item> pick(Vec<Item> a, Vec<Item> index, Vec<Item> b)
{
#if defined(__AVX512F__)
    if constexpr (sizeof(Item) == 4)
        return (Vec<Item>)_mm512_permutex2var_epi32((__m512i)a, (__m512i)index, (__m512i)b);
    else
        return (Vec<Item>)_mm512_permutex2var_epi64((__m512i)a, (__m512i)index, (__m512i)b);
#else
    Vec<int32_t> words = (Vec<int32_t>)index;
    if constexpr (sizeof(Item) == 8)  // a lane is two words, the low one first
        words = (Vec<int32_t>)((index * 2) | (index * 2 + 1) << 32);
    auto from = [&](Vec<Item> v) {
        return (Vec<Item>)_mm256_permutevar8x32_epi32((__m256i)v, (__m256i)words);
    };
    return index < lanes<Item> ? from(a) : from(b);
#endif
}

// The first n lanes, n <= 0: none.
template <class Item>
inline Vec<Item> load_up_to(const Item* p, int64_t n)
{
    return n >= lanes<Item> ? load(p) : load_first(p, max64(n, 0));
}

// Whole vectors of a run, its last one, or part of one.
enum class Spaced { inside, last, part };

// p[0], p[stride], ...: the first n lanes, 0 < n <= lanes; others are arbitrary. Each part of what
// the run covers, a vector, gives the lanes whose items it holds. Inside a run every part is there;
// of its last vector the last part ends where the run does.
template <int stride, Spaced place, class Item>
inline Vec<Item> load_spaced(const Item* p, int64_t n = lanes<Item>)
{
    constexpr int width = lanes<Item>, last = (width - 1) * stride + 1 - width;
    constexpr bool whole = place != Spaced::part;
    int64_t covered = (n - 1) * stride + 1;
    Vec<Item> found = whole ? load(p) : load_up_to(p, covered);
#pragma GCC unroll 4
    for (int part = 1; part < stride; ++part) {
        const int start = place == Spaced::last && part + 1 == stride ? last : part * width;
        Vec<Item> index;
        for (int lane = 0; lane < width; ++lane) {
            int at = lane * stride - start;
            int before = part == 1 && at < 0 ? lane * stride : lane;
            index[lane] = static_cast<Item>(at >= 0 && at < width ? width + at : before);
        }
        Vec<Item> next = whole ? load(p + start) : load_up_to(p + start, covered - start);
        found = pick<Item>(found, index, next);
    }
    return found;
}

// Every `stride`-th item. What follows is asked for: a Zen 5 does not read far enough ahead by
// itself where each line is one load.
template <int stride, class Item>
void pick_items(Item* out, const Item* in, int64_t n)
{
    constexpr int width = lanes<Item>;
    constexpr int64_t line = 64 / static_cast<int64_t>(sizeof(Item)), ahead = 32 * line;
    int64_t i = 0;
    for (; i + width < n; i += width) {
        const Item* p = in + i * stride;
#pragma GCC unroll 4
        for (int64_t at = 0; at < stride * width; at += line) __builtin_prefetch(p + ahead + at);
        store(out + i, load_spaced<stride, Spaced::inside>(p));
    }
    if (i + width == n)
        store(out + i, load_spaced<stride, Spaced::last>(in + i * stride));
    else if (i < n)
        store_first(out + i, load_spaced<stride, Spaced::part>(in + i * stride, n - i), n - i);
}

// in[0], in[-1], ...
template <class Item>
void reverse_items(Item* out, const Item* in, int64_t n)
{
    constexpr int width = lanes<Item>;
    Vec<Item> backwards;
    for (int lane = 0; lane < width; ++lane) backwards[lane] = static_cast<Item>(width - 1 - lane);
    int64_t i = 0;
    for (; i + width <= n; i += width) {
        Vec<Item> items = load(in - i - (width - 1));
        store(out + i, pick<Item>(items, backwards, items));
    }
    for (; i < n; ++i) out[i] = in[-i];
}
#endif

template <class Item>
void move_row(Item* out, int64_t out_stride, const Item* in, int64_t in_stride, int64_t n)
{
#if defined(__AVX2__)
    if constexpr (sizeof(Item) > 1)
        if (out_stride == 1) {
            if (in_stride == -1) return reverse_items(out, in, n);
            if (in_stride == 2) return pick_items<2>(out, in, n);
            if (in_stride == 3) return pick_items<3>(out, in, n);
            if (in_stride == 4) return pick_items<4>(out, in, n);
        }
#endif
    NEEDLE_VECTORIZE
    for (int64_t i = 0; i < n; ++i) out[i * out_stride] = in[i * in_stride];
}

template <class Item>
void fill_row(Item* out, Item value, int64_t n)
{
    if constexpr (sizeof(Item) == 1) {
        std::memset(out, value, static_cast<size_t>(n));
    } else {
        for (int64_t i = 0; i < n; ++i) out[i] = value;
    }
}

// out[r, c] = in[r, c], where out's columns and in's rows are contiguous, item by item: 64 rows by
// 8 columns at a time, so that a line of `in` is used while the cache holds it.
template <class Item>
void transpose_items(Item* out, int64_t out_row, const Item* in, int64_t in_column, int64_t rows,
                     int64_t columns)
{
    for (int64_t c0 = 0; c0 < columns; c0 += 8)
        for (int64_t r0 = 0; r0 < rows; r0 += 64)
            for (int64_t r = r0; r < min64(r0 + 64, rows); ++r)
                for (int64_t c = c0; c < min64(c0 + 8, columns); ++c)
                    out[r * out_row + c] = in[r + c * in_column];
}

// The same in squares of `s` items, of which the last end where the block does. `asks`: for the
// lines of the columns that come next. (Unrolled, that takes more time than it saves.)
template <int s, bool asks, class Item>
void transpose_squares(Item* out, int64_t out_row, const Item* in, int64_t in_column, int64_t rows,
                       int64_t columns, bool stream)
{
    for (int64_t c0 = 0; c0 < columns; c0 += s) {
        const int64_t c = min64(c0, columns - s);
        for (int64_t r0 = 0; r0 < rows; r0 += s) {
            const int64_t r = min64(r0, rows - s);
            const Item* from = in + r + c * in_column;
            Item* to = out + r * out_row + c;
            if constexpr (asks)
#pragma GCC unroll 1
                for (int64_t i = s; i < 2 * s; ++i) __builtin_prefetch(from + i * in_column, 0, 2);
            if constexpr (s == per_line<Item>)
                transpose_lines<s>(to, out_row, from, in_column, stream && c == c0);
            else
                transpose_pieces(to, out_row, from, in_column);
        }
    }
}

template <class Item>
void transpose_block(Item* out, int64_t out_row, const Item* in, int64_t in_column, int64_t rows,
                     int64_t columns, const CopyOptions& options)
{
    if constexpr (sizeof(Item) > 1) {
        constexpr int line = per_line<Item>, piece = per_piece<Item>, few = 4;
        if (rows >= line && columns >= line && options.asks_for_columns)
            return transpose_squares<line, true>(out, out_row, in, in_column, rows, columns, false);
        if (rows >= line && columns >= line)
            return transpose_squares<line, false>(out, out_row, in, in_column, rows, columns,
                                                  options.past_caches);
        if (out_row == columns && columns == 2) return interleave<2>(in, in_column, rows, out);
        if (out_row == columns && columns == 3) return interleave<3>(in, in_column, rows, out);
        if (out_row == columns && columns == 4) return interleave<4>(in, in_column, rows, out);
        if (rows <= few && in_column > 1 && in_column <= few) {
            for (int64_t r = 0; r < rows; ++r)
                move_row(out + r * out_row, 1, in + r, in_column, columns);
            return;
        }
        if (rows >= piece && columns >= piece)
            return transpose_squares<piece, false>(out, out_row, in, in_column, rows, columns,
                                                   false);
    }
    transpose_items(out, out_row, in, in_column, rows, columns);
}

// Each row of the dense `out` is one value of `in`. Rows are written as whole vectors, whose excess
// the next rows overwrite; only the last rows need care.
template <class Item>
void spread_column(Item* out, const Item* in, int64_t in_row, int64_t rows, int64_t columns)
{
    constexpr int64_t width = lanes<Item>;
    const int64_t excess = round_up(columns, width) - columns;
    const int64_t whole = sizeof(Item) > 1 ? max64(0, rows - ceil_div(excess, columns)) : 0;
    int64_t r = 0;
    for (; columns <= width && r < whole; ++r) store(out + r * columns, broadcast(in[r * in_row]));
    for (; r < whole; ++r) {
        Vec<Item> value = broadcast(in[r * in_row]);
        for (int64_t c = 0; c < columns; c += width) store(out + r * columns + c, value);
    }
    for (; r < rows; ++r) fill_row(out + r * columns, in[r * in_row], columns);
}

// A run of at least one vector.
template <class Item>
inline void copy_run(Item* out, const Item* in, const Ahead& ahead, int64_t n)
{
    constexpr int64_t width = lanes<Item>;
    ahead.fetch(in, n * static_cast<int64_t>(sizeof(Item)));
    if (n > 8 * width) {
        std::memcpy(out, in, static_cast<size_t>(n) * sizeof(Item));
        return;
    }
    for (int64_t i = 0; i + width <= n; i += width) store(out + i, load(in + i));
    if (n % width > 0) store(out + n - width, load(in + n - width));
}

template <class Item>
void copy_items(const BlockLayout& out, const BlockLayout& in, int64_t rows, int64_t columns,
                const CopyOptions& options)
{
    constexpr int64_t item = sizeof(Item);
    if (out.column_stride != item && out.row_stride == item) {
        BlockLayout turned_out{out.data, out.row_stride, out.column_stride};
        BlockLayout turned_in{in.data, in.row_stride, in.column_stride};
        return copy_items<Item>(turned_out, turned_in, columns, rows, options);
    }
    Item* to = reinterpret_cast<Item*>(out.data);
    const Item* from = reinterpret_cast<const Item*>(in.data);
    int64_t to_column = out.column_stride / item, to_row = out.row_stride / item;
    int64_t from_column = in.column_stride / item, from_row = in.row_stride / item;
    if (to_column == 1 && from_column == 0 && to_row == columns && columns < short_columns) {
        spread_column(to, from, from_row, rows, columns);
        return;
    }
    if (to_column == 1 && from_row == 1 && from_column != 0 && from_column != 1 && rows > 1) {
        transpose_block(to, to_row, from, from_column, rows, columns, options);
        return;
    }
    // No processor foresees where the next run begins: at least that one is asked for.
    const int64_t runs_ahead = max64(1, caches().gap_ahead / (columns * item));
    const bool asks = options.asks_for_rows && rows > 1 && from_row != columns;
    const Ahead ahead{asks ? runs_ahead * from_row * item : 0};
    auto move_rows = [&](auto ask_for) __attribute__((always_inline)) {
        for (int64_t r = 0; r < rows; ++r, to += to_row, from += from_row) {
            ask_for(to);
            if (to_column == 1 && from_column == 1 && columns >= lanes<Item>)
                copy_run(to, from, ahead, columns);
            else if (to_column == 1 && from_column == 1)
                move_row(to, 1, from, 1, columns);
            else if (to_column == 1 && from_column == 0)
                fill_row(to, *from, columns);
            else
                move_row(to, to_column, from, from_column, columns);
        }
    };
    const Ahead results{options.results_ahead, 0, false};
    if (options.results_ahead > 0 && to_column == 1)
        move_rows([&](Item* row)
                      __attribute__((always_inline)) { results.fetch(row, columns * item); });
    else
        move_rows([](Item*) {});
}

// The axis other than 0 along which `in` is contiguous, or 0 when axis 0 is as good.
int transposed_axis(const Nest<2>& nest)
{
    for (int axis = 1; axis < nest.rank; ++axis)
        if (nest.strides[1][axis] == nest.item[1] && nest.strides[1][0] != nest.item[1] &&
            nest.strides[1][0] != 0)
            return axis;
    return 0;
}

// Whether a transposed result, its rows contiguous and from cache lines on, goes past the caches:
// they could not keep it, and fetching each line before it is overwritten costs more than the copy.
bool streams_transposed(const Nest<2>& nest)
{
    constexpr int64_t least = int64_t{8} << 20;
    bool lines = reinterpret_cast<uintptr_t>(nest.data[0]) % 64 == 0;
    for (int axis = 1; axis < nest.rank; ++axis) lines = lines && nest.strides[0][axis] % 64 == 0;
    return lines && nest.strides[0][0] == nest.item[0] && nest.size() * nest.item[0] >= least;
}

// Whether the elementwise loop moves items faster: contiguous rows past the caches; a row of up to
// some KB that repeats, or a column of short rows, between which results are asked for; and items
// that lie far apart, which are asked for themselves.
bool moves_rows(const Nest<2>& nest)
{
    if (nest.strides[0][0] != nest.item[0]) return false;
    if (nest.strides[1][0] == 0) return nest.rank > 1 && nest.shape[0] < short_columns;
    if (nest.strides[1][0] != nest.item[1])
        return is_spaced(nest, 1) && transposed_axis(nest) == 0 && caches().spaced_ahead > 0;
    const bool repeats = nest.rank > 1 && nest.strides[1][1] == 0;
    return (repeats && nest.shape[0] * nest.item[0] <= most_short_row) || streams_results(nest);
}

void move_items(Nest<2>& nest)
{
    int64_t rows = 1, columns = grain_bytes / 8 / nest.item[0];
    int axis = transposed_axis(nest);
    CopyOptions options{.results_ahead = results_ahead(nest),
                        .asks_for_rows = !caches().large_third};
    if (axis > 0) {
        if (axis > 1) nest.swap_axes(1, axis);
        options.past_caches = streams_transposed(nest);
        options.asks_for_columns = !options.past_caches && has_far_columns(nest);
        columns = 64;
        rows = options.past_caches ? 1024 : 64;  // the lines of `in` in order: they are foreseen
        if (nest.shape[0] < columns) rows = 1024;
        if (nest.shape[1] < rows) columns = 1024;
    } else if (nest.rank > 1 && nest.shape[0] < 512) {
        columns = nest.shape[0];
        rows = min64(nest.shape[1], ceil_div(4096, columns));
    }
    int64_t item = nest.item[0];
    int64_t out_row = nest.rank > 1 ? nest.strides[0][1] : 0,
            in_row = nest.rank > 1 ? nest.strides[1][1] : 0;
    auto body = [&](char* const* data, int64_t block_rows, int64_t block_columns, NoScratch) {
        copy_block(item, {data[0], nest.strides[0][0], out_row},
                   {data[1], nest.strides[1][0], in_row}, block_rows, block_columns, options);
    };
    for_blocks<2>(nest, rows, columns, grain_bytes / item, body);
}

// ---- casts

struct Bool {
    uint8_t value;
};

// A float out of the integer's range, and NaN, become what the processor's conversion gives (the
// smallest integer on x86), as in NumPy.
template <class To, class From>
struct Cast {
    static To apply(From x) { return static_cast<To>(x); }
};
template <class From>
struct Cast<Bool, From> {
    static Bool apply(From x) { return {x != From(0)}; }
};
template <class To>
struct Cast<To, Bool> {
    static To apply(Bool x) { return static_cast<To>(x.value != 0); }
};
template <>
struct Cast<Bool, Bool> {
    static Bool apply(Bool x) { return x; }
};
template <>
struct Cast<uint8_t, float> {
    static uint8_t apply(float x) { return static_cast<uint8_t>(static_cast<int32_t>(x)); }
};
template <>
struct Cast<uint8_t, double> {
    static uint8_t apply(double x) { return static_cast<uint8_t>(static_cast<int32_t>(x)); }
};

template <class To, class From>
void cast_row(char* const* data, const bool*, int64_t n)
{
    To* out = reinterpret_cast<To*>(data[0]);
    const From* in = reinterpret_cast<const From*>(data[1]);
    NEEDLE_VECTORIZE
    for (int64_t i = 0; i < n; ++i) out[i] = Cast<To, From>::apply(in[i]);
}

template <class To>
RowFunction cast_from(DType dtype)
{
    static constexpr RowFunction rows[] = {cast_row<To, float>,   cast_row<To, double>,
                                           cast_row<To, int32_t>, cast_row<To, int64_t>,
                                           cast_row<To, uint8_t>, cast_row<To, Bool>};
    return rows[static_cast<int>(dtype)];
}

RowFunction cast_function(DType to, DType from)
{
    switch (to) {
        case DType::float32: return cast_from<float>(from);
        case DType::float64: return cast_from<double>(from);
        case DType::int32: return cast_from<int32_t>(from);
        case DType::int64: return cast_from<int64_t>(from);
        case DType::uint8: return cast_from<uint8_t>(from);
        default: return cast_from<Bool>(from);
    }
}

void run_copy(const Call& call)
{
    DType to = call.arrays[0].dtype, from = call.arrays[1].dtype;
    Nest<2> nest = make_nest<2>(call.arrays);
    if (nest.empty) return;
    if (to != from || moves_rows(nest))
        run_rows<2>(call.arrays, cast_function(to, from), grain_bytes / 4);
    else
        move_items(nest);
}

}  // namespace

void copy_block(int64_t item, const BlockLayout& out, const BlockLayout& in, int64_t rows,
                int64_t columns, const CopyOptions& options)
{
    switch (item) {
        case 1: copy_items<uint8_t>(out, in, rows, columns, options); break;
        case 4: copy_items<int32_t>(out, in, rows, columns, options); break;
        default: copy_items<int64_t>(out, in, rows, columns, options); break;
    }
    if (options.past_caches) end_stream();
}

void gather_row(int64_t item, char* out, const char* in, int64_t in_stride, int64_t n)
{
    auto move = [&](auto type) {
        using Item = decltype(type);
        const Item* items = reinterpret_cast<const Item*>(in);
        move_row(reinterpret_cast<Item*>(out), 1, items, in_stride / item, n);
    };
    switch (item) {
        case 1: move(uint8_t{}); break;
        case 4: move(int32_t{}); break;
        default: move(int64_t{}); break;
    }
}

void add_shape(Table& table)
{
    table[Kernel::copy] = {run_copy};
    table[Kernel::fill] = {run_copy};  // the value comes as an operand of stride 0
}

}  // namespace needle::NEEDLE_TARGET
