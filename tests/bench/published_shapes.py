"""Decoder layers in the shapes and layouts of published models, with random weights, for tests/bench/layers.py: a Shape says config.json, the tensors of a layer and its FLOPs."""
import dataclasses
import math

VOCAB = 32000
FP8_LARGEST, FP8_BLOCK = 448.0, 128


@dataclasses.dataclass(frozen=True)
class Linear:
    name: str
    rows: int
    cols: int
    share: float = 1.0  # of the tokens that reach it
    quantized: bool = True  # by qpipe; and in FP8 where the source is


class Shape:
    """What the layers of all models have: the names of their tensors begin with prefix(layer)."""

    fp8 = False
    prefix = "model."

    def layer_prefix(self, layer):
        return f"{self.prefix}layers.{layer}."

    def config(self, layers):
        return dict(vocab_size=VOCAB, hidden_size=self.hidden, num_hidden_layers=layers, max_position_embeddings=4096, rms_norm_eps=1e-6, hidden_act="silu",
                    tie_word_embeddings=False, torch_dtype="bfloat16")

    def tensors(self, layer, weight, vector):
        """(name, tensor) one after the other, so that a layer need not fit in memory."""
        for linear in self.linears(layer):
            value = weight(linear.rows, linear.cols)
            if self.fp8 and linear.quantized:
                value, scales = to_fp8(value)
                yield linear.name + ".weight_scale_inv", scales
            yield linear.name + ".weight", value
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield self.layer_prefix(layer) + norm + ".weight", vector(self.hidden)
        yield from self.vectors(layer, weight, vector)

    def vectors(self, layer, weight, vector):
        return ()

    def flops(self, method, layers, tokens, seqlen):
        """Of the phases. Linears 2 · tokens · rows · cols; Hessians half of that by symmetry; a factor d³/3 and a sweep rows · d², each product in three parts."""
        forward = hessian = solve = 0.0
        for layer in range(layers):
            forward += self.mixing_flops(layer, tokens, seqlen)
            inputs = set()
            for linear in self.linears(layer):
                forward += 2.0 * tokens * linear.share * linear.rows * linear.cols
                if not linear.quantized:
                    continue
                solve += 3.0 * linear.rows * linear.cols**2
                read = self.input_of(linear.name)
                if read not in inputs:
                    inputs.add(read)
                    hessian += tokens * linear.share * linear.cols**2
                    solve += linear.cols**3
        return dict(forward=forward, hessian=hessian, **({"solve": solve} if method == "gptq" else {}))

    def input_of(self, name):
        """Linears with equal inputs have one Hessian."""
        head, last = name.rsplit(".", 1)
        for same in self.same_inputs:
            if last in same:
                last = same[0]
        return head + "." + last


