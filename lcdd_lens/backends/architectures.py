"""The supported architectures: a Hugging Face configuration in TransformerLens's words, and where weights lie.

TransformerLens infers configurations from hub names, so it cannot load local folders under names of their own, cuts
the context length and lacks Gemma-2 by path. Here everything is read from the checkpoint's configuration, and what a
HookedTransformer cannot express is refused with the reason instead of being approximated.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from lcdd_lens.backends.layout import UNEMBEDDING, Link
from lcdd_lens.errors import ModelError

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_new",
    "gelu_fast": "gelu_fast",
    "gelu_pytorch_tanh": "gelu_pytorch_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
}


@dataclass(frozen=True)
class Architecture:
    """One architecture: its name in transformers, its configuration and the places of its weights."""

    class_name: str
    configure: Callable[[Any], dict[str, Any]]
    links: Callable[[Any], list[Link]]


def architecture_of(hf_config: Any) -> Architecture:
    """The architecture of a Hugging Face configuration.

    Raises:
        ModelError: it is not supported.
    """
    model_type = getattr(hf_config, "model_type", None)
    if model_type not in ARCHITECTURES:
        raise ModelError(f"architecture {model_type!r} is not supported: expected one of {supported()}.")
    return ARCHITECTURES[model_type]


def supported() -> str:
    """The supported ``model_type`` values, for messages."""
    return ", ".join(ARCHITECTURES)


def settings_of(hf_config: Any) -> dict[str, Any]:
    """What the Hugging Face model computes, as the fields of a TransformerLens configuration.

    Raises:
        ModelError: the architecture or one of its options is not supported.
    """
    architecture = architecture_of(hf_config)
    if getattr(hf_config, "quantization_config", None) is not None:
        raise ModelError("the checkpoint is quantized: weight deltas need plain weights; load a version without.")
    return architecture.configure(hf_config) | {"original_architecture": architecture.class_name}


def layout_config(hf_config: Any) -> SimpleNamespace:
    """The settings that :class:`Link` patterns ask for, without a TransformerLens class around them."""
    absent = {"n_key_value_heads": None, "use_qk_norm": False, "use_normalization_before_and_after": False}
    return SimpleNamespace(**(absent | settings_of(hf_config)))


def _gpt2(hf: Any) -> dict[str, Any]:
    if hf.add_cross_attention:
        raise ModelError("GPT-2 with cross-attention is not supported: expected a decoder on its own.")
    return {
        "d_model": hf.n_embd,
        "n_layers": hf.n_layer,
        "n_heads": hf.n_head,
        "d_head": hf.n_embd // hf.n_head,
        "d_mlp": hf.n_inner if hf.n_inner is not None else 4 * hf.n_embd,
        "n_ctx": hf.n_positions,
        "d_vocab": hf.vocab_size,
        "act_fn": _activation(hf.activation_function),
        "eps": hf.layer_norm_epsilon,
        "normalization_type": "LN",
        "positional_embedding_type": "standard",
        "use_attn_scale": hf.scale_attn_weights,
        "scale_attn_by_inverse_layer_idx": hf.scale_attn_by_inverse_layer_idx,
    }


def _neox(hf: Any) -> dict[str, Any]:
    d_head = hf.hidden_size // hf.num_attention_heads
    return {
        "d_model": hf.hidden_size,
        "n_layers": hf.num_hidden_layers,
        "n_heads": hf.num_attention_heads,
        "d_head": d_head,
        "d_mlp": hf.intermediate_size,
        "n_ctx": hf.max_position_embeddings,
        "d_vocab": hf.vocab_size,
        "act_fn": _activation(hf.hidden_act),
        "eps": hf.layer_norm_eps,
        "normalization_type": "LN",
        "parallel_attn_mlp": hf.use_parallel_residual,
        **_rotary(hf, int(d_head * hf.rope_parameters.get("partial_rotary_factor", 1.0)), has_local=False),
    }


def _llama_like(hf: Any, layer_types: list[str]) -> dict[str, Any]:
    """What Llama, Mistral, Qwen3 and Gemma-2 share: RMS norms, grouped queries, gated MLP, rotary positions."""
    d_head = getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads
    if hf.rope_parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise ModelError(f"partial_rotary_factor is not supported for {hf.model_type}: expected 1.0.")
    window = getattr(hf, "sliding_window", None)
    has_local = "sliding_attention" in layer_types
    if has_local and not window:
        raise ModelError("layers with sliding attention need a sliding_window in config.json, which has none.")
    grouped = hf.num_key_value_heads != hf.num_attention_heads
    return {
        "d_model": hf.hidden_size,
        "n_layers": hf.num_hidden_layers,
        "n_heads": hf.num_attention_heads,
        "n_key_value_heads": hf.num_key_value_heads if grouped else None,
        "d_head": d_head,
        "d_mlp": hf.intermediate_size,
        "n_ctx": hf.max_position_embeddings,
        "d_vocab": hf.vocab_size,
        "eps": hf.rms_norm_eps,
        "normalization_type": "RMS",
        "final_rms": True,
        "gated_mlp": True,
        "use_local_attn": has_local,
        "window_size": window if has_local else None,
        "attn_types": ["local" if kind == "sliding_attention" else "global" for kind in layer_types]
        if has_local
        else None,
        **_rotary(hf, d_head, has_local),
    }


def _llama(hf: Any) -> dict[str, Any]:
    return _llama_like(hf, ["full_attention"] * hf.num_hidden_layers) | {"act_fn": _activation(hf.hidden_act)}


def _mistral(hf: Any) -> dict[str, Any]:
    kind = "full_attention" if hf.sliding_window is None else "sliding_attention"
    return _llama_like(hf, [kind] * hf.num_hidden_layers) | {"act_fn": _activation(hf.hidden_act)}


def _qwen3(hf: Any) -> dict[str, Any]:
    return _llama_like(hf, hf.layer_types) | {"act_fn": _activation(hf.hidden_act), "use_qk_norm": True}


def _gemma2(hf: Any) -> dict[str, Any]:
    if hf.use_bidirectional_attention:
        raise ModelError("Gemma-2 with bidirectional attention is not supported: expected a causal model.")
    return _llama_like(hf, hf.layer_types) | {
        "act_fn": _activation(hf.hidden_activation),
        "attn_scale": math.sqrt(hf.query_pre_attn_scalar),
        "attn_scores_soft_cap": hf.attn_logit_softcapping or -1.0,
        "output_logits_soft_cap": hf.final_logit_softcapping or -1.0,
        "use_normalization_before_and_after": True,
    }


def _activation(name: str) -> str:
    if name not in _ACTIVATIONS:
        raise ModelError(f"activation function {name!r} is not supported: expected one of {', '.join(_ACTIVATIONS)}.")
    return _ACTIVATIONS[name]


def _rotary(hf: Any, rotary_dim: int, has_local: bool) -> dict[str, Any]:
    """Rotary positions with the checkpoint's base and scaling."""
    rope = hf.rope_parameters
    if any(isinstance(value, dict) for value in rope.values()):
        raise ModelError("rotary positions that differ by layer type are not supported: expected one set for all.")
    kind = rope.get("rope_type", "default")
    shared = {
        "positional_embedding_type": "rotary",
        "rotary_base": float(rope["rope_theta"]),
        "rotary_dim": rotary_dim,
        "rotary_adjacent_pairs": False,
    }
    # Dynamic scaling changes nothing up to max_position_embeddings, which is the context length here.
    if kind in ("default", "dynamic"):
        return shared
    if kind == "linear" and not has_local:
        return shared | {"rotary_scaling_factor": float(rope["factor"])}
    if kind == "llama3":
        return shared | {
            "use_NTK_by_parts_rope": True,
            "NTK_by_parts_factor": float(rope["factor"]),
            "NTK_by_parts_low_freq_factor": float(rope["low_freq_factor"]),
            "NTK_by_parts_high_freq_factor": float(rope["high_freq_factor"]),
            "NTK_original_ctx_len": int(rope["original_max_position_embeddings"]),
        }
    if kind == "yarn":
        return shared | _yarn(hf, rope)
    raise ModelError(
        f"rotary scaling {kind!r}{' with sliding-window layers' if has_local else ''} is not supported: "
        "expected default, dynamic, linear (without sliding windows), llama3 or yarn."
    )


