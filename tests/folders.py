"""A folder of each family as one finds it on the Hub: tiny weights, real processor classes."""

import importlib.util
import json

import pytest
import tiny
import transformers as hf
import zoo
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers.utils import is_torchvision_available


def skip_without(family):
    """Skip the test where the processor wants what is not installed."""
    kind = zoo.example(family).processor or type(zoo.config(family)).__name__
    there = {
        "SmolVLMConfig": ("num2words", importlib.util.find_spec("num2words") is not None),
        "PixtralProcessor": ("torchvision", is_torchvision_available()),
    }
    wanted, installed = there.get(kind, ("", True))
    if not installed:
        pytest.skip(f"the processor of {family} wants {wanted}, which is not installed")


def tokenizer(family):
    case = zoo.example(family)
    special = case.special
    words = {special.get(word, word): i for i, word in enumerate(tiny.WORDS)}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = hf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=dict(case.named),
        padding_side="left",
    )
    others = sorted({"<image>", *special.values()} & words.keys())
    made.add_special_tokens({"extra_special_tokens": others}, replace_extra_special_tokens=False)
    made.add_tokens([word for word in words if word.startswith("w") or word.endswith(":")])  # BPE
    return made


def save(family, folder):
    """Write the folder: weights, tokenizer, chat template, and the processor's settings."""
    zoo.model(family).save_pretrained(folder)
    tokenizer(family).save_pretrained(folder)
    images = zoo.image_processor(family).to_dict()
    images["image_processor_type"] = images["image_processor_type"].removesuffix("Pil")
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    case = zoo.example(family)
    kind = case.processor or hf.PROCESSOR_MAPPING[type(case.config)].__name__
    (folder / "processor_config.json").write_text(
        json.dumps({"processor_class": kind, **case.settings})
    )
    template = tiny.CHAT_TEMPLATE.replace("<image>", case.picture)
    (folder / "chat_template.jinja").write_text(template)
    return folder