def to_fp8(value):
    """Blocks of 128 x 128 with a scale each, as DeepSeek publishes them."""
    import torch

    rows, cols = value.shape
    padded = value.new_zeros(math.ceil(rows / FP8_BLOCK) * FP8_BLOCK, math.ceil(cols / FP8_BLOCK) * FP8_BLOCK, dtype=torch.float32)
    padded[:rows, :cols] = value
    blocks = padded.view(padded.shape[0] // FP8_BLOCK, FP8_BLOCK, padded.shape[1] // FP8_BLOCK, FP8_BLOCK)
    scales = blocks.abs().amax(dim=(1, 3)) / FP8_LARGEST
    codes = (blocks / scales[:, None, :, None]).view(padded.shape)[:rows, :cols]
    return codes.to(torch.float8_e4m3fn).contiguous(), scales


def swiglu(prefix, hidden, ffn, share=1.0):
    return [Linear(prefix + "gate_proj", ffn, hidden, share), Linear(prefix + "up_proj", ffn, hidden, share), Linear(prefix + "down_proj", hidden, ffn, share)]


class Qwen3Moe(Shape):
    """Qwen3-30B-A3B: hidden 2048, 128 experts of 768, 8 for each token, 32 heads of 128, 4 key and value heads."""

    hidden, ffn, experts, top, heads, kv_heads, head_dim = 2048, 768, 128, 8, 32, 4, 128
    same_inputs = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))

    def config(self, layers):
        return dict(super().config(layers), architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", moe_intermediate_size=self.ffn,
                    intermediate_size=3 * self.ffn, num_attention_heads=self.heads, num_key_value_heads=self.kv_heads, head_dim=self.head_dim,
                    num_experts=self.experts, num_experts_per_tok=self.top, norm_topk_prob=True, attention_bias=False, rope_theta=1e6, decoder_sparse_step=1,
                    mlp_only_layers=[])

    def linears(self, layer):
        p, q, kv = self.layer_prefix(layer), self.heads * self.head_dim, self.kv_heads * self.head_dim
        yield from (Linear(p + "self_attn.q_proj", q, self.hidden), Linear(p + "self_attn.k_proj", kv, self.hidden),
                    Linear(p + "self_attn.v_proj", kv, self.hidden), Linear(p + "self_attn.o_proj", self.hidden, q),
                    Linear(p + "mlp.gate", self.experts, self.hidden, quantized=False))
        for e in range(self.experts):
            yield from swiglu(p + f"mlp.experts.{e}.", self.hidden, self.ffn, self.top / self.experts)

    def vectors(self, layer, weight, vector):
        for norm in ("q_norm", "k_norm"):
            yield self.layer_prefix(layer) + f"self_attn.{norm}.weight", vector(self.head_dim)

    def mixing_flops(self, layer, tokens, seqlen):
        return 2.0 * tokens * seqlen * self.heads * self.head_dim  # q·k and p·v over half of the square


class DeepseekV3(Shape):
    """DeepSeek-V3 as published, in FP8: latent attention, 256 experts of 7168 x 2048, 8 for each token, and a shared one: 11.5 GB a layer, and none of them dense."""

    fp8 = True
    hidden, ffn, experts, top, heads = 7168, 2048, 256, 8, 128
    q_rank, kv_rank, nope, rope, value = 1536, 512, 128, 64, 128
    same_inputs = (("q_a_proj", "kv_a_proj_with_mqa"), ("gate_proj", "up_proj"))

    def config(self, layers):
        return dict(super().config(layers), architectures=["DeepseekV3ForCausalLM"], model_type="deepseek_v3", intermediate_size=18432,
                    moe_intermediate_size=self.ffn, num_attention_heads=self.heads, num_key_value_heads=self.heads, q_lora_rank=self.q_rank,
                    kv_lora_rank=self.kv_rank, qk_nope_head_dim=self.nope, qk_rope_head_dim=self.rope, v_head_dim=self.value, n_routed_experts=self.experts,
                    n_shared_experts=1, num_experts_per_tok=self.top, n_group=8, topk_group=4, norm_topk_prob=True, routed_scaling_factor=2.5,
                    scoring_func="sigmoid", topk_method="noaux_tc", first_k_dense_replace=0, moe_layer_freq=1, num_nextn_predict_layers=0, attention_bias=False,
                    rope_theta=10000.0, rope_scaling=None,
                    quantization_config=dict(quant_method="fp8", fmt="e4m3", activation_scheme="dynamic", weight_block_size=[FP8_BLOCK, FP8_BLOCK]))

    def linears(self, layer):
        p = self.layer_prefix(layer)
        yield from (Linear(p + "self_attn.q_a_proj", self.q_rank, self.hidden),
                    Linear(p + "self_attn.q_b_proj", self.heads * (self.nope + self.rope), self.q_rank),
                    Linear(p + "self_attn.kv_a_proj_with_mqa", self.kv_rank + self.rope, self.hidden),
                    Linear(p + "self_attn.kv_b_proj", self.heads * (self.nope + self.value), self.kv_rank),
                    Linear(p + "self_attn.o_proj", self.hidden, self.heads * self.value), Linear(p + "mlp.gate", self.experts, self.hidden, quantized=False))
        for e in range(self.experts):
            yield from swiglu(p + f"mlp.experts.{e}.", self.hidden, self.ffn, self.top / self.experts)
        yield from swiglu(p + "mlp.shared_experts.", self.hidden, self.ffn)

    def vectors(self, layer, weight, vector):
        p = self.layer_prefix(layer)
        yield p + "self_attn.q_a_layernorm.weight", vector(self.q_rank)
        yield p + "self_attn.kv_a_layernorm.weight", vector(self.kv_rank)
        yield p + "mlp.gate.e_score_correction_bias", vector(self.experts).float() * 0.0

    def mixing_flops(self, layer, tokens, seqlen):
        return tokens * seqlen * self.heads * (self.nope + self.rope + self.value)


