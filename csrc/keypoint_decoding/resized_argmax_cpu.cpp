// The largest pixel of heatmaps resized by bicubic interpolation, found without resizing them: branch and
// bound.
//
// Between four neighbouring cells the interpolant is a bicubic polynomial, which nowhere exceeds the largest
// of its Bernstein coefficients. Those of a whole square of cells need only the values and their central
// differences, so most squares are out at once; in the few others the search halves the range of pixels,
// bounds each half by its own coefficients, and computes pixels only where they may be the largest. A box of
// fewer pixels than squares is resized after all.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <tuple>
#include <utility>
#include <vector>

namespace mrcnn_ext {
namespace {

constexpr int64_t kMargin = 2;       // cells around a heatmap, copies of its border
constexpr int64_t kSmallRange = 16;  // pixels: as soon computed as bounded
constexpr int64_t kFewPixels = 2;    // times these are at most the cells: as soon computed as bounded
constexpr int64_t kLanes = 16;       // of a maximum: enough for any vector register

// One axis of a resized heatmap. Square s lies between the padded cells s + 1 and s + 2.
template <typename T>
class Axis {
 public:
  Axis(int64_t cells, int64_t pixels)
      : scale_(static_cast<T>(cells) / static_cast<T>(pixels)), first_(cells + 2) {
    for (int64_t square = 0; square <= cells; ++square) {
      // About where the first pixel should be, then exactly, as the pixels' own positions are rounded.
      int64_t pixel = std::clamp<int64_t>(std::llround((square - T(0.5)) / scale_ - T(0.5)), 0, pixels);
      while (pixel > 0 && square_of(pixel - 1) >= square) --pixel;
      while (pixel < pixels && square_of(pixel) < square) ++pixel;
      first_[square] = pixel;
    }
    first_[cells + 1] = pixels;
  }

  int64_t squares() const { return static_cast<int64_t>(first_.size()) - 1; }
  std::pair<int64_t, int64_t> pixels(int64_t square) const { return {first_[square], first_[square + 1]}; }
  T fraction(int64_t pixel, int64_t square) const { return position(pixel) - static_cast<T>(square - 1); }

 private:
  T position(int64_t pixel) const { return scale_ * (static_cast<T>(pixel) + T(0.5)) - T(0.5); }
  int64_t square_of(int64_t pixel) const { return static_cast<int64_t>(std::floor(position(pixel))) + 1; }

  T scale_;
  std::vector<int64_t> first_;  // pixel of every square
};

// Weights of four cells at t between the second and the third: cubic convolution with a = -0.75 (Keys 1981).
template <typename T>
std::array<T, 4> cubic_weights(T t) {
  const auto near = [](T d) { return (T(1.25) * d - T(2.25)) * d * d + 1; };
  const auto far = [](T d) { return ((T(-0.75) * d + T(3.75)) * d - 6) * d + 3; };
  return {far(t + 1), near(t), near(1 - t), far(2 - t)};
}

template <typename T>
T weighted(const std::array<T, 4>& weights, const T* values, int64_t stride) {
  return weights[0] * values[0] + weights[1] * values[stride] + weights[2] * values[2 * stride] +
         weights[3] * values[3 * stride];
}

// Rows: the Bernstein coefficients of the cubic over [from, to] as combinations of the four cells.
template <typename T>
using Basis = std::array<std::array<T, 4>, 4>;

template <typename T>
Basis<T> bernstein_basis(T from, T to) {
  Basis<T> basis;
  for (int i = 0; i < 4; ++i) {
    // The blossom at (from, .., to, ..) in terms of the coefficients c of [0, 1] ...
    const T u = i > 2 ? to : from, v = i > 1 ? to : from, w = i > 0 ? to : from;
    const T c0 = (1 - u) * (1 - v) * (1 - w);
    const T c1 = u * (1 - v) * (1 - w) + (1 - u) * v * (1 - w) + (1 - u) * (1 - v) * w;
    const T c2 = u * v * (1 - w) + u * (1 - v) * w + (1 - u) * v * w;
    const T c3 = u * v * w;
    // ... which are p1, p1 + (p2 - p0) / 4, p2 - (p3 - p1) / 4, p2.
    basis[i] = {T(-0.25) * c1, c0 + c1 + T(0.25) * c2, T(0.25) * c1 + c2 + c3, T(-0.25) * c2};
  }
  return basis;
}

// Written so that compilers find the vector instruction; NaN is never larger.
template <typename T>
T larger(T a, T b) {
  return a > b ? a : b;
}

// The largest f(value) of `count` values, at least `floor`.
template <typename T, typename F>
T largest(const T* values, int64_t count, T floor, F f) {
  std::array<T, kLanes> lanes;
  lanes.fill(floor);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] = larger(f(values[i + lane]), lanes[lane]);
  }
  for (; i < count; ++i) lanes[0] = larger(f(values[i]), lanes[0]);
  return *std::max_element(lanes.begin(), lanes.end());
}

