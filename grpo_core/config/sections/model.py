"""Section `model`: which model is trained, in which precision, and whether with LoRA."""

from __future__ import annotations

from typing import Literal

from grpo_core.config.devices import AUTO
from grpo_core.config.places import Name
from grpo_core.config.sections.fields import Section, setting


class ModelConfig(Section):
    """The model that is trained."""

    name: Name = setting(
        "bundled",
        "Model",
        "`bundled` (a tiny reasoning model, no download), a local folder, "
        "or a Hub id such as Qwen/Qwen3-0.6B.",
        min_length=1,
        max_length=512,
        hint="Write bundled, a folder with config.json and *.safetensors, or owner/name.",
    )
    revision: Name = setting(
        "main", "Revision", "Branch, tag or commit of a Hub model.", min_length=1, max_length=200
    )
    init: Literal["weights", "random"] = setting(
        "weights",
        "Initial weights",
        "`weights` loads the trained weights. "
        "`random` keeps the model's configuration and starts from random weights.",
    )
    device: Name = setting(
        AUTO,
        "Device",
        "`auto`: the first NVIDIA cards that no run uses, one for each worker, else the CPU. "
        "`cpu`, or cards such as `cuda:0` or `cuda:2,cuda:3`. Runs on different devices train side "
        "by side; on one device they queue.",
        min_length=1,
        max_length=200,
        hint="Write auto, cpu, or cuda:0 for the first NVIDIA card.",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = setting(
        "auto",
        "Precision",
        "`auto`: bfloat16 on NVIDIA cards since Ampere; float32 elsewhere, where bfloat16 is slow. "
        "Trained bfloat16 weights have float32 masters: no update is lost to rounding.",
    )
    base_bits: Literal["16", "4"] = setting(
        "16",
        "Base weights",
        "`4` stores the frozen base of a LoRA run in 4 bits (NF4 by bitsandbytes, CUDA only). "
        "That takes a quarter of the memory; the adapters stay float32.",
    )
    lora_rank: int = setting(
        0,
        "LoRA rank",
        "0 trains the whole model. A higher value trains only adapters of this rank beside the "
        "linear layers. They take a fraction of the memory and need no second copy as reference.",
        ge=0,
        le=1024,
        hint="0, or 16 to start with.",
    )
    lora_alpha: float | None = setting(
        None,
        "LoRA alpha",
        "The output of the adapters is multiplied by alpha/rank. Empty: twice the rank.",
        gt=0,
        le=4096,
        hint="Leave it empty.",
    )