class Qwen35(Shape):
    """Qwen3.5-27B: hidden 5120, ffn 17408; three of four layers are gated delta nets (48 value heads over 16 key heads, 128 wide each), the fourth attends (24 heads of
    256, 4 key and value heads, a gate)."""

    prefix = "model.language_model."
    hidden, ffn, heads, kv_heads, head_dim = 5120, 17408, 24, 4, 256
    key_heads, value_heads, linear_dim, conv = 16, 48, 128, 4
    same_inputs = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b"))

    def config(self, layers):
        text = dict(super().config(layers), model_type="qwen3_5_text", intermediate_size=self.ffn, num_attention_heads=self.heads,
                    num_key_value_heads=self.kv_heads, head_dim=self.head_dim, attention_bias=False, attn_output_gate=True, linear_conv_kernel_dim=self.conv,
                    linear_key_head_dim=self.linear_dim, linear_value_head_dim=self.linear_dim, linear_num_key_heads=self.key_heads,
                    linear_num_value_heads=self.value_heads, layer_types=["full_attention" if self.attends(layer) else "linear_attention" for layer in range(layers)],
                    rope_parameters=dict(rope_type="default", rope_theta=1e7, partial_rotary_factor=0.25, mrope_interleaved=True, mrope_section=[11, 11, 10]))
        return dict(architectures=["Qwen3_5ForConditionalGeneration"], model_type="qwen3_5", text_config=text, tie_word_embeddings=False, torch_dtype="bfloat16")

    def attends(self, layer):
        return layer % 4 == 3

    def linears(self, layer):
        p = self.layer_prefix(layer)
        if self.attends(layer):
            q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
            yield from (Linear(p + "self_attn.q_proj", 2 * q, self.hidden), Linear(p + "self_attn.k_proj", kv, self.hidden),
                        Linear(p + "self_attn.v_proj", kv, self.hidden), Linear(p + "self_attn.o_proj", self.hidden, q))
        else:
            keys, values = self.key_heads * self.linear_dim, self.value_heads * self.linear_dim
            yield from (Linear(p + "linear_attn.in_proj_qkv", 2 * keys + values, self.hidden), Linear(p + "linear_attn.in_proj_z", values, self.hidden),
                        Linear(p + "linear_attn.in_proj_b", self.value_heads, self.hidden, quantized=False),
                        Linear(p + "linear_attn.in_proj_a", self.value_heads, self.hidden, quantized=False),
                        Linear(p + "linear_attn.out_proj", self.hidden, values))
        yield from swiglu(p + "mlp.", self.hidden, self.ffn)

    def vectors(self, layer, weight, vector):
        p = self.layer_prefix(layer)
        if self.attends(layer):
            for norm in ("q_norm", "k_norm"):
                yield p + f"self_attn.{norm}.weight", vector(self.head_dim) * 0.0  # 1 + w
            return
        channels = (2 * self.key_heads + self.value_heads) * self.linear_dim
        yield p + "linear_attn.conv1d.weight", weight(channels, self.conv).view(channels, 1, self.conv)
        yield p + "linear_attn.A_log", vector(self.value_heads).float()
        yield p + "linear_attn.dt_bias", vector(self.value_heads)
        yield p + "linear_attn.norm.weight", vector(self.linear_dim).float()

    def mixing_flops(self, layer, tokens, seqlen):
        if self.attends(layer):
            return 2.0 * tokens * seqlen * self.heads * self.head_dim
        return 6.0 * tokens * self.value_heads * self.linear_dim**2  # the state is read twice and written once


SHAPES = {"qwen3-30b-a3b": Qwen3Moe(), "deepseek-v3": DeepseekV3(), "qwen3.5-27b": Qwen35()}