struct Range {
  int64_t begin;
  int64_t end;
  int64_t size() const { return end - begin; }
};

template <typename T>
class Search {
 public:
  Search(int64_t height, int64_t width)
      : height_(height),
        width_(width),
        stride_(width + 2 * kMargin),
        padded_((height + 2 * kMargin) * stride_),
        bounds_((height + 2) * (width + 2)),
        row_(width + 2) {}

  void run(const T* heatmap, const Axis<T>& ys, const Axis<T>& xs) {
    ys_ = &ys;
    xs_ = &xs;
    best_ = kLowest;
    y_ = x_ = 0;
    load(heatmap);
    const int64_t pixels = ys.pixels(height_).second * xs.pixels(width_).second;
    if (kFewPixels * pixels <= height_ * width_) return visit_all();
    bound_cells(heatmap);
    // A first good pixel, then every square that may have a better one, the most promising first.
    const int64_t bound_stride = width_ + 2;
    const T top_bound = largest(bounds_.data(), bounds_.size(), kLowest, [](T v) { return v; });
    const int64_t top = std::find(bounds_.begin(), bounds_.end(), top_bound) - bounds_.begin();
    const int64_t top_y = top / bound_stride, top_x = top % bound_stride;
    for (int64_t y = std::max<int64_t>(top_y - 1, 0); y <= std::min(top_y, height_); ++y) {
      for (int64_t x = std::max<int64_t>(top_x - 1, 0); x <= std::min(top_x, width_); ++x)
        search_square(y, x);
    }
    squares_.clear();
    for (int64_t y = 0; y <= height_; ++y) {
      const T* north = bounds_.data() + y * bound_stride;
      const T* south = north + bound_stride;
      for (int64_t x = 0; x < bound_stride; ++x) row_[x] = larger(north[x], south[x]);
      const T limit = best_ + tolerance_;
      if (!(largest(row_.data(), bound_stride, kLowest, [](T v) { return v; }) > limit)) continue;
      for (int64_t x = 0; x <= width_; ++x) {
        const T bound = larger(row_[x], row_[x + 1]);
        if (bound > limit) squares_.push_back({bound, y * (width_ + 1) + x});
      }
    }
    std::sort(squares_.begin(), squares_.end(),
              [](const auto& a, const auto& b) { return a.first > b.first; });
    for (const auto& [bound, square] : squares_) {
      if (bound <= best_ + tolerance_) break;
      search_square(square / (width_ + 1), square % (width_ + 1));
    }
  }

  int64_t y() const { return y_; }
  int64_t x() const { return x_; }
  T value() const { return best_; }

 private:
  void load(const T* heatmap) {
    for (int64_t y = 0; y < height_ + 2 * kMargin; ++y) {
      const T* from = heatmap + std::clamp<int64_t>(y - kMargin, 0, height_ - 1) * width_;
      T* to = padded_.data() + y * stride_;
      std::copy(from, from + width_, to + kMargin);
      std::fill(to, to + kMargin, from[0]);
      std::fill(to + kMargin + width_, to + stride_, from[width_ - 1]);
    }
  }