def _yarn(hf: Any, rope: Mapping[str, Any]) -> dict[str, Any]:
    """YaRN (arXiv 2309.00071); the attention factor defaults to 0.1·ln(factor) + 1."""
    original = rope["original_max_position_embeddings"]
    factor = rope.get("factor") or hf.max_position_embeddings / original

    def temperature(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    attention_factor = rope.get("attention_factor")
    if attention_factor is None:
        numerator, denominator = rope.get("mscale"), rope.get("mscale_all_dim")
        if numerator and denominator:
            attention_factor = temperature(numerator) / temperature(denominator)
        else:
            attention_factor = temperature(1.0)
    return {
        "use_yarn_rope": True,
        "yarn_factor": float(factor),
        "yarn_attention_factor": float(attention_factor),
        "yarn_beta_fast": float(rope.get("beta_fast") or 32),
        "yarn_beta_slow": float(rope.get("beta_slow") or 1),
        "yarn_original_max_position_embeddings": int(original),
        "yarn_truncate": bool(rope.get("truncate", True)),
    }


def _norm(hf: str, lens: str, bias: bool, shift: float = 0.0) -> list[Link]:
    weight = Link(f"{hf}.weight", (f"{lens}.w",), "channel -> channel", shift=shift)
    return [weight, Link(f"{hf}.bias", (f"{lens}.b",), "channel -> channel")] if bias else [weight]


def _linear(hf: str, weight: str, bias: str) -> list[Link]:
    return [
        Link(f"{hf}.weight", (weight,), "d_out d_in -> d_in d_out"),
        Link(f"{hf}.bias", (bias,), "d_out -> d_out"),
    ]


def _unembedding() -> Link:
    return Link(UNEMBEDDING, ("unembed.W_U",), "vocab d_model -> d_model vocab")


def _gpt2_links(cfg: Any) -> list[Link]:
    links = [
        Link("transformer.wte.weight", ("embed.W_E",), "vocab d_model -> vocab d_model"),
        Link("transformer.wpe.weight", ("pos_embed.W_pos",), "pos d_model -> pos d_model"),
        *_norm("transformer.ln_f", "ln_final", bias=True),
        _unembedding(),
    ]
    for layer in range(cfg.n_layers):
        hf, lens = f"transformer.h.{layer}", f"blocks.{layer}"
        attn, mlp = f"{lens}.attn", f"{lens}.mlp"
        links += [
            *_norm(f"{hf}.ln_1", f"{lens}.ln1", bias=True),
            *_norm(f"{hf}.ln_2", f"{lens}.ln2", bias=True),
            Link(
                f"{hf}.attn.c_attn.weight",
                (f"{attn}.W_Q", f"{attn}.W_K", f"{attn}.W_V"),
                "d_model (qkv head d_head) -> qkv head d_model d_head",
            ),
            Link(
                f"{hf}.attn.c_attn.bias",
                (f"{attn}.b_Q", f"{attn}.b_K", f"{attn}.b_V"),
                "(qkv head d_head) -> qkv head d_head",
            ),
            Link(f"{hf}.attn.c_proj.weight", (f"{attn}.W_O",), "(head d_head) d_model -> head d_head d_model"),
            Link(f"{hf}.attn.c_proj.bias", (f"{attn}.b_O",), "d_model -> d_model"),
            Link(f"{hf}.mlp.c_fc.weight", (f"{mlp}.W_in",), "d_in d_out -> d_in d_out"),
            Link(f"{hf}.mlp.c_fc.bias", (f"{mlp}.b_in",), "d_out -> d_out"),
            Link(f"{hf}.mlp.c_proj.weight", (f"{mlp}.W_out",), "d_in d_out -> d_in d_out"),
            Link(f"{hf}.mlp.c_proj.bias", (f"{mlp}.b_out",), "d_out -> d_out"),
        ]
    return links


def _neox_links(cfg: Any) -> list[Link]:
    links = [
        Link("gpt_neox.embed_in.weight", ("embed.W_E",), "vocab d_model -> vocab d_model"),
        *_norm("gpt_neox.final_layer_norm", "ln_final", bias=True),
        _unembedding(),
    ]
    for layer in range(cfg.n_layers):
        hf, lens = f"gpt_neox.layers.{layer}", f"blocks.{layer}"
        attn, mlp = f"{lens}.attn", f"{lens}.mlp"
        links += [
            *_norm(f"{hf}.input_layernorm", f"{lens}.ln1", bias=True),
            *_norm(f"{hf}.post_attention_layernorm", f"{lens}.ln2", bias=True),
            Link(
                f"{hf}.attention.query_key_value.weight",
                (f"{attn}.W_Q", f"{attn}.W_K", f"{attn}.W_V"),
                "(head qkv d_head) d_model -> qkv head d_model d_head",
            ),
            Link(
                f"{hf}.attention.query_key_value.bias",
                (f"{attn}.b_Q", f"{attn}.b_K", f"{attn}.b_V"),
                "(head qkv d_head) -> qkv head d_head",
            ),
            Link(f"{hf}.attention.dense.weight", (f"{attn}.W_O",), "d_model (head d_head) -> head d_head d_model"),
            Link(f"{hf}.attention.dense.bias", (f"{attn}.b_O",), "d_model -> d_model"),
            *_linear(f"{hf}.mlp.dense_h_to_4h", f"{mlp}.W_in", f"{mlp}.b_in"),
            *_linear(f"{hf}.mlp.dense_4h_to_h", f"{mlp}.W_out", f"{mlp}.b_out"),
        ]
    return links


def _llama_like_links(cfg: Any) -> list[Link]:
    is_gemma = cfg.use_normalization_before_and_after
    shift = 1.0 if is_gemma else 0.0
    kv_prefix = "" if cfg.n_key_value_heads is None else "_"
    links = [
        Link(
            "model.embed_tokens.weight",
            ("embed.W_E",),
            "vocab d_model -> vocab d_model",
            scale=math.sqrt(cfg.d_model) if is_gemma else 1.0,
        ),
        *_norm("model.norm", "ln_final", bias=False, shift=shift),
        _unembedding(),
    ]
    for layer in range(cfg.n_layers):
        hf, lens = f"model.layers.{layer}", f"blocks.{layer}"
        attn, mlp = f"{lens}.attn", f"{lens}.mlp"
        norms = {"input_layernorm": "ln1", "post_attention_layernorm": "ln2"}
        if is_gemma:
            norms = {
                "input_layernorm": "ln1",
                "post_attention_layernorm": "ln1_post",
                "pre_feedforward_layernorm": "ln2",
                "post_feedforward_layernorm": "ln2_post",
            }
        if cfg.use_qk_norm:
            norms |= {"self_attn.q_norm": "attn.q_norm", "self_attn.k_norm": "attn.k_norm"}
        for source, target in norms.items():
            links += _norm(f"{hf}.{source}", f"{lens}.{target}", bias=False, shift=shift)
        for letter, axis, prefix in (("q", "head", ""), ("k", "kv", kv_prefix), ("v", "kv", kv_prefix)):
            links += [
                Link(
                    f"{hf}.self_attn.{letter}_proj.weight",
                    (f"{attn}.{prefix}W_{letter.upper()}",),
                    f"({axis} d_head) d_model -> {axis} d_model d_head",
                ),
                Link(
                    f"{hf}.self_attn.{letter}_proj.bias",
                    (f"{attn}.{prefix}b_{letter.upper()}",),
                    f"({axis} d_head) -> {axis} d_head",
                ),
            ]
        links += [
            Link(f"{hf}.self_attn.o_proj.weight", (f"{attn}.W_O",), "d_model (head d_head) -> head d_head d_model"),
            Link(f"{hf}.self_attn.o_proj.bias", (f"{attn}.b_O",), "d_model -> d_model"),
            *_linear(f"{hf}.mlp.gate_proj", f"{mlp}.W_gate", f"{mlp}.b_gate"),
            *_linear(f"{hf}.mlp.up_proj", f"{mlp}.W_in", f"{mlp}.b_in"),
            *_linear(f"{hf}.mlp.down_proj", f"{mlp}.W_out", f"{mlp}.b_out"),
        ]
    return links


ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": Architecture("GPT2LMHeadModel", _gpt2, _gpt2_links),
    "gpt_neox": Architecture("GPTNeoXForCausalLM", _neox, _neox_links),
    "llama": Architecture("LlamaForCausalLM", _llama, _llama_like_links),
    "mistral": Architecture("MistralForCausalLM", _mistral, _llama_like_links),
    "qwen3": Architecture("Qwen3ForCausalLM", _qwen3, _llama_like_links),
    "gemma2": Architecture("Gemma2ForCausalLM", _gemma2, _llama_like_links),
}
