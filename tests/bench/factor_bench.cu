// factor() on one GPU beside cuSOLVER's float32 potrf of the same matrix: median times of 5 and
// residuals. Beyond d = 4096 factor() multiplies with three float16 products, hence 989 / 3 TFLOP/s
// of an H100 at most.
//
// Under mpirun: factors of 1, 2, … ranks together (each with a GPU of its own, as far as there
// are), beside what they replace, one rank's factor and its broadcast. Times of the slowest rank;
// whether all ranks have the bytes of a single one.
//
// Residual: ‖(A − L Lᵀ) v‖ / ‖A v‖ in double precision for a vector v of random signs, which
// estimates ‖A − L Lᵀ‖ / ‖A‖ in the Frobenius norm; "scaled": of D⁻¹ A D⁻¹ with D = diag(A)^½,
// where a column of large entries does not hide the others.
#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cusolverDn.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/cuda_handles.h"
#include "kernels/diagonal.h"
#include "kernels/factor.h"
#include "stages/factor_team.h"
#include "tests/bench/median_ms.h"

namespace {

void check_solver(cusolverStatus_t status) {
  if (status != CUSOLVER_STATUS_SUCCESS)
    throw std::runtime_error("cuSOLVER: status " + std::to_string(static_cast<int>(status)));
}

using namespace qpipe;

constexpr int threads = 256;

unsigned blocks(std::int64_t count) {
  return static_cast<unsigned>((count + threads - 1) / threads);
}

__device__ std::uint64_t mix(std::uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// Nearly normal: the sum of four uniforms.
__device__ float noise(std::uint64_t index) {
  const std::uint64_t bits = mix(index);
  float sum = 0.0f;
  for (int shift = 0; shift < 64; shift += 16) sum += static_cast<float>((bits >> shift) & 0xffffu);
  return (sum * 0x1p-16f - 2.0f) * 1.7320508f;
}

// Activations [tokens, d]: neighbouring columns and all columns of a token are correlated, and
// columns differ in size.
__global__ void make_activations(Matrix<__nv_bfloat16> x, float correlation) {
  const std::int64_t c = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  const std::int64_t t = blockIdx.y;
  if (c >= x.cols) return;
  const auto index = static_cast<std::uint64_t>(t * x.cols + c);
  const float shared = noise(static_cast<std::uint64_t>(t) + (std::uint64_t{1} << 40));
  const float value = noise(index) + correlation * (noise(index + 1) + shared);
  const float size = correlation == 0.0f ? 1.0f
                                         : exp2f(static_cast<float>(mix(c) % 8) - 4.0f) *
                                               (mix(c + 77) % 1024 == 0 ? 100.0f : 1.0f);
  x.data[t * x.stride + c] = __float2bfloat16(value * size);
}

__global__ void scale_and_mirror(Matrix<float> h, float factor) {
  const std::int64_t j = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  const std::int64_t i = blockIdx.y;
  if (j > i || j >= h.cols) return;
  h.data[i * h.stride + j] *= factor;
  h.data[j * h.stride + i] = h.data[i * h.stride + j];
}

__global__ void add_to_diagonal(Matrix<float> h, float damp) {
  const std::int64_t i = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  if (i < h.rows) h.data[i * (h.stride + 1)] += damp;
}

// v_i = ±1, or ±1 / √(diagonal_i).
__global__ void make_probe(Matrix<const float> diagonal, bool scaled, Matrix<double> v) {
  const std::int64_t i = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  if (i >= v.cols) return;
  const double sign = mix(i + 12345) & 1u ? 1.0 : -1.0;
  v.data[i] = scaled ? sign / sqrt(static_cast<double>(diagonal.data[i])) : sign;
}

// Which elements of a square matrix count, and a factor for each column: M = mask(a) · diag(pivot).
struct Triangle {
  Matrix<const float> a;
  bool lower, upper;
  const float* pivot;  // nullptr: 1
  __device__ double at(std::int64_t i, std::int64_t j) const {
    if ((i > j && !lower) || (i < j && !upper)) return 0.0;
    return static_cast<double>(a.data[i * a.stride + j]) *
           (pivot == nullptr ? 1.0 : static_cast<double>(pivot[j]));
  }
};

__global__ void multiply(Triangle m, Matrix<const double> v, Matrix<double> y) {  // y = M v
  __shared__ double partial[threads];
  const std::int64_t i = blockIdx.x;
  double sum = 0.0;
  for (std::int64_t j = threadIdx.x; j < m.a.cols; j += threads) sum += m.at(i, j) * v.data[j];
  partial[threadIdx.x] = sum;
  __syncthreads();
  for (int half = threads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) y.data[i] = partial[0];
}

__global__ void multiply_transposed(Triangle m, Matrix<const double> v,
                                    Matrix<double> y) {  // y += Mᵀ v, 256 rows a block
  const std::int64_t j = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  if (j >= m.a.cols) return;
  double sum = 0.0;
  const std::int64_t end = min(m.a.rows, (std::int64_t{blockIdx.y} + 1) * 256);
  for (std::int64_t i = std::int64_t{blockIdx.y} * 256; i < end; ++i) sum += m.at(i, j) * v.data[i];
  atomicAdd(&y.data[j], sum);
}

std::vector<double> download(const Array<double>& v, Stream& stream) {
  std::vector<double> host(static_cast<std::size_t>(v.view.cols));
  copy_to_host(host.data(), v.view.data, host.size() * sizeof(double), stream);
  return host;
}

// a = M Mᵀ (a with `damp` on its diagonal)?
double residual(Matrix<const float> a, double damp, const Triangle& m, Matrix<const float> diagonal,
                bool scaled, Stream& stream) {
  const std::int64_t d = a.rows;
  const auto queue = stream.cuda().stream;
  const Array<double> v(1, d, stream);
  const Array<double> w(1, d, stream);
  const Array<double> y(1, d, stream);
  make_probe<<<blocks(d), threads, 0, queue>>>(diagonal, scaled, v);
  multiply<<<static_cast<unsigned>(d), threads, 0, queue>>>(Triangle{a, true, true, nullptr}, v, y);
  const auto wanted = download(y, stream);
  const auto probe = download(v, stream);
  fill_zero(w.view.data, w.memory.bytes(), stream);
  multiply_transposed<<<dim3(blocks(d), static_cast<unsigned>((d + 255) / 256)), threads, 0,
                        queue>>>(m, v, w);
  multiply<<<static_cast<unsigned>(d), threads, 0, queue>>>(m, w, y);
  const auto got = download(y, stream);
  check_launch();
  double error = 0.0;
  double norm = 0.0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double want = wanted[i] + damp * probe[i];
    const double weight = scaled ? std::abs(probe[i]) : 1.0;
    error += std::pow((want - got[i]) * weight, 2);
    norm += std::pow(want * weight, 2);
  }
  return std::sqrt(error / norm);
}

struct Problem {
  Array<float> h;
  Array<float> diagonal;
  Array<std::int32_t> perm;
  double damp = 0.0;
};

Problem make_problem(std::int64_t d, float correlation, Stream& stream) {
  const auto queue = stream.cuda().stream;
  Problem p{Array<float>(d, d, stream), Array<float>(1, d, stream),
            Array<std::int32_t>(1, d, stream)};
  const Matrix<float> h = p.h;
  {
    const std::int64_t tokens = d + d / 4;
    const Array<__nv_bfloat16> x(tokens, d, stream);
    make_activations<<<dim3(blocks(d), static_cast<unsigned>(tokens)), threads, 0, queue>>>(
        x, correlation);
    const float one = 1.0f;
    const float zero = 0.0f;
    check(cublasGemmEx_64(stream.cuda().cublas(), CUBLAS_OP_N, CUBLAS_OP_T, d, d, tokens, &one,
                          x.view.data, CUDA_R_16BF, d, x.view.data, CUDA_R_16BF, d, &zero, h.data,
                          CUDA_R_32F, d, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
    scale_and_mirror<<<dim3(blocks(d), static_cast<unsigned>(d)), threads, 0, queue>>>(
        h, 1.0f / static_cast<float>(tokens));
    check_launch();
  }
  diagonal(h, p.diagonal, stream);
  std::vector<float> host_diagonal(static_cast<std::size_t>(d));
  copy_to_host(host_diagonal.data(), p.diagonal.view.data, p.diagonal.memory.bytes(), stream);
  const double mean =
      std::accumulate(host_diagonal.begin(), host_diagonal.end(), 0.0) / static_cast<double>(d);
  p.damp = static_cast<double>(correlation == 0.0f ? 0.0f : static_cast<float>(0.01 * mean));
  std::vector<std::int32_t> order(static_cast<std::size_t>(d));
  std::iota(order.begin(), order.end(), 0);
  copy_to_device(p.perm.view.data, order.data(), order.size() * sizeof(std::int32_t), stream);
  return p;
}

void run(std::int64_t d, float correlation, Stream& stream) {
  const auto queue = stream.cuda().stream;
  const auto size = static_cast<double>(d);
  const Problem p = make_problem(d, correlation, stream);
  const Array<float>& h = p.h;
  const double damp = p.damp;
  const Array<float> n(d, d, stream);
  const Array<float> pivot(1, d, stream);
  const auto report = [&](const char* name, double ms, const Triangle& m) {
    const double tflops = size * size * size / 3.0 / ms * 1e-9;
    std::printf(
        "%6ld  correlation %.1f  %-6s %9.3f ms %6.1f TFLOP/s %5.1f %% of 989 / 3   residual %.2e, "
        "scaled %.2e\n",
        static_cast<long>(d), static_cast<double>(correlation), name, ms, tflops,
        tflops / (989.0 / 3.0) * 100.0, residual(h, damp, m, p.diagonal, false, stream),
        residual(h, damp, m, p.diagonal, true, stream));
    std::fflush(stdout);
  };

  {
    constexpr cublasFillMode_t triangle = CUBLAS_FILL_MODE_UPPER;  // row-major lower
    cusolverDnHandle_t solver = nullptr;
    check_solver(cusolverDnCreate(&solver));
    check_solver(cusolverDnSetStream(solver, queue));
    cusolverDnParams_t params = nullptr;
    check_solver(cusolverDnCreateParams(&params));
    std::size_t device_bytes = 0;
    std::size_t host_bytes = 0;
    check_solver(cusolverDnXpotrf_bufferSize(solver, params, triangle, d, CUDA_R_32F, n.view.data,
                                             d, CUDA_R_32F, &device_bytes, &host_bytes));
    const Buffer workspace(device_bytes, stream);
    std::vector<unsigned char> host_workspace(host_bytes);
    const Array<int> info(1, 1, stream);
    const double ms = median_ms(
        stream,
        [&] {
          copy_on_device(n.view.data, h.view.data, h.memory.bytes(), stream);
          add_to_diagonal<<<blocks(d), threads, 0, queue>>>(n, static_cast<float>(damp));
        },
        [&] {
          check_solver(cusolverDnXpotrf(solver, params, triangle, d, CUDA_R_32F, n.view.data, d,
                                        CUDA_R_32F, workspace.data(), device_bytes,
                                        host_workspace.data(), host_bytes, info.view.data));
        });
    check_solver(cusolverDnDestroyParams(params));
    check_solver(cusolverDnDestroy(solver));
    report("potrf", ms, {n, true, false, nullptr});
  }
  bool success = true;
  const double ms =
      median_ms(stream, [&] { success = factor(h, p.perm, damp, n, pivot, stream) && success; });
  report("factor", ms, {n, false, true, pivot.view.data});
  if (!success) std::printf("factor failed\n");
}

// sum += Σ mix(bits of x_i, i), in any order.
__global__ void add_checksum(Matrix<const float> x, unsigned long long* sum) {
  const std::int64_t j = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  const std::int64_t i = blockIdx.y;
  if (j >= x.cols) return;
  const auto index = static_cast<std::uint64_t>(i * x.cols + j);
  atomicAdd(sum, static_cast<unsigned long long>(
                     mix(mix(index) + __float_as_uint(x.data[i * x.stride + j]))));
}

unsigned long long checksum(Matrix<const float> n, Matrix<const float> pivot, Stream& stream) {
  const Array<unsigned long long> sum(1, 1, stream);
  fill_zero(sum.view.data, sum.memory.bytes(), stream);
  for (const Matrix<const float>& x : {n, pivot})
    add_checksum<<<dim3(blocks(x.cols), static_cast<unsigned>(x.rows)), threads, 0,
                   stream.cuda().stream>>>(x, sum.view.data);
  check_launch();
  unsigned long long host = 0;
  copy_to_host(&host, sum.view.data, sizeof(host), stream);
  return host;
}

void run_teams(std::int64_t d, Comm& comm, Stream& stream) {
  const Problem p = make_problem(d, 0.7f, stream);
  const Array<float> n(d, d, stream);
  const Array<float> pivot(1, d, stream);
  unsigned long long expected = 0;
  for (int ranks = 1; ranks <= comm.size(); ++ranks) {
    Comm part(comm, comm.rank() < ranks ? 0 : 1, stream);
    if (comm.rank() >= ranks) continue;
    const FactorTeam team = factor_team(part, stream);
    bool good = true;
    const auto slowest = [&](double ms) {
      const auto all = part.all_gather({ms});
      return *std::max_element(all.begin(), all.end());
    };
    const double dealt = slowest(median_ms(
        stream, [&] { part.barrier(); },
        [&] {
          if (part.root()) good = factor(p.h, p.perm, p.damp, n, pivot, stream) && good;
          part.broadcast(n.view.data, n.memory.bytes(), 0, stream);
          part.wait(stream);
        }));
    if (ranks == 1) expected = checksum(n, pivot, stream);
    const double together = slowest(median_ms(
        stream, [&] { part.barrier(); },
        [&] { good = factor(p.h, p.perm, p.damp, n, pivot, team, stream) && good; }));
    bool same = true;
    const auto mine = std::to_string(checksum(n, pivot, stream));
    for (const std::string& theirs : part.gather(mine))
      same = same && theirs == std::to_string(expected);
    if (part.root())
      std::printf(
          "%6ld  %d ranks together %8.2f ms   one of them and a broadcast %8.2f ms   %s%s\n",
          static_cast<long>(d), ranks, together, dealt, same ? "same bytes" : "OTHER BYTES",
          good ? "" : "   factor failed");
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const qpipe::MpiSession session(argc, argv);
  if (qpipe::cuda_device_count() == 0) {
    std::printf("no CUDA device: nothing to time\n");
    return 0;
  }
  qpipe::Stream control(qpipe::Backend::cpu, 0);
  qpipe::Comm world(control, {});
  qpipe::Stream stream(qpipe::Backend::cuda, world.rank() % qpipe::cuda_device_count());
  if (world.root()) std::printf("%s\n", stream.device_name().c_str());
  if (world.size() > 1) {
    qpipe::Comm comm(stream, {std::chrono::seconds(300), true});
    for (const std::int64_t d : {8704, 11008, 14336, 28672}) run_teams(d, comm, stream);
    return 0;
  }
  for (const std::int64_t d : {576, 1536, 4096, 8192, 11008, 14336, 28672})
    for (const float correlation : {0.0f, 0.7f}) run(d, correlation, stream);
  return 0;
}
