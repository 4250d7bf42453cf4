// dvae_fast._core: build information, the ISA, and the core math over NumPy arrays. No torch.
//
// Tests hold the formulas of csrc/core against known answers through it; nothing else needs it.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

#include "../core/half.h"
#include "../core/likelihoods.h"
#include "../core/logsumexp.h"
#include "../core/math.h"
#include "../core/noise.h"
#include "../core/philox.h"
#include "../cpu/isa.h"

namespace py = pybind11;

namespace {

using namespace dvae;

// --- arguments --------------------------------------------------------------------------------

template <class T>
using Array = py::array_t<T, py::array::c_style>;

std::string text(py::handle value) { return py::str(value).cast<std::string>(); }

std::string shape_of(const py::array& a) { return text(a.attr("shape")); }

// What a value that is no array is.
std::string type_of(py::handle value) {
  return "an instance of " + text(py::type::handle_of(value).attr("__name__"));
}

// `value` as a C-contiguous array of exactly T: nothing is converted, for a test should see the
// bits that it gave.
template <class T>
Array<T> array(py::handle value, const char* name) {
  const std::string wanted = text(py::dtype::of<T>());
  if (!py::isinstance<py::array>(value)) {
    throw py::type_error(std::string(name) + " must be a NumPy array of " + wanted + ", got " +
                         type_of(value));
  }
  const auto a = py::reinterpret_borrow<py::array>(value);
  if (!a.dtype().equal(py::dtype::of<T>())) {
    throw py::type_error(std::string(name) + " must be of dtype " + wanted + ", got " +
                         text(a.dtype()));
  }
  return Array<T>::ensure(a);
}

// An integer in [low, high], from whatever has __index__.
int64_t integer(py::handle value, const char* name, int64_t low, int64_t high) {
  const auto index = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
  if (!index) {
    PyErr_Clear();
    throw py::type_error(std::string(name) + " must be an integer, got " + text(py::repr(value)));
  }
  int overflow = 0;
  const long long v = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
  if (overflow != 0 || v < low || v > high) {
    throw py::value_error(std::string(name) + " must be in [" + std::to_string(low) + ", " +
                          std::to_string(high) + "], got " + text(index));
  }
  return v;
}

constexpr int64_t kMax32 = (int64_t{1} << 32) - 1;

uint32_t word(py::handle value, const char* name) {
  return static_cast<uint32_t>(integer(value, name, 0, kMax32));
}

Key key(py::handle seed) { return key_from_seed(integer(seed, "seed", INT64_MIN, INT64_MAX)); }

std::vector<py::ssize_t> shape(const py::array& a) { return {a.shape(), a.shape() + a.ndim()}; }

void check_same_shape(const py::array& a, const char* name, const py::array& b, const char* other) {
  if (shape(a) != shape(b)) {
    throw py::value_error(std::string(name) + " must have the shape of " + other + ", " +
                          shape_of(b) + ", got " + shape_of(a));
  }
}

void check_last(const py::array& a, const char* name, py::ssize_t size) {
  if (a.ndim() < 1 || a.shape(a.ndim() - 1) != size) {
    throw py::value_error(std::string(name) + " must have a last dimension of " +
                          std::to_string(size) + ", got shape " + shape_of(a));
  }
}

// --- elementwise functions --------------------------------------------------------------------

template <class In, class Out, class F>
Array<Out> map(const Array<In>& in, F f) {
  Array<Out> out(shape(in));
  const In* from = in.data();
  Out* to = out.mutable_data();
  for (py::ssize_t i = 0; i < in.size(); ++i) to[i] = f(from[i]);
  return out;
}

// Calls f with a zero of the dtype of `value`, float32 or float64.
template <class F>
auto with_dtype(py::handle value, const char* name, F f) {
  std::string given;
  if (py::isinstance<py::array>(value)) {
    const py::dtype dtype = py::reinterpret_borrow<py::array>(value).dtype();
    if (dtype.equal(py::dtype::of<double>())) return f(0.0);
    if (dtype.equal(py::dtype::of<float>())) return f(0.0f);
    given = text(dtype);
  } else {
    given = type_of(value);
  }
  throw py::type_error(std::string(name) + " must be a NumPy array of float32 or float64, got " +
                       given);
}

// Registers name(x): float32 or float64 in, the same out.
template <class F>
void unary(py::module_& m, const char* name, const char* doc, F f) {
  m.def(
      name,
      [f](const py::object& x) {
        return with_dtype(x, "x", [&](auto zero) -> py::array {
          using A = decltype(zero);
          return map<A, A>(array<A>(x, "x"), f);
        });
      },
      py::arg("x"), doc);
}

// Registers name(words): uint32 in.
template <class R, class F>
void of_words(py::module_& m, const char* name, const char* doc, F f) {
  m.def(
      name,
      [f](const py::object& words) { return map<uint32_t, R>(array<uint32_t>(words, "words"), f); },
      py::arg("words"), doc);
}

// Registers <name>_to_float(bits) and float_to_<name>(x) of a type of 16 bits.
template <class T>
void sixteen_bits(py::module_& m, const std::string& name, const std::string& full) {
  m.def((name + "_to_float").c_str(),
        [](const py::object& bits) {
          return map<uint16_t, float>(array<uint16_t>(bits, "bits"),
                                      [](uint16_t b) { return load(T{b}); });
        },
        py::arg("bits"), (full + ", as uint16 bits, to float32.").c_str());
  m.def(("float_to_" + name).c_str(),
        [](const py::object& x) {
          return map<float, uint16_t>(array<float>(x, "x"), [](float v) {
            T to;
            store(to, v);
            return to.bits;
          });
        },
        py::arg("x"), ("float32 to the bits of the nearest " + full + ", ties to even.").c_str());
}

// --- noise ------------------------------------------------------------------------------------

Array<uint32_t> philox(const py::object& counter, const py::object& seed) {
  const auto in = array<uint32_t>(counter, "counter");
  check_last(in, "counter", 4);
  const Key k = key(seed);
  Array<uint32_t> out(shape(in));
  const uint32_t* from = in.data();
  uint32_t* to = out.mutable_data();
  for (py::ssize_t i = 0; i < in.size(); i += 4) {
    uint32_t c0 = from[i], c1 = from[i + 1], c2 = from[i + 2], c3 = from[i + 3];
    philox4x32(c0, c1, c2, c3, k);
    to[i] = c0, to[i + 1] = c1, to[i + 2] = c2, to[i + 3] = c3;
  }
  return out;
}

// The index of a row of noise, checked.
struct Row {
  uint32_t stream, sample, example;
  int64_t size;
  Key key;

