#include "kernels/cuda_handles.h"
#include "kernels/mma_cuda.h"
#include "kernels/selective_scan.h"
#include "kernels/softplus_cuda.h"
#include "kernels/vector_cuda.h"

namespace qpipe::cuda {

namespace {

// A thread computes one channel of one sequence, its state in registers, one token after the other.
// B and C of the next tokens come into shared memory for the whole block.
constexpr int threads = 128;
constexpr int tokens_at_once = 32;
constexpr int loads_at_once = 4;  // tokens; y may lie where x, dt or z do: read, then write
constexpr float log2_e = 1.44269504f;

struct Arguments {
  const __nv_bfloat16* x;
  std::int64_t x_stride;
  const void* dt;  // bfloat16 or float32
  std::int64_t dt_stride;
  const __nv_bfloat16* b;
  std::int64_t b_stride;
  const __nv_bfloat16* c;
  std::int64_t c_stride;
  const __nv_bfloat16* z;
  std::int64_t z_stride;
  const float* a_log;
  const float* d;
  __nv_bfloat16* y;
  std::int64_t y_stride;
  std::int64_t channels;
  int state;
  std::int64_t seqlen;
};

// n: the state, with zeros behind it.
template <int n, class Step>
__global__ __launch_bounds__(threads) void selective_scan_kernel(Arguments p) {
  __shared__ float b_tile[tokens_at_once][n];
  __shared__ float c_tile[tokens_at_once][n];
  const std::int64_t channel = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  const bool valid = channel < p.channels;  // the others help to load
  const std::int64_t first_row = std::int64_t{blockIdx.y} * p.seqlen;
  float a[n];
  float s[n] = {};
#pragma unroll
  for (int i = 0; i < n; ++i)
    a[i] = valid && i < p.state ? -expf(p.a_log[channel * p.state + i]) * log2_e : 0.0f;
  const float d = valid ? p.d[channel] : 0.0f;

  for (std::int64_t begin = 0; begin < p.seqlen; begin += tokens_at_once) {
    const std::int64_t row = first_row + begin;
    const int tokens = static_cast<int>(min(std::int64_t{tokens_at_once}, p.seqlen - begin));
    __syncthreads();  // all are done with the tiles before
    for (int i = static_cast<int>(threadIdx.x); i < tokens_at_once * n; i += threads) {
      const int t = i / n;
      const int k = i % n;
      const bool there = t < tokens && k < p.state;
      b_tile[t][k] = there ? widen(p.b[(row + t) * p.b_stride + k]) : 0.0f;
      c_tile[t][k] = there ? widen(p.c[(row + t) * p.c_stride + k]) : 0.0f;
    }
    __syncthreads();
    if (!valid) continue;
    for (int first = 0; first < tokens; first += loads_at_once) {
      float x[loads_at_once];
      float z[loads_at_once];
      float step[loads_at_once];
#pragma unroll
      for (int i = 0; i < loads_at_once; ++i) {
        const std::int64_t from = row + min(first + i, tokens - 1);
        x[i] = widen(p.x[from * p.x_stride + channel]);
        z[i] = widen(p.z[from * p.z_stride + channel]);
        step[i] = widen(static_cast<const Step*>(p.dt)[from * p.dt_stride + channel]);
      }
#pragma unroll
      for (int i = 0; i < loads_at_once; ++i) {
        const int t = first + i;
        if (t >= tokens) break;
        const float delta = softplus(step[i]);
        const float input = delta * x[i];
        float sum = 0.0f;
#pragma unroll
        for (int k = 0; k < n; ++k) {
          s[k] = fmaf(exp2_approx(delta * a[k]), s[k], input * b_tile[t][k]);
          sum = fmaf(s[k], c_tile[t][k], sum);
        }
        narrow(fmaf(d, x[i], sum) * (z[i] / (1.0f + expf(-z[i]))),
               p.y[(row + t) * p.y_stride + channel]);
      }
    }
  }
}

template <int n>
void launch(const Arguments& arguments, std::int64_t sequences, bool wide_steps, Stream& stream) {
  const dim3 grid(static_cast<unsigned>((arguments.channels + threads - 1) / threads),
                  static_cast<unsigned>(sequences));
  const cudaStream_t queue = stream.cuda().stream;
  if (wide_steps)
    selective_scan_kernel<n, float><<<grid, threads, 0, queue>>>(arguments);
  else
    selective_scan_kernel<n, __nv_bfloat16><<<grid, threads, 0, queue>>>(arguments);
  check_launch();
}

}  // namespace

void selective_scan(ConstTensor x, ConstTensor dt, ConstTensor b, ConstTensor c, ConstTensor z,
                    Matrix<const float> a_log, Matrix<const float> d, std::int64_t seqlen, Tensor y,
                    Stream& stream) {
  if (y.size() == 0) return;
  const std::int64_t sequences = x.rows / seqlen;
  require(sequences <= 65535, "selective_scan: more sequences than one launch can hold");
  Arguments arguments{};
  arguments.x = static_cast<const __nv_bfloat16*>(x.data);
  arguments.x_stride = x.stride;
  arguments.dt = dt.data;
  arguments.dt_stride = dt.stride;
  arguments.b = static_cast<const __nv_bfloat16*>(b.data);
  arguments.b_stride = b.stride;
  arguments.c = static_cast<const __nv_bfloat16*>(c.data);
  arguments.c_stride = c.stride;
  arguments.z = static_cast<const __nv_bfloat16*>(z.data);
  arguments.z_stride = z.stride;
  arguments.a_log = a_log.data;
  arguments.d = d.data;
  arguments.y = static_cast<__nv_bfloat16*>(y.data);
  arguments.y_stride = y.stride;
  arguments.channels = x.cols;
  arguments.state = static_cast<int>(b.cols);
  arguments.seqlen = seqlen;
  const bool wide_steps = dt.dtype == DType::f32;
  if (b.cols <= 8) return launch<8>(arguments, sequences, wide_steps, stream);
  if (b.cols <= 16) return launch<16>(arguments, sequences, wide_steps, stream);
  if (b.cols <= 32) return launch<32>(arguments, sequences, wide_steps, stream);
  return launch<64>(arguments, sequences, wide_steps, stream);
}

}  // namespace qpipe::cuda