  void bound_cells(const T* heatmap) {
    for (int64_t y = 0; y < height_ + 2; ++y) {
      const T* cell = padded_.data() + (y + 1) * stride_ + 1;
      const T* north = cell - stride_;
      const T* south = cell + stride_;
      T* bound = bounds_.data() + y * (width_ + 2);
      for (int64_t x = 0; x < width_ + 2; ++x) {
        const T dx = (cell[x + 1] - cell[x - 1]) / 4;
        const T dy = (south[x] - north[x]) / 4;
        const T dxy = (south[x + 1] - north[x + 1] - south[x - 1] + north[x - 1]) / 16;
        // The largest of cell + a dx + b dy + a b dxy for a, b in [-1, 1]: every coefficient which this cell
        // gives to the squares around it.
        bound[x] = cell[x] + larger(std::abs(dx + dy) + dxy, std::abs(dx - dy) - dxy);
      }
    }
    const T magnitude = largest(heatmap, height_ * width_, T(0), [](T v) { return std::abs(v); });
    tolerance_ = 8 * std::numeric_limits<T>::epsilon() * magnitude;
  }

  // Every pixel, row by row: where there are few it is sooner done than bounding the squares.
  void visit_all() {
    const int64_t pixels = xs_->pixels(width_).second;
    columns_.resize(pixels);
    for (int64_t square = 0; square <= width_; ++square) {
      const auto [left, right] = xs_->pixels(square);
      for (int64_t x = left; x < right; ++x) columns_[x] = {square, cubic_weights(xs_->fraction(x, square))};
    }
    across_.resize(4 * pixels);  // the four rows around a square, resized
    values_.resize(pixels);
    for (int64_t square = 0; square <= height_; ++square) {
      const auto [top, bottom] = ys_->pixels(square);
      if (top == bottom) continue;
      for (int i = 0; i < 4; ++i) {
        const T* row = padded_.data() + (square + i) * stride_;
        for (int64_t x = 0; x < pixels; ++x)
          across_[i * pixels + x] = weighted(columns_[x].second, row + columns_[x].first, 1);
      }
      for (int64_t y = top; y < bottom; ++y) {
        const std::array<T, 4> weights = cubic_weights(ys_->fraction(y, square));
        for (int64_t x = 0; x < pixels; ++x) values_[x] = weighted(weights, across_.data() + x, pixels);
        const T value = largest(values_.data(), pixels, kLowest, [](T v) { return v; });
        if (value > best_) {
          best_ = value;
          y_ = y;
          x_ = std::find(values_.begin(), values_.end(), value) - values_.begin();
        }
      }
    }
  }

  void search_square(int64_t y, int64_t x) {
    const auto [top, bottom] = ys_->pixels(y);
    const auto [left, right] = xs_->pixels(x);
    if (top == bottom || left == right) return;
    square_y_ = y;
    square_x_ = x;
    cells_ = padded_.data() + y * stride_ + x;
    search_range({top, bottom}, {left, right});
  }

  void search_range(Range ys, Range xs) {
    if (ys.size() * xs.size() <= kSmallRange) return visit(ys, xs);
    const int64_t middle_y = (ys.begin + ys.end) / 2, middle_x = (xs.begin + xs.end) / 2;
    visit({middle_y, middle_y + 1}, {middle_x, middle_x + 1});
    if (bound(ys, xs) <= best_ + tolerance_) return;
    if (ys.size() > xs.size()) {
      search_range({ys.begin, middle_y}, xs);
      search_range({middle_y, ys.end}, xs);
    } else {
      search_range(ys, {xs.begin, middle_x});
      search_range(ys, {middle_x, xs.end});
    }
  }

  void visit(Range ys, Range xs) {
    for (int64_t x = xs.begin; x < xs.end; ++x) {
      const std::array<T, 4> across = cubic_weights(xs_->fraction(x, square_x_));
      std::array<T, 4> column;
      for (int i = 0; i < 4; ++i) column[i] = weighted(across, cells_ + i * stride_, 1);
      for (int64_t y = ys.begin; y < ys.end; ++y) {
        const T value = weighted(cubic_weights(ys_->fraction(y, square_y_)), column.data(), 1);
        if (value > best_) {
          best_ = value;
          y_ = y;
          x_ = x;
        }
      }
    }
  }

