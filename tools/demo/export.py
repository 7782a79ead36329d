"""Writes a model's folder: config.json, tokenizer.json, tokenizer_config.json and float16 safetensors."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import PreTrainedModel


def save_model(model: PreTrainedModel, tokenizer: Tokenizer, directory: Path, **special_tokens: str) -> None:
    """Saves `model` in half precision; readers widen it, and the config says float32 for those that ask it.

    Tensors that the model ties together are written once, under the first of their names.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tensors, written = {}, set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in written and tensor.is_floating_point():
            written.add(tensor.data_ptr())
            tensors[name] = tensor.detach().to(torch.float16).contiguous()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict()
    config.update(architectures=[type(model).__name__], torch_dtype="float32", dtype="float32")
    config.pop("_name_or_path", None)
    (directory / "model.safetensors").chmod(0o644)
    (directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    described = {f"{kind}_token": token for kind, token in special_tokens.items()}
    described.update(tokenizer_class="PreTrainedTokenizerFast", model_max_length=512, clean_up_tokenization_spaces=False)
    (directory / "tokenizer_config.json").write_text(json.dumps(described, indent=2) + "\n")
