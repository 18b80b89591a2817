// AWQ's factors put into the layer: the linears' columns times s, what makes their input divided by
// s. Everything in float32 from the checkpoint's own values, so that each written value is rounded
// once.
#pragma once

#include <string>
#include <vector>

#include "stages/rescale.h"

namespace qpipe {

// What a linear's weight is multiplied with: w[r, c] · column[c] / row[r]. Empty: ones.
struct LinearFactors {
  std::vector<float> column;
  std::vector<float> row;
  bool none() const { return column.empty() && row.empty(); }
};

// Of each of layer.linears. A linear is scaled by its pair even when it is not quantized.
std::vector<LinearFactors> linear_factors(const Layer& layer, const std::vector<ScaledPair>& pairs);

// [out, in] float32, or some of its rows.
Array<float> scaled_weight(const Linear& linear, const LinearFactors& factors, Stream& stream);
Array<float> scaled_rows(const Linear& linear, const LinearFactors& factors, const RowRange& rows,
                         Stream& stream);

// The weight that does in the layer as it was what the quantized one does in the scaled layer: w[r,
// c] · row[r] / column[c].
void unscaled_weight_into(const QuantizedLinear& quantized, const LinearFactors& factors,
                          Tensor weight, Stream& stream);

// The same from the dequantized weight, which is lost.
void unscale_into(const Array<float>& scaled, const LinearFactors& factors, Tensor weight,
                  Stream& stream);

// A tensor to write instead of the checkpoint's.
struct ChangedTensor {
  std::string name;
  std::vector<float> values;
};

// Norms' weights and biases, and linears' biases, divided: w / s and b / s; norms that multiply
// with 1 + w: (1 + w) / s − 1.
std::vector<ChangedTensor> divided_vectors(const Architecture& architecture, const Layer& layer,
                                           const std::vector<ScaledPair>& pairs, Stream& stream);

// The Hessian of the input divided by the factors, on the device.
void divide_input(Hessian& hessian, const std::vector<float>& scale, Stream& stream);

// Σ over outputs of the mean squared error that the quantized linear makes in the scaled layer,
// over its outputs: (1/out) tr(ΔW H ΔWᵀ), against the scaled weights before any clipping. hessian:
// of the divided input. Collective.
double output_error(const Linear& linear, const LinearFactors& factors,
                    const QuantizedLinear& quantized, const Hessian& hessian, Comm& comm,
                    Stream& stream);

}  // namespace qpipe