  T bound(Range ys, Range xs) const {
    const Basis<T> down =
        bernstein_basis(ys_->fraction(ys.begin, square_y_), ys_->fraction(ys.end - 1, square_y_));
    const Basis<T> across =
        bernstein_basis(xs_->fraction(xs.begin, square_x_), xs_->fraction(xs.end - 1, square_x_));
    T largest = -std::numeric_limits<T>::infinity();
    for (const std::array<T, 4>& row : down) {
      std::array<T, 4> cells;
      for (int i = 0; i < 4; ++i) cells[i] = weighted(row, cells_ + i, stride_);
      for (const std::array<T, 4>& column : across)
        largest = std::max(largest, weighted(column, cells.data(), 1));
    }
    return largest;
  }

  static constexpr T kLowest = -std::numeric_limits<T>::infinity();

  const int64_t height_, width_, stride_;
  std::vector<T> padded_;  // (height + 4, width + 4)
  std::vector<T> bounds_;  // (height + 2, width + 2): by cell, of the four squares around it
  std::vector<T> row_;     // (width + 2): of two rows of bounds
  std::vector<std::pair<T, int64_t>> squares_;
  std::vector<std::pair<int64_t, std::array<T, 4>>> columns_;  // square and weights of every pixel of a row
  std::vector<T> across_, values_;
  const Axis<T>* ys_ = nullptr;
  const Axis<T>* xs_ = nullptr;
  int64_t square_y_ = 0, square_x_ = 0;
  const T* cells_ = nullptr;  // the first of the square's 4 x 4 cells
  T best_ = 0;
  T tolerance_ = 0;  // what rounding can make of a bound, or a pixel
  int64_t y_ = 0, x_ = 0;
};

std::tuple<at::Tensor, at::Tensor> resized_heatmap_argmax(const at::Tensor& maps, const at::Tensor& sizes) {
  TORCH_CHECK(maps.dim() == 4 && maps.size(2) > 0 && maps.size(3) > 0,
              "maps must be (R, K, H, W) with H, W >= 1");
  TORCH_CHECK(sizes.dim() == 2 && sizes.size(0) == maps.size(0) && sizes.size(1) == 2 &&
                  sizes.scalar_type() == at::kLong,
              "sizes must be (R, 2) with maps' R and int64");
  const at::Tensor dense_maps = maps.contiguous();
  const at::Tensor dense_sizes = sizes.contiguous();
  TORCH_CHECK((dense_sizes > 0).all().item<bool>(), "sizes must be positive");
  const int64_t count = maps.size(0), keypoints = maps.size(1), height = maps.size(2), width = maps.size(3);
  at::Tensor places = at::empty({count, keypoints, 2}, sizes.options());
  at::Tensor values = at::empty({count, keypoints}, maps.options());
  const int64_t* size = dense_sizes.const_data_ptr<int64_t>();
  int64_t* place = places.mutable_data_ptr<int64_t>();

  AT_DISPATCH_FLOATING_TYPES(maps.scalar_type(), "resized_heatmap_argmax", [&] {
    const scalar_t* map = dense_maps.const_data_ptr<scalar_t>();
    scalar_t* value = values.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      Search<scalar_t> search(height, width);
      for (int64_t i = begin; i < end; ++i) {
        const Axis<scalar_t> ys(height, size[2 * i]);
        const Axis<scalar_t> xs(width, size[2 * i + 1]);
        for (int64_t k = i * keypoints; k < (i + 1) * keypoints; ++k) {
          search.run(map + k * height * width, ys, xs);
          place[2 * k] = search.y();
          place[2 * k + 1] = search.x();
          value[k] = search.value();
        }
      }
    });
  });
  return {places, values};
}

}  // namespace

TORCH_LIBRARY_IMPL(mrcnn_ext, CPU, m) { m.impl("resized_heatmap_argmax", resized_heatmap_argmax); }

}  // namespace mrcnn_ext
