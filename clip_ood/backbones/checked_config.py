"""The only place that reads configurations of models and tokenizers, and says which keys and kinds of value they may have.

A configuration comes from whoever made the encoder, and the libraries do what it says: `trust_remote_code`, `auto_map` or
`attn_implementation` import code, and other keys open files or contact a hub. Therefore only keys that are listed here reach a
library, each with a value of its kind; any other key is an error. null is of every kind.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_ood.errors import UserError
from clip_ood.files.records import read_json


@dataclass(frozen=True)
class Kind:
    """A kind of value, in words and as a test."""

    words: str
    fits: Callable[[Any], bool]


Keys = Mapping[str, "Kind | Keys"]


class NotAllowed(UserError):
    """A configuration asks for more than its data."""


def read_checked(path: Path, keys: Keys) -> dict[str, Any]:
    """Returns the configuration in a JSON file, without keys that no library needs, if `keys` allow all of it.

    Raises: FileNotFoundError, ValueError for a file that is no JSON, NotAllowed as `checked` does.
    """
    try:
        content = read_json(path)
    except UserError as error:
        raise UserError(f"{path} is damaged: it is no JSON ({error})") from error
    return checked(content, keys, str(path))


def checked(value: Any, allowed: Kind | Keys, place: str, key: str = "") -> Any:
    """Returns `value`, without the keys that are `UNUSED`, if it is of an allowed kind or a mapping of allowed keys.

    Raises: NotAllowed, which names the place and the key, for anything else.
    """
    named = f"{place}: {key}" if key else place
    if value is None and key:
        return None
    if isinstance(allowed, Kind):
        if not allowed.fits(value):
            raise NotAllowed(f"{named} is {_shown(value)}, and must be {allowed.words}")
        return value
    if not isinstance(value, dict):
        raise NotAllowed(f"{named} is {_shown(value)}, and must be a mapping")
    found = {}
    for name, each in value.items():
        path = f"{key}.{name}" if key else name
        if name not in allowed:
            raise NotAllowed(
                f"{place}: the key {path!r} is not one that clip-ood takes from a file, since it could run code, open other files "
                "or ask other hosts. If the encoder works without it, remove it there; else do not use this encoder"
            )
        if allowed[name] is not UNUSED:
            found[name] = checked(each, allowed[name], place, path)
    return found


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) < 60 else f"{text[:60]}…"


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _word(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[\w-]*", value) is not None


def _all(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _token(value: Any) -> bool:
    """Says whether a value is a token, as a string or as its description, or several of them."""
    if isinstance(value, list):
        return all(map(_token, value))
    if isinstance(value, dict):
        one = all(key in TOKEN and TOKEN[key].fits(each) for key, each in value.items())
        return one or all(map(_token, value.values()))
    return isinstance(value, str)


def one_of(*values: str) -> Kind:
    """Returns the kind that has only these words."""
    return Kind(f"one of {', '.join(values)}", lambda value: isinstance(value, str) and value in values)


WHOLE = Kind("a whole number", _whole)
WHOLES = Kind("a whole number or a list of them", lambda value: _whole(value) or _all(_whole)(value))
NUMBER = Kind("a number", _number)
NUMBERS = Kind("a number or a list of them", lambda value: _number(value) or _all(_number)(value))
TRUTH = Kind("true or false", lambda value: isinstance(value, bool))
WORD = Kind("a word of letters, digits, _ and -", _word)
TRUTH_OR_WORD = Kind("true, false or a word", lambda value: isinstance(value, bool) or _word(value))
TEXT = Kind("a text", lambda value: isinstance(value, str))
TEXTS = Kind("a list of texts", _all(TEXT.fits))
TIMM = Kind(
    "the name of a timm model",
    lambda value: _word(value) or (isinstance(value, str) and _word(value.replace(".", "_"))),
)
TOKENS = Kind("a token or several", _token)
DTYPE = one_of("float32", "float16", "bfloat16")
UNUSED = Kind("anything", lambda value: True)


def _each(kind: Kind, names: str) -> dict[str, Kind]:
    return dict.fromkeys(names.split(), kind)


# open_clip's open_clip_config.json

_TOWER = {
    **_each(WHOLE, "width"),
    **_each(NUMBER, "mlp_ratio ls_init_value"),
    **_each(TRUTH, "final_ln_after_pool output_tokens"),
    **_each(TRUTH, "qk_norm scaled_cosine_attn scale_heads scale_attn_inner scale_attn scale_fc"),
    **_each(WORD, "pool_type block_type"),
    "act_kwargs": {"approximate": WORD},
    "norm_kwargs": {"eps": NUMBER, "elementwise_affine": TRUTH, "bias": TRUTH},
}
VISION = _TOWER | {
    **_each(WHOLES, "layers image_size patch_size"),
    **_each(WHOLE, "head_width attn_pooler_queries attn_pooler_heads"),
    **_each(NUMBER, "patch_dropout timm_drop timm_drop_path"),
    **_each(TRUTH, "no_ln_pre timm_proj_bias timm_model_pretrained"),
    **_each(WORD, "pos_embed_type timm_pool timm_proj"),
    "attentional_pool": TRUTH_OR_WORD,
    "timm_model_name": TIMM,
}
LANGUAGE = _TOWER | {
    **_each(WHOLE, "context_length vocab_size heads layers pad_id eos_id"),
    **_each(TRUTH, "embed_cls no_causal_mask proj_bias hf_model_pretrained"),
    **_each(WORD, "proj_type hf_proj_type hf_pooler_type tokenizer_mode"),
    **_each(TEXT, "hf_model_name hf_tokenizer_name"),
    "tokenizer_kwargs": {"clean": WORD, "language": WORD, "reduction_mask": WORD, "strip_sep_token": TRUTH},
}
MODEL = {
    **_each(WHOLE, "embed_dim pad_id"),
    **_each(NUMBER, "init_logit_scale init_logit_bias"),
    **_each(TRUTH, "quick_gelu custom_text nonscalar_logit_scale output_dict"),
    "vision_cfg": VISION,
    "text_cfg": LANGUAGE,
    "multimodal_cfg": LANGUAGE | _each(WHOLE, "dim_head n_queries attn_pooler_heads"),
}
PREPROCESSING = {
    **_each(WHOLES, "size"),
    **_each(NUMBERS, "mean std fill_color"),
    **_each(WORD, "mode interpolation resize_mode"),
}
OPEN_CLIP = {"model_cfg": MODEL, "preprocess_cfg": PREPROCESSING}

# transformers' config.json, of the text towers that open_clip can take

TEXT_TOWER = {
    "model_type": one_of("bert", "roberta", "xlm-roberta", "mt5", "m2m_100"),
    **_each(
        WHOLE,
        "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size max_position_embeddings type_vocab_size "
        "pad_token_id bos_token_id sep_token_id decoder_start_token_id chunk_size_feed_forward d_model d_kv d_ff num_layers "
        "num_decoder_layers num_heads relative_attention_num_buckets relative_attention_max_distance encoder_layers "
        "encoder_ffn_dim encoder_attention_heads decoder_layers decoder_ffn_dim decoder_attention_heads",
    ),
    "eos_token_id": WHOLES,
    **_each(
        NUMBER,
        "hidden_dropout_prob attention_probs_dropout_prob initializer_range layer_norm_eps classifier_dropout dropout_rate "
        "layer_norm_epsilon initializer_factor encoder_layerdrop decoder_layerdrop dropout attention_dropout "
        "activation_dropout init_std",
    ),
    **_each(
        TRUTH, "is_decoder add_cross_attention is_encoder_decoder scale_embedding is_gated_act tie_word_embeddings"
    ),
    **_each(WORD, "hidden_act activation_function feed_forward_proj dense_act_fn position_embedding_type"),
    **_each(DTYPE, "dtype torch_dtype"),
    **_each(
        UNUSED,
        "_name_or_path name_or_path architectures transformers_version tokenizer_class use_cache gradient_checkpointing id2label "
        "label2id finetuning_task task_specific_params problem_type directionality output_past max_length num_beams language "
        "pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type return_dict "
        "output_attentions output_hidden_states forced_bos_token_id forced_eos_token_id num_labels classif_dropout",
    ),
}

# transformers' tokenizers

TOKEN = {**_each(TRUTH, "lstrip rstrip single_word normalized special"), "content": TEXT, "__type": TEXT, "id": WHOLE}
SPECIAL_TOKENS = _each(
    TOKENS,
    "bos_token eos_token unk_token sep_token pad_token cls_token mask_token additional_special_tokens extra_special_tokens",
)
TOKENIZER = SPECIAL_TOKENS | {
    "tokenizer_class": Kind(
        "the tokenizer of a text tower that is known here (BertTokenizer, XLMRobertaTokenizer, T5TokenizerFast, …)",
        lambda value: (
            isinstance(value, str)
            and re.fullmatch(
                r"(Bert|Roberta|XLMRoberta|T5|MT5|M2M100|Nllb|Gemma|CLIP|Siglip|GPT2|Llama|PreTrained)Tokenizer(Fast)?|TokenizersBackend",
                value,
            )
            is not None
        ),
    ),
    **_each(
        NUMBER,
        "model_max_length max_length max_len extra_ids pad_to_multiple_of pad_token_type_id stride num_madeup_words",
    ),
    **_each(
        TRUTH,
        "add_prefix_space add_bos_token add_eos_token clean_up_tokenization_spaces do_basic_tokenize do_lower_case keep_accents "
        "remove_space strip_accents tokenize_chinese_chars trim_offsets legacy legacy_behaviour spaces_between_special_tokens "
        "split_special_tokens add_dummy_prefix_space use_default_system_prompt",
    ),
    **_each(WORD, "padding_side truncation_side truncation_strategy errors src_lang tgt_lang language_codes"),
    **_each(TEXTS, "never_split model_input_names"),
    "added_tokens_decoder": TOKENS,
    "sp_model_kwargs": {"enable_sampling": TRUTH, "nbest_size": WHOLE, "alpha": NUMBER},
    **_each(
        UNUSED,
        "name_or_path tokenizer_file special_tokens_map_file vocab_file merges_file processor_class chat_template "
        "transformers_version is_local local_files_only backend use_fast from_slow tokenizer_type",
    ),
}
MODEL_TYPE = {"model_type": WORD}  # all that is read of the config.json beside a tokenizer
ADDED_TOKENS = Kind(
    "a mapping from tokens to whole numbers", lambda value: isinstance(value, dict) and all(map(_whole, value.values()))
)
TOKENIZER_FILES: dict[str, Kind | Keys | None] = {  # None: the file holds only data, whatever it says
    "tokenizer_config.json": TOKENIZER,
    "special_tokens_map.json": SPECIAL_TOKENS,
    "added_tokens.json": ADDED_TOKENS,
    **dict.fromkeys(("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt")),
    **dict.fromkeys(("sentencepiece.bpe.model", "spiece.model", "tokenizer.model")),
}