  Row(py::handle stream, py::handle copy, py::handle example, py::handle sample, py::handle size,
      py::handle seed)
      : stream(stream_word(static_cast<Stream>(integer(stream, "stream", 0, 255)),
                           static_cast<uint32_t>(integer(copy, "copy", 0, (1 << 24) - 1)))),
        sample(word(sample, "sample")),
        example(word(example, "example")),
        // 2²⁸ blocks of 64 elements have a counter each of 32 bits; memory ends before.
        size(integer(size, "size", 0, int64_t{1} << 34)),
        key(::key(seed)) {}

  // The 64 words of a block.
  void words(int64_t block, uint32_t* w) const {
    for (int i = 0; i < kLanes; ++i) {
      noise_lane(block, i, sample, example, stream, key, w[i], w[kLanes + i], w[2 * kLanes + i],
                 w[3 * kLanes + i]);
    }
  }
};

// fill(block, 64 values) for every block of `row`.
template <class T, class F>
Array<T> blocks(const Row& row, F fill) {
  Array<T> out(row.size);
  T* to = out.mutable_data();
  for (int64_t j = 0, block = 0; j < row.size; j += kBlock, ++block) {
    T values[kBlock];
    fill(block, values);
    for (int64_t i = 0; i < kBlock && j + i < row.size; ++i) to[j + i] = values[i];
  }
  return out;
}

Array<uint32_t> uniform_bits(const py::object& stream, const py::object& copy,
                             const py::object& example, const py::object& sample,
                             const py::object& size, const py::object& seed) {
  const Row row(stream, copy, example, sample, size, seed);
  return blocks<uint32_t>(row, [&](int64_t block, uint32_t* w) { row.words(block, w); });
}

template <class A>
Array<A> normals(const Row& row) {
  return blocks<A>(row, [&](int64_t block, A* out) {
    uint32_t w[kBlock];
    row.words(block, w);
    for (int pair = 0; pair < kBlock; pair += 2 * kLanes) {
      for (int i = pair; i < pair + kLanes; ++i) {
        normal_pair(w[i], w[i + kLanes], out[i], out[i + kLanes]);
      }
    }
  });
}

// float32 or float64, from what NumPy takes for one.
bool is_double(const py::object& dtype) {
  try {
    const py::dtype wanted = py::dtype::from_args(dtype);
    if (wanted.equal(py::dtype::of<double>())) return true;
    if (wanted.equal(py::dtype::of<float>())) return false;
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;
  }
  throw py::type_error("dtype must be float32 or float64, got " + text(py::repr(dtype)));
}

py::array standard_normal(const py::object& stream, const py::object& copy,
                          const py::object& example, const py::object& sample,
                          const py::object& size, const py::object& seed, const py::object& dtype) {
  const Row row(stream, copy, example, sample, size, seed);
  if (is_double(dtype)) return normals<double>(row);
  return normals<float>(row);
}

py::tuple turn(const py::object& v, const py::object& dtype) {
  const auto in = array<uint32_t>(v, "v");
  const auto make = [&](auto zero) -> py::tuple {
    using A = decltype(zero);
    Array<A> s(shape(in)), c(shape(in));
    for (py::ssize_t i = 0; i < in.size(); ++i) {
      sincos_turn(in.data()[i], s.mutable_data()[i], c.mutable_data()[i]);
    }
    return py::make_tuple(s, c);
  };
  return is_double(dtype) ? make(0.0) : make(0.0f);
}

// --- likelihoods ------------------------------------------------------------------------------

// Of a likelihood without a scale, whose parameter is called `name`.
template <class L>
py::tuple without_scale(const py::object& params, const char* name, const py::object& x) {
  return with_dtype(params, name, [&](auto zero) -> py::tuple {
    using A = decltype(zero);
    const auto l = array<A>(params, name);
    const auto target = array<A>(x, "x");
    check_same_shape(target, "x", l, name);
    Array<A> density(shape(l)), derivative(shape(l));
    for (py::ssize_t i = 0; i < l.size(); ++i) {
      A a = 0, b = 0;
      const A xi = target.data()[i];
      derivative.mutable_data()[i] = L::push_with_derivative(a, b, l.data()[i], xi);
      density.mutable_data()[i] =
          L::finish(a, b) + L::template data_term<ScaleKind::kNone>(A(1), xi);
    }
    return py::make_tuple(density, derivative);
  });
}

// Of a likelihood with a scale.
template <class L>
py::tuple with_scale(const py::object& mean, const py::object& scale, const py::object& x) {
  return with_dtype(mean, "mean", [&](auto zero) -> py::tuple {
    using A = decltype(zero);
    const auto m = array<A>(mean, "mean");
    const auto s = array<A>(scale, "scale");
    const auto target = array<A>(x, "x");
    check_same_shape(s, "scale", m, "mean");
    check_same_shape(target, "x", m, "mean");
    Array<A> density(shape(m)), d_mean(shape(m)), d_scale(shape(m));
    for (py::ssize_t i = 0; i < m.size(); ++i) {
      const A xi = target.data()[i];
      A a = 0, b = 0;
      L::template push<ScaleKind::kFull>(a, b, m.data()[i], s.data()[i], xi);
      density.mutable_data()[i] = L::finish(a, b) +
                                  L::template data_term<ScaleKind::kFull>(s.data()[i], xi) +
                                  static_cast<A>(L::row_constant(1, 0));
      L::template derivative<ScaleKind::kFull>(m.data()[i], s.data()[i], xi,
                                               d_mean.mutable_data()[i], d_scale.mutable_data()[i]);
    }
    return py::make_tuple(density, d_mean, d_scale);
  });
}

// --- logsumexp --------------------------------------------------------------------------------

constexpr py::ssize_t kState = 5;

LogSumExp read(const double* p) {
  LogSumExp s;
  s.max = p[0], s.s1 = p[1], s.s2 = p[2], s.sum = p[3], s.count = p[4];
  return s;
}

void write(const LogSumExp& s, double* p) {
  p[0] = s.max, p[1] = s.s1, p[2] = s.s2, p[3] = s.sum, p[4] = s.count;
}

Array<double> logsumexp_push(const py::object& state, const py::object& log_w) {
  const auto from = array<double>(state, "state");
  check_last(from, "state", kState);
  const auto w = array<double>(log_w, "log_w");
  auto rows = shape(from);
  rows.pop_back();
  auto rows_of_w = shape(w);
  if (!rows_of_w.empty()) rows_of_w.pop_back();
  if (w.ndim() != from.ndim() || rows_of_w != rows) {
    throw py::value_error("log_w must have the shape of state but for the last dimension, " +
                          shape_of(from) + ", got " + shape_of(w));
  }
  const py::ssize_t samples = w.shape(w.ndim() - 1);
  Array<double> out(shape(from));
  for (py::ssize_t row = 0; row < from.size() / kState; ++row) {
    LogSumExp s = read(from.data() + row * kState);
    for (py::ssize_t k = 0; k < samples; ++k) s.push(w.data()[row * samples + k]);
    write(s, out.mutable_data() + row * kState);
  }
  return out;
}

Array<double> logsumexp_merge(const py::object& a, const py::object& b) {
  const auto first = array<double>(a, "a"), second = array<double>(b, "b");
  check_last(first, "a", kState);
  check_same_shape(second, "b", first, "a");
  Array<double> out(shape(first));
  for (py::ssize_t i = 0; i < first.size(); i += kState) {
    LogSumExp s = read(first.data() + i);
    s.merge(read(second.data() + i));
    write(s, out.mutable_data() + i);
  }
  return out;
}

// --- build information ------------------------------------------------------------------------

std::string compiler() {
#if defined(__clang__)
  return "Clang " __clang_version__;
#elif defined(__GNUC__)
  return "GCC " __VERSION__;
#else
  return "unknown";
#endif
}

py::dict build() {
  py::dict d;
  d["compiler"] = compiler();
  d["cxx_standard"] = static_cast<int64_t>(__cplusplus / 100 % 100);
  return d;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "Build information, the instruction set in use, and the core math over NumPy arrays.";
  m.attr("compiler") = compiler();
  m.attr("build") = build();
  m.def(
      "isas",
      [] {
        py::list names;
        for (const cpu::Isa isa : cpu::available_isas()) names.append(cpu::isa_name(isa));
        return names;
      },
      "Levels compiled in that this CPU can run, lowest first.");
  m.def(
      "isa", [] { return cpu::isa_name(cpu::level_in_use()); },
      "The level in use: the highest, or DVAE_FAST_ISA's. RuntimeError if that names none.");

  m.def("philox", &philox, py::arg("counter"), py::arg("seed"),
        "Philox4x32-10 of counters (..., 4), uint32, under a 64-bit seed: as many words.");
  m.def("uniform_bits", &uniform_bits, py::arg("stream"), py::arg("copy"), py::arg("example"),
        py::arg("sample"), py::arg("size"), py::arg("seed"),
        "The 32-bit word of each of `size` elements.");
  m.def("standard_normal", &standard_normal, py::arg("stream"), py::arg("copy"), py::arg("example"),
        py::arg("sample"), py::arg("size"), py::arg("seed"), py::arg("dtype") = "float32",
        "The N(0, 1) draw of each of `size` elements.");
  of_words<int32_t>(m, "uniform24", "The 24 bits of a word that thresholds are compared with.",
                    [](uint32_t w) { return uniform24(w); });
  m.def(
      "threshold",
      [](const py::object& p) {
        const auto in = array<float>(p, "p");
        for (py::ssize_t i = 0; i < in.size(); ++i) {
          if (!(in.data()[i] >= 0.0f && in.data()[i] <= 1.0f)) {
            throw py::value_error("p must be in [0, 1], got " + text(py::float_(in.data()[i])));
          }
        }
        return map<float, int32_t>(in, [](float v) { return threshold(v); });
      },
      py::arg("p"), "round-half-even(p · 2²⁴): hit where uniform24 < threshold.");

  unary(m, "exp", "e^x.", [](auto x) { return dvae::exp(x); });
  unary(m, "exp_nonpositive", "e^x for x <= 0; float32 results below 2⁻¹²⁶ are 0.",
        [](auto x) { return dvae::exp_nonpositive(x); });
  unary(m, "log", "ln x.", [](auto x) { return dvae::log(x); });
  unary(m, "log1p", "ln(1 + x).", [](auto x) { return dvae::log1p(x); });
  unary(m, "softplus", "ln(1 + e^x).", [](auto x) { return dvae::softplus(x); });
  unary(m, "sigmoid", "1/(1 + e^−x).", [](auto x) { return dvae::sigmoid(x); });
  m.def("sincos_turn", &turn, py::arg("v"), py::arg("dtype") = "float32",
        "(sin, cos) of the angle v · 2π/2³², v uint32.");
  of_words<float>(m, "log_uniform", "ln((w + ½)/2³²) in float32, w uint32.",
                  [](uint32_t w) { return log_uniform(w); });

  sixteen_bits<Half>(m, "half", "float16");
  sixteen_bits<BFloat16>(m, "bfloat16", "bfloat16");

  m.def(
      "bernoulli",
      [](const py::object& logits, const py::object& x) {
        return without_scale<Bernoulli>(logits, "logits", x);
      },
      py::arg("logits"), py::arg("x"), "(log p(x), d log p / d logit) per element, in nats.");
  m.def(
      "bernoulli_probabilities",
      [](const py::object& p, const py::object& x) {
        return without_scale<BernoulliProbabilities>(p, "p", x);
      },
      py::arg("p"), py::arg("x"), "(log P(x), d log P / dp) per element, in nats.");
  m.def(
      "continuous_bernoulli",
      [](const py::object& logits, const py::object& x) {
        return without_scale<ContinuousBernoulli>(logits, "logits", x);
      },
      py::arg("logits"), py::arg("x"), "(log p(x), d log p / d logit) per element, in nats.");
  m.def(
      "poisson",
      [](const py::object& rate, const py::object& x) {
        return without_scale<Poisson>(rate, "rate", x);
      },
      py::arg("rate"), py::arg("x"), "(log p(x), d log p / d rate) per element, in nats.");
  constexpr const char* derivatives =
      "(log p(x), d log p / d mean, d log p / d scale) per element, in nats.";
  m.def("gaussian", &with_scale<Gaussian>, py::arg("mean"), py::arg("scale"), py::arg("x"),
        derivatives);
  m.def("laplace", &with_scale<Laplace>, py::arg("mean"), py::arg("scale"), py::arg("x"),
        derivatives);
  m.def("discretised_logistic", &with_scale<DiscretisedLogistic>, py::arg("mean"), py::arg("scale"),
        py::arg("x"), derivatives);
  m.def("negative_binomial", &with_scale<NegativeBinomial>, py::arg("mean"), py::arg("scale"),
        py::arg("x"), derivatives);

  m.def("logsumexp_push", &logsumexp_push, py::arg("state"), py::arg("log_w"),
        "state (..., 5) = (max, Σ e^(w−max), Σ e^2(w−max), Σ w, count) after log_w (..., K).");
  m.def("logsumexp_merge", &logsumexp_merge, py::arg("a"), py::arg("b"),
        "The state of the union of two disjoint sets of samples.");
}
