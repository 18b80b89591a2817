#include "tests/reference/state_space.h"

#include <algorithm>
#include <cmath>

namespace qpipe::reference {

namespace {

double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }

double at(const Values& values, std::int64_t row, std::int64_t col, std::int64_t cols) {
  return static_cast<double>(values[static_cast<std::size_t>(row * cols + col)]);
}

}  // namespace

ScanResult state_space(const Values& xbc, const Values& dt, const StateSpaceCase& c) {
  const StateSpaceLayout& l = c.layout;
  const std::int64_t tokens = c.sequences * c.seqlen;
  const auto size = static_cast<std::size_t>(tokens * l.inner());
  ScanResult result{Exact(size), Exact(size)};
  for (std::int64_t head = 0; head < l.heads; ++head) {
    const std::int64_t group = head / (l.heads / l.groups);
    const double a = -std::exp(at(c.a_log, 0, head, l.heads));
    for (std::int64_t p = 0; p < l.head_dim; ++p)
      for (std::int64_t sequence = 0; sequence < c.sequences; ++sequence) {
        std::vector<double> s(static_cast<std::size_t>(l.state), 0.0);
        std::vector<double> size_of_s = s;
        for (std::int64_t t = sequence * c.seqlen; t < (sequence + 1) * c.seqlen; ++t) {
          const double step =
              std::clamp(softplus(at(dt, t, head, l.heads) + at(c.dt_bias, 0, head, l.heads)),
                         c.shortest, c.longest);
          const double decay = std::exp(step * a);
          const double x = at(xbc, t, head * l.head_dim + p, l.width());
          const double skipped = at(c.d, 0, head, l.heads) * x;
          double y = skipped;
          double magnitude = std::abs(skipped);
          for (std::int64_t n = 0; n < l.state; ++n) {
            const auto i = static_cast<std::size_t>(n);
            const double input =
                step * x * at(xbc, t, l.b_begin() + group * l.state + n, l.width());
            const double out = at(xbc, t, l.c_begin() + group * l.state + n, l.width());
            s[i] = decay * s[i] + input;
            size_of_s[i] = decay * size_of_s[i] + std::abs(input);
            y += s[i] * out;
            magnitude += size_of_s[i] * std::abs(out);
          }
          const auto place = static_cast<std::size_t>(t * l.inner() + head * l.head_dim + p);
          result.out[place] = y;
          result.magnitude[place] = magnitude;
        }
      }
  }
  return result;
}

ScanResult selective_scan(const Values& x, const Values& dt, const Values& b, const Values& c,
                          const Values& z, const SelectiveScanCase& s) {
  const auto size = static_cast<std::size_t>(s.sequences * s.seqlen * s.channels);
  ScanResult result{Exact(size), Exact(size)};
  for (std::int64_t channel = 0; channel < s.channels; ++channel)
    for (std::int64_t sequence = 0; sequence < s.sequences; ++sequence) {
      std::vector<double> states(static_cast<std::size_t>(s.state), 0.0);
      std::vector<double> sizes = states;
      for (std::int64_t t = sequence * s.seqlen; t < (sequence + 1) * s.seqlen; ++t) {
        const double step = softplus(at(dt, t, channel, s.channels));
        const double value = at(x, t, channel, s.channels);
        const double gate = at(z, t, channel, s.channels);
        const double silu = gate / (1.0 + std::exp(-gate));
        double y = at(s.d, 0, channel, s.channels) * value;
        double magnitude = std::abs(y);
        for (std::int64_t n = 0; n < s.state; ++n) {
          const auto i = static_cast<std::size_t>(n);
          const double decay = std::exp(-step * std::exp(at(s.a_log, channel, n, s.state)));
          const double input = step * value * at(b, t, n, s.state);
          states[i] = decay * states[i] + input;
          sizes[i] = decay * sizes[i] + std::abs(input);
          y += states[i] * at(c, t, n, s.state);
          magnitude += sizes[i] * std::abs(at(c, t, n, s.state));
        }
        const auto place = static_cast<std::size_t>(t * s.channels + channel);
        result.out[place] = y * silu;
        result.magnitude[place] = magnitude * std::abs(silu);
      }
    }
  return result;
}

}  // namespace qpipe::reference
